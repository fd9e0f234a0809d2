"""Predict a stream of images on a Ray cluster, in order, with Ray Data.

The images go to a pool of workers in batches: of a file or an address its path, of anything else its encoded bytes. A
worker opens the model once, and reads, decodes and predicts as this process would. What a worker that died had not
returned is predicted by another.

This process feeds a few batches ahead of the predictions that have arrived, through an actor that keeps each until its
predictions are here, so that Ray can repeat whatever was lost, and nobody holds the list of all images.
"""

from __future__ import annotations

import os
import pickle
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count as count_from
from typing import Any

from sightline import process
from sightline._keras.imports import import_ray
from sightline.config import LimitsConfig
from sightline.data.remote import is_url
from sightline.data.storage import LIMITS
from sightline.distributed.ray_cluster import PURPOSE, describe_error
from sightline.errors import HostError, ImageError, SightlineError, UsageError, plural, require
from sightline.inference.outages import stop_in_outage
from sightline.inference.prediction_files import Predict
from sightline.inference.results import Prediction
from sightline.inference.stream import InputItem, read_location

IMAGES = 128  # of a batch: about a second of work, so that the pauses between batches are short in comparison
MAX_CPUS = 4  # of a worker: two models on four cores are faster than one on eight
BATCHES_AHEAD = 4  # for each worker
MAX_BATCH_BYTES = 16 << 20  # of encoded images
MAX_BYTES_AHEAD = 512 << 20
FIRST_NOTICE_SECONDS = 5.0  # before the first line that says which CPUs are waited for; doubles from line to line
MAX_NOTICE_SECONDS = 60.0
MAX_RESTARTS = 20  # of workers, with no batch predicted in between: Ray itself has no limit


def predict(
    ray: Any,
    items: Iterable[InputItem],
    predict_items: Predict,
    *,
    batch_size: int,
    limits: LimitsConfig = LIMITS,
    on_message: Callable[[str], None] | None = None,
) -> Iterator[Prediction]:
    """Yield what `predict_items`, which can be pickled, yields for `items`, computed by workers of a Ray cluster.

    `ray` is the module, connected. A batch of the network has `batch_size` images, as in this process. `limits` are
    those of reading files. `on_message` is told from time to time that no worker has started yet, and why.

    Raises `HostError` if a worker does not see a file that this process does, or Ray fails; `UsageError` for images
    that are arrays.
    """
    workers, cpus = _divide_cpus(ray)
    strategies = require("ray.util.scheduling_strategies", PURPOSE)
    own_node = strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    feed = ray.remote(_Feed).options(num_cpus=0, scheduling_strategy=own_node).remote()
    is_busy = ray.available_resources().get("CPU", 0) < cpus
    data = import_ray(PURPOSE, "ray.data")  # while the process of the actor starts
    results = _run(data, feed, ray.put(pickle.dumps(predict_items)), limits, workers, cpus)
    reason = f"{plural(cpus, 'free CPU')}, which a worker needs" if is_busy else "the first worker to start"
    delay = FIRST_NOTICE_SECONDS if is_busy else MAX_NOTICE_SECONDS
    try:
        with _report_waiting(ray, feed, f"Ray: waiting for {reason}", on_message, delay):
            predictions = _exchange(ray, feed, results, _cut_batches(items, batch_size), BATCHES_AHEAD * (workers + 1))
            yield from stop_in_outage(predictions, lambda prediction: (prediction.path, prediction.error))
    except ray.exceptions.RayError as error:
        raise _find_cause(error) or HostError(
            f"Ray has failed ({describe_error(error)}): run the same command again to go on."
        ) from error
    finally:
        if ray.is_initialized():  # else all has ended, and Ray would start again
            results.close()
            ray.kill(feed)


@contextmanager
def _report_waiting(
    ray: Any, feed: Any, message: str, on_message: Callable[[str], None] | None, delay: float
) -> Iterator[None]:
    """Tell `on_message` the `message` after `delay` seconds and later again, as long as no worker has started."""
    has_ended = threading.Event()

    def report() -> None:
        nonlocal delay
        while on_message is not None and not has_ended.wait(delay):
            try:
                if ray.get(feed.has_workers.remote()):
                    return
            except ray.exceptions.RayError:  # this process learns of it, too
                return
            on_message(message)
            delay = min(2 * delay, MAX_NOTICE_SECONDS)

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()


