"""The losses of masks: pixels without a class count nowhere, and each loss is what NumPy computes from its formula."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax

from drawn_scenes import SIDE, draw_scene
from sightline import backend
from sightline.config import resolve_config
from sightline.data.masks import VOID
from sightline.data.types import Subset
from sightline.tasks.protocol import find_task
from sightline.tasks.segmentation import FOCAL_GAMMA, compute_pixel_weights

LOSSES = ("cross_entropy", "focal", "dice")
CLASSES = 3


def draw_masks() -> NDArray[np.uint8]:
    """Return masks uint8 [4, H, W] of three classes, with void pixels in each; the last has no others."""
    masks = np.stack([draw_scene(i)[1] for i in range(4)])
    masks[masks == 9] = VOID
    masks[3] = VOID
    return masks


def draw_logits(seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 2, (4, SIDE, SIDE, CLASSES)).astype(np.float32)


def compute_loss(
    loss: str, masks: NDArray[np.uint8], logits: NDArray[np.float32], class_weights: str = "none"
) -> float:
    """Return the loss that the network is trained with."""
    assignments = ["model.task=segmentation", f"train.loss={loss}", f"train.class_weights={class_weights}"]
    count = len(masks)
    subset = Subset(np.zeros((*masks.shape, 3), np.uint8), np.arange(count), masks, tuple(map(str, range(count))))
    objective = find_task("segmentation").make_objective(resolve_config(assignments=assignments), subset, CLASSES, None)
    targets = objective.compute_targets(np.arange(count), 1, None)
    return float(backend.keras().ops.convert_to_numpy(objective.build_loss()(targets, logits)))


def compute_reference(
    loss: str, masks: NDArray[np.uint8], logits: NDArray[np.float32], weights: NDArray[np.float32]
) -> float:
    """Return the same from the formulas, for the pixels that have a class, one image after the other."""
    losses = []
    for mask, scores in zip(masks, logits.astype(np.float64), strict=True):
        true, p = mask[mask != VOID], softmax(scores[mask != VOID], axis=-1)
        p_true, weight = p[np.arange(len(true)), true], weights[true]
        of_pixels = -np.log(p_true) * ((1 - p_true) ** FOCAL_GAMMA if loss == "focal" else 1)
        value = (weight * of_pixels).mean() if len(true) else 0.0
        if loss == "dice":
            overlaps = np.array([p[true == k, k].sum() for k in range(CLASSES)])
            areas = np.bincount(true, minlength=CLASSES) + p.sum(0)
            value += 1 - np.mean((2 * overlaps + 1) / (areas + 1))
        losses.append(value)
    return float(np.mean(losses))


@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_is_that_of_its_formula(loss: str) -> None:
    masks, logits = draw_masks(), draw_logits()
    expected = compute_reference(loss, masks, logits, np.ones(CLASSES, np.float32))
    assert compute_loss(loss, masks, logits) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_class_weights_multiply_the_loss_of_each_pixel(loss: str) -> None:
    masks, logits = draw_masks(), draw_logits()
    weights = compute_pixel_weights(masks, CLASSES, "balanced")
    assert weights is not None
    weighted = compute_loss(loss, masks, logits, "balanced")
    assert weighted == pytest.approx(compute_reference(loss, masks, logits, weights), rel=1e-5)
    assert abs(weighted - compute_loss(loss, masks, logits)) > 0.01


def test_class_weights_count_in_an_image_of_a_single_class() -> None:
    masks = np.stack([np.zeros((8, 8), np.uint8), np.eye(8, dtype=np.uint8)])
    logits = np.zeros((2, 8, 8, CLASSES), np.float32)
    weights = compute_pixel_weights(masks, CLASSES, "balanced")
    assert weights is not None
    expected = np.log(CLASSES) * np.mean([weights[0], weights[masks[1]].mean()])
    assert compute_loss("cross_entropy", masks, logits, "balanced") == pytest.approx(expected)


def test_weights_are_in_inverse_proportion_to_the_frequency_and_1_on_average() -> None:
    masks = np.zeros((2, 10, 10), np.uint8)
    masks[0, :1], masks[1, :, :5] = 1, VOID
    weights = compute_pixel_weights(masks, 3, "balanced")
    frequency = np.array([140 / 150, 10 / 100])
    assert weights is not None
    assert weights[0] / weights[1] == pytest.approx(frequency[1] / frequency[0])
    assert np.mean([weights[masks[0]].mean(), weights[0]]) == pytest.approx(1)
    assert weights[2] == 1
    assert compute_pixel_weights(np.full_like(masks, VOID), 3, "balanced") == pytest.approx(1)
    assert compute_pixel_weights(masks, 3, "none") is None


@pytest.mark.parametrize("loss", LOSSES)
def test_void_pixels_have_no_influence_on_the_loss(loss: str) -> None:
    masks, logits = draw_masks(), draw_logits()
    changed = np.where((masks == VOID)[..., None], logits + 5 * np.arange(CLASSES, dtype=np.float32), logits)
    first, second = (compute_loss(loss, masks, values) for values in (logits, changed))
    assert first == pytest.approx(second, rel=1e-6)
    perfect = 20 * np.eye(CLASSES, dtype=np.float32)[np.minimum(masks, CLASSES - 1)]
    assert compute_loss(loss, masks, perfect) < 0.02 < first
