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
from sightline.evaluation.bootstrap import BUDGET
from sightline.intervals import Interval
from sightline.seeding import make_generator

LEVEL = 0.05
PERMUTATIONS = 2000


@dataclass(frozen=True, slots=True)
class SplitShift:
    """Metrics of `count` validation images, and how those of the evaluated images differ.

    `accuracy_difference` is evaluated minus validation accuracy, with its 95% interval (Newcombe). `ece_difference` is
    the same for the ECE, and `ece_p_value` the p-value of a permutation test of two splits from one distribution.
    """

    count: int
    accuracy: float
    accuracy_interval: Interval
    loss: float
    ece: float
    accuracy_difference: float
    accuracy_difference_interval: Interval
    ece_difference: float
    ece_p_value: float

    @property
    def accuracy_differs(self) -> bool:
        """Whether accuracy differs significantly, at 5%."""
        return not self.accuracy_difference_interval.low <= 0 <= self.accuracy_difference_interval.high

    @property
    def ece_differs(self) -> bool:
        """Whether the calibration error differs significantly, at 5%."""
        return self.ece_p_value < LEVEL

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and what differs significantly as JSON values."""
        differs = {"accuracy_differs": self.accuracy_differs, "ece_differs": self.ece_differs}
        return jsonio.fields_to_dict(self) | differs


def compare_splits(
    validation: tuple[NDArray[np.float32], NDArray[np.int32]],
    evaluated: tuple[NDArray[np.float32], NDArray[np.int32]],
    seed: int = 0,
) -> SplitShift:
    """Compare probabilities float32 [N, K] and labels int32 [N] of validation with those of the evaluated images."""
    (p, labels), (q, truth) = validation, evaluated
    right, other = int((p.argmax(1) == labels).sum()), int((q.argmax(1) == truth).sum())
    before, after = calibration.compute_ece(p, labels), calibration.compute_ece(q, truth)
    return SplitShift(
        len(p), right / len(p), intervals.wilson_interval(right, len(p)), metrics.cross_entropy(p, labels), before,
        other / len(q) - right / len(p), intervals.difference_interval(other, len(q), right, len(p)),
        after - before, _permutation_p_value(validation, evaluated, abs(after - before), seed),
    )  # fmt: skip


def _permutation_p_value(
    validation: tuple[NDArray[np.float32], NDArray[np.int32]],
    evaluated: tuple[NDArray[np.float32], NDArray[np.int32]],
    difference: float,
    seed: int,
) -> float:
    """Return the p-value of a difference of ECEs: how often a random division into two such splits has one as large.

    The ECE of few images is biased upwards. A permutation keeps both counts and so accounts for the bias; a bootstrap
    of each ECE would not.
    """
    bins, gaps = (np.concatenate(v) for v in zip(_bin_gaps(*validation), _bin_gaps(*evaluated), strict=True))
    first, second = len(validation[1]), len(evaluated[1])
    total = np.bincount(bins, gaps, calibration.BINS)
    number = max(200, min(PERMUTATIONS, BUDGET // len(bins)))
    rng, exceeding = make_generator(seed, "permutation", "ece"), 0
    for _ in range(number):
        at = rng.permutation(len(bins))[:first]
        first_sums = np.bincount(bins[at], gaps[at], calibration.BINS)
        statistic = np.abs(total - first_sums).sum() / second - np.abs(first_sums).sum() / first
        exceeding += bool(abs(statistic) >= difference - 1e-12)
    return (exceeding + 1) / (number + 1)


def _bin_gaps(p: NDArray[np.float32], labels: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the bin of each image, and correctness (0 or 1) minus confidence, whose sums by bin give the ECE."""
    confidence = p.max(1).astype(np.float64)
    return calibration.bin_indices(confidence), (p.argmax(1) == labels) - confidence
