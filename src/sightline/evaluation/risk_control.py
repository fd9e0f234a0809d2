"""Conformal risk control: label sets that miss at most a given fraction of the labels of an image on average.

The average is over validation and new images drawn from the same source, for any model (Angelopoulos et al., 2022,
arXiv:2208.02814). The loss of an image is the fraction of its labels that its set lacks, its false-negative rate; that
of an image without labels is 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline.errors import DataError, UsageError
from sightline.evaluation.bootstrap import EACH_IMAGE, Resampling
from sightline.evaluation.results import Metric


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
    """Return the probability from which on a class is in the set, so that the false-negative rate is at most `target`.

    Of N images, it is the highest for which (the sum of their losses + 1) / (N + 1) is at most the target: a new image
    counts as if it lost everything. It is 0, so that the set has all classes, if the images are too few for the target.
    `probabilities` are float32 [N, K], `labels` bool [N, K]. Raises `UsageError` for a target outside (0, 1) and
    `DataError` if no image has a label.
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
    missed = np.append(0.0, np.cumsum(losses[order]))[first]  # by a set from each cut on: the labels below it
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

    `cuts` are thresholds of the images, float64 [N, 1], in place of the `threshold`; `resampling` says which images
    depend on each other.
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
