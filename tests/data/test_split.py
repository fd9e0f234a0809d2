"""Splits: assigned by content and seed alone, and never a class without training images."""

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
from sightline.randomness import derive
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


# The fractions.


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


@pytest.mark.parametrize(
    ("count", "expected"), [(100, (70, 15, 15)), (20, (14, 3, 3)), (7, (5, 1, 1)), (3, (1, 1, 1)), (2, (1, 1, 0))]
)
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
    with pytest.raises(ConfigError, match=r"split.validation 0.5 and split.test 0.5 leave no images to train on"):
        divided(MANY, mode=mode, validation=0.5, test=0.5)


# What determines the split.


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


def by_chance(p: Picture, seed: int) -> Part:
    """Where the hash of seed and content alone puts an image."""
    position = derive(seed, "split", p.sha256) / 2**64
    return "train" if position < 0.7 else "validation" if position < 0.85 else "test"


@settings(deadline=None, max_examples=150)
@given(pictures(contents=10_000, conflicts=False, max_size=30), pictures(contents=10_000, conflicts=False), SEEDS)
def test_adding_images_moves_loans_alone(old: list[Picture], new: list[Picture], seed: int) -> None:
    for many in (old, [*old, *new]):
        lent: dict[str, set[str]] = defaultdict(set)
        chance: dict[str, set[Part]] = defaultdict(set)
        for p, part in zip(many, divided(many, seed).parts, strict=True):
            chance[p.label].add(by_chance(p, seed))
            if part != by_chance(p, seed):
                lent[p.label].add(p.sha256)
        for label, splits in chance.items():  # one to each split that chance leaves empty, so nothing else can move
            assert len(lent[label]) <= len(PARTS) - len(splits)


@settings(deadline=None, max_examples=60)
@given(st.integers(3, 60), st.integers(1, 200), SEEDS)
def test_once_chance_has_filled_every_split_nothing_moves(count: int, more: int, seed: int) -> None:
    old = [labelled("ant", i) for i in range(count)]
    before = divided(old, seed)
    after = divided([*old, *(labelled("ant", 1000 + i) for i in range(more))], seed)
    if not before.notes:
        assert after.parts[:count] == before.parts


def test_classes_do_not_move_each_other() -> None:
    small = [labelled("defect", i) for i in range(6)]
    alone = divided([*small, *(labelled("ok", f"ok{i}") for i in range(300))]).parts[:6]
    crowd = [labelled(f"class {i % 40}", f"crowd {i}") for i in range(200)]
    assert divided([*small, *crowd]).parts[:6] == alone


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


# Every class in every split.


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("mode", MODES)
def test_six_defects_among_three_hundred_are_trained_validated_and_tested(seed: int, mode: str) -> None:
    many = [*(labelled("ok", f"ok {i}") for i in range(300)), *(labelled("defect", i) for i in range(6))]
    found = divided(many, seed, mode=mode)
    assert set(by_class(many, found.parts)["defect"]) == set(PARTS)
    assert (found.untested, found.unvalidated) == ((), ())


@pytest.mark.parametrize("mode", MODES)
def test_a_thousand_classes_of_three(mode: str) -> None:
    many = [labelled(f"class {i:03}", f"{i} {j}") for i in range(1000) for j in range(3)]
    found = divided(many, mode=mode)
    assert Counter(found.parts) == {"train": 1000, "validation": 1000, "test": 1000}
    assert len(found.notes) == 1
    assert found.notes[0].startswith("random assignment would have left ")
    assert found.notes[0].endswith("images were moved to prevent it")
    assert "classes (such as 'class 000'," in found.notes[0]
    assert len(found.notes[0]) < 200
    assert found.untested == ()


