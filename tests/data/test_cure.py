"""Proposed fixes for duplicates: a given test split never changes, and advice is given only where it helps."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from sightline.data import copies, cure
from sightline.data.survey import Look, Survey
from sightline.records import Index, Part, Picture
from strategies import labelled


def proposed(pictures: Sequence[Picture], near: dict[str, str]) -> list[tuple[str, str, str]]:
    looks = {p.sha256: Look(None, (0, 50, 128, 200, 255)) for p in pictures}
    index = Index("x", tuple(pictures), (), 0, lambda _: b"")
    fixes = cure.propose(index, copies.find(pictures, near), Survey(looks, near))
    return [(fix.action, fix.path, fix.reason) for fix in fixes]


def alike(*pictures: Picture) -> dict[str, str]:
    first = min(p.sha256 for p in pictures)
    return {p.sha256: first for p in pictures}


def test_the_training_copy_of_a_test_image_is_dropped_and_nothing_is_moved() -> None:
    train, test = labelled("ant", 1, "train"), labelled("ant", 2, "test")
    others = [labelled("bee", 3, "train"), labelled("bee", 4, "test")]
    assert proposed([train, test, *others], alike(train, test)) == [
        ("drop", "ant/1.png", "near duplicate of ant/2.png in the test split")
    ]


def test_of_three_splits_the_last_keeps_its_images() -> None:
    splits: tuple[Part, ...] = ("train", "train", "validation", "test", "test")
    many = [labelled("ant", i, part) for i, part in enumerate(splits)]
    assert [(action, path) for action, path, _ in proposed(many, alike(*many))] == [
        ("drop", "ant/0.png"), ("drop", "ant/1.png"), ("drop", "ant/2.png"),
    ]  # fmt: skip


def test_near_duplicates_within_a_split_stay() -> None:
    many = [labelled("ant", i, "train") for i in range(3)]
    assert proposed(many, alike(*many)) == []


def test_a_copy_that_is_identical_too_is_dropped_once() -> None:
    train, copy, test = labelled("ant", 1, "train"), labelled("ant", 2, "train"), labelled("ant", 2, "test")
    fixes = proposed([train, copy, test], alike(train, copy))
    assert [(action, path) for action, path, _ in fixes] == [("drop", "ant/1.png"), ("drop", "ant/2.png")]
    assert fixes[1][2] == "identical to ant/2.png in the test split"


@pytest.mark.parametrize("stated", [(None, None), ("train", "test"), ("train", "validation")])
def test_a_setting_is_advised_only_where_it_has_an_effect(stated: tuple[Part | None, Part | None]) -> None:
    first, other = stated
    many = [labelled("ant", 1, first), labelled("ant", 2, first), labelled("bee", 3, first), labelled("ant", 4, first)]
    near = alike(many[0], many[1]) | alike(many[2], many[3])
    found = copies.findings(copies.find(many, near), [*many, labelled("bee", 9, other)])
    assert [f.kind for f in found] == ["conflicting-near-duplicates", "near-duplicates"]
    assert all(("split.group=near" in f.advice) is (other != "validation") for f in found)
    assert all(f.advice.endswith(".") for f in found)
