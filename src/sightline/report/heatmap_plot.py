"""An explanation as a figure: the image, and the image overlaid with the heat map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.explain.explanation import HeatRegion
from sightline.preprocessing import Box
from sightline.report import plotting

DPI = 120  # as in `plotting.make_figure`
MIN_PANEL = 240  # pixels of a panel's longer side; a smaller image is enlarged by a whole factor
GAP = 12  # pixels around panels
LINE, LETTER = 17, 7.2  # pixels: height of a line of text below the panels, width of a letter
COLORS = np.array([  # viridis, from low to high heat: distinguishable with any kind of color blindness
    (68, 1, 84), (72, 26, 108), (71, 47, 125), (65, 68, 135), (57, 86, 140), (49, 104, 142), (42, 120, 142),
    (35, 136, 142), (31, 152, 139), (34, 168, 132), (53, 183, 121), (84, 197, 104), (122, 209, 81), (165, 219, 54),
    (210, 226, 27), (253, 231, 37),
], np.float32)  # fmt: skip
OUTSIDE_BRIGHTNESS = 0.35  # brightness of the area that the model did not see
MIN_OPACITY, MAX_OPACITY = 0.3, 0.65  # opacity of the colors


def overlay_heat(
    image: NDArray[np.uint8], heat: NDArray[np.float32], visible_box: Box | None = None
) -> NDArray[np.uint8]:
    """Overlay `heat` [H, W] in [0, 1] on an image [H, W, 3]; the opacity increases with the heat.

    Outside `visible_box`, the image is darkened instead.
    """
    places = np.linspace(0, 1, len(COLORS))
    colors = np.stack([np.interp(heat, places, channel) for channel in COLORS.T], axis=-1).astype(np.float32)
    opacity = (MIN_OPACITY + (MAX_OPACITY - MIN_OPACITY) * heat)[..., None]
    gray = image.mean(2, keepdims=True, dtype=np.float32)  # the image's own colors would mix with the heat map's
    mixed: NDArray[np.float32] = gray + opacity * (colors - gray)
    if visible_box is not None:
        left, top, right, bottom = map(round, visible_box)
        outside = np.ones(heat.shape, bool)
        outside[top:bottom, left:right] = False
        mixed[outside] = OUTSIDE_BRIGHTNESS * image[outside]
    return np.rint(mixed).astype(np.uint8)


def plot_explanation(
    image: NDArray[np.uint8],
    heat: NDArray[np.float32],
    region: HeatRegion | None,
    title: str,
    below: Sequence[str],
    visible_box: Box | None = None,
    outline: NDArray[np.bool_] | None = None,
) -> bytes:
    """Draw an image [H, W, 3], and beside it the image overlaid with `heat` [H, W] and framed `region`; return a PNG.

    Outside `visible_box` (left, top, right, bottom), where a crop removed the image, it is dark and has no heat.
    `outline` [H, W] draws a line around the pixels for which it is true. `below` are lines of text, the first of them
    about the region. Each pixel of the image is one pixel of the figure, or a square of pixels if the image is tiny.
    """
    height, width = heat.shape
    scale = max(1, math.ceil(MIN_PANEL / max(height, width)))
    lines = [f"dashed: {below[0]}", *below[1:]] if below and region is not None else list(below)
    if visible_box is not None and tuple(map(round, visible_box)) != (0, 0, width, height):
        lines.append("dark: cut off by the crop, so the model does not see it")
    if outline is not None and outline.any():
        lines.append("outlined: the pixels that are predicted as this class")
    panel_w, panel_h, head, foot = width * scale, height * scale, 34, GAP + LINE * len(lines)
    total_w, total_h = 2 * panel_w + 3 * GAP, panel_h + head + foot
    figure = plotting.make_figure(total_w / DPI, total_h / DPI)
    figure.set_layout_engine("none")
    for number, pixels in enumerate((image, overlay_heat(image, heat, visible_box))):
        left = GAP + number * (panel_w + GAP)
        axes = figure.add_axes((left / total_w, foot / total_h, panel_w / total_w, panel_h / total_h))
        axes.imshow(pixels, interpolation="nearest", aspect="auto", extent=(0, width, height, 0))
        axes.set_axis_off()
        if outline is not None and outline.any() and not outline.all():
            _draw_outline(axes, outline)
        if number and region is not None:
            _draw_region(axes, region)
    figure.text(0.5, 1 - head / 2 / total_h, title, ha="center", va="center", **plotting.text_style(10))
    size = min(8.0, 8.0 * total_w / (LETTER * max(map(len, lines), default=1)))
    for number, text in enumerate(lines):
        down = (foot - GAP / 2 - LINE * (number + 0.5)) / total_h
        figure.text(0.5, down, text, ha="center", va="center", **plotting.text_style(size))
    return plotting.render_png(figure)


def _draw_outline(axes: Any, pixels: NDArray[np.bool_]) -> None:
    """Draw a light line on a dark one around pixels [H, W]."""
    height, width = pixels.shape
    across, down = np.arange(width) + 0.5, np.arange(height) + 0.5
    for color, thickness in (("black", 1.8), ("white", 0.8)):
        axes.contour(across, down, pixels, levels=[0.5], colors=color, linewidths=thickness)


def _draw_region(axes: Any, region: HeatRegion) -> None:
    """Draw white dashes on a dark line, visible on any image."""
    from matplotlib.patches import Rectangle

    corner, size = (region.left, region.top), (region.right - region.left, region.bottom - region.top)
    for color, width, style in (("black", 2.4, "-"), ("white", 1.2, (0, (4, 3)))):
        frame = Rectangle(corner, *size, fill=False, edgecolor=color, linewidth=width, linestyle=style)
        axes.add_patch(frame)
