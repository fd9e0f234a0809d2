"""Percentile bootstrap: metrics of images resampled with replacement (Efron, 1979)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sightline.randomness import generator
from sightline.records import Figure, Interval

RESAMPLES = 2000
PER_CELL = 8  # images: below, drawing them one by one is faster than a binomial draw for each cell
FEWEST = 200  # resamples; with fewer, the ends of a 95% interval rest on a handful
BUDGET = 20_000_000  # images drawn in total, about a second
CHUNK = 100_000  # numbers in memory at once, so that they fit the processor's cache


def resamples(count: int, work: int = 1) -> int:
    """Return the affordable number of resamples of `count` images with `work` steps each; 0 if that is below 200.

    >>> resamples(10_000), resamples(10_000, 10), resamples(10_000, 1000)
    (2000, 200, 0)
    """
    affordable = min(RESAMPLES, BUDGET // max(count * work, 1))
    return affordable if affordable >= FEWEST else 0


def weights(count: int, number: int, seed: int, name: str) -> Iterator[NDArray[np.float64]]:
    """Yield `number` resamples of `count` images in batches, as how often each was drawn: float64 [r, count]."""
    step = max(1, CHUNK // max(count, 1))
    rng = generator(seed, "bootstrap", name)
    for start in range(0, number, step):
        rows = np.empty((min(step, number - start), count))
        for row in rows:
            row[:] = np.bincount(rng.integers(0, count, count, np.int32), minlength=count)
        yield rows


def means(values: NDArray[np.float64], seed: int, name: str) -> NDArray[np.float64]:
    """Return the means [R, M] of resampled rows of `values` [N, M]."""
    count = len(values)
    return np.concatenate([w @ values for w in weights(count, resamples(count) or FEWEST, seed, name)]) / count


def cells(counts: NDArray[np.int64], seed: int, name: str) -> NDArray[np.int64]:
    """Return resampled counts int64 [R, M] of `counts` [M]; resampling images is drawing from a multinomial."""
    total = int(counts.sum())
    number = resamples(total) or FEWEST
    if len(counts) * PER_CELL < total:
        return generator(seed, "bootstrap", name).multinomial(total, counts / total, number)
    cell = np.repeat(np.arange(len(counts)), counts)
    drawn = weights(total, number, seed, name)
    return np.concatenate([[np.bincount(cell, row, len(counts)) for row in rows] for rows in drawn]).astype(np.int64)


def ends(found: NDArray[np.float64]) -> Interval | None:
    """Return the 2.5th and 97.5th percentile of resampled values; None if too few are finite."""
    good = found[np.isfinite(found)]
    if len(good) < max(FEWEST, len(found) // 2):
        return None
    low, high = np.percentile(good, [2.5, 97.5])
    return Interval(float(low), float(high))


def figure(value: float, drawn: NDArray[np.float64], classes: int | None = None, note: str = "") -> Figure:
    """Return a metric with the interval of its resampled values [R], or with the reason why it has none.

    A perfect model is perfect in every resample: an interval of zero width would claim more than the images show.
    """
    good = drawn[np.isfinite(drawn)]
    if len(good) and good.min() == good.max():
        return Figure(value, None, "no interval: the same value in every resample", classes)
    found = ends(drawn)
    if found and found.low == found.high:
        return Figure(value, None, "no interval: the same value in nearly every resample", classes)
    return Figure(value, found, note if found else "no interval: too few images of each class", classes)
