"""Non-inferiority of a compressed model to the original on the same images.

A search tries many models, and accepts those that happen to look good on the validation images. Of three searches with
250 of them, two accepted models that were worse by about one standard error more than they looked
(benchmarks/results/compress.md). Therefore a drop counts as allowed only with one standard error to spare.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import jsonio
from sightline.evaluation.paired import LEVEL, mcnemar_p_value
from sightline.intervals import Z95, Interval, paired_difference_interval

MARGIN = 0.01  # a loss of accuracy that no test finds significant may be this large, by its 95% interval
STANDARD_ERRORS = 1.0  # to spare between a drop and the maximum that is allowed


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
    """Return whether a compressed model is non-inferior, by the images of `count` that only one of the two has right.

    It is if any of these holds: its accuracy is not lower; the drop plus `STANDARD_ERRORS` of it is at most `max_drop`;
    it is not significantly worse (McNemar), and the 95% interval of the difference excludes a loss of more than
    `MARGIN`. The last takes some thousands of images.
    """
    lost, gained = only_original_correct, only_compressed_correct
    return (
        gained >= lost
        or compute_upper_drop(lost, gained, count) <= max_drop
        or (mcnemar_p_value(lost, gained) >= LEVEL and _lower_end(lost, gained, count, Z95) >= -MARGIN)
    )


def compute_upper_drop(only_original_correct: int, only_compressed_correct: int, count: int) -> float:
    """Return the drop in accuracy plus `STANDARD_ERRORS` of it, which is negative for a clear gain."""
    return -_lower_end(only_original_correct, only_compressed_correct, count, STANDARD_ERRORS)


def _lower_end(lost: int, gained: int, count: int, z: float) -> float:
    return paired_difference_interval(lost, gained, count, z).low
