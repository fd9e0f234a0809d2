"""Metrics of masks, against scikit-learn's on the pixels of all images."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, jaccard_score

from sightline.data.masks import VOID
from sightline.data.types import Subset
from sightline.evaluation import boundaries, mask_outputs
from sightline.evaluation.boundaries import compute_boundary_f1, count_boundaries
from sightline.evaluation.calibration import compute_ece
from sightline.evaluation.mask_outputs import MaskOutputs, collect_mask_outputs
from sightline.evaluation.results import Metric
from sightline.evaluation.segmentation_metrics import MaskClassMetrics, compute_image_iou, compute_mask_metrics
from sightline.inference import runner
from sightline.inference.mask_quality import estimate_iou
from sightline.inference.predictor import Outputs
from sightline.preprocessing import PreprocessingSpec

CLASSES = ("sky", "road", "car")


def draw_masks(count: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 3, (count, 6, 5)).astype(np.uint8)
    predicted = np.where(rng.random(true.shape) < 0.7, true, rng.integers(0, 3, true.shape)).astype(np.uint8)
    true[rng.random(true.shape) < 0.1] = VOID
    return true, predicted


class StoredOutputs:
    """A model of masks whose probabilities for image i are row i of those given, which are its pixels."""

    def __init__(self, probabilities: np.ndarray) -> None:
        count, height, width, classes = probabilities.shape
        self.rows = probabilities
        self.classes = CLASSES[:classes]
        self.preprocess = PreprocessingSpec(height, width)
        self.pixels = np.zeros((count, height, width, 3), np.uint8)
        self.pixels[:, 0, 0, 0], self.pixels[:, 0, 0, 1] = np.divmod(np.arange(count), 256)

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        return np.asarray(self.rows[pixels[:, 0, 0, 0].astype(int) * 256 + pixels[:, 0, 0, 1]])

    def outputs(self, pixels: np.ndarray) -> Outputs:
        p = self.probabilities(pixels)
        return Outputs(p, np.log(p), p.mean((1, 2)))


def collect(probabilities: np.ndarray, true: np.ndarray) -> MaskOutputs:
    model = StoredOutputs(probabilities.astype(np.float32))
    paths = tuple(map(str, range(len(true))))
    return collect_mask_outputs(model, Subset(model.pixels, np.arange(len(true)), true, paths))


def spread_probabilities(predicted: np.ndarray, confidence: float = 0.8) -> np.ndarray:
    """Return probabilities of which the predicted class has `confidence`."""
    one_hot = np.eye(3)[predicted]
    return np.asarray(one_hot * confidence + (1 - one_hot) * (1 - confidence) / 2)


def measure(true: np.ndarray, predicted: np.ndarray) -> tuple[dict[str, Metric], tuple[MaskClassMetrics, ...]]:
    outputs = collect(spread_probabilities(predicted), true)
    return compute_mask_metrics(CLASSES, outputs.confusions, outputs.boundaries, outputs.reliability)


def test_metrics_are_those_of_all_pixels_with_a_class() -> None:
    true, predicted = draw_masks()
    known = true != VOID
    y, p = true[known], predicted[known]
    outputs = collect(spread_probabilities(predicted), true)
    np.testing.assert_array_equal(outputs.confusions.sum(0), confusion_matrix(y, p))
    metrics, per_class = measure(true, predicted)
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
    metrics, _ = measure(true, predicted)
    interval = metrics["pixel_accuracy"].interval
    assert interval is not None
    assert interval.high - interval.low > 0.3  # 8,000 independent pixels would give 0.02


def test_classes_without_pixels_and_classes_never_predicted_say_so() -> None:
    true, predicted = np.zeros((12, 4, 4), np.uint8), np.zeros((12, 4, 4), np.uint8)
    true[:, 0] = 1
    metrics, (sky, road, car) = measure(true, predicted)
    assert (car.iou.value, car.iou.note, car.support) == (None, "no pixel has the class car", 0)
    assert (road.iou.value, road.precision.value) == (0, None)
    assert road.precision.note == "the class road is never predicted"
    assert sky.iou.value == 0.75
    assert (metrics["mean_iou"].value, metrics["mean_iou"].classes) == (0.375, 2)


def test_an_image_is_measured_by_its_own_classes() -> None:
    true = np.array([[[0, 0], [1, 1]], [[2, 2], [2, 2]], [[VOID, VOID], [VOID, VOID]]], np.uint8)
    predicted = np.array([[[0, 0], [1, 0]], [[2, 2], [2, 2]], [[0, 0], [0, 0]]], np.uint8)
    values = compute_image_iou(collect(spread_probabilities(predicted), true).confusions)
    assert values[:2] == pytest.approx([(2 / 3 + 1 / 2) / 2, 1])
    assert np.isnan(values[2])


def draw_square(at: int, side: int = 40) -> np.ndarray:
    mask = np.zeros((side, side), np.uint8)
    mask[at : at + 12, 10:22] = 1
    return mask


def count_by_distances(predicted: np.ndarray, true: np.ndarray, classes: int) -> list[list[int]]:
    """Return the counts of `count_boundaries` by the distances of all pairs of boundary pixels."""
    known, radius = true != VOID, boundaries.choose_radius(*true.shape)
    rows = []
    for k in range(classes):
        points = [np.argwhere(boundaries.find_edges(mask, known) & (mask == k)) for mask in (predicted, true)]
        row = []
        for own, other in (points, points[::-1]):
            distances = (
                np.linalg.norm(own[:, None] - other[None], axis=2) if len(other) else np.full((len(own), 1), 9e9)
            )
            row += [len(own), int((distances.min(1) <= radius).sum()) if len(own) else 0]
        rows.append(row)
    return rows


@pytest.mark.parametrize("tolerance", [0.0075, 0.06])
def test_boundaries_are_found_within_the_tolerance(tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boundaries, "TOLERANCE", tolerance)
    monkeypatch.setattr(boundaries, "BITS", 2)  # so that classes are dilated in several groups
    rng = np.random.default_rng(1)
    true = np.kron(rng.integers(0, 5, (5, 6)), np.ones((8, 8))).astype(np.uint8)
    predicted = np.roll(true, (2, 1), (0, 1))
    true[10:14, 20:40] = VOID
    np.testing.assert_array_equal(count_boundaries(predicted, true, 5), count_by_distances(predicted, true, 5))


def test_the_f1_of_a_boundary_falls_with_the_shift_of_its_object() -> None:
    true = draw_square(10)
    shifted = [compute_boundary_f1(count_boundaries(draw_square(10 + by), true, 2))[1] for by in (0, 1, 4)]
    assert shifted[0] == shifted[1] == 1  # within a pixel
    assert 0.2 < shifted[2] < 0.7
    assert compute_boundary_f1(count_boundaries(np.zeros_like(true), true, 2))[1] == 0
    nothing = np.zeros((8, 8), np.uint8)
    assert np.isnan(compute_boundary_f1(count_boundaries(nothing, nothing, 2))).all()
    metrics, (sky, road, _) = measure(
        np.stack([true] * 3), np.stack([true, draw_square(14), nothing[:1].repeat(40, 0).repeat(5, 1)])
    )
    assert road.boundary_f1.value == pytest.approx((1 + shifted[2] + 0) / 3)
    assert metrics["boundary_f1"].value == pytest.approx(
        ((road.boundary_f1.value or 0) + (sky.boundary_f1.value or 0)) / 2
    )


def test_pixels_are_calibrated_as_a_whole() -> None:
    true, predicted = draw_masks()
    outputs = collect(spread_probabilities(predicted, 0.9), true)
    known = true != VOID
    metrics, _ = compute_mask_metrics(CLASSES, outputs.confusions, outputs.boundaries, outputs.reliability)
    expected = compute_ece(spread_probabilities(predicted, 0.9)[known].astype(np.float32), true[known].astype(np.int32))
    assert metrics["ece"].value == pytest.approx(expected)
    assert len(outputs.pixel_labels) == known.sum()  # all, as they are few


def test_the_interval_of_a_calibration_error_holds_it_and_0_if_there_is_none() -> None:
    """Each image has another accuracy at the same confidence, by chance, which is right on average."""
    holds_none = 0
    for seed in range(10):
        rng, rows, cells = np.random.default_rng(seed), np.zeros((30, 15, 3)), np.zeros((30, 3, 3), np.int64)
        confidence = (np.arange(5, 12) + 0.5) / 15
        hits = rng.binomial(200, np.clip(confidence + rng.normal(0, 0.05, (30, 7)), 0, 1))
        rows[:, 5:12] = np.stack([np.full((30, 7), 200), np.tile(200 * confidence, (30, 1)), hits], -1)
        cells[:, 0, 0], cells[:, 0, 1] = hits.sum(1), 1400 - hits.sum(1)
        error = compute_mask_metrics(CLASSES, cells, np.zeros((30, 3, 4), np.int64), rows)[0]["ece"]
        assert error.interval is not None
        assert error.value is not None
        assert error.interval.low < error.value < error.interval.high
        holds_none += error.interval.low < 0.005
    assert holds_none > 7


def test_the_outputs_of_all_pixels_are_never_in_memory_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_outputs, "CALIBRATION_PIXELS", 2000)
    monkeypatch.setattr(runner, "MAX_BATCH_SIZE", 8)
    count, side = 96, 48
    true = np.zeros((count, side, side), np.uint8)
    true[:, 10:20] = 1
    model = StoredOutputs(spread_probabilities(true).astype(np.float32))
    collect(model.rows[:8], true[:8])  # imports and caches
    tracemalloc.start()
    try:
        collect_mask_outputs(model, Subset(model.pixels, np.arange(count), true, tuple(map(str, range(count)))))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < model.rows.nbytes, "less than the probabilities of all, besides which there were logits"


def test_the_quality_of_a_sure_mask_is_that_of_its_probabilities() -> None:
    mask = np.zeros((10, 10), np.uint8)
    mask[:5] = 1
    assert estimate_iou(np.eye(3, dtype=np.float32)[mask]) == 1
    p = spread_probabilities(mask, 0.8)
    assert estimate_iou(p.astype(np.float32)) == pytest.approx(40 / (50 + 5))
    rng = np.random.default_rng(0)  # the probabilities are right: so is the quality, for large classes
    truth = np.array([[rng.choice(3, p=row) for row in line] for line in np.tile(p, (4, 4, 1))], np.uint8)
    outputs = collect(np.tile(p, (4, 4, 1))[None], truth[None])
    hits = outputs.confusions[0].diagonal()
    union = outputs.confusions[0].sum(0) + outputs.confusions[0].sum(1) - hits
    assert outputs.quality[0] == pytest.approx((hits / union)[:2].mean(), abs=0.02)


def test_the_worst_masks_are_kept() -> None:
    true = np.zeros((40, 6, 6), np.uint8)
    predicted = true.copy()
    for i in range(40):
        predicted[i].ravel()[: (7 * i) % 30] = 1
    outputs = collect(spread_probabilities(predicted), true)
    ious = compute_image_iou(outputs.confusions)
    assert set(outputs.worst_masks) == set(np.argsort(ious, kind="stable")[:12].tolist())
    for i, mask in outputs.worst_masks.items():
        np.testing.assert_array_equal(mask, predicted[i])
