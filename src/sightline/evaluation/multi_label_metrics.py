"""Multi-label metrics, each with its 95% interval.

N images have probabilities float32 [N, K] of K classes, and labels bool [N, K]: the classes that each image shows. The
bootstrap resamples images, or groups if the run was split by groups. Means over classes skip classes without images,
as for single-label metrics.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline import metrics
from sightline.evaluation import bootstrap
from sightline.evaluation.block_bootstrap import BlockBootstrap
from sightline.evaluation.bootstrap import Resampling
from sightline.evaluation.calibration_intervals import estimate_calibration_errors
from sightline.evaluation.results import NO_IMAGES, Metric
from sightline.evaluation.scoring import without_errors
from sightline.intervals import LOSS, RATE, SIGNED, Interval, Range

RANKED = ("mean_average_precision", "micro_average_precision", "auroc", "micro_auroc")
COUNTED = ("micro_f1", "macro_f1", "micro_precision", "micro_recall", "macro_precision", "macro_recall")
AVERAGED = ("example_f1", "hamming_loss", "ranking_loss", "coverage_error", "log_loss")
NAMES = (*RANKED, *COUNTED, *AVERAGED, "subset_accuracy", "calibration_error")


@dataclass(frozen=True, slots=True)
class LabelMetrics:
    """The metrics of one class, which is predicted by its probability and its `threshold` (None: never).

    `support` images of the `count` have the class. Precision and recall have Wilson's 95% intervals, or those of
    `grouped_proportions`; None where they are not defined: precision if the class was never predicted, recall and F1
    if no image has it. The interval of F1 comes from the proportion J of images with the class predicted correctly
    among those that have it or are predicted to, since F1 is 2 J / (1 + J) (Lam et al., 2023, arXiv:2309.14621); it has
    a positive width even without an error. The calibration error has the interval of `estimate_calibration_errors`.
    """

    label: str
    support: int
    count: int
    threshold: float | None
    precision: float | None
    precision_interval: Interval | None
    recall: float | None
    recall_interval: Interval | None
    f1: float | None
    average_precision: Metric
    auroc: Metric
    calibration_error: float
    f1_interval: Interval | None = None
    calibration_interval: Interval | None = None


def compute_label_metrics(
    classes: tuple[str, ...],
    probabilities: NDArray[np.float32],
    labels: NDArray[np.bool_],
    thresholds: NDArray[np.float64],
    seed: int = 0,
    groups: NDArray[np.int64] | None = None,
    predicted: NDArray[np.bool_] | None = None,
) -> tuple[dict[str, Metric], tuple[LabelMetrics, ...]]:
    """Return the metrics over all classes by name, and those of each class, predicted at its threshold or above.

    `thresholds` are float64 [K], infinity for a class that is never predicted. `groups` int64 [N] number the groups of
    the images from 0; None if images are independent. `predicted` bool [N, K] are the predicted classes, if thresholds
    differ between images.
    """
    count = len(labels)
    predicted = probabilities >= thresholds if predicted is None else predicted
    resampling = Resampling(seed, groups)
    ranked, ranked_classes = _rank(probabilities, labels, resampling)
    precisions = resampling.estimate_proportions(labels, predicted)
    recalls = resampling.estimate_proportions(predicted, labels)
    jaccard = resampling.estimate_proportions(labels & predicted, labels | predicted)
    ranges = zip(precisions, recalls, map(_convert_to_f1, jaccard), strict=True)
    errors, overall = estimate_calibration_errors(probabilities, labels, resampling)
    per_class = tuple(
        _measure_class(label, float(cut), y, chosen, pair, rates, error)
        for label, cut, y, chosen, pair, rates, error in zip(
            classes, thresholds, labels.T, predicted.T, ranked_classes, ranges, errors, strict=True
        )
    )
    if not count:
        return dict.fromkeys(NAMES, NO_IMAGES), per_class
    return {
        **ranked,
        **_count_all(predicted, labels, resampling),
        **_average_examples(probabilities, predicted, labels, resampling),
        "subset_accuracy": resampling.estimate_fraction((predicted == labels).all(1)),
        "calibration_error": overall,
    }, per_class


def _measure_class(
    label: str,
    threshold: float,
    y: NDArray[np.bool_],
    predicted: NDArray[np.bool_],
    ranked: tuple[Metric, Metric],
    rates: tuple[Interval | None, Interval | None, Interval | None],
    calibration: Metric,
) -> LabelMetrics:
    hits, support, total = int((predicted & y).sum()), int(y.sum()), int(predicted.sum())
    return LabelMetrics(
        label, support, len(y), threshold if np.isfinite(threshold) else None,
        hits / total if total else None, rates[0], hits / support if support else None, rates[1],
        2 * hits / (support + total) if support else None,
        *ranked, calibration.value or 0.0, rates[2] if support else None, calibration.interval,
    )  # fmt: skip


def _convert_to_f1(jaccard: Interval | None) -> Interval | None:
    return None if jaccard is None else Interval(*(2 * end / (1 + end) for end in jaccard))


def _rank(
    probabilities: NDArray[np.float32], labels: NDArray[np.bool_], resampling: Resampling
) -> tuple[dict[str, Metric], list[tuple[Metric, Metric]]]:
    """Return average precision and AUROC: the metrics `RANKED` over all classes, and both of each class.

    All use the same resamples of the images, since ranking them takes longest.
    """
    count, classes = labels.shape
    scores, supports = probabilities.astype(np.float64), labels.sum(0)
    ranks = np.full((classes + 2, 2, 1), np.nan)
    if count:
        blocks = BlockBootstrap.draw(count, classes, resampling, "ranking")
        ranks = np.concatenate([blocks.rank_classes(scores, labels), blocks.rank_pairs(scores, labels)[None]])

    def make(row: int, column: int, undefined: str, included: int | None = None) -> Metric:
        values = ranks[row, column]
        if np.isnan(values[0]):
            return Metric(None, None, undefined, included)
        note = "" if included is None else bootstrap.explain_width(supports)
        rarer = bootstrap.choose_rarer(labels[:, row]) if included is None and row >= 0 else None
        return resampling.make_metric(float(values[0]), values[1:], count, included, note, having=rarer)

    neither, uniform = "no image has a class", "every class has all images or none"
    mean_of, mean_of_both = int((supports > 0).sum()), int(((supports > 0) & (supports < count)).sum())
    overall = (
        make(-2, 1, neither, mean_of), make(-1, 1, neither),
        make(-2, 0, uniform, mean_of_both), make(-1, 0, "every image has all classes or none has any"),
    )  # fmt: skip
    reasons = [f"{'all images have' if support else 'no image has'} the class" for support in supports]
    each_class = [(make(k, 1, reason), make(k, 0, reason)) for k, reason in enumerate(reasons)]
    return dict(zip(RANKED, overall, strict=True)), each_class


@dataclass(frozen=True, slots=True)
class LabelSetComparison:
    """Metrics of the second of two classifiers with several labels per image minus those of the first.

    Each has the 95% interval of a paired bootstrap: images are resampled with the predictions of both.
    """

    mean_average_precision: Metric
    micro_f1: Metric
    macro_f1: Metric


def compare_label_sets(
    labels: NDArray[np.bool_],
    probabilities: tuple[NDArray[np.float32], NDArray[np.float32]],
    predicted: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    groups: NDArray[np.int64] | None,
) -> LabelSetComparison:
    """Compare two classifiers by their `probabilities` and `predicted` classes of the same N images, at least one."""
    count, classes = labels.shape
    resampling, supported = Resampling(groups=groups), labels.sum(0) > 0
    blocks = BlockBootstrap.draw(count, 2 * classes, resampling, "ranking")
    precisions = [blocks.rank_classes(p, labels)[-1, 1] for p in probabilities]
    counts = np.concatenate([of for chosen in predicted for of in (chosen & labels, chosen, labels)], axis=1)
    sums = BlockBootstrap.draw(count, 1, resampling, "counts").resample_sums(counts.astype(np.float64))
    first, second = (_average_counts(of, supported)[:2] for of in np.split(sums, 2, axis=1))

    def make(differences: NDArray[np.float64]) -> Metric:
        if not supported.any():
            return Metric(None, None, "no image has a class")
        return resampling.make_metric(float(differences[0]), differences[1:], count, of=SIGNED)

    return LabelSetComparison(make(precisions[1] - precisions[0]), *map(make, second - first))


def _count_all(predicted: NDArray[np.bool_], labels: NDArray[np.bool_], resampling: Resampling) -> dict[str, Metric]:
    """Return precision, recall and F1: of the counts of all classes together (micro), and their means (macro)."""
    counts = np.concatenate([predicted & labels, predicted, labels], axis=1).astype(np.float64)
    supports = labels.sum(0)
    supported = supports > 0
    sums = BlockBootstrap.draw(len(labels), 1, resampling, "counts").resample_sums(counts)
    of_classes = (int(supported.sum()), bootstrap.explain_width(supports))
    return {
        name: resampling.make_metric(
            float(row[0]), row[1:], len(labels), *(of_classes if name.startswith("macro") else ())
        )
        for name, row in zip(COUNTED, _average_counts(sums, supported), strict=True)
    }


def _average_counts(sums: NDArray[np.float64], supported: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the metrics `COUNTED` [6, R] of the sums [R, 3K] of hits, predictions and labels.

    A class that is never predicted has precision 0, as in scikit-learn.
    """
    hits, predicted, true = (counts[:, supported] for counts in np.split(sums, 3, axis=1))
    hits_all, predicted_all, true_all = (counts.sum(1) for counts in np.split(sums, 3, axis=1))

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
    probabilities: NDArray[np.float32],
    predicted: NDArray[np.bool_],
    labels: NDArray[np.bool_],
    resampling: Resampling,
) -> dict[str, Metric]:
    """Return the means over the images of metrics that are defined for each image."""
    p = probabilities.astype(np.float64)
    columns = np.stack([
        compute_example_f1(predicted, labels),
        (predicted != labels).mean(1),
        compute_ranking_losses(p, labels),
        compute_coverage(p, labels),
        metrics.negative_log(np.where(labels, p, 1 - p)).mean(1),
    ], axis=1)  # fmt: skip
    ranges = {"coverage_error": Range(0, labels.shape[1]), "log_loss": LOSS}  # the others are between 0 and 1
    blocks = BlockBootstrap.draw(len(labels), 1, resampling, "means")
    resampled = (blocks.resample_sums(columns) / blocks.resample_sums(np.ones((len(labels), 1))))[1:]
    values = {
        name: resampling.make_metric(float(column.mean()), row, len(labels), of=ranges.get(name, RATE))
        for name, column, row in zip(AVERAGED, columns.T, resampled.T, strict=True)
    }
    return values | ({"log_loss": without_errors(values["log_loss"])} if (predicted == labels).all() else {})


def compute_example_f1(predicted: NDArray[np.bool_], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the F1 of the `predicted` classes of each image, bool [N, K], float64 [N]; 1 if both sets are empty.

    >>> compute_example_f1(np.array([[True, True], [False, False]]), np.array([[True, False], [False, False]])).tolist()
    [0.6666666666666666, 1.0]
    """
    sizes = predicted.sum(1) + labels.sum(1)
    hits = (predicted & labels).sum(1)
    return np.where(sizes == 0, 1.0, 2 * hits / np.maximum(sizes, 1))  # nothing to predict, nothing predicted


def compute_ranking_losses(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return, for each image, the fraction of wrongly ordered pairs of a class that it has and one that it lacks, [N].

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
