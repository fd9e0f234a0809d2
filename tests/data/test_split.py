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
from sightline.data.indexing import build_index
from sightline.data.split import SplitAssignment, assign_splits
from sightline.data.targets import LABEL_SETS, join_classes
from sightline.data.types import SPLITS, ImageRecord, Split
from sightline.errors import ConfigError
from sightline.seeding import derive_seed
from strategies import image_record, image_records

SEEDS = st.integers(0, 50)
MODES: tuple[Literal["hash", "stratified"], ...] = ("hash", "stratified")


def split_fractions(assignment: SplitAssignment) -> dict[Split, float]:
    counted = Counter(assignment.splits)
    return {split: counted[split] / len(assignment.splits) for split in SPLITS}


def assign(images: Sequence[ImageRecord], seed: int = 0, **settings: Any) -> SplitAssignment:
    return assign_splits(images, SplitConfig(**settings), seed)


def by_class(images: Sequence[ImageRecord], splits: Sequence[Split]) -> dict[str, Counter[Split]]:
    counts: dict[str, Counter[Split]] = defaultdict(Counter)
    for p, split in zip(images, splits, strict=True):
        counts[p.label][split] += 1
    return counts


MANY = [image_record(f"class {i % 5}", i) for i in range(5000)]


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
def test_fractions_of_images_without_splits(mode: str, chosen: dict[str, float], expected: tuple[float, ...]) -> None:
    assignment = assign(MANY, seed=3, mode=mode, **chosen)
    tolerance = 1e-9 if mode == "stratified" else 0.025  # of 5,000: four standard deviations and more
    for split, fraction in zip(SPLITS, expected, strict=True):
        assert split_fractions(assignment)[split] == pytest.approx(
            fraction, abs=tolerance if fraction not in (0.0, 1.0) else 0
        )
    assert assignment.notes == ()


@pytest.mark.parametrize(
    ("count", "expected"), [(100, (70, 15, 15)), (20, (14, 3, 3)), (7, (5, 1, 1)), (3, (1, 1, 1)), (2, (1, 1, 0))]
)
def test_stratified_fractions_are_exact_in_every_class(count: int, expected: tuple[int, ...]) -> None:
    images = [image_record(label, f"{label}{i}") for i in range(count) for label in ("ant", "bee")]
    assignment = assign(images, mode="stratified")
    assert by_class(images, assignment.splits) == {
        label: Counter({p: n for p, n in zip(SPLITS, expected, strict=True) if n}) for label in ("ant", "bee")
    }


@pytest.mark.parametrize("source_splits", ["train", "test"])
@pytest.mark.parametrize("mode", MODES)
def test_a_missing_validation_split_is_taken_from_the_training_split(mode: str, source_splits: Split) -> None:
    images = [
        image_record(p.label, i, "train" if i % 4 or source_splits == "train" else "test") for i, p in enumerate(MANY)
    ]
    assignment = assign(images, mode=mode)
    trains = [split for p, split in zip(images, assignment.splits, strict=True) if p.split == "train"]
    assert trains.count("validation") / len(trains) == pytest.approx(0.15, abs=0.02)
    assert "test" not in trains
    assert assignment.splits.count("test") == sum(p.split == "test" for p in images)


def test_a_missing_test_split_stays_missing_unless_requested() -> None:
    images = [image_record(p.label, i, "train" if i % 4 else "validation") for i, p in enumerate(MANY)]
    assert set(assign(images).splits) == {"train", "validation"}
    assignment = assign(images, test=0.2)
    assert [split for split, p in zip(assignment.splits, images, strict=True) if p.split == "validation"] == [
        "validation"
    ] * 1250
    assert assignment.splits.count("test") / 3750 == pytest.approx(0.2, abs=0.025)


def test_the_fraction_of_a_given_split_does_not_count() -> None:
    images = [image_record(p.label, i, SPLITS[i % 3]) for i, p in enumerate(MANY)]
    assert assign(images, validation=0.5, test=0.5).splits == tuple(p.split for p in images)


@pytest.mark.parametrize("mode", MODES)
def test_fractions_that_leave_nothing_to_train_on_are_refused(mode: str) -> None:
    with pytest.raises(ConfigError, match=r"split.validation 0.5 and split.test 0.5 leave no images to train on"):
        assign(MANY, mode=mode, validation=0.5, test=0.5)


