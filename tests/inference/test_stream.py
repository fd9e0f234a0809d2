"""Images to predictions: in order, one row each, in bounded memory, for every form of input."""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from sightline.errors import ImageError, ModelError, UsageError
from sightline.inference import stream
from sightline.inference.inputs import InputItem, expand_inputs, make_items
from sightline.inference.predictor import FakePredictor, Outputs
from sightline.inference.results import ClassProbability, Prediction, Thresholds
from sightline.inference.stream import predict
from sightline.preprocessing import PreprocessingSpec
from synthetic_images import (
    HostileFolder,
    draw_image,
    draw_pixels,
    encode,
    encode_png,
    write_files,
)

pytestmark = pytest.mark.usefixtures("no_thread_left")

CLASSES = ("black", "dark", "bright", "white")
LEVELS = (10, 80, 150, 250)  # of gray, one for each class


class CountingPredictor(FakePredictor):
    """Records the sizes of its batches."""

    def __init__(self) -> None:
        super().__init__(CLASSES, PreprocessingSpec(4, 4))
        self.batches: list[int] = []

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert pixels.dtype == np.uint8
        assert pixels.shape[1:] == (4, 4, 3)
        self.batches.append(len(pixels))
        return super().probabilities(pixels)


def encode_gray(i: int) -> bytes:
    return encode(Image.new("RGB", (6, 5), (LEVELS[i % 4],) * 3))


# Predictions.


def test_a_prediction_names_the_best_classes_first() -> None:
    (answer,) = predict(CountingPredictor(), make_items([encode_gray(2)]), top=3)
    assert (answer.path, answer.label, answer.error) == ("[0]", "bright", None)
    assert answer.probability == pytest.approx(0.9)
    assert [c.label for c in answer.top] == ["bright", "black", "dark"]  # equal ones in the order of the classes
    assert answer.top[0] == ClassProbability("bright", answer.probability or 0)
    assert answer.top[1].probability == pytest.approx(0.1 / 3)


class Fixed(FakePredictor):
    """Answers 0.3 for the first of two classes, whatever the image."""

    def outputs(self, pixels: NDArray[np.uint8]) -> Outputs:
        p = np.tile(np.array([[0.3, 0.7]], np.float32), (len(pixels), 1))
        return Outputs(p, np.log(p), p)


@pytest.mark.parametrize(("threshold", "first"), [(0.2, "bad"), (float(np.float32(0.3)), "bad"), (0.31, "good")])
@pytest.mark.parametrize("top", [1, 2])
def test_a_threshold_of_the_positive_class_gives_the_label(threshold: float, first: str, top: int) -> None:
    thresholds = Thresholds(9, rate="sensitivity", target_rate=0.9, positive="bad", positive_threshold=threshold)
    model = Fixed(("bad", "good"), PreprocessingSpec(8, 8))
    (row,) = predict(model, make_items([np.zeros((8, 8, 3), np.uint8)]), top=top, thresholds=thresholds)
    assert (row.label, row.decision and row.decision.decision) == (first, "class")
    assert row.top[0] == ClassProbability(first, float(np.float32(0.3 if first == "bad" else 0.7)))
    assert len(row.top) == top
    other, items = Fixed(("a", "b"), PreprocessingSpec(8, 8)), make_items([np.zeros((8, 8, 3), np.uint8)])
    with pytest.raises(ModelError, match="thresholds are for the detection of 'bad'"):
        list(predict(other, items, thresholds=thresholds))


def test_classes_of_equal_probability_keep_their_order() -> None:
    predictor = FakePredictor([f"{i:02}" for i in range(50)], PreprocessingSpec(4, 4))
    (answer,) = predict(predictor, make_items([np.full((4, 4), 128, np.uint8)]), top=50)
    assert [c.label for c in answer.top] == ["25", *(c for c in predictor.classes if c != "25")]


@pytest.mark.parametrize(("top", "count"), [(1, 1), (4, 4), (99, 4)])
def test_as_many_classes_as_asked_for(top: int, count: int) -> None:
    (answer,) = predict(CountingPredictor(), make_items([encode_gray(0)]), top=top)
    assert len(answer.top) == count


@pytest.mark.parametrize("threads", [1, 4, None])
@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_rows_keep_the_order_of_the_images(tmp_path: Path, batch_size: int, threads: int | None) -> None:
    write_files(tmp_path, {f"{i:03}.png": encode_gray(i) if i % 5 else b"broken" for i in range(100)})
    predictor = CountingPredictor()
    answers = list(predict(predictor, expand_inputs([tmp_path]), batch_size=batch_size, threads=threads))
    assert [Path(a.path).name for a in answers] == [f"{i:03}.png" for i in range(100)]
    assert [a.label for a in answers] == [CLASSES[i % 4] if i % 5 else None for i in range(100)]
    assert [a.error for a in answers] == [None if i % 5 else "not an image" for i in range(100)]
    assert set(predictor.batches) == {batch_size}, "another size would be recompiled"
    assert len(predictor.batches) == (80 if batch_size == 1 else math.ceil(100 / batch_size))


