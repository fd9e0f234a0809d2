"""Intervals of expected calibration errors, to which noise adds: see `bootstrap.find_error_ends`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sightline.errors import plural
from sightline.evaluation.block_bootstrap import BlockBootstrap
from sightline.evaluation.bootstrap import Resampling, find_error_ends
from sightline.evaluation.calibration import BINS, MIN_ERRORS, bin_indices
from sightline.evaluation.results import NO_IMAGES, Metric
from sightline.intervals import Interval


def estimate_calibration_errors(
    probabilities: NDArray[np.float32], labels: NDArray[np.bool_], resampling: Resampling
) -> tuple[list[Metric], Metric]:
    """Return the expected calibration error of each class of `probabilities` [N, K], in [0, 1], and their mean.

    It compares the mean probability with the fraction of images that have the class, in `BINS` equal intervals; it is 0
    for no images. The ends of an interval are those of `bootstrap.find_error_ends`.
    """
    count, classes = labels.shape
    if not count:
        return [Metric(0.0)] * classes, NO_IMAGES
    p, note = probabilities.astype(np.float64), resampling.explain_absence(count)
    bins, differences = bin_indices(p), p - labels
    blocks = BlockBootstrap.draw(count, classes, resampling, "calibration")
    counts = blocks.resample_sums(np.ones((count, 1)))
    errors, noise = np.empty((classes, len(counts))), np.empty((classes, len(counts)))
    for k in range(classes):
        gaps = blocks.resample_bins(differences[:, k], bins[:, k], BINS) / counts  # [1 + R, BINS]
        errors[k], noise[k] = np.abs(gaps).sum(1), np.abs(gaps - gaps[0]).sum(1)

    def make(errors: NDArray[np.float64], noise: NDArray[np.float64]) -> Metric:
        value = float(errors[0])
        return Metric(value, None, note) if note else Metric(value, find_error_ends(value, errors[1:], noise[1:]))

    return list(map(make, errors, noise)), make(errors.mean(0), noise.mean(0))


def estimate_ece_interval(
    p: NDArray[np.float32], labels: NDArray[np.int32], resampling: Resampling
) -> tuple[Interval | None, str]:
    """Return the bootstrap interval of the ECE of probabilities `p` [N, K] of labels [N], or None and the reason.

    Few errors give resamples that hardly differ, and so an interval that is far too narrow.
    """
    correct = p.argmax(1) == labels
    if (errors := int((~correct).sum())) < MIN_ERRORS:
        return None, f"no interval with {plural(errors, 'error')}: it needs at least {MIN_ERRORS}"
    metric = estimate_calibration_errors(p.max(1)[:, None], correct[:, None], resampling)[1]
    return metric.interval, metric.note
