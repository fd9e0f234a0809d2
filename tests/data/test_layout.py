"""Classes and parts from paths, manifests, idx files and arrays, and what is said where they cannot be told."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sightline.data import layout
from sightline.data.layout import Listing, array_entries, class_folders, idx_files, manifest
from sightline.errors import DataError


class Names:
    """A store of nothing but names."""

    name = "archive.zip"

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = sorted(keys)

    def keys(self) -> Sequence[str]:
        return self._keys

    def read(self, key: str) -> bytes:
        raise AssertionError(f"{key} was opened only to list it")


def told(listing: Listing) -> dict[str, tuple[str, str | None]]:
    return {e.path: (e.label, e.part) for e in listing.entries}


def fault(*keys: str) -> str:
    with pytest.raises(DataError) as caught:
        class_folders(Names(keys))
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "hidden"),
    [
        ("cat/1.jpg", False),
        ("cat/thumbs.db.jpg", False),
        ("a cat/.1.jpg", True),
        (".cat/1.jpg", True),
        ("cat/.DS_Store", True),
        ("cat/Thumbs.db", True),
        ("cat/THUMBS.DB", True),
        ("desktop.ini", True),
        ("__MACOSX/cat/._1.jpg", True),
        ("data/__MACOSX/1.jpg", True),
        ("MACOSX/1.jpg", False),
    ],
)
def test_hidden_files(path: str, hidden: bool) -> None:
    assert layout.is_hidden(path) is hidden


# Folders of classes.


@pytest.mark.parametrize(
    "wrapper", ["", "dataset/", "archive/My Data/", "archive/v1.0/data/"], ids=["bare", "one", "two", "three"]
)
def test_classes_are_the_folders_whatever_wraps_them(wrapper: str) -> None:
    listing = class_folders(Names([f"{wrapper}{p}" for p in ("cat/1.jpg", "dog/2.jpg", "dog/pups/3.jpg")]))
    assert told(listing) == {
        f"{wrapper}cat/1.jpg": ("cat", None),
        f"{wrapper}dog/2.jpg": ("dog", None),
        f"{wrapper}dog/pups/3.jpg": ("dog", None),
    }
    assert (listing.stray, listing.skipped) == ([], 0)


@pytest.mark.parametrize("wrapper", ["", "dataset/"], ids=["bare", "wrapped"])
@pytest.mark.parametrize(
    ("folder", "part"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("validation", "validation"),
        ("VALID", "validation"),
        ("Val", "validation"),
        ("test", "test"),
        ("TEST", "test"),
        ("testing", "test"),
    ],
)
def test_parts_are_known_by_every_spelling(folder: str, part: str, wrapper: str) -> None:
    names = Names([f"{wrapper}{folder}/cat/1.jpg", f"{wrapper}{folder}/dog/in here/2.jpg"])
    assert told(class_folders(names)) == {
        f"{wrapper}{folder}/cat/1.jpg": ("cat", part),
        f"{wrapper}{folder}/dog/in here/2.jpg": ("dog", part),
    }


def test_two_spellings_of_one_part_join() -> None:
    listing = class_folders(Names(["train/cat/1.jpg", "val/cat/2.jpg", "validation/cat/3.jpg"]))
    assert [e.part for e in listing.entries] == ["train", "validation", "validation"]


@pytest.mark.parametrize("name", ["train", "test", "Validation"])
def test_a_class_may_be_called_as_a_part_is(name: str) -> None:
    assert told(class_folders(Names([f"{name}/1.jpg", "bus/2.jpg"]))) == {
        f"{name}/1.jpg": (name, None),
        "bus/2.jpg": ("bus", None),
    }


def test_a_class_below_a_part_may_be_called_as_a_part_is() -> None:
    assert told(class_folders(Names(["train/test/1.jpg", "train/bus/2.jpg", "test/train/3.jpg"]))) == {
        "train/test/1.jpg": ("test", "train"),
        "train/bus/2.jpg": ("bus", "train"),
        "test/train/3.jpg": ("train", "test"),
    }


def test_a_single_class_is_no_wrapper() -> None:
    assert told(class_folders(Names(["cat/1.jpg", "cat/indoors/2.jpg"]))) == {
        "cat/1.jpg": ("cat", None),
        "cat/indoors/2.jpg": ("cat", None),
    }
    assert told(class_folders(Names(["data/cat/1.jpg"]))) == {"data/cat/1.jpg": ("cat", None)}


@pytest.mark.parametrize("wrapper", ["", "flower_photos/"], ids=["bare", "wrapped"])
@pytest.mark.parametrize("part", ["", "train/"], ids=["whole", "part"])
def test_papers_beside_the_classes_change_nothing(wrapper: str, part: str) -> None:
    papers = [f"{wrapper}LICENSE.txt", f"{wrapper}docs/en/README.md", f"{wrapper}docs/labels.csv", ".git/HEAD"]
    names = [f"{wrapper}{part}daisy/1.jpg", f"{wrapper}{part}rose/2.jpg"]
    listing = class_folders(Names([*papers, *names]))
    pictures = {path: label for path, (label, _) in told(listing).items() if path.endswith(".jpg")}
    assert pictures == {names[0]: "daisy", names[1]: "rose"}
    assert listing.stray == []
    assert all(e.part == (part.strip("/") or None) for e in listing.entries)
    assert {e.path for e in listing.entries} - set(names) <= set(papers)  # to be tried, then passed over
    assert len(listing.entries) + listing.skipped == 6


def test_pictures_beside_the_class_folders_are_stray() -> None:
    listing = class_folders(Names(["cover.jpg", "cat/1.jpg", "dog/2.jpg", "notes.txt", "Thumbs.db"]), prefix="a/")
    assert [(r.path, r.reason, r.label) for r in listing.stray] == [("a/cover.jpg", "lies in no class folder", "")]
    assert listing.skipped == 2
    inside = class_folders(Names(["train/cover.jpg", "train/cat/1.jpg", "train/dog/2.jpg"]))
    assert [r.path for r in inside.stray] == ["train/cover.jpg"]


def test_pictures_need_no_extension() -> None:
    assert told(class_folders(Names(["data/cat/0001", "data/dog/0002"]))) == {
        "data/cat/0001": ("cat", None),
        "data/dog/0002": ("dog", None),
    }


def test_the_prefix_stands_before_paths_only() -> None:
    (entry,) = class_folders(Names(["data/cat/1.jpg"]), prefix="a.zip/").entries
    assert (entry.key, entry.path, entry.label) == ("data/cat/1.jpg", "a.zip/data/cat/1.jpg", "cat")


def test_parts_beside_other_folders_are_refused() -> None:
    message = fault("train/cat/1.jpg", "test/cat/2.jpg", "extra/cat/3.jpg")
    assert message.startswith("archive.zip holds test, train beside extra: ")
    assert "Rename or move 'extra'." in message
    message = fault("train/cat/1.jpg", "test/2.jpg")  # a test without labels, as competitions give
    assert "holds the part 'train' beside 'test', which has no class folders" in message


SEGMENTS = st.sampled_from(["train", "Test", "val", "cat", "dog", "猫", ".git", "__MACOSX", "a b"])
FILE_NAMES = st.sampled_from(["1.jpg", "2.PNG", "README.md", "Thumbs.db", "3"])
PATHS = st.tuples(st.lists(SEGMENTS, max_size=4), FILE_NAMES).map(lambda t: "/".join([*t[0], t[1]]))


@settings(deadline=None)
@given(st.lists(PATHS, unique=True, max_size=8))
def test_every_file_is_accounted_for(keys: list[str]) -> None:
    try:
        listing = class_folders(Names(keys))
    except DataError:
        return
    assert len(listing.entries) + len(listing.stray) + listing.skipped == len(keys)
    assert all(e.label in e.path.split("/")[:-1] for e in listing.entries)
    assert not any(layout.is_hidden(e.path) for e in listing.entries)


# Manifests.


def csv_file(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "list.csv"
    path.write_bytes(text.encode(encoding))
    return path


def jsonl_file(folder: Path, *rows: Any, end: str = "\n") -> Path:
    path = folder / "list.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + end for row in rows), encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"], ids=["plain", "bom"])
def test_a_csv_with_further_columns(tmp_path: Path, bom: str, end: str) -> None:
    lines = ["camera,path,label,split", "A,1.jpg,cat,train", ",猫/2.jpg,dog,Val", '"B, C","a ""b"".jpg",dog,TEST', ""]
    first, second, third = manifest(csv_file(tmp_path, bom + end.join(lines))).entries
    assert (first.key, first.path, first.label, first.part) == ("1.jpg", "1.jpg", "cat", "train")
    assert (second.key, second.label, second.part) == ("猫/2.jpg", "dog", "validation")
    assert (third.key, third.part) == ('a "b".jpg', "test")
    assert [e.extra for e in (first, second, third)] == [{"camera": "A"}, {"camera": ""}, {"camera": "B, C"}]


def test_a_csv_without_splits_and_with_ragged_rows(tmp_path: Path) -> None:
    listing = manifest(csv_file(tmp_path, "path,label,site\n1.jpg,cat\n\n2.jpg,dog,x,y,z\n"))
    assert told(listing) == {"1.jpg": ("cat", None), "2.jpg": ("dog", None)}
    assert [e.extra for e in listing.entries] == [{"site": ""}, {"site": "x"}]


def test_json_lines(tmp_path: Path) -> None:
    rows = [
        {"path": "1.jpg", "label": "cat", "split": "train"},
        {"path": "a\u2028b.jpg", "label": 3, "split": None, "site": {"x": 1}},
    ]
    for end in ("\n", "\r\n", "\n\n"):
        first, second = manifest(jsonl_file(tmp_path, *rows, end=end)).entries
        assert (first.key, first.label, first.part, first.extra) == ("1.jpg", "cat", "train", {})
        assert (second.key, second.label, second.part) == ("a\u2028b.jpg", "3", None)
        assert second.extra == {"site": "{'x': 1}"}


def test_paths_are_relative_to_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(b"meow")
    (tmp_path / "lists").mkdir()
    for name in ("../1.jpg", str(tmp_path / "1.jpg")):
        (entry,) = manifest(csv_file(tmp_path / "lists", f"path,label\n{name},cat\n")).entries
        assert entry.store.read(entry.key) == b"meow"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "list.csv has no column 'label'; its first line should be path,label[,split]."),
        ("path,split\n1.jpg,train", "has no column 'label'"),
        ("file,label\n1.jpg,cat", "has no column 'path'"),
        ("path;label\n1.jpg;cat", "has no column 'label'"),
        ("path,label\n1.jpg,cat\n2.jpg,", "list.csv, line 3: expected the columns path and label, both filled in."),
        ("path,label\n,cat", "line 2: expected the columns path and label"),
        ("path,label,split\n1.jpg,cat,dev", "line 2: split is 'dev'; expected train, validation or test."),
        ('path,label\n1.jpg,"cat\n' + "x" * 140_000, "list.csv, line 2: not CSV (field larger than field limit"),
    ],
)
def test_what_is_wrong_in_a_csv_is_told(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        manifest(csv_file(tmp_path, text))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"path": "1.jpg", "label": "cat"}\n{"path": ', "list.jsonl, line 2: not JSON (Expecting value)."),
        ('["1.jpg", "cat"]', 'line 1: expected an object such as {"path": "1.jpg", "label": "cat"}.'),
        ('\n{"path": "1.jpg"}', "line 2: expected the columns path and label, both filled in."),
        ('{"path": "1.jpg", "label": "cat", "split": "dev"}', "line 1: split is 'dev'; expected train, validation or"),
    ],
)
def test_what_is_wrong_in_json_lines_is_told(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        manifest(path)
    assert message in str(caught.value)


def test_a_manifest_in_another_encoding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"list.csv cannot be read as UTF-8 text: "):
        manifest(csv_file(tmp_path, "path,label\né.jpg,cat", encoding="latin-1"))


# idx files.


def idx(array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def idx_pair(folder: Path, stem: str = "train", count: int = 12, end: str = "") -> tuple[Path, Path]:
    paths = folder / f"{stem}-images-idx3-ubyte{end}", folder / f"{stem}-labels-idx1-ubyte{end}"
    pixels = np.arange(count * 20).astype(np.uint8).reshape(count, 5, 4)
    for path, array in zip(paths, (pixels, np.arange(count, dtype=np.uint8)), strict=True):
        path.write_bytes(gzip.compress(idx(array)) if end else idx(array))
    return paths


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize(
    ("stem", "part"), [("train", "train"), ("t10k", "test"), ("test", "test"), ("emnist-letters", None)]
)
def test_idx_pictures_find_their_labels(tmp_path: Path, stem: str, part: str | None, end: str) -> None:
    pictures, _ = idx_pair(tmp_path, stem, end=end)
    entries = idx_files([pictures]).entries
    assert [e.label for e in entries] == [f"{i:02}" for i in range(12)]
    assert {e.part for e in entries} == {part}
    np.testing.assert_array_equal(entries[3].store.read(entries[3].key), np.arange(60, 80).reshape(5, 4))
    assert entries[3].path == f"{pictures.name}[3]"


def test_idx_names_with_a_dot(tmp_path: Path) -> None:
    for path in idx_pair(tmp_path):
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    assert len(idx_files([tmp_path / "train-images.idx3-ubyte"]).entries) == 12


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("train-images-idx3-ubyte", True),
        ("train-labels.idx1-ubyte.gz", True),
        ("my-idx-notes.txt", False),
        ("picture.idxes.png", False),
    ],
)
def test_idx_files_are_known_by_name(name: str, is_one: bool) -> None:
    assert layout.is_idx(Path(name)) is is_one


def test_idx_labels_alone_are_refused(tmp_path: Path) -> None:
    _, labels = idx_pair(tmp_path)
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte holds labels but no pictures; give the idx3 file"):
        idx_files([labels])


def test_idx_pictures_without_labels_are_refused(tmp_path: Path) -> None:
    pictures, labels = idx_pair(tmp_path)
    labels.unlink()
    with pytest.raises(DataError, match=r"has no labels: expected train-labels-idx1-ubyte beside it\."):
        idx_files([pictures])


def test_idx_counts_that_differ_are_named(tmp_path: Path) -> None:
    pictures, labels = idx_pair(tmp_path)
    labels.write_bytes(idx(np.zeros(11, np.uint8)))
    with pytest.raises(DataError, match=r"holds 12 pictures but train-labels-idx1-ubyte 11 labels"):
        idx_files([pictures])


@pytest.mark.parametrize(
    ("content", "end"),
    [
        (b"", ""),
        (b"\0\0\x08", ""),
        (b"\0\0\x08\x03\0\0\0\1", ""),
        (idx(np.zeros((12, 5, 4), np.uint8))[:-1], ""),
        (idx(np.zeros((12, 5, 4), np.uint8)) + b"\0", ""),
        (idx(np.zeros((12, 20), np.uint8)), ""),
        (idx(np.zeros((12, 5, 4), np.uint8)).replace(b"\x08", b"\x0d", 1), ""),  # floats
        (b"no gzip at all", ".gz"),
        (gzip.compress(idx(np.zeros((12, 5, 4), np.uint8)))[:-9], ".gz"),
    ],
    ids=["empty", "header", "sizes", "short", "long", "rank", "kind", "not gz", "cut gz"],
)
def test_idx_damage_is_told(tmp_path: Path, content: bytes, end: str) -> None:
    pictures, _ = idx_pair(tmp_path, end=end)
    pictures.write_bytes(content)
    with pytest.raises(DataError, match=f"{pictures.name} (is not an idx file of 3-dim|cannot be read as an idx file)"):
        idx_files([pictures])


# Arrays.


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        ([1, 0, 1], None, ["1", "0", "1"]),
        ([[1], [0], [10]], None, ["01", "00", "10"]),
        (np.array([1, 0, 1], np.uint8), ["cat", "dog"], ["dog", "cat", "dog"]),
        (["cat", "dog", "猫"], None, ["cat", "dog", "猫"]),
    ],
    ids=["numbers", "columns", "named", "names"],
)
def test_labels_of_arrays(labels: Any, classes: Sequence[str] | None, expected: list[str]) -> None:
    entries = array_entries(np.zeros((3, 4, 4), np.uint8), labels, "mine", "test", classes)
    assert [e.label for e in entries] == expected
    assert [e.path for e in entries] == ["mine[0]", "mine[1]", "mine[2]"]
    assert {e.part for e in entries} == {"test"}


@pytest.mark.parametrize(
    ("pixels", "labels", "classes", "message"),
    [
        (np.zeros((3, 4, 4), np.uint8), [0, 1], None, "mine: 3 pictures but 2 labels."),
        (np.zeros((2, 4, 4), np.uint8), [0, 2], ["a", "b"], "mine: labels run from 0 to 2, but there are 2 classes."),
        (np.zeros((2, 4, 4), np.uint8), [-1, 1], None, "mine: labels run from -1 to 1"),
        (
            np.zeros((2, 4, 4)),
            [0, 1],
            None,
            "mine: pixels must be uint8 [N, H, W] or [N, H, W, 1, 3 or 4], got float64",
        ),
        (np.zeros((2, 64), np.uint8), [0, 1], None, "got uint8 [2, 64]."),
        (np.zeros((2, 3, 8, 8), np.uint8), [0, 1], None, "got uint8 [2, 3, 8, 8]."),
    ],
    ids=["count", "high", "low", "floats", "flat", "channels first"],
)
def test_arrays_that_do_not_fit_are_refused(pixels: Any, labels: Any, classes: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        array_entries(pixels, labels, "mine", classes=classes)
    assert message in str(caught.value)


def test_no_arrays_are_no_entries() -> None:
    assert array_entries(np.zeros((0, 4, 4), np.uint8), np.zeros(0, int), "none") == []
