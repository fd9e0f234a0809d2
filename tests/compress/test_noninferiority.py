"""Large against small, against an independent library and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from sightline.compress.noninferiority import MARGIN, compare_models, is_non_inferior
from sightline.intervals import paired_difference_interval


@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_is_the_binomial_test_of_the_disagreements(lost: int, won: int) -> None:
    expected = binomtest(lost, lost + won).pvalue if lost + won else 1.0
    before = np.array([True] * lost + [False] * won + [True])
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


def test_no_loss_is_one_that_nobody_can_tell_and_that_is_small_for_sure() -> None:
    assert is_non_inferior(5, 5, 50)
    assert not is_non_inferior(6, 5, 50)  # two points, which chance hides among 50 images
    assert is_non_inferior(310, 300, 10_000)
    assert not is_non_inferior(330, 280, 10_000)  # told from chance
    assert not is_non_inferior(3_050, 2_980, 10_000)  # not told, but a loss of more than a point is not ruled out


@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 20_000), st.floats(0, 0.05))
def test_a_stated_drop_is_meant_literally_and_none_means_the_test(
    lost: int, won: int, others: int, drop: float
) -> None:
    count = lost + won + others + 1
    stands = is_non_inferior(lost, won, count, drop)
    if lost <= won:
        assert stands
    elif drop > 0:
        assert stands == ((lost - won) / count <= drop + 1e-9)
    else:
        significant = binomtest(lost, lost + won).pvalue < 0.05
        assert stands == (not significant and paired_difference_interval(lost, won, count).low >= -MARGIN)
