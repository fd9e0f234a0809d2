"""RISE: for each pixel, the mean probability of a class over the random masks that leave it visible.

Petsiuk, Das and Saenko, 2018, arXiv:1806.07421. Masked pixels have the mean color of the image, not black. The mean
probability over all masks is subtracted, which halves the noise: 0 is a pixel that makes no difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from sightline.explain.localization import resize_heat
from sightline.explain.masking import probability_score, score_masks
from sightline.inference.predictor import Predictor
from sightline.seeding import make_generator

MASKS = 1000
CELLS = 7  # along each side
VISIBLE = 0.5  # fraction of the cells


def rise_map(
    predictor: Predictor, pixels: NDArray[np.uint8], class_index: int, seed: int, advance: Callable[[int], None]
) -> NDArray[np.float64]:
    """Return [H, W]: how much higher the probability of class `class_index` is where a pixel is visible."""
    height, width = pixels.shape[:2]
    weighted, visible = np.zeros((height, width)), np.zeros((height, width))
    total = 0.0
    for batch_masks, batch_scores in score_masks(
        predictor, pixels, random_masks(height, width, seed), probability_score(class_index), advance
    ):
        weighted += np.tensordot(batch_scores, batch_masks, 1)
        visible += batch_masks.sum(0, dtype=np.float64)
        total += float(batch_scores.sum())
    return weighted / np.maximum(visible, 1e-9) - total / MASKS


def random_masks(height: int, width: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """Yield smooth random masks [height, width] in [0, 1], the same for every image of this size.

    A coarse binary grid is upsampled bilinearly to one cell more than the image and cropped at a random offset, as in
    the paper.
    """
    rng = make_generator(seed, "rise")
    cell_h, cell_w = -(-height // CELLS), -(-width // CELLS)
    for _ in range(MASKS):
        grid = rng.random((CELLS + 1, CELLS + 1)) < VISIBLE
        top, left = rng.integers(cell_h), rng.integers(cell_w)
        smooth = resize_heat(grid.astype(np.float32), (CELLS + 1) * cell_h, (CELLS + 1) * cell_w)
        yield smooth[top : top + height, left : left + width]