@settings(deadline=None, max_examples=300)
@given(
    pictures(contents=30, conflicts=False, max_size=60),
    SEEDS,
    st.sampled_from(MODES),
    st.sampled_from([(0.15, 0.15), (0.0, 0.15), (0.15, 0.0), (0.4, 0.4), (0.01, 0.01)]),
)
def test_every_class_is_in_as_many_splits_as_it_has_images(
    many: list[Picture], seed: int, mode: str, fractions: tuple[float, float]
) -> None:
    validation, test = fractions
    wanted = [part for part, share in zip(PARTS, (1, validation, test), strict=True) if share]
    found = divided(many, seed, mode=mode, validation=validation, test=test)
    counts = by_class(many, found.parts)
    different = {label: len({p.sha256 for p in many if p.label == label}) for label in counts}
    for label, held in counts.items():
        assert set(wanted[: different[label]]) <= set(held)
    pairs: list[tuple[Part, tuple[str, ...]]] = [("validation", found.unvalidated), ("test", found.untested)]
    for part, named in pairs:
        lacking = {label for label, held in counts.items() if not held[part]}
        assert set(named) == (lacking if part in found.parts else set())
    few = [label for label in counts if different[label] < len(wanted)]
    assert bool(few) is any("too few for every split" in note for note in found.notes)
    assert len(found.notes) <= 2


@settings(deadline=None, max_examples=200)
@given(pictures(contents=12, max_size=30), SEEDS, st.sampled_from(MODES))
def test_no_class_is_left_without_training_pictures(many: list[Picture], seed: int, mode: str) -> None:
    found = divided(many, seed, mode=mode)
    assert all(counts["train"] for counts in by_class(many, found.parts).values())


def without(part: Part, count: int) -> list[Picture]:
    """`count` images of one class that the hash puts anywhere but in `part`, beside a large class."""
    free = split([labelled("ant", i) for i in range(200)], SplitConfig(), 0).parts
    few = [labelled("ant", i) for i in range(200) if free[i] != part][:count]
    return [*few, *(labelled("bee", f"b{i}") for i in range(100))]


@pytest.mark.parametrize("part", PARTS)
def test_a_split_without_a_class_is_lent_one_image_and_it_is_said(part: Part) -> None:
    many = without(part, 40)
    plain = divided([*many, *(labelled("ant", i) for i in range(200))]).parts[:40]
    found = divided(many)
    moved = [now for was, now in zip(plain, found.parts, strict=False) if was != now]
    assert part not in plain
    assert moved == [part]
    assert found.notes == (
        "random assignment would have left class 'ant' out of a split: 1 image was moved to prevent it",
    )


def test_classes_that_cannot_all_be_in_every_split_are_named() -> None:
    """Seven images in seven classes, each in three, as the points and lines of the Fano plane: no split suits all."""
    lines = ("012", "034", "056", "135", "146", "236", "245")
    many = [labelled(f"line {line}", point) for line in lines for point in line]
    for seed in range(10):
        found = divided(many, seed)
        counts = by_class(many, found.parts)
        lacking = sorted(label for label, held in counts.items() if len(held) < 3)
        assert lacking
        assert all(held["train"] for held in counts.values())
        assert set(lacking) == {*found.untested, *found.unvalidated}
        assert "not in every split: other classes need the shared images" in found.notes[-1]
        assert repr(lacking[0]) in found.notes[-1]


def test_a_class_of_one_trains_and_says_so() -> None:
    found = divided([labelled("single", 0), *MANY])
    assert found.parts[0] == "train"
    assert found.notes == ("class 'single' has fewer than 3 different images, too few for every split",)
    assert (found.unvalidated, found.untested) == (("single",), ("single",))


def test_a_class_that_a_stated_split_lacks_is_named() -> None:
    many = [labelled(p.label, i, "test" if i % 5 and i % 2 else "train") for i, p in enumerate(MANY[:500])]
    found = divided(many)
    assert found.untested == ("class 0",)
    assert found.notes == ("class 'class 0' has no image in the test split of the source",)


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


# Groups.


def named(many: Sequence[Picture], size: int) -> list[str]:
    """Groups of `size` contents each, whatever their class; every seventh image is in none."""
    hashes = sorted({p.sha256 for p in many})
    group = {sha: "" if i % 7 == 6 else f"group {i // size}" for i, sha in enumerate(hashes)}
    return [group[p.sha256] for p in many]


@settings(deadline=None, max_examples=150)
@given(pictures(contents=40), SEEDS, st.sampled_from(MODES), st.integers(1, 6))
def test_groups_and_copies_lie_on_one_side(
    many: list[Picture], seed: int, mode: Literal["hash", "stratified"], size: int
) -> None:
    groups = named(many, size)
    found = split(many, SplitConfig(mode=mode), seed, groups)
    for names in (groups, [p.sha256 for p in many], found.groups):
        sides: dict[str, set[Part]] = defaultdict(set)
        for name, part in zip(names, found.parts, strict=True):
            sides[name].add(part)
        assert all(len(side) == 1 for name, side in sides.items() if name)
    assert all(c["train"] for c in by_class(many, found.parts).values())
    assert found.across == ()


