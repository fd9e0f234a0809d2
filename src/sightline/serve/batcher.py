"""Dynamic batching: images that are waiting at the same time are classified in one batch."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from sightline import process
from sightline.api import Classifier
from sightline.errors import ImageError
from sightline.inference import stream
from sightline.inference.results import Prediction
from sightline.inference.runner import choose_batch_size

MAX_WAITING_BATCHES = 16  # maximum batches waiting; beyond that, the server is busy

_PendingImage = tuple[NDArray[np.uint8], "asyncio.Future[Prediction]"]


class Batcher:
    """Classifies encoded images in batches; for one event loop.

    Images are decoded in threads as they arrive. The model runs in its own thread, on all images that arrived during
    the previous batch, at most `choose_batch_size`; a single image never waits for others.
    """

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self._thresholds, self._interpret = classifier.thresholds, classifier.task.interpret
        self._size = choose_batch_size(classifier.preprocess.shape)
        self._queue: asyncio.Queue[_PendingImage] = asyncio.Queue(MAX_WAITING_BATCHES * self._size)
        self._decoders = ThreadPoolExecutor(process.count_cores(), "decode")
        self._model = ThreadPoolExecutor(1, "model")

    @property
    def busy(self) -> bool:
        """Whether the queue is full, so that another image should be rejected."""
        return self._queue.full()

    async def predict(self, content: bytes) -> Prediction:
        """Return the prediction for one encoded image; if it cannot be read, one with its `error`."""
        loop = asyncio.get_running_loop()
        try:
            pixels = await loop.run_in_executor(self._decoders, self._classifier.preprocess.decode, content)
        except ImageError as error:
            return Prediction("", error=str(error))
        future: asyncio.Future[Prediction] = loop.create_future()
        await self._queue.put((pixels, future))
        return await future

    async def run(self) -> None:
        """Process batches until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            while len(batch) < self._size and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            try:
                predictions = await loop.run_in_executor(
                    self._model, self._predict_batch, [pixels for pixels, _ in batch]
                )
            except Exception as error:  # noqa: BLE001  # raised in the waiting requests; the next batch is unaffected
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), prediction in zip(batch, predictions, strict=True):
                if not future.done():  # done if the client disconnected
                    future.set_result(prediction)

    def close(self) -> None:
        """Shut the threads down."""
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self._model.shutdown(wait=False, cancel_futures=True)

    def _predict_batch(self, pixels: list[NDArray[np.uint8]]) -> list[Prediction]:
        classifier = self._classifier
        return stream.predict_pixels(
            classifier.predictor, pixels, top=len(classifier.classes), thresholds=self._thresholds,
            interpret=self._interpret,
        )  # fmt: skip
