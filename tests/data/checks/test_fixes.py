"""Proposed fixes for duplicates: a given test split never changes, and advice is given only where it helps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from sightline.data.checks import duplicates, fixes
from sightline.data.checks.image_stats import DatasetStats, ImageStats
from sightline.data.label_patch import PatchEntry
from sightline.data.masks import MaskClasses
from sightline.data.types import ImageRecord, Index, Split
from strategies import image_record


def propose(images: Sequence[ImageRecord], near: dict[str, str]) -> list[tuple[str, str, str]]:
    return [(fix.action, fix.path, fix.reason) for fix in propose_entries(Index("x", tuple(images), (), read), near)]


def propose_entries(index: Index, near: dict[str, str]) -> list[PatchEntry]:
    looks = {p.sha256: ImageStats(None, (0, 50, 128, 200, 255)) for p in index.images}
    return fixes.propose_fixes(index, duplicates.find_duplicates(index.images, near), DatasetStats(looks, near))


def read(_: int) -> bytes:
    return b""


def same_group(*images: ImageRecord) -> dict[str, str]:
    first = min(p.sha256 for p in images)
    return {p.sha256: first for p in images}


def test_the_training_copy_of_a_test_image_is_dropped_and_nothing_is_moved() -> None:
    train, test = image_record("ant", 1, "train"), image_record("ant", 2, "test")
    others = [image_record("bee", 3, "train"), image_record("bee", 4, "test")]
    assert propose([train, test, *others], same_group(train, test)) == [
        ("drop", "ant/1.png", "near duplicate of ant/2.png in the test split")
    ]


def test_of_three_splits_the_last_keeps_its_images() -> None:
    splits: tuple[Split, ...] = ("train", "train", "validation", "test", "test")
    images = [image_record("ant", i, split) for i, split in enumerate(splits)]
    assert [(action, path) for action, path, _ in propose(images, same_group(*images))] == [
        ("drop", "ant/0.png"), ("drop", "ant/1.png"), ("drop", "ant/2.png"),
    ]  # fmt: skip


def test_near_duplicates_within_a_split_stay() -> None:
    images = [image_record("ant", i, "train") for i in range(3)]
    assert propose(images, same_group(*images)) == []


def test_a_copy_that_is_identical_too_is_dropped_once() -> None:
    train, copy, test = image_record("ant", 1, "train"), image_record("ant", 2, "train"), image_record("ant", 2, "test")
    fixes = propose([train, copy, test], same_group(train, copy))
    assert [(action, path) for action, path, _ in fixes] == [("drop", "ant/1.png"), ("drop", "ant/2.png")]
    assert fixes[1][2] == "identical to ant/2.png in the test split"


def test_a_class_takes_the_spelling_of_most_images_also_where_they_have_several_labels() -> None:
    counts = {"Cat;dog": 10, "Cat": 3, "cat": 5, "cat;dog": 2, "Cat;cat": 1}
    images = [image_record(label, f"{label} {i}") for label, count in counts.items() for i in range(count)]
    index = Index("x", tuple(images), (), read, several_labels="one has")
    relabeled = {(fix.label, fix.to) for fix in propose_entries(index, {})}
    assert relabeled == {("cat", "Cat"), ("cat;dog", "Cat;dog"), ("Cat;cat", "Cat")}
    assert len(propose_entries(index, {})) == 5 + 2 + 1
    masks = replace(index, mask_classes=MaskClasses({0: "Cat", 1: "cat", 2: "dog"}), read_mask=read)
    assert propose_entries(masks, {}) == [], "a label does not change a mask"


@pytest.mark.parametrize("source_splits", [(None, None), ("train", "test"), ("train", "validation")])
def test_a_setting_is_advised_only_where_it_has_an_effect(source_splits: tuple[Split | None, Split | None]) -> None:
    first, other = source_splits
    images = [
        image_record("ant", 1, first),
        image_record("ant", 2, first),
        image_record("bee", 3, first),
        image_record("ant", 4, first),
    ]
    near = same_group(images[0], images[1]) | same_group(images[2], images[3])
    advised = duplicates.duplicate_findings(
        duplicates.find_duplicates(images, near),
        Index("x", (*images, image_record("bee", 9, other)), (), lambda _: b""),
    )
    assert [f.kind for f in advised] == ["conflicting-near-duplicates", "near-duplicates"]
    assert all(("split.group=near_duplicates" in f.advice) is (other != "validation") for f in advised)
    assert all(f.advice.endswith(".") for f in advised)
