"""Which picture trains, validates, tests: by content and seed alone, and never a class without training pictures."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sightline.config import SplitConfig
from sightline.data.index import index
from sightline.data.split import Split, split
from sightline.errors import ConfigError
from sightline.records import PARTS, Part, Picture
from strategies import labelled, pictures

SEEDS = st.integers(0, 50)
MODES: tuple[Literal["hash", "stratified"], ...] = ("hash", "stratified")


def shares(found: Split) -> dict[Part, float]:
    counted = Counter(found.parts)
    return {part: counted[part] / len(found.parts) for part in PARTS}


def divided(many: Sequence[Picture], seed: int = 0, **settings: Any) -> Split:
    return split(many, SplitConfig(**settings), seed)


def by_class(many: Sequence[Picture], parts: Sequence[Part]) -> dict[str, Counter[Part]]:
    counts: dict[str, Counter[Part]] = defaultdict(Counter)
    for p, part in zip(many, parts, strict=True):
        counts[p.label][part] += 1
    return counts


MANY = [labelled(f"class {i % 5}", i) for i in range(5000)]


# The shares.


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, (0.70, 0.15, 0.15)),
        ({"validation": 0.3, "test": 0.1}, (0.6, 0.3, 0.1)),
        ({"test": 0.0}, (0.85, 0.15, 0.0)),
        ({"validation": 0.0}, (0.85, 0.0, 0.15)),
        ({"validation": 0.0, "test": 0.0}, (1.0, 0.0, 0.0)),
    ],
    ids=["default", "chosen", "no test", "no validation", "training only"],
)
@pytest.mark.parametrize("mode", MODES)
def test_shares_of_pictures_without_parts(mode: str, chosen: dict[str, float], expected: tuple[float, ...]) -> None:
    found = divided(MANY, seed=3, mode=mode, **chosen)
    tolerance = 1e-9 if mode == "stratified" else 0.025  # of 5,000: four standard deviations and more
    for part, share in zip(PARTS, expected, strict=True):
        assert shares(found)[part] == pytest.approx(share, abs=tolerance if share not in (0.0, 1.0) else 0)
    assert found.notes == ()


@pytest.mark.parametrize(("count", "expected"), [(100, (70, 15, 15)), (20, (14, 3, 3)), (7, (5, 1, 1)), (2, (1, 1, 0))])
def test_stratified_shares_are_exact_in_every_class(count: int, expected: tuple[int, ...]) -> None:
    many = [labelled(label, f"{label}{i}") for i in range(count) for label in ("ant", "bee")]
    found = divided(many, mode="stratified")
    assert by_class(many, found.parts) == {
        label: Counter({p: n for p, n in zip(PARTS, expected, strict=True) if n}) for label in ("ant", "bee")
    }


@pytest.mark.parametrize("stated", ["train", "test"])
@pytest.mark.parametrize("mode", MODES)
def test_a_missing_validation_part_is_taken_from_the_training_part(mode: str, stated: Part) -> None:
    many = [labelled(p.label, i, "train" if i % 4 or stated == "train" else "test") for i, p in enumerate(MANY)]
    found = divided(many, mode=mode)
    trains = [part for p, part in zip(many, found.parts, strict=True) if p.part == "train"]
    assert trains.count("validation") / len(trains) == pytest.approx(0.15, abs=0.02)
    assert "test" not in trains
    assert found.parts.count("test") == sum(p.part == "test" for p in many)


def test_a_missing_test_part_stays_missing_unless_asked_for() -> None:
    many = [labelled(p.label, i, "train" if i % 4 else "validation") for i, p in enumerate(MANY)]
    assert set(divided(many).parts) == {"train", "validation"}
    found = divided(many, test=0.2)
    assert [part for part, p in zip(found.parts, many, strict=True) if p.part == "validation"] == ["validation"] * 1250
    assert found.parts.count("test") / 3750 == pytest.approx(0.2, abs=0.025)


def test_the_share_of_a_part_that_is_given_does_not_count() -> None:
    many = [labelled(p.label, i, PARTS[i % 3]) for i, p in enumerate(MANY)]
    assert divided(many, validation=0.5, test=0.5).parts == tuple(p.part for p in many)


@pytest.mark.parametrize("mode", MODES)
def test_shares_that_leave_nothing_to_train_on_are_refused(mode: str) -> None:
    with pytest.raises(ConfigError, match=r"split.validation 0.5 and split.test 0.5 leave no picture to train on"):
        divided(MANY, mode=mode, validation=0.5, test=0.5)


# What decides.


@settings(deadline=None, max_examples=60)
@given(pictures(), SEEDS, st.sampled_from(MODES), st.randoms())
def test_the_order_of_the_pictures_decides_nothing(
    many: list[Picture], seed: int, mode: str, chance: random.Random
) -> None:
    order = list(range(len(many)))
    chance.shuffle(order)
    parts = divided(many, seed, mode=mode).parts
    shuffled = divided([many[i] for i in order], seed, mode=mode)
    assert Counter((many[i].label, many[i].sha256, parts[i]) for i in order) == Counter(
        (many[i].label, many[i].sha256, part) for i, part in zip(order, shuffled.parts, strict=True)
    )


def test_paths_and_sizes_decide_nothing() -> None:
    moved = [Picture(f"elsewhere/{i}", p.sha256, p.label, None, 99, 99, grey=True) for i, p in enumerate(MANY)]
    assert divided(moved).parts == divided(MANY).parts


@pytest.mark.parametrize("mode", MODES)
def test_the_seed_decides(mode: str) -> None:
    one, two = divided(MANY, 1, mode=mode), divided(MANY, 2, mode=mode)
    assert one == divided(MANY, 1, mode=mode)
    same = sum(a == b for a, b in zip(one.parts, two.parts, strict=True)) / len(MANY)
    assert same == pytest.approx(0.7**2 + 2 * 0.15**2, abs=0.03)  # as chance has it


@settings(deadline=None, max_examples=150)
@given(
    pictures(contents=10_000, conflicts=False, min_size=8),
    pictures(contents=10_000, conflicts=False, min_size=8),
    SEEDS,
)
def test_adding_pictures_never_moves_old_ones(old: list[Picture], new: list[Picture], seed: int) -> None:
    before, after = divided(old, seed), divided([*old, *new], seed)
    for p, was, now in zip(old, before.parts, after.parts, strict=False):
        if not any(repr(p.label) in note for note in (*before.notes, *after.notes)):  # those are corrected, and say so
            assert was == now


@settings(deadline=None, max_examples=300)
@given(pictures(contents=12), SEEDS)
@example([labelled("ant", 1), labelled("ant", 1)], 0)
@example([labelled("ant", 1), labelled("bee", 1)], 0)
def test_identical_pictures_lie_on_one_side(many: list[Picture], seed: int) -> None:
    sides: dict[str, set[Part]] = defaultdict(set)
    for p, part in zip(many, divided(many, seed).parts, strict=True):
        sides[p.sha256].add(part)
    assert all(len(side) == 1 for side in sides.values())


@settings(deadline=None, max_examples=100)
@given(pictures(parts=PARTS), SEEDS, st.sampled_from(MODES))
def test_given_parts_are_kept(many: list[Picture], seed: int, mode: str) -> None:
    found = divided(many, seed, mode=mode)
    without = all(p.part != "validation" for p in many)
    for p, part in zip(many, found.parts, strict=True):
        assert part == p.part or (p.part == "train" and part == "validation" and without)


# Corrections.


@settings(deadline=None, max_examples=200)
@given(pictures(contents=30, max_size=30), SEEDS, st.sampled_from(MODES))
def test_no_class_is_left_without_training_pictures(many: list[Picture], seed: int, mode: str) -> None:
    found = divided(many, seed, mode=mode)
    assert all(counts["train"] for counts in by_class(many, found.parts).values())


@settings(deadline=None, max_examples=200)
@given(pictures(contents=5, conflicts=False, max_size=20), SEEDS, st.sampled_from(MODES))
def test_a_class_of_two_pictures_or_more_validates(many: list[Picture], seed: int, mode: str) -> None:
    found = divided(many, seed, mode=mode)
    for label, counts in by_class(many, found.parts).items():
        different = len({p.sha256 for p in many if p.label == label})
        assert counts["validation"] or different == 1
        assert mode == "stratified" or different > 1 or not counts["validation"]  # exact shares part copies
        lone = f"class {label!r} has no second, different picture: none is left for validation"
        assert (lone in found.notes) is not bool(counts["validation"])


def without(part: Part, count: int) -> list[Picture]:
    """`count` pictures of one class that chance would put anywhere but in `part`, beside a large class."""
    free = split([labelled("ant", i) for i in range(200)], SplitConfig(), 0).parts
    few = [labelled("ant", i) for i in range(200) if free[i] != part][:count]
    return [*few, *(labelled("bee", f"b{i}") for i in range(100))]


@pytest.mark.parametrize("part", ["train", "validation"])
def test_a_correction_moves_one_picture_and_is_reported(part: Part) -> None:
    many = without(part, 4)
    plain = divided([*many, *(labelled("ant", i) for i in range(200))]).parts[:4]
    found = divided(many)
    moved = [now for was, now in zip(plain, found.parts, strict=False) if was != now]
    missing = {"train": "training", "validation": "validation"}[part]
    assert found.notes[0] == f"class 'ant' had no {missing} picture by chance: one was moved there"
    assert moved[:1] == [part]
    assert len(moved) == len(found.notes)
    assert part not in plain
    assert not any("bee" in note for note in found.notes)


def test_a_class_of_one_trains_and_says_so() -> None:
    found = divided([labelled("single", 0), *MANY])
    assert found.parts[0] == "train"
    assert found.notes[-1] == "class 'single' has no second, different picture: none is left for validation"


def test_nothing_is_said_where_no_validation_is_wanted() -> None:
    assert divided([labelled("ant", 0), labelled("bee", 1)], validation=0.0, test=0.0).notes == ()


def test_all_copies_of_a_moved_picture_move() -> None:
    many = without("validation", 3)
    found = divided([*many, *many])
    assert found.parts[: len(many)] == found.parts[len(many) :] == divided(many).parts


def test_no_pictures_are_no_parts() -> None:
    assert divided([]) == Split((), ())


def test_real_flowers_keep_their_copies_together(shared: Path) -> None:
    many = index(shared / "data" / "flowers5").pictures
    found = divided(many)
    sides: dict[str, set[Part]] = defaultdict(set)
    for p, part in zip(many, found.parts, strict=True):
        sides[p.sha256].add(part)
    assert len(sides) < len(many)
    assert all(len(side) == 1 for side in sides.values())
    assert shares(found)["train"] == pytest.approx(0.7, abs=0.03)


# Near duplicates kept together.

GROUPS = st.integers(1, 6)


def paired(many: Sequence[Picture], size: int) -> dict[str, str]:
    """Groups of `size` contents each, named by the smallest; whatever their class."""
    hashes = sorted({p.sha256 for p in many})
    chunks = [hashes[at : at + size] for at in range(0, len(hashes), size)]
    return {sha: min(chunk) for chunk in chunks for sha in chunk}


@settings(deadline=None, max_examples=150)
@given(pictures(contents=40), SEEDS, st.sampled_from(MODES), GROUPS)
def test_near_duplicates_lie_on_one_side_in_either_mode(
    many: list[Picture], seed: int, mode: Literal["hash", "stratified"], size: int
) -> None:
    near = paired(many, size)
    found = split(many, SplitConfig(mode=mode, group="near"), seed, near)
    sides: dict[str, set[Part]] = defaultdict(set)
    for p, part in zip(many, found.parts, strict=True):
        sides[near[p.sha256]].add(part)
    assert all(len(side) == 1 for side in sides.values())
    counts = by_class(many, found.parts)
    assert all(c["train"] for c in counts.values())


def test_the_smallest_content_decides_for_its_group() -> None:
    near = paired(MANY, 3)
    alone = dict(zip((p.sha256 for p in MANY), divided(MANY).parts, strict=True))
    found = split(MANY, SplitConfig(group="near"), 0, near)
    assert all(part == alone[near[p.sha256]] for p, part in zip(MANY, found.parts, strict=True))


@settings(deadline=None, max_examples=60)
@given(pictures(), SEEDS, st.randoms())
def test_the_order_decides_nothing_for_groups(many: list[Picture], seed: int, chance: random.Random) -> None:
    near, order = paired(many, 2), list(range(len(many)))
    chance.shuffle(order)
    config = SplitConfig(mode="stratified", group="near")
    parts = split(many, config, seed, near).parts
    shuffled = split([many[i] for i in order], config, seed, near).parts
    assert Counter((many[i].label, many[i].sha256, parts[i]) for i in order) == Counter(
        (many[i].label, many[i].sha256, part) for i, part in zip(order, shuffled, strict=True)
    )
