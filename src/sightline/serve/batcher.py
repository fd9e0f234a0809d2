"""Single requests to batches: pictures that wait together go through the model together."""

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

BATCHES = 16  # that may wait; beyond, the server says that it is busy

_Waiting = tuple[NDArray[np.uint8], "asyncio.Future[Prediction]"]


class Batcher:
    """Answers encoded pictures with a classifier; for one event loop.

    Pictures are decoded in threads as they come. The model works in one thread of its own, on all that came while it
    was at the batch before, at most `suitable_batch_size`: a picture that comes alone waits for nothing.
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
        """Whether so many pictures wait that another one is not to be taken."""
        return self._queue.full()

    async def predict(self, content: bytes) -> Prediction:
        """Return the answer for one encoded picture; its `error` says why where there is none."""
        loop = asyncio.get_running_loop()
        try:
            pixels = await loop.run_in_executor(self._decoders, self._classifier.preprocess.decode, content)
        except PictureError as error:
            return Prediction("", error=str(error))
        future: asyncio.Future[Prediction] = loop.create_future()
        await self._queue.put((pixels, future))
        return await future

    async def run(self) -> None:
        """Work until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            while len(batch) < self._size and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            try:
                answers = await loop.run_in_executor(self._model, self._answer, [pixels for pixels, _ in batch])
            except Exception as error:  # noqa: BLE001  # whoever waits is told, and the next batch has its chance
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():  # the client has gone
                    future.set_result(answer)

    def close(self) -> None:
        """Let the threads end."""
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self._model.shutdown(wait=False, cancel_futures=True)

    def _answer(self, pixels: list[NDArray[np.uint8]]) -> list[Prediction]:
        by = self._classifier
        found = stream.predict(
            by.predictor, stream.as_items(pixels), top=len(by.classes), threads=1, thresholds=self._thresholds
        )
        return [replace(answer, path="") for answer in found]
