"""Faithfulness of a heat map: masking its hottest region must lower the class probability more than random places.

This is the deletion metric of Petsiuk et al., 2018, arXiv:1806.07421, at a single fraction.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sightline.explain.explanation import FaithfulnessCheck
from sightline.explain.masking import probability_score, score_masks
from sightline.inference.predictor import Predictor
from sightline.seeding import make_generator

MASKED_FRACTION = 0.2  # fraction of the pixels
RANDOM_POSITIONS = 31  # random positions; with the hottest region itself, one batch


def check_faithfulness(
    predictor: Predictor,
    pixels: NDArray[np.uint8],
    heat: NDArray[np.float32],
    class_index: int,
    before: float,
    seed: int,
    region: NDArray[np.bool_] | None = None,
) -> FaithfulnessCheck | None:
    """Mask the hottest fifth of `pixels` [H, W, C] by its `heat` [H, W], and the same shape at random positions.

    At the random positions the mask wraps around the edges, so that its size is the same. `before` is the probability
    of class `class_index` for the unmasked image, `region` as in `masking`. Pixels without heat are never masked, so
    less than a fifth may be.
    Return None for a map that is 0 everywhere.
    """
    order = np.argsort(-heat, axis=None, kind="stable")[: round(MASKED_FRACTION * heat.size)]
    order = order[heat.ravel()[order] > 0]
    if not len(order):
        return None
    mask = np.ones(heat.shape, np.float32)
    mask.flat[order] = 0

    def masks() -> Iterator[NDArray[np.float32]]:
        yield mask
        rng = make_generator(seed, "heat check")
        height, width = heat.shape
        for _ in range(RANDOM_POSITIONS):
            shift = 1 + int(rng.integers(max(1, height * width - 1)))  # never zero
            yield np.roll(mask, divmod(shift, width), (0, 1))

    masked_scores = np.concatenate(
        [values for _, values in score_masks(predictor, pixels, masks(), probability_score(class_index, region))]
    )
    drops = before - masked_scores
    return FaithfulnessCheck(
        masked_fraction=len(order) / heat.size,
        drop=float(drops[0]),
        random_drop=float(drops[1:].mean()),
        percentile=float((drops[1:] < drops[0]).mean()),
        positions=RANDOM_POSITIONS,
    )