# What determines the split.


@settings(deadline=None, max_examples=60)
@given(image_records(), SEEDS, st.sampled_from(MODES), st.randoms())
def test_the_order_of_the_images_decides_nothing(
    images: list[ImageRecord], seed: int, mode: str, chance: random.Random
) -> None:
    order = list(range(len(images)))
    chance.shuffle(order)
    splits = assign(images, seed, mode=mode).splits
    shuffled = assign([images[i] for i in order], seed, mode=mode)
    assert Counter((images[i].label, images[i].sha256, splits[i]) for i in order) == Counter(
        (images[i].label, images[i].sha256, split) for i, split in zip(order, shuffled.splits, strict=True)
    )


def test_paths_and_sizes_decide_nothing() -> None:
    moved = [ImageRecord(f"elsewhere/{i}", p.sha256, p.label, None, 99, 99, grayscale=True) for i, p in enumerate(MANY)]
    assert assign(moved).splits == assign(MANY).splits


@pytest.mark.parametrize("mode", MODES)
def test_the_seed_decides(mode: str) -> None:
    one, two = assign(MANY, 1, mode=mode), assign(MANY, 2, mode=mode)
    assert one == assign(MANY, 1, mode=mode)
    same = sum(a == b for a, b in zip(one.splits, two.splits, strict=True)) / len(MANY)
    assert same == pytest.approx(0.7**2 + 2 * 0.15**2, abs=0.03)  # as chance has it


def by_chance(p: ImageRecord, seed: int) -> Split:
    """Where the hash of seed and content alone puts an image."""
    position = derive_seed(seed, "split", p.sha256) / 2**64
    return "train" if position < 0.7 else "validation" if position < 0.85 else "test"


@settings(deadline=None, max_examples=150)
@given(
    image_records(contents=10_000, conflicts=False, max_size=30), image_records(contents=10_000, conflicts=False), SEEDS
)
def test_adding_images_changes_moved_units_alone(old: list[ImageRecord], new: list[ImageRecord], seed: int) -> None:
    for images in (old, [*old, *new]):
        moves: dict[str, set[str]] = defaultdict(set)
        chance: dict[str, set[Split]] = defaultdict(set)
        for p, split in zip(images, assign(images, seed).splits, strict=True):
            chance[p.label].add(by_chance(p, seed))
            if split != by_chance(p, seed):
                moves[p.label].add(p.sha256)
        for label, splits in chance.items():  # one to each split that chance leaves empty, so nothing else can move
            assert len(moves[label]) <= len(SPLITS) - len(splits)


@settings(deadline=None, max_examples=60)
@given(st.integers(3, 60), st.integers(1, 200), SEEDS)
def test_once_chance_has_filled_every_split_nothing_moves(count: int, more: int, seed: int) -> None:
    old = [image_record("ant", i) for i in range(count)]
    before = assign(old, seed)
    after = assign([*old, *(image_record("ant", 1000 + i) for i in range(more))], seed)
    if not before.notes:
        assert after.splits[:count] == before.splits


def test_classes_do_not_move_each_other() -> None:
    small = [image_record("defect", i) for i in range(6)]
    alone = assign([*small, *(image_record("ok", f"ok{i}") for i in range(300))]).splits[:6]
    crowd = [image_record(f"class {i % 40}", f"crowd {i}") for i in range(200)]
    assert assign([*small, *crowd]).splits[:6] == alone


@settings(deadline=None, max_examples=300)
@given(image_records(contents=12), SEEDS)
@example([image_record("ant", 1), image_record("ant", 1)], 0)
@example([image_record("ant", 1), image_record("bee", 1)], 0)
def test_identical_images_lie_on_one_side(images: list[ImageRecord], seed: int) -> None:
    sides: dict[str, set[Split]] = defaultdict(set)
    for p, split in zip(images, assign(images, seed).splits, strict=True):
        sides[p.sha256].add(split)
    assert all(len(side) == 1 for side in sides.values())


