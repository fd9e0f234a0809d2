"""The mean IoU of masks, estimated from their quality alone."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.isotonic import isotonic_regression

from sightline import jsonio
from sightline.evaluation.accuracy_estimate import DRIFTED
from sightline.evaluation.drift import Drift
from sightline.evaluation.iou_estimate import estimate_mean_iou, fit_increasing


def draw(count: int, mean: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return qualities that promise too much, and IoUs, float64 [count] each."""
    quality = np.clip(rng.normal(mean, 0.08, count), 0.05, 1)
    return quality, np.clip(1.6 * (quality - 0.35) + rng.normal(0, 0.05, count), 0, 1)


@pytest.mark.parametrize(
    ("mean", "count"), [(0.77, 6), *(pytest.param(mean, 20, marks=pytest.mark.slow) for mean in (0.77, 0.86))]
)
def test_intervals_hold_the_mean_iou_as_often_as_they_say(mean: float, count: int) -> None:
    hits = 0
    for seed in range(count):
        rng = np.random.default_rng(seed)
        quality, ious = draw(150, 0.82, rng)
        new, true = draw(200, mean, rng)
        interval = estimate_mean_iou(quality, ious, new).iou.interval
        assert interval is not None
        hits += interval.low <= true.mean() <= interval.high
    assert hits >= int(0.85 * count)


@pytest.mark.parametrize("count", [1, 2, 50, 1000])
def test_the_regression_is_that_of_scikit_learn(count: int) -> None:
    rng = np.random.default_rng(count)
    weights = rng.integers(1, 5, count)
    for values in (rng.random(count), rng.random(count).round(1), np.linspace(0, 1, count), np.linspace(1, 0, count)):
        expected = isotonic_regression(values, sample_weight=weights)
        np.testing.assert_allclose(fit_increasing(values, weights), expected, rtol=1e-12)


def test_masks_of_the_same_quality_have_the_same_expected_iou() -> None:
    """A model that is sure of every pixel gives all masks the quality 1, whatever their IoU."""
    ious = np.random.default_rng(0).random(200)
    for quality in (np.ones(200), np.arange(200) // 100 / 2):
        expected = np.mean([ious[quality == quality[-1]].mean(), ious[quality == quality[0]].mean()])
        assert estimate_mean_iou(quality, ious, quality).iou.value == pytest.approx(expected)


def test_a_poorly_calibrated_quality_is_corrected_by_validation_images() -> None:
    rng = np.random.default_rng(0)
    quality, ious = draw(300, 0.82, rng)
    new, true = draw(5000, 0.72, rng)
    estimate = estimate_mean_iou(quality, ious, new)
    assert estimate.iou.value == pytest.approx(true.mean(), abs=0.03)
    assert abs(new.mean() - true.mean()) > 0.1
    assert estimate.count == 5000
    assert estimate.validation_iou == pytest.approx(ious.mean())
    assert any("by the difference of qualities" in caveat for caveat in estimate.caveats)
    same = estimate_mean_iou(quality, ious, quality)
    assert same.iou.value == pytest.approx(ious.mean(), abs=1e-3)
    assert same.caveats == ()


def test_what_speaks_against_an_estimate_is_said() -> None:
    rng = np.random.default_rng(1)
    quality, ious = draw(30, 0.8, rng)
    drift = Drift(0.05, 12, 4, "distance", 30.0, np.zeros(20))
    estimate = estimate_mean_iou(quality, ious, np.full(20, 0.3), drift)
    assert estimate.caveats[0] == DRIFTED
    assert "30 validation images, which is too few" in estimate.caveats[1]
    assert "100% of the masks have a lower quality than that of any validation image" in estimate.caveats[2]
    assert "only 20 images" in estimate.caveats[3]
    assert jsonio.to_plain(estimate)["iou"]["value"] == estimate.iou.value
