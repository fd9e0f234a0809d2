"""A grid of labeled images, drawn off screen and returned as PNG bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.report import plotting

CELL = 1.9  # inches
LETTERS = 8  # font size in points, at which the longest name fits a cell
MIN_SMOOTH_SIZE = 96  # pixels; smaller images show each pixel as a square


def plot_grid(rows: Sequence[Sequence[tuple[NDArray[np.uint8], str]]], title: str = "") -> bytes:
    """Draw rows of (image, caption above it); an image is uint8 [H, W, 1 or 3] of any size.

    Rows may differ in length. Images keep their proportions; the cells are squares.
    """
    columns = max(map(len, rows))
    words = any(text for row in rows for _, text in row)
    figure = plotting.make_figure(CELL * columns, (CELL + 0.3 * words) * len(rows) + 0.4 * bool(title))
    no_ticks: dict[str, list[float]] = {"xticks": [], "yticks": []}  # invisible ticks take a third of the time
    for axes, (pixels, text) in _place_cells(
        figure.subplots(len(rows), columns, squeeze=False, subplot_kw=no_ticks), rows
    ):
        image = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
        axes.imshow(
            image,
            cmap="gray",
            vmin=0,
            vmax=255,
            interpolation="nearest" if len(pixels) < MIN_SMOOTH_SIZE else "antialiased",
        )
        axes.set_box_aspect(1)
        _center_in_square(axes, pixels.shape[0], pixels.shape[1])
        axes.set_title("\n".join(map(plotting.shorten, text.split("\n"))), pad=4, **plotting.text_style(LETTERS))
    if title:
        figure.suptitle(title, **plotting.text_style(11))
    return plotting.render_png(figure)


def _place_cells(places: Any, rows: Sequence[Sequence[Any]]) -> Any:
    """Yield each cell of the grid with its content, and leave the others blank."""
    for across, row in zip(places, rows, strict=True):
        for axes in across:
            axes.set_axis_off()
        yield from zip(across, row, strict=False)


def _center_in_square(axes: Any, height: int, width: int) -> None:
    """Show the image in the center of an otherwise empty square."""
    side = max(height, width)
    axes.set_xlim((width - side) / 2 - 0.5, (width + side) / 2 - 0.5)
    axes.set_ylim((height + side) / 2 - 0.5, (height - side) / 2 - 0.5)
