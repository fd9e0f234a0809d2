"""`resume`: continue an interrupted run to the same weights as an uninterrupted one, or extend a complete run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from sightline import backend
from sightline.config import DeviceConfig, RunConfig
from sightline.data.dataset import check_classes
from sightline.data.finding import Finding
from sightline.data.index import Sources
from sightline.data.index import index as make_index
from sightline.data.patch import corrected
from sightline.errors import ModelError, UsageError
from sightline.hosts import Hosts
from sightline.records import Index, TrainResult
from sightline.run import Run
from sightline.training import interrupt
from sightline.watch import Watcher
from sightline.workflow import again, environment, extension, together
from sightline.workflow.ending import INPUT, marked
from sightline.workflow.request import Request, settle
from sightline.workflow.together import Meeting
from sightline.workflow.training import Training


def resume(
    path: Path | str,
    sources: Sources | None = None,
    *,
    epochs: int | None = None,
    hosts: Hosts | None = None,
    watcher: Watcher | None = None,
) -> TrainResult:
    """Resume the run at `path` from its last checkpoint, with its original settings and choices.

    The final weights match those of an uninterrupted run bit for bit, on the same machine with the same versions. For
    a complete run, the result is returned, unless `epochs` exceeds the epochs that it has: then its last stage is
    extended to that total, with the state of the optimizer and of all random number generators restored. A schedule
    is recomputed over the whole extended stage; otherwise the result matches a run with that many epochs from the
    start bit for bit. Everything derived from the old weights (metrics, thresholds, the bundle) is replaced.

    `sources`: the same images at another location, or the arrays that the run was started with. `hosts`: as many as
    the run was started with, see `train`; the run directory is on host 0.

    Raises `ModelError` if `path` is not a run or cannot be extended for lack of a checkpoint, `UsageError` if a run to
    extend is incomplete or has more epochs already, `OutputError` if another process is writing the run, `DataError`
    if the images have changed, and whatever `train` raises.
    """
    started = time.perf_counter()
    watcher = watcher or Watcher()
    begun = DeviceConfig()
    if hosts is None or again.is_run(Path(path)):  # only host 0 needs the run
        run = Run.open(Path(path))
        begun = run.config.device if run.has_config else begun
    backend.keep_freed_memory(begun.backend)  # before the first thread
    with interrupt.at_once(), together.meeting(hosts, begun, watcher) as meeting:
        if meeting.team.rank:
            return together.follow(meeting, sources, started)
        run = Run.open(Path(path))
        with run.held():
            if epochs is not None:
                extension.begin(run, epochs, watcher)
            return _lead(run, sources, watcher, started, meeting)


def _lead(run: Run, sources: Sources | None, watcher: Watcher, started: float, meeting: Meeting) -> TrainResult:
    """Resume a run whose lock is held."""
    info = run.info
    if info.get("status") == "complete":
        watcher.say(f"{run.path} is complete: nothing to do")
        extension.conclude(run, keep=run.config.train.keep_state, watcher=watcher)
        return again.result(run, run.result)
    if "request" not in info:
        raise ModelError(f"{run.path} does not record the arguments of its training: retrain with --force.")
    try:
        if run.has_config:
            _compare_machines(info, run, watcher)
        with marked(run, new=False):
            return Training(*_begun(run, info, sources, watcher), run, watcher, started, meeting).go()
    except INPUT:
        extension.withdraw(run)
        raise


def _begun(
    run: Run, info: dict[str, Any], sources: Sources | None, watcher: Watcher
) -> tuple[RunConfig, Index, tuple[Finding, ...]]:
    """Return the settings, the index and, for a run that has not recorded them yet, the findings."""
    run.tidy()
    run.update(status="running", resumed=info.get("resumed", 0) + 1)
    request = Request.from_dict(info["request"], str(run.path / "run.json"))
    if not run.has_config:
        return settle(request.again(sources), request, watcher)
    extension.apply(run)
    config = request.anchored(run.config)
    environment.check_packages(config)
    environment.start(config.device)
    threads = config.device.threads or None
    index = make_index(request.again(sources), watcher.progress, threads, options=config.data)
    index = corrected(index, run.patch)
    check_classes(index)
    return config, index, ()


def _compare_machines(info: dict[str, Any], run: Run, watcher: Watcher) -> None:
    """Report changes of versions or processor since the run started; reject them if it must be deterministic."""
    before = {**info.get("versions", {}), **({"processor": info["processor"]} if "processor" in info else {})}
    now = {**environment.versions(), "processor": environment.processor()}
    changed = [f"{name} {before[name]} then, {now.get(name)} now" for name in before if before[name] != now.get(name)]
    if not changed:
        return
    if run.config.device.deterministic:
        raise UsageError(
            f"The weights could differ in the last bits ({', '.join(changed)}), but the run is deterministic: resume "
            f"it on the original setup, or set device.deterministic = false in {run.path / 'config.toml'}."
        )
    watcher.say(f"Changed since the run started: {', '.join(changed)}. The weights may differ in the last bits.")