@settings(deadline=None, max_examples=100)
@given(image_records(splits=SPLITS), SEEDS, st.sampled_from(MODES))
def test_given_splits_are_kept(images: list[ImageRecord], seed: int, mode: str) -> None:
    assignment = assign(images, seed, mode=mode)
    without = all(p.split != "validation" for p in images)
    for p, split in zip(images, assignment.splits, strict=True):
        assert split == p.split or (p.split == "train" and split == "validation" and without)


# Every class in every split.


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("mode", MODES)
def test_six_defects_among_three_hundred_are_trained_validated_and_tested(seed: int, mode: str) -> None:
    images = [*(image_record("ok", f"ok {i}") for i in range(300)), *(image_record("defect", i) for i in range(6))]
    assignment = assign(images, seed, mode=mode)
    assert set(by_class(images, assignment.splits)["defect"]) == set(SPLITS)


@pytest.mark.parametrize("mode", MODES)
def test_a_thousand_classes_of_three(mode: str) -> None:
    images = [image_record(f"class {i:03}", f"{i} {j}") for i in range(1000) for j in range(3)]
    assignment = assign(images, mode=mode)
    assert Counter(assignment.splits) == {"train": 1000, "validation": 1000, "test": 1000}
    assert len(assignment.notes) == 1
    assert assignment.notes[0].startswith("random assignment would have left ")
    assert assignment.notes[0].endswith("images were moved to prevent it")
    assert "classes (such as 'class 000'," in assignment.notes[0]
    assert len(assignment.notes[0]) < 200


@settings(deadline=None, max_examples=300)
@given(
    image_records(contents=30, conflicts=False, max_size=60),
    SEEDS,
    st.sampled_from(MODES),
    st.sampled_from([(0.15, 0.15), (0.0, 0.15), (0.15, 0.0), (0.4, 0.4), (0.01, 0.01)]),
)
def test_every_class_is_in_as_many_splits_as_it_has_images(
    images: list[ImageRecord], seed: int, mode: str, fractions: tuple[float, float]
) -> None:
    validation, test = fractions
    target_splits = [split for split, fraction in zip(SPLITS, (1, validation, test), strict=True) if fraction]
    assignment = assign(images, seed, mode=mode, validation=validation, test=test)
    counts = by_class(images, assignment.splits)
    different = {label: len({p.sha256 for p in images if p.label == label}) for label in counts}
    for label, split_counts in counts.items():
        assert set(target_splits[: different[label]]) <= set(split_counts)
    few = [label for label in counts if different[label] < len(target_splits)]
    assert bool(few) is any("too few for every split" in note for note in assignment.notes)
    assert len(assignment.notes) <= 2


@settings(deadline=None, max_examples=200)
@given(image_records(contents=12, max_size=30), SEEDS, st.sampled_from(MODES))
def test_no_class_is_left_without_training_images(images: list[ImageRecord], seed: int, mode: str) -> None:
    assignment = assign(images, seed, mode=mode)
    assert all(counts["train"] for counts in by_class(images, assignment.splits).values())


def not_in_split(split: Split, count: int) -> list[ImageRecord]:
    """`count` images of one class that the hash puts anywhere but in `part`, beside a large class."""
    free = assign_splits([image_record("ant", i) for i in range(200)], SplitConfig(), 0).splits
    few = [image_record("ant", i) for i in range(200) if free[i] != split][:count]
    return [*few, *(image_record("bee", f"b{i}") for i in range(100))]


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_without_a_class_gets_one_image_and_a_note(split: Split) -> None:
    images = not_in_split(split, 40)
    plain = assign([*images, *(image_record("ant", i) for i in range(200))]).splits[:40]
    assignment = assign(images)
    moved = [now for was, now in zip(plain, assignment.splits, strict=False) if was != now]
    assert split not in plain
    assert moved == [split]
    assert assignment.notes == (
        "random assignment would have left class 'ant' out of a split: 1 image was moved to prevent it",
    )


