"""Non-inferiority of a compressed model to the original on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import jsonio
from sightline.evaluation.paired import LEVEL, mcnemar_p_value
from sightline.intervals import Interval, paired_difference_interval

MARGIN = 0.01  # non-inferiority margin on the 95% interval of the difference


@dataclass(frozen=True, slots=True)
class PairedTest:
    """The original against the compressed model on `count` images.

    `only_original_correct` and `only_compressed_correct` count those that only one of them classifies correctly.
    `difference` is compressed minus original accuracy, with its 95% interval, `p_value` that of McNemar's exact test.
    """

    split: str
    count: int
    original_accuracy: float
    compressed_accuracy: float
    only_original_correct: int
    only_compressed_correct: int
    difference: float
    difference_interval: Interval
    p_value: float

    @property
    def significantly_worse(self) -> bool:
        """Whether the compressed model is significantly worse, at 5%."""
        return self.p_value < LEVEL and self.only_original_correct > self.only_compressed_correct

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, and whether the compressed model is significantly worse, as JSON values."""
        return jsonio.fields_to_dict(self) | {"significantly_worse": self.significantly_worse}


def compare_models(original: NDArray[np.bool_], compressed: NDArray[np.bool_], split: str) -> PairedTest:
    """Compare two models by which images they classify correctly: bool [N] each, in the same order, N above 0."""
    lost, gained = int((original & ~compressed).sum()), int((~original & compressed).sum())
    return compare_counts(split, len(original), int(original.sum()), lost, gained)


def compare_counts(split: str, count: int, original_correct: int, lost: int, gained: int) -> PairedTest:
    """Compare two models on `count` images, of which the original classifies `original_correct` correctly.

    `lost` images are classified correctly only by the original, `gained` only by the compressed model.
    """
    return PairedTest(
        split, count, original_correct / count, (original_correct - lost + gained) / count, lost, gained,
        (gained - lost) / count, paired_difference_interval(lost, gained, count), mcnemar_p_value(lost, gained),
    )  # fmt: skip


def is_non_inferior(
    only_original_correct: int, only_compressed_correct: int, count: int, max_drop: float = 0.0
) -> bool:
    """Tell whether a compressed model is no worse than the original, by the images of `count` that only one has right.

    It is if its accuracy drops by at most `max_drop`. With a `max_drop` of 0, it also is if it is not significantly
    worse (McNemar) and the 95% interval of the difference excludes a loss of more than `MARGIN`. That takes some
    thousands of images; with fewer, only an accuracy that does not drop will do.
    """
    if (only_compressed_correct - only_original_correct) / count >= -max_drop - 1e-9:
        return True
    return (
        max_drop == 0
        and mcnemar_p_value(only_original_correct, only_compressed_correct) >= LEVEL
        and paired_difference_interval(only_original_correct, only_compressed_correct, count).low >= -MARGIN
    )
