"""What the arguments of a prediction stand for: files, folders, patterns, archives, lists and standard input."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from PIL import Image

from sightline.data.indexing import build_index
from sightline.errors import DataError, ImageError, MissingExtraError, UsageError
from sightline.inference.background_count import BackgroundCount
from sightline.inference.inputs import InputItem, expand_inputs, make_items, take_first
from sightline.inference.predictor import FakePredictor
from sightline.inference.results import Prediction
from sightline.inference.stream import predict
from sightline.preprocessing import PreprocessingSpec
from synthetic_images import (
    EMPTY_HEIF,
    EMPTY_HEIF_REASON,
    encode,
    encode_png,
    write_files,
    write_tar,
)

pytestmark = pytest.mark.usefixtures("no_thread_left")

CLASSES = ("black", "dark", "bright", "white")
PREDICTOR = FakePredictor(CLASSES, PreprocessingSpec(4, 4))


def encode_gray(level: int) -> bytes:
    return encode(Image.new("RGB", (6, 5), (level,) * 3))


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
    (answer,) = predict(PREDICTOR, make_items(["a" * 300]))
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
    assert list(predict(PREDICTOR, expand_inputs(["-"], lambda: data))) == [Prediction("-", error=reason)]


def test_without_standard_input_a_dash_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (answer,) = predict(PREDICTOR, make_items(["-"]))
    assert answer.error == "cannot be opened: No such file or directory"
