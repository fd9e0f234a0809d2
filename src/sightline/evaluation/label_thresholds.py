"""Per-class thresholds of multi-label models: when to predict a class, and when to abstain.

Thresholds are chosen on validation images, for the highest F1 of each class, or for its precision or recall.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from sightline.errors import UsageError
from sightline.evaluation import binary, conformal, selective
from sightline.evaluation.bootstrap import EACH_IMAGE, Resampling
from sightline.evaluation.selective import SelectiveMetrics
from sightline.inference.results import ThresholdRequest, Thresholds

DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True, slots=True)
class LabelDecisions:
    """How thresholds for a target precision decide one class, on images that were not used to choose them.

    The class is `present` from its threshold upward and `absent` up to another; on the fraction `undecided` between the
    two, the model abstains. Each precision is that of the decision: for `absent`, the fraction without the class.
    """

    label: str
    present: SelectiveMetrics
    absent: SelectiveMetrics
    undecided: float


def check_request(request: ThresholdRequest) -> None:
    """Raise `UsageError` for targets that do not apply to several labels, or are outside (0, 1)."""
    if request.rates or request.positive or request.coverage is not None:
        raise UsageError(
            "A positive class, --target-sensitivity, --target-specificity and --coverage are for single-label "
            "classification: use --target-precision or --target-recall for a threshold of each class, or --target-fnr "
            "for label sets."
        )
    if request.min_iou is not None:
        raise UsageError("--min-iou is for models of masks: leave it out.")
    if request.target_precision is not None and request.recall is not None:
        raise UsageError(
            "A class has one threshold, for --target-precision or for --target-recall: leave one of them out."
        )
    targets = {"precision": request.target_precision, "recall": request.recall, "false-negative rate": request.fnr}
    for name, target in targets.items():
        if target is not None and not 0 < target < 1:
            raise UsageError(f"The target {name} must be between 0 and 1, e.g. 0.9; got {target}.")


def fit_thresholds(
    classes: Sequence[str],
    probabilities: NDArray[np.float32],
    labels: NDArray[np.bool_],
    request: ThresholdRequest,
    old: Thresholds | None,
) -> Thresholds:
    """Return the thresholds for `request` on validation images; thresholds that are not requested stay as in `old`.

    Without `old` or a target, each class has the threshold with the highest F1.
    """
    new = replace(old or Thresholds(0), count=len(labels))
    if request.target_precision is not None:
        chosen = fit_precision(classes, probabilities, labels, request.target_precision, request.conservative)
        new = replace(new, labels=chosen[0], absent=chosen[1], label_target="precision", target_recall=None)
        new = replace(new, target_precision=request.target_precision)
    elif request.recall is not None:
        recalled = fit_recall(classes, probabilities, labels, request.recall, request.conservative)
        new = replace(new, labels=recalled, absent=None, label_target="recall", target_precision=None)
        new = replace(new, target_recall=request.recall)
    elif new.labels is None:
        new = replace(new, labels=fit_label_thresholds(classes, probabilities, labels), label_target="f1")
    if request.fnr is not None:
        threshold = conformal.fit_set_threshold(probabilities, labels, request.fnr)
        new = replace(new, target_fnr=request.fnr, set_threshold=threshold)
    return new


def list_thresholds(thresholds: Thresholds | None, classes: Sequence[str]) -> NDArray[np.float64]:
    """Return the lowest probability at which each class is predicted, float64 [K]; infinity for never."""
    chosen = {} if thresholds is None else thresholds.labels or {}
    cuts = [chosen.get(label, DEFAULT_THRESHOLD) for label in classes]
    return np.array([np.inf if cut is None else cut for cut in cuts])


def list_limits(thresholds: Thresholds | None, classes: Sequence[str]) -> NDArray[np.float64] | None:
    """Return the highest probability at which each class is absent, float64 [K]; -1 for never, None without limits."""
    if thresholds is None or thresholds.absent is None:
        return None
    limits = [thresholds.absent.get(label) for label in classes]
    return np.array([-1.0 if limit is None else limit for limit in limits])


@dataclass(frozen=True, slots=True)
class DecisionLimits:
    """The lowest probabilities at which classes are `present`, and the highest at which they are `absent`.

    float64 [K], or [N, K] if each image has its own. `in_set` is the lowest probability of a class in a label set: one
    number, or float64 [N, 1].
    """

    present: NDArray[np.float64]
    absent: NDArray[np.float64] | None
    in_set: NDArray[np.float64] | float | None

    @classmethod
    def from_thresholds(cls, thresholds: Thresholds | None, classes: Sequence[str]) -> Self:
        """Return the limits that are the same for all images."""
        in_set = None if thresholds is None else thresholds.set_threshold
        return cls(list_thresholds(thresholds, classes), list_limits(thresholds, classes), in_set)


def cross_fit_limits(
    classes: Sequence[str],
    probabilities: NDArray[np.float32],
    labels: NDArray[np.bool_],
    folds: NDArray[np.int64],
    thresholds: Thresholds,
    *,
    conservative: bool,
) -> DecisionLimits:
    """Return limits for the targets of `thresholds`: for each of `folds` (int64 [N]), from the other images.

    Thresholds look better on the images they were fitted on than on others. These limits nearly equal those from all
    images, but are fitted without the image that they decide.
    """
    request = replace(ThresholdRequest.from_thresholds(thresholds), conservative=conservative)
    of_all = DecisionLimits.from_thresholds(thresholds, classes)
    present = np.tile(of_all.present, (len(labels), 1))
    absent = None if of_all.absent is None else np.tile(of_all.absent, (len(labels), 1))
    in_set = None if of_all.in_set is None else np.full((len(labels), 1), of_all.in_set)
    for fold in np.unique(folds):
        rows = folds == fold
        if rows.all():
            continue
        fitted = fit_thresholds(classes, probabilities[~rows], labels[~rows], request, None)
        limits = DecisionLimits.from_thresholds(fitted, classes)
        present[rows] = limits.present
        if absent is not None and limits.absent is not None:
            absent[rows] = limits.absent
        if in_set is not None and limits.in_set is not None:
            in_set[rows] = limits.in_set
    return DecisionLimits(present, absent, in_set)


def list_unreached(thresholds: Thresholds) -> tuple[str, ...]:
    """Return the classes for which no threshold is known to reach the target precision or recall.

    They are either never predicted, or predicted for every image.
    """
    useless = {"precision": None, "recall": 0.0}
    if thresholds.label_target not in useless:
        return ()
    return tuple(label for label, cut in (thresholds.labels or {}).items() if cut == useless[thresholds.label_target])


def fit_label_thresholds(
    classes: Sequence[str], probabilities: NDArray[np.float32], labels: NDArray[np.bool_]
) -> dict[str, float]:
    """Return the threshold of each class with the highest F1 on these images; the default for a class without images.

    A threshold lies halfway between two probabilities, or between the lowest one and 0. Among equally good ones, it is
    the nearest to the default.
    """
    return {label: fit_f1(probabilities[:, k].astype(np.float64), labels[:, k]) for k, label in enumerate(classes)}


def fit_f1(scores: NDArray[np.float64], positive: NDArray[np.bool_], *, balanced: bool = False) -> float:
    """Return the threshold of N scores of one class with the highest F1; see `fit_label_thresholds`.

    `positive` bool [N] marks the images with the class. `balanced`: images without the class count as much in total as
    images with it.
    """
    support = int(positive.sum())
    if not support:
        return DEFAULT_THRESHOLD
    values = np.append(0.0, np.unique(scores))  # below the lowest, the class is predicted for every image
    cuts = np.append(DEFAULT_THRESHOLD, (values[1:] + values[:-1]) / 2)
    ordered, ordered_positive = np.sort(scores), np.sort(scores[positive])
    predicted = len(scores) - np.searchsorted(ordered, cuts)
    hits = support - np.searchsorted(ordered_positive, cuts)
    weight = support / max(1, len(scores) - support) if balanced else 1
    f1 = 2 * hits / (hits + weight * (predicted - hits) + support)
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    return float(cuts[best[np.argmin(np.abs(cuts[best] - DEFAULT_THRESHOLD))]])


def fit_precision(
    classes: Sequence[str],
    probabilities: NDArray[np.float32],
    labels: NDArray[np.bool_],
    target: float,
    conservative: bool,  # noqa: FBT001  # as in the request
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Return the lowest probability at which a class is present, and the highest at which it is absent; None for never.

    Each decision has the target precision, in the sense of `selective.choose_threshold`.
    """
    present: dict[str, float | None] = {}
    absent: dict[str, float | None] = {}
    for label, p, y in zip(classes, probabilities.T, labels.T, strict=True):
        cut = selective.choose_threshold(p, y, target, conservative=conservative).confidence
        below = p < (np.inf if cut is None else cut)  # no image has both decisions
        limit = selective.choose_threshold(-p[below], ~y[below], target, conservative=conservative).confidence
        present[label], absent[label] = cut, None if limit is None else -limit
    return present, absent


