"""Iterative stratification: each split gets its share of every class, and groups stay whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
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


def test_two_halves_share_what_is_rare() -> None:
    classes = [Counter(names) for names in ("ab", "a", "a", "ab", "", "c", "c", "")]
    subsets = stratify_iteratively([1] * 8, classes, (0.5, 0.5))
    for name in "bc":
        assert {subset for subset, names in zip(subsets, classes, strict=True) if name in names} == {0, 1}
    assert sorted(subsets) == [0] * 4 + [1] * 4


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.sets(st.sampled_from("abc"))), max_size=30))
def test_every_unit_gets_a_subset_and_none_an_empty_one(units: list[tuple[int, set[str]]]) -> None:
    sizes, classes = [size for size, _ in units], [Counter(dict.fromkeys(names, size)) for size, names in units]
    subsets = stratify_iteratively(sizes, classes, (0.7, 0.3, 0.0))
    assert len(subsets) == len(units)
    assert set(subsets) <= {0, 1}, "nothing joins a split that the source gives"
