"""A heat map lies where it belongs on the original image, however that was cut and turned."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sightline.explain.localization import find_region, map_to_original, normalize_heat, resize_heat
from sightline.preprocessing import PreprocessingSpec, Resize
from synthetic_images import encode


def spot(width: int, height: int, x: float, y: float) -> NDArray[np.uint8]:
    """A black image with one soft white spot around (x, y)."""
    across, down = np.arange(width) + 0.5 - x, np.arange(height) + 0.5 - y
    size = min(width, height) / 8
    return (255 * np.exp(-(across**2 + down[:, None] ** 2) / (2 * size**2))).astype(np.uint8)


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
@pytest.mark.parametrize(("width", "height"), [(90, 60), (60, 90), (300, 100), (48, 48), (20, 31)])
def test_heat_comes_back_to_where_it_was(resize: Resize, width: int, height: int) -> None:
    preprocess = PreprocessingSpec(48, 40, 1, resize)
    x, y = 0.55 * width, 0.4 * height
    seen = preprocess.apply(spot(width, height, x, y))
    laid = map_to_original(normalize_heat(seen[..., 0].astype(np.float32)), preprocess, width, height)
    assert laid.shape == (height, width)
    row, column = np.unravel_index(laid.argmax(), laid.shape)
    tolerance = 0.5 + 1.5 * max(width / 40, height / 48)
    assert column + 0.5 == pytest.approx(x, abs=tolerance)
    assert row + 0.5 == pytest.approx(y, abs=tolerance)
    region = find_region(laid)
    assert region is not None
    assert region.left <= x < region.right
    assert region.top <= y < region.bottom


def test_what_a_crop_cut_off_is_cold_and_bars_of_padding_are_left_out() -> None:
    hot = np.ones((10, 10), np.float32)
    cropped = map_to_original(hot, PreprocessingSpec(10, 10, resize="crop"), 30, 10)
    assert (cropped[:, 10:20] == 1).all()
    assert not cropped[:, :10].any()
    assert not cropped[:, 20:].any()
    assert (map_to_original(hot, PreprocessingSpec(10, 10, resize="pad"), 30, 10) == 1).all()
    bars = hot.copy()
    bars[3:6] = 0  # the image itself: 10x3 pixels of the 10x10
    assert not map_to_original(bars, PreprocessingSpec(10, 10, resize="pad"), 30, 10).any()


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.integers(1, 40), st.sampled_from(["crop", "pad"]))
def test_the_placement_is_that_of_the_pixels(width: int, height: int, w: int, h: int, resize: Resize) -> None:
    preprocess = PreprocessingSpec(h, w, 1, resize)
    placement, filled = preprocess.compute_placement(width, height)
    assert 0 <= placement[0] < placement[2] <= width + 1e-6
    assert 0 <= placement[1] < placement[3] <= height + 1e-6
    white = preprocess.apply(np.full((height, width), 255, np.uint8))[..., 0]
    left, top, right, bottom = map(int, filled)
    expected = np.zeros((h, w), np.uint8)
    expected[top:bottom, left:right] = 255
    assert np.array_equal(white, expected)


def test_the_region_is_the_part_around_the_hottest_pixel() -> None:
    heat = np.zeros((20, 30), np.float32)
    heat[2:6, 3:9] = 0.8
    heat[3, 4] = 1
    heat[10:20, 15:30] = 0.7  # larger, not as hot
    heat[6, 3] = 0.4  # below half
    region = find_region(heat)
    assert region is not None
    assert (region.left, region.top, region.right, region.bottom) == (3, 2, 9, 6)
    assert region.heat_fraction == pytest.approx(heat[2:6, 3:9].sum() / heat.sum())
    assert find_region(np.zeros((3, 3), np.float32)) is None


def test_the_region_of_a_large_map_is_found_too() -> None:
    heat = np.zeros((1500, 2000), np.float32)
    heat[303:700, 1005:1401] = 1
    region = find_region(heat)
    assert region is not None
    assert (region.left, region.top) == pytest.approx((1005, 303), abs=8)
    assert (region.right, region.bottom) == pytest.approx((1401, 700), abs=8)
    lonely = np.zeros((1500, 2000), np.float32)
    lonely[1, 1] = 1  # between the places that a coarse look sees
    region = find_region(lonely)
    assert region is not None
    assert (region.left, region.top, region.right, region.bottom, region.heat_fraction) == (1, 1, 2, 2, 1)


def test_maps_are_brought_to_one() -> None:
    maps = np.array([[[-1.0, 2], [4, np.nan]], [[-1, -2], [0, -3]]])
    assert normalize_heat(maps).tolist() == [[[0, 0.5], [1, 0]], [[0, 0], [0, 0]]]
    assert resize_heat(np.eye(2), 4, 6).shape == (4, 6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_file_has_its_heat_where_it_is_seen(orientation: int) -> None:
    stored = Image.fromarray(spot(80, 50, 20, 12)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    preprocess = PreprocessingSpec(40, 40, 3, "crop")
    heat = normalize_heat(preprocess.decode(encode(stored, exif=exif))[..., 0].astype(np.float32))
    stored.getexif()[0x0112] = orientation
    seen = ImageOps.exif_transpose(stored)
    laid = map_to_original(heat, preprocess, *seen.size)
    inside = np.asarray(seen)[..., 0] > 200
    assert laid[inside].min() > 0.5
