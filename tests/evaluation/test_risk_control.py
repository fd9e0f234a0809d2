"""Conformal risk control: the false-negative rate of label sets on images that they were not fitted on."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sightline.errors import DataError, UsageError
from sightline.evaluation.conformal import compute_false_negative_rates, evaluate_label_sets, fit_set_threshold


def draw(count: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return probabilities of six classes, and labels that depend on each other; about a tenth of the images has none.

    A hard image, one in four, has labels with low probabilities: its losses are not those of the others.
    """
    rng = np.random.default_rng(seed)
    labels = rng.random((count, 6)) < rng.choice([0.1, 0.3, 0.6], (count, 1))
    hard = rng.random((count, 1)) < 0.25
    return np.clip(rng.beta(2, 5, labels.shape) + np.where(hard, 0.1, 0.5) * labels, 0, 1).astype(np.float32), labels


@pytest.mark.parametrize(("count", "target"), [(15, 0.2), (50, 0.1), (200, 0.05)])
def test_the_expected_false_negative_rate_is_at_most_the_target(count: int, target: float) -> None:
    rng = np.random.default_rng(0)
    p, y = draw(2000, seed=1)
    risks, repeats = [], 2000
    for _ in range(repeats):  # a new split of the same images each time
        order = rng.permutation(len(p))[: count + 200]
        held_out, new = order[:count], order[count:]
        threshold = fit_set_threshold(p[held_out], y[held_out], target)
        risks.append(compute_false_negative_rates(p[new] >= threshold, y[new]).mean())
    error = np.std(risks) / np.sqrt(repeats)
    assert np.mean(risks) <= target + 3 * error
    assert np.mean(risks) >= target - 2 / (count + 1) - 3 * error, "and not much lower (Theorem 2 of the paper)"


@pytest.mark.parametrize("seed", range(20))
def test_no_higher_threshold_keeps_the_bound(seed: int) -> None:
    p, y = draw(40, seed)
    p = p.round(1)  # ties
    y[0] = True
    target = 0.15
    threshold = fit_set_threshold(p, y, target)

    def bound(cut: float) -> float:
        return float((compute_false_negative_rates(p >= np.float32(cut), y).sum() + 1) / (len(y) + 1))

    assert bound(threshold) <= target
    assert all(bound(cut) > target for cut in np.unique(p[y]) if cut > threshold)


def test_too_few_images_give_sets_of_all_classes() -> None:
    p, y = draw(8, 0)
    y[0, 0] = True
    assert fit_set_threshold(p, y, 0.1) == 0.0
    assert fit_set_threshold(p, y, 0.12) > 0.0


def test_metrics_of_the_sets() -> None:
    p = np.tile(np.array([[0.9, 0.2], [0.6, 0.7], [0.1, 0.3]], np.float32), (2, 1))
    y = np.tile([[True, True], [False, True], [False, False]], (2, 1))
    sets = evaluate_label_sets(p, y, 0.5, 0.2)
    assert sets.fnr.value == pytest.approx(0.5 / 3)
    assert sets.fnr.interval is not None
    assert sets.empty_fraction == pytest.approx(1 / 3)
    assert (sets.mean_size, sets.count) == (1.0, 6)
    assert evaluate_label_sets(p[:0], y[:0], 0.5, 0.2).fnr.value is None


def test_images_without_labels_and_impossible_targets_are_refused() -> None:
    p, y = draw(8, 0)
    with pytest.raises(DataError, match="No validation image has a label"):
        fit_set_threshold(p, np.zeros_like(y), 0.1)
    with pytest.raises(UsageError, match="between 0 and 1"):
        fit_set_threshold(p, y, 1.0)
