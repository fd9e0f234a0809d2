"""Compare intervals with SciPy, published examples and their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import binom, binomtest

from sightline import intervals
from sightline.compress.noninferiority import compare_models
from sightline.evaluation.paired import compare_paired
from sightline.evaluation.scoring import compute_metrics
from sightline.inference import parity
from sightline.intervals import Interval

Counts = tuple[int, int]
proportions = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(counts: Counts) -> None:
    hits, count = counts
    ours = intervals.wilson_interval(hits, count)
    theirs = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert 0 <= ours.low <= hits / count <= ours.high <= 1


def test_wilson_of_nothing_is_everything() -> None:
    assert intervals.wilson_interval(0, 0) == Interval(0.0, 1.0)
    assert intervals.paired_difference_interval(0, 0, 0) == Interval(-1.0, 1.0)


@given(proportions)
def test_the_lower_bound_is_scipys(counts: Counts) -> None:
    hits, count = counts
    theirs = binomtest(hits, count, alternative="greater").proportion_ci(0.95, method="exact")
    assert intervals.lower_bound(hits, count) == pytest.approx(theirs.low, abs=1e-9)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.0, 1.0))
def test_the_binomial_is_scipys(counts: Counts, fraction: float) -> None:
    assert intervals.binomial_cdf(*counts, fraction) == pytest.approx(binom.cdf(*counts, fraction), abs=1e-9)


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1),
    st.floats(0.001, 0.999),
)
def test_binomials_that_follow_from_each_other_are_scipys(steps: list[tuple[int, int]], fraction: float) -> None:
    counts = np.cumsum([count for count, _ in steps]).tolist()
    misses = [min(misses, count) for (_, misses), count in zip(steps, counts, strict=True)]  # rise and fall
    expected = binom.cdf(misses, counts, fraction)
    assert list(intervals.iterate_binomial_cdf(misses, counts, fraction)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        ((56, 70, 48, 80), 0.0524, 0.3339),  # Newcombe, 1998, table II, method 10, columns a to h
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((6, 7, 2, 7), 0.0582, 0.8062),
        ((5, 56, 0, 29), -0.0381, 0.1926),
        ((0, 10, 0, 20), -0.1611, 0.2775),
        ((10, 10, 0, 10), 0.6075, 1.0),
    ],
)
def test_differences_are_newcombes(counts: tuple[int, int, int, int], low: float, high: float) -> None:
    (p, first), (q, second) = (
        (hits / count, intervals.wilson_interval(hits, count)) for hits, count in (counts[:2], counts[2:])
    )
    interval = intervals.subtract_intervals(p, first, q, second)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


def test_a_paired_difference_is_the_published_one() -> None:
    """Airway reactivity of 21 children before and after a transplant, in Fagerland, Lydersen and Laake (2014)."""
    interval = intervals.paired_difference_interval(7, 1, 21)
    assert (interval.low, interval.high) == pytest.approx((-0.517, -0.026), abs=5e-4)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 500))
def test_the_ends_of_a_paired_difference_are_where_the_score_test_turns(lost: int, won: int, same: int) -> None:
    """By definition: at each end, the constrained maximum likelihood estimate gives a statistic of 1.96."""
    count = lost + won + same
    assume(same > 0)
    interval = intervals.paired_difference_interval(lost, won, count)
    estimate = (won - lost) / count
    assert interval.low < estimate < interval.high
    for delta in (interval.low, interval.high):
        low, high = max(0.0, -delta), (1 - delta) / 2

        def unlikely(p: float, delta: float = delta) -> float:
            cells = [p, p + delta, 1 - 2 * p - delta]
            return -float(
                sum(n * np.log(max(c, 1e-300)) for n, c in zip((lost, won, same), cells, strict=True) if n)
            )  # fmt: skip

        p = minimize_scalar(unlikely, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
        statistic = (estimate - delta) / np.sqrt((2 * p + delta - delta**2) / count)
        assert abs(statistic) == pytest.approx(intervals.Z95, abs=5e-3)


def test_models_that_never_differ_have_an_interval_with_a_width() -> None:
    interval = intervals.paired_difference_interval(0, 0, 100)
    assert -0.04 < interval.low < 0 < interval.high < 0.04
    assert intervals.paired_difference_interval(5, 0, 5).low == -1
    assert intervals.paired_difference_interval(0, 5, 5).high == 1


def test_ninety_five_in_a_hundred_paired_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for lost, won, _ in rng.multinomial(60, (0.05, 0.12, 0.83), 2000):
        interval = intervals.paired_difference_interval(int(lost), int(won), 60)
        covered += interval.low <= 0.07 <= interval.high
    assert 0.94 <= covered / 2000 <= 0.97


def test_one_difference_has_one_interval_wherever_it_is_stated() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200).astype(np.int32)
    first, second = (rng.dirichlet(np.ones(3), 200).astype(np.float32) for _ in range(2))
    first[np.arange(200), labels] += 0.3
    second[np.arange(200), labels] += 0.4
    right = first.argmax(1) == labels, second.argmax(1) == labels
    assert (right[0] != right[1]).sum() > 0
    exported = parity.compare_probabilities(first, second, labels).accuracy_interval
    compared = compare_paired(*right).difference_interval
    compressed = compare_models(*right, "test").difference_interval
    assert exported == compared == compressed


def test_accuracy_and_weighted_recall_have_one_interval() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 300):
        labels = rng.integers(0, 4, count).astype(np.int32)
        metrics = compute_metrics(rng.dirichlet(np.ones(4), count).astype(np.float32), labels)
        assert metrics["weighted_recall"].value == pytest.approx(metrics["top_1"].value)
        assert metrics["weighted_recall"].interval == metrics["top_1"].interval


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_exact_is_scipys_and_inside_that_of_any_time(counts: Counts) -> None:
    hits, count = counts
    ours, anytime = intervals.exact_interval(hits, count), intervals.anytime_interval(hits, count)
    theirs = binomtest(hits, count).proportion_ci(0.95, method="exact")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert 0 <= ours.low <= hits / count <= ours.high <= 1
    assert anytime.low <= ours.low + 1e-9
    assert ours.high <= anytime.high + 1e-9


@pytest.mark.parametrize("probability", [0.5, 0.9, 0.99])
def test_anytime_interval_holds_after_every_image(probability: float) -> None:
    """At most 5% of 300 sequences ever leave the interval, that is, make the mixture 20 times as likely."""
    rng = np.random.default_rng(0)
    counts = np.arange(1, 201)
    outcomes = []
    for _ in range(300):
        hits = np.cumsum(rng.random(200) < probability)
        log_mixture = -np.log((counts + 1) * binom.pmf(hits, counts, probability))  # over the likelihood
        outcomes.append((log_mixture <= np.log(20)).all())
    assert np.mean(outcomes) >= 0.95
    hit_count = round(200 * probability)
    for end in intervals.anytime_interval(hit_count, 200):
        assert np.log(201 * binom.pmf(hit_count, 200, end)) == pytest.approx(-np.log(20), abs=1e-6)


def draw_scores(kind: str, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return scores between 0 and 1, many of them exactly 1, like the F1 of an image's classes."""
    if kind == "hits":
        return (rng.random(count) < 0.9).astype(float)
    scores = rng.beta(8, 2, count)
    return np.where(rng.random(count) < 0.5, 1.0, scores) if kind == "mixed" else scores


