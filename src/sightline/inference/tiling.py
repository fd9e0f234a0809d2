"""Masks of images of any size, predicted in overlapping tiles of the network's input size.

Neighboring tiles overlap by at least a quarter of their side. The outermost pixels of a tile, for which the network
sees the least context, are dropped if there is a neighbor (as in Ronneberger et al., 2015, arXiv:1505.04597). Further
inside, weights rise linearly, and at each pixel they sum to 1 over all tiles. Only the probabilities of one row of
tiles are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sightline.errors import ImageError
from sightline.inference.mask_quality import MaskQuality
from sightline.preprocessing import PreprocessingSpec
from sightline.preprocessing.spec import WholeImageSpec

OVERLAP = 0.25  # as a fraction of the side of a tile
EDGE = 0.25  # fraction of the overlap that is dropped at the edge of a tile


class Span(NamedTuple):
    """The pixels that a row or column of tiles covers, from `start`, with their `weights` float32 [side]."""

    start: int
    weights: NDArray[np.float32]


def divide_axis(length: int, side: int) -> list[Span]:
    """Return the tiles of `side` pixels that cover an axis of `length` pixels; weights sum to 1 at each pixel.

    >>> [(span.start, span.weights.tolist()) for span in divide_axis(14, 8)]
    [(0, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.25]), (6, [0.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])]
    """
    overlap = max(1, round(OVERLAP * side)) if side > 1 else 0
    count = 1 if length <= side else -(-(length - overlap) // (side - overlap))
    starts = np.linspace(0, max(0, length - side), count).round().astype(np.int64)
    margin = int(EDGE * overlap)
    ramp = np.clip((np.arange(side) - margin + 0.5) / max(1, overlap - 2 * margin), 0, 1)
    windows = np.ones((count, side))
    windows[1:] *= ramp
    windows[:-1] *= ramp[::-1]
    total = np.zeros(max(length, side))
    for start, window in zip(starts, windows, strict=True):
        total[start : start + side] += window
    return [
        Span(int(start), (window / total[start : start + side]).astype(np.float32))
        for start, window in zip(starts, windows, strict=True)
    ]


def scale_spec(preprocess: PreprocessingSpec, width: int, height: int, scale: float) -> PreprocessingSpec:
    """Return the spec for decoding a whole image of this size at `scale`.

    Raises `ImageError` if the result would have more megapixels than `preprocess` allows, or too long a side.
    """
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    if rows * columns > preprocess.max_megapixels * 10**6 or max(rows, columns) > WholeImageSpec.max_side:
        raise ImageError(
            f"too large for tiles: {columns}x{rows} pixels at the scale {scale:g}, limit "
            f"{preprocess.max_megapixels} megapixels"
        )
    values = {field.name: getattr(preprocess, field.name) for field in fields(preprocess)}
    return WholeImageSpec(**(values | {"height": rows, "width": columns, "resize": "stretch"}))


class TiledMask:
    """The mask of an image with uint8 [H, W, C] `pixels`, from the probabilities of its tiles.

    Tiles have the size of `preprocess`; images smaller than a tile are extended by mirroring. Call `cut_row` and then
    `add_row` for each of `rows` in order; after that, `mask` is complete.
    """

    def __init__(self, pixels: NDArray[np.uint8], preprocess: PreprocessingSpec, num_classes: int) -> None:
        self._side = preprocess.height, preprocess.width
        self._shape = pixels.shape[:2]
        missing = [max(0, side - length) for side, length in zip(self._side, self._shape, strict=True)]
        padding = (0, missing[0]), (0, missing[1]), (0, 0)
        self._pixels = np.pad(pixels, padding, "symmetric") if any(missing) else pixels  # no copy of a large image
        height, width = self._pixels.shape[:2]
        self._row_spans, self._columns = divide_axis(height, self._side[0]), divide_axis(width, self._side[1])
        self._mask = np.zeros((height, width), np.uint8)
        self._scores = np.zeros((self._side[0], width, num_classes), np.float32)  # below the finished part of the mask
        self._quality = MaskQuality(num_classes)

    @property
    def rows(self) -> range:
        """The positions of the rows of tiles."""
        return range(len(self._row_spans))

    @property
    def mask(self) -> NDArray[np.uint8]:
        """The most probable class of each pixel, uint8 [H, W]."""
        return self._mask[: self._shape[0], : self._shape[1]]

    @property
    def quality(self) -> float:
        """The expected IoU of the mask, see `MaskQuality`."""
        return self._quality.compute_iou()

    def cut_row(self, row: int) -> NDArray[np.uint8]:
        """Return the tiles of a row, uint8 [T, h, w, C]."""
        top = self._row_spans[row].start
        return np.stack([
            self._pixels[top : top + self._side[0], column.start : column.start + self._side[1]]
            for column in self._columns
        ])  # fmt: skip

    def add_row(self, row: int, probabilities: Iterable[NDArray[np.float32]]) -> None:
        """Add the probabilities of the tiles of a row, each float32 [h, w, K]."""
        start, weights = self._row_spans[row]
        for column, tile in zip(self._columns, probabilities, strict=True):
            window = np.outer(weights, column.weights)[..., None]
            self._scores[:, column.start : column.start + self._side[1]] += window * tile
        is_last = row == len(self._row_spans) - 1
        end = start + self._side[0] if is_last else self._row_spans[row + 1].start
        complete = end - start
        self._mask[start:end] = self._scores[:complete].argmax(-1)
        self._quality.add(self._scores[: max(0, min(complete, self._shape[0] - start)), : self._shape[1]])
        self._scores[:-complete] = self._scores[complete:]
        self._scores[-complete:] = 0


def predict_tiled(
    compute: Callable[[NDArray[np.uint8]], Iterable[NDArray[np.float32]]],
    pixels: NDArray[np.uint8],
    preprocess: PreprocessingSpec,
    num_classes: int,
) -> TiledMask:
    """Return the complete mask of `pixels` uint8 [H, W, C].

    `compute` returns or yields the probabilities float32 [h, w, K] of each of the tiles uint8 [T, h, w, C].
    """
    tiled = TiledMask(pixels, preprocess, num_classes)
    for row in tiled.rows:
        tiled.add_row(row, compute(tiled.cut_row(row)))
    return tiled
