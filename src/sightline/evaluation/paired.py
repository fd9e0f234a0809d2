"""Paired comparison of two classifiers on the same images: McNemar's exact test, and Tango's interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline import intervals
from sightline.records import Interval

LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Contest:
    """The second of two classifiers against the first, on the `count` images that both were evaluated on.

    `only_first` and `only_second` count the images that only one of them classified correctly. `difference` is the
    second accuracy minus the first; `verdict` is about the second: "better", "worse" or "cannot tell".
    """

    count: int
    first: float
    second: float
    only_first: int
    only_second: int
    p_value: float
    difference: float
    interval: Interval | None
    verdict: str


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided exact p-value under equally likely disagreements of both kinds (McNemar, 1947).

    >>> mcnemar(0, 5), mcnemar(3, 3)
    (0.0625, 1.0)
    """
    count = only_first + only_second
    return min(1.0, 2 * intervals.at_most(min(only_first, only_second), count, 0.5)) if count else 1.0


def contest(first: NDArray[np.bool_], second: NDArray[np.bool_], *, tests: int = 1) -> Contest:
    """Compare two classifiers by which images they classified correctly, bool [N] each, in the same order.

    `tests` is the number of comparisons in the family: at most 5% for any false verdict among them (Bonferroni).
    """
    count = len(first)
    lost, won = int((first & ~second).sum()), int((~first & second).sum())
    p = mcnemar(lost, won)
    interval = intervals.paired_difference(lost, won, count) if count else None
    verdict = "cannot tell" if p * tests >= LEVEL else "better" if won > lost else "worse"
    shares = (float(first.mean()), float(second.mean()), (won - lost) / count) if count else (0.0, 0.0, 0.0)
    return Contest(count, shares[0], shares[1], lost, won, p, shares[2], interval, verdict)
