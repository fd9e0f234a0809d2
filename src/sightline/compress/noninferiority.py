"""Non-inferiority of a compressed model to the original model on the same images.

On an image with one label, a model is right or wrong (`PairedTest`). On an image with several labels or a mask, it has
a score in [0, 1] (`ScoreTest`). If images depend on each other within groups, right or wrong is a score of 1 or 0. Both
tests follow the same rules.

A search tries many models and accepts those that happen to look good on the validation images. Of three searches with
250 validation images, two accepted models that were worse than they looked by about one standard error
(benchmarks/results/compress.md). So a drop is allowed only with a margin of one standard error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import jsonio
from sightline.errors import DataError
from sightline.evaluation.bootstrap import choose_groups, count_groups
from sightline.evaluation.paired import LEVEL, compare_scores, mcnemar_p_value
from sightline.intervals import Interval, paired_difference_interval

MARGIN = 0.01  # largest loss in the 95% interval if the loss of accuracy is not significant
STANDARD_ERRORS = 1.0  # margin between a drop and the allowed maximum
MIN_SCORES = 30  # minimum number of images or groups to exclude a loss: with fewer, bootstrap intervals are too short


@dataclass(frozen=True, slots=True)
class PairedTest:
    """The original against the compressed model on `count` images.

    `only_original_correct` and `only_compressed_correct` count images that only one of them classifies correctly.
    `difference` is compressed minus original accuracy, with its 95% interval; `p_value` is from McNemar's exact test.
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

    @property
    def metric(self) -> str:
        """The name of the compared metric."""
        return "accuracy"

    @property
    def original_score(self) -> float:
        """The metric of the original model."""
        return self.original_accuracy

    @property
    def compressed_score(self) -> float:
        """The metric of the compressed model."""
        return self.compressed_accuracy

    @property
    def upper_drop(self) -> float:
        """The drop in accuracy plus `STANDARD_ERRORS` standard errors; negative for a clear gain."""
        counts = self.only_original_correct, self.only_compressed_correct, self.count
        return -paired_difference_interval(*counts, STANDARD_ERRORS).low

    def is_non_inferior(self, max_drop: float = 0.0) -> bool:
        """Return whether the compressed model is non-inferior.

        One of these must be true: its accuracy is not lower; the drop plus `STANDARD_ERRORS` standard errors is at most
        `max_drop`; or it is not significantly worse (McNemar) and the 95% interval of the difference excludes a loss of
        more than `MARGIN`, which takes a few thousand images.
        """
        return (
            self.only_compressed_correct >= self.only_original_correct
            or self.upper_drop <= max_drop
            or (self.p_value >= LEVEL and self.difference_interval.low >= -MARGIN)
        )

    def describe_test(self) -> str:
        """Return the result of the test in a few words."""
        return (
            f"{self.only_original_correct} lost and {self.only_compressed_correct} gained, McNemar p = "
            f"{self.p_value:.3g}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, and whether the compressed model is significantly worse, as JSON values."""
        return jsonio.fields_to_dict(self) | {"significantly_worse": self.significantly_worse}


@dataclass(frozen=True, slots=True)
class ScoreTest:
    """The original against the compressed model, by scores in [0, 1] of `count` images.

    `metric` is the name of a model's mean score. `difference` is the compressed model's minus the original's;
    `difference_interval` is its 95% interval and `standard_error` its standard error, from a bootstrap of images or of
    their `groups`. Both are None if the images do not determine them. `p_value` is from a test that flips the signs of
    the differences.
    """

    metric: str
    split: str
    count: int
    original_score: float
    compressed_score: float
    difference: float
    standard_error: float | None
    difference_interval: Interval | None
    p_value: float
    groups: int | None = None

    @property
    def significantly_worse(self) -> bool:
        """Whether the compressed model is significantly worse, at 5%."""
        return self.p_value < LEVEL and self.difference < 0

    @property
    def upper_drop(self) -> float:
        """The drop plus `STANDARD_ERRORS` standard errors; infinite if the standard error is not known."""
        return math.inf if self.standard_error is None else STANDARD_ERRORS * self.standard_error - self.difference

    def is_non_inferior(self, max_drop: float = 0.0) -> bool:
        """Return whether the compressed model is non-inferior by the rules of `PairedTest.is_non_inferior`."""
        excludes_loss = (
            self.difference_interval is not None
            and self.difference_interval.low >= -MARGIN
            and (self.groups or self.count) >= MIN_SCORES
        )
        return self.difference >= 0 or self.upper_drop <= max_drop or (self.p_value >= LEVEL and excludes_loss)

    def describe_test(self) -> str:
        """Return the result of the test in a few words."""
        of_groups = "" if self.groups is None else f" of {self.groups} groups"
        return f"permutation test{of_groups} p = {self.p_value:.3g}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, and whether the compressed model is significantly worse, as JSON values."""
        return jsonio.fields_to_dict(self) | {"significantly_worse": self.significantly_worse}


Comparison = PairedTest | ScoreTest
"""The original against the compressed model on the same images."""


def compare_images(
    metric: str,
    original: NDArray[np.bool_] | NDArray[np.float64],
    compressed: NDArray[np.bool_] | NDArray[np.float64],
    split: str,
    groups: NDArray[np.int64] | None = None,
) -> Comparison:
    """Compare two models by results [N] of `Task.score_images` for the same images, N above 0; `metric` is their mean.

    Images with a score of NaN are left out. `groups` int64 [N] are the groups of images that depend on each other.
    Raises `DataError` if no image has a score.
    """
    if original.dtype == np.bool_ and groups is None:
        return compare_models(original.astype(bool), compressed.astype(bool), split)
    original, compressed = original.astype(np.float64), compressed.astype(np.float64)
    known = np.isfinite(original)
    if not known.any():
        raise DataError(f"No image of the {split} split has a pixel with a class, so models cannot be compared.")
    first, second = original[known], compressed[known]
    numbers = choose_groups(groups, known)
    result = compare_scores(first, second, numbers)
    return ScoreTest(
        metric, split, len(first), float(first.mean()), float(second.mean()), result.value, result.standard_error,
        result.interval, result.p_value, count_groups(numbers),
    )  # fmt: skip


def compare_models(original: NDArray[np.bool_], compressed: NDArray[np.bool_], split: str) -> PairedTest:
    """Compare two models by which images they classify correctly: bool [N] each, in the same order, N above 0."""
    lost, gained = int((original & ~compressed).sum()), int((~original & compressed).sum())
    return compare_counts(split, len(original), int(original.sum()), lost, gained)


def compare_counts(split: str, count: int, original_correct: int, lost: int, gained: int) -> PairedTest:
    """Compare two models on `count` images; the original classifies `original_correct` of them correctly.

    `lost` images are classified correctly only by the original, `gained` only by the compressed model.
    """
    return PairedTest(
        split, count, original_correct / count, (original_correct - lost + gained) / count, lost, gained,
        (gained - lost) / count, paired_difference_interval(lost, gained, count), mcnemar_p_value(lost, gained),
    )  # fmt: skip
