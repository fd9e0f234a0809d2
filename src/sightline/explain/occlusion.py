"""Occlusion: the drop of a class score while a rectangle slides over the image.

Zeiler and Fergus, 2014, arXiv:1311.2901. The rectangle has the mean color of the image. The score is the log-odds of
the class, which does not saturate where the probability is 1.0000.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from sightline.explain.masking import log_odds_score, score_masks
from sightline.inference.predictor import Predictor
from sightline.models.entry import Activation

RECTANGLE_FRACTION = 1 / 6  # fraction of the image's side
POSITIONS = 11  # along each side: neighbors overlap by half


def count_evaluations(height: int, width: int) -> int:
    """Return the number of model evaluations for one image of this size."""
    return 1 + len(_positions(height)) * len(_positions(width))


def occlusion_map(
    predictor: Predictor,
    pixels: NDArray[np.uint8],
    class_index: int,
    advance: Callable[[int], None],
    activation: Activation = "softmax",
    region: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """Return [H, W]: the mean drop of the score of class `class_index` over the rectangles that cover a pixel.

    A rectangle that raises the score counts as 0. `activation`: that of the model; `region`: as in
    `masking`, not empty.
    """
    height, width = pixels.shape[:2]
    places = [(rows, columns) for rows in _positions(height) for columns in _positions(width)]

    def masks() -> Iterator[NDArray[np.float32]]:
        yield np.ones((height, width), np.float32)  # the whole image
        for place in places:
            mask = np.ones((height, width), np.float32)
            mask[place] = 0
            yield mask

    score = log_odds_score(class_index, activation, region)
    masked_scores = np.concatenate([values for _, values in score_masks(predictor, pixels, masks(), score, advance)])
    total, cover_counts = np.zeros((height, width)), np.zeros((height, width))
    for place, value in zip(places, masked_scores[1:], strict=True):
        total[place] += max(masked_scores[0] - value, 0)
        cover_counts[place] += 1
    return total / cover_counts


def _positions(side: int) -> list[slice]:
    """Return the positions of the rectangle along one side, from its start to its end."""
    length = max(1, -(-side // round(1 / RECTANGLE_FRACTION)))
    starts = sorted({round(start) for start in np.linspace(0, side - length, POSITIONS)})
    return [slice(start, start + length) for start in starts]
