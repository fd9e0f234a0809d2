"""Confidence intervals of proportions of images that come in groups, such as those of one patient or one sequence.

Images of one group depend on each other, so they carry less information than independent ones. The method is that of
Korn and Graubard (1998, Survey Methodology 24:193-201), in use for the health statistics of the United States (Parker
et al., 2017, Vital Health Stat. 2(175)): the exact interval of Clopper and Pearson for the effective number of images,

- which the variance between groups tells: p (1 - p) / v, with the linearized variance v of the ratio of two sums over
  groups, times (z / t)² for the few groups that v is estimated from, and at most the number of images,
- or, where every image is a hit or none is, so that v is 0 and tells nothing, as if all images of a group were copies
  of one: Kish's effective number of groups, the squared number of images divided by the sum of the squared numbers of
  each group (Kish, 1965, Survey Sampling). With G groups of one size and no error, the lower end is 0.025^(1/G), near
  1 - 3.7 / G: the rule of three (Hanley and Lippman-Hand, 1983, JAMA 249:1743-1745) for 97.5% and groups.

In the second case, a percentile bootstrap of groups has an interval of zero width, and it undercovers with few groups
(75% to 90% with 3 to 10 of them, for a stated 95%).
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from sightline.intervals import Interval

TAIL = 0.025  # probability that either end of a 95% interval is wrong
MAX_STEPS = 100  # of Newton's method, which takes about ten
MAX_TERMS = 1000  # of the continued fraction; it needs about the square root of the larger parameter
DIGITS = 10  # of an end, so that it is the same whichever other proportions are estimated with it
SMALLEST = 1e-300
TOLERANCE = 1e-13


def find_grouped_ends(
    hits: NDArray[np.floating], counts: NDArray[np.floating], tail: float = TAIL
) -> NDArray[np.float64]:
    """Return the lower and upper end of the interval of M proportions, float64 [2, M].

    Args:
        hits: The images of each of G groups that are hits, [G, M].
        counts: The images of each group that could be, [G, M].
        tail: The probability that the proportion is below the lower end, and that it is above the upper one.

    Returns:
        Both ends in [0, 1]; NaN where fewer than two groups have an image that counts.
    """
    hits, counts = hits.astype(np.float64), counts.astype(np.float64)
    ends = np.full((2, hits.shape[1]), np.nan)
    groups, total = (counts > 0).sum(0), counts.sum(0)
    chosen = np.flatnonzero(groups > 1)
    if not len(chosen):
        return ends
    hits, counts, groups, total = hits[:, chosen], counts[:, chosen], groups[chosen], total[chosen]
    p = hits.sum(0) / total
    uniform = (p == 0) | (p == 1)
    variance = ((hits - p * counts) ** 2).sum(0) * groups / (groups - 1) / total**2
    size = np.divide(p * (1 - p), variance, out=total.copy(), where=variance > 0)
    size = np.minimum(size * (NormalDist().inv_cdf(1 - tail) / student_quantile(1 - tail, groups - 1)) ** 2, total)
    size = np.where(uniform, total**2 / (counts**2).sum(0), size)
    some, more = p > 0, p < 1
    low, high = np.zeros(len(chosen)), np.ones(len(chosen))
    a = np.concatenate([(p * size)[some], (p * size + 1)[more]])
    b = np.concatenate([((1 - p) * size + 1)[some], ((1 - p) * size)[more]])
    tails = np.repeat([tail, 1 - tail], [some.sum(), more.sum()])
    low[some], high[more] = np.split(beta_quantile(tails, a, b), [some.sum()])
    ends[:, chosen] = low, high
    return ends.round(DIGITS)


def estimate_grouped_proportions(
    hits: NDArray[np.floating], counts: NDArray[np.floating], tail: float = TAIL
) -> list[Interval | None]:
    """Return the intervals of M proportions, as `find_grouped_ends` does; None where it has none."""
    low, high = find_grouped_ends(hits, counts, tail).tolist()
    return [None if math.isnan(a) else Interval(a, b) for a, b in zip(low, high, strict=True)]


def student_quantile(probability: float, degrees: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the quantiles of Student's t distribution with `degrees` [M] of freedom, for a `probability` above 1/2."""
    distinct, places = np.unique(degrees, return_inverse=True)
    return _distinct_quantiles(probability, tuple(distinct.tolist()))[places]


@lru_cache(64)  # each class, slice and threshold of an evaluation has about as many groups as the others
def _distinct_quantiles(probability: float, degrees: tuple[int, ...]) -> NDArray[np.float64]:
    n = np.array(degrees)
    y = beta_quantile(2 * (1 - probability), n / 2, np.full(len(n), 0.5))
    quantiles: NDArray[np.float64] = np.sqrt(n * (1 - y) / y)
    return quantiles


def beta_quantile(
    probability: float | NDArray[np.float64], a: NDArray[np.float64], b: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the quantiles of beta distributions with parameters `a` and `b` [M], by Newton's method in a bracket.

    `probability` is one for all, or one for each [M].
    """
    log_beta = np.array([math.lgamma(i) + math.lgamma(j) - math.lgamma(i + j) for i, j in zip(a, b, strict=True)])
    low, high, x = np.zeros(len(a)), np.ones(len(a)), a / (a + b)
    for _ in range(MAX_STEPS):
        excess = _compute_beta_cdf(x, a, b, log_beta) - probability
        low, high = np.where(excess < 0, x, low), np.where(excess < 0, high, x)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            step = x - excess * np.exp(log_beta - (a - 1) * np.log(x) - (b - 1) * np.log1p(-x))
        new = np.where((step > low) & (step < high), step, (low + high) / 2)
        done = bool(np.all(np.abs(new - x) <= TOLERANCE))
        x = new
        if done:
            break
    return x


def _compute_beta_cdf(
    x: NDArray[np.float64], a: NDArray[np.float64], b: NDArray[np.float64], log_beta: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the regularized incomplete beta function at `x` in (0, 1), by its continued fraction (DLMF 8.17.22)."""
    is_far = x > (a + 1) / (a + b + 2)  # where the fraction converges slowly, and that of 1 - x fast
    x, a, b = np.where(is_far, 1 - x, x), np.where(is_far, b, a), np.where(is_far, a, b)
    front = np.exp(a * np.log(np.maximum(x, SMALLEST)) + b * np.log1p(-x) - log_beta) / a
    # Lentz's method: the fraction is the product of the ratios of successive convergents
    c, d = np.ones_like(x), 1 / _avoid_zero(1 - (a + b) * x / (a + 1))
    product = d
    for m in range(1, MAX_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _avoid_zero(1 + term * d)
            c = _avoid_zero(1 + term / c)
            product = product * c * d
        if np.all(np.abs(c * d - 1) < TOLERANCE):
            break
    cdf = front * product
    return np.where(is_far, 1 - cdf, cdf)


def _avoid_zero(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values + SMALLEST  # which changes no other value
