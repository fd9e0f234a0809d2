"""Selective prediction: the risk-coverage curve, and the confidence threshold for a target precision.

A threshold is chosen on validation images and evaluated on others, because on the images that it was chosen on, the
best of many thresholds always looks better than it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import intervals
from sightline.errors import UsageError, plural
from sightline.evaluation.bootstrap import EACH_IMAGE, Resampling, count_groups
from sightline.intervals import Interval

TARGETS = (0.99, 0.95, 0.9)  # target precisions to try for a new run, strictest first
JSON_POINTS = 101  # maximum points of the risk-coverage curve in JSON


@dataclass(frozen=True, slots=True)
class RiskCoverageCurve:
    """The error rate or mean loss (`risk`) at each `coverage`, float64 [N], and the area under the curve, `aurc`."""

    coverage: NDArray[np.float64]
    risk: NDArray[np.float64]
    aurc: float

    def to_dict(self) -> dict[str, Any]:
        """Return at most `JSON_POINTS` points of the curve, including both ends, as JSON values."""
        at = np.unique(np.linspace(0, len(self.risk) - 1, JSON_POINTS).astype(int))[: len(self.risk)]  # none if empty
        return {"aurc": self.aurc, "coverage": self.coverage[at].tolist(), "risk": self.risk[at].tolist()}


@dataclass(frozen=True, slots=True)
class Threshold:
    """The smallest `confidence` that reaches `target` (or None), and its metrics on `count` validation images.

    `precision` has Wilson's 95% `interval` and the exact one-sided 95% `lower_bound`; `coverage` is their fraction.
    A `conservative` threshold is one whose lower bound reaches the target; `coverage_cost` is the coverage lost
    compared with a threshold for which the precision alone has to reach the target. `note` states how reliable the
    threshold is.
    """

    target: float
    confidence: float | None
    precision: float | None
    interval: Interval | None
    coverage: float
    accepted: int
    count: int
    note: str
    lower_bound: float | None = None
    conservative: bool = True
    coverage_cost: float = 0.0


@dataclass(frozen=True, slots=True)
class SelectiveMetrics:
    """Selective metrics on images that were not used to choose the threshold.

    Of `count` images, `accepted` are above the threshold, a fraction of `coverage`. Their `precision` has Wilson's 95%
    `interval` and the exact one-sided 95% `lower_bound`, or those of `grouped_proportions` if images come in groups;
    all three are None if no image is above the threshold, the last two also if all above it are of one group. `met`
    states whether the bound reaches the target.
    """

    count: int
    accepted: int
    coverage: float
    precision: float | None
    interval: Interval | None
    lower_bound: float | None
    met: bool


@dataclass(frozen=True, slots=True)
class SelectiveResult:
    """A `threshold` that was chosen on validation images, and its metrics on the evaluated images."""

    threshold: Threshold
    evaluated: SelectiveMetrics | None


def compute_risk_coverage(confidences: NDArray[np.floating[Any]], losses: NDArray[Any]) -> RiskCoverageCurve:
    """Return the risk-coverage curve (El-Yaniv and Wiener, 2010) and the area under it (Geifman et al., 2019).

    The risk is the mean of `losses` [N], such as whether a prediction is wrong, or one minus the IoU of a mask.
    Images with the same confidence [N] are ordered at random; the curve has the mean risk over these orders.
    """
    count = len(confidences)
    order = np.argsort(-confidences, kind="stable")
    _, group, sizes = np.unique(-confidences[order], return_inverse=True, return_counts=True)
    shared = np.bincount(group, losses[order], len(sizes)) / np.maximum(sizes, 1)
    risk = np.cumsum(shared[group]) / np.arange(1, count + 1)
    return RiskCoverageCurve(np.arange(1, count + 1) / max(count, 1), risk, float(risk.mean()) if count else math.nan)


def choose_threshold(
    confidences: NDArray[np.floating[Any]],
    correct: NDArray[np.bool_],
    target_precision: float,
    *,
    conservative: bool = True,
    groups: NDArray[np.int64] | None = None,
) -> Threshold:
    """Return the smallest confidence threshold whose precision is at least `target_precision`.

    `confidences` float32 [N] and `correct` bool [N] are of validation images. If `conservative`, thresholds are tested
    starting from the strictest with enough images above it to show anything. The result is the last for which an exact
    binomial test at 5% rejects that the true precision is lower (Clopper and Pearson, 1934; fixed-sequence testing as
    in Angelopoulos et al., 2021, arXiv:2110.01052). It misses the target for one validation split in twenty; a target
    of 0.99 requires 299 images without an error. If not `conservative`, the observed precision has to reach the target.
    On new images it then misses the target about half of the time, and more often if few images were above.

    The test treats images as independent. If they are of `groups`, int64 [N], the note of the threshold states this: a
    bound that counts groups requires 29 of them without an error for 0.9 and 299 for 0.99, which few validation splits
    have.

    Raises `UsageError` for a target outside (0, 1).
    """
    order = np.argsort(-confidences, kind="stable")
    sorted_confidences, hits = confidences[order], np.cumsum(correct[order], dtype=np.int64)
    ends = find_group_ends(sorted_confidences)
    return choose_from_counts(
        sorted_confidences[ends], ends + 1, hits[ends], len(confidences), target_precision, conservative=conservative,
        num_groups=count_groups(groups),
    )  # fmt: skip


def find_group_ends(sorted_values: NDArray[Any]) -> NDArray[np.int64]:
    """Return the last position of each run of equal values in `sorted_values` [N]: int64 [M]."""
    if not len(sorted_values):
        return np.zeros(0, np.int64)
    return np.append(np.flatnonzero(np.diff(sorted_values)), len(sorted_values) - 1)


def choose_from_counts(
    confidences: NDArray[np.floating[Any]],
    accepted: NDArray[np.int64],
    correct_counts: NDArray[np.int64],
    count: int,
    target_precision: float,
    *,
    conservative: bool,
    num_groups: int | None,
) -> Threshold:
    """Return the smallest of the thresholds `confidences` [T], descending, as `choose_threshold` does.

    Of `count` validation images, `accepted` int64 [T] reach each of them, `correct_counts` int64 [T] of those with a
    correct prediction, which may depend on the threshold. `num_groups` is the number of their groups, None if images
    are independent. Raises `UsageError` for a target outside (0, 1).
    """
    if not 0 < target_precision < 1:
        raise UsageError(f"The target precision must be between 0 and 1, e.g. 0.99; got {target_precision}.")
    reached = np.flatnonzero(correct_counts >= target_precision * accepted - 1e-9)
    best = observed = int(reached[-1]) if len(reached) else None
    if conservative:
        best = find_conservative(accepted, correct_counts, target_precision)
    observed_coverage = 0.0 if observed is None else float(accepted[observed]) / count
    if best is None:
        note = explain_unreached(target_precision, count, observed_coverage, conservative=conservative)
        coverage_cost = observed_coverage if conservative else 0.0
        return Threshold(target_precision, None, None, None, 0.0, 0, count, note, None, conservative, coverage_cost)
    accepted_count, correct_count = int(accepted[best]), int(correct_counts[best])
    bound, interval = (
        intervals.lower_bound(correct_count, accepted_count),
        intervals.wilson_interval(correct_count, accepted_count),
    )
    note = ""
    if bound < target_precision:
        note = (
            f"With {accepted_count} validation images above the threshold, the precision is only known to be at least "
            f"{bound:.3f}: use more validation images, or choose the threshold with --conservative."
        )
    if num_groups is not None:
        note = f"{note} {explain_groups(count, num_groups)}".strip()
    return Threshold(
        target_precision, float(confidences[best]), correct_count / accepted_count, interval,
        accepted_count / count, accepted_count, count, note, bound,
        conservative, max(observed_coverage - accepted_count / count, 0.0) if conservative else 0.0,
    )  # fmt: skip


def explain_groups(count: int, num_groups: int) -> str:
    """Return the sentence on how reliable a bound on `count` validation images of `num_groups` groups is."""
    return (
        f"The bound treats {plural(count, 'validation image')} as independent, but they are in "
        f"{plural(num_groups, 'group')}, so it claims too much: evaluate on other images, whose bound counts groups."
    )


def explain_unreached(target: float, count: int, without: float, *, conservative: bool) -> str:
    """Return the sentence that explains why no threshold reaches `target`.

    `without` is what --no-conservative would reach.
    """
    if not conservative:
        return f"No threshold reaches the target on {plural(count, 'validation image')}."
    least = math.ceil(math.log(intervals.ALPHA) / math.log(target))
    more = f"; that takes at least {least} without an error" if count < least else ""
    verb = "does" if count == 1 else "do"
    images = plural(count, "validation image")
    note = f"{images} {verb} not show that any threshold reaches the target{more}."
    if without:
        note += (
            f" --no-conservative has a coverage of {without:.1%}, but on new images it misses the target about half "
            "of the time."
        )
    return note


def find_conservative(accepted: NDArray[np.int64], right: NDArray[np.int64], target: float) -> int | None:
    """Return the last position at which the lower confidence bound reaches `target`, or None."""
    best = None
    counts = accepted.tolist()
    p_values = intervals.iterate_binomial_cdf((accepted - right).tolist(), counts, 1 - target)
    for i, (count, p_value) in enumerate(zip(counts, p_values, strict=True)):
        if target**count > intervals.ALPHA:
            continue  # the target is out of reach even without an error
        if p_value > intervals.ALPHA:
            break
        best = i
    return best


def evaluate_threshold(
    accepted: NDArray[np.bool_], correct: NDArray[np.bool_], target: float | None, resampling: Resampling = EACH_IMAGE
) -> SelectiveMetrics:
    """Return the selective metrics of images that were not used for the threshold.

    `accepted` and `correct` are bool [N]; `resampling` defines which of the images depend on each other.
    """
    count, accepted_count, correct_count = len(accepted), int(accepted.sum()), int((accepted & correct).sum())
    (interval,) = resampling.estimate_proportions(correct[:, None], accepted[:, None])
    bound = resampling.bound_proportion(correct, accepted)
    return SelectiveMetrics(
        count, accepted_count, accepted_count / max(count, 1),
        correct_count / accepted_count if accepted_count else None, interval, bound,
        target is not None and bound is not None and bound >= target,
    )  # fmt: skip


def evaluate_selective(
    held_out: tuple[NDArray[np.float32], NDArray[np.bool_]],
    evaluated: tuple[NDArray[np.float32], NDArray[np.bool_]],
    resampling: Resampling = EACH_IMAGE,
) -> SelectiveResult:
    """Choose the threshold for the strictest usual target that is reached on validation, and evaluate it.

    `held_out` and `evaluated` are each the confidences float32 [N] and whether the predictions are correct, bool [N];
    `resampling` applies to `evaluated`. If no target is reached, the threshold is that of the lowest target, with a
    `confidence` of None.
    """
    thresholds = [choose_threshold(*held_out, target) for target in TARGETS]
    threshold = next((t for t in thresholds if t.confidence is not None), thresholds[-1])
    if threshold.confidence is None:
        return SelectiveResult(threshold, None)
    accepted = evaluated[0] >= np.float32(threshold.confidence)
    return SelectiveResult(threshold, evaluate_threshold(accepted, evaluated[1], threshold.target, resampling))