def test_what_cannot_be_read_is_a_row_with_the_reason(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        {"empty.jpg": b"", "text.jpg": b"I am not an image", "half.png": encode_png()[:60], "fine.png": encode_gray(3)},
    )
    (tmp_path / "folder.jpg").mkdir()
    names = ["empty.jpg", "gone.jpg", "text.jpg", "fine.png", "half.png"]
    answers = list(predict(CountingPredictor(), make_items([tmp_path / name for name in names])))
    assert [a.error for a in answers] == [
        "empty file",
        "cannot be opened: No such file or directory",
        "not an image",
        None,
        "truncated",
    ]
    assert answers[3].label == "white"
    assert all((a.label, a.probability, a.top) == (None, None, ()) for a in answers if a.error)


def test_only_unreadable_images_never_reach_the_model() -> None:
    predictor = CountingPredictor()
    answers = list(predict(predictor, make_items([b"x"] * 40)))
    assert [a.error for a in answers] == ["not an image"] * 40
    assert predictor.batches == []


def test_nothing_gives_nothing() -> None:
    assert list(predict(CountingPredictor(), [])) == []


def test_a_hostile_folder_gets_a_row_for_each_image_and_each_file_named_so(hostile_folder: HostileFolder) -> None:
    answers = {
        Path(a.path).relative_to(hostile_folder.path).as_posix(): a
        for a in predict(CountingPredictor(), expand_inputs([hostile_folder.path]))
    }
    bad = {**hostile_folder.unreadable, **hostile_folder.undecodable}
    assert set(answers) == set(hostile_folder.images) | set(bad) | hostile_folder.stray
    assert {name: a.error for name, a in answers.items() if a.error} == bad


# From Python.


@pytest.mark.parametrize(
    ("make_input", "name"),
    [
        (lambda: encode_gray(2), "[0]"),
        (lambda: bytearray(encode_gray(2)), "[0]"),
        (lambda: memoryview(encode_gray(2)), "[0]"),
        (lambda: np.full((9, 7, 3), 150, np.uint8), "[0]"),
        (lambda: np.full((9, 7), 150, np.uint8), "[0]"),
        (lambda: np.full((9, 7, 1), 150, np.uint8), "[0]"),
        (lambda: np.full((9, 7, 4), (150, 150, 150, 255), np.uint8), "[0]"),
        (lambda: Image.new("L", (9, 7), 150), "[0]"),
        (lambda: Image.new("CMYK", (9, 7), (105, 105, 105, 0)), "[0]"),
    ],
    ids=["bytes", "bytearray", "memoryview", "RGB", "gray", "channel", "RGBA", "Pillow", "CMYK"],
)
def test_images_in_memory(make_input: Callable[[], Any], name: str) -> None:
    (answer,) = predict(CountingPredictor(), make_items([make_input()]))
    assert (answer.path, answer.label) == (name, "bright")


def test_any_mixture_in_memory_and_on_disk(tmp_path: Path) -> None:
    write_files(tmp_path, {"a/1.png": encode_gray(0), "a/2.png": encode_gray(1), "b.png": encode_gray(2)})
    mixed = [np.full((4, 4), 250, np.uint8), tmp_path / "a", str(tmp_path / "*.png"), draw_image(), b"broken"]
    answers = list(predict(CountingPredictor(), make_items(iter(mixed))))
    assert [Path(a.path).name for a in answers] == ["[0]", "1.png", "2.png", "b.png", "[3]", "[4]"]
    assert [a.label for a in answers][:4] == ["white", "black", "dark", "bright"]
    assert answers[5].error == "not an image"


