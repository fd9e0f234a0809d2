"""Whether a heat map is faithful: hide its hottest part, and see whether the class loses more than by chance.

Hiding what a map calls important is the deletion test of Petsiuk et al., 2018, arXiv:1806.07421, at one share.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sightline.explanation.hide import probability, scores
from sightline.explanation.result import HeatCheck
from sightline.prediction.base import Predictor
from sightline.randomness import generator

HOTTEST = 0.2  # of the pixels
PLACES = 31  # with the hottest part itself, one batch


def check(
    predictor: Predictor, pixels: NDArray[np.uint8], heat: NDArray[np.float32], number: int, before: float, seed: int
) -> HeatCheck | None:
    """Hide the hottest fifth of `pixels` [H, W, C] by its `heat` [H, W], and the same shape elsewhere.

    Elsewhere is the shape moved by chance, around the edges, so that size and outline are the same. `before` is the
    probability of class `number` for the whole picture. Pixels without heat are never hidden: where less than a fifth
    has any, that is all that is hidden. None for a map that is 0 everywhere.
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
            shift = 1 + int(rng.integers(max(1, height * width - 1)))  # never back to where it was
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