@dataclass(frozen=True, slots=True)
class _SentItem:
    """An image on its way: where it is, its encoded bytes, or why it cannot be read."""

    path: str
    location: str | None = None
    content: bytes | None = None
    error: str | None = None

    @classmethod
    def from_item(cls, item: InputItem) -> _SentItem:
        if item.location is not None and not item.location.startswith("memory://"):  # that of this process
            location = item.location if item.is_remote else os.path.abspath(item.location)  # noqa: PTH100  # keeps links
            return cls(item.path, location)
        try:
            content = item.read()
        except ImageError as error:
            return cls(item.path, error=str(error))
        if not isinstance(content, bytes | bytearray | memoryview):
            raise UsageError(
                f"Image {item.path} is an array, but the engine ray takes files, addresses and encoded images: "
                "use the engine local."
            )
        return cls(item.path, content=bytes(content))

    def to_item(self, limits: LimitsConfig) -> InputItem:
        return InputItem(self.path, partial(self._read, limits), location=self.location)

    def _read(self, limits: LimitsConfig) -> bytes:
        if self.error is not None:
            raise ImageError(self.error)
        return read_location(self.location, limits) if self.location is not None else self.content or b""


def _cut_batches(items: Iterable[InputItem], batch_size: int) -> Iterator[tuple[list[InputItem], list[_SentItem], int]]:
    """Yield the items of each batch, as they are and as they are sent, with the number of bytes that are sent.

    A batch has as many images as several of the network, so that these are the same as in one process.
    """
    limit = batch_size * max(1, IMAGES // batch_size)
    batch: list[InputItem] = []
    sent: list[_SentItem] = []
    size = 0
    for item in items:
        batch.append(item)
        sent.append(_SentItem.from_item(item))
        size += len(sent[-1].content or b"")
        if len(batch) == limit or (size >= MAX_BATCH_BYTES and len(batch) % batch_size == 0):
            yield batch, sent, size
            batch, sent, size = [], [], 0
    if batch:
        yield batch, sent, size


class _Feed:
    """An actor that holds the batches which were sent and whose predictions have not arrived."""

    def __init__(self) -> None:
        import asyncio  # only here: a prediction without Ray does not wait for it

        self._batches: dict[int, bytes] = {}
        self._first = 0  # that is held
        self._is_finished = False
        self._starts = 0  # of workers, since predictions have last arrived
        self._has_workers = False
        self._changed = asyncio.Condition()

    async def put(self, number: int, batch: bytes) -> None:
        async with self._changed:
            self._batches[number] = batch
            self._changed.notify_all()

    async def finish(self) -> None:
        """State that there are no further batches."""
        async with self._changed:
            self._is_finished = True
            self._changed.notify_all()

    async def drop(self, number: int) -> None:
        """Forget a batch whose predictions have arrived, as have those of all before it."""
        self._batches.pop(number, None)
        self._first = number + 1
        self._starts = 0

    async def count_start(self) -> int:
        """Count the start of a worker; return the number since predictions have last arrived."""
        self._starts += 1
        self._has_workers = True
        return self._starts

    async def has_workers(self) -> bool:
        """Return whether a worker has started."""
        return self._has_workers

    async def get(self, number: int) -> bytes | None:
        """Return a batch as soon as it is there: None after the last one, an empty one if it was dropped."""
        async with self._changed:
            await self._changed.wait_for(lambda: number in self._batches or number < self._first or self._is_finished)
            return b"" if number < self._first else self._batches.get(number)


def _exchange(
    ray: Any,
    feed: Any,
    results: Iterator[list[bytes]],
    batches: Iterator[tuple[list[InputItem], list[_SentItem], int]],
    ahead: int,
) -> Iterator[Prediction]:
    """Feed `batches`, at most `ahead` of the results, and yield the predictions of each in turn."""
    waiting: deque[tuple[list[InputItem], int]] = deque()
    sent = done = waiting_bytes = 0
    is_finished = False
    arrived: Iterator[bytes] = (result for block in results for result in block)
    while True:
        while not is_finished and len(waiting) < ahead and (not waiting or waiting_bytes < MAX_BYTES_AHEAD):
            if (batch := next(batches, None)) is None:
                is_finished = True
                ray.get(feed.finish.remote())
            else:
                items, content, size = batch
                ray.get(feed.put.remote(sent, pickle.dumps(content)))
                waiting.append((items, size))
                sent, waiting_bytes = sent + 1, waiting_bytes + size
        if not waiting:
            return
        predictions = pickle.loads(next(arrived))  # noqa: S301  # what our own worker pickled
        items, size = waiting.popleft()
        waiting_bytes -= size
        feed.drop.remote(done)
        done += 1
        for item, prediction in zip(items, predictions, strict=True):
            if prediction.error is not None:
                _check_visible(item, prediction.error)
            yield prediction


def _check_visible(item: InputItem, reason: str) -> None:
    """Raise `HostError` if a file that a worker could not open can be opened here."""
    if item.location is None or is_url(item.location) or not reason.startswith("cannot be opened"):
        return
    try:
        item.read()
    except ImageError:
        return
    raise HostError(
        f"A worker of the Ray cluster cannot open {item.path}, which this process can ({reason}): mount the images "
        "at the same path on all nodes, or give their address, e.g. s3://bucket/photos."
    )


def _run(
    data: Any, feed: Any, model: Any, limits: LimitsConfig, workers: int, cpus: int
) -> Generator[list[bytes], None, None]:
    """Yield the results of the batches of `feed` in order, as `data`, the module `ray.data`, delivers them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of settings that Ray Data itself copies
        context = data.DataContext.get_current().copy()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    context.target_max_block_size = 1  # a block is a row, and a row a batch: none waits for others
    with data.DataContext.current(context):
        dataset = data.read_datasource(_make_datasource(data, feed), override_num_blocks=1, num_cpus=0).map_batches(
            _Worker,
            fn_constructor_args=(model, limits, cpus, feed, workers + MAX_RESTARTS),
            batch_size=None,
            batch_format="pyarrow",
            compute=data.ActorPoolStrategy(min_size=1, max_size=workers, initial_size=workers),
            num_cpus=cpus,
        )
        for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
            yield block["predictions"].to_pylist()


def _make_datasource(data: Any, feed: Any) -> Any:
    """Return the source of Ray Data that reads the batches of `feed`; its class needs Ray."""

    class Batches(data.Datasource):  # type: ignore[misc]  # Ray is not there when types are checked
        def estimate_inmemory_data_size(self) -> None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:  # noqa: ARG002  # there is one
            metadata = data.block.BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [data.ReadTask(partial(_read_feed, feed), metadata)]

        def get_name(self) -> str:
            return "Batches"

    return Batches()


def _read_feed(feed: Any) -> Iterator[Any]:
    """Yield each batch of `feed` as a table of one row."""
    ray, pyarrow = require("ray", PURPOSE), require("pyarrow", PURPOSE)
    for number in count_from():
        batch = ray.get(feed.get.remote(number))
        if batch is None:
            return
        yield pyarrow.table({"batch": pyarrow.array([batch], pyarrow.large_binary())})


class _Worker:
    """Predicts batches in a process of Ray's, with a model that is opened once and as many threads as its CPUs."""

    def __init__(self, model: Any, limits: LimitsConfig, cpus: int, feed: Any, max_starts: int) -> None:
        process.limit_cores(cpus)
        ray = require("ray", PURPOSE)
        if ray.get(feed.count_start.remote()) > max_starts:
            raise HostError("Workers end as soon as they have started")
        content = ray.get(model)
        self._predict: Predict = pickle.loads(content)  # noqa: S301  # what our own process pickled
        self._limits = limits

    def __call__(self, table: Any) -> Any:
        pyarrow = require("pyarrow", PURPOSE)
        results = [self._predict_batch(batch) for batch in table["batch"].to_pylist()]
        return pyarrow.table({"predictions": pyarrow.array(results, pyarrow.large_binary())})

    def _predict_batch(self, batch: bytes) -> bytes:
        items: list[_SentItem] = pickle.loads(batch) if batch else []  # noqa: S301  # what our own process pickled
        return pickle.dumps(list(self._predict(item.to_item(self._limits) for item in items)))


def _divide_cpus(ray: Any) -> tuple[int, int]:
    """Return the number of workers, and that of the CPUs of each, which all nodes with CPUs have."""
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    cpus = min([MAX_CPUS, *(count for count in nodes if count)])
    workers = sum(count // cpus for count in nodes)
    if not workers:
        raise HostError("The Ray cluster has no node with a CPU: start workers, then run the same command again.")
    return workers, cpus


def _find_cause(error: BaseException) -> SightlineError | None:
    """Return the error of ours that a worker raised, if that is why Ray has failed."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, SightlineError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    return None
