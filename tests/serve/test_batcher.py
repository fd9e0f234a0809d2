"""What arrives together goes through the model together, and one batch's fault is not another's."""

from __future__ import annotations

import asyncio
import io
import threading
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sightline.api.classifier import Classifier
from sightline.inference.predictor import FakePredictor, Streams
from sightline.inference.results import Prediction
from sightline.preprocessing import PreprocessingSpec
from sightline.serve.batcher import Batcher, Batching
from sightline.serve.limits import Limits


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 9), (level, level, level)).save(file, "PNG")
    return file.getvalue()


class BlockingPredictor(FakePredictor):
    """Waits in its first batch until it may go on, and fails where it sees a black image."""

    streams: Streams | None = None

    def __init__(self) -> None:
        super().__init__(("dark", "light"), PreprocessingSpec(8, 8, 3))
        self.go, self.sizes = threading.Event(), list[int]()

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.sizes.append(len(pixels))
        assert self.go.wait(30)
        if (pixels == 0).all((1, 2, 3)).any():
            raise RuntimeError("black")
        return super().probabilities(pixels)


def predict_concurrently(predictor: BlockingPredictor, images: list[bytes]) -> list[Prediction | BaseException]:
    """Ask for the first image, and for all others while it is being answered."""

    async def ask() -> list[Prediction | BaseException]:
        batcher = Batcher(Classifier(predictor))
        work = asyncio.create_task(batcher.run())
        first = asyncio.create_task(batcher.predict(images[0]))
        while not predictor.sizes:  # noqa: ASYNC110  # what is seen of it from outside
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(batcher.predict(image)) for image in images[1:]]
        while batcher._queue.qsize() < len(others):  # noqa: ASYNC110  # likewise
            await asyncio.sleep(0.001)
        predictor.go.set()
        results: list[Prediction | BaseException] = await asyncio.gather(first, *others, return_exceptions=True)
        work.cancel()
        batcher.close()
        return results

    return asyncio.run(ask())


def test_images_that_wait_share_a_batch() -> None:
    predictor = BlockingPredictor()
    levels = [10, 250, 20, 240, 30, 230]
    results: list[Any] = predict_concurrently(predictor, [png(level) for level in levels])
    assert predictor.sizes == [1, 5]
    assert [answer.label for answer in results] == ["dark", "light"] * 3


def test_an_image_that_cannot_be_read_does_not_reach_the_model() -> None:
    async def ask() -> Prediction:
        batcher = Batcher(Classifier(BlockingPredictor()))
        try:
            return await batcher.predict(b"nothing")
        finally:
            batcher.close()

    assert asyncio.run(ask()).error is not None


def test_an_error_is_reported_to_its_batch_alone() -> None:
    predictor = BlockingPredictor()
    results = predict_concurrently(predictor, [png(0), png(250), png(20)])
    assert isinstance(results[0], RuntimeError)
    assert [getattr(answer, "label", None) for answer in results[1:]] == ["light", "dark"]


def test_a_client_that_left_is_dropped_from_the_queue() -> None:
    predictor = BlockingPredictor()

    async def ask() -> None:
        batcher = Batcher(Classifier(predictor))
        work = asyncio.create_task(batcher.run())
        requests = [asyncio.create_task(batcher.predict(png(9)))]
        while not predictor.sizes:  # noqa: ASYNC110  # what is seen of it from outside
            await asyncio.sleep(0.001)
        requests += [asyncio.create_task(batcher.predict(png(9))) for _ in range(3)]
        while batcher._queue.qsize() < 3:  # noqa: ASYNC110  # likewise
            await asyncio.sleep(0.001)
        for request in requests[1:3]:
            request.cancel()
        await asyncio.wait(requests[1:3])
        predictor.go.set()
        assert (await requests[3]).label == "dark"
        work.cancel()
        batcher.close()

    asyncio.run(ask())
    assert predictor.sizes == [1, 1]


def test_a_model_that_takes_too_long_fails_its_batch_and_then_goes_on() -> None:
    predictor = BlockingPredictor()

    async def ask() -> None:
        batcher = Batcher(Classifier(predictor), Limits(model=0.4, request=1.5))
        work = asyncio.create_task(batcher.run())
        with pytest.raises(TimeoutError, match=r"more than 0\.4 seconds"):
            await batcher.predict(png(9))
        assert (batcher.stalled, batcher.hangs) == (True, False)
        await asyncio.sleep(1.5)
        assert batcher.hangs
        predictor.go.set()
        assert (await batcher.predict(png(9))).label == "dark"
        assert (batcher.stalled, batcher.hangs) == (False, False)
        work.cancel()
        batcher.close()

    asyncio.run(ask())


