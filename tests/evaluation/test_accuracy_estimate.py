"""Accuracy without labels, and which images to label, on simulated predictions whose labels are known."""

from __future__ import annotations

import numpy as np
import pytest

from sightline.evaluation.accuracy_estimate import estimate_accuracy
from sightline.evaluation.badge import choose_images
from sightline.evaluation.drift import Drift


def draw(rng: np.random.Generator, count: int, skill: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw confidences, and whether predictions are correct: as often as the confidence says."""
    confidences = (0.5 + 0.5 * rng.beta(skill, 1, count)).astype(np.float32)
    return confidences, rng.random(count) < confidences


@pytest.mark.slow
@pytest.mark.parametrize("skill", [6.0, 2.0])
def test_each_estimate_is_right_where_its_assumption_holds(skill: float) -> None:
    covered = np.zeros(2, int)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        (confidences, correct), (new, truth) = draw(rng, 400, 6.0), draw(rng, 600, skill)
        estimate = estimate_accuracy(confidences, correct, new)
        assert estimate.validation_accuracy == correct.mean()
        by_threshold = estimate_accuracy(confidences, confidences > 0.75, new).accuracy  # wrong where it is uncertain
        for i, (metric, value) in enumerate(
            ((by_threshold, (new > 0.75).mean()), (estimate.by_difference, truth.mean()))
        ):
            assert metric.interval is not None
            assert metric.interval.high - metric.interval.low < 0.2
            covered[i] += metric.interval.low - 0.01 <= value <= metric.interval.high + 0.01
    assert covered.min() >= 7


def test_equal_confidences_are_as_often_right_as_on_validation_images() -> None:
    """A model that is certain of nearly all images is wrong about as many of them as it was."""
    confidences = np.repeat([0.6, 1.0], [10, 190]).astype(np.float32)
    correct = np.arange(200) >= 40  # all ten of the uncertain ones are wrong, and 30 of the certain ones
    assert estimate_accuracy(confidences, correct, confidences).accuracy.value == pytest.approx(0.8)
    new = np.repeat([0.6, 1.0], [50, 150]).astype(np.float32)
    assert estimate_accuracy(confidences, correct, new).accuracy.value == pytest.approx(150 * (160 / 190) / 200)
    assert estimate_accuracy(confidences, np.zeros(200, bool), new).accuracy.value == 0


def test_what_speaks_against_an_estimate_is_said() -> None:
    rng = np.random.default_rng(0)
    confidences, correct = draw(rng, 400, 6.0)
    assert estimate_accuracy(confidences, correct, draw(rng, 400, 6.0)[0]).caveats == ()
    drift = Drift(0.05, 30, 1, "length", 25.0, np.zeros(40))
    certain = np.ones(40, bool)
    caveats = " ".join(estimate_accuracy(confidences[:40], certain, confidences[:40], drift).caveats)
    for words in ("has drifted", "0 errors", "it covers only 40 images"):
        assert words in caveats
    skewed = np.where(np.arange(400) % 2, 0.999, 0.55).astype(np.float32)
    assert "another estimate" in " ".join(estimate_accuracy(confidences, correct, skewed).caveats)


def test_uncertain_images_that_differ_are_labeled_first() -> None:
    rng = np.random.default_rng(0)
    features = np.repeat(np.eye(4, dtype=np.float32), 25, axis=0) * 5 + rng.normal(0, 0.01, (100, 4)).astype(np.float32)
    first = np.full(100, 0.999, np.float32)
    first[:60] = 0.55  # the images of the last cluster are certain, and some of the third
    first[50:60] = 0.6
    probabilities = np.stack([first, 1 - first], 1)
    chosen = choose_images(features, probabilities, 3)
    assert sorted(position // 25 for position in chosen) == [0, 1, 2]
    assert all(first[position] < 0.9 for position in chosen)
    assert choose_images(features, probabilities, 3) == chosen
    everything = choose_images(features[:7], probabilities[:7], 20)
    assert sorted(everything) == list(range(7))
    certain = np.tile(np.array([[1, 0]], np.float32), (5, 1))
    assert sorted(choose_images(features[:5], certain, 3)) == [0, 1, 2]
