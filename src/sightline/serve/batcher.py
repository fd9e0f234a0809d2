"""Dynamic batching: images that are waiting at the same time are classified in one batch."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sightline import process
from sightline.errors import PictureError
from sightline.prediction import stream
from sightline.prediction.base import suitable_batch_size
from sightline.records import Prediction
from sightline.workflow import Classifier

BATCHES = 16  # maximum batches waiting; beyond that, the server is busy

_Waiting = tuple[NDArray[np.uint8], "asyncio.Future[Prediction]"]


class Batcher:
    """Classifies encoded images in batches; for one event loop.

    Images are decoded in threads as they arrive. The model runs in its own thread, on all images that arrived during
    the previous batch, at most `suitable_batch_size`; a single image never waits for others.
    """

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self._thresholds = classifier.thresholds
        self._size = suitable_batch_size(classifier.preprocess)
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue(BATCHES * self._size)
        self._decoders = ThreadPoolExecutor(process.cores(), "decode")
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
        except PictureError as error:
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
                answers = await loop.run_in_executor(self._model, self._answer, [pixels for pixels, _ in batch])
            except Exception as error:  # noqa: BLE001  # raised in the waiting requests; the next batch is unaffected
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():  # done if the client disconnected
                    future.set_result(answer)

    def close(self) -> None:
        """Shut the threads down."""
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self._model.shutdown(wait=False, cancel_futures=True)

    def _answer(self, pixels: list[NDArray[np.uint8]]) -> list[Prediction]:
        by = self._classifier
        found = stream.predict(
            by.predictor, stream.as_items(pixels), top=len(by.classes), threads=1, thresholds=self._thresholds
        )
        return [replace(answer, path="") for answer in found]
