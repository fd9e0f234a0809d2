"""Non-inferiority of a small model to the large one on the same images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline.evaluation.paired import LEVEL, mcnemar_p_value
from sightline.intervals import Interval, paired_difference_interval

MARGIN = 0.01  # non-inferiority margin on the 95% interval of the difference


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Large against small model on `count` images.

    `only_large_correct` counts those that only the large one classifies correctly, `only_small_correct` the reverse.

    `difference` is small minus large, `interval` its 95% interval, `p_value` that of McNemar's exact test.
    """

    split: str
    count: int
    large: float
    small: float
    only_large_correct: int
    only_small_correct: int
    difference: float
    interval: Interval
    p_value: float

    @property
    def significantly_worse(self) -> bool:
        """Whether the small model is significantly worse, at 5%."""
        return self.p_value < LEVEL and self.only_large_correct > self.only_small_correct


def compare_models(large: NDArray[np.bool_], small: NDArray[np.bool_], split: str) -> PairedTest:
    """Compare two models by which images they classify correctly: bool [N] each, in the same order, N above 0."""
    count, only_large_correct, only_small_correct = len(large), int((large & ~small).sum()), int((~large & small).sum())
    difference = (only_small_correct - only_large_correct) / count
    return PairedTest(
        split, count, float(large.mean()), float(small.mean()), only_large_correct, only_small_correct, difference,
        paired_difference_interval(only_large_correct, only_small_correct, count), mcnemar_p_value(only_large_correct,
        only_small_correct),
    )  # fmt: skip


def is_non_inferior(only_large_correct: int, only_small_correct: int, count: int, max_drop: float = 0.0) -> bool:
    """Tell whether a small model is no worse, from the images of `count` that it lost and won against the large one.

    It is if its accuracy drops by at most `max_drop`. With a `max_drop` of 0, it also is if it is not significantly
    worse (McNemar) and the 95% interval of the difference excludes a loss of more than `MARGIN`. That takes some
    thousands of images; with fewer, only an accuracy that does not drop will do.
    """
    if (only_small_correct - only_large_correct) / count >= -max_drop - 1e-9:
        return True
    return (
        max_drop == 0
        and mcnemar_p_value(only_large_correct, only_small_correct) >= LEVEL
        and paired_difference_interval(only_large_correct, only_small_correct, count).low >= -MARGIN
    )
