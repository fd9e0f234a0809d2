"""Estimates without labels from validation images in groups: the intervals are as wide as the groups make them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from sightline.evaluation.accuracy_estimate import estimate_accuracy
from sightline.evaluation.iou_estimate import estimate_mean_iou
from sightline.evaluation.label_estimate import estimate_micro_f1
from sightline.evaluation.results import Metric

Groups = NDArray[np.int64] | None
COPIES = 9


def estimate_from_confidences(rows: NDArray[np.int64], groups: Groups) -> tuple[Metric, Metric]:
    rng = np.random.default_rng(0)
    confidences = (0.5 + 0.5 * rng.beta(3, 1, 150)).astype(np.float32)
    correct, new = rng.random(150) < confidences, (0.5 + 0.5 * rng.beta(3, 1, 20_000)).astype(np.float32)
    estimate = estimate_accuracy(confidences[rows], correct[rows], new, groups=groups)
    return estimate.accuracy, estimate.by_difference


def estimate_from_quality(rows: NDArray[np.int64], groups: Groups) -> tuple[Metric, Metric]:
    rng = np.random.default_rng(0)
    quality = rng.uniform(0.5, 0.9, 150)
    ious = np.clip(quality + rng.normal(0, 0.15, 150), 0, 1)
    estimate = estimate_mean_iou(quality[rows], ious[rows], rng.uniform(0.5, 0.9, 20_000), groups=groups)
    return estimate.iou, estimate.by_difference


def estimate_from_probabilities(rows: NDArray[np.int64], groups: Groups) -> tuple[Metric, Metric]:
    rng = np.random.default_rng(0)
    probabilities, new = rng.random((150, 3), np.float32), rng.random((20_000, 3), np.float32)
    labels = rng.random((150, 3)) < probabilities
    estimate = estimate_micro_f1(probabilities[rows], labels[rows], new, np.full(3, 0.5), groups=groups)
    return estimate.micro_f1, estimate.by_difference


@pytest.mark.parametrize(
    "estimate", [estimate_from_confidences, estimate_from_quality, estimate_from_probabilities],
)  # fmt: skip
def test_copies_of_validation_images_make_no_interval_narrower(
    estimate: Callable[[NDArray[np.int64], Groups], tuple[Metric, Metric]],
) -> None:
    def measure_widths(rows: NDArray[np.int64], groups: Groups) -> NDArray[np.float64]:
        intervals = [metric.interval for metric in estimate(rows, groups)]
        return np.array([np.nan if interval is None else interval.high - interval.low for interval in intervals])

    once, copied = np.arange(150), np.repeat(np.arange(150), COPIES)
    widths = measure_widths(once, None)
    assert (measure_widths(copied, None) < 0.6 * widths).all()
    assert measure_widths(copied, copied) == pytest.approx(widths, rel=0.25)
    for metric in estimate(once, np.zeros(150, np.int64)):
        assert metric.interval is None
        assert "group" in metric.note