def test_classes_that_cannot_all_be_in_every_split_are_named() -> None:
    """Seven images in seven classes, each in three, as the points and lines of the Fano plane: no split suits all."""
    lines = ("012", "034", "056", "135", "146", "236", "245")
    images = [image_record(f"line {line}", point) for line in lines for point in line]
    for seed in range(10):
        assignment = assign(images, seed)
        counts = by_class(images, assignment.splits)
        lacking = sorted(label for label, split_counts in counts.items() if len(split_counts) < 3)
        assert lacking
        assert all(counts_by_split["train"] for counts_by_split in counts.values())
        assert "not in every split: other classes need the shared images" in assignment.notes[-1]
        assert repr(lacking[0]) in assignment.notes[-1]


def test_a_class_of_one_trains_and_says_so() -> None:
    assignment = assign([image_record("single", 0), *MANY])
    assert assignment.splits[0] == "train"
    assert assignment.notes == ("class 'single' has fewer than 3 different images, too few for every split",)


def test_a_class_that_a_stated_split_lacks_is_named() -> None:
    images = [image_record(p.label, i, "test" if i % 5 and i % 2 else "train") for i, p in enumerate(MANY[:500])]
    assignment = assign(images)
    assert assignment.notes == ("class 'class 0' has no image in the test split of the source",)


def test_nothing_is_said_where_no_validation_is_wanted() -> None:
    assert assign([image_record("ant", 0), image_record("bee", 1)], validation=0.0, test=0.0).notes == ()


def test_all_copies_of_a_moved_image_move() -> None:
    images = not_in_split("validation", 3)
    assignment = assign([*images, *images])
    assert assignment.splits[: len(images)] == assignment.splits[len(images) :] == assign(images).splits


def test_without_images_there_are_no_splits() -> None:
    assert assign([]) == SplitAssignment((), ())


def test_real_flowers_keep_their_copies_together(shared: Path) -> None:
    images = build_index(shared / "data" / "flowers5").images
    assignment = assign(images)
    sides: dict[str, set[Split]] = defaultdict(set)
    for p, split in zip(images, assignment.splits, strict=True):
        sides[p.sha256].add(split)
    assert len(sides) < len(images)
    assert all(len(side) == 1 for side in sides.values())
    assert split_fractions(assignment)["train"] == pytest.approx(0.7, abs=0.03)


# Groups.


def name_groups(images: Sequence[ImageRecord], size: int) -> list[str]:
    """Groups of `size` contents each, whatever their class; every seventh image is in none."""
    hashes = sorted({p.sha256 for p in images})
    group = {sha: "" if i % 7 == 6 else f"group {i // size}" for i, sha in enumerate(hashes)}
    return [group[p.sha256] for p in images]


@settings(deadline=None, max_examples=150)
@given(image_records(contents=40), SEEDS, st.sampled_from(MODES), st.integers(1, 6))
def test_groups_and_copies_lie_on_one_side(
    images: list[ImageRecord], seed: int, mode: Literal["hash", "stratified"], size: int
) -> None:
    groups = name_groups(images, size)
    assignment = assign_splits(images, SplitConfig(mode=mode), seed, groups)
    for names in (groups, [p.sha256 for p in images], assignment.groups):
        sides: dict[str, set[Split]] = defaultdict(set)
        for name, split in zip(names, assignment.splits, strict=True):
            sides[name].add(split)
        assert all(len(side) == 1 for name, side in sides.items() if name)
    assert all(c["train"] for c in by_class(images, assignment.splits).values())


@pytest.mark.parametrize("mode", MODES)
def test_a_class_of_three_patients_is_in_every_split(mode: Literal["hash", "stratified"]) -> None:
    images = [image_record("sick", f"{patient} {i}") for patient in range(3) for i in range(5)]
    images += [image_record("well", f"{patient} {i}") for patient in range(3, 63) for i in range(5)]
    groups = [p.path.split("/")[1].split()[0] for p in images]
    for seed in range(10):
        assignment = assign_splits(images, SplitConfig(mode=mode), seed, groups)
        assert by_class(images, assignment.splits)["sick"] == {"train": 5, "validation": 5, "test": 5}
        assert assignment.groups == tuple(groups)


def test_a_class_of_two_patients_has_too_few_groups_whatever_its_images() -> None:
    images = [image_record("sick", i) for i in range(40)] + MANY[:500]
    groups = [f"patient {i % 2}" for i in range(40)] + [""] * 500
    assignment = assign_splits(images, SplitConfig(), 0, groups)
    assert assignment.notes[-1] == "class 'sick' has fewer than 3 different groups, too few for every split"


