"""Paired comparison of two classifiers on the same images: McNemar's exact test, and Tango's interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline import intervals
from sightline.intervals import Interval

LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """The second of two classifiers against the first, on the `count` images that both were evaluated on.

    `only_first_correct` and `only_second_correct` count the images that only one of them classified correctly.
    `difference` is the second accuracy minus the first; `verdict` is about the second: "better", "worse" or "no
    significant difference".
    """

    count: int
    first_accuracy: float
    second_accuracy: float
    only_first_correct: int
    only_second_correct: int
    p_value: float
    difference: float
    difference_interval: Interval | None
    verdict: str


def mcnemar_p_value(only_first_correct: int, only_second_correct: int) -> float:
    """Return the two-sided exact p-value under equally likely disagreements of both kinds (McNemar, 1947).

    >>> mcnemar_p_value(0, 5), mcnemar_p_value(3, 3)
    (0.0625, 1.0)
    """
    count = only_first_correct + only_second_correct
    return (
        min(1.0, 2 * intervals.binomial_cdf(min(only_first_correct, only_second_correct), count, 0.5)) if count else 1.0
    )


def compare_paired(first: NDArray[np.bool_], second: NDArray[np.bool_], *, tests: int = 1) -> PairedComparison:
    """Compare two classifiers by which images they classified correctly, bool [N] each, in the same order.

    `tests` is the number of comparisons in the family: at most 5% for any false verdict among them (Bonferroni).
    """
    count = len(first)
    only_first_correct, only_second_correct = int((first & ~second).sum()), int((~first & second).sum())
    p = mcnemar_p_value(only_first_correct, only_second_correct)
    interval = intervals.paired_difference_interval(only_first_correct, only_second_correct, count) if count else None
    better = "better" if only_second_correct > only_first_correct else "worse"
    verdict = "no significant difference" if p * tests >= LEVEL else better
    accuracies = (
        (float(first.mean()), float(second.mean()), (only_second_correct - only_first_correct) / count)
        if count
        else (0.0, 0.0, 0.0)
    )
    return PairedComparison(
        count,
        accuracies[0],
        accuracies[1],
        only_first_correct,
        only_second_correct,
        p,
        accuracies[2],
        interval,
        verdict,
    )
