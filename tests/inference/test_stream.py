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

from sightline.data.indexing import build_index
from sightline.errors import DataError, ImageError, MissingExtraError, ModelError, UsageError
from sightline.inference import stream
from sightline.inference.background_count import BackgroundCount
from sightline.inference.predictor import FakePredictor, Outputs
from sightline.inference.results import ClassProbability, Prediction, Thresholds
from sightline.inference.stream import InputItem, expand_inputs, make_items, predict, take_first
from sightline.preprocessing import PreprocessingSpec
from synthetic_images import (
    EMPTY_HEIF,
    EMPTY_HEIF_REASON,
    HostileFolder,
    draw_image,
    draw_pixels,
    encode,
    encode_png,
    write_files,
    write_tar,
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


def list_paths(items: Iterator[InputItem]) -> list[str]:
    return [item.path for item in items]


def no_stdin() -> NoReturn:
    raise AssertionError("standard input was read")


# What arguments stand for.


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images and other files, which is the working directory."""
    names = [
        "b/2.PNG",
        "b/10.jpg",
        "a.jpg",
        "b/c/3.webp",
        "b/notes.txt",
        "b/.hidden.jpg",
        "b/.git/4.jpg",
        "b/Thumbs.db",
    ]
    write_files(
        tmp_path, {name: encode_gray(i) for i, name in enumerate([*names, "ü [1].png", "猫.png", "b/__MACOSX/5.jpg"])}
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a.jpg"], ["a.jpg"]),
        (["猫.png", "a.jpg", "a.jpg"], ["猫.png", "a.jpg", "a.jpg"]),
        (["b"], ["b/10.jpg", "b/2.PNG", "b/c/3.webp", "b/notes.txt"]),  # an image, whatever its name
        (["b/"], ["b/10.jpg", "b/2.PNG", "b/c/3.webp", "b/notes.txt"]),
        (["b/notes.txt"], ["b/notes.txt"]),  # named by the user, so tried
        (["*.png"], ["ü [1].png", "猫.png"]),
        (["b/*.[jP]*"], ["b/10.jpg", "b/2.PNG"]),
        (["**/*.webp"], ["b/c/3.webp"]),
        (["b/?"], ["b/c/3.webp"]),  # a folder that matches
        (["ü [1].png"], ["ü [1].png"]),  # it exists, so it is not a pattern
        (["gone.jpg", "a.jpg"], ["gone.jpg", "a.jpg"]),
        (["b/{10..11}.jpg"], ["b/10.jpg", "b/11.jpg"]),  # a name that is missing becomes an unreadable row
        (["b/{2..2}.*"], ["b/2.PNG"]),
        ([Path("a.jpg")], ["a.jpg"]),
        ([], []),
    ],
)
def test_files_folders_and_patterns(arguments: list[str | Path], expected: list[str]) -> None:
    assert list_paths(expand_inputs(arguments, no_stdin)) == expected


def test_a_range_of_archives(tmp_path: Path) -> None:
    for number in (8, 9, 10, 11):
        write_tar(tmp_path / f"shard-{number:03}.tar", {"1.png": encode_gray(number)})
    names = list_paths(expand_inputs([f"{tmp_path}/shard-{{008..010}}.tar"]))
    assert names == [f"{tmp_path}/shard-{number}.tar/1.png" for number in ("008", "009", "010")]
    (tmp_path / "{1..2}.png").write_bytes(encode_gray(0))
    assert list_paths(expand_inputs([tmp_path / "{1..2}.png"])) == [str(tmp_path / "{1..2}.png")], "it exists"
    with pytest.raises(UsageError, match=r"stands for 999,999,999 names, and at most 100,000 are"):
        next(expand_inputs(["a-{1..999999999}.tar"]))


def test_predictions_in_a_folder_of_archives_are_not_images(tmp_path: Path) -> None:
    for name in ("a", "z"):
        write_tar(tmp_path / f"{name}.tar", {"1.png": encode_gray(1)})
    files = {"_predictions.json": b"{}", "part-00000000.parquet": b"PAR1"}
    write_files(tmp_path, {f"p.parquet/{name}": content for name, content in files.items()})
    assert list_paths(expand_inputs([tmp_path])) == [f"{tmp_path}/{name}.tar/1.png" for name in "az"]


def test_a_folder_is_walked_in_the_order_of_names(tmp_path: Path) -> None:
    names = [f"{i * 7 % 20:02}/{j}.png" for i in range(20) for j in (2, 1)]
    write_files(tmp_path, dict.fromkeys(names, b""))
    assert list_paths(expand_inputs([tmp_path])) == [str(tmp_path / name) for name in sorted(names)]


def test_a_placeholder_of_icloud_gets_a_row_that_says_so(tmp_path: Path) -> None:
    (tmp_path / ".1.jpg.icloud").write_bytes(b"bplist00\xd3")
    (tmp_path / ".notes.txt.icloud").write_bytes(b"bplist00\xd3")
    (item,) = expand_inputs([tmp_path])
    with pytest.raises(ImageError, match="only in iCloud: download the folder"):
        item.read()


def test_a_folder_is_walked_as_an_index_walks_it(tmp_path: Path) -> None:
    write_files(
        tmp_path / "elsewhere",
        {"cat/0001": encode_gray(1), "cat/2.jpg": encode_gray(2), "cat/3.txt": b"no image at all, but text"},
    )
    write_files(tmp_path / "here", {"dog/4.png": encode_gray(3)})
    (tmp_path / "here" / "linked").symlink_to(tmp_path / "elsewhere" / "cat")
    (tmp_path / "here" / "dog" / "round").symlink_to(tmp_path / "here")
    expected = ["dog/4.png", "linked/0001", "linked/2.jpg"]
    assert list_paths(expand_inputs([tmp_path / "here"])) == [str(tmp_path / "here" / name) for name in expected]
    assert [p.path for p in build_index(tmp_path / "here").images] == expected


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_list_on_standard_input_may_be_in_any_usual_encoding(encoding: str, end: str) -> None:
    data = end.join(["猫.png", "a.jpg", ""]).encode(encoding)
    assert list_paths(expand_inputs(["-"], lambda: data)) == ["猫.png", "a.jpg"]


@pytest.mark.usefixtures("here")
def test_hidden_folders_may_be_named() -> None:
    assert list_paths(expand_inputs(["b/.git"])) == ["b/.git/4.jpg"]


def test_absolute_patterns(here: Path) -> None:
    assert list_paths(expand_inputs([f"{here}/a*"])) == [f"{here}/a.jpg"]


def test_a_folder_with_brackets_is_itself_in_a_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "照片 (2024) [新]" / "猫*"
    folder.mkdir(parents=True)
    (folder / "照片 (1).jpg").touch()
    monkeypatch.chdir(tmp_path)
    names = ["照片 (2024) [新]/猫*/照片 (1).jpg"]
    assert list_paths(expand_inputs(["照片 (2024) [新]/猫*/*.jpg"])) == names
    assert list_paths(expand_inputs(["照片 (2024) [新]/*/*.jpg"])) == names
    assert list_paths(expand_inputs(["照片*/猫*/*.jpg"])) == names
    assert list_paths(expand_inputs([f"{tmp_path}/照片 (2024) [[]新]/**/*.jpg"])) == [f"{tmp_path}/{names[0]}"]
    with pytest.raises(DataError, match=r"'照片/猫/\*\.jpg'\. There is no folder 照片: check the path\."):
        list(expand_inputs(["照片/猫/*.jpg"]))


@pytest.mark.usefixtures("here")
def test_a_pattern_without_match_and_a_folder_without_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No file matches '\*\.gif'\."):
        list(expand_inputs(["*.gif"]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"The folder empty contains no images\."):
        list(expand_inputs(["empty"]))


def test_a_name_that_is_too_long_is_one_unreadable_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (answer,) = predict(CountingPredictor(), make_items(["a" * 300]))
    assert answer.error == "cannot be opened: File name too long"


@pytest.mark.parametrize("error", [DataError("empty"), MissingExtraError("pyarrow", "parquet", "It"), OSError(36, "")])
def test_what_cannot_be_counted_has_no_number(error: Exception) -> None:
    def list_two() -> Iterator[InputItem]:
        yield InputItem("a", no_stdin)
        raise error

    with BackgroundCount(list_two()) as count:
        count._thread.join()
        assert count.value is None


@pytest.mark.usefixtures("here")
def test_the_first_mistake_shows_before_anything_is_predicted() -> None:
    with pytest.raises(DataError, match="No file matches"):
        take_first(expand_inputs(["*.gif", "a.jpg"]))
    items = expand_inputs(["a.jpg", "b"])
    assert list_paths(iter(take_first(items))) == ["a.jpg"]
    assert list_paths(items) == ["b/10.jpg", "b/2.PNG", "b/c/3.webp", "b/notes.txt"]
    assert take_first(expand_inputs([])) == []


# Standard input.


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a.jpg\nb\n", ["a.jpg", "b/10.jpg", "b/2.PNG", "b/c/3.webp", "b/notes.txt"]),
        (b"  a.jpg\r\n\r\n\xe7\x8c\xab.png", ["a.jpg", "猫.png"]),
        (b"gone.jpg\n-\n", ["gone.jpg", "-"]),
        (b"*.png", ["ü [1].png", "猫.png"]),
        (b"caf\xe9.jpg", ["caf\udce9.jpg"]),
        ("a\u2028b.jpg".encode(), ["a\u2028b.jpg"]),
        (b"", []),
        (b"\n\n", []),
    ],
)
def test_a_list_on_standard_input(data: bytes, expected: list[str]) -> None:
    assert list_paths(expand_inputs(["-"], lambda: data)) == expected


def test_an_image_on_standard_input() -> None:
    (item,) = expand_inputs(["-"], lambda: encode_gray(2))
    assert (item.path, item.read()) == ("-", encode_gray(2))


@pytest.mark.usefixtures("here")
def test_standard_input_stands_among_other_arguments() -> None:
    assert list_paths(expand_inputs(["猫.png", "-", "a.jpg"], lambda: encode_gray(1))) == ["猫.png", "-", "a.jpg"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [(encode_png()[:20], "truncated"), (EMPTY_HEIF, EMPTY_HEIF_REASON)],
    ids=["truncated", "HEIC"],
)
def test_a_damaged_image_on_standard_input_is_one_unreadable_row(data: bytes, reason: str) -> None:
    assert list(predict(CountingPredictor(), expand_inputs(["-"], lambda: data))) == [Prediction("-", error=reason)]


def test_without_standard_input_a_dash_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (answer,) = predict(CountingPredictor(), make_items(["-"]))
    assert answer.error == "cannot be opened: No such file or directory"


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
