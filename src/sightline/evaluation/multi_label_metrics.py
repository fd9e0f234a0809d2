"""Metrics of several labels per image, each with its 95% interval.

N images have probabilities float32 [N, K] of K classes, and labels bool [N, K]: the classes that each image shows. The
bootstrap resamples images. Means over classes skip classes without images, as those of one label do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline import intervals, metrics
from sightline.evaluation import bootstrap
from sightline.evaluation.calibration import BINS, bin_indices
from sightline.evaluation.results import Metric
from sightline.evaluation.scoring import ONE_IMAGE_NOTE
from sightline.intervals import Interval

NO_IMAGES = Metric(None, note="there are no images")
RANKED = ("mean_average_precision", "micro_average_precision", "auroc", "micro_auroc")
COUNTED = ("micro_f1", "macro_f1", "micro_precision", "micro_recall", "macro_precision", "macro_recall")
AVERAGED = ("example_f1", "hamming_loss", "ranking_loss", "coverage_error", "log_loss")
NAMES = (*RANKED, *COUNTED, *AVERAGED, "subset_accuracy", "calibration_error")


@dataclass(frozen=True, slots=True)
class LabelMetrics:
    """The metrics of one class: which images have it, as its probability and its `threshold` tell.

    `support` images of the `count` have the class. Precision and recall have Wilson's 95% intervals; None where they
    are not defined: precision if the class was never predicted, recall and F1 if no image has it.
    """

    label: str
    support: int
    count: int
    threshold: float
    precision: float | None
    precision_interval: Interval | None
    recall: float | None
    recall_interval: Interval | None
    f1: float | None
    average_precision: Metric
    auroc: Metric
    calibration_error: float


def compute_label_metrics(
    probabilities: NDArray[np.float32], labels: NDArray[np.bool_], thresholds: NDArray[np.float64], seed: int = 0
) -> dict[str, Metric]:
    """Return all metrics over all classes by name; a class is predicted from its threshold in `thresholds` [K] on."""
    count = len(labels)
    if not count:
        return dict.fromkeys(NAMES, NO_IMAGES)
    predicted = probabilities >= thresholds
    hits = int((predicted == labels).all(1).sum())
    return {
        **_rank_all(probabilities, labels, seed),
        **_count_all(predicted, labels, seed),
        **_average_examples(probabilities, predicted, labels, seed),
        "subset_accuracy": Metric(hits / count, intervals.wilson_interval(hits, count)),
        "calibration_error": Metric(
            float(np.mean([compute_calibration_error(p, y) for p, y in zip(probabilities.T, labels.T, strict=True)])),
            note="mean over the classes; it has no interval",
        ),
    }


def compute_class_metrics(
    classes: tuple[str, ...],
    probabilities: NDArray[np.float32],
    labels: NDArray[np.bool_],
    thresholds: NDArray[np.float64],
    seed: int = 0,
) -> tuple[LabelMetrics, ...]:
    """Return the metrics of each class."""
    predicted = probabilities >= thresholds
    rows = []
    for k, label in enumerate(classes):
        p, y, chosen = probabilities[:, k], labels[:, k], predicted[:, k]
        hits, support, total = int((chosen & y).sum()), int(y.sum()), int(chosen.sum())
        average_precision, auroc = _rank_class(p, y, seed, label)
        rows.append(
            LabelMetrics(
                label, support, len(y), float(thresholds[k]),
                hits / total if total else None, intervals.wilson_interval(hits, total) if total else None,
                hits / support if support else None, intervals.wilson_interval(hits, support) if support else None,
                2 * hits / (support + total) if support else None,
                average_precision, auroc, compute_calibration_error(p, y),
            )
        )  # fmt: skip
    return tuple(rows)


def _rank_class(p: NDArray[np.float32], y: NDArray[np.bool_], seed: int, label: str) -> tuple[Metric, Metric]:
    """Return the average precision and the AUROC of one class."""
    if not y.any() or y.all():
        note = "no image has the class" if not y.any() else "all images have the class"
        return Metric(1.0 if y.any() else None, note=note), Metric(None, note=note)
    scores, count = p.astype(np.float64), len(y)
    auroc, average = (float(v[0]) for v in metrics.auroc_and_ap(scores, y, np.ones((1, count))))
    number = bootstrap.count_resamples(count) or bootstrap.MIN_RESAMPLES
    resampled = np.concatenate(
        [metrics.auroc_and_ap(scores, y, w) for w in bootstrap.draw_weights(count, number, seed, f"label {label}")],
        axis=1,
    )
    return bootstrap.make_metric(average, resampled[1]), bootstrap.make_metric(auroc, resampled[0])


def compute_calibration_error(probabilities: NDArray[np.float32], labels: NDArray[np.bool_]) -> float:
    """Return the expected calibration error of the probabilities [N] of one class, in [0, 1]; 0 for no images.

    It compares the mean probability with the fraction of images that have the class, in `BINS` equal intervals.
    """
    if not len(labels):
        return 0.0
    p = probabilities.astype(np.float64)
    number = bin_indices(p)
    gaps = np.bincount(number, p, BINS) - np.bincount(number, labels.astype(np.float64), BINS)
    return float(np.abs(gaps).sum() / len(labels))


def _rank_all(probabilities: NDArray[np.float32], labels: NDArray[np.bool_], seed: int) -> dict[str, Metric]:
    """Return average precision and AUROC: the mean over the classes, and over all pairs of an image and a class."""
    count, classes = labels.shape
    scores = probabilities.astype(np.float64)
    present = np.flatnonzero(labels.any(0) & ~labels.all(0))
    if not len(present):
        return dict.fromkeys(RANKED, Metric(None, note="every class has all images or none", classes=0))

    def rank(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the four metrics for R resamples of the images, [4, R]."""
        each = np.array([metrics.auroc_and_ap(scores[:, k], labels[:, k], weights) for k in present])
        auroc, average = _mean_of_finite(each[:, 0]), _mean_of_finite(each[:, 1])
        micro = metrics.auroc_and_ap(scores.ravel(), labels.ravel(), np.repeat(weights, classes, axis=1))
        return np.stack([average, micro[1], auroc, micro[0]])

    values = rank(np.ones((1, count)))[:, 0]
    number = bootstrap.count_resamples(count, 2 * classes)
    if not number or count < 2:
        note = ONE_IMAGE_NOTE if count < 2 else f"no interval: {classes} classes of {count} images would take too long"
        return {n: Metric(float(v), None, note, len(present)) for n, v in zip(RANKED, values, strict=True)}
    resampled = np.concatenate([rank(w) for w in bootstrap.draw_weights(count, number, seed, "ranking")], axis=1)
    return {
        name: bootstrap.make_metric(float(value), row, None if name.startswith("micro") else len(present))
        for name, value, row in zip(RANKED, values, resampled, strict=True)
    }


