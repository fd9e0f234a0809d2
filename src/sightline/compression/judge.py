"""Non-inferiority of a small model to the large one on the same images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline.evaluation.paired import LEVEL, mcnemar
from sightline.intervals import paired_difference
from sightline.records import Interval

SLACK = 0.01  # non-inferiority margin on the 95% interval of the difference


@dataclass(frozen=True, slots=True)
class Judgement:
    """Large against small model on `count` images: `lost` only the large classifies correctly, `won` only the small.

    `difference` is small minus large, `interval` its 95% interval, `p_value` that of McNemar's exact test.
    """

    part: str
    count: int
    large: float
    small: float
    lost: int
    won: int
    difference: float
    interval: Interval
    p_value: float

    @property
    def worse(self) -> bool:
        """Whether the small model is significantly worse, at 5%."""
        return self.p_value < LEVEL and self.lost > self.won


def judge(large: NDArray[np.bool_], small: NDArray[np.bool_], part: str) -> Judgement:
    """Compare two models by which images they classify correctly: bool [N] each, in the same order, N above 0."""
    count, lost, won = len(large), int((large & ~small).sum()), int((~large & small).sum())
    difference = (won - lost) / count
    return Judgement(
        part, count, float(large.mean()), float(small.mean()), lost, won, difference,
        paired_difference(lost, won, count), mcnemar(lost, won),
    )  # fmt: skip


def no_worse(lost: int, won: int, count: int, max_drop: float = 0.0) -> bool:
    """Tell whether a small model is no worse, from the images of `count` that it lost and won against the large one.

    It is if its accuracy drops by at most `max_drop`. With a `max_drop` of 0, it also is if it is not significantly
    worse (McNemar) and the 95% interval of the difference excludes a loss of more than `SLACK`. That takes some
    thousands of images; with fewer, only an accuracy that does not drop will do.
    """
    if (won - lost) / count >= -max_drop - 1e-9:
        return True
    return max_drop == 0 and mcnemar(lost, won) >= LEVEL and paired_difference(lost, won, count).low >= -SLACK