def test_a_lazy_image_of_pillow_that_is_damaged_is_one_row(tmp_path: Path) -> None:
    noisy = encode(Image.effect_noise((64, 64), 90))
    (tmp_path / "half.png").write_bytes(noisy[: len(noisy) // 2])
    with Image.open(tmp_path / "half.png") as lazy:
        (answer,) = predict(CountingPredictor(), make_items([lazy]))
    assert answer.error == "truncated"


@pytest.mark.parametrize("size", [(4, 4), (64, 64)])
def test_a_damaged_image_of_pillow_is_one_row_where_sizes_matter(tmp_path: Path, size: tuple[int, int]) -> None:
    """A model that pads needs the size of an image."""
    noisy = encode(Image.effect_noise((64, 64), 90))
    (tmp_path / "half.png").write_bytes(noisy[: len(noisy) // 2])
    model = FakePredictor(CLASSES, PreprocessingSpec(*size, resize="pad"))
    with Image.open(tmp_path / "half.png") as lazy:
        damaged, whole = predict(model, make_items([lazy, Image.new("L", (9, 7), 150)]))
    assert (damaged.error, whole.error) == ("truncated", None)


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_of_an_image_of_pillow_is_the_one_displayed(format_name: str, orientation: int) -> None:
    image, exif, file = Image.new("RGB", (9, 7)), Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(file, format_name, exif=exif)
    with Image.open(file) as lazy:
        size = stream.find_size(PreprocessingSpec(), lazy)
        assert size == ImageOps.exif_transpose(lazy).size == ((9, 7) if orientation < 5 else (7, 9))
        assert stream.find_size(PreprocessingSpec(), file.getvalue()) == size


@pytest.mark.parametrize("wrong", [np.zeros((4, 4, 3)), np.zeros((2, 4, 4, 3), np.uint8), 5])
def test_an_input_that_is_not_an_image_is_a_usage_error(wrong: Any) -> None:
    with pytest.raises(UsageError, match="pixels must be uint8"):
        list(predict(CountingPredictor(), make_items([encode_gray(0), wrong])))


# Many images.


class EndlessItems:
    """Endless items that count how many were taken and how many are being read."""

    def __init__(self, end: int = 10**9) -> None:
        self.num_taken = self.num_reading = self.max_reading = 0
        self.end = end
        self.lock = threading.Lock()

    def __iter__(self) -> Iterator[InputItem]:
        while self.num_taken < self.end:
            self.num_taken += 1
            yield InputItem(f"{self.num_taken}", self.read)

    def read(self) -> NDArray[np.uint8]:
        with self.lock:
            self.num_reading += 1
            self.max_reading = max(self.max_reading, self.num_reading)
        result = draw_pixels(1)
        with self.lock:
            self.num_reading -= 1
        return result


@pytest.mark.parametrize("batch_size", [1, 8])
def test_no_more_than_four_batches_are_ahead_of_the_reader(batch_size: int) -> None:
    source = EndlessItems()
    for given_out, answer in enumerate(islice(predict(CountingPredictor(), source, batch_size=batch_size), 100), 1):
        assert answer.path == str(given_out)
        assert source.num_taken - given_out < 4 * batch_size
    assert source.num_taken > 100  # it runs ahead


def test_the_next_batch_is_decoded_while_the_model_works() -> None:
    """In its first batch the model waits for an image of the second; without overlap none would be read."""
    second, overlapped = threading.Event(), []

    class Waiting(CountingPredictor):
        def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            overlapped.append(second.wait(timeout=30))
            return super().probabilities(pixels)

    def read(number: int) -> NDArray[np.uint8]:
        if number >= 4:
            second.set()
        return draw_pixels(1)

    items = (InputItem(str(i), lambda i=i: read(i)) for i in range(8))  # type: ignore[misc]  # mypy cannot infer a default
    assert len(list(predict(Waiting(), items, batch_size=4))) == 8
    assert overlapped == [True, True]


def test_no_more_are_decoded_at_once_than_there_are_threads() -> None:
    source = EndlessItems(200)
    assert len(list(predict(CountingPredictor(), source, threads=3))) == 200
    assert 1 <= source.max_reading <= 3


def test_nothing_is_opened_before_the_first_row_is_asked_for() -> None:
    source = EndlessItems()
    answers = predict(CountingPredictor(), source)
    assert source.num_taken == 0
    next(answers)
    answers.close()  # type: ignore[attr-defined]  # an iterator by its type, a generator in truth


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="there is no /proc/self/fd")
def test_files_are_closed_at_once(tmp_path: Path) -> None:
    write_files(tmp_path, {f"{i}.png": encode_gray(i) for i in range(50)})
    answers = predict(CountingPredictor(), expand_inputs([tmp_path]), batch_size=4, threads=2)
    next(answers)
    open_files = [
        p for p in Path("/proc/self/fd").iterdir() if p.exists() and str(p.resolve()).startswith(str(tmp_path))
    ]
    rest = list(answers)
    assert len(open_files) <= 2  # each decoding thread may be reading one
    assert len(rest) == 49


def test_a_fault_of_the_model_ends_the_stream() -> None:
    class Broken(CountingPredictor):
        def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(predict(Broken(), EndlessItems(100)))


def test_a_reader_may_refuse_with_its_own_reason() -> None:
    def read() -> NoReturn:
        raise ImageError("behind the moon")

    assert list(stream.predict(CountingPredictor(), [InputItem("far", read)])) == [
        Prediction("far", error="behind the moon")
    ]


def test_the_fake_predictor_answers_by_brightness() -> None:
    fake = FakePredictor(CLASSES, PreprocessingSpec(4, 4))
    probabilities = fake.probabilities(np.stack([np.full((4, 4, 3), level, np.uint8) for level in LEVELS]))
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)
    assert probabilities.argmax(1).tolist() == [0, 1, 2, 3]
    assert FakePredictor(["one"], PreprocessingSpec(4, 4)).probabilities(np.zeros((2, 4, 4, 3), np.uint8)).shape == (
        2,
        1,
    )
