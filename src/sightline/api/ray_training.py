"""Train on a Ray cluster: one run on several hosts that train together, or single runs on several workers.

Ray reserves the resources, places the workers and detects lost ones. Ray Train is not used: its JAX trainer connects
only GPUs and TPUs, restarts after any error, even one in the images, and stops training by killing it.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightline import _io
from sightline.api.ray_options import RayOptions, check_room, check_sources, has_node, make_room_error
from sightline.api.ray_worker import Call, Outcome, TrainingWorker
from sightline.api.training_process import RESUME, TRAIN, deliver_event
from sightline.callbacks import Callback, CallbackList, EpochRecord
from sightline.data.indexing import Sources, list_of_sources
from sightline.distributed import ray_cluster
from sightline.distributed.cluster import ClusterSpec
from sightline.errors import HostError, Interrupted, ProcessError
from sightline.runs.directory import RunDirectory
from sightline.runs.paths import is_run, next_path
from sightline.training import interrupt
from sightline.training.result import TrainResult

MAX_RESTARTS = 3  # consecutive restarts, without an epoch in between
GRACE_SECONDS = 15.0  # time for the other hosts to end after one has failed
START_SECONDS = 120.0  # time for the first reply of a worker
CLUSTER_WAIT_SECONDS = 600.0  # time for a cluster to have room, since some add nodes on demand
POLL_SECONDS = 0.5


class _WorkerLostError(HostError):
    """A worker is gone, or the node that it was on."""


def train_on_cluster(arguments: dict[str, Any], options: RayOptions, callback: Callback) -> TrainResult:
    """Run `train_run` with `arguments` on the workers of a Ray cluster, which train together; see `_train_together`."""
    check_sources(arguments["sources"])
    sources = list_of_sources(arguments["sources"])
    stem = _io.safe_stem(f"{arguments['recipe']}-{'+'.join(Path(str(source)).name for source in sources)}")
    path = Path(arguments["out"] or next_path(Path("runs"), stem))
    arguments = {**arguments, "out": path}
    before = RunDirectory(path).info if is_run(path) else None

    def choose_call() -> Call:
        has_started = is_run(path) and RunDirectory(path).info != before
        return (RESUME, {"path": path}) if has_started else (TRAIN, arguments)

    return _train_together(choose_call, options, callback)


def resume_on_cluster(arguments: dict[str, Any], options: RayOptions, callback: Callback) -> TrainResult:
    """Run `resume` with `arguments` on the workers of a Ray cluster, which train together."""
    run = RunDirectory.open(Path(arguments["path"]))
    was_complete = run.info.get("status") == "complete"

    def choose_call() -> Call:
        is_being_extended = was_complete and run.info.get("status") != "complete"
        return RESUME, {**arguments, "epochs": None if is_being_extended else arguments["epochs"]}

    return _train_together(choose_call, options, callback)


def _train_together(choose_call: Callable[[], Call], options: RayOptions, callback: Callback) -> TrainResult:
    """Train on the workers of a placement group, and continue from the last checkpoint whenever one is lost.

    Raises `HostError` after `MAX_RESTARTS` in a row without an epoch, `UsageError` if the cluster is too small,
    `Interrupted` after Ctrl-C, and what the function raises.
    """
    restarts = 0

    def reset(_: EpochRecord) -> None:
        nonlocal restarts
        restarts = 0

    with (
        interrupt.raise_on_sigterm(),
        ray_cluster.connect(options.address) as ray,
        _reserve(ray, options, callback) as wait_for_bundles,
    ):
        while True:
            workers = _start_workers(ray, options, wait_for_bundles())
            outcomes = _run_together(ray, workers, choose_call(), CallbackList(callback, reset))
            if isinstance(outcomes[0], TrainResult):
                return outcomes[0]
            reason = _find_loss(outcomes, options)
            if restarts == MAX_RESTARTS:
                raise HostError(f"{reason}, {restarts + 1} times in a row without an epoch in between.")
            restarts += 1
            callback.on_message(f"{reason}: training goes on from the last checkpoint")


def _run_together(ray: Any, workers: Sequence[Any], call: Call, callback: Callback) -> list[Outcome]:
    """Run `call` on all workers, the first of which is host 0 and coordinates them."""
    function, arguments = call
    calls = [call]
    if len(workers) > 1:
        try:
            address = ray.get(workers[0].choose_address.remote(), timeout=START_SECONDS)
        except ray.exceptions.RayError as error:
            _dismiss_workers(ray, workers)
            return [_WorkerLostError(f"A worker did not start ({ray_cluster.describe_error(error)})")]
        hosts = [ClusterSpec(address, len(workers), rank) for rank in range(len(workers))]
        calls = [(function, {**arguments, "hosts": host}) for host in hosts]
    with interrupt.catch_stop_signals() as stop:
        return _run_calls(ray, workers, calls, callback, lambda: stop.requested)


def _find_loss(outcomes: Sequence[Outcome], options: RayOptions) -> str:
    """Return how a worker was lost; raises the error of a worker that ended for another reason."""
    errors = [outcome for outcome in outcomes if not isinstance(outcome, TrainResult)]
    for error in errors:
        if isinstance(error, Interrupted) and "sightline resume" in str(error):
            raise Interrupted(f"{error} Add --engine ray --num-workers {options.num_workers}.")
        if not isinstance(error, HostError | ProcessError):
            raise error
    errors.sort(key=lambda error: type(error) is HostError)  # such an error only reports that another host is gone
    return str(errors[0]).rstrip(".")


@contextmanager
def _reserve(ray: Any, options: RayOptions, callback: Callback) -> Iterator[Callable[[], list[Any]]]:
    """Reserve the resources of all workers, and yield a function that waits for them and returns where each is."""
    from ray.util import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    check_room(ray, options)
    bundle, count = options.count_resources(ray), options.num_workers
    group = placement_group([bundle] * count, strategy="PACK")

    def wait_for_bundles() -> list[Any]:
        deadline = time.monotonic() + CLUSTER_WAIT_SECONDS
        while not group.wait(POLL_SECONDS):
            if time.monotonic() > deadline:
                raise make_room_error(ray, options)
        return [PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index) for index in range(count)]

    callback.on_message(f"Ray: {options.describe(ray)}")
    try:
        yield wait_for_bundles
    finally:
        remove_placement_group(group)


def _start_workers(ray: Any, options: RayOptions, places: Sequence[Any]) -> list[Any]:
    resources = options.count_resources(ray)
    actor = ray.remote(TrainingWorker)
    reserved = {"num_cpus": resources["CPU"], "num_gpus": resources.get("GPU", 0), "max_concurrency": 8}
    return [actor.options(scheduling_strategy=place, **reserved).remote(str(Path.cwd()), sys.argv) for place in places]


def _run_calls(
    ray: Any, workers: Sequence[Any], calls: Sequence[Call], callback: Callback, should_stop: Callable[[], bool]
) -> list[Outcome]:
    """Run one call on each worker and return the outcomes; the events of the first worker go to `callback`.

    After one has failed, the others have `GRACE_SECONDS` to end. A worker that is lost after a request to stop counts
    as stopped. No worker is left at the end.
    """
    runs = {
        worker.run.remote(call, has_listener=rank == 0): rank
        for rank, (worker, call) in enumerate(zip(workers, calls, strict=True))
    }
    events = workers[0].wait_for_events.remote()
    outcomes: dict[int, Outcome] = {}
    deadline, is_stopping = math.inf, False
    try:
        while (len(outcomes) < len(runs) or events is not None) and time.monotonic() < deadline:
            if should_stop() and not is_stopping:
                is_stopping = True
                _stop_workers(ray, workers)
            pending = [ref for ref, rank in runs.items() if rank not in outcomes]
            ready, _ = ray.wait([*pending, *([] if events is None else [events])], timeout=POLL_SECONDS)
            for ref in ready:
                if ref == events:
                    events = _deliver_events(ray, workers[0], events, callback)
                    continue
                outcome = _get_outcome(ray, ref)
                if is_stopping and isinstance(outcome, _WorkerLostError):
                    outcome = Interrupted("Stopped.")
                outcomes[runs[ref]] = outcome
                if not isinstance(outcome, TrainResult | Interrupted):
                    deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
    except BaseException:
        _stop_workers(ray, workers)
        ray.wait(list(runs), num_returns=len(runs), timeout=GRACE_SECONDS)
        raise
    finally:
        _dismiss_workers(ray, workers)
    missing = _WorkerLostError("A worker did not end after another one")
    return [outcomes.get(rank, missing) for rank in range(len(runs))]


def _deliver_events(ray: Any, worker: Any, events: Any, callback: Callback) -> Any:
    """Pass events to `callback`, and return a reference to the next ones; None after the last."""
    try:
        received = ray.get(events)
    except ray.exceptions.RayActorError:
        return None
    for event in received:
        if event is None:
            return None
        name, arguments = event
        verdict = deliver_event(callback, name, arguments)
        if name == "on_epoch_end":
            worker.reply.remote(verdict)
    return worker.wait_for_events.remote()


def _get_outcome(ray: Any, run: Any) -> Outcome:
    try:
        outcome: Outcome = ray.get(run)
    except ray.exceptions.RayTaskError:  # an internal error
        raise
    except ray.exceptions.RayError as error:
        return _WorkerLostError(f"A worker of the Ray cluster was lost ({ray_cluster.describe_error(error)})")
    return outcome


def _stop_workers(ray: Any, workers: Sequence[Any]) -> None:
    """Ask all workers to stop, and kill those that do not answer because they are still waiting for a place."""
    stops = {worker.stop.remote(): worker for worker in workers}
    _, unanswered = ray.wait(list(stops), num_returns=len(stops), timeout=GRACE_SECONDS)
    for ref in unanswered:
        ray.kill(stops[ref])


def _dismiss_workers(ray: Any, workers: Sequence[Any]) -> None:
    """Kill the child processes of all workers, which hold the lock of the run, and then the workers."""
    kills = [worker.kill.remote() for worker in workers]
    ray.wait(kills, num_returns=len(kills), timeout=GRACE_SECONDS)
    for worker in workers:
        ray.kill(worker)


@dataclass(slots=True)
class RayTrainer:
    """Trains single runs on workers of a connected cluster; its methods may be called from several threads."""

    ray: Any
    options: RayOptions
    report: Callback
    stop: threading.Event = field(default_factory=threading.Event)

    def train(self, sources: Sources, *, callback: Callback, **arguments: Any) -> TrainResult:
        """Run `train_run` on a worker, and again on another one if the worker is lost.

        Raises `ProcessError` after `MAX_RESTARTS`, `Interrupted` once `stop` is set, and what `train_run` raises.
        """
        call: Call = (TRAIN, {"sources": sources, **arguments, "force": True})
        reason = ""
        for _ in range(1 + MAX_RESTARTS):
            workers = _start_workers(self.ray, self.options, ["DEFAULT"])
            outcome = _run_calls(self.ray, workers, [call], callback, self.stop.is_set)[0]
            if isinstance(outcome, TrainResult):
                return outcome
            if not isinstance(outcome, _WorkerLostError):
                raise outcome
            reason = str(outcome)
            self.report.on_message(f"{reason}: training starts again on another one")
        raise ProcessError(f"{reason}, {1 + MAX_RESTARTS} times in a row.")


@contextmanager
def open_trainer(options: RayOptions, sources: Sources, callback: Callback) -> Iterator[RayTrainer]:
    """Connect to the cluster and return a trainer for `sources`; raises `UsageError` if they are in memory."""
    check_sources(sources)
    with interrupt.raise_on_sigterm(), ray_cluster.connect(options.address) as ray:
        check_room(ray, options)
        callback.on_message(f"Ray: {options.describe(ray)}")
        if not has_node(ray, options):
            callback.on_message("No node of the Ray cluster is large enough for a worker: waiting until one is added")
        yield RayTrainer(ray, options, callback)


def run_in_threads(tasks: Sequence[Callable[[], None]], stop: threading.Event) -> None:
    """Run each task in a thread; set `stop` if one fails or after Ctrl-C, and raise the first error at the end."""
    with ThreadPoolExecutor(len(tasks)) as pool:
        futures = [pool.submit(task) for task in tasks]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        except BaseException:
            stop.set()
            raise
        if any(future.done() and future.exception() is not None for future in futures):
            stop.set()
    errors = [error for future in futures if (error := future.exception()) is not None]
    errors.sort(key=lambda error: isinstance(error, Interrupted))  # last, since these tasks were only stopped
    if errors:
        raise errors[0]
