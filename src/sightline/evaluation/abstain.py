"""Answering only where it is sure: risk against coverage, and the confidence that keeps a wanted precision.

A threshold is chosen on validation images, never on those that it is judged by: chosen and judged on the same images,
the best of many thresholds always looks better than it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline import intervals
from sightline.errors import UsageError, plural
from sightline.records import Interval

USUAL = (0.99, 0.95, 0.9)  # target precisions that a new run is tried at, the strictest first


@dataclass(frozen=True, slots=True)
class Curve:
    """Risk (share of wrong answers) where the surest share `coverage` is answered, float64 [N] each; mean `aurc`."""

    coverage: NDArray[np.float64]
    risk: NDArray[np.float64]
    aurc: float


@dataclass(frozen=True, slots=True)
class Threshold:
    """The smallest `confidence` that reaches `target`, None if none does; what it did on `count` validation images.

    `precision` has Wilson's 95% `interval` and the exact one-sided 95% `lower_bound`; `share_answered` is the coverage.
    A `conservative` threshold is one whose lower bound reaches the target; `given_up` is the coverage that it costs:
    how much more of the validation images would be answered if the precision alone had to reach the target. `note` says
    how far to trust it.
    """

    target: float
    confidence: float | None
    precision: float | None
    interval: Interval | None
    share_answered: float
    answered: int
    count: int
    note: str
    lower_bound: float | None = None
    conservative: bool = True
    given_up: float = 0.0


@dataclass(frozen=True, slots=True)
class Reached:
    """What answering comes to on images that had no part in choosing the threshold.

    Of `count` images the fraction `coverage` is answered, `answered` in number, with this `precision`: its Wilson 95%
    `interval` and exact one-sided 95% `lower_bound` (None where nothing is answered). `met`: whether that bound reaches
    the target.
    """

    count: int
    answered: int
    coverage: float
    precision: float | None
    interval: Interval | None
    lower_bound: float | None
    met: bool


@dataclass(frozen=True, slots=True)
class Selective:
    """A `threshold` that was chosen on validation images, and what it reached on the others."""

    threshold: Threshold
    reached: Reached | None


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
    confidences: NDArray[np.float32], correct: NDArray[np.bool_], target_precision: float, *, conservative: bool = True
) -> Threshold:
    """Return the smallest confidence from which on the fraction of right answers is at least `target_precision`.

    `confidences` float32 [N] and `correct` bool [N] are of validation images. If `conservative`, thresholds are tried
    from the strictest on, starting where enough images are answered to show anything, and the last is kept for which an
    exact binomial test at 5% rejects that the true precision is lower (Clopper and Pearson, 1934; fixed-sequence
    testing as in Angelopoulos et al., 2021, arXiv:2110.01052): it then falls short for one validation split in twenty.
    0.99 takes 299 images without a mistake. Otherwise the fraction among the images seen counts: on new images it falls
    short about as often as not, all the more where few were answered.

    Raises `UsageError` for a target outside 0 to 1.
    """
    if not 0 < target_precision < 1:
        raise UsageError(f"The target precision must lie between 0 and 1, such as 0.99; got {target_precision}.")
    count = len(confidences)
    order = np.argsort(-confidences, kind="stable")
    sure, hits = confidences[order], np.cumsum(correct[order])
    ends = np.append(np.flatnonzero(np.diff(sure)), count - 1) if count else np.zeros(0, np.int64)
    answered, right = ends + 1, hits[ends]
    reached = np.flatnonzero(right >= target_precision * answered - 1e-9)
    best = likely = int(reached[-1]) if len(reached) else None
    if conservative:
        best = _shown(answered, right, target_precision)
    without = 0.0 if likely is None else float(answered[likely]) / count
    if best is None:
        note = _unreachable(target_precision, count, without, conservative=conservative)
        lost = without if conservative else 0.0
        return Threshold(target_precision, None, None, None, 0.0, 0, count, note, None, conservative, lost)
    kept, good = int(answered[best]), int(right[best])
    bound, interval = intervals.lower_bound(good, kept), intervals.wilson(good, kept)
    note = ""
    if bound < target_precision:
        note = (
            f"{kept} answered validation images show a precision of {bound:.3f} or more, no more than that: "
            "hold out more images, or choose a threshold with --conservative."
        )
    return Threshold(
        target_precision, float(sure[ends[best]]), good / kept, interval, kept / count, kept, count, note, bound,
        conservative, max(without - kept / count, 0.0) if conservative else 0.0,
    )  # fmt: skip


def _unreachable(target: float, count: int, without: float, *, conservative: bool) -> str:
    if not conservative:
        return f"No confidence reaches it on {plural(count, 'validation image')}."
    least = math.ceil(math.log(intervals.LEVEL) / math.log(target))
    more = f"; it takes {least} answered without a mistake" if count < least else ""
    note = f"No confidence is shown to reach it by {count} validation images{more}."
    if without:
        note += f" --no-conservative would answer {without:.1%} of them, and fall short on new images every other time."
    return note


def _shown(answered: NDArray[np.int64], right: NDArray[np.int64], target: float) -> int | None:
    best = None
    for i, (count, good) in enumerate(zip(answered.tolist(), right.tolist(), strict=True)):
        if intervals.at_most(0, count, 1 - target) > intervals.LEVEL:
            continue  # not even with no mistake
        if intervals.at_most(count - good, count, 1 - target) > intervals.LEVEL:
            break
        best = i
    return best


def reached(answered: NDArray[np.bool_], correct: NDArray[np.bool_], target: float | None) -> Reached:
    """Return what answering where `answered` is true comes to: bool [N] each, of images not used for the threshold."""
    count, kept, right = len(answered), int(answered.sum()), int((answered & correct).sum())
    bound = intervals.lower_bound(right, kept) if kept else None
    return Reached(
        count, kept, kept / max(count, 1), right / kept if kept else None,
        intervals.wilson(right, kept) if kept else None, bound,
        target is not None and bound is not None and bound >= target,
    )  # fmt: skip


def select(
    held_out: tuple[NDArray[np.float32], NDArray[np.bool_]], judged: tuple[NDArray[np.float32], NDArray[np.bool_]]
) -> Selective:
    """Choose a threshold for the strictest of the usual targets that validation images show, and try it on the others.

    Both are confidences float32 [N] and whether the answer is right, bool [N]. Where no target is shown, the threshold
    is that of the least one, without a confidence.
    """
    tried = [threshold_for(*held_out, target) for target in USUAL]
    threshold = next((t for t in tried if t.confidence is not None), tried[-1])
    if threshold.confidence is None:
        return Selective(threshold, None)
    return Selective(threshold, reached(judged[0] >= np.float32(threshold.confidence), judged[1], threshold.target))
