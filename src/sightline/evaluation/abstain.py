"""Answering only where it is sure: risk against coverage, and the confidence that keeps a wanted precision."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline import intervals
from sightline.errors import UsageError
from sightline.records import Interval

CHANCE = 0.05  # that a guarded threshold misses its target


@dataclass(frozen=True, slots=True)
class Curve:
    """Risk (share of wrong answers) where the surest share `coverage` is answered, float64 [N] each; mean `aurc`."""

    coverage: NDArray[np.float64]
    risk: NDArray[np.float64]
    aurc: float


@dataclass(frozen=True, slots=True)
class Threshold:
    """The smallest `confidence` that reaches `target`, None if none does; what it did on the `count` pictures seen.

    `precision` has Wilson's 95% `interval`; `note` says how far to trust it.
    """

    target: float
    confidence: float | None
    precision: float | None
    interval: Interval | None
    share_answered: float
    answered: int
    count: int
    note: str


def risk_coverage(confidences: NDArray[np.float32], correct: NDArray[np.bool_]) -> Curve:
    """Return the risk-coverage curve (El-Yaniv and Wiener, 2010) and the area under it (Geifman et al., 2019).

    Pictures of equal confidence are answered together: each point among them has the risk of their end, and the part
    between is what a random order would give on average.
    """
    count = len(confidences)
    order = np.argsort(-confidences, kind="stable")
    wrong = ~correct[order]
    _, group, sizes = np.unique(-confidences[order], return_inverse=True, return_counts=True)
    shared = np.bincount(group, wrong, len(sizes)) / np.maximum(sizes, 1)
    risk = np.cumsum(shared[group]) / np.arange(1, count + 1)
    return Curve(np.arange(1, count + 1) / max(count, 1), risk, float(risk.mean()) if count else math.nan)


def threshold_for(
    confidences: NDArray[np.float32], correct: NDArray[np.bool_], target_precision: float, *, guard: bool = False
) -> Threshold:
    """Return the smallest confidence from which on the share of right answers is at least `target_precision`.

    Without `guard`, the share among the pictures seen counts: on new pictures it falls short about as often as not, all
    the more where few were answered. With `guard`, thresholds are tried from the strictest on, starting where enough
    pictures are answered to show anything, and the last is kept for which an exact binomial test at 5% refuses that the
    true precision is lower (Clopper and Pearson, 1934; fixed-sequence testing as in Angelopoulos et al., 2021,
    arXiv:2110.01052): it then falls short for one validation part in twenty. 0.99 takes 299 pictures without a mistake.

    Raises `UsageError` for a target outside 0 to 1.
    """
    if not 0 < target_precision < 1:
        raise UsageError(f"The target precision must lie between 0 and 1, such as 0.99; got {target_precision}.")
    count = len(confidences)
    order = np.argsort(-confidences, kind="stable")
    sure, hits = confidences[order], np.cumsum(correct[order])
    ends = np.append(np.flatnonzero(np.diff(sure)), count - 1) if count else np.zeros(0, np.int64)
    answered = ends + 1
    if guard:
        best = _guarded(answered, hits[ends], target_precision)
    else:
        reached = np.flatnonzero(hits[ends] >= target_precision * answered - 1e-9)
        best = int(reached[-1]) if len(reached) else None
    if best is None:
        note = "No confidence reaches it" + (" with certainty" if guard else "") + f" on {count} validation pictures."
        return Threshold(target_precision, None, None, None, 0.0, 0, count, note)
    kept, right = int(answered[best]), int(hits[ends[best]])
    interval = intervals.wilson(right, kept)
    note = ""
    if not guard and interval.low < target_precision:
        note = (
            f"{kept} answered validation pictures show a precision of {interval.low:.3f} or more, no more than that: "
            "hold out more pictures, or ask for a guarded threshold."
        )
    return Threshold(target_precision, float(sure[ends[best]]), right / kept, interval, kept / count, kept, count, note)


def _guarded(answered: NDArray[np.int64], hits: NDArray[np.int64], target: float) -> int | None:
    best = None
    for i, (count, right) in enumerate(zip(answered.tolist(), hits.tolist(), strict=True)):
        if intervals.at_most(0, count, 1 - target) > CHANCE:
            continue  # not even with no mistake
        if intervals.at_most(count - right, count, 1 - target) > CHANCE:
            break
        best = i
    return best
