"""The figure of an explanation: the image at its own size, and the heat on it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sightline.explain.explanation import HeatRegion
from sightline.report.heatmap_plot import overlay_heat, plot_explanation


def image(height: int, width: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(("height", "width", "times"), [(300, 420, 1), (28, 20, 9)])
def test_each_pixel_of_the_image_is_there(height: int, width: int, times: int) -> None:
    pixels = image(height, width)
    heat = np.linspace(0, 1, height * width, dtype=np.float32).reshape(height, width)
    png = plot_explanation(pixels, heat, HeatRegion(2, 3, 10, 12, 0.5), "cat  $0.9", ["below"])
    plot = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    panel = np.repeat(np.repeat(pixels, times, 0), times, 1)
    places = np.lib.stride_tricks.sliding_window_view(plot[:, :, 0], (8, 8))
    positions = np.argwhere((places == panel[:8, :8, 0]).all((2, 3)))
    assert len(positions) >= 1, "the image's corner, pixel by pixel"
    top, left = positions[0]
    assert np.array_equal(plot[top : top + panel.shape[0], left : left + panel.shape[1]], panel)


def test_the_lines_below_say_what_is_dashed_and_what_is_dark(figures_drawn: list[Any]) -> None:
    pixels, heat, region = image(40, 60), np.zeros((40, 60), np.float32), HeatRegion(12, 3, 20, 12, 0.5)
    dark = "dark: cut off by the crop, so the model does not see it"
    for visible_box, lines in (
        ((10, 0, 50, 40), ["dashed: region", "masked", dark]),
        ((0, 0, 60, 40), ["dashed: region", "masked"]),
    ):
        plot_explanation(pixels, heat, region, "cat", ["region", "masked"], visible_box)
        figure = figures_drawn.pop()
        assert [text.get_text() for text in figure.texts] == ["cat", *lines]
        width = figure.bbox.width
        assert all(text.get_window_extent().x0 >= 0 and text.get_window_extent().x1 <= width for text in figure.texts)


def test_hot_is_yellow_cold_is_dark_and_what_was_not_seen_is_darker() -> None:
    gray = np.full((10, 30, 3), 128, np.uint8)
    heat = np.zeros((10, 30), np.float32)
    heat[:, 14] = 1
    pixels = overlay_heat(gray, heat, (10, 0, 20, 10)).astype(int)
    red, green, blue = pixels[5, 14]
    assert min(red, green) > blue + 50
    assert pixels[5, 14].sum() > pixels[5, 11].sum() > pixels[5, 2].sum()
    assert len(set(pixels[5, 2])) == 1


def test_heat_is_color_and_the_image_is_gray() -> None:
    image = np.full((1, 2, 3), (200, 100, 0), np.uint8)
    cold, hot = overlay_heat(image, np.array([[0, 1]], np.float32))[0].tolist()
    assert cold == [90, 70, 95]
    assert hot == [199, 185, 59]
