"""Faithfulness of a heat map: masking its hottest region must lower the class probability more than random places.

This is the deletion metric of Petsiuk et al., 2018, arXiv:1806.07421, at a single fraction.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sightline.explanation.hide import probability, scores
from sightline.explanation.result import HeatCheck
from sightline.prediction.base import Predictor
from sightline.randomness import generator

HOTTEST = 0.2  # fraction of the pixels
PLACES = 31  # random positions; with the hottest region itself, one batch


def check(
    predictor: Predictor, pixels: NDArray[np.uint8], heat: NDArray[np.float32], number: int, before: float, seed: int
) -> HeatCheck | None:
    """Mask the hottest fifth of `pixels` [H, W, C] by its `heat` [H, W], and the same shape at random positions.

    At the random positions the mask wraps around the edges, so that its size is the same. `before` is the probability
    of class `number` for the unmasked image. Pixels without heat are never masked, so less than a fifth may be. Return
    None for a map that is 0 everywhere.
    """
    order = np.argsort(-heat, axis=None, kind="stable")[: round(HOTTEST * heat.size)]
    order = order[heat.ravel()[order] > 0]
    if not len(order):
        return None
    shown = np.ones(heat.shape, np.float32)
    shown.flat[order] = 0

    def masks() -> Iterator[NDArray[np.float32]]:
        yield shown
        rng = generator(seed, "heat check")
        height, width = heat.shape
        for _ in range(PLACES):
            shift = 1 + int(rng.integers(max(1, height * width - 1)))  # never zero
            yield np.roll(shown, divmod(shift, width), (0, 1))

    found = np.concatenate([values for _, values in scores(predictor, pixels, masks(), probability(number))])
    falls = before - found
    return HeatCheck(
        hidden=len(order) / heat.size,
        fall=float(falls[0]),
        random_fall=float(falls[1:].mean()),
        beaten=float((falls[1:] < falls[0]).mean()),
        places=PLACES,
    )
