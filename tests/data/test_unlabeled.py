"""Images without a label are listed where they can be given one, and trained on once a patch does."""

from __future__ import annotations

from pathlib import Path

import pytest

from sightline.config import DataConfig
from sightline.data.indexing import build_index
from sightline.data.label_patch import apply_patch, load_and_apply_patch, make_entry, read_patch, write_patch
from sightline.data.types import NO_LABEL, Index
from sightline.errors import DataError
from synthetic_images import encode_png, write_files

FLAT = {f"IMG-{i}.png": encode_png(i) for i in range(4)}
BESIDE_CLASSES = {**FLAT, "cat/1.png": encode_png(10), "dog/1.png": encode_png(11)}
ROWS = b"path,label\nIMG-0.png,cat\nIMG-1.png,dog\nIMG-2.png,\n"


def list_unlabeled(index: Index) -> list[str]:
    return sorted(image.path for image in index.images if not image.label)


def label(index: Index, path: Path, labels: dict[str, str]) -> Path:
    """Write a patch that labels images by path."""
    images = {image.path: image for image in index.images}
    return write_patch(path, [make_entry("relabel", images[name], "seen", to) for name, to in labels.items()])


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (FLAT, sorted(FLAT)),
        (BESIDE_CLASSES, sorted(FLAT)),
        (FLAT | {"labels.csv": ROWS}, ["IMG-2.png", "IMG-3.png"]),
    ],
)
def test_images_without_a_label_are_listed_on_request(
    tmp_path: Path, files: dict[str, bytes], expected: list[str]
) -> None:
    root = write_files(tmp_path / "photos", files)
    index = build_index(root, unlabeled=True)
    assert list_unlabeled(index) == expected
    assert index.unreadable == ()
    assert len(index.images) == sum(name.endswith(".png") for name in files)
    assert [index.read(i) for i, image in enumerate(index.images) if not image.label] == [
        files[image.path] for image in index.images if not image.label
    ]
    if len(expected) < len(index.images):
        assert list_unlabeled(build_index(root)) == []
    else:
        with pytest.raises(DataError, match="is not in a class folder"):
            build_index(root)


def test_a_row_of_a_manifest_without_a_label_can_be_given_one(tmp_path: Path) -> None:
    root = write_files(tmp_path / "photos", FLAT | {"list.csv": ROWS})
    index = build_index(root / "list.csv", unlabeled=True)
    assert list_unlabeled(index) == ["IMG-2.png"]


def test_a_source_with_splits_keeps_its_unlabeled_images_out(tmp_path: Path) -> None:
    files = {f"{split}/{name}": content for split in ("train", "test") for name, content in BESIDE_CLASSES.items()}
    assert list_unlabeled(build_index(write_files(tmp_path / "photos", files), unlabeled=True)) == []


def test_a_patch_labels_some_and_the_others_stay_out(tmp_path: Path) -> None:
    root = write_files(tmp_path / "photos", FLAT)
    patch = label(build_index(root, unlabeled=True), tmp_path / "p.jsonl", {"IMG-1.png": "cat", "IMG-3.png": "dog"})
    index = load_and_apply_patch(build_index(root, options=DataConfig(patch=str(patch))), patch)
    assert {image.path: image.label for image in index.images} == {"IMG-1.png": "cat", "IMG-3.png": "dog"}
    assert [(image.path, image.reason) for image in index.unreadable] == [
        ("IMG-0.png", NO_LABEL), ("IMG-2.png", NO_LABEL),
    ]  # fmt: skip
    everything = apply_patch(build_index(root, unlabeled=True), read_patch(patch), "p", keep_unlabeled=True)
    assert list_unlabeled(everything) == ["IMG-0.png", "IMG-2.png"]


def test_a_patch_that_labels_nothing_is_an_error(tmp_path: Path) -> None:
    root = write_files(tmp_path / "photos", FLAT)
    (tmp_path / "p.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="labels none of the images of photos"):
        load_and_apply_patch(build_index(root, unlabeled=True), tmp_path / "p.jsonl")
