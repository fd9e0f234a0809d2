"""The batched runner: the same results in order whatever the batch size, one size for every call, few batches ahead."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from networks import build_network, random_images
from sightline.data.types import Subset
from sightline.errors import ImageError
from sightline.export import keras_to_onnx
from sightline.inference import runner
from sightline.inference.predictor import NOT_FINITE_REASON, FakePredictor, Outputs, Streams
from sightline.inference.runtimes import onnx
from sightline.inference.runtimes.onnx import OnnxPredictor
from sightline.inference.runtimes.onnx_sessions import create_session
from sightline.models.head import OUTPUTS
from sightline.preprocessing import PreprocessingSpec

pytestmark = pytest.mark.usefixtures("no_thread_left")

CLASSES = ("dark", "medium", "bright")
SPEC = PreprocessingSpec(4, 4, 3)


class RecordingPredictor(FakePredictor):
    """Records the number of rows of each call; NaN for a black image."""

    def __init__(self) -> None:
        super().__init__(CLASSES, SPEC)
        self.sizes: list[int] = []

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.sizes.append(len(pixels))
        black = pixels.reshape(len(pixels), -1).max(1) == 0
        return np.where(black[:, None], np.float32(np.nan), super().probabilities(pixels))


def make_subset(count: int) -> Subset:
    pixels = np.maximum(random_images(count, 4), 1)
    return Subset(pixels[::-1].copy(), np.arange(count)[::-1].copy(), np.zeros(count, np.int32), ("",) * count)


def test_the_batch_size_is_limited_by_pixels_and_by_rows() -> None:
    assert runner.choose_batch_size((224, 224, 3)) == 8
    assert runner.choose_batch_size((32, 32, 1)) == 128
    assert runner.choose_batch_size((1280,)) == 128, "features"
    assert runner.choose_batch_size((4096, 4096, 3)) == 1


def test_batches_are_smaller_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.process.count_memory", lambda: 512 << 20)
    assert runner.choose_batch_size((224, 224, 3)) == 2
    assert runner.choose_batch_size((1280,)) == 128, "features"


@settings(deadline=None)
@given(cores=st.integers(1, 64), side=st.integers(8, 1024))
def test_streams_take_no_more_than_a_batch_and_no_more_than_all_cores(cores: int, side: int) -> None:
    streams = runner.choose_streams((side, side, 3), cores)
    assert 1 <= streams.count * streams.rows <= runner.choose_batch_size((side, side, 3))
    assert 1 <= streams.count * streams.threads <= cores


def test_streams_of_photographs_are_as_many_as_cores() -> None:
    assert runner.choose_streams((256, 256, 3), 2) == Streams(2, 1, 1)
    assert runner.choose_streams((224, 224, 3), 2) == Streams(2, 2, 1)
    assert runner.choose_streams((224, 224, 3), 16) == Streams(8, 1, 2)


@pytest.mark.parametrize("streams", [Streams(1, 8, 2), Streams(2, 1, 1), Streams(3, 4, 1)])
def test_a_file_gives_the_same_outputs_in_any_streams(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, classes = keras_to_onnx.convert_model(build_network("efficientnet-lite0").model), tuple("abc")
    pixels = random_images(11, 32)
    samples = Subset(pixels, np.arange(11), np.zeros(11, np.int32), ("",) * 11)
    spec, threads = PreprocessingSpec(32, 32, 3), set()
    expected = create_session(graph).run(list(OUTPUTS), {"pixels": pixels})
    monkeypatch.setattr(onnx, "choose_streams", lambda *_: streams)
    predictor = OnnxPredictor(graph, classes, spec)
    plain = predictor.outputs

    def record(rows: NDArray[np.uint8]) -> Outputs:
        threads.add(threading.get_ident())
        return plain(rows)

    monkeypatch.setattr(predictor, "outputs", record)
    outputs = runner.predict_outputs(predictor, samples)
    for array, whole in zip(outputs.arrays, expected, strict=True):
        np.testing.assert_array_equal(array, whole)
    assert len(threads) <= streams.count
    assert threading.get_ident() not in threads


@settings(deadline=None)
@given(count=st.integers(1, 40), size=st.integers(1, 20))
def test_results_come_in_order_from_calls_of_one_size(count: int, size: int) -> None:
    samples, predictor = make_subset(count), RecordingPredictor()
    seen: list[tuple[str, int, int]] = []
    probabilities = runner.predict_probabilities(
        predictor, samples, batch_size=size, task="testing", progress=lambda *event: seen.append(event)
    )
    np.testing.assert_array_equal(probabilities, FakePredictor(CLASSES, SPEC).probabilities(samples.take(slice(None))))
    assert set(predictor.sizes) == {min(size, count)}
    assert seen == [("testing", min(done, count), count) for done in range(size, count + size, size)]


def test_all_outputs_are_concatenated() -> None:
    samples = make_subset(300)
    outputs = runner.predict_outputs(FakePredictor(CLASSES, SPEC), samples)
    expected = FakePredictor(CLASSES, SPEC).outputs(samples.take(slice(None)))
    assert isinstance(outputs, Outputs)
    for array, whole in zip(outputs.arrays, expected.arrays, strict=True):
        np.testing.assert_array_equal(array, whole)
    assert runner.predict_probabilities(FakePredictor(CLASSES, SPEC), make_subset(0)).shape == (0, 3)


def test_an_interrupt_while_evaluating_leaves_no_thread() -> None:
    def interrupt(_task: str, done: int, _total: int) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    predictor = RecordingPredictor()
    with pytest.raises(KeyboardInterrupt):
        runner.predict_probabilities(predictor, make_subset(50), batch_size=2, progress=interrupt)
    assert predictor.sizes == [2, 2]


def test_images_are_predicted_in_streams_in_order() -> None:
    """Batches run in several threads at once, each batch in one of them, and come in the order of the images."""
    together, threads = threading.Barrier(2, timeout=30), set()

    class InStreams(RecordingPredictor):
        streams = Streams(2, 1, 1)

        def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            together.wait()
            threads.add(threading.get_ident())
            return super().probabilities(pixels)

    levels = list(range(1, 65))
    predictor = InStreams()
    results = list(runner.predict_images(predictor, levels, decode_level, lambda pixels: pixels, batch_size=4))
    assert [image.item for batch in results for image in batch] == levels
    assert len(threads) == 2
    assert threading.get_ident() not in threads
    assert predictor.sizes == [4] * 16


def decode_level(level: int) -> NDArray[np.uint8]:
    if level > 255:
        raise ImageError(f"level {level} is too bright")
    return np.full(SPEC.shape, level, np.uint8)


def predict_levels(
    predictor: FakePredictor,
    levels: Iterator[int] | list[int],
    decode: Callable[[int], Any] = decode_level,
    **options: Any,
) -> Iterator[list[runner.ImageOutputs[int, Any]]]:
    return runner.predict_images(predictor, levels, decode, lambda pixels: pixels, **options)


@pytest.mark.parametrize("all_outputs", [False, True])
def test_each_image_has_its_outputs_or_the_reason_why_not(all_outputs: bool) -> None:
    predictor = RecordingPredictor()
    with np.errstate(divide="ignore", invalid="ignore"):
        batches = list(predict_levels(predictor, [10, 300, 250, 0, 100], all_outputs=all_outputs, batch_size=3))
    assert [len(batch) for batch in batches] == [3, 2]
    assert predictor.sizes == [3, 3], "unreadable images and the last batch do not change the size"
    images = [image for batch in batches for image in batch]
    assert [image.item for image in images] == [10, 300, 250, 0, 100]
    assert [image.error for image in images] == [None, "level 300 is too bright", None, NOT_FINITE_REASON, None]
    labels = [None if image.probabilities is None else CLASSES[image.probabilities.argmax()] for image in images]
    assert labels == ["dark", None, "bright", None, "medium"]
    assert [image.logits is not None for image in images] == [all_outputs and label is not None for label in labels]


def test_an_endless_source_is_decoded_a_few_batches_ahead() -> None:
    taken = 0

    def count_up() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken % 256

    batches = predict_levels(RecordingPredictor(), count_up(), batch_size=5, threads=2)
    assert taken == 0, "nothing is read before the first batch is asked for"
    for _ in range(4):
        next(batches)
    batches.close()  # type: ignore[attr-defined]  # an iterator by its type, a generator in truth
    assert 20 <= taken <= 20 + 5 * runner.BATCHES_AHEAD


def test_images_are_decoded_in_other_threads() -> None:
    threads: set[int] = set()

    def decode(level: int) -> NDArray[np.uint8]:
        threads.add(threading.get_ident())
        return decode_level(level)

    assert sum(map(len, predict_levels(RecordingPredictor(), list(range(1, 100)), decode, threads=3))) == 99
    assert 1 <= len(threads) <= 3
    assert threading.get_ident() not in threads
