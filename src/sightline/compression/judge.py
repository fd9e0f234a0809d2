"""Whether the small model is worse than the large one on the same pictures, and by how much."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline.evaluation.paired import LEVEL, mcnemar
from sightline.intervals import paired_difference
from sightline.records import Interval

SLACK = 0.01  # what is called no loss may at most be such a loss, by its 95% interval


@dataclass(frozen=True, slots=True)
class Judgement:
    """Large against small on `count` pictures; `lost` were right before and wrong after, `won` the other way round.

    `difference` is small less large, `interval` its 95% interval, `p_value` that of McNemar's exact test.
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
        """Whether the test can tell that the small model is worse, at 5%."""
        return self.p_value < LEVEL and self.lost > self.won


def judge(large: NDArray[np.bool_], small: NDArray[np.bool_], part: str) -> Judgement:
    """Compare two models by which pictures they named rightly: bool [N] each, in the same order, N above 0."""
    count, lost, won = len(large), int((large & ~small).sum()), int((~large & small).sum())
    difference = (won - lost) / count
    return Judgement(
        part, count, float(large.mean()), float(small.mean()), lost, won, difference,
        paired_difference(lost, won, count), mcnemar(lost, won),
    )  # fmt: skip


def no_worse(lost: int, won: int, count: int, max_drop: float = 0.0) -> bool:
    """Whether a small model stands, by the pictures of `count` that it lost and won against the large one.

    It does if its accuracy is not below by more than `max_drop`. If that is 0, it also does where McNemar's test cannot
    tell that it is worse and the 95% interval of the difference rules out a loss of more than `SLACK`: some thousands
    of pictures. With few, chance could hide any loss, and only an accuracy that is not below will do.
    """
    if (won - lost) / count >= -max_drop - 1e-9:
        return True
    return max_drop == 0 and mcnemar(lost, won) >= LEVEL and paired_difference(lost, won, count).low >= -SLACK
