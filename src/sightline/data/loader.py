"""Batches of uint8 pixels, shuffled by seed and epoch alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline.data.types import Subset
from sightline.seeding import make_generator


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch: `positions` in the subset int64 [n], `pixels` uint8 [n, H, W, C], `labels` int32 [n]."""

    positions: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int32]


def epoch_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of `count` images in `epoch`: a permutation, int64 [count]."""
    return make_generator(seed, "order", epoch).permutation(count)


def iterate_batches(
    samples: Subset, size: int, order: NDArray[np.int64] | None = None, start: int = 0
) -> Iterator[Batch]:
    """Yield batches of `size` images in `order` (default: as stored), from step `start` on; the last may be smaller.

    The next batch is gathered in a background thread while the current one is in use.
    """
    sequence = np.arange(len(samples)) if order is None else order
    starts = range(start * size, len(sequence), size)

    def gather(at: int) -> Batch:
        positions = sequence[at : at + size]
        return Batch(positions, samples.take(positions), samples.labels[positions])

    with ThreadPoolExecutor(1) as pool:
        pending = None
        for at in starts:
            next_batch = pool.submit(gather, at)
            if pending is not None:
                yield pending.result()
            pending = next_batch
        if pending is not None:
            yield pending.result()
