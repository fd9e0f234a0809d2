"""Matching recorded images with a source: by path and content, each of them once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pictures import png, write, write_zip
from sightline.data.index import index
from sightline.data.membership import ImageRow, Matched, difference, match
from sightline.records import Index, Part, Picture

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


def row(path: str, sha256: str, split: Part, label: str = "cat") -> ImageRow:
    return ImageRow(path, sha256, label, split)


def source(*pictures: tuple[str, str, str, Part | None]) -> Index:
    many = tuple(Picture(path, sha, label, part, 4, 4) for path, sha, label, part in pictures)
    return Index("data", many, (), 0, lambda i: many[i].path.encode())


def there(found: Matched) -> list[tuple[bytes, Part | None]]:
    """Return the content and the split of each matched image."""
    return [(bytes(found.index.read(i)), p.part) for i, p in enumerate(found.index.pictures)]


def test_a_file_in_two_splits_is_in_both() -> None:
    rows = [row("train/1", A, "train"), row("test/1", A, "test"), row("test/2", B, "test")]
    found = match(
        rows, source(("test/1", A, "cat", "test"), ("test/2", B, "cat", "test"), ("train/1", A, "cat", "train"))
    )
    assert found.complete
    assert there(found) == [(b"train/1", "train"), (b"test/1", "test"), (b"test/2", "test")]
    assert there(found.only("test")) == [(b"test/1", "test"), (b"test/2", "test")]


def test_its_copy_in_training_does_not_stand_for_a_test_image_that_is_gone() -> None:
    rows = [row("train/1", A, "train"), row("test/1", A, "test")]
    found = match(rows, source(("train/1", A, "cat", "train")))
    assert [r.path for r in found.missing] == ["test/1"]
    assert there(found) == [(b"train/1", "train")]


def test_a_manifest_may_name_one_path_twice() -> None:
    rows = [row("1.png", A, "train"), row("1.png", A, "test")]
    both = source(("1.png", A, "cat", "test"), ("1.png", A, "cat", "train"))
    assert there(match(rows, both)) == [(b"1.png", "train"), (b"1.png", "test")]
    once = match(rows, source(("1.png", A, "cat", "train")))
    assert [r.split for r in once.missing] == ["test"]


def test_what_is_lost_is_missing_or_changed() -> None:
    rows = [row("1", A, "test"), row("2", B, "test"), row("3", C, "train"), row("4", "d", "test")]
    found = match(rows, source(("1", "resaved", "cat", None), ("3", C, "dog", None), ("5", "e", "cat", None)))
    assert [r.path for r in found.missing] == ["2", "4"]
    assert [r.path for r in found.changed] == ["1", "3"], "another content, and another class"
    assert [p.path for p in found.others] == ["1", "3", "5"]
    assert not found.complete
    assert not found.only("train").complete
    assert [r.path for r in found.only("test").changed] == ["1"]


def test_a_file_that_was_moved_is_found_by_its_content() -> None:
    rows = [row("old/1", A, "test"), row("old/2", B, "train"), row("old/3", A, "train")]
    moved = source(("new/3", A, "cat", "train"), ("new/2", B, "cat", "train"), ("new/1", A, "cat", "test"))
    assert there(match(rows, moved)) == [(b"new/1", "test"), (b"new/2", "train"), (b"new/3", "train")]


def test_a_corrected_class_is_the_one_recorded() -> None:
    found = match([row("1", A, "train", "dog")], source(("1", A, "cat", None)), {("1", A): "cat"})
    assert found.complete
    assert [p.label for p in found.index.pictures] == ["dog"]


def test_an_archive_and_its_folder_hold_the_same_images(tmp_path: Path) -> None:
    content = {f"{label}/{i}.png": png(i, i) for i in range(3) for label in ("cat", "dog")}
    folder = index(write(tmp_path / "data", content))
    rows = [ImageRow(p.path, p.sha256, p.label, "train") for p in folder.pictures]
    packed = index(write_zip(tmp_path / "data.zip", {f"wrapped/{name}": data for name, data in content.items()}))
    found = match(rows, packed)
    assert found.complete
    assert [found.index.read(i) for i in range(6)] == [folder.read(i) for i in range(6)]


@pytest.mark.parametrize(
    ("now", "what"),
    [
        ((("1", A, "cat", "train"), ("2", B, "cat", "test"), ("3", A, "cat", "train")), None),
        ((("1", A, "cat", "train"), ("2", B, "cat", "train"), ("3", A, "cat", "train")), None),
        ((("1", A, "cat", "train"), ("2", B, "cat", "test")), "1 of 3 are missing or changed, 0 are new"),
        (
            (("1", A, "cat", "test"), ("2", B, "cat", "test"), ("3", A, "cat", "train")),
            "1 of 3 are in another split, such as 1",
        ),
    ],
    ids=["the same", "split further", "one less", "moved to test"],
)  # fmt: skip
def test_differences_are_said(now: tuple[tuple[str, str, str, Part], ...], what: str | None) -> None:
    rows = [row("1", A, "train"), row("2", B, "test"), row("3", A, "validation")]
    assert difference(rows, source(*now)) == what


def test_new_images_differ_too() -> None:
    extra = source(("1", A, "cat", None), ("2", B, "cat", None))
    assert difference([row("1", A, "train")], extra) == "0 of 1 are missing or changed, 1 are new"
    assert difference([row("1", A, "train")], replace(extra, pictures=extra.pictures[:1])) is None


def test_a_changed_image_is_no_added_one() -> None:
    rows = [row("cat/1", A, "test"), row("cat/2", B, "test")]
    found = match(rows, source(("cat/1", "d" * 64, "cat", None), ("cat/2", B, "cat", None), ("cat/3", C, "cat", None)))
    assert [r.path for r in found.changed] == ["cat/1"]
    assert [p.path for p in found.added] == ["cat/3"]
