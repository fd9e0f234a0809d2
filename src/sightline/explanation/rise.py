"""RISE: for each pixel, the mean probability of a class over the random masks that leave it visible.

Petsiuk, Das and Saenko, 2018, arXiv:1806.07421. Masked pixels have the mean color of the image, not black. The mean
probability over all masks is subtracted, which halves the noise: 0 is a pixel that makes no difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from sightline.explanation.heat import resized
from sightline.explanation.hide import probability, scores
from sightline.prediction.base import Predictor
from sightline.randomness import generator

MASKS = 1000
CELLS = 7  # along each side
VISIBLE = 0.5  # fraction of the cells


def heat(
    predictor: Predictor, pixels: NDArray[np.uint8], number: int, seed: int, advance: Callable[[int], None]
) -> NDArray[np.float64]:
    """Return [H, W]: how much higher the probability of class `number` is where a pixel of [H, W, C] is visible."""
    height, width = pixels.shape[:2]
    weighted, visible = np.zeros((height, width)), np.zeros((height, width))
    total = 0.0
    for shown, found in scores(predictor, pixels, masks(height, width, seed), probability(number), advance):
        weighted += np.tensordot(found, shown, 1)
        visible += shown.sum(0, dtype=np.float64)
        total += float(found.sum())
    return weighted / np.maximum(visible, 1e-9) - total / MASKS


def masks(height: int, width: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """Yield smooth random masks [height, width] in [0, 1], the same for every image of this size.

    A coarse binary grid is upsampled bilinearly to one cell more than the image and cropped at a random offset, as in
    the paper.
    """
    rng = generator(seed, "rise")
    cell_h, cell_w = -(-height // CELLS), -(-width // CELLS)
    for _ in range(MASKS):
        grid = rng.random((CELLS + 1, CELLS + 1)) < VISIBLE
        top, left = rng.integers(cell_h), rng.integers(cell_w)
        smooth = resized(grid.astype(np.float32), (CELLS + 1) * cell_h, (CELLS + 1) * cell_w)
        yield smooth[top : top + height, left : left + width]
