"""Batches of uint8 pixels in an order that the seed, the epoch and nothing else decides."""

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
    """`positions` int64 [n] in the part, `pixels` uint8 [n, H, W, C], `labels` int32 [n]."""

    positions: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int32]


def epoch_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order in which `count` pictures are seen in `epoch`: int64 [count], a permutation."""
    return generator(seed, "order", epoch).permutation(count)


def batches(samples: Samples, size: int, order: NDArray[np.int64] | None = None, start: int = 0) -> Iterator[Batch]:
    """Yield batches of `size` pictures in `order` (default: as they lie), from step `start` on; the last may be small.

    The next batch is gathered in another thread while the present one is used.
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
