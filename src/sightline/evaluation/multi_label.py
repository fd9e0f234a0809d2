"""A full evaluation of several labels per image: metrics, confused classes, the images to look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import intervals, jsonio
from sightline.data.targets import join_classes
from sightline.data.types import LabeledSubset, MissingImages, Subset, TrainingOverlap, UnreadableImage
from sightline.errors import DataError
from sightline.evaluation.error_analysis import MAX_EXAMPLES, ErrorExample
from sightline.evaluation.multi_label_metrics import LabelMetrics, compute_label_metrics
from sightline.evaluation.report import EvaluationReport
from sightline.evaluation.results import EvaluationResult, Metric
from sightline.inference.results import Thresholds
from sightline.intervals import Interval

DEFAULT_THRESHOLD = 0.5
MAX_PAIRS = 10
SUMMARY = ("mean_average_precision", "micro_f1", "macro_f1")
"""The metrics that a run states first."""


@dataclass(frozen=True, slots=True)
class LeakedLabels:
    """Evaluated images that are in an earlier split too; `without_leaked` is the evaluation without them, if any."""

    identical: int
    near_duplicates: int
    paths: tuple[str, ...]
    without_leaked: MultiLabelResult | None

    def summarize(self) -> dict[str, Any]:
        """Return the counts, and the main metrics without these images, as JSON values."""
        other = self.without_leaked
        return {
            "count": len(self.paths),
            "identical": self.identical,
            "near_duplicates": self.near_duplicates,
            "without_leaked": None if other is None else other.summarize(),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the counts, the paths, and the metrics without these images, as JSON values."""
        return self.summarize() | {"images": list(self.paths)}


@dataclass(frozen=True, slots=True)
class MultiLabelResult:
    """The metrics of a multi-label classifier on labeled images.

    `labels` bool [N, K] are the classes of each image, `probabilities` float32 [N, K]. `accuracy` is the fraction of
    the N * K decisions that are right, `loss` the mean binary cross-entropy. `metrics` has all metrics by name.
    """

    classes: tuple[str, ...]
    accuracy: float
    accuracy_interval: Interval
    loss: float
    count: int
    per_class: tuple[LabelMetrics, ...]
    unreadable: tuple[UnreadableImage, ...]
    paths: tuple[str, ...]
    labels: NDArray[np.bool_]
    probabilities: NDArray[np.float32]
    seconds: float
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    leaked: LeakedLabels | None = None
    missing: MissingImages | None = None
    added: int = 0
    overlap: TrainingOverlap | None = None

    @property
    def untested_classes(self) -> tuple[str, ...]:
        """The classes without any evaluated image."""
        return tuple(c.label for c in self.per_class if not c.support)

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics as JSON values, without the arrays of each image."""
        return {
            "accuracy": self.accuracy,
            "accuracy_interval": list(self.accuracy_interval),
            "loss": self.loss,
            "count": self.count,
            "classes": list(self.classes),
            "untested_classes": list(self.untested_classes),
            "per_class": jsonio.to_plain(self.per_class),
            "unreadable": [{"path": image.path, "reason": image.reason} for image in self.unreadable],
            "seconds": self.seconds,
            "metrics": jsonio.to_plain(self.metrics),
            "leaked": jsonio.to_plain(self.leaked),
            "missing": jsonio.to_plain(self.missing),
            "added": self.added,
            "training_images": jsonio.to_plain(self.overlap),
        }

    def summarize(self) -> dict[str, Any]:
        """Return the few metrics that a run and a bundle keep of each split, as JSON values."""
        summary: dict[str, Any] = {
            "accuracy": self.accuracy,
            "accuracy_interval": list(self.accuracy_interval),
            "loss": self.loss,
            "count": self.count,
            "untested_classes": list(self.untested_classes),
        }
        summary |= {name: jsonio.to_plain(self.metrics[name]) for name in SUMMARY}
        return summary if self.leaked is None else summary | {"leaked": self.leaked.summarize()}


@dataclass(frozen=True, slots=True)
class LabelPair:
    """`count` images show `label`, which is missed, and not `predicted`, which is predicted in its place."""

    label: str
    predicted: str
    count: int


@dataclass(frozen=True, slots=True)
class LabelErrors:
    """The images to look at, those with the surest wrong decision first, of `count` images with any wrong one."""

    count: int
    most_confident_errors: tuple[ErrorExample, ...]
    confused_pairs: tuple[LabelPair, ...]


@dataclass(frozen=True, slots=True)
class MultiLabelReport:
    """The evaluation of split `split`, with the images to look at, and the thresholds that decide."""

    evaluation: MultiLabelResult
    split: str
    errors: LabelErrors
    thresholds: Thresholds | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``metrics.json``."""
        return {"task": "multi_label"} | self.evaluation.to_dict() | jsonio.fields_to_dict(self, skip=["evaluation"])


Result = EvaluationResult | MultiLabelResult
"""The metrics of any task."""
Report = EvaluationReport | MultiLabelReport
"""The evaluation of any task."""


def build_report(
    classes: tuple[str, ...],
    probabilities: NDArray[np.float32],
    labeled: LabeledSubset,
    split: str,
    thresholds: Thresholds | None,
) -> MultiLabelReport:
    """Return the evaluation of `probabilities` float32 [N, K] for the images `labeled`."""
    cuts = list_thresholds(thresholds, classes)
    evaluation = _evaluate(classes, probabilities, labeled.subset, cuts, labeled.unreadable)
    evaluation = replace(
        evaluation, leaked=_find_leaked(evaluation, labeled, cuts), missing=labeled.missing, added=labeled.added,
        overlap=labeled.overlap,
    )  # fmt: skip
    return MultiLabelReport(evaluation, split, _find_errors(evaluation, cuts), thresholds)


