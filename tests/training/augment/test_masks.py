"""Masks move and are mixed as their images are: each pixel keeps one class."""

from __future__ import annotations

import numpy as np
import pytest

from sightline import backend
from sightline.config import AugmentConfig
from sightline.data.masks import VOID
from sightline.training.augment import pipeline
from sightline.training.augment.pipeline import transform_masks

SIZE = (24, 32)


def draw_regions(count: int) -> np.ndarray:
    """Return masks of three classes in large regions, uint8 [N, H, W]."""
    masks = np.zeros((count, *SIZE), np.uint8)
    for i, mask in enumerate(masks):
        mask[4 + i : 16, 6:20] = 1
        mask[14:, 22 - i :] = 2
    return masks


@pytest.mark.parametrize(
    "config",
    [
        AugmentConfig(horizontal_flip=True),
        AugmentConfig(horizontal_flip=True, vertical_flip=True),
        AugmentConfig(rotation=25, zoom=0.2, translation=0.15, shear=5, horizontal_flip=True),
        AugmentConfig(crop=0.2, brightness=0.0),
    ],
)
def test_masks_move_as_images_do(config: AugmentConfig) -> None:
    masks = draw_regions(6)
    params = pipeline.sample_params(config, len(masks), SIZE, seed=3, epoch=1)
    images = np.repeat((100 * masks)[..., None], 3, axis=-1)  # 0, 100 and 200 for the classes
    moved = backend.keras().ops.convert_to_numpy(pipeline.apply(config, images, params))[..., 0]
    transformed = transform_masks(config, masks, params)
    inside = transformed != VOID
    assert inside.mean() > 0.6
    assert set(np.unique(transformed)) <= {0, 1, 2, VOID}
    clear = inside & (np.abs(moved.astype(int) - 100 * np.rint(moved / 100)) < 10)  # not at an edge of two regions
    assert clear.mean() > 0.5
    # edges between the classes 0 and 2 pass through the value of 1
    assert (np.rint(moved[clear] / 100) == transformed[clear]).mean() > 0.99


@pytest.mark.parametrize(
    "config",
    [
        AugmentConfig(cutmix=1.0),
        AugmentConfig(cutmix=0.3, horizontal_flip=True, brightness=0.0),
        AugmentConfig(cutmix=2.0, horizontal_flip=True, vertical_flip=True),
    ],
)
def test_a_box_of_another_image_comes_with_its_mask(config: AugmentConfig) -> None:
    masks = np.random.default_rng(0).choice(np.array([0, 1, 2, VOID], np.uint8), (8, *SIZE))
    params = pipeline.sample_params(config, len(masks), SIZE, seed=3, epoch=1)
    images = np.repeat(masks[..., None], 3, axis=-1)
    mixed = backend.keras().ops.convert_to_numpy(pipeline.apply(config, images, params))[..., 0]
    transformed = transform_masks(config, masks, params)
    np.testing.assert_array_equal(transformed, mixed)
    unmixed = transform_masks(pipeline.without_mixing(config), masks, params)
    assert 0.02 < (transformed != unmixed).mean() < 0.75


def test_colors_do_not_change_masks() -> None:
    config, masks = AugmentConfig(brightness=0.3, hue=0.1), draw_regions(3)
    params = pipeline.sample_params(config, len(masks), SIZE, seed=0, epoch=1)
    np.testing.assert_array_equal(transform_masks(config, masks, params), masks)
