"""Confidence intervals for proportions and their differences, with one method for each case throughout the project.

- a proportion: Wilson's score interval (`wilson_interval`); guarantees use the exact one-sided bound (`lower_bound`)
- a proportion near 0 or 1 of few images: the exact interval (`exact_interval`), since Wilson's is too short there
- a proportion that is checked repeatedly while the images come in: `anytime_interval`
- a mean of scores between 0 and 1, such as the F1 of each image: `bounded_mean_interval`
- any other metric, from its standard error: `scaled_interval`
- two proportions of different images: from the intervals of both (`subtract_intervals`)
- two proportions of the same images: Tango's score interval (`paired_difference_interval`)

Fagerland, Lydersen and Laake (2014, Stat. Med. 33:2850-2875) compare methods for paired proportions: Wald's interval
is too narrow, and has zero width if two models agree on every image; Tango's keeps its level down to a dozen images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple


class Range(NamedTuple):
    """The values that a metric can have, from `low` to `high`, which may be infinite."""

    low: float
    high: float


RATE, LOSS, SIGNED = Range(0, 1), Range(0, math.inf), Range(-1, 1)
"""The ranges of accuracies, of losses, and of kappas and differences of rates."""


class Interval(NamedTuple):
    """A 95% confidence interval, in the unit of its metric; in JSON it is ``[low, high]``.

    Attributes:
        low: The lower bound.
        high: The upper bound.
    """

    low: float
    high: float


Z95 = 1.959963984540054  # the standard normal's 97.5% point
ALPHA = 0.05  # probability that a one-sided bound is wrong
BISECTION_STEPS = 60  # enough for full double precision
MAX_STAKE = 0.75  # largest fraction of the capital to bet at once


def wilson_interval(hits: int, count: int, z: float = Z95) -> Interval:
    """Return Wilson's score interval of a proportion (Wilson, 1927, JASA 22:209-212); 95% for the default `z`.

    >>> wilson_interval(9, 10)
    Interval(low=0.5958..., high=0.9821...)
    """
    if count == 0:
        return Interval(0.0, 1.0)
    p = hits / count
    scale = 1 + z**2 / count
    center = (p + z**2 / (2 * count)) / scale
    half = z / scale * math.sqrt(p * (1 - p) / count + z**2 / (4 * count**2))
    low, high = max(0.0, center - half), min(1.0, center + half)
    return Interval(low if hits else 0.0, high if hits < count else 1.0)  # exact at 0 and 1, despite rounding


def scaled_interval(value: float, error: float, units: int, of: Range) -> Interval:
    """Return the 95% interval of a metric inside its range `of`, from its standard `error` that `units` determine.

    Errors of a metric near an end of its range are skewed: one is more likely to look better than it is, and then has a
    small standard error. So the interval is symmetric on the scale of log(x) or, between two ends, of
    log(x / (1 - x)), as is usual for the area under the ROC curve (Pepe, 2003, The Statistical Evaluation of Medical
    Tests, section 5.2). As few images or groups determine a standard error poorly, it is that of Student's t (Cameron
    and Miller, 2015, J. Hum. Resour. 50:317-372).

    >>> scaled_interval(0.975, 0.01, 240, RATE)
    Interval(low=0.945..., high=0.988...)
    >>> scaled_interval(0.1, 0.05, 12, LOSS)
    Interval(low=0.033..., high=0.300...)
    """
    half, (low, high) = t_quantile(units - 1) * error, of
    if math.isinf(high):
        factor = math.exp(min(half / (value - low), 700))
        return Interval(low + (value - low) / factor, low + (value - low) * factor)
    odds = (value - low) / (high - value)
    factor = math.exp(min(half * (high - low) / ((value - low) * (high - value)), 300))
    return Interval(
        *(low + (high - low) * other_odds / (1 + other_odds) for other_odds in (odds / factor, odds * factor))
    )


@lru_cache
def t_quantile(df: int) -> float:
    """Return the 97.5% point of Student's t with `df` degrees of freedom, the normal one for a thousand or more.

    By bisection of its distribution for whole numbers (Abramowitz and Stegun, 1964, 26.7.3 and 26.7.4), since SciPy may
    not be installed.

    >>> [round(t_quantile(df), 3) for df in (1, 2, 5, 30)]
    [12.706, 4.303, 2.571, 2.042]
    """
    if df >= 1000:
        return Z95

    def rejected(angle: float) -> bool:
        odd = df % 2
        term, total = math.cos(angle) if odd else 1.0, 0.0
        for k in range(odd, df - 1, 2):
            total += term
            term *= (k + 1) / (k + 2) * math.cos(angle) ** 2
        inside = math.sin(angle) * total
        return (2 / math.pi * (angle + inside) if odd else inside) > 1 - ALPHA

    return math.sqrt(df) * math.tan(_find_end(0.0, math.pi / 2, rejected))


def subtract_intervals(p: float, first: Interval, q: float, second: Interval) -> Interval:
    """Return the interval of ``p - q`` from the intervals of the independent proportions p and q.

    The squared distances of their ends from p and q are added; with Wilson's intervals, it is Newcombe's (1998, Stat.
    Med. 17:873-890, method 10). For positively correlated proportions, it is wider than necessary (Zou and Donner,
    2008, Stat. Med. 27:1693-1702).

    >>> subtract_intervals(0.8, wilson_interval(56, 70), 0.6, wilson_interval(48, 80))
    Interval(low=0.0524..., high=0.3338...)
    """
    return Interval(
        p - q - math.hypot(p - first.low, second.high - q),
        p - q + math.hypot(first.high - p, q - second.low),
    )


def paired_difference_interval(only_first: int, only_second: int, count: int, z: float = Z95) -> Interval:
    """Return the interval of the second proportion minus the first, both measured on the same `count` images.

    `only_first` and `only_second` images count only in the first or only in the second proportion. Tango, 1998, Stat.
    Med. 17:891-908: the differences that a score test does not reject; at 0 it is McNemar's test. The interval has a
    positive width even without any disagreement.

    >>> paired_difference_interval(7, 1, 21)
    Interval(low=-0.5172..., high=-0.0260...)
    """
    if not count:
        return Interval(-1.0, 1.0)
    estimate = (only_second - only_first) / count

    def rejected(delta: float) -> bool:
        b = (2 * count - only_second + only_first) * delta - only_second - only_first
        c = -only_first * delta * (1 - delta)
        # maximum likelihood estimate of P(only first), given delta
        p = (math.sqrt(max(b * b - 8 * count * c, 0.0)) - b) / (4 * count)
        variance = max(2 * p + delta * (1 - delta), 0.0) / count
        return (estimate - delta) ** 2 > z**2 * variance

    return Interval(_find_end(estimate, -1.0, rejected), _find_end(estimate, 1.0, rejected))


def _find_end(inside: float, outside: float, rejected: Callable[[float], bool]) -> float:
    """Return the last point from `inside` toward `outside` that is not rejected, by bisection."""
    if not rejected(outside):
        return outside
    for _ in range(BISECTION_STEPS):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if rejected(middle) else (middle, outside)
    return inside


def binomial_cdf(misses: int, count: int, fraction: float) -> float:
    """Return the binomial probability of at most `misses` among `count` trials, each with probability `fraction`.

    >>> round(binomial_cdf(0, 299, 0.01), 3), round(binomial_cdf(1, 2, 0.5), 3)
    (0.05, 0.75)
    """
    if misses >= count or fraction <= 0:
        return 1.0
    if fraction >= 1:
        return 0.0
    is_below = misses <= count * fraction  # the mean; otherwise the other side is summed
    k, step = (misses, -1) if is_below else (misses + 1, 1)
    odds = fraction / (1 - fraction)
    term, total = _binomial_probability(k, count, fraction), 0.0
    while term > 1e-17 * total:  # falling from here on
        total += term
        term *= k / (count - k + 1) / odds if is_below else (count - k) / (k + 1) * odds
        k += step
    return min(1.0, total) if is_below else max(0.0, 1 - total)


def iterate_binomial_cdf(misses: Iterable[int], counts: Iterable[int], fraction: float) -> Iterator[float]:
    """Yield `binomial_cdf` for pairs of misses and counts with nondecreasing counts; `fraction` is in (0, 1).

    Each value is computed from the previous one, in as many steps as the pairs differ: one more trial lowers
    P(X <= m) by `fraction` P(X = m), and one more miss raises it by P(X = m + 1).

    >>> [round(p, 3) for p in iterate_binomial_cdf([0, 0, 1], [0, 299, 299], 0.01)]
    [1.0, 0.05, 0.199]
    """
    total, m, n = 1.0, 0, 0
    for next_misses, next_count in zip(misses, counts, strict=True):
        total -= fraction * math.fsum(_binomial_probability(m, k, fraction) for k in range(n, next_count))
        n = next_count
        total += math.fsum(_binomial_probability(k, n, fraction) for k in range(m + 1, next_misses + 1))
        total -= math.fsum(_binomial_probability(k, n, fraction) for k in range(next_misses + 1, m + 1))
        m = next_misses
        yield min(max(total, 0.0), 1.0)


def _binomial_probability(misses: int, count: int, fraction: float) -> float:
    """Return the probability of exactly `misses` among `count` trials; `fraction` is in (0, 1)."""
    if misses > count:
        return 0.0
    log_choose = math.lgamma(count + 1) - math.lgamma(misses + 1) - math.lgamma(count - misses + 1)
    return math.exp(log_choose + misses * math.log(fraction) + (count - misses) * math.log1p(-fraction))


def lower_bound(hits: int, count: int, alpha: float = ALPHA) -> float:
    """Return the exact lower bound of a proportion at confidence 1 - `alpha` (Clopper and Pearson, 1934).

    >>> round(lower_bound(299, 299), 3), lower_bound(0, 10)
    (0.99, 0.0)
    """
    if not hits:
        return 0.0
    low, high = 0.0, hits / count
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if binomial_cdf(count - hits, count, 1 - middle) > alpha else (middle, high)
    return low


def exact_interval(hits: int, count: int, tail: float = ALPHA / 2) -> Interval:
    """Return the exact interval of a proportion (Clopper and Pearson, 1934), either end wrong with probability `tail`.

    >>> exact_interval(9, 10)
    Interval(low=0.5549..., high=0.9974...)
    """
    return Interval(lower_bound(hits, count, tail), 1 - lower_bound(count - hits, count, tail))


def bounded_mean_interval(values: Sequence[float]) -> Interval:
    """Return a 95% interval of the mean of `values` in [0, 1], independent and in a random order.

    It is valid for any number of values from any distribution, and shorter the less they vary. It excludes the means
    against which a gambler, betting on each value according to the earlier ones, would have multiplied the initial
    capital by 2 / `ALPHA` (Waudby-Smith and Ramdas, 2024, JRSS B 86:1-27).

    >>> bounded_mean_interval([0.8, 0.9, 1.0, 0.7] * 10)
    Interval(low=0.7..., high=0.9...)
    """
    if not values:
        return Interval(0.0, 1.0)
    bets: list[float] = []
    variance, total, squares = 0.25, 0.5, 0.25
    for number, value in enumerate(values, 2):
        bets.append(math.sqrt(2 * math.log(2 / ALPHA) / (len(values) * variance)))
        total += value
        squares += (value - total / number) ** 2
        variance = squares / number

    def rejected(m: float, sign: int) -> bool:
        log_capital, limit = 0.0, MAX_STAKE / max(m if sign > 0 else 1 - m, 1e-12)
        for bet, value in zip(bets, values, strict=True):
            log_capital += math.log1p(sign * min(bet, limit) * (value - m))
            if log_capital >= math.log(2 / ALPHA):
                return True
        return False

    average = sum(values) / len(values)
    low = _find_end(average, 0.0, lambda m: rejected(m, 1))
    return Interval(low, _find_end(average, 1.0, lambda m: rejected(m, -1)))


def anytime_interval(hits: float, count: int) -> Interval:
    """Return an interval of a proportion that holds at all counts at once with probability 95%.

    It may be computed after every image, and counting may stop because of it. It excludes each proportion under which
    the hits are 1 / `ALPHA` times less likely than under a uniform mixture of all proportions (Robbins, 1970, Ann.
    Math. Stat. 41:1397-1409), and is about 1.5 times as wide as the exact interval. `hits` may be a sum of scores
    between 0 and 1: the likelihood ratio is convex in the scores, so its mean is at most its mean for hits and misses.

    >>> anytime_interval(9, 10)
    Interval(low=0.4548..., high=0.9995...)
    """
    if not count:
        return Interval(0.0, 1.0)
    log_mixture = math.lgamma(hits + 1) + math.lgamma(count - hits + 1) - math.lgamma(count + 2)

    def rejected(p: float) -> bool:
        if (p <= 0 and hits) or (p >= 1 and hits < count):
            return True
        log_likelihood = (hits * math.log(p) if hits else 0.0) + (
            (count - hits) * math.log1p(-p) if hits < count else 0.0
        )
        return log_mixture - log_likelihood > -math.log(ALPHA)

    return Interval(_find_end(hits / count, 0.0, rejected), _find_end(hits / count, 1.0, rejected))