def list_thresholds(thresholds: Thresholds | None, classes: Sequence[str]) -> NDArray[np.float64]:
    """Return the probability from which on each class is predicted, float64 [K]."""
    chosen = {} if thresholds is None else thresholds.labels or {}
    return np.array([chosen.get(label, DEFAULT_THRESHOLD) for label in classes])


def list_predictions(result: MultiLabelResult, thresholds: Thresholds | None) -> Iterator[dict[str, Any]]:
    """Yield the path, the labels, the predicted labels and the smallest of their probabilities of each image."""
    reached = result.probabilities >= list_thresholds(thresholds, result.classes)
    names = np.array(result.classes, object)
    for path, true, chosen, p in zip(result.paths, result.labels, reached, result.probabilities, strict=True):
        yield {
            "path": path,
            "label": join_classes(names[true]),
            "predicted": join_classes(names[chosen]),
            "probability": float(p[chosen].min()) if chosen.any() else None,
            "correct": bool((true == chosen).all()),
        }


def fit_label_thresholds(
    classes: Sequence[str], probabilities: NDArray[np.float32], labels: NDArray[np.bool_]
) -> dict[str, float]:
    """Return the threshold of each class with the highest F1 on these images; the default for a class without any.

    A threshold lies halfway between two probabilities, or between the lowest one and 0. Of equally good ones it is the
    nearest to the default.
    """
    return {label: _fit_f1(probabilities[:, k].astype(np.float64), labels[:, k]) for k, label in enumerate(classes)}


def _fit_f1(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    support = int(positive.sum())
    if not support:
        return DEFAULT_THRESHOLD
    values = np.append(0.0, np.unique(scores))  # below the lowest, the class is predicted for every image
    cuts = np.append(DEFAULT_THRESHOLD, (values[1:] + values[:-1]) / 2)
    ordered, ordered_positive = np.sort(scores), np.sort(scores[positive])
    predicted = len(scores) - np.searchsorted(ordered, cuts)
    hits = support - np.searchsorted(ordered_positive, cuts)
    f1 = 2 * hits / (predicted + support)
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    return float(cuts[best[np.argmin(np.abs(cuts[best] - DEFAULT_THRESHOLD))]])


def _evaluate(
    classes: tuple[str, ...],
    probabilities: NDArray[np.float32],
    samples: Subset,
    cuts: NDArray[np.float64],
    unreadable: Sequence[UnreadableImage] = (),
) -> MultiLabelResult:
    _check_probabilities(probabilities, samples.paths)
    labels = samples.labels.astype(bool)
    metrics, per_class = compute_label_metrics(classes, probabilities, labels, cuts)
    decisions, right = labels.size, int(((probabilities >= cuts) == labels).sum())
    return MultiLabelResult(
        classes=classes,
        accuracy=right / decisions if decisions else 0.0,
        accuracy_interval=_accuracy_interval(metrics["hamming_loss"], right, decisions),
        loss=metrics["log_loss"].value or 0.0,
        count=len(samples),
        per_class=per_class,
        unreadable=tuple(unreadable),
        paths=samples.paths,
        labels=labels,
        probabilities=probabilities,
        seconds=0.0,
        metrics=metrics,
    )


def _accuracy_interval(hamming: Metric, right: int, decisions: int) -> Interval:
    """Return the interval of one minus the Hamming loss: of images, since the labels of one depend on each other."""
    if hamming.interval is None:
        return intervals.wilson_interval(right, decisions)
    return Interval(1 - hamming.interval.high, 1 - hamming.interval.low)


def _check_probabilities(probabilities: NDArray[np.float32], paths: tuple[str, ...]) -> None:
    invalid = np.flatnonzero(~((probabilities >= -1e-5) & (probabilities <= 1 + 1e-5)).all(1))  # NaN is neither
    if len(invalid):
        raise DataError(
            f"The predicted probabilities of {len(invalid)} of {len(probabilities)} images are not between 0 and 1, "
            f"first for {paths[invalid[0]]}: the weights are damaged or training diverged; train the model "
            "again."
        )


def _find_leaked(
    evaluation: MultiLabelResult, labeled: LabeledSubset, cuts: NDArray[np.float64]
) -> LeakedLabels | None:
    kinds = [labeled.leaked.get(image.sha256) for image in labeled.images]
    if not any(kinds):
        return None
    clean = np.array([i for i, kind in enumerate(kinds) if kind is None], np.int64)
    without = None
    if len(clean):
        samples = labeled.subset.select(clean)
        without = _evaluate(evaluation.classes, evaluation.probabilities[clean], samples, cuts)
    paths = tuple(image.path for image, kind in zip(labeled.images, kinds, strict=True) if kind)
    return LeakedLabels(kinds.count("identical"), kinds.count("near_duplicates"), paths, without)


def _find_errors(evaluation: MultiLabelResult, cuts: NDArray[np.float64]) -> LabelErrors:
    p, labels, classes = evaluation.probabilities, evaluation.labels, evaluation.classes
    predicted = p >= cuts
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
    return LabelErrors(len(order), examples, pairs)
