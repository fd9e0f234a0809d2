"""Predict a stream of images in order on a Ray cluster, with a pool of actors.

Images are sent to the workers in batches: files and addresses as paths, anything else as encoded bytes. A worker opens
the model once, and reads, decodes and predicts as this process would. This process keeps each batch until its
predictions arrive, so that another worker can take over the batches of one that died. No process has a list of all
images.

These are Ray Core actors, not Ray Data, whose streaming source needs an actor and a process besides the workers. Ray
Data also starts three actors of its own, which takes longer than predicting a thousand images.
"""

from __future__ import annotations

import os
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sightline import process
from sightline.config import LimitsConfig
from sightline.data.remote import is_url
from sightline.data.storage import LIMITS
from sightline.distributed.ray_cluster import describe_error
from sightline.errors import HostError, ImageError, SightlineError, UsageError, plural
from sightline.inference.inputs import InputItem, read_location
from sightline.inference.outages import stop_in_outage
from sightline.inference.prediction_files import Predict
from sightline.inference.results import Prediction

IMAGES = 128  # images per batch: about a second of work, much longer than the pauses between batches
MAX_CPUS = 4  # CPUs per worker: two models on four cores each are faster than one on eight
BATCHES_AT_ONCE = 2  # batches per worker: one is being predicted, and the next is there when it is done
BATCHES_AHEAD = 4  # batches read ahead for each worker
MAX_BATCH_BYTES = 16 << 20  # bytes of encoded images per batch
MAX_BYTES_AHEAD = 512 << 20
FIRST_NOTICE_SECONDS = 5.0  # wait before the first message about missing CPUs; doubles with each message
MAX_NOTICE_SECONDS = 60.0
MAX_DEATHS = 20  # limit on worker deaths with no batch predicted in between


def predict(
    ray: Any,
    items: Iterable[InputItem],
    predict_items: Predict,
    *,
    batch_size: int,
    limits: LimitsConfig = LIMITS,
    on_message: Callable[[str], None] | None = None,
) -> Iterator[Prediction]:
    """Run `predict_items`, which must be picklable, on workers of a Ray cluster; yield its predictions for `items`.

    `ray` is the module, already connected. The network runs on `batch_size` images at a time, as in this process.
    `limits` apply to reading files. From time to time `on_message` receives why no worker has started yet.

    Raises `HostError` if a worker cannot read a file that this process can, or Ray fails; `UsageError` for images that
    are arrays.
    """
    workers, cpus = _divide_cpus(ray)
    pool = _Pool(ray, cpus, (ray.put(pickle.dumps(predict_items)), limits), workers, on_message)
    try:
        predictions = _exchange(pool, _cut_batches(items, batch_size), BATCHES_AHEAD * (workers + 1))
        yield from stop_in_outage(predictions, lambda prediction: (prediction.path, prediction.error))
    except ray.exceptions.RayError as error:
        raise _find_cause(error) or HostError(
            f"Ray has failed ({describe_error(error)}): run the same command again to go on."
        ) from error
    finally:
        pool.close()


@dataclass(frozen=True, slots=True)
class _SentItem:
    """An image to send: its location, its encoded bytes, or the reason why it cannot be read."""

    path: str
    location: str | None = None
    content: bytes | None = None
    error: str | None = None

    @classmethod
    def from_item(cls, item: InputItem) -> _SentItem:
        if item.location is not None and not item.location.startswith("memory://"):  # stored in this process
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


@dataclass(slots=True)
class _Batch:
    """A batch of items, the same pickled for sending, with `size` bytes of encoded images, and their predictions."""

    items: list[InputItem]
    content: bytes
    size: int
    results: list[Prediction] | None = None