MEANS = {"hits": 0.9, "beta": 0.8, "mixed": 0.9}


@pytest.mark.slow_with("beta-150", "mixed-150")
@pytest.mark.parametrize("count", [10, 40, 150])
@pytest.mark.parametrize("kind", MEANS)
def test_the_interval_of_a_bounded_mean_holds_it(kind: str, count: int) -> None:
    rng = np.random.default_rng(count)
    bounds = [intervals.bounded_mean_interval(draw_scores(kind, count, rng).tolist()) for _ in range(200)]
    assert np.mean([low <= MEANS[kind] <= high for low, high in bounds]) >= 0.95


def test_the_interval_of_a_bounded_mean_is_shorter_for_scores_that_vary_less() -> None:
    rng = np.random.default_rng(0)
    hits, scores = (intervals.bounded_mean_interval(draw_scores(kind, 150, rng).tolist()) for kind in ("hits", "beta"))
    exact = intervals.exact_interval(135, 150)
    assert hits.high - hits.low < 1.6 * (exact.high - exact.low)
    assert scores.high - scores.low < 0.75 * (hits.high - hits.low)
    assert intervals.bounded_mean_interval([]) == Interval(0.0, 1.0)


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=60))
def test_the_interval_of_a_bounded_mean_is_around_it(values: list[float]) -> None:
    low, high = intervals.bounded_mean_interval(values)
    assert 0 <= low <= high <= 1
    assert low - 1e-9 <= sum(values) / len(values) <= high + 1e-9
    flipped = intervals.bounded_mean_interval([1 - value for value in values])
    assert (1 - flipped.high, 1 - flipped.low) == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize("kind", ["beta", "mixed"])
def test_the_interval_for_all_times_holds_the_mean_of_scores_at_all_of_them(kind: str) -> None:
    rng = np.random.default_rng(3)
    looks = range(10, 151, 10)
    is_covered = []
    for _ in range(100):
        sums = np.cumsum(draw_scores(kind, 150, rng))
        bounds = [intervals.anytime_interval(float(sums[count - 1]), count) for count in looks]
        is_covered.append(all(low <= MEANS[kind] <= high for low, high in bounds))
    assert np.mean(is_covered) >= 0.95
