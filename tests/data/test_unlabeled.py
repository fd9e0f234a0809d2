"""Images without a label are listed where they can be given one, and trained on once a patch does."""

from __future__ import annotations

from pathlib import Path

import pytest

from sightline.config import DataConfig
from sightline.data.dataset import check_classes
from sightline.data.indexing import build_index
from sightline.data.label_patch import apply_patch, load_and_apply_patch, make_entry, read_patch, write_patch
from sightline.data.targets import CLASS_TARGETS, LABEL_SETS, Targets
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


@pytest.mark.parametrize("rows", [ROWS, ROWS.replace(b"IMG", b"./IMG")], ids=["names", "paths"])
@pytest.mark.parametrize("targets", [CLASS_TARGETS, LABEL_SETS], ids=["one class", "several labels"])
def test_an_image_in_a_row_is_not_one_that_no_table_names(tmp_path: Path, targets: Targets, rows: bytes) -> None:
    index = build_index(write_files(tmp_path / "photos", FLAT | {"labels.csv": rows}), targets=targets)
    assert [note.reason for note in index.notes if note.kind == "unlabeled-folders"] == ["1 image"]
    assert len(index.images) + len(index.unreadable) == 3


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


SETS = b"path,labels\nIMG-0.png,cat;dog\nIMG-1.png,\n"


def train_on(root: Path, patch: Path) -> Index:
    """Return the images that a training of several labels takes."""
    index = build_index(root, options=DataConfig(patch=str(patch)), targets=LABEL_SETS)
    return load_and_apply_patch(index, patch)


def test_of_several_labels_only_images_with_an_answer_are_trained_on(tmp_path: Path) -> None:
    root = write_files(tmp_path / "photos", FLAT)
    first, second, third, fourth = build_index(root, unlabeled=True).images
    lines = [make_entry("relabel", first, "seen", "cat;dog"), make_entry("keep", second, "seen")]
    index = train_on(root, write_patch(tmp_path / "p.jsonl", lines))
    assert {image.path: image.label for image in index.images} == {first.path: "cat;dog", second.path: ""}
    assert [image.path for image in index.unreadable] == [third.path, fourth.path]
    none = train_on(root, write_patch(tmp_path / "p.jsonl", [make_entry("relabel", first, "seen", "cat"), lines[1]]))
    assert {image.path: image.label for image in none.images} == {first.path: "cat", second.path: ""}
    with pytest.raises(DataError, match=r"line 2 gives IMG-1\.png the labels ''"):
        check_classes(load_and_apply_patch(build_index(root, unlabeled=True), tmp_path / "p.jsonl"))


def test_a_row_without_a_label_has_none_and_an_image_without_a_row_is_to_be_labeled(tmp_path: Path) -> None:
    root = write_files(tmp_path / "photos", FLAT | {"labels.csv": SETS})
    assert [image.path for image in build_index(root, targets=LABEL_SETS).images] == ["IMG-0.png", "IMG-1.png"]
    index = build_index(root, unlabeled=True, targets=LABEL_SETS)
    assert [(image.path, image.to_label) for image in index.images] == [
        ("IMG-0.png", False), ("IMG-1.png", False), ("IMG-2.png", True), ("IMG-3.png", True),
    ]  # fmt: skip
    patch = write_patch(tmp_path / "p.jsonl", [make_entry("relabel", index.images[3], "seen", "dog")])
    assert {image.path: image.label for image in train_on(root, patch).images} == {
        "IMG-0.png": "cat;dog", "IMG-1.png": "", "IMG-3.png": "dog",
    }  # fmt: skip
