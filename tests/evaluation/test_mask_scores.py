"""What is stored of each image with a mask says the same as the confusions that it was made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sightline.evaluation.segmentation_metrics import MaskScores, compute_image_iou

IMAGES, CLASSES = 9, 4


@pytest.fixture
def confusions() -> np.ndarray:
    """Confusions of nine images with some of the classes each; one without any."""
    rng = np.random.default_rng(3)
    counts = rng.integers(0, 60, (IMAGES, CLASSES, CLASSES)) * (rng.random((IMAGES, CLASSES, CLASSES)) < 0.4)
    counts[4] = 0
    return counts.astype(np.int64)


@pytest.fixture
def scores(confusions: np.ndarray) -> MaskScores:
    return MaskScores.from_confusions(confusions, np.linspace(0, 1, IMAGES))


def test_metrics_are_those_of_the_confusions(scores: MaskScores, confusions: np.ndarray) -> None:
    np.testing.assert_array_equal(scores.compute_iou(), compute_image_iou(confusions))
    np.testing.assert_array_equal(scores.compute_total(), confusions.sum(0))
    np.testing.assert_array_equal(scores.find_predicted(), confusions.sum(1) > 0)
    for true in range(CLASSES):
        for predicted in range(CLASSES):
            np.testing.assert_array_equal(scores.count_pixels(true, predicted), confusions[:, true, predicted])
    wrong = confusions * (1 - np.eye(CLASSES, dtype=int))
    expected = {i: divmod(int(of.argmax()), CLASSES) for i, of in enumerate(wrong) if of.any()}
    assert scores.find_most_confused() == expected


def test_arrays_give_the_same_scores(scores: MaskScores) -> None:
    arrays = scores.to_arrays()
    read = MaskScores.from_arrays(arrays, IMAGES, CLASSES)
    assert read is not None
    assert read.classes == CLASSES
    np.testing.assert_array_equal(read.cells, scores.cells)
    np.testing.assert_array_equal(read.quality, scores.quality)
    assert MaskScores.from_arrays({}, IMAGES, CLASSES) is None


@pytest.mark.parametrize(
    "damage",
    [
        {"mask_quality": np.zeros(IMAGES - 1)},
        {"mask_quality": np.full(IMAGES, np.nan)},
        {"mask_cells": np.zeros((2, 3), np.int64)},
        {"mask_cells": np.zeros((2, 4))},
        {"mask_cells": np.array([[0, 0, 0, 0]])},
        {"mask_cells": np.array([[IMAGES, 0, 0, 1]])},
        {"mask_cells": np.array([[0, CLASSES, 0, 1]])},
        {"mask_cells": np.array([[0, 0, -1, 1]])},
    ],
)
def test_damaged_arrays_are_refused(scores: MaskScores, damage: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="mask_cells"):
        MaskScores.from_arrays(scores.to_arrays() | damage, IMAGES, CLASSES)
