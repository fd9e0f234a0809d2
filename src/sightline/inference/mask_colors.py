"""The colors of classes in masks: the same everywhere, and distinguishable with red-green color blindness."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

# Okabe and Ito, 2008, https://jfly.uni-koeln.de/color/, without their black.
_OKABE_ITO = ("e69f00", "56b4e9", "009e73", "f0e442", "0072b2", "d55e00", "cc79a7")
_NO_CLASS = 64  # a dark gray
_LIGHTNESS = (0.45, 0.93)  # in Oklab: visible on a dark and on a light page
_LEVELS = 8  # levels of each channel in the other colors
# Linear sRGB as seen without red or without green receptors: Machado et al., 2009, doi:10.1109/TVCG.2009.113.
_VISION = np.array([
    [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
])  # fmt: skip
# Linear sRGB to Oklab, in which distances match perceived differences: https://bottosson.github.io/posts/oklab/
_TO_CONES = np.array([
    [0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
])  # fmt: skip
_TO_OKLAB = np.array([
    [0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
])  # fmt: skip


def make_palette(count: int) -> NDArray[np.uint8]:
    """Return a color for each of 256 values, uint8 [256, 3]: distinct for `count` classes, dark gray for the rest.

    The color of a class depends on its index alone.
    """
    palette = np.full((256, 3), _NO_CLASS, np.uint8)
    palette[:count] = _list_distinct_colors()[:count]
    return palette


def list_colors(count: int) -> list[str]:
    """Return the colors of `make_palette` for `count` classes, such as ``#e69f00``."""
    return [f"#{bytes(color).hex()}" for color in make_palette(count)[:count]]


def simulate_vision(colors: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return colors uint8 [N, 3] in Oklab, float64 [3, N, 3], for normal vision, without red and without green."""
    values = colors / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ _VISION.transpose(0, 2, 1), 0, 1)
    oklab: NDArray[np.float64] = np.cbrt(seen @ _TO_CONES.T) @ _TO_OKLAB.T
    return oklab


@cache
def _list_distinct_colors() -> NDArray[np.uint8]:
    """Return 255 colors, uint8 [255, 3]: Okabe and Ito's, then each as far as possible from all previous ones."""
    levels = np.linspace(0, 255, _LEVELS).round().astype(np.uint8)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    lightness = simulate_vision(candidates)[0, :, 0]
    candidates = candidates[(lightness > _LIGHTNESS[0]) & (lightness < _LIGHTNESS[1])]
    oklab = simulate_vision(candidates)
    colors = np.empty((255, 3), np.uint8)
    colors[: len(_OKABE_ITO)] = [list(bytes.fromhex(color)) for color in _OKABE_ITO]

    def measure(color: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return the distance of each candidate from `color`, float64 [N]: the minimum over the kinds of vision.

        For normal vision, hue counts more than lightness, which mixes with the lightness of the image below a mask.
        """
        differences = oklab - simulate_vision(color[None])
        by_hue = np.linalg.norm(differences[0] * [0.5, 1, 1], axis=1)
        distances: NDArray[np.float64] = np.minimum(by_hue, 2 * np.linalg.norm(differences[1:], axis=2).min(0))
        return distances

    nearest = measure(np.full(3, _NO_CLASS, np.uint8))
    for i in range(len(colors)):
        if i >= len(_OKABE_ITO):
            # Rounded, so that the choice does not depend on the last bits.
            colors[i] = candidates[nearest.round(6).argmax()]
        nearest = np.minimum(nearest, measure(colors[i]))
    return colors
