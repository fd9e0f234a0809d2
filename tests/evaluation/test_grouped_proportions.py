"""Intervals of proportions of grouped images, and how often they hold the true proportion."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sightline.data.types import Subset
from sightline.evaluation.bootstrap import Resampling
from sightline.evaluation.grouped_proportions import find_grouped_ends
from sightline.evaluation.scoring import compute_evaluation
from sightline.intervals import exact_interval, lower_bound


@pytest.mark.parametrize("groups", [2, 5, 40])
def test_groups_without_an_error_count_as_an_image_each(groups: int) -> None:
    counts = np.full((groups, 1), 7.0)
    expected = exact_interval(groups, groups)
    assert find_grouped_ends(counts, counts)[:, 0] == pytest.approx(expected, abs=1e-9)
    assert find_grouped_ends(0 * counts, counts)[:, 0] == pytest.approx((0.0, 1 - expected.low), abs=1e-9)
    everything = np.ones(7 * groups, bool)
    bound = Resampling(groups=np.arange(7 * groups) // 7).bound_proportion(everything, everything)
    assert bound == pytest.approx(lower_bound(groups, groups), abs=1e-9)


def test_groups_of_unequal_size_count_as_fewer_of_one_size() -> None:
    counts = np.array([[97.0], [1.0], [1.0], [1.0]])
    low = find_grouped_ends(counts, counts)[0, 0]
    assert low == pytest.approx(0.025 ** ((97**2 + 3) / 100**2), abs=1e-9)
    assert low < find_grouped_ends(np.ones((2, 1)), np.ones((2, 1)))[0, 0]


def test_images_of_one_group_have_no_interval() -> None:
    counts = np.array([[5.0, 0.0, 2.0], [0.0, 0.0, 1.0]])
    ends = find_grouped_ends(counts, counts)
    assert np.isnan(ends[:, :2]).all()
    assert np.isfinite(ends[:, 2]).all()


def draw_groups(
    rng: np.random.Generator, groups: int, rate: float, correlation: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the hits and the images [G, 1] of groups of 1 to 15 images, whose hits have this correlation within."""
    counts = rng.integers(1, 16, groups)
    scale = (1 - correlation) / correlation
    hits = rng.binomial(counts, rng.beta(rate * scale, (1 - rate) * scale, groups))
    return hits[:, None].astype(np.float64), counts[:, None].astype(np.float64)


@pytest.mark.parametrize("correlation", [0.05, 0.3, 0.95])
@pytest.mark.parametrize(("groups", "rate"), [(4, 0.9), (8, 0.7), (20, 0.9), (20, 0.99), (60, 0.95)])
def test_an_interval_holds_the_proportion_of_new_groups(groups: int, rate: float, correlation: float) -> None:
    rng = np.random.default_rng(1)
    draws = [draw_groups(rng, groups, rate, correlation) for _ in range(400)]
    hits, counts = (np.concatenate(columns, axis=1) for columns in zip(*draws, strict=True))
    low, high = find_grouped_ends(hits, counts)
    assert np.mean((low <= rate) & (rate <= high)) >= 0.9  # 0.95 but for what 400 draws and few errors blur
    assert np.mean(find_grouped_ends(hits, counts, tail=0.05)[0] <= rate) >= 0.9


def test_a_class_without_errors_has_an_interval_with_a_width() -> None:
    labels = np.repeat(np.array([0, 1], np.int32), 30)
    p = np.where(labels[:, None] == np.arange(2), 0.9, 0.1).astype(np.float32)
    p[31] = p[31, ::-1]  # one image of the second class is taken for the first
    paths = tuple(f"{i}.png" for i in range(60))
    subset = Subset(p, np.arange(60), labels, paths)
    groups = {path: str(i // 3) for i, path in enumerate(paths)}
    result = compute_evaluation(("a", "b"), p, subset, group_by_path=groups)
    first, second = result.per_class
    assert (first.recall, second.precision) == (1.0, 1.0)
    assert first.recall_interval == pytest.approx((0.025**0.1, 1.0))
    assert second.precision_interval is not None
    assert second.precision_interval.low == pytest.approx(0.025 ** ((9 * 9 + 2 * 2) / 29**2))
    perfect = compute_evaluation(("a", "b"), np.eye(2, dtype=np.float32)[labels], subset, group_by_path=groups)
    assert perfect.metrics["top_1"].interval == perfect.accuracy_interval == pytest.approx((0.025**0.05, 1.0))