@pytest.mark.parametrize("mode", MODES)
def test_a_class_of_three_patients_is_in_every_split(mode: Literal["hash", "stratified"]) -> None:
    many = [labelled("sick", f"{patient} {i}") for patient in range(3) for i in range(5)]
    many += [labelled("well", f"{patient} {i}") for patient in range(3, 63) for i in range(5)]
    groups = [p.path.split("/")[1].split()[0] for p in many]
    for seed in range(10):
        found = split(many, SplitConfig(mode=mode), seed, groups)
        assert by_class(many, found.parts)["sick"] == {"train": 5, "validation": 5, "test": 5}
        assert found.groups == tuple(groups)


def test_a_class_of_two_patients_has_too_few_groups_whatever_its_images() -> None:
    many = [labelled("sick", i) for i in range(40)] + MANY[:500]
    groups = [f"patient {i % 2}" for i in range(40)] + [""] * 500
    found = split(many, SplitConfig(), 0, groups)
    assert found.notes[-1] == "class 'sick' has fewer than 3 different groups, too few for every split"
    assert found.untested == ("sick",)


def test_the_name_of_a_group_decides_and_adding_to_it_moves_nothing() -> None:
    groups = [f"video {i // 20}" for i in range(len(MANY))]
    found = split(MANY, SplitConfig(), 3, groups)
    assert split(MANY[::3], SplitConfig(), 3, groups[::3]).parts == found.parts[::3]
    for part, share in shares(found).items():
        assert share == pytest.approx(0.7 if part == "train" else 0.15, abs=0.09)


def test_exact_fractions_go_by_images_not_by_groups() -> None:
    many = [labelled("ant", i) for i in range(400)]
    groups = [f"{i // 40}" if i < 200 else f"small {i // 2}" for i in range(400)]
    counts = Counter(split(many, SplitConfig(mode="stratified"), 1, groups).parts)
    assert counts["test"] == pytest.approx(60, abs=20)  # half of the largest group
    assert counts["validation"] == pytest.approx(60, abs=20)


def test_copies_tie_the_groups_that_hold_them() -> None:
    many = [labelled("ant", i) for i in range(30)]
    many[20] = many[0]
    groups = [f"patient {i // 10}" for i in range(30)]
    for seed in range(20):
        found = split(many, SplitConfig(), seed, groups)
        assert len({*found.parts[:10], *found.parts[20:]}) == 1
        assert set(found.groups) == {"patient 0", "patient 1"}


@pytest.mark.parametrize("mode", MODES)
def test_groups_do_not_move_stated_splits_but_are_reported(mode: Literal["hash", "stratified"]) -> None:
    many = [labelled("ant", i, "test" if i >= 80 else "train") for i in range(100)]
    groups = [f"patient {i // 4}" for i in range(100)]
    groups[80] = groups[0]
    found = split(many, SplitConfig(mode=mode), 0, groups)
    assert found.parts[80:] == ("test",) * 20
    assert "test" not in found.parts[:80]
    validated = [i for i in range(80) if found.parts[i] == "validation"]
    assert validated == [i for i in range(80) if i // 4 in {j // 4 for j in validated}]
    assert found.across == ("patient 0",)
    assert found.notes == (
        (
            "1 group spans more than one split of the source, such as that of ant/0.png and ant/80.png: the splits of "
            "the source are kept, so metrics on them may be too optimistic"
        ),
    )


@settings(deadline=None, max_examples=60)
@given(pictures(), SEEDS, st.randoms(), st.sampled_from(MODES))
def test_the_order_decides_nothing_for_groups(
    many: list[Picture], seed: int, chance: random.Random, mode: Literal["hash", "stratified"]
) -> None:
    groups, order = named(many, 2), list(range(len(many)))
    chance.shuffle(order)
    config = SplitConfig(mode=mode)
    parts = split(many, config, seed, groups).parts
    shuffled = split([many[i] for i in order], config, seed, [groups[i] for i in order]).parts
    assert Counter((many[i].label, many[i].sha256, parts[i]) for i in order) == Counter(
        (many[i].label, many[i].sha256, part) for i, part in zip(order, shuffled, strict=True)
    )
