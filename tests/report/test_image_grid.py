"""A grid shows the images it is given, in their proportions, under their words."""

from __future__ import annotations

import io
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sightline.report import plotting
from sightline.report.image_grid import plot_grid

Pixels = NDArray[np.uint8]


def make_plain(level: int, height: int = 40, width: int = 40, channels: int = 3) -> Pixels:
    return np.full((height, width, channels), level, np.uint8)


def open_png(png: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_every_image_stands_under_its_words(figures_drawn: list[Any]) -> None:
    rows = [
        [(make_plain(10 * i), f"class {i}") for i in range(5)],
        [(make_plain(100 + 10 * i), f"class {i}") for i in range(3)],
    ]
    plot_grid(rows, "beans")
    panels = [axes for axes in figures_drawn[0].axes if axes.images]
    assert [axes.get_title() for axes in panels] == [text for row in rows for _, text in row]
    for axes, (pixels, _) in zip(panels, [cell for row in rows for cell in row], strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), pixels)
    assert len(figures_drawn[0].axes) == 10
    assert figures_drawn[0].get_suptitle() == "beans"


def test_images_are_seen_as_they_are_beside_each_other() -> None:
    red, gray = make_plain(0), make_plain(128, channels=1)
    red[..., 0] = 255
    pixels = open_png(plot_grid([[(red, "red"), (gray, "gray")]]))
    middle = pixels.shape[1] // 2
    for half, color in ((pixels[:, :middle], (255, 0, 0)), (pixels[:, middle:], (128, 128, 128))):
        fraction = (half == color).all(-1).mean()
        assert fraction > 0.7, fraction


@pytest.mark.parametrize(("height", "width"), [(30, 90), (90, 30), (1, 200)])
def test_proportions_are_kept(height: int, width: int) -> None:
    blue = make_plain(0, height, width)
    blue[..., 2] = 255
    pixels = (open_png(plot_grid([[(blue, "")], [(make_plain(255), "")]])) == (0, 0, 255)).all(-1)
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    ratio = len(columns) / len(rows)
    assert ratio == pytest.approx(width / height, rel=0.1 if min(height, width) > 1 else 1)


def test_gray_levels_are_not_stretched() -> None:
    pixels = open_png(plot_grid([[(make_plain(60, channels=1), "")]]))
    assert (pixels == 60).all(-1).mean() > 0.8


def test_long_and_odd_names_are_drawn(figures_drawn: list[Any]) -> None:
    names = ["咖啡豆 深烘", "$x^2$ costs 5$", "a very long name that would cover the one beside it", ""]
    pixels = open_png(plot_grid([[(make_plain(200), name) for name in names]]))
    assert pixels.shape[1] < 1100
    titles = [axes.get_title() for axes in figures_drawn[0].axes]
    assert titles[:2] == names[:2]
    assert len(titles[2]) <= plotting.MAX_NAME_LENGTH
    assert not figures_drawn[0].axes[1].title.get_parse_math()
    assert figures_drawn[0].axes[0].title.get_fontfamily() == plotting.fonts_for(names[0])


@pytest.mark.filterwarnings("ignore:Glyph")  # without Chinese fonts, boxes of the same width are drawn
@pytest.mark.parametrize(
    "name", ["二零二四年春季在温室里拍摄的重瓣红玫瑰花", "a very long name that some people write"]
)
def test_long_names_do_not_cover_each_other(figures_drawn: list[Any], name: str) -> None:
    plot_grid([[(make_plain(200), f"{name}\npredicted {name}, 0.97")] * 4])
    boxes = [axes.title.get_window_extent() for axes in figures_drawn[0].axes]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_words_on_two_lines_cover_no_image(figures_drawn: list[Any]) -> None:
    plot_grid([[(make_plain(0), "0.70 Dark\n0.30 Green")] * 3] * 3)
    boxes = [axes.get_window_extent() for axes in figures_drawn[0].axes]
    assert figures_drawn[0].axes[0].get_title().count("\n") == 1
    for axes in figures_drawn[0].axes:
        words = axes.title.get_window_extent()
        assert not any(words.overlaps(box) for box in boxes)