def _mean_of_finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the rows of `values` [M, R] that are finite: classes that a resample holds."""
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        mean: NDArray[np.float64] = np.where(finite, values, 0).sum(0) / finite.sum(0)
    return mean


def _count_all(predicted: NDArray[np.bool_], labels: NDArray[np.bool_], seed: int) -> dict[str, Metric]:
    """Return precision, recall and F1: of the counts of all classes together (micro), and their means (macro)."""
    counts = np.concatenate([predicted & labels, predicted, labels], axis=1).astype(np.float64)
    supported = labels.sum(0) > 0
    values = _average_counts(counts.mean(0, keepdims=True), supported)[:, 0]
    resampled = _average_counts(bootstrap.resample_means(counts, seed, "counts"), supported)
    return {
        name: _make_metric(float(value), row, len(labels), None if name.startswith("micro") else int(supported.sum()))
        for name, value, row in zip(COUNTED, values, resampled, strict=True)
    }


def _average_counts(means: NDArray[np.float64], supported: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the metrics `COUNTED` [6, R] of the means [R, 3K] of hits, predictions and labels.

    A class that is never predicted has precision 0, as in scikit-learn.
    """
    hits, predicted, true = (counts[:, supported] for counts in np.split(means, 3, axis=1))
    hits_all, predicted_all, true_all = (counts.sum(1) for counts in np.split(means, 3, axis=1))

    def divide(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.divide(a, b, out=np.zeros_like(a), where=b > 0)

    per_class = [divide(2 * hits, predicted + true), divide(hits, predicted), divide(hits, true)]
    in_resample = np.maximum((true > 0).sum(1), 1)
    macro = [np.where(true > 0, values, 0).sum(1) / in_resample for values in per_class]
    return np.stack([
        divide(2 * hits_all, predicted_all + true_all), macro[0], divide(hits_all, predicted_all),
        divide(hits_all, true_all), macro[1], macro[2],
    ])  # fmt: skip


def _average_examples(
    probabilities: NDArray[np.float32], predicted: NDArray[np.bool_], labels: NDArray[np.bool_], seed: int
) -> dict[str, Metric]:
    """Return the means over the images of metrics that each image has."""
    sizes = predicted.sum(1) + labels.sum(1)
    hits = (predicted & labels).sum(1)
    p = probabilities.astype(np.float64)
    columns = np.stack([
        np.where(sizes == 0, 1.0, 2 * hits / np.maximum(sizes, 1)),  # nothing to find, nothing found
        (predicted != labels).mean(1),
        compute_ranking_losses(p, labels),
        compute_coverage(p, labels),
        metrics.negative_log(np.where(labels, p, 1 - p)).mean(1),
    ], axis=1)  # fmt: skip
    resampled = bootstrap.resample_means(columns, seed, "means")
    return {
        name: _make_metric(float(column.mean()), row, len(labels))
        for name, column, row in zip(AVERAGED, columns.T, resampled.T, strict=True)
    }


def _make_metric(value: float, resampled: NDArray[np.float64], count: int, classes: int | None = None) -> Metric:
    if count < 2:
        return Metric(value, None, ONE_IMAGE_NOTE, classes)
    return bootstrap.make_metric(value, resampled, classes)


def compute_ranking_losses(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the fraction of wrongly ordered pairs of a class that each image has and one that it has not, [N].

    Ties count as wrong; an image with all classes or none has 0 (Tsoumakas et al., 2010, as in scikit-learn).
    """
    wrong = np.zeros(len(scores))
    for k in range(scores.shape[1]):  # one class at a time: [N, K] in memory, not [N, K, K]
        wrong += labels[:, k] * ((scores >= scores[:, k, None]) & ~labels).sum(1)
    pairs = labels.sum(1) * (~labels).sum(1)
    losses: NDArray[np.float64] = np.divide(wrong, pairs, out=np.zeros(len(scores)), where=pairs > 0)
    return losses


def compute_coverage(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return how far down the ranking of the classes one must go to find all that each image has, [N]; 0 for none."""
    lowest = np.where(labels, scores, np.inf).min(1, keepdims=True)
    depth: NDArray[np.float64] = (scores >= lowest).sum(1).astype(np.float64)
    return depth
