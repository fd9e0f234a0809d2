"""The paired test against an independent library and by hand, and how often a search is misled by it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest, permutation_test

from sightline.compress.noninferiority import (
    MARGIN,
    STANDARD_ERRORS,
    PairedTest,
    ScoreTest,
    compare_counts,
    compare_images,
    compare_models,
)
from sightline.errors import DataError
from sightline.intervals import paired_difference_interval


@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_is_the_binomial_test_of_the_disagreements(lost: int, gained: int) -> None:
    expected = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    before = np.array([True] * lost + [False] * gained + [True])
    assert compare_models(before, np.append(~before[:-1], True), "test").p_value == pytest.approx(expected, rel=1e-9)


def test_a_comparison_counts_pairs() -> None:
    large = np.array([True] * 90 + [False] * 10)
    small = large.copy()
    small[:12], small[90:92] = False, True
    comparison = compare_models(large, small, "test")
    assert (comparison.only_original_correct, comparison.only_compressed_correct, comparison.count) == (12, 2, 100)
    assert (comparison.original_accuracy, comparison.compressed_accuracy) == (0.9, 0.8)
    assert comparison.difference == pytest.approx(-0.1)
    assert comparison.difference_interval.low < -0.1 < comparison.difference_interval.high < 0
    assert comparison.significantly_worse
    assert not compare_models(small, large, "test").significantly_worse
    assert not compare_models(large, large, "test").significantly_worse


def compare_disagreements(lost: int, gained: int, count: int) -> PairedTest:
    """Compare two models on `count` images, of which each alone has some right."""
    return compare_counts("test", count, lost, lost, gained)


def test_no_loss_is_one_that_is_not_significant_and_certainly_small() -> None:
    assert compare_disagreements(5, 5, 50).is_non_inferior()
    assert not compare_disagreements(6, 5, 50).is_non_inferior()  # two points, which chance hides among 50 images
    assert compare_disagreements(310, 300, 10_000).is_non_inferior()
    assert not compare_disagreements(330, 280, 10_000).is_non_inferior()  # significant
    assert not compare_disagreements(
        3_050, 2_980, 10_000
    ).is_non_inferior()  # not significant, but a loss of more than a point is possible


@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 20_000), st.floats(0, 0.05))
def test_a_drop_is_allowed_with_a_standard_error_to_spare(lost: int, gained: int, others: int, drop: float) -> None:
    count = lost + gained + others + 1
    accepted = compare_disagreements(lost, gained, count).is_non_inferior(drop)
    if lost <= gained:
        assert accepted
        return
    p_value = binomtest(lost, lost + gained).pvalue
    no_loss = p_value >= 0.05 and paired_difference_interval(lost, gained, count).low >= -MARGIN
    assert compare_disagreements(lost, gained, count).is_non_inferior() == no_loss
    assert accepted >= no_loss, "what is accepted without a drop is accepted with one"
    assert compare_disagreements(lost, gained, count).upper_drop > (lost - gained) / count
    allowed = compare_disagreements(lost, gained, count).upper_drop <= drop
    assert accepted == (allowed or no_loss)


def test_the_standard_error_is_that_of_a_paired_difference() -> None:
    """By the formula for large samples, which the score interval approaches."""
    lost, gained, count = 400, 300, 10_000
    expected = np.sqrt(lost + gained - (lost - gained) ** 2 / count) / count
    spare = compare_disagreements(lost, gained, count).upper_drop - (lost - gained) / count
    assert spare == pytest.approx(STANDARD_ERRORS * expected, rel=0.01)


@pytest.mark.parametrize(("true_drop", "limit"), [(0.035, 0.05), (0.02, 0.2)])
def test_few_validation_images_seldom_accept_a_larger_drop(true_drop: float, limit: float) -> None:
    """250 images on which one model in 15 disagrees with the original, as on drawn beans; 2 points are allowed.

    By the drop alone, without a standard error to spare, 19% and 56% of them were accepted.
    """
    rng, count, disagreement = np.random.default_rng(0), 250, 1 / 15
    lost, gained = (disagreement + true_drop) / 2, (disagreement - true_drop) / 2
    pairs = rng.multinomial(count, [lost, gained, 1 - lost - gained], 2000)
    accepted = np.mean([compare_disagreements(int(a), int(b), count).is_non_inferior(0.02) for a, b, _ in pairs])
    assert accepted < limit < np.mean((pairs[:, 0] - pairs[:, 1]) / count <= 0.02)


def compare(
    first: NDArray[np.float64], second: NDArray[np.float64], groups: NDArray[np.int64] | None = None
) -> ScoreTest:
    result = compare_images("image_iou", first, second, "validation", groups)
    assert isinstance(result, ScoreTest)
    return result


def draw_scores(count: int, drop: float, noise: float, seed: int = 0) -> list[NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    first = rng.uniform(0.4, 0.9, count)
    return [first, np.clip(first - drop + rng.normal(0, noise, count), 0, 1)]


def test_right_and_wrong_are_compared_as_ever() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 300)) < 0.8
    assert compare_images("accuracy", first, second, "test") == compare_models(first, second, "test")


def test_right_and_wrong_in_groups_are_compared_by_groups() -> None:
    """Twelve patients with 50 images each, of which the smaller model gets three wrong: 150 images show only three."""
    groups = np.repeat(np.arange(12), 50)
    first, second = np.ones(600, bool), ~np.isin(groups, [0, 1, 2])
    alone = compare_images("accuracy", first, second, "test")
    grouped = compare_images("accuracy", first, second, "test", groups)
    assert alone.significantly_worse
    assert (grouped.metric, grouped.original_score, grouped.compressed_score) == ("accuracy", 1, 0.75)
    assert (grouped.p_value, grouped.significantly_worse) == (0.25, False)
    assert alone.difference_interval is not None
    assert grouped.difference_interval is not None
    assert grouped.difference_interval.low < alone.difference_interval.low - 0.1
    assert grouped.upper_drop > alone.upper_drop + 0.08
    assert not grouped.is_non_inferior(0.3)
    assert alone.is_non_inferior(0.3)
    assert "permutation test of 12 groups" in grouped.describe_test()


def test_the_p_value_of_scores_is_that_of_a_permutation_test() -> None:
    first, second = draw_scores(9, 0.05, 0.1)
    expected = permutation_test(
        (second - first,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    ).pvalue
    assert compare(first, second).p_value == pytest.approx(expected)


def test_rounding_does_not_make_a_loss_significant() -> None:
    """Five losses have a p-value of 2 / 32, in whatever order they are added."""
    for seed in range(20):
        first, second = draw_scores(5, 0.3, 0.02, seed)
        assert compare(first, second).p_value == 0.0625


def test_the_standard_error_of_scores_is_that_of_their_mean_difference() -> None:
    first, second = draw_scores(400, 0.02, 0.1)
    test = compare(first, second)
    assert (test.metric, test.split, test.count, test.groups) == ("image_iou", "validation", 400, None)
    assert test.difference == pytest.approx((second - first).mean())
    assert test.difference == pytest.approx(test.compressed_score - test.original_score)
    error = (second - first).std() / 20
    assert test.standard_error == pytest.approx(error, rel=0.05)
    assert test.difference_interval is not None
    assert test.difference_interval == pytest.approx(
        (test.difference - 1.96 * error, test.difference + 1.96 * error), abs=error / 4
    )
    assert test.upper_drop == pytest.approx(STANDARD_ERRORS * error - test.difference, rel=0.05)
    twice = compare(np.repeat(first, 2), np.repeat(second, 2), np.repeat(np.arange(400), 2))
    assert twice.groups == 400
    assert twice.standard_error == pytest.approx(error, rel=0.05), "copies of an image show no more than it"


def test_scores_are_accepted_by_the_same_three_rules() -> None:
    first, second = draw_scores(400, -0.001, 0.05)
    assert compare(first, second).is_non_inferior(), "not lower"
    first, second = draw_scores(400, 0.02, 0.1)
    test = compare(first, second)
    assert test.significantly_worse
    assert [test.is_non_inferior(drop) for drop in (0, -test.difference, test.upper_drop)] == [False, False, True]
    first, second = draw_scores(400, 0.0, 0.02)
    near = compare(np.maximum(first, second), np.minimum(first, second) + np.abs(first - second).mean() * 0.95)
    assert near.difference < 0
    assert near.p_value >= 0.05
    assert near.difference_interval is not None
    assert near.difference_interval.low >= -MARGIN
    assert near.is_non_inferior(), "a small loss that may be chance"
    far = compare(np.full(400, 0.5), 0.5 + np.tile([0.3, -0.304], 200))
    assert far.difference < 0
    assert far.p_value >= 0.05
    assert not far.is_non_inferior(), "chance may hide a loss of more than the margin"


def test_few_images_or_groups_exclude_no_loss() -> None:
    first = np.linspace(0.5, 0.9, 60)
    second = first + np.tile([0.001, -0.0011], 30)
    assert compare(first, second).is_non_inferior()
    assert not compare(first[:20], second[:20]).is_non_inferior()
    assert not compare(first, second, np.repeat(np.arange(20), 3)).is_non_inferior()


@pytest.mark.parametrize("count", [1, 4])
def test_the_same_difference_everywhere_has_no_standard_error(count: int) -> None:
    first = np.full(count, 0.75)
    test = compare(first, first - 0.25)
    assert (test.standard_error, test.difference_interval) == (None, None)
    assert not test.is_non_inferior(0.5)
    assert compare(first, first).is_non_inferior()


def test_an_image_without_a_score_is_left_out() -> None:
    first, second = draw_scores(50, 0.02, 0.1)
    missing = np.array([np.nan])
    groups = np.append(np.arange(50), 7)
    expected = compare(first, second)
    assert compare(np.append(first, missing), np.append(second, missing)) == expected
    test = compare(np.append(first, missing), np.append(second, missing), groups)
    assert (test.count, test.groups, test.difference) == (50, 50, expected.difference)
    with pytest.raises(DataError, match="No image of the validation split has a pixel with a class"):
        compare(missing, missing)


def test_few_scores_seldom_accept_a_larger_drop() -> None:
    """100 masks, of which the compressed model has one in ten much worse; 2 points are allowed, and 4 are lost."""
    rng, accepted = np.random.default_rng(0), 0
    for _ in range(60):
        gains = rng.normal(0, 0.01, 100) - np.where(rng.random(100) < 0.1, 0.4, 0)
        accepted += compare(np.full(100, 0.6), 0.6 + gains).is_non_inferior(0.02)
    assert accepted < 4
