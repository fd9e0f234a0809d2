"""Iterative stratification: each split gets its share of every class, and groups stay whole."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.config import SplitConfig
from sightline.data.iterative_stratification import stratify_iteratively
from sightline.data.split import assign_splits
from sightline.data.targets import LABEL_SETS, join_classes
from sightline.data.types import SPLITS, ImageRecord

CLASSES = "abcdef"
RATES = (0.5, 0.3, 0.2, 0.1, 0.05, 0.03)


def draw_images(count: int, seed: int = 0) -> list[ImageRecord]:
    chosen = np.random.default_rng(seed).random((count, len(CLASSES))) < RATES
    labels = [join_classes(name for name, has in zip(CLASSES, row, strict=True) if has) for row in chosen]
    return [ImageRecord(f"{i}.png", f"{i:064x}", label, None, 8, 8) for i, label in enumerate(labels)]


def measure_deviation(images: Sequence[ImageRecord], splits: Sequence[str]) -> float:
    """Return the largest difference of any split's fraction of a class from its fraction of all images."""
    fractions = dict(zip(SPLITS, (0.7, 0.15, 0.15), strict=True))
    names = [LABEL_SETS.list_classes(image.label) for image in images]
    totals = Counter(name for row in names for name in row)
    counts = Counter((split, name) for row, split in zip(names, splits, strict=True) for name in row)
    return max(abs(counts[split, name] / totals[name] - fractions[split]) for split in SPLITS for name in totals)


def test_every_class_has_its_fraction_in_every_split() -> None:
    images = draw_images(1000)
    stratified = assign_splits(images, SplitConfig("stratified"), 0, targets=LABEL_SETS).splits
    hashed = assign_splits(images, SplitConfig("hash"), 0, targets=LABEL_SETS).splits
    assert measure_deviation(images, stratified) < 0.025 < measure_deviation(images, hashed)
    counts = Counter(stratified)
    assert [counts[split] for split in SPLITS] == [700, 150, 150]


def test_the_order_of_the_images_does_not_matter() -> None:
    images, order = draw_images(200), np.random.default_rng(1).permutation(200).tolist()
    splits = assign_splits(images, SplitConfig("stratified"), 3, targets=LABEL_SETS).splits
    shuffled = assign_splits([images[i] for i in order], SplitConfig("stratified"), 3, targets=LABEL_SETS).splits
    assert tuple(splits[i] for i in order) == shuffled


def test_groups_stay_whole() -> None:
    images = draw_images(600)
    groups = [str(i // 5) for i in range(600)]
    splits = assign_splits(images, SplitConfig("stratified"), 0, groups, LABEL_SETS).splits
    assert all(len(set(splits[at : at + 5])) == 1 for at in range(0, 600, 5))
    assert measure_deviation(images, splits) < 0.08


def count_moved(
    images: Sequence[ImageRecord], positions_left: Sequence[int], folds: int, groups: list[str] | None
) -> int:
    """Return how many of the images at `positions_left` are in another split or fold if the others are not there."""

    def assign(positions: Sequence[int]) -> list[object]:
        chosen, names = [images[i] for i in positions], groups and [groups[i] for i in positions]
        if not folds:
            return list(assign_splits(chosen, SplitConfig("stratified"), 0, names, LABEL_SETS).splits)
        assigned: list[object] = [None] * len(chosen)
        for fold in range(folds):
            config = SplitConfig("stratified", folds=folds, fold=fold)
            for i, split in enumerate(assign_splits(chosen, config, 0, names, LABEL_SETS).splits):
                assigned[i] = fold if split == "test" else assigned[i]
        return assigned

    everything = assign(range(len(images)))
    return sum(everything[i] != alone for i, alone in zip(positions_left, assign(positions_left), strict=True))


@pytest.mark.parametrize(("added", "folds", "most"), [(1, 0, 20), (10, 0, 40), (10, 5, 80)])
def test_adding_images_moves_few_others(added: int, folds: int, most: int) -> None:
    moved = [count_moved(draw_images(1000, seed), range(1000 - added), folds, None) for seed in range(3)]
    assert max(moved) <= most, "where each image is placed in turn, a third of them move"


def test_adding_groups_moves_few_others() -> None:
    groups = [f"patient {i // 5}" for i in range(600)]
    moved = [count_moved(draw_images(600, seed), range(585), 0, groups) for seed in range(3)]
    assert max(moved) <= 100
    assert sum(moved) % 5 == 0, "groups move as a whole"


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sets(st.sampled_from("abc")), st.integers(0, 8)), min_size=1, max_size=40),
    st.integers(0, 20), st.randoms(), st.booleans(),
)  # fmt: skip
def test_neither_order_nor_names_of_files_matter(
    units: list[tuple[set[str], int]], seed: int, chance: random.Random, grouped: bool
) -> None:
    order = list(range(len(units)))
    chance.shuffle(order)
    images = [
        ImageRecord(f"{i}.png", f"{i:064x}", join_classes(names), None, 8, 8) for i, (names, _) in enumerate(units)
    ]
    groups = [f"patient {group}" for _, group in units]
    renamed = [replace(images[i], path=f"elsewhere/{i}.jpg") for i in order]
    config = SplitConfig("stratified")
    before = assign_splits(images, config, seed, groups if grouped else None, LABEL_SETS)
    after = assign_splits(renamed, config, seed, [groups[i] for i in order] if grouped else None, LABEL_SETS)
    assert tuple(before.splits[i] for i in order) == after.splits
    if grouped:
        assert len(set(zip(groups, before.splits, strict=True))) == len(set(groups))


def test_nothing_leaves_a_split_that_has_its_fraction_by_chance() -> None:
    classes = [Counter(names) for names in ("ab", "ab", "a", "a", "ab", "ab", "a", "a")]
    positions = [0.05, 0.15, 0.3, 0.45, 0.55, 0.7, 0.8, 0.95]
    assert stratify_iteratively([1] * 8, classes, (0.5, 0.5), positions) == [0] * 4 + [1] * 4
    crowded = [position / 2 for position in positions]
    moved = [i for i, subset in enumerate(stratify_iteratively([1] * 8, classes, (0.5, 0.5), crowded)) if subset]
    assert moved == [4, 5, 6, 7], "those nearest to the other half"


def test_two_halves_share_what_is_rare() -> None:
    classes = [Counter(names) for names in ("ab", "a", "a", "ab", "", "c", "c", "")]
    subsets = stratify_iteratively([1] * 8, classes, (0.5, 0.5), [0.1] * 8)
    for name in "bc":
        assert {subset for subset, names in zip(subsets, classes, strict=True) if name in names} == {0, 1}
    assert sorted(subsets) == [0] * 4 + [1] * 4


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.sets(st.sampled_from("abc")), st.floats(0, 1, exclude_max=True)), max_size=30
    )
)
def test_every_unit_gets_a_subset_and_none_an_empty_one(units: list[tuple[int, set[str], float]]) -> None:
    sizes, classes = [size for size, *_ in units], [Counter(dict.fromkeys(names, size)) for size, names, _ in units]
    subsets = stratify_iteratively(sizes, classes, (0.7, 0.3, 0.0), [position for *_, position in units])
    assert len(subsets) == len(units)
    assert set(subsets) <= {0, 1}, "nothing joins a split that the source gives"