def test_a_model_that_can_computes_several_batches_at_the_same_time() -> None:
    """While two batches are computed, what arrives waits; an overdue one does not keep the other from its answer."""
    predictor = BlockingPredictor()
    predictor.streams = Streams(2, 1, 1)

    async def ask() -> None:
        batcher = Batcher(Classifier(predictor), Limits(model=0.4))
        assert (batcher.size, batcher.capacity) == (64, 128)
        work = asyncio.create_task(batcher.run())
        requests = []
        for count in (1, 2):
            requests.append(asyncio.create_task(batcher.predict(png(9))))
            while len(predictor.sizes) < count:  # noqa: ASYNC110  # what is seen of it from outside
                await asyncio.sleep(0.001)
        waiting = [asyncio.create_task(batcher.predict(png(250))) for _ in range(3)]
        assert all(isinstance(e, TimeoutError) for e in await asyncio.gather(*requests, return_exceptions=True))
        assert predictor.sizes == [1, 1]
        await asyncio.sleep(0.5)
        assert not any(request.done() for request in waiting), "their time begins when their batches do"
        assert batcher.stalled
        predictor.go.set()
        assert [answer.label for answer in await asyncio.gather(*waiting)] == ["light"] * 3
        while batcher.stalled:  # noqa: ASYNC110  # the other batch may end a moment later
            await asyncio.sleep(0.001)
        work.cancel()
        batcher.close()

    asyncio.run(ask())
    assert sum(predictor.sizes) == 5


@pytest.mark.parametrize(
    ("runs", "size", "expected"),
    [
        (16, None, (8, 128, 2048)),
        (16, 1, (1, 16, 2048)),
        (16, 32, (32, 128, 2048)),
        (16, 100, (100, 100, 2048)),
        (16, 128, (128, 128, 2048)),
        (16, 500, (500, 500, 8000)),
        (1, 32, (32, 32, 2048)),
    ],
)
def test_threads_do_not_multiply_the_images_in_memory(
    runs: int, size: int | None, expected: tuple[int, int, int]
) -> None:
    """Of the 128 images of 8x8 that a model computes at the same time, larger batches leave fewer threads."""
    predictor = BlockingPredictor()
    predictor.streams = Streams(runs, 1, 1)
    batcher = Batcher(Classifier(predictor), batching=Batching(size))
    assert (batcher.size, batcher.capacity, batcher._queue.maxsize) == expected
    batcher.close()


def test_the_rest_of_a_request_that_failed_is_given_up() -> None:
    predictor = BlockingPredictor()
    predictor.go.set()

    async def ask() -> None:
        batcher = Batcher(Classifier(predictor))
        work = asyncio.create_task(batcher.run())
        with pytest.raises(RuntimeError, match="black"):
            await batcher.predict_all(np.zeros((1000, 8, 8, 3), np.uint8))
        assert (await batcher.predict(png(9))).label == "dark"
        work.cancel()
        batcher.close()

    asyncio.run(ask())
    assert sum(predictor.sizes) < 500


@pytest.mark.parametrize("count", [129, 300])
def test_no_batch_is_larger_than_suits(count: int) -> None:
    predictor = BlockingPredictor()
    predict_concurrently(predictor, [png(9)] * count)
    assert sum(predictor.sizes) == count
    assert max(predictor.sizes) <= 128


def test_threads_are_started_once_not_for_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = BlockingPredictor()
    predictor.go.set()
    started: list[str] = []
    start = threading.Thread.start

    def record(thread: threading.Thread) -> None:
        started.append(thread.name)
        start(thread)

    async def ask() -> None:
        batcher = Batcher(Classifier(predictor))
        work = asyncio.create_task(batcher.run())
        for level in range(1, 30):
            await batcher.predict(png(level))
        work.cancel()
        batcher.close()

    monkeypatch.setattr(threading.Thread, "start", record)
    asyncio.run(ask())
    assert len(predictor.sizes) == 29
    assert all(name.startswith(("decode", "model")) for name in started), started


@pytest.mark.parametrize("runs", [1, 2])
def test_a_batch_has_the_size_and_the_wait_that_were_chosen(runs: int) -> None:
    """Six images that arrive one by one, each after the model could have begun, make batches of four and two."""
    predictor = BlockingPredictor()
    predictor.streams = Streams(runs, 1, 1)
    predictor.go.set()

    async def ask(batching: Batching, pause: float) -> None:
        batcher = Batcher(Classifier(predictor), batching=batching)
        work = asyncio.create_task(batcher.run())
        requests = []
        for _ in range(6):
            requests.append(asyncio.create_task(batcher.predict_pixels(np.full((8, 8, 3), 9, np.uint8))))
            await asyncio.sleep(pause)
        await asyncio.gather(*requests)
        work.cancel()
        batcher.close()

    asyncio.run(ask(Batching(size=4, wait=1), 0.01))
    assert predictor.sizes == [4, 2]
    predictor.sizes.clear()
    asyncio.run(ask(Batching(size=1, wait=1), 0))
    assert predictor.sizes == [1] * 6
