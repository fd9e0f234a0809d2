"""Selective prediction: the risk-coverage curve, and the confidence threshold for a target precision.

A threshold is chosen on validation images and evaluated on others: on the images that it was chosen on, the best of
many thresholds always looks better than it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline import intervals
from sightline.errors import UsageError, plural
from sightline.records import Interval

USUAL = (0.99, 0.95, 0.9)  # target precisions to try for a new run, strictest first


@dataclass(frozen=True, slots=True)
class Curve:
    """The error rate (`risk`) at each `coverage`, float64 [N] each, and the area under the curve, `aurc`."""

    coverage: NDArray[np.float64]
    risk: NDArray[np.float64]
    aurc: float


@dataclass(frozen=True, slots=True)
class Threshold:
    """The smallest `confidence` that reaches `target` (or None), and its metrics on `count` validation images.

    `precision` has Wilson's 95% `interval` and the exact one-sided 95% `lower_bound`; `share_answered` is the coverage.
    A `conservative` threshold is one whose lower bound reaches the target; `given_up` is the coverage lost compared
    with a threshold for which the precision alone has to reach the target. `note` says how far to trust the threshold.
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
    """Selective metrics on images that were not used to choose the threshold.

    Of `count` images, `answered` are above the threshold, a fraction of `coverage`. Their `precision` has Wilson's 95%
    `interval` and the exact one-sided 95% `lower_bound`; all three are None if no image is above the threshold. `met`
    tells whether the bound reaches the target.
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
    """A `threshold` that was chosen on validation images, and its metrics on the evaluated images."""

    threshold: Threshold
    reached: Reached | None


def risk_coverage(confidences: NDArray[np.float32], correct: NDArray[np.bool_]) -> Curve:
    """Return the risk-coverage curve (El-Yaniv and Wiener, 2010) and the area under it (Geifman et al., 2019).

    Images with the same confidence are ordered at random; the curve has the mean risk over these orders.
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
    """Return the smallest confidence threshold whose precision is at least `target_precision`.

    `confidences` float32 [N] and `correct` bool [N] are of validation images. If `conservative`, thresholds are tested
    from the strictest on, starting where enough images are above to show anything. The result is the last for which an
    exact binomial test at 5% rejects that the true precision is lower (Clopper and Pearson, 1934; fixed-sequence
    testing as in Angelopoulos et al., 2021, arXiv:2110.01052). It misses the target for one validation split in twenty;
    a target of 0.99 takes 299 images without an error. If not `conservative`, the observed precision has to reach the
    target. On new images it then misses about half of the time, and more often if few images were above.

    Raises `UsageError` for a target outside (0, 1).
    """
    if not 0 < target_precision < 1:
        raise UsageError(f"The target precision must be between 0 and 1, e.g. 0.99; got {target_precision}.")
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
            f"With {kept} validation images above the threshold, the precision is only known to be at least "
            f"{bound:.3f}: use more validation images, or choose the threshold with --conservative."
        )
    return Threshold(
        target_precision, float(sure[ends[best]]), good / kept, interval, kept / count, kept, count, note, bound,
        conservative, max(without - kept / count, 0.0) if conservative else 0.0,
    )  # fmt: skip


def _unreachable(target: float, count: int, without: float, *, conservative: bool) -> str:
    if not conservative:
        return f"No confidence threshold reaches the target on {plural(count, 'validation image')}."
    least = math.ceil(math.log(intervals.LEVEL) / math.log(target))
    more = f"; that takes at least {least} without an error" if count < least else ""
    note = f"{count} validation images do not show that any confidence threshold reaches the target{more}."
    if without:
        note += (
            f" --no-conservative has a coverage of {without:.1%}, but on new images it misses the target about half "
            "of the time."
        )
    return note


def _shown(answered: NDArray[np.int64], right: NDArray[np.int64], target: float) -> int | None:
    best = None
    for i, (count, good) in enumerate(zip(answered.tolist(), right.tolist(), strict=True)):
        if intervals.at_most(0, count, 1 - target) > intervals.LEVEL:
            continue  # not even without an error
        if intervals.at_most(count - good, count, 1 - target) > intervals.LEVEL:
            break
        best = i
    return best


def reached(answered: NDArray[np.bool_], correct: NDArray[np.bool_], target: float | None) -> Reached:
    """Return the selective metrics of images that were not used for the threshold; both arguments are bool [N]."""
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
    """Choose the threshold for the strictest usual target that is reached on validation, and evaluate it.

    Both arguments are confidences float32 [N] and whether the prediction is correct, bool [N]. If no target is reached,
    the threshold is that of the lowest target, with a `confidence` of None.
    """
    tried = [threshold_for(*held_out, target) for target in USUAL]
    threshold = next((t for t in tried if t.confidence is not None), tried[-1])
    if threshold.confidence is None:
        return Selective(threshold, None)
    return Selective(threshold, reached(judged[0] >= np.float32(threshold.confidence), judged[1], threshold.target))
