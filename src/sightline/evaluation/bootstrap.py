"""Percentile bootstrap: metrics of images resampled with replacement (Efron, 1979)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sightline.evaluation.results import Metric
from sightline.intervals import Interval
from sightline.seeding import make_generator

RESAMPLES = 2000
MIN_PER_CELL = 8  # images: below, drawing them one by one is faster than a binomial draw for each cell
MIN_RESAMPLES = 200  # resamples; with fewer, the ends of a 95% interval rest on a handful
BUDGET = 20_000_000  # images drawn in total, about a second
CHUNK = 100_000  # numbers in memory at once, so that they fit the processor's cache


def count_resamples(count: int, work: int = 1) -> int:
    """Return the affordable number of resamples of `count` images with `work` steps each; 0 if that is below 200.

    >>> count_resamples(10_000), count_resamples(10_000, 10), count_resamples(10_000, 1000)
    (2000, 200, 0)
    """
    affordable = min(RESAMPLES, BUDGET // max(count * work, 1))
    return affordable if affordable >= MIN_RESAMPLES else 0


def draw_weights(
    count: int, number: int, seed: int, name: str, groups: NDArray[np.int64] | None = None
) -> Iterator[NDArray[np.float64]]:
    """Yield `number` resamples of `count` images in batches, as how often each was drawn: float64 [r, count].

    With `groups` [count], from 0, whole groups are drawn: images of one group depend on each other.
    """
    step = max(1, CHUNK // max(count, 1))
    rng = make_generator(seed, "bootstrap", name)
    size = count if groups is None else int(groups.max(initial=-1)) + 1
    for start in range(0, number, step):
        rows = np.empty((min(step, number - start), count))
        for row in rows:
            weights = np.bincount(rng.integers(0, size, size, np.int32), minlength=size)
            row[:] = weights if groups is None else weights[groups]
        yield rows


def resample_sums(values: NDArray[np.float64], seed: int, name: str) -> NDArray[np.float64]:
    """Return the sums [R, M] of resampled rows of `values` [N, M]."""
    number = count_resamples(len(values)) or MIN_RESAMPLES
    return np.concatenate([w @ values for w in draw_weights(len(values), number, seed, name)])


def resample_means(
    values: NDArray[np.float64], seed: int, name: str, groups: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Return the means [R, M] of resampled rows of `values` [N, M], or of resampled `groups` of rows."""
    count = len(values)
    if groups is None:
        return resample_sums(values, seed, name) / count
    batches = draw_weights(count, count_resamples(count) or MIN_RESAMPLES, seed, name, groups)
    return np.concatenate([w @ values / w.sum(1, keepdims=True) for w in batches])


def resample_counts(counts: NDArray[np.int64], seed: int, name: str) -> NDArray[np.int64]:
    """Return resampled counts int64 [R, M] of `counts` [M]; resampling images is drawing from a multinomial."""
    total = int(counts.sum())
    number = count_resamples(total) or MIN_RESAMPLES
    if len(counts) * MIN_PER_CELL < total:
        return make_generator(seed, "bootstrap", name).multinomial(total, counts / total, number)
    cell = np.repeat(np.arange(len(counts)), counts)
    batches = draw_weights(total, number, seed, name)
    return np.concatenate([[np.bincount(cell, row, len(counts)) for row in rows] for rows in batches]).astype(np.int64)


def find_percentiles(values: NDArray[np.float64]) -> Interval:
    """Return the 2.5th and 97.5th percentile of resampled values [R]."""
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(low), float(high))


def percentile_interval(values: NDArray[np.float64]) -> Interval | None:
    """Return the 2.5th and 97.5th percentile of resampled values; None if too few are finite."""
    finite = values[np.isfinite(values)]
    if len(finite) < max(MIN_RESAMPLES, len(values) // 2):
        return None
    return find_percentiles(finite)


def make_metric(value: float, resampled: NDArray[np.float64], classes: int | None = None, note: str = "") -> Metric:
    """Return a metric with the interval of its resampled values [R], or with the reason why it has none.

    A perfect model is perfect in every resample: an interval of zero width would claim more than the images show.
    """
    finite = resampled[np.isfinite(resampled)]
    if len(finite) and finite.min() == finite.max():
        return Metric(value, None, "no interval: the same value in every resample", classes)
    interval = percentile_interval(resampled)
    if interval and interval.low == interval.high:
        return Metric(value, None, "no interval: the same value in nearly every resample", classes)
    return Metric(value, interval, note if interval else "no interval: too few images of each class", classes)
