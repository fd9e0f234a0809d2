"""Distribution shift between validation and test: do accuracy and calibration differ significantly?

Thresholds, the temperature and the best epoch are chosen on validation. If the evaluated images come from another
distribution, these choices do not carry over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import intervals, jsonio, metrics
from sightline.evaluation import calibration
from sightline.evaluation.bootstrap import BUDGET, Resampling
from sightline.intervals import Interval
from sightline.seeding import make_generator

LEVEL = 0.05 / 2  # per test, so that at most 5% of comparisons within one distribution raise a warning
NEGLIGIBLE = 0.01  # a difference of calibration errors that changes no decision, however significant
PERMUTATIONS = 2000


@dataclass(frozen=True, slots=True)
class SplitShift:
    """Metrics of `count` validation images, and how those of the evaluated images differ.

    `split` is ``out-of-fold`` if predictions of folds replace those of a validation split. `accuracy_difference` is
    evaluated minus validation accuracy, with its 95% interval (Newcombe's, which may combine those of
    `grouped_proportions`). `ece_difference` is the same for the ECE, and `ece_p_value` the p-value of a permutation
    test of two splits from one distribution, of images or of their groups. `accuracy_differs` and `ece_differs` state
    what differs significantly, at 5% for both tests together (Bonferroni).
    """

    count: int
    accuracy: float
    accuracy_interval: Interval
    loss: float
    ece: float
    accuracy_difference: float
    accuracy_difference_interval: Interval
    accuracy_differs: bool
    ece_difference: float
    ece_p_value: float
    split: str = "validation"

    @property
    def ece_differs(self) -> bool:
        """Whether the calibration error differs significantly, and by more than a hundredth."""
        return self.ece_p_value < LEVEL and abs(self.ece_difference) > NEGLIGIBLE

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and what differs significantly as JSON values."""
        return jsonio.fields_to_dict(self) | {"ece_differs": self.ece_differs}


def compare_splits(
    validation: tuple[NDArray[np.float32], NDArray[np.int32]],
    evaluated: tuple[NDArray[np.float32], NDArray[np.int32]],
    groups: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
) -> SplitShift | None:
    """Compare probabilities float32 [N, K] and labels int32 [N] of validation with those of the evaluated images.

    `groups` int64 [N] number the groups of the images of each, from 0; None if images are independent. None is returned
    if the images of one of the two are all of one group.
    """
    (p, labels), (q, truth) = validation, evaluated
    hits = p.argmax(1) == labels, q.argmax(1) == truth
    accuracy, other = (float(of.mean()) for of in hits)
    resamplings = [Resampling(groups=of) for of in groups or (None, None)]

    def estimate_accuracies(level: float) -> list[Interval | None]:
        return [
            resampling.estimate_proportions(of[:, None], np.ones((len(of), 1), bool), level / 2)[0]
            for resampling, of in zip(resamplings, hits, strict=True)
        ]

    (first, second), (first_wider, second_wider) = estimate_accuracies(0.05), estimate_accuracies(LEVEL)
    if first is None or second is None or first_wider is None or second_wider is None:
        return None
    wider = intervals.subtract_intervals(other, second_wider, accuracy, first_wider)
    before, after = calibration.compute_ece(p, labels), calibration.compute_ece(q, truth)
    p_value = _permutation_p_value(validation, evaluated, groups, abs(after - before))
    return SplitShift(
        len(p), accuracy, first, metrics.cross_entropy(p, labels), before,
        other - accuracy, intervals.subtract_intervals(other, second, accuracy, first),
        not wider.low <= 0 <= wider.high, after - before, p_value,
    )  # fmt: skip


def _permutation_p_value(
    validation: tuple[NDArray[np.float32], NDArray[np.int32]],
    evaluated: tuple[NDArray[np.float32], NDArray[np.int32]],
    groups: tuple[NDArray[np.int64], NDArray[np.int64]] | None,
    difference: float,
) -> float:
    """Return the p-value of a difference of ECEs: the fraction of random divisions into such splits with one as large.

    The ECE of few images is biased upwards. A permutation of images, or of their groups, keeps both counts and so
    accounts for the bias; a bootstrap of each ECE would not.
    """
    bins, gaps = (np.concatenate(v) for v in zip(_bin_gaps(*validation), _bin_gaps(*evaluated), strict=True))
    of_each = groups or (np.arange(len(validation[1])), np.arange(len(evaluated[1])))
    first, second = (int(of.max()) + 1 for of in of_each)
    units, total = np.concatenate([of_each[0], first + of_each[1]]), np.bincount(bins, gaps, calibration.BINS)
    number = max(200, min(PERMUTATIONS, BUDGET // len(bins)))
    rng, exceeding = make_generator(0, "permutation", "ece"), 0
    for _ in range(number):
        at = (rng.permutation(first + second) < first)[units]
        sums, count = np.bincount(bins[at], gaps[at], calibration.BINS), int(at.sum())
        statistic = np.abs(total - sums).sum() / (len(bins) - count) - np.abs(sums).sum() / count
        exceeding += bool(abs(statistic) >= difference - 1e-12)
    return (exceeding + 1) / (number + 1)


def _bin_gaps(p: NDArray[np.float32], labels: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the bin of each image, and correctness (0 or 1) minus confidence, whose sums by bin give the ECE."""
    confidence = p.max(1).astype(np.float64)
    return calibration.bin_indices(confidence), (p.argmax(1) == labels) - confidence
