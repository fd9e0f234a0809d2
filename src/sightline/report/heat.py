"""An explanation as a figure: the image, and the same with the heat laid on it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.explanation.result import Region
from sightline.preprocess import Box
from sightline.report import canvas

DPI = 120  # that of `canvas`
SMALLEST = 240  # pixels of a panel's longer side; a smaller image is drawn a whole number of times as large
GAP = 12  # pixels around panels
COLOURS = "viridis"  # blue is little heat, yellow much: told apart by people with any kind of color blindness
DARK = 0.35  # brightness of what the model did not see
WEAKEST, STRONGEST = 0.3, 0.65  # opacity of the colors


def overlay(picture: NDArray[np.uint8], heat: NDArray[np.float32], seen: Box | None = None) -> NDArray[np.uint8]:
    """Lay `heat` [H, W] in [0, 1] on an image [H, W, 3]; the hotter, the less of the image shines through.

    Outside of the box `seen` the image is darkened instead.
    """
    from matplotlib import colormaps

    colours: NDArray[np.float32] = 255 * colormaps[COLOURS](heat)[..., :3].astype(np.float32)
    opacity = (WEAKEST + (STRONGEST - WEAKEST) * heat)[..., None]
    grey = picture.mean(2, keepdims=True, dtype=np.float32)  # an image's own colors would mix with those of the heat
    mixed: NDArray[np.float32] = grey + opacity * (colours - grey)
    if seen is not None:
        left, top, right, bottom = map(round, seen)
        outside = np.ones(heat.shape, bool)
        outside[top:bottom, left:right] = False
        mixed[outside] = DARK * picture[outside]
    return np.rint(mixed).astype(np.uint8)


def explained(
    picture: NDArray[np.uint8],
    heat: NDArray[np.float32],
    region: Region | None,
    title: str,
    below: str = "",
    seen: Box | None = None,
) -> bytes:
    """Draw an image [H, W, 3], and beside it the heat [H, W] on it with the `region` framed; return PNG bytes.

    Outside of the box `seen`, (left, top, right, bottom), which a crop cut off, the image is dark and has no heat.
    Each pixel of the image is one pixel of the figure, or a square of them where the image is tiny.
    """
    height, width = heat.shape
    times = max(1, math.ceil(SMALLEST / max(height, width)))
    panel_w, panel_h, head, foot = width * times, height * times, 34, 28 if below else GAP
    total_w, total_h = 2 * panel_w + 3 * GAP, panel_h + head + foot
    figure = canvas.blank(total_w / DPI, total_h / DPI)
    figure.set_layout_engine("none")
    for number, pixels in enumerate((picture, overlay(picture, heat, seen))):
        left = GAP + number * (panel_w + GAP)
        axes = figure.add_axes((left / total_w, foot / total_h, panel_w / total_w, panel_h / total_h))
        axes.imshow(pixels, interpolation="nearest", aspect="auto", extent=(0, width, height, 0))
        axes.set_axis_off()
        if number and region is not None:
            _frame(axes, region)
    figure.text(0.5, 1 - head / 2 / total_h, title, ha="center", va="center", **canvas.words(10))
    if below:
        figure.text(0.5, foot / 2 / total_h, below, ha="center", va="center", **canvas.words(8))
    return canvas.png(figure)


def _frame(axes: Any, region: Region) -> None:
    """Draw white dashes on a dark line, seen on any image."""
    from matplotlib.patches import Rectangle

    corner, size = (region.left, region.top), (region.right - region.left, region.bottom - region.top)
    for colour, width, style in (("black", 2.4, "-"), ("white", 1.2, (0, (4, 3)))):
        frame = Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=width, linestyle=style)
        axes.add_patch(frame)
