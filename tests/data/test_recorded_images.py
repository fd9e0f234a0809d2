"""Matching recorded images with a source: by path and content, each of them once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sightline.data.indexing import build_index
from sightline.data.recorded_images import ImageRow, MatchedImages, describe_difference, match_images
from sightline.data.types import ImageRecord, Index, MaskRecord, Split
from synthetic_images import encode_png, write_files, write_zip

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


def make_row(path: str, sha256: str, split: Split, label: str = "cat") -> ImageRow:
    return ImageRow(path, sha256, label, split)


def make_index(*images: tuple[str, str, str, Split | None]) -> Index:
    records = tuple(ImageRecord(path, sha, label, split, 4, 4) for path, sha, label, split in images)
    return Index("data", records, (), lambda i: records[i].path.encode())


def read_with_splits(matched: MatchedImages) -> list[tuple[bytes, Split | None]]:
    """Return the content and the split of each matched image."""
    return [(bytes(matched.index.read(i)), p.split) for i, p in enumerate(matched.index.images)]


def test_a_file_in_two_splits_is_in_both() -> None:
    rows = [make_row("train/1", A, "train"), make_row("test/1", A, "test"), make_row("test/2", B, "test")]
    matched = match_images(
        rows, make_index(("test/1", A, "cat", "test"), ("test/2", B, "cat", "test"), ("train/1", A, "cat", "train"))
    )
    assert matched.complete
    assert read_with_splits(matched) == [(b"train/1", "train"), (b"test/1", "test"), (b"test/2", "test")]
    assert read_with_splits(matched.select_split("test")) == [(b"test/1", "test"), (b"test/2", "test")]


def test_its_copy_in_training_does_not_stand_for_a_test_image_that_is_gone() -> None:
    rows = [make_row("train/1", A, "train"), make_row("test/1", A, "test")]
    matched = match_images(rows, make_index(("train/1", A, "cat", "train")))
    assert [r.path for r in matched.missing] == ["test/1"]
    assert read_with_splits(matched) == [(b"train/1", "train")]


def test_a_manifest_may_name_one_path_twice() -> None:
    rows = [make_row("1.png", A, "train"), make_row("1.png", A, "test")]
    both = make_index(("1.png", A, "cat", "test"), ("1.png", A, "cat", "train"))
    assert read_with_splits(match_images(rows, both)) == [(b"1.png", "train"), (b"1.png", "test")]
    once = match_images(rows, make_index(("1.png", A, "cat", "train")))
    assert [r.split for r in once.missing] == ["test"]


def test_what_is_lost_is_missing_or_changed() -> None:
    rows = [make_row("1", A, "test"), make_row("2", B, "test"), make_row("3", C, "train"), make_row("4", "d", "test")]
    matched = match_images(
        rows, make_index(("1", "resaved", "cat", None), ("3", C, "dog", None), ("5", "e", "cat", None))
    )
    assert [r.path for r in matched.missing] == ["2", "4"]
    assert [r.path for r in matched.changed] == ["1", "3"], "another content, and another class"
    assert [p.path for p in matched.unmatched] == ["1", "3", "5"]
    assert not matched.complete
    assert not matched.select_split("train").complete
    assert [r.path for r in matched.select_split("test").changed] == ["1"]


def test_a_file_that_was_moved_is_found_by_its_content() -> None:
    rows = [make_row("old/1", A, "test"), make_row("old/2", B, "train"), make_row("old/3", A, "train")]
    moved = make_index(("new/3", A, "cat", "train"), ("new/2", B, "cat", "train"), ("new/1", A, "cat", "test"))
    assert read_with_splits(match_images(rows, moved)) == [(b"new/1", "test"), (b"new/2", "train"), (b"new/3", "train")]


def test_a_corrected_class_is_the_one_recorded() -> None:
    matched = match_images([make_row("1", A, "train", "dog")], make_index(("1", A, "cat", None)), {("1", A): "cat"})
    assert matched.complete
    assert [p.label for p in matched.index.images] == ["dog"]


def test_an_archive_and_its_folder_hold_the_same_images(tmp_path: Path) -> None:
    content = {f"{label}/{i}.png": encode_png(i, i) for i in range(3) for label in ("cat", "dog")}
    folder = build_index(write_files(tmp_path / "data", content))
    rows = [ImageRow(p.path, p.sha256, p.label, "train") for p in folder.images]
    packed = build_index(write_zip(tmp_path / "data.zip", {f"wrapped/{name}": data for name, data in content.items()}))
    matched = match_images(rows, packed)
    assert matched.complete
    assert [matched.index.read(i) for i in range(6)] == [folder.read(i) for i in range(6)]


@pytest.mark.parametrize(
    ("now", "what"),
    [
        ((("1", A, "cat", "train"), ("2", B, "cat", "test"), ("3", A, "cat", "train")), None),
        ((("1", A, "cat", "train"), ("2", B, "cat", "train"), ("3", A, "cat", "train")), None),
        ((("1", A, "cat", "train"), ("2", B, "cat", "test")), "1 of 3 are missing or changed and 0 are new"),
        (
            (("1", A, "cat", "test"), ("2", B, "cat", "test"), ("3", A, "cat", "train")),
            "1 of 3 are in another split, such as 1",
        ),
    ],
    ids=["the same", "split further", "one less", "moved to test"],
)  # fmt: skip
def test_differences_are_said(now: tuple[tuple[str, str, str, Split], ...], what: str | None) -> None:
    rows = [make_row("1", A, "train"), make_row("2", B, "test"), make_row("3", A, "validation")]
    assert describe_difference(rows, make_index(*now)) == what


def test_new_images_differ_too() -> None:
    extra = make_index(("1", A, "cat", None), ("2", B, "cat", None))
    assert describe_difference([make_row("1", A, "train")], extra) == "0 of 1 are missing or changed and 1 are new"
    assert describe_difference([make_row("1", A, "train")], replace(extra, images=extra.images[:1])) is None


def test_a_changed_image_is_not_counted_as_added() -> None:
    rows = [make_row("cat/1", A, "test"), make_row("cat/2", B, "test")]
    matched = match_images(
        rows, make_index(("cat/1", "d" * 64, "cat", None), ("cat/2", B, "cat", None), ("cat/3", C, "cat", None))
    )
    assert [r.path for r in matched.changed] == ["cat/1"]
    assert [p.path for p in matched.added] == ["cat/3"]


def test_a_changed_mask_changes_its_image_where_masks_are_recorded() -> None:
    record = ImageRecord("1.png", A, "cat", None, 4, 4, mask=MaskRecord("1-mask.png", B))
    index = Index("data", (record,), (), lambda _: b"", several_labels="masks")
    assert match_images([ImageRow("1.png", A, "cat", "train", mask=B)], index).complete
    assert match_images([ImageRow("1.png", A, "cat", "train")], index).complete, "of an earlier version"
    changed = ImageRow("1.png", A, "cat", "train", mask=C)
    assert match_images([changed], index).changed == (changed,)
    assert changed.to_dict()["mask"] == C
