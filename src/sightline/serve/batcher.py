"""Dynamic batching: images that wait at the same time are classified in one batch."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sightline.api.classifier import Classifier
from sightline.errors import ImageError
from sightline.inference.decoded_batch import predict_pixels
from sightline.inference.feature_log import AddImage
from sightline.inference.masks import PixelPrediction
from sightline.inference.predictor import Outputs, find_streams
from sightline.inference.results import Prediction
from sightline.inference.runner import choose_batch_size
from sightline.inference.stream import DecodedItem, SizedImage, find_size
from sightline.preprocessing import PreprocessingSpec
from sightline.serve.decoding import DecoderPool
from sightline.serve.limits import Limits
from sightline.serve.metrics import Metrics, ModelMetrics
from sightline.serve.served_model import UNNAMED
from sightline.serve.tracing import Tracing

Item = TypeVar("Item")
Result = TypeVar("Result")
MAX_WAITING_BATCHES = 16  # with more batches waiting, the server is busy


@dataclass(slots=True, eq=False)
class _PendingImage:
    """An image that waits for its prediction, with at least the `top` classes; times are from `time.perf_counter`.

    A tile is a part of a larger image, which is counted once all of its tiles are predicted.
    """

    pixels: DecodedItem
    future: asyncio.Future[Prediction]
    top: int = 1
    is_tile: bool = False
    arrival: float = field(default_factory=time.perf_counter)
    start: float | None = None  # when its batch started
    batch_size: int = 0


@dataclass(slots=True, eq=False)
class _Batch:
    """Images that are classified together, from `start` on, in seconds of `time.perf_counter`."""

    images: list[_PendingImage]
    start: float | None = None

    @property
    def size(self) -> int:
        return len(self.images)

    def begin(self) -> None:
        """Drop the images whose clients have left in the meantime, and record the start time."""
        self.images = [image for image in self.images if not image.future.done()]
        self.start = time.perf_counter()
        for image in self.images:
            image.start, image.batch_size = self.start, self.size

    def count_remaining(self, seconds: float) -> float:
        """Return how many of the allowed `seconds` are left; before the start, all of them."""
        return seconds if self.start is None else max(0.0, self.start + seconds - time.perf_counter())

    def fail(self, error: Exception) -> None:
        """Raise `error` in the requests that are still waiting."""
        for image in self.images:
            if not image.future.done():
                image.future.set_exception(error)


@dataclass(frozen=True, slots=True)
class Batching:
    """How images share batches: up to `size` images each (None: `choose_batch_size`).

    The first image of a batch waits up to `wait` seconds for others; with 0, an image that arrives while the model is
    idle is classified at once.
    """

    size: int | None = None
    wait: float = 0.0


class Batcher:
    """Classifies encoded images in batches; for one event loop.

    Images are decoded in processes as they arrive, in those of `decoders` if given. The model runs in its own threads:
    one for each of the predictor's `Streams`, as long as their batches together have no more images than
    `choose_batch_size`. A batch has all images that arrived since the previous one began, and those that arrive while
    it waits as `batching` allows. With streams, each thread has another batch ready, so that it need not wait for the
    event loop. A cancelled request leaves the queue. `size` is the maximum number of images in a batch, `capacity` the
    maximum in all concurrent batches together.
    """

    def __init__(
        self,
        classifier: Classifier,
        limits: Limits | None = None,
        metrics: ModelMetrics | None = None,
        tracing: Tracing | None = None,
        log: AddImage | None = None,
        *,
        decoders: DecoderPool | None = None,
        batching: Batching | None = None,
    ) -> None:
        self._classifier, self._tracing, self._log = classifier, tracing, log
        self._metrics = metrics or Metrics().for_model(UNNAMED)
        self._needs_size = classifier.task.targets.are_masks and classifier.preprocess.resize == "pad"
        self._thresholds = classifier.thresholds
        batching = batching or Batching()
        capacity = choose_batch_size(classifier.preprocess.shape)
        streams = find_streams(classifier.predictor)
        self._runs = 1 if streams is None else max(1, min(streams.count, capacity // (batching.size or 1)))
        self._ahead = 0 if streams is None else self._runs  # without streams, larger batches are faster
        self.size, self._wait = batching.size or math.ceil(capacity / self._runs), batching.wait
        self.capacity = self._runs * self.size
        self._queue: asyncio.Queue[_PendingImage] = asyncio.Queue(MAX_WAITING_BATCHES * max(self.size, capacity))
        self._collecting = asyncio.Lock()  # keeps other batches from taking images while one is filled
        self._limits = limits or Limits()
        self._decoders, self._owns_decoders = decoders or DecoderPool(seconds=self._limits.decode), decoders is None
        self._overdue: list[_Batch] = []
        self._model = ThreadPoolExecutor(self._runs, "model")

    @property
    def busy(self) -> bool:
        """Whether the queue is full, so that another image should be rejected."""
        return self._queue.full()

    @property
    def stalled(self) -> bool:
        """Whether a batch has been running for longer than its limit, so that the next ones may not be predicted."""
        return bool(self._overdue)

    @property
    def hangs(self) -> bool:
        """Whether a batch has been running for longer than a request may take, so that only a new process may help."""
        return any(not batch.count_remaining(self._limits.request) for batch in self._overdue)

    async def warm_up(self) -> None:
        """Start the decoders and run the model once, so that the first images do not wait for either."""
        await self._decoders.warm_up()
        blank = np.zeros(self._classifier.preprocess.shape, np.uint8)
        for size in {1, self.size}:
            work = [self._model.submit(self._predict_blank, [blank] * size) for _ in range(self._runs)]
            await asyncio.gather(*map(asyncio.wrap_future, work))

    async def predict(self, content: bytes | bytearray, top: int = 1) -> Prediction:
        """Return the prediction for one encoded image; if the image cannot be read, the prediction has an `error`.

        The prediction lists at least the `top` most probable classes; listing 1,000 takes a millisecond.

        Raises TimeoutError if the model exceeds its limit.
        """
        try:
            pixels = await self.decode(content)
        except ImageError as error:
            return Prediction("", error=str(error))
        if not self._needs_size:
            return await self.predict_pixels(pixels, top)
        size = find_size(self._classifier.preprocess, content)  # harmless: the image has been decoded before
        return await self.predict_pixels(SizedImage(pixels, *size), top)

    async def decode(
        self, content: bytes | bytearray, preprocess: PreprocessingSpec | None = None
    ) -> NDArray[np.uint8]:
        """Return the pixels [H, W, C] of one encoded image, by default as the network takes them.

        Raises `ImageError` if the image cannot be read.
        """
        span = nullcontext() if self._tracing is None else self._tracing.trace("decode")
        with self.count_unreadable(), self._metrics.decode_seconds.time(), span:
            return await self._decoders.decode(content, preprocess or self._classifier.preprocess)

    @contextmanager
    def count_unreadable(self) -> Iterator[None]:
        """Count an image as unreadable if `ImageError` is raised here."""
        try:
            yield
        except ImageError:
            self._metrics.count_unreadable()
            raise

    def compute_outputs(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Return the outputs for pixels [N, H, W, C], computed between batches; call from outside the event loop."""
        return self._model.submit(self._classifier.predictor.outputs, pixels).result()

    async def predict_pixels(self, pixels: DecodedItem, top: int = 1) -> Prediction:
        """Return the prediction for the decoded pixels [H, W, C] of one image; see `predict`.

        A segmentation model returns a `PixelPrediction` without probabilities, which would take too much memory.
        """
        prediction = await self._enqueue(pixels, top)
        return replace(prediction, probabilities=None) if isinstance(prediction, PixelPrediction) else prediction

    async def predict_tile(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        """Return a segmentation model's probabilities [H, W, K] for the pixels [H, W, C] of a tile; see `predict`.

        None if they are not finite. The image of the tile is not counted here: see `count_tiled`.
        """
        prediction = await self._enqueue(pixels, is_tile=True)
        return prediction.probabilities if isinstance(prediction, PixelPrediction) else None

    def count_tiled(self, prediction: Prediction) -> None:
        """Count the outcome for an image whose tiles were predicted, and its decision if there is one."""
        self._metrics.count_prediction(prediction)

    async def _enqueue(self, pixels: DecodedItem, top: int = 1, *, is_tile: bool = False) -> Prediction:
        future: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
        image = _PendingImage(pixels, future, top, is_tile)
        try:
            await self._queue.put(image)
            return await future
        finally:
            if self._tracing is not None:
                now = time.perf_counter()
                self._tracing.record("queue", image.arrival, image.start or now)
                if image.start is not None:
                    self._tracing.record("model", image.start, now, **{"sightline.batch_size": image.batch_size})

    async def predict_all(
        self, images: Sequence[bytes | bytearray] | NDArray[np.uint8], top: int = 1
    ) -> list[Prediction]:
        """Return the predictions for encoded images or pixels [N, H, W, C]; at most `capacity` images wait at a time.

        If one image fails, the others are cancelled.
        """

        async def predict(image: bytes | bytearray | NDArray[np.uint8]) -> Prediction:
            return await (
                self.predict_pixels(image, top) if isinstance(image, np.ndarray) else self.predict(image, top)
            )

        return await gather_limited(predict, images, self.capacity)

    async def run(self) -> None:
        """Process batches until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._runs + self._ahead):
                group.create_task(self._process_batches())

    async def _process_batches(self) -> None:
        """Process one batch after another."""
        while True:
            batch = _Batch(await self._collect())
            try:
                predictions = await self._run_model(batch)
            except Exception as error:  # noqa: BLE001  # raised in the waiting requests; the next batch is unaffected
                self._metrics.count_failed(sum(not image.is_tile for image in batch.images))
                batch.fail(error)
                continue
            for image, prediction in zip(batch.images, predictions, strict=True):
                if not image.is_tile:
                    self._metrics.count_prediction(prediction)
                if not image.future.done():
                    image.future.set_result(prediction)

    async def _collect(self) -> list[_PendingImage]:
        """Return the images of the next batch, at least one."""
        async with self._collecting:
            batch = [await self._queue.get()]
            if self._wait:
                await self._fill(batch)
            while len(batch) < self.size and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            return batch

    async def _fill(self, batch: list[_PendingImage]) -> None:
        """Add the images that arrive until the first one has waited long enough or the batch is full."""
        with suppress(TimeoutError):
            async with asyncio.timeout(batch[0].arrival + self._wait - time.perf_counter()):
                while len(batch) < self.size:
                    batch.append(await self._queue.get())

    async def _run_model(self, batch: _Batch) -> list[Prediction]:
        """Return the predictions for a batch; if it is late, its requests fail, but its thread is still awaited."""
        limit = self._limits.model
        work = asyncio.get_running_loop().run_in_executor(self._model, self._predict_batch, batch)
        while not work.done() and (remaining := batch.count_remaining(limit)):
            await asyncio.wait([work], timeout=remaining)
        if work.done():
            return await work
        batch.fail(TimeoutError(f"The model took more than {limit:g} seconds."))
        self._overdue.append(batch)
        try:
            return await work
        finally:
            self._overdue.remove(batch)

    def close(self) -> None:
        """End the threads, and the decoding processes unless the caller provided them."""
        if self._owns_decoders:
            self._decoders.close()
        self._model.shutdown(wait=False, cancel_futures=True)

    def _predict_blank(self, pixels: list[NDArray[np.uint8]]) -> None:
        """Run everything that a batch runs, without adding to the log."""
        self._compute(pixels)
        if self._log is not None:  # the log needs more outputs
            self._classifier.predictor.outputs(np.stack(pixels))

    def _predict_batch(self, batch: _Batch) -> list[Prediction]:
        """Return the predictions for those images of a batch whose requests are still waiting."""
        batch.begin()
        if not batch.images:
            return []
        self._metrics.start_batch([image.arrival for image in batch.images])
        with self._metrics.model_seconds.time():
            top = max(image.top for image in batch.images)
            return self._compute([image.pixels for image in batch.images], top, self._log)

    def _compute(self, pixels: Sequence[DecodedItem], top: int = 1, log: AddImage | None = None) -> list[Prediction]:
        classifier = self._classifier
        return predict_pixels(
            classifier.predictor, pixels, top=top, thresholds=self._thresholds, interpret=classifier.task.interpret,
            log=log,
        )  # fmt: skip


async def gather_limited(
    compute: Callable[[Item], Awaitable[Result]], items: Iterable[Item], limit: int
) -> list[Result]:
    """Return the result of `compute` for each item, at most `limit` at a time; if one fails, cancel the others."""
    free = asyncio.Semaphore(limit)

    async def run(item: Item) -> Result:
        async with free:
            return await compute(item)

    tasks = [asyncio.create_task(run(item)) for item in items]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
