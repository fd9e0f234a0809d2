"""IDX files, valid and damaged."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from sightline.data.sources.idx import is_idx, read_idx_files
from sightline.errors import DataError
from synthetic_images import encode_idx


def write_idx_pair(folder: Path, stem: str = "train", count: int = 12, end: str = "") -> tuple[Path, Path]:
    paths = folder / f"{stem}-images-idx3-ubyte{end}", folder / f"{stem}-labels-idx1-ubyte{end}"
    pixels = np.arange(count * 20).astype(np.uint8).reshape(count, 5, 4)
    for path, array in zip(paths, (pixels, np.arange(count, dtype=np.uint8)), strict=True):
        path.write_bytes(gzip.compress(encode_idx(array)) if end else encode_idx(array))
    return paths


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize(
    ("stem", "split"), [("train", "train"), ("t10k", "test"), ("test", "test"), ("emnist-letters", None)]
)
def test_idx_images_find_their_labels(tmp_path: Path, stem: str, split: str | None, end: str) -> None:
    images, _ = write_idx_pair(tmp_path, stem, end=end)
    items = read_idx_files([images]).items
    assert [e.label for e in items] == [str(i) for i in range(12)]
    assert {e.split for e in items} == {split}
    np.testing.assert_array_equal(items[3].store.read(items[3].key), np.arange(60, 80).reshape(5, 4))
    assert items[3].path == f"{images.name}[3]"


def test_idx_names_with_a_dot(tmp_path: Path) -> None:
    for path in write_idx_pair(tmp_path):
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    assert len(read_idx_files([tmp_path / "train-images.idx3-ubyte"]).items) == 12


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("train-images-idx3-ubyte", True),
        ("train-labels.idx1-ubyte.gz", True),
        ("my-idx-notes.txt", False),
        ("image.idxes.png", False),
    ],
)
def test_idx_files_are_known_by_name(name: str, is_one: bool) -> None:
    assert is_idx(Path(name)) is is_one


def test_idx_labels_alone_are_refused(tmp_path: Path) -> None:
    _, labels = write_idx_pair(tmp_path)
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte holds labels but no images: also pass the IDX3 file"):
        read_idx_files([labels])


def test_idx_images_without_labels_are_refused(tmp_path: Path) -> None:
    images, labels = write_idx_pair(tmp_path)
    labels.unlink()
    with pytest.raises(DataError, match=r"has no labels: expected train-labels-idx1-ubyte next to it\."):
        read_idx_files([images])


def test_idx_counts_that_differ_are_named(tmp_path: Path) -> None:
    images, labels = write_idx_pair(tmp_path)
    labels.write_bytes(encode_idx(np.zeros(11, np.uint8)))
    with pytest.raises(DataError, match=r"holds 12 images but train-labels-idx1-ubyte 11 labels"):
        read_idx_files([images])


@pytest.mark.parametrize(
    ("content", "end"),
    [
        (b"", ""),
        (b"\0\0\x08", ""),
        (b"\0\0\x08\x03\0\0\0\1", ""),
        (encode_idx(np.zeros((12, 5, 4), np.uint8))[:-1], ""),
        (encode_idx(np.zeros((12, 5, 4), np.uint8)) + b"\0", ""),
        (encode_idx(np.zeros((12, 20), np.uint8)), ""),
        (encode_idx(np.zeros((12, 5, 4), np.uint8)).replace(b"\x08", b"\x0d", 1), ""),  # floats
        (b"no gzip at all", ".gz"),
        (gzip.compress(encode_idx(np.zeros((12, 5, 4), np.uint8)))[:-9], ".gz"),
    ],
    ids=["empty", "header", "sizes", "short", "long", "rank", "kind", "not gz", "cut gz"],
)
def test_a_damaged_idx_file_is_reported(tmp_path: Path, content: bytes, end: str) -> None:
    images, _ = write_idx_pair(tmp_path, end=end)
    images.write_bytes(content)
    with pytest.raises(DataError, match=f"{images.name} (is not an IDX file of 3-dim|cannot be read as an IDX file)"):
        read_idx_files([images])
