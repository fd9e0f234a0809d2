"""Random erasing: position, size and content of the erased boxes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from networks import pictures
from sightline import backend
from sightline.config import AugmentConfig
from sightline.training import patches


def test_inside_is_numpys_slice() -> None:
    boxes = np.array([[0, 0, 2, 3], [1, 2, 4, 5], [0, 0, 0, 0], [0, 0, 4, 6]], np.float32)
    found = backend.keras().ops.convert_to_numpy(patches.inside(boxes, 4, 6))
    for box, mask in zip(boxes.astype(int), found, strict=True):
        expected = np.zeros((4, 6, 1), bool)
        expected[box[0] : box[2], box[1] : box[3]] = True
        np.testing.assert_array_equal(mask, expected)


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0, 1), st.floats(0, 1), st.integers(0, 9))
def test_boxes_lie_inside_and_are_as_large_as_asked(
    height: int, width: int, first: float, second: float, seed: int
) -> None:
    low, high = sorted((first, second))
    config = AugmentConfig(erasing=1.0, erasing_from=low, erasing_to=high)
    top, left, bottom, right, shade = patches.erased(config, 50, (height, width), seed, 1).T
    assert (np.minimum(top, left) >= 0).all()
    assert (bottom <= height).all()
    assert (right <= width).all()
    tall, wide = bottom - top, right - left
    assert min(tall.min(), wide.min()) >= 1
    assert ((shade >= 0) & (shade < 256)).all()
    slack = 0.5 * (tall + wide) + 1  # sides are rounded to whole pixels
    assert (tall * wide <= high * height * width + slack).all()
    assert (tall * wide >= low * height * width - slack).all()


def test_draws_are_spread_as_the_paper_says() -> None:
    config = AugmentConfig(erasing=0.25, erasing_from=0.02, erasing_to=0.4)
    drawn = patches.erased(config, 8000, (200, 200), 0, 1)
    hit = drawn[drawn[:, 2] > 0]
    assert len(hit) == pytest.approx(2000, abs=150)
    tall, wide = hit[:, 2] - hit[:, 0], hit[:, 3] - hit[:, 1]
    area = tall * wide / 200**2
    assert np.quantile(area, [0, 0.5, 1]) == pytest.approx([0.02, 0.21, 0.4], abs=0.015)
    aspect = tall / wide
    assert (aspect.min(), aspect.max()) == pytest.approx((0.3, 1 / 0.3), rel=0.05)
    assert np.median(aspect) == pytest.approx(1, rel=0.08)
    for start, size in ((hit[:, 0], tall), (hit[:, 1], wide)):
        free = size < 190
        assert np.mean(start[free] / (200 - size[free])) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("channels", [1, 3])
def test_only_the_box_turns_into_uniform_noise_of_its_own(channels: int) -> None:
    pixels = np.zeros((64, 32, 32, channels), np.uint8)
    config = AugmentConfig(erasing=1.0, erasing_from=0.3, erasing_to=0.4)
    drawn = patches.erased(config, 64, (32, 32), 0, 1).astype(np.float32)
    out = np.asarray(backend.keras().ops.convert_to_numpy(patches.erase(pixels, drawn)))
    assert out.dtype == np.uint8
    inside = np.asarray(backend.keras().ops.convert_to_numpy(patches.inside(drawn[:, :4], 32, 32)))[..., 0]
    assert (out[~inside] == 0).all()
    noise = out[inside]
    counts = np.bincount(noise.ravel(), minlength=256)
    assert counts.min() > 0.5 * counts.mean()
    assert noise.std() == pytest.approx(73.9, abs=1.5)  # uniform over 0..255
    both = inside[0] & inside[1]
    assert both.any()
    assert (out[0][both] != out[1][both]).mean() > 0.9


def test_chance_zero_erases_nothing() -> None:
    pixels = pictures(4, 8)
    drawn = patches.erased(AugmentConfig(erasing=0.0), 4, (8, 8), 0, 1).astype(np.float32)
    np.testing.assert_array_equal(backend.keras().ops.convert_to_numpy(patches.erase(pixels, drawn)), pixels)
