"""Random erasing: position, size and content of the erased boxes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from networks import random_images
from sightline import backend
from sightline.config import AugmentConfig
from sightline.training.augment import random_erasing

ERASING = random_erasing.RandomErasing()


def test_box_mask_is_numpys_slice() -> None:
    boxes = np.array([[0, 0, 2, 3], [1, 2, 4, 5], [0, 0, 0, 0], [0, 0, 4, 6]], np.float32)
    masks = backend.keras().ops.convert_to_numpy(random_erasing.compute_box_mask(boxes, 4, 6))
    for box, mask in zip(boxes.astype(int), masks, strict=True):
        expected = np.zeros((4, 6, 1), bool)
        expected[box[0] : box[2], box[1] : box[3]] = True
        np.testing.assert_array_equal(mask, expected)


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0, 1), st.floats(0, 1), st.integers(0, 9))
def test_boxes_lie_inside_and_are_as_large_as_asked(
    height: int, width: int, first: float, second: float, seed: int
) -> None:
    low, high = sorted((first, second))
    config = AugmentConfig(erasing_probability=1.0, erasing_min_area=low, erasing_max_area=high)
    top, left, bottom, right, fill_value = ERASING.sample(config, 50, (height, width), seed, 1).T
    assert (np.minimum(top, left) >= 0).all()
    assert (bottom <= height).all()
    assert (right <= width).all()
    box_height, box_width = bottom - top, right - left
    assert min(box_height.min(), box_width.min()) >= 1
    assert ((fill_value >= 0) & (fill_value < 256)).all()
    slack = 0.5 * (box_height + box_width) + 1  # sides are rounded to whole pixels
    assert (box_height * box_width <= high * height * width + slack).all()
    assert (box_height * box_width >= low * height * width - slack).all()


def test_boxes_are_distributed_as_in_the_paper() -> None:
    config = AugmentConfig(erasing_probability=0.25, erasing_min_area=0.02, erasing_max_area=0.4)
    sampled = ERASING.sample(config, 8000, (200, 200), 0, 1)
    boxes = sampled[sampled[:, 2] > 0]
    assert len(boxes) == pytest.approx(2000, abs=150)
    box_height, box_width = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area = box_height * box_width / 200**2
    assert np.quantile(area, [0, 0.5, 1]) == pytest.approx([0.02, 0.21, 0.4], abs=0.015)
    aspect = box_height / box_width
    assert (aspect.min(), aspect.max()) == pytest.approx((0.3, 1 / 0.3), rel=0.05)
    assert np.median(aspect) == pytest.approx(1, rel=0.08)
    for start, size in ((boxes[:, 0], box_height), (boxes[:, 1], box_width)):
        free = size < 190
        assert np.mean(start[free] / (200 - size[free])) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("channels", [1, 3])
def test_only_the_box_turns_into_uniform_noise_of_its_own(channels: int) -> None:
    pixels = np.zeros((64, 32, 32, channels), np.uint8)
    config = AugmentConfig(erasing_probability=1.0, erasing_min_area=0.3, erasing_max_area=0.4)
    boxes = ERASING.sample(config, 64, (32, 32), 0, 1).astype(np.float32)
    out = np.asarray(backend.keras().ops.convert_to_numpy(ERASING.apply(AugmentConfig(), pixels, boxes)))
    assert out.dtype == np.uint8
    mask = np.asarray(backend.keras().ops.convert_to_numpy(random_erasing.compute_box_mask(boxes[:, :4], 32, 32)))[
        ..., 0
    ]
    assert (out[~mask] == 0).all()
    noise = out[mask]
    counts = np.bincount(noise.ravel(), minlength=256)
    assert counts.min() > 0.5 * counts.mean()
    assert noise.std() == pytest.approx(73.9, abs=1.5)  # uniform over 0..255
    both = mask[0] & mask[1]
    assert both.any()
    assert (out[0][both] != out[1][both]).mean() > 0.9


def test_probability_zero_erases_nothing() -> None:
    pixels = random_images(4, 8)
    boxes = ERASING.sample(AugmentConfig(erasing_probability=0.0), 4, (8, 8), 0, 1).astype(np.float32)
    np.testing.assert_array_equal(
        backend.keras().ops.convert_to_numpy(ERASING.apply(AugmentConfig(), pixels, boxes)),
        pixels,
    )
