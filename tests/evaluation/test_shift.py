"""Validation compared with test: differences beyond chance are reported, smaller ones are not."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sightline import intervals
from sightline.evaluation import calibration, shift

Outputs = tuple[NDArray[np.float32], NDArray[np.int32]]


def draw_outputs(count: int, accuracy: float, confidence: float, seed: int = 0) -> Outputs:
    """Draw predictions of two classes with about this confidence, of which this fraction is correct."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count).astype(np.int32)
    sure = np.clip(rng.normal(confidence, 0.03, count), 0.51, 0.999)
    predictions = np.where(rng.random(count) < accuracy, labels, 1 - labels)
    p = np.empty((count, 2), np.float32)
    p[np.arange(count), predictions], p[np.arange(count), 1 - predictions] = sure, 1 - sure
    return p, labels


def compare(validation: Outputs, test: Outputs) -> shift.SplitShift:
    difference = shift.compare_splits(validation, test)
    assert difference is not None
    return difference


def repeat(outputs: Outputs, copies: int) -> Outputs:
    p, labels = outputs
    return np.repeat(p, copies, 0), np.repeat(labels, copies)


def test_a_test_split_of_another_distribution_is_reported() -> None:
    """Like chest x-rays whose given splits differ: accuracies of 0.97 and 0.81, both with a confidence of 0.96."""
    validation, test = draw_outputs(800, 0.97, 0.96), draw_outputs(624, 0.81, 0.96, 1)
    difference = compare(validation, test)
    hits = [int((p.argmax(1) == labels).sum()) for p, labels in (validation, test)]
    first, second = intervals.wilson_interval(hits[0], 800), intervals.wilson_interval(hits[1], 624)
    assert difference.accuracy_difference_interval == intervals.subtract_intervals(
        hits[1] / 624, second, hits[0] / 800, first
    )
    assert difference.accuracy_difference == hits[1] / 624 - hits[0] / 800
    assert difference.ece_difference == calibration.compute_ece(*test) - calibration.compute_ece(*validation)
    assert difference.ece_difference > 0.1
    assert difference.accuracy_differs
    assert difference.ece_differs
    assert difference.ece_p_value < 0.001


def test_calibration_that_differs_by_less_than_a_hundredth_is_not_reported() -> None:
    """Ten images, all classified correctly, with a confidence of 0.999 in one split and of 0.997 in the other."""
    surer, less_sure = (np.tile(np.array([p, 1 - p], np.float32), (10, 1)) for p in (0.999, 0.997))
    labels = np.zeros(10, np.int32)
    difference = compare((surer, labels), (less_sure, labels))
    assert difference.ece_p_value < 0.05
    assert not difference.ece_differs


@pytest.mark.slow
def test_splits_of_one_distribution_are_called_different_as_seldom_as_stated() -> None:
    """In at most 5% of comparisons by either test, also where one split is so small that its ECE is far greater."""
    warnings = []
    for i in range(600):
        difference = compare(draw_outputs(100, 0.85, 0.8, 2 * i), draw_outputs(150, 0.85, 0.8, 2 * i + 1))
        warnings.append((difference.accuracy_differs, difference.ece_differs))
    by_accuracy, by_calibration = np.mean(warnings, axis=0)
    assert 0 < by_accuracy <= 0.04
    assert 0 < by_calibration <= 0.04
    assert np.mean([any(both) for both in warnings]) <= 0.05


@pytest.mark.slow
def test_a_small_split_is_not_called_worse_calibrated() -> None:
    """Its ECE is far greater by chance alone."""
    differences = [compare(draw_outputs(40, 0.9, 0.9, i), draw_outputs(400, 0.9, 0.9, 1000 + i)) for i in range(60)]
    assert sum(difference.ece_differs for difference in differences) <= 5
    assert np.mean([difference.ece_difference for difference in differences]) < -0.02, "fewer images, higher ECE"


@pytest.mark.slow
def test_images_of_a_group_count_together() -> None:
    """Twenty groups of 15 copies in each split: their differences are chance, and groups of one image are images."""
    groups, differ, differ_alone = np.repeat(np.arange(20), 15), 0, 0
    for i in range(40):
        validation, test = (repeat(draw_outputs(20, 0.8, 0.9, seed), 15) for seed in (i, 1000 + i))
        together, alone = shift.compare_splits(validation, test, groups=(groups, groups)), compare(validation, test)
        assert together is not None
        assert together.accuracy_difference == alone.accuracy_difference
        differ += together.accuracy_differs + together.ece_differs
        differ_alone += alone.accuracy_differs + alone.ece_differs
    assert differ <= 10
    assert differ_alone > 20
    first, second = draw_outputs(100, 0.9, 0.9), draw_outputs(150, 0.8, 0.9, 1)
    ones, plain = shift.compare_splits(first, second, groups=(np.arange(100), np.arange(150))), compare(first, second)
    assert ones is not None
    assert abs(ones.ece_p_value - plain.ece_p_value) < 0.05
    assert ones.accuracy_difference_interval == pytest.approx(plain.accuracy_difference_interval, abs=0.02)
    assert shift.compare_splits(first, second, groups=(np.zeros(100, np.int64), np.arange(150))) is None


def test_the_permutation_is_seeded() -> None:
    splits = draw_outputs(100, 0.9, 0.9), draw_outputs(100, 0.85, 0.9, 1)
    assert shift.compare_splits(*splits) == shift.compare_splits(*splits)
