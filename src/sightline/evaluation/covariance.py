"""The covariance of features that may not fit in memory, read block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline.data.cache import release_pages

ROWS = 1024  # rows read at once: 5 MB with 1,280 features


@dataclass(frozen=True, slots=True)
class Covariance:
    """The mean float64 [F] and the covariance float64 [F, F] (divided by the count) of `count` rows of features."""

    count: int
    mean: NDArray[np.float64]
    matrix: NDArray[np.float64]


def iter_blocks(features: NDArray[np.float32], step: int = 1) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield copies of every `step`-th row of features [N, F] in blocks, with their positions; few are in memory."""
    for start in range(0, len(features), ROWS * step):
        block = slice(start, min(start + ROWS * step, len(features)), step)
        yield block, np.array(features[block], np.float32)
        release_pages(features)


def measure_covariance(features: NDArray[np.float32], step: int = 1) -> Covariance:
    """Return the covariance of every `step`-th row of features [N, F], without rows of NaN."""
    size = features.shape[1]
    count, total = 0, np.zeros(size)
    for _, rows in iter_blocks(features, step):
        valid = rows[~np.isnan(rows[:, 0])]
        count += len(valid)
        total += valid.sum(0, dtype=np.float64)
    mean = total / max(count, 1)
    matrix = np.zeros((size, size))
    for _, rows in iter_blocks(features, step):
        centered = rows[~np.isnan(rows[:, 0])] - mean.astype(np.float32)
        matrix += centered.T @ centered
    return Covariance(count, mean, matrix / max(count, 1))
