"""Batches of uint8 pixels, shuffled by seed and epoch alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline.randomness import generator
from sightline.records import Samples


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch: `positions` in the subset int64 [n], `pixels` uint8 [n, H, W, C], `labels` int32 [n]."""

    positions: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int32]


def epoch_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of `count` images in `epoch`: a permutation, int64 [count]."""
    return generator(seed, "order", epoch).permutation(count)


def batches(samples: Samples, size: int, order: NDArray[np.int64] | None = None, start: int = 0) -> Iterator[Batch]:
    """Yield batches of `size` images in `order` (default: as stored), from step `start` on; the last may be smaller.

    The next batch is gathered in a background thread while the current one is in use.
    """
    sequence = np.arange(len(samples)) if order is None else order
    starts = range(start * size, len(sequence), size)

    def gather(at: int) -> Batch:
        positions = sequence[at : at + size]
        return Batch(positions, samples.take(positions), samples.labels[positions])

    with ThreadPoolExecutor(1) as pool:
        ahead = None
        for at in starts:
            following = pool.submit(gather, at)
            if ahead is not None:
                yield ahead.result()
            ahead = following
        if ahead is not None:
            yield ahead.result()
