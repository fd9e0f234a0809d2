"""Metrics of masks, against scikit-learn's on the pixels of all images."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, jaccard_score

from sightline.data.masks import VOID
from sightline.evaluation.segmentation_metrics import compute_image_iou, compute_mask_metrics, count_confusions

CLASSES = ("sky", "road", "car")


def draw_masks(count: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 3, (count, 6, 5)).astype(np.uint8)
    predicted = np.where(rng.random(true.shape) < 0.7, true, rng.integers(0, 3, true.shape)).astype(np.uint8)
    true[rng.random(true.shape) < 0.1] = VOID
    return true, predicted


def test_metrics_are_those_of_all_pixels_with_a_class() -> None:
    true, predicted = draw_masks()
    known = true != VOID
    y, p = true[known], predicted[known]
    confusions = count_confusions(predicted, true, 3)
    np.testing.assert_array_equal(confusions.sum(0), confusion_matrix(y, p))
    metrics, per_class = compute_mask_metrics(CLASSES, confusions)
    assert [c.iou.value for c in per_class] == pytest.approx(jaccard_score(y, p, average=None))
    assert [c.dice.value for c in per_class] == pytest.approx(f1_score(y, p, average=None))
    assert metrics["mean_iou"].value == pytest.approx(jaccard_score(y, p, average="macro"))
    assert metrics["mean_dice"].value == pytest.approx(f1_score(y, p, average="macro"))
    assert metrics["pixel_accuracy"].value == pytest.approx(accuracy_score(y, p))
    assert sum(c.fraction for c in per_class) == pytest.approx(1)
    for metric in (*metrics.values(), *(c.iou for c in per_class)):
        assert metric.interval is not None
        assert metric.value is not None
        assert metric.interval.low < metric.value < metric.interval.high


def test_intervals_are_of_images_not_of_pixels() -> None:
    good, bad = np.zeros((1, 20, 20), np.uint8), np.ones((1, 20, 20), np.uint8)
    true = np.concatenate([good] * 20)
    predicted = np.concatenate([good] * 10 + [bad] * 10)
    metrics, _ = compute_mask_metrics(CLASSES, count_confusions(predicted, true, 3))
    interval = metrics["pixel_accuracy"].interval
    assert interval is not None
    assert interval.high - interval.low > 0.3  # 8,000 independent pixels would give 0.02


def test_classes_without_pixels_and_classes_never_predicted_say_so() -> None:
    true, predicted = np.zeros((12, 4, 4), np.uint8), np.zeros((12, 4, 4), np.uint8)
    true[:, 0] = 1
    metrics, (sky, road, car) = compute_mask_metrics(CLASSES, count_confusions(predicted, true, 3))
    assert (car.iou.value, car.iou.note, car.support) == (None, "no pixel has the class car", 0)
    assert (road.iou.value, road.precision.value) == (0, None)
    assert road.precision.note == "the class road is never predicted"
    assert sky.iou.value == 0.75
    assert (metrics["mean_iou"].value, metrics["mean_iou"].classes) == (0.375, 2)


def test_an_image_is_measured_by_its_own_classes() -> None:
    true = np.array([[[0, 0], [1, 1]], [[2, 2], [2, 2]], [[VOID, VOID], [VOID, VOID]]], np.uint8)
    predicted = np.array([[[0, 0], [1, 0]], [[2, 2], [2, 2]], [[0, 0], [0, 0]]], np.uint8)
    values = compute_image_iou(count_confusions(predicted, true, 3))
    assert values[:2] == pytest.approx([(2 / 3 + 1 / 2) / 2, 1])
    assert np.isnan(values[2])