def _cut_batches(items: Iterable[InputItem], batch_size: int) -> Iterator[_Batch]:
    """Yield batches that are multiples of the network's, so that it sees the same batches as in one process."""
    limit = batch_size * max(1, IMAGES // batch_size)
    batch: list[InputItem] = []
    sent: list[_SentItem] = []
    size = 0
    for item in items:
        batch.append(item)
        sent.append(_SentItem.from_item(item))
        size += len(sent[-1].content or b"")
        if len(batch) == limit or (size >= MAX_BATCH_BYTES and len(batch) % batch_size == 0):
            yield _Batch(batch, pickle.dumps(sent), size)
            batch, sent, size = [], [], 0
    if batch:
        yield _Batch(batch, pickle.dumps(sent), size)


def _exchange(pool: _Pool, batches: Iterator[_Batch], ahead: int) -> Iterator[Prediction]:
    """Pass `batches` to the workers, at most `ahead` batches early, and yield their predictions in order."""
    waiting: deque[_Batch] = deque()
    while True:
        while len(waiting) < ahead and sum(batch.size for batch in waiting) < MAX_BYTES_AHEAD:
            if (batch := next(batches, None)) is None:
                break
            waiting.append(batch)
            pool.add(batch)
        if not waiting:
            return
        if (results := waiting[0].results) is None:
            pool.wait()
            continue
        for item, prediction in zip(waiting.popleft().items, results, strict=True):
            if prediction.error is not None:
                _check_visible(item, prediction.error)
            yield prediction


@dataclass(eq=False, slots=True)
class _Member:
    """A worker of the pool: its actor, the pending reply to opening the model, and its batches."""

    actor: Any
    opened: Any
    batches: dict[Any, _Batch] = field(default_factory=dict)  # keyed by their pending replies


class _Pool:
    """Workers, each in a process of Ray, with their batches, and a queue of unassigned batches."""

    def __init__(
        self,
        ray: Any,
        cpus: int,
        model: tuple[Any, LimitsConfig],
        workers: int,
        on_message: Callable[[str], None] | None,
    ) -> None:
        self._ray, self._cpus, self._model, self._on_message = ray, cpus, model, on_message
        self._is_busy = ray.available_resources().get("CPU", 0) < cpus
        self._delay = FIRST_NOTICE_SECONDS if self._is_busy else MAX_NOTICE_SECONDS
        self._queue: deque[_Batch] = deque()
        self._deaths = 0  # since the last predicted batch
        errors = ray.exceptions
        self._fatal = (
            errors.RayActorError, errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError,
            errors.ObjectLostError,
        )  # fmt: skip
        self._members = [self._start() for _ in range(workers)]
        self._has_started = False

    def _start(self) -> _Member:
        actor = self._ray.remote(_Worker).options(num_cpus=self._cpus).remote()
        return _Member(actor, actor.open.remote(*self._model, self._cpus))

    def add(self, batch: _Batch) -> None:
        """Predict a batch as soon as a worker is free."""
        self._queue.append(batch)
        self._assign()

    def wait(self) -> None:
        """Wait until a worker has started, ended or predicted a batch; replace one that has died."""
        replies = {member.opened: member for member in self._members if member.opened is not None}
        replies |= {reply: member for member in self._members for reply in member.batches}
        timeout = None if self._has_started or self._on_message is None else self._delay
        done, _ = self._ray.wait(list(replies), timeout=timeout)
        if not done and self._on_message is not None:
            reason = (
                f"{plural(self._cpus, 'free CPU')}, which a worker needs"
                if self._is_busy
                else "the first worker to start"
            )
            self._on_message(f"Ray: waiting for {reason}")
            self._delay = min(2 * self._delay, MAX_NOTICE_SECONDS)
        for reply in done:
            self._take(reply, replies[reply])
        self._assign()

    def _take(self, reply: Any, member: _Member) -> None:
        """Process the reply of a worker, or replace the worker if it has died."""
        try:
            content = self._ray.get(reply)
        except self._fatal as error:
            self._replace(member, error)
            return
        if reply == member.opened:
            member.opened, self._has_started = None, True
        else:
            member.batches.pop(reply).results = pickle.loads(content)  # noqa: S301  # what our own worker pickled
            self._deaths = 0

    def _replace(self, member: _Member, error: Exception) -> None:
        """Start a new worker in place of a dead one; its batches go to the front of the queue."""
        self._deaths += 1
        if self._deaths > len(self._members) + MAX_DEATHS:
            raise HostError(
                f"Ray has failed (workers have ended {self._deaths} times, and predicted nothing in between; the last: "
                f"{describe_error(error)}): run the same command again to go on."
            ) from error
        self._ray.kill(member.actor)  # it may merely be unresponsive
        self._queue.extendleft(reversed(member.batches.values()))
        self._members[self._members.index(member)] = self._start()

    def _assign(self) -> None:
        """Assign batches to workers that have opened the model, first to those with the fewest batches."""
        for count in range(BATCHES_AT_ONCE):
            for member in self._members:
                if self._queue and member.opened is None and len(member.batches) == count:
                    batch = self._queue.popleft()
                    member.batches[member.actor.predict.remote(batch.content)] = batch

    def close(self) -> None:
        """End the workers."""
        if self._ray.is_initialized():  # otherwise all workers have ended, and Ray would start again
            for member in self._members:
                self._ray.kill(member.actor)


class _Worker:
    """Predicts batches in a process of Ray: opens the model once, and uses as many threads as it has CPUs."""

    def open(self, model: bytes, limits: LimitsConfig, cpus: int) -> None:
        process.limit_cores(cpus)
        self._predict: Predict = pickle.loads(model)  # noqa: S301  # what our own process pickled
        self._limits = limits

    def predict(self, batch: bytes) -> bytes:
        items: list[_SentItem] = pickle.loads(batch)  # noqa: S301  # what our own process pickled
        return pickle.dumps(list(self._predict(item.to_item(self._limits) for item in items)))


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


def _divide_cpus(ray: Any) -> tuple[int, int]:
    """Return the number of workers and of CPUs per worker; every node with CPUs has at least as many."""
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    cpus = min([MAX_CPUS, *(count for count in nodes if count)])
    workers = sum(count // cpus for count in nodes)
    if not workers:
        raise HostError("The Ray cluster has no node with a CPU: start workers, then run the same command again.")
    return workers, cpus


def _find_cause(error: BaseException) -> SightlineError | None:
    """Return the Sightline error raised in a worker, if that is why Ray failed."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, SightlineError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    return None
