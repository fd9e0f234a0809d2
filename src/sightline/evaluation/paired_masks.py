"""Paired comparison of two models of masks by the mean IoU of each image, on the same images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline.evaluation.bootstrap import count_groups
from sightline.evaluation.paired import LEVEL, compare_scores
from sightline.intervals import Interval

DIGITS = 9  # of an IoU, so that equal ones are equal


@dataclass(frozen=True, slots=True)
class MaskComparison:
    """The second of two models of masks against the first, on the `count` images that both were evaluated on.

    `first_iou` and `second_iou` are means over the images of the mean IoU of the classes that each has; `difference` is
    the second minus the first, and its interval resamples images, or groups of them; it is None where it would be of
    zero width. `p_value` is two-sided: whether the sign of each difference, or of that of each of `groups`, is chance.
    `verdict` is about the second: "better", "worse" or "no significant difference".
    """

    count: int
    first_iou: float
    second_iou: float
    p_value: float
    difference: float
    difference_interval: Interval | None
    verdict: str
    groups: int | None = None


def compare_masks(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    *,
    tests: int = 1,
    groups: NDArray[np.int64] | None = None,
) -> MaskComparison:
    """Compare two models by the mean IoU of each image, float64 [N] each in [0, 1], in the same order; N is not 0.

    `tests` and `groups` are as for `compare_paired`.
    """
    compared = compare_scores(first.round(DIGITS), second.round(DIGITS), groups)
    verdict = "no significant difference"
    if compared.p_value * tests < LEVEL:
        verdict = "better" if compared.value > 0 else "worse"
    return MaskComparison(
        len(first), float(first.mean()), float(second.mean()), compared.p_value, compared.value, compared.interval,
        verdict, count_groups(groups),
    )  # fmt: skip
