"""Large against small, against an independent library and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from sightline.compression.judge import SLACK, judge, no_worse
from sightline.intervals import paired_difference


@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_is_the_binomial_test_of_the_disagreements(lost: int, won: int) -> None:
    expected = binomtest(lost, lost + won).pvalue if lost + won else 1.0
    before = np.array([True] * lost + [False] * won + [True])
    assert judge(before, np.append(~before[:-1], True), "test").p_value == pytest.approx(expected, rel=1e-9)


def test_the_judgement_counts_pairs() -> None:
    large = np.array([True] * 90 + [False] * 10)
    small = large.copy()
    small[:12], small[90:92] = False, True
    found = judge(large, small, "test")
    assert (found.lost, found.won, found.count) == (12, 2, 100)
    assert (found.large, found.small) == (0.9, 0.8)
    assert found.difference == pytest.approx(-0.1)
    assert found.interval.low < -0.1 < found.interval.high < 0
    assert found.worse
    assert not judge(small, large, "test").worse
    assert not judge(large, large, "test").worse


def test_no_loss_is_one_that_nobody_can_tell_and_that_is_small_for_sure() -> None:
    assert no_worse(5, 5, 50)
    assert not no_worse(6, 5, 50)  # two points, which chance hides among 50 images
    assert no_worse(310, 300, 10_000)
    assert not no_worse(330, 280, 10_000)  # told from chance
    assert not no_worse(3_050, 2_980, 10_000)  # not told, but a loss of more than a point is not ruled out


@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 20_000), st.floats(0, 0.05))
def test_a_stated_drop_is_meant_literally_and_none_means_the_test(
    lost: int, won: int, others: int, drop: float
) -> None:
    count = lost + won + others + 1
    stands = no_worse(lost, won, count, drop)
    if lost <= won:
        assert stands
    elif drop > 0:
        assert stands == ((lost - won) / count <= drop + 1e-9)
    else:
        told = binomtest(lost, lost + won).pvalue < 0.05
        assert stands == (not told and paired_difference(lost, won, count).low >= -SLACK)
