"""Heat maps: normalized to [0, 1], mapped back to the original image, and their hottest region; regions of masks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sightline.explain.explanation import HeatRegion
from sightline.preprocessing import PreprocessingSpec

REGION_THRESHOLD = 0.5  # threshold of the hottest region, as a fraction of the maximum


def normalize_heat(heat: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return maps [..., H, W] as float32 in [0, 1]: evidence against the class is 0, the maximum of each map is 1.

    A map without positive values becomes 0 everywhere.
    """
    positive = np.maximum(np.nan_to_num(heat.astype(np.float64), nan=0.0, posinf=0.0), 0)
    greatest = positive.max((-2, -1), keepdims=True)
    return (positive / np.where(greatest > 0, greatest, 1)).astype(np.float32)


def resize_heat(heat: NDArray[np.floating], height: int, width: int) -> NDArray[np.float32]:
    """Resize one map [h, w] to [height, width] by bilinear interpolation."""
    image = Image.fromarray(np.ascontiguousarray(heat, np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32)


def map_to_original(
    heat: NDArray[np.float32], preprocess: PreprocessingSpec, width: int, height: int
) -> NDArray[np.float32]:
    """Map the heat of the model's input back to the original image, [height, width] as displayed.

    The heat is 0 where a crop removed pixels; heat on padding is dropped.
    """
    source_box, target_box = preprocess.compute_placement(width, height)
    across, down = (
        (target_box[2] - target_box[0]) / (source_box[2] - source_box[0]),
        (target_box[3] - target_box[1]) / (source_box[3] - source_box[1]),
    )
    numbers = [int(edge) for edge in target_box]
    inner = Image.fromarray(np.ascontiguousarray(heat[numbers[1] : numbers[3], numbers[0] : numbers[2]]))
    affine = (across, 0.0, -source_box[0] * across, 0.0, down, -source_box[1] * down)
    mapped = inner.transform((width, height), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    return np.clip(np.asarray(mapped, np.float32), 0, 1)


def find_region(heat: NDArray[np.float32]) -> HeatRegion | None:
    """Return the bounding box of the connected region around the maximum with at least half of its heat.

    `heat` is [H, W] on the original image; None if it is 0 everywhere. The connected component above a fraction of the
    maximum follows Zhou et al., 2016, arXiv:1512.04150.
    """
    total = float(heat.sum(dtype=np.float64))
    if total <= 0:
        return None
    step = max(1, math.ceil(max(heat.shape) / 256))  # keeps large images fast
    coarse = heat[::step, ::step]
    if coarse.max() <= 0:
        step, coarse = 1, heat
    top, bottom, left, right = (
        step * edge for edge in _hot_component_box(coarse, coarse >= REGION_THRESHOLD * coarse.max())
    )
    bottom, right = min(bottom, heat.shape[0]), min(right, heat.shape[1])
    fraction = float(heat[top:bottom, left:right].sum(dtype=np.float64)) / total
    return HeatRegion(left, top, right, bottom, min(fraction, 1.0))


def _hot_component_box(heat: NDArray[np.float32], hot: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return (top, bottom, left, right) of the connected component of `hot` with the hottest pixel, by dilation."""
    component = np.zeros_like(hot)
    component[np.unravel_index(np.argmax(heat), heat.shape)] = True
    count = 0
    while count != (count := int(component.sum())):
        wide = np.pad(component, 1)
        component = hot & (component | wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:])
    rows, columns = np.flatnonzero(component.any(1)), np.flatnonzero(component.any(0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


@dataclass(frozen=True, slots=True)
class PixelRegion:
    """The `pixels`, bool [H, W], that are predicted as class `class_index`: a `fraction` of those of the image.

    `probability` is the mean probability of the class over them, or over the image if there are none.
    """

    class_index: int
    pixels: NDArray[np.bool_]
    fraction: float
    probability: float

    @classmethod
    def find(
        cls, probabilities: NDArray[np.float32], visible: NDArray[np.bool_], class_index: int | None = None
    ) -> Self:
        """Return the pixels of a class, by default the class with the most pixels, in `probabilities` [H, W, K].

        `visible` bool [H, W] are the pixels that show the image.
        """
        predicted = probabilities.argmax(-1)
        if class_index is None:
            class_index = int(np.bincount(predicted[visible], minlength=probabilities.shape[-1]).argmax())
        pixels = visible & (predicted == class_index)
        averaged = pixels if pixels.any() else visible
        probability = float(probabilities[averaged, class_index].mean(dtype=np.float64))
        return cls(class_index, pixels, float(pixels.sum() / max(1, visible.sum())), probability)
