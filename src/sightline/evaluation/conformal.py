"""Conformal prediction sets, which contain the true class with a given probability, and label sets, for any model.

The probability is over validation and new images drawn from the same source (Vovk et al., 2005; Lei et al., 2018). The
score is "lac" (least ambiguous sets), which has the smallest sets on average.

Label sets miss at most a given fraction of the labels of an image on average (conformal risk control: Angelopoulos et
al., 2022, arXiv:2208.02814). The loss of an image is the fraction of its labels that its set lacks, its false-negative
rate; an image without labels has a loss of 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline.errors import DataError, UsageError
from sightline.evaluation.bootstrap import EACH_IMAGE, Resampling
from sightline.evaluation.results import Metric
from sightline.inference.decisions import compute_nonconformity, make_prediction_sets
from sightline.inference.results import Nonconformity
from sightline.intervals import Interval

ALL_CLASSES = 2.0  # above every score: the set contains all classes


@dataclass(frozen=True, slots=True)
class SetCoverage:
    """Prediction sets on `count` images: the fraction that contains the true class, its interval, and the mean size.

    The interval is [0, 1] if all images are of one group. `fitted`: the sets were fitted on these images.
    """

    target: float
    coverage: float
    interval: Interval
    mean_size: float
    singleton_fraction: float
    count: int
    fitted: bool = False


def fit_quantile(
    probabilities: NDArray[np.float32], labels: NDArray[np.int32], coverage: float, score: Nonconformity = "lac"
) -> float:
    """Return the highest score of classes in the set: the ceil((N + 1) coverage)-th smallest score of true classes.

    `probabilities` are float32 [N, K], `labels` int32 [N]. It is 2, so that the set has all classes, if N images are
    too few for the coverage. Raises `UsageError` for a coverage outside (0, 1) and `DataError` if there are no images.
    """
    if not 0 < coverage < 1:
        raise UsageError(f"The coverage must be between 0 and 1, e.g. 0.9; got {coverage}.")
    if not len(labels):
        raise DataError("There are no validation images to fit prediction sets on: use a validation split.")
    scores = np.sort(compute_nonconformity(probabilities, score)[np.arange(len(labels)), labels])
    rank = math.ceil((len(labels) + 1) * coverage - 1e-9)
    return float(scores[rank - 1]) if rank <= len(labels) else ALL_CLASSES


def evaluate_sets(
    probabilities: NDArray[np.float32],
    labels: NDArray[np.int32],
    quantile: float,
    coverage: float,
    score: Nonconformity = "lac",
    resampling: Resampling = EACH_IMAGE,
) -> SetCoverage:
    """Return coverage and size of the sets on images that were not used to fit them.

    `probabilities` are float32 [N, K], `labels` int32 [N]; `quantile` is that of `fit_quantile`.
    """
    in_set = make_prediction_sets(probabilities, quantile, score)
    hits, count = in_set[np.arange(len(labels)), labels], len(labels)
    (interval,) = resampling.estimate_proportions(hits[:, None], np.ones((count, 1), bool))
    sizes = in_set.sum(1)
    size, single = (float(v.mean()) if count else 0.0 for v in (sizes, sizes == 1))
    return SetCoverage(coverage, int(hits.sum()) / max(count, 1), interval or Interval(0.0, 1.0), size, single, count)


@dataclass(frozen=True, slots=True)
class LabelSetMetrics:
    """Label sets on `count` images: the mean false-negative rate, and the mean number of classes in a set."""

    target: float
    threshold: float
    fnr: Metric
    mean_size: float
    empty_fraction: float
    count: int


def fit_set_threshold(probabilities: NDArray[np.float32], labels: NDArray[np.bool_], target: float) -> float:
    """Return the lowest probability of a class in the set, chosen so that the false-negative rate is at most `target`.

    Of N images, it is the highest for which (the sum of their losses + 1) / (N + 1) is at most the target: a new image
    counts as if all its labels were missed. It is 0, so that the set has all classes, if the images are too few for the
    target. `probabilities` are float32 [N, K], `labels` bool [N, K]. Raises `UsageError` for a target outside (0, 1)
    and `DataError` if no image has a label.
    """
    if not 0 < target < 1:
        raise UsageError(f"The target false-negative rate must be between 0 and 1, e.g. 0.1; got {target}.")
    sizes = labels.sum(1)
    if not sizes.any():
        raise DataError("No validation image has a label, which label sets are fitted on: use other validation images.")
    rows, columns = np.nonzero(labels)
    scores, losses = probabilities[rows, columns], 1 / sizes[rows]
    order = np.argsort(scores, kind="stable")
    cuts, first = np.unique(scores[order], return_index=True)
    missed = np.append(0.0, np.cumsum(losses[order]))[first]  # labels missed by a set from each cut on: those below it
    allowed = np.flatnonzero(missed + 1 <= target * (len(labels) + 1) + 1e-9)
    return float(cuts[allowed[-1]]) if len(allowed) else 0.0


def compute_false_negative_rates(in_set: NDArray[np.bool_], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the fraction of the labels of each image that its set lacks, float64 [N]; 0 for an image without any.

    >>> labels = np.array([[True, True], [False, False]])
    >>> compute_false_negative_rates(np.array([[True, False], [True, True]]), labels).tolist()
    [0.5, 0.0]
    """
    rates: NDArray[np.float64] = (labels & ~in_set).sum(1) / np.maximum(labels.sum(1), 1)
    return rates


def evaluate_label_sets(
    probabilities: NDArray[np.float32],
    labels: NDArray[np.bool_],
    threshold: float,
    target: float,
    cuts: NDArray[np.float64] | float | None = None,
    resampling: Resampling = EACH_IMAGE,
) -> LabelSetMetrics:
    """Return the false-negative rate and the size of the sets on images that were not used to fit them.

    `cuts` are thresholds of the images, float64 [N, 1], used instead of the `threshold`; `resampling` defines which
    images depend on each other.
    """
    in_set = probabilities.astype(np.float64) >= (threshold if cuts is None else cuts)
    rates, sizes, count = compute_false_negative_rates(in_set, labels), in_set.sum(1), len(labels)
    if not count:
        fnr = Metric(None, None, "there are no images")
    else:
        fnr = resampling.make_metric(
            float(rates.mean()), resampling.resample_means(rates[:, None], "label sets")[:, 0], count
        )
    size, empty = (float(values.mean()) if count else 0.0 for values in (sizes, sizes == 0))
    return LabelSetMetrics(target, threshold, fnr, size, empty, count)
