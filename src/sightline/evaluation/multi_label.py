"""Full evaluation of a multi-label model: metrics, confused classes, the images to look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import jsonio
from sightline.data.targets import join_classes
from sightline.data.types import LabeledSubset, Subset, UnreadableImage
from sightline.evaluation import bootstrap, conformal
from sightline.evaluation.bootstrap import Resampling
from sightline.evaluation.conformal import LabelSetMetrics
from sightline.evaluation.error_analysis import MAX_EXAMPLES, ErrorExample
from sightline.evaluation.label_pairs import LabelPairErrors, count_pair_errors
from sightline.evaluation.label_thresholds import (
    DecisionLimits,
    LabelDecisions,
    cross_fit_limits,
    evaluate_decisions,
    list_thresholds,
)
from sightline.evaluation.leakage import add_leakage
from sightline.evaluation.multi_label_metrics import LabelMetrics, compute_label_metrics
from sightline.evaluation.ood import OODResult
from sightline.evaluation.results import Metric, TaskResult, describe_report
from sightline.evaluation.scoring import check_probabilities, find_accuracy_interval
from sightline.inference.results import Thresholds
from sightline.intervals import Interval

MAX_PAIRS = 10


@dataclass(frozen=True, slots=True, repr=False)
class MultiLabelResult(TaskResult):
    """The metrics of a multi-label classifier on labeled images.

    `labels` bool [N, K] are the classes of each image, `predicted` bool [N, K] those that the thresholds predict.
    `accuracy` is the fraction of the N * K decisions that are correct, `loss` the mean binary cross-entropy.
    """

    per_class: tuple[LabelMetrics, ...]
    predicted: NDArray[np.bool_] = field(kw_only=True)
    headlines = ("mean_average_precision", "micro_f1", "macro_f1")


@dataclass(frozen=True, slots=True)
class LabelPair:
    """`count` images have `label`, which is missed, but not `predicted`, which is predicted instead."""

    label: str
    predicted: str
    count: int


@dataclass(frozen=True, slots=True)
class LabelErrors:
    """The images to look at, those with the most confident wrong decision first, of `count` images with any.

    `confused_pairs` are the classes that are most often predicted in place of others, and `pair_errors` the pairs of
    classes that are most often wrongly predicted together, or missed together.
    """

    count: int
    most_confident_errors: tuple[ErrorExample, ...]
    confused_pairs: tuple[LabelPair, ...]
    pair_errors: tuple[LabelPairErrors, ...] = ()


@dataclass(frozen=True, slots=True)
class MultiLabelReport:
    """The evaluation of split `split`, with the images to look at, and the thresholds that decide.

    `decisions` and `label_sets` are those of thresholds that were fitted for a precision and a false-negative rate,
    else None. `unreached` are the classes for which no threshold is known to reach the target that was requested, and
    `ood` how well out-of-distribution images are detected, if there were any. `note` states the limitations of
    thresholds that were fitted for a target, if this evaluation fitted them. `energies`, float64 [N], are the
    out-of-distribution scores of the images, in the order of `evaluation.paths`.
    """

    evaluation: MultiLabelResult
    split: str
    errors: LabelErrors
    thresholds: Thresholds | None = None
    decisions: tuple[LabelDecisions, ...] | None = None
    label_sets: LabelSetMetrics | None = None
    unreached: tuple[str, ...] = ()
    ood: OODResult | None = None
    energies: NDArray[np.float64] | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``metrics.json``."""
        values = jsonio.fields_to_dict(self, skip=["evaluation", "energies"])
        return {"task": "multi_label"} | self.evaluation.to_dict() | values

    __repr__ = describe_report


def build_report(
    classes: tuple[str, ...],
    probabilities: NDArray[np.float32],
    labeled: LabeledSubset,
    split: str,
    thresholds: Thresholds | None,
    unreached: tuple[str, ...] = (),
    *,
    conservative: bool = True,
) -> MultiLabelReport:
    """Return the evaluation of `probabilities` float32 [N, K] for the images `labeled`.

    Thresholds that were fitted on out-of-fold predictions are not evaluated on these images: each fold is decided by
    thresholds of the others, which are `conservative` if those for a target are.
    """
    limits = DecisionLimits.from_thresholds(thresholds, classes)
    subset, cuts_by_path = labeled.subset, dict[str, NDArray[np.float64]]()
    if labeled.folds and thresholds is not None:
        folds = np.array([labeled.folds[path] for path in subset.paths], np.int64)
        true = subset.labels.astype(bool)
        limits = cross_fit_limits(classes, probabilities, true, folds, thresholds, conservative=conservative)
        cuts_by_path = dict(zip(subset.paths, limits.present, strict=True))
    evaluate = partial(_evaluate, classes, list_thresholds(thresholds, classes), cuts_by_path, labeled.groups)
    evaluation = add_leakage(evaluate(probabilities, subset, labeled.unreadable), labeled, evaluate)
    resampling = Resampling(groups=bootstrap.number_groups(subset.paths, labeled.groups))
    return MultiLabelReport(
        evaluation,
        split,
        _find_errors(evaluation),
        thresholds,
        evaluate_decisions(classes, probabilities, evaluation.labels, thresholds, limits, resampling),
        _evaluate_label_sets(evaluation, thresholds, limits, resampling),
        unreached,
    )


