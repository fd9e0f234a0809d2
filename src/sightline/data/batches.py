"""Batches of uint8 pixels, shuffled only by seed and epoch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sightline.data.types import Subset
from sightline.seeding import make_generator

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch: `positions` in the subset, int64 [n], with the `pixels` and `labels`, [n, ...], of `Subset`."""

    positions: NDArray[np.int64]
    pixels: NDArray[Any]
    labels: NDArray[Any]


def epoch_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of `count` images in `epoch`: a permutation, int64 [count]."""
    return make_generator(seed, "order", epoch).permutation(count)


def iterate_slices(count: int, size: int) -> Iterator[slice]:
    """Yield slices of `size` rows that cover `count` rows in order; the last may be smaller."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def iterate_batches(
    samples: Subset, size: int, order: NDArray[np.int64] | None = None, start: int = 0
) -> Generator[Batch, None, None]:
    """Yield batches of `size` images in `order` (default: as stored), from step `start` on; the last may be smaller.

    The next batch is gathered in a background thread while the current one is in use.
    """
    sequence = np.arange(len(samples)) if order is None else order
    starts = range(start * size, len(sequence), size)

    def gather(at: int) -> Batch:
        positions = sequence[at : at + size]
        return Batch(positions, samples.take(positions), samples.labels[positions])

    return load_ahead((partial(gather, at) for at in starts), threads=1, ahead=1)


def load_ahead(tasks: Iterable[Callable[[], T]], threads: int, ahead: int) -> Generator[T, None, None]:
    """Yield the results of `tasks` in order; while one is in use, `threads` threads run at most the next `ahead`."""
    with running_ahead(tasks, threads, ahead) as results:
        yield from results


@contextmanager
def running_ahead(tasks: Iterable[Callable[[], T]], threads: int, ahead: int) -> Iterator[Iterator[T]]:
    """Start the first of `tasks` as `load_ahead` does and yield their results; on exit, wait for running tasks."""
    remaining, pending = iter(tasks), deque[Future[T]]()
    pool = ThreadPoolExecutor(threads)

    def start() -> None:
        for task in islice(remaining, ahead + 1 - len(pending)):
            pending.append(pool.submit(task))

    def iterate() -> Iterator[T]:
        while pending:
            yield pending.popleft().result()
            start()

    try:
        start()
        yield iterate()
    finally:
        pool.shutdown(cancel_futures=True)
