"""Metrics of probabilities against labels, each with its 95% interval.

Proportions (``top_1``, ``top_5``, and ``weighted_recall``, which is accuracy) have Wilson's interval, or that of
`grouped_proportions` if images come in groups. All others have a seeded bootstrap of images or groups.
Means over classes skip classes without images; AUROC and AP are one-vs-rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import intervals, metrics
from sightline.data.types import Subset, UnreadableImage
from sightline.errors import DataError, PluginError, plural
from sightline.evaluation import bootstrap
from sightline.evaluation.block_bootstrap import BlockBootstrap
from sightline.evaluation.bootstrap import EACH_IMAGE, Resampling
from sightline.evaluation.calibration import MIN_ERRORS
from sightline.evaluation.grouped_proportions import estimate_grouped_proportions
from sightline.evaluation.results import ClassMetrics, EvaluationResult, Metric
from sightline.intervals import LOSS, Interval, Range
from sightline.plugins import Registry

AVERAGES = tuple(f"{how}_{what}" for how in ("macro", "weighted") for what in ("precision", "recall", "f1"))
RANKINGS = ("auroc", "average_precision")
NAMES = ("log_loss", "brier", *AVERAGES, *RANKINGS)
NO_ERRORS_NOTE = "no interval: no errors"
FEW_ERRORS_NOTE = f"interval too narrow: fewer than {MIN_ERRORS} errors"

MetricFunction = Callable[[NDArray[np.float32], NDArray[np.int32]], float]
METRICS: Registry[MetricFunction] = Registry("metric", reserved=("accuracy", "top_1", "top_5", *NAMES))


def register_metric(name: str) -> Callable[[MetricFunction], MetricFunction]:
    """Register the decorated function as a metric, which every evaluation of images with one class each computes.

    The function takes probabilities, float32 [N, K], and labels, int32 [N], and returns a number, NaN if it is
    undefined. Its 95% interval comes from a bootstrap of 200 resamples. See [Extending](extending.md).

    Args:
        name: The name of the metric.

    Returns:
        A decorator, which returns the function unchanged.

    Raises:
        UsageError: If another metric has this name, including Sightline's own.
    """
    return METRICS.make_decorator(name, lambda function: function)


def check_probabilities(probabilities: NDArray[np.float32], paths: Sequence[str], *, sum_to_one: bool = True) -> None:
    """Raise `DataError` if probabilities [N, ..., K] of the images at `paths` are not in [0, 1] or do not sum to 1."""
    of_image = tuple(range(1, probabilities.ndim))
    is_valid = probabilities.min(of_image) >= -1e-5  # unlike those of each pixel, results for each image are small
    if sum_to_one:
        sums = probabilities.sum(-1, keepdims=True)
        is_valid &= (sums.min(of_image) >= 1 - 1e-2) & (sums.max(of_image) <= 1 + 1e-2)
    else:
        is_valid &= probabilities.max(of_image) <= 1 + 1e-5
    invalid = np.flatnonzero(~is_valid)  # NaN makes each extreme NaN, which is not valid
    if len(invalid):
        others = f" and {plural(len(invalid) - 1, 'other image')}" if len(invalid) > 1 else ""
        raise DataError(
            f"The predicted probabilities of {paths[invalid[0]]}{others} are not between 0 and 1"
            f"{' or do not sum to 1' if sum_to_one else ''}: the weights are damaged or training diverged; train the "
            "model again."
        )


def compute_metrics(
    probabilities: NDArray[np.float32], labels: NDArray[np.int32], resampling: Resampling = EACH_IMAGE
) -> dict[str, Metric]:
    """Return all metrics by name, of probabilities float32 [N, K] and labels int32 [N]; missing ones have a note."""
    count, classes = probabilities.shape
    tops = [f"top_{k}" for k in ((1, 5) if classes > 5 else (1,))]
    if not count:
        return {name: Metric(None, note="there are no images") for name in (*tops, *NAMES, *METRICS)}
    values_by_name = {}
    for k, name in zip((1, 5), tops, strict=False):
        values_by_name[name] = resampling.estimate_fraction(metrics.in_top_k(probabilities, labels, k))
    true = probabilities[np.arange(count), labels].astype(np.float64)
    columns = np.stack([metrics.negative_log(true), metrics.brier_scores(probabilities, labels)], 1)
    resampled = resampling.resample_means(columns, "means")
    predictions = probabilities.argmax(1)
    narrow, is_perfect = explain_errors(predictions, labels), bool((predictions == labels).all())
    ranges = {"log_loss": LOSS, "brier": Range(0, 2)}
    for (name, of), values, means in zip(ranges.items(), columns.T, resampled.T, strict=True):
        metric = resampling.make_metric(float(values.mean()), means, count, note=narrow, of=of)
        values_by_name[name] = without_errors(metric) if is_perfect else metric
    return (
        values_by_name
        | _average_metrics(predictions, labels, classes, values_by_name["top_1"], resampling)
        | _ranking_metrics(probabilities, labels, resampling)
        | {name: _registered_metric(name, probabilities, labels, resampling) for name in METRICS}
    )


def explain_errors(predictions: NDArray[np.int64], labels: NDArray[np.int32]) -> str:
    """Return that the interval of a metric to which rare large errors contribute most is too narrow; or ""."""
    return FEW_ERRORS_NOTE if (predictions != labels).sum() < MIN_ERRORS else ""


def without_errors(loss: Metric) -> Metric:
    """Return a loss of images without an error, which has no interval: the errors missing determine the true loss."""
    return Metric(loss.value, None, NO_ERRORS_NOTE) if loss.interval else loss


def _registered_metric(
    name: str, probabilities: NDArray[np.float32], labels: NDArray[np.int32], resampling: Resampling
) -> Metric:
    returned = METRICS[name](probabilities, labels)
    try:
        value = float(returned)
    except (TypeError, ValueError) as error:
        raise PluginError(
            f"The metric {name!r} returned {returned!r:.80}, but expected a number, or NaN where it is undefined: "
            "see the function that was registered with @register_metric."
        ) from error
    if not np.isfinite(value):
        return Metric(None, note="undefined for these images")
    if note := resampling.explain_absence(len(labels)):
        return Metric(value, note=note)
    rows = resampling.draw_rows(len(labels), bootstrap.MIN_RESAMPLES, name)
    resampled = np.array([METRICS[name](probabilities[r], labels[r]) for r in rows], np.float64)
    return resampling.make_metric(value, resampled, len(labels), of=None)


def compute_class_metrics(confusion: NDArray[np.int64], classes: tuple[str, ...]) -> tuple[ClassMetrics, ...]:
    """Return precision, recall, F1 and support of each class, from a confusion matrix [K, K] (rows: true)."""
    counts = zip(
        classes, *(v.tolist() for v in (np.diagonal(confusion), confusion.sum(0), confusion.sum(1))), strict=True
    )
    return tuple(_class_metrics(*row) for row in counts)


def _class_metrics(label: str, hits: int, predicted: int, support: int) -> ClassMetrics:
    return ClassMetrics(
        label,
        hits / predicted if predicted else None,
        hits / support if support else None,
        2 * hits / (predicted + support) if support else None,
        support,
        intervals.wilson_interval(hits, predicted) if predicted else None,
        intervals.wilson_interval(hits, support) if support else None,
    )


def add_group_intervals(
    per_class: tuple[ClassMetrics, ...],
    predictions: NDArray[np.int64],
    labels: NDArray[np.int32],
    resampling: Resampling,
    is_accepted: NDArray[np.bool_] | None = None,
) -> tuple[ClassMetrics, ...]:
    """Return the metrics of the classes with the intervals of `grouped_proportions` in place of Wilson's.

    With `is_accepted` [N], the model abstains on the other images: they are predicted as none of the classes.
    """
    groups, size = resampling.groups, len(per_class)
    if groups is None:
        return per_class
    count = bootstrap.count_groups(groups) or 0

    def count_by_group(values: NDArray[np.integer[Any]], of: NDArray[np.bool_]) -> NDArray[np.float64]:
        cells = groups[of] * size + values[of]
        return np.bincount(cells, minlength=count * size).reshape(count, size).astype(np.float64)

    everything = np.ones(len(labels), bool)
    of = everything if is_accepted is None else is_accepted
    parts = (count_by_group(labels, of & (predictions == labels)), count_by_group(predictions, of))
    hits, predicted, true = *parts, count_by_group(labels, everything)
    ends = (estimate_grouped_proportions(hits, counts) for counts in (predicted, true))
    return tuple(
        replace(one, precision_interval=precision, recall_interval=recall)
        for one, precision, recall in zip(per_class, *ends, strict=True)
    )


def average_metrics(
    true_counts: NDArray[np.int64], predicted_counts: NDArray[np.int64], hits: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the `AVERAGES` [R, 6] from counts [R, K] of each class: images, predictions and correct predictions."""
    table = np.stack(
        [
            hits / np.maximum(predicted_counts, 1),
            hits / np.maximum(true_counts, 1),
            2 * hits / np.maximum(predicted_counts + true_counts, 1),
        ]
    )
    macro = (table * (true_counts > 0)).sum(2) / np.maximum((true_counts > 0).sum(1), 1)  # [3, R]
    weighted = (table * true_counts).sum(2) / np.maximum(true_counts.sum(1), 1)
    return np.concatenate([macro, weighted]).T