def fit_recall(
    classes: Sequence[str],
    probabilities: NDArray[np.float32],
    labels: NDArray[np.bool_],
    target: float,
    conservative: bool,  # noqa: FBT001  # as in the request
) -> dict[str, float]:
    """Return the highest threshold of each class whose recall reaches the target; 0 if there are too few images."""
    points = {
        label: binary.choose_operating_point(
            p.astype(np.float64), y, "sensitivity", target, conservative=conservative
        ).threshold
        for label, p, y in zip(classes, probabilities.T, labels.T, strict=True)
    }
    return {label: threshold or 0.0 for label, threshold in points.items()}


def evaluate_decisions(
    classes: Sequence[str],
    probabilities: NDArray[np.float32],
    labels: NDArray[np.bool_],
    thresholds: Thresholds | None,
    limits: DecisionLimits | None = None,
    resampling: Resampling = EACH_IMAGE,
) -> tuple[LabelDecisions, ...] | None:
    """Return how each class is decided, by `limits` instead of those of `thresholds`; None if they do not abstain."""
    limits = limits or DecisionLimits.from_thresholds(thresholds, classes)
    if thresholds is None or limits.absent is None:
        return None
    target, present, absent = (
        thresholds.target_precision, probabilities >= limits.present, probabilities <= limits.absent
    )  # fmt: skip
    return tuple(
        LabelDecisions(
            label,
            selective.evaluate_threshold(present[:, k], labels[:, k], target, resampling),
            selective.evaluate_threshold(absent[:, k], ~labels[:, k], target, resampling),
            float((~present[:, k] & ~absent[:, k]).mean()) if len(labels) else 0.0,
        )
        for k, label in enumerate(classes)
    )
