"""The paired test against an independent library and by hand, and how often a search is misled by it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from sightline.compress.noninferiority import (
    MARGIN,
    STANDARD_ERRORS,
    compare_models,
    compute_upper_drop,
    is_non_inferior,
)
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


def test_no_loss_is_one_that_is_not_significant_and_certainly_small() -> None:
    assert is_non_inferior(5, 5, 50)
    assert not is_non_inferior(6, 5, 50)  # two points, which chance hides among 50 images
    assert is_non_inferior(310, 300, 10_000)
    assert not is_non_inferior(330, 280, 10_000)  # significant
    assert not is_non_inferior(3_050, 2_980, 10_000)  # not significant, but a loss of more than a point is possible


@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 20_000), st.floats(0, 0.05))
def test_a_drop_is_allowed_with_a_standard_error_to_spare(lost: int, gained: int, others: int, drop: float) -> None:
    count = lost + gained + others + 1
    accepted = is_non_inferior(lost, gained, count, drop)
    if lost <= gained:
        assert accepted
        return
    p_value = binomtest(lost, lost + gained).pvalue
    no_loss = p_value >= 0.05 and paired_difference_interval(lost, gained, count).low >= -MARGIN
    assert is_non_inferior(lost, gained, count) == no_loss
    assert accepted >= no_loss, "what is accepted without a drop is accepted with one"
    assert compute_upper_drop(lost, gained, count) > (lost - gained) / count
    allowed = compute_upper_drop(lost, gained, count) <= drop
    assert accepted == (allowed or no_loss)


def test_the_standard_error_is_that_of_a_paired_difference() -> None:
    """By the formula for large samples, which the score interval approaches."""
    lost, gained, count = 400, 300, 10_000
    expected = np.sqrt(lost + gained - (lost - gained) ** 2 / count) / count
    spare = compute_upper_drop(lost, gained, count) - (lost - gained) / count
    assert spare == pytest.approx(STANDARD_ERRORS * expected, rel=0.01)


@pytest.mark.parametrize(("true_drop", "limit"), [(0.035, 0.05), (0.02, 0.2)])
def test_few_validation_images_seldom_accept_a_larger_drop(true_drop: float, limit: float) -> None:
    """250 images on which one model in 15 disagrees with the original, as on drawn beans; 2 points are allowed.

    By the drop alone, without a standard error to spare, 19% and 56% of them were accepted.
    """
    rng, count, disagreement = np.random.default_rng(0), 250, 1 / 15
    lost, gained = (disagreement + true_drop) / 2, (disagreement - true_drop) / 2
    pairs = rng.multinomial(count, [lost, gained, 1 - lost - gained], 2000)
    accepted = np.mean([is_non_inferior(int(a), int(b), count, 0.02) for a, b, _ in pairs])
    assert accepted < limit < np.mean((pairs[:, 0] - pairs[:, 1]) / count <= 0.02)
