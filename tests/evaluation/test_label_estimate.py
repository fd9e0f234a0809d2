"""The micro F1 of several labels per image, estimated from the probabilities alone."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from sightline import jsonio
from sightline.evaluation.accuracy_estimate import DRIFTED
from sightline.evaluation.drift import Drift
from sightline.evaluation.label_estimate import estimate_micro_f1

THRESHOLDS = np.array([0.5, 0.4, 0.6, 0.5])


def draw(count: int, noise: float, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return probabilities [count, 4] that promise too much, and labels, which depend on each other in an image."""
    classes = rng.normal(-0.5, 2, (count, 4)) / noise
    correlated = 0.6 * rng.normal(size=(count, 1)) + 0.8 * rng.normal(size=(count, 4))
    return (1 / (1 + np.exp(-2.5 * classes))).astype(np.float32), classes + correlated > 0


def measure(p: NDArray[np.float32], y: NDArray[np.bool_]) -> tuple[float, float]:
    predicted = p >= THRESHOLDS
    return float(f1_score(y, predicted, average="micro")), float((predicted == y).mean())


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "count"), [(1, 60), (2.5, 200)], ids=["few", "harder"])
def test_intervals_hold_the_values_of_the_images_as_often_as_they_say(noise: float, count: int) -> None:
    hits = np.zeros(2)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        p, y = draw(200, 1, rng)
        new, true = draw(count, noise, rng)
        estimate = estimate_micro_f1(p, y, new, THRESHOLDS)
        intervals = (estimate.micro_f1.interval, estimate.label_accuracy.interval)
        for i, (interval, value) in enumerate(zip(intervals, measure(new, true), strict=True)):
            assert interval is not None
            hits[i] += interval.low <= value <= interval.high
    assert hits.min() >= 17, hits


def test_probabilities_that_promise_too_much_are_corrected_by_validation_images() -> None:
    rng = np.random.default_rng(0)
    p, y = draw(1000, 1, rng)
    new, true = draw(5000, 2.5, rng)
    estimate = estimate_micro_f1(p, y, new, THRESHOLDS)
    f1, accuracy = measure(new, true)
    assert measure(p, y)[0] - f1 > 0.1
    assert estimate.micro_f1.value == pytest.approx(f1, abs=0.03)
    assert estimate.label_accuracy.value == pytest.approx(accuracy, abs=0.03)
    assert estimate.count == 5000
    same = estimate_micro_f1(p, y, p, THRESHOLDS)
    assert same.micro_f1.value == pytest.approx(measure(p, y)[0])
    assert same.label_accuracy.value == pytest.approx(measure(p, y)[1])
    assert same.validation_micro_f1 == same.by_difference.value == pytest.approx(measure(p, y)[0])
    assert same.caveats == ()


def test_what_speaks_against_an_estimate_is_said() -> None:
    p = np.tile(np.array([[0.9, 0.1, 0.1, 0.9]], np.float32), (30, 1))
    drift = Drift(0.05, 12, 4, "distance", 30.0, np.zeros(20))
    new = np.tile(np.array([[0.55, 0.1, 0.1, 0.3]], np.float32), (20, 1))
    estimate = estimate_micro_f1(p, p > 0.5, new, THRESHOLDS, drift)
    assert estimate.caveats[0] == DRIFTED
    assert "30 validation images, which is too few" in estimate.caveats[1]
    assert "0 wrong decisions on validation images" in estimate.caveats[2]
    assert "only 20 images" in estimate.caveats[3]
    assert "by the difference of probabilities" in estimate.caveats[4]
    assert jsonio.to_plain(estimate)["micro_f1"]["value"] == estimate.micro_f1.value


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_an_estimate_exists_if_no_label_is_predicted_or_every_one(probability: float) -> None:
    p = np.full((60, 4), probability, np.float32)
    estimate = estimate_micro_f1(p, np.eye(4, dtype=bool)[np.arange(60) % 4], p, THRESHOLDS)
    assert estimate.micro_f1.value == pytest.approx(0.4 * probability)
    assert estimate.label_accuracy.value == pytest.approx(0.75 - 0.5 * probability)