def test_the_name_of_a_group_decides_and_adding_to_it_moves_nothing() -> None:
    groups = [f"video {i // 20}" for i in range(len(MANY))]
    assignment = assign_splits(MANY, SplitConfig(), 3, groups)
    assert assign_splits(MANY[::3], SplitConfig(), 3, groups[::3]).splits == assignment.splits[::3]
    for split, fraction in split_fractions(assignment).items():
        assert fraction == pytest.approx(0.7 if split == "train" else 0.15, abs=0.09)


def test_exact_fractions_go_by_images_not_by_groups() -> None:
    images = [image_record("ant", i) for i in range(400)]
    groups = [f"{i // 40}" if i < 200 else f"small {i // 2}" for i in range(400)]
    counts = Counter(assign_splits(images, SplitConfig(mode="stratified"), 1, groups).splits)
    assert counts["test"] == pytest.approx(60, abs=20)  # half of the largest group
    assert counts["validation"] == pytest.approx(60, abs=20)


def test_copies_tie_the_groups_that_hold_them() -> None:
    images = [image_record("ant", i) for i in range(30)]
    images[20] = images[0]
    groups = [f"patient {i // 10}" for i in range(30)]
    for seed in range(20):
        assignment = assign_splits(images, SplitConfig(), seed, groups)
        assert len({*assignment.splits[:10], *assignment.splits[20:]}) == 1
        assert set(assignment.groups) == {"patient 0", "patient 1"}


@pytest.mark.parametrize("mode", MODES)
def test_groups_do_not_move_stated_splits_but_are_reported(mode: Literal["hash", "stratified"]) -> None:
    images = [image_record("ant", i, "test" if i >= 80 else "train") for i in range(100)]
    groups = [f"patient {i // 4}" for i in range(100)]
    groups[80] = groups[0]
    assignment = assign_splits(images, SplitConfig(mode=mode), 0, groups)
    assert assignment.splits[80:] == ("test",) * 20
    assert "test" not in assignment.splits[:80]
    validated = [i for i in range(80) if assignment.splits[i] == "validation"]
    assert validated == [i for i in range(80) if i // 4 in {j // 4 for j in validated}]
    assert assignment.notes == (
        (
            "1 group spans more than one split of the source, such as that of ant/0.png and ant/80.png: the splits of "
            "the source are kept, so metrics on them may be too optimistic"
        ),
    )


@settings(deadline=None, max_examples=60)
@given(image_records(), SEEDS, st.randoms(), st.sampled_from(MODES))
def test_the_order_decides_nothing_for_groups(
    images: list[ImageRecord], seed: int, chance: random.Random, mode: Literal["hash", "stratified"]
) -> None:
    groups, order = name_groups(images, 2), list(range(len(images)))
    chance.shuffle(order)
    config = SplitConfig(mode=mode)
    splits = assign_splits(images, config, seed, groups).splits
    shuffled = assign_splits([images[i] for i in order], config, seed, [groups[i] for i in order]).splits
    assert Counter((images[i].label, images[i].sha256, splits[i]) for i in order) == Counter(
        (images[i].label, images[i].sha256, split) for i, split in zip(order, shuffled, strict=True)
    )


def test_stratified_folds_have_every_label_of_an_image_in_proportion() -> None:
    rng = random.Random(0)  # noqa: S311  # a test needs no secret
    sets = [
        [name for name, fraction in (("a", 0.5), ("b", 0.2), ("c", 0.1)) if rng.random() < fraction] for _ in range(300)
    ]
    images = [image_record(join_classes(names), i) for i, names in enumerate(sets)]
    folds = [
        {i for i, split in enumerate(assignment.splits) if split == "test"}
        for assignment in (
            assign_splits(images, SplitConfig(mode="stratified", folds=5, fold=k), 0, targets=LABEL_SETS)
            for k in range(5)
        )
    ]
    assert sorted(i for fold in folds for i in fold) == list(range(300)), "each image is in one fold"
    for name in "abc":
        counts = [sum(name in sets[i] for i in fold) for fold in folds]
        assert max(counts) - min(counts) <= 1, name