def list_predictions(result: MultiLabelResult) -> Iterator[dict[str, Any]]:
    """Yield the path, the labels, the predicted labels and the smallest of their probabilities of each image."""
    names = np.array(result.classes, object)
    for path, true, chosen, p in zip(result.paths, result.labels, result.predicted, result.probabilities, strict=True):
        yield {
            "path": path,
            "label": join_classes(names[true]),
            "predicted": join_classes(names[chosen]),
            "probability": float(p[chosen].min()) if chosen.any() else None,
            "correct": bool((true == chosen).all()),
        }


def _evaluate_label_sets(
    evaluation: MultiLabelResult, thresholds: Thresholds | None, limits: DecisionLimits, resampling: Resampling
) -> LabelSetMetrics | None:
    if thresholds is None or thresholds.set_threshold is None or thresholds.target_fnr is None:
        return None
    return conformal.evaluate_label_sets(
        evaluation.probabilities,
        evaluation.labels,
        thresholds.set_threshold,
        thresholds.target_fnr,
        limits.in_set,
        resampling,
    )


def _evaluate(
    classes: tuple[str, ...],
    cuts: NDArray[np.float64],
    cuts_by_path: Mapping[str, NDArray[np.float64]],
    group_by_path: Mapping[str, str],
    probabilities: NDArray[np.float32],
    samples: Subset,
    unreadable: Sequence[UnreadableImage] = (),
) -> MultiLabelResult:
    check_probabilities(probabilities, samples.paths, sum_to_one=False)
    labels = samples.labels.astype(bool)
    groups = bootstrap.number_groups(samples.paths, group_by_path)
    of_images = np.reshape([cuts_by_path[path] for path in samples.paths], labels.shape) if cuts_by_path else cuts
    predicted = probabilities >= of_images
    metrics, per_class = compute_label_metrics(classes, probabilities, labels, cuts, groups=groups, predicted=predicted)
    decisions, right = labels.size, int((predicted == labels).sum())
    num_groups, wrong = bootstrap.count_groups(groups), metrics["hamming_loss"]
    ends = None if wrong.interval is None else Interval(1 - wrong.interval.high, 1 - wrong.interval.low)
    accuracy = Metric(None if wrong.value is None else 1 - wrong.value, ends)
    return MultiLabelResult(
        classes=classes,
        accuracy=right / decisions if decisions else 0.0,
        accuracy_interval=find_accuracy_interval(accuracy, num_groups or len(samples)),
        loss=metrics["log_loss"].value or 0.0,
        count=len(samples),
        per_class=per_class,
        unreadable=tuple(unreadable),
        paths=samples.paths,
        labels=labels,
        probabilities=probabilities,
        seconds=0.0,
        metrics=metrics,
        groups=num_groups,
        predicted=predicted,
    )


def _find_errors(evaluation: MultiLabelResult) -> LabelErrors:
    p, labels, classes = evaluation.probabilities, evaluation.labels, evaluation.classes
    predicted = evaluation.predicted
    wrong = predicted != labels
    confidence = np.where(wrong, np.where(predicted, p, 1 - p), 0).max(1, initial=0)
    order = [int(i) for i in np.argsort(-confidence, kind="stable") if wrong[i].any()]

    def name(row: NDArray[np.bool_]) -> str:
        return join_classes(label for label, chosen in zip(classes, row, strict=True) if chosen)

    examples = tuple(
        ErrorExample(i, evaluation.paths[i], name(labels[i]), name(predicted[i]), float(confidence[i]))
        for i in order[:MAX_EXAMPLES]
    )
    confused = (labels & ~predicted).astype(np.int64).T @ (predicted & ~labels).astype(np.int64)
    positions = np.argsort(-confused, axis=None, kind="stable")[:MAX_PAIRS]
    pairs = tuple(
        LabelPair(classes[i], classes[j], int(confused[i, j]))
        for i, j in (divmod(int(at), len(classes)) for at in positions)
        if confused[i, j]
    )
    return LabelErrors(len(order), examples, pairs, count_pair_errors(classes, labels, predicted))