def _average_metrics(
    predictions: NDArray[np.int64],
    labels: NDArray[np.int32],
    classes: int,
    accuracy: Metric,
    resampling: Resampling,
) -> dict[str, Metric]:
    cells, cell, counts = np.unique(
        labels.astype(np.int64) * classes + predictions, return_inverse=True, return_counts=True
    )
    true, predicted = cells // classes, cells % classes

    def average(counted: NDArray[np.int64]) -> NDArray[np.float64]:  # [R, cells] -> [R, 6]
        true_counts, predicted_counts = (_sum_by_group(counted, by, classes) for by in (true, predicted))
        return average_metrics(
            true_counts, predicted_counts, _sum_by_group(counted * (true == predicted), true, classes)
        )

    values = dict(zip(AVERAGES, average(counts[None])[0].tolist(), strict=True))
    class_counts = {name: len(np.unique(labels)) if name.startswith("macro") else None for name in AVERAGES}
    same = {"weighted_recall": replace(accuracy, value=values["weighted_recall"])}  # it equals the accuracy
    if note := resampling.explain_absence(len(labels)):
        return {name: Metric(v, None, note, class_counts[name]) for name, v in values.items()} | same
    resampled = resampling.resample_counts(cell, len(cells), "averages")
    resampled_averages = np.concatenate(
        [average(chunk) for chunk in np.array_split(resampled, 1 + len(resampled) * classes // bootstrap.CHUNK)]
    )
    rows = dict(zip(AVERAGES, resampled_averages.T, strict=True))
    narrow = bootstrap.explain_width(np.bincount(labels))
    notes = {name: narrow if class_counts[name] or name == "weighted_precision" else "" for name in AVERAGES}
    return {
        name: resampling.make_metric(v, rows[name], len(labels), class_counts[name], notes[name])
        for name, v in values.items()
    } | same


def _sum_by_group(counted: NDArray[np.int64], by: NDArray[np.int64], groups: int) -> NDArray[np.int64]:
    """Sum the columns of `counted` [R, M] by their group in `by` [M]: [R, groups]."""
    order = np.argsort(by, kind="stable")
    firsts = np.flatnonzero(np.diff(by[order], prepend=-1))
    out = np.zeros((len(counted), groups), np.int64)
    out[:, by[order][firsts]] = np.add.reduceat(counted[:, order], firsts, axis=1)
    return out


def _ranking_metrics(
    probabilities: NDArray[np.float32], labels: NDArray[np.int32], resampling: Resampling
) -> dict[str, Metric]:
    """Return macro AUROC and average precision, one-vs-rest; for two classes, AUROC is the same for both."""
    count, classes = probabilities.shape
    present, supports = np.unique(labels, return_counts=True)
    if len(present) < 2:
        return {name: Metric(None, note="all images are of one class", classes=0) for name in RANKINGS}
    blocks = BlockBootstrap.draw(count, len(present), resampling, "ranking")
    means = blocks.rank_classes(probabilities[:, present], labels[:, None] == present)[-1]
    narrow = bootstrap.explain_width(supports)
    rarer = bootstrap.choose_rarer(labels == present[0]) if len(present) == 2 else None
    auroc, average = (
        resampling.make_metric(float(row[0]), row[1:], count, len(present), narrow, having=rarer) for row in means
    )
    if resampling.explain_absence(count, rarer):
        return {"auroc": auroc, "average_precision": average}
    how = "mean of both classes" if classes == 2 else "mean over classes, one-vs-rest"

    def explain(metric: Metric) -> Metric:
        return replace(metric, note="; ".join(filter(None, [how, metric.note])))

    return {"auroc": auroc if classes == 2 else explain(auroc), "average_precision": explain(average)}


NO_GROUPS: Mapping[str, str] = MappingProxyType({})


def compute_evaluation(
    classes: tuple[str, ...],
    probabilities: NDArray[np.float32],
    samples: Subset,
    *,
    unreadable: Sequence[UnreadableImage] = (),
    group_by_path: Mapping[str, str] = NO_GROUPS,
) -> EvaluationResult:
    """Compute the metrics of `probabilities` float32 [N, K] against the labels of `samples`.

    `group_by_path` names the group of each image. If there are groups, intervals resample them, since the images of a
    group depend on each other. Raises `DataError` for invalid probabilities, see `check_probabilities`.
    """
    check_probabilities(probabilities, samples.paths)
    predictions = probabilities.argmax(1)
    confusion = metrics.confusion_matrix(samples.labels, predictions, len(classes))
    correct_count, count = int(np.trace(confusion)), len(samples)
    resampling = Resampling(groups=bootstrap.number_groups(samples.paths, group_by_path))
    num_groups = bootstrap.count_groups(resampling.groups)
    all_metrics = compute_metrics(probabilities, samples.labels, resampling)
    per_class = compute_class_metrics(confusion, classes)
    if num_groups is not None:
        per_class = add_group_intervals(per_class, predictions, samples.labels, resampling)
    return EvaluationResult(
        classes=classes,
        accuracy=correct_count / count if count else 0.0,
        accuracy_interval=find_accuracy_interval(all_metrics["top_1"], count if num_groups is None else num_groups),
        loss=metrics.cross_entropy(probabilities, samples.labels),
        count=count,
        per_class=per_class,
        confusion=confusion,
        unreadable=tuple(unreadable),
        paths=samples.paths,
        labels=samples.labels,
        probabilities=probabilities,
        seconds=0.0,
        metrics=all_metrics,
        groups=num_groups,
    )


def find_accuracy_interval(accuracy: Metric, count: int) -> Interval:
    """Return the interval of an accuracy; Wilson's for one decision in each of `count` groups if resampling gave none.

    All images of a perfect classifier are right in every resample. The labels or pixels of an image depend on each
    other, so they count as one decision.
    """
    if accuracy.value is None:
        return Interval(0.0, 1.0)
    return accuracy.interval or intervals.wilson_interval(round(accuracy.value * count), count)
