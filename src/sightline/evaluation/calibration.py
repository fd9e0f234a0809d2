"""Calibration of confidences: reliability diagram, expected calibration error (ECE), temperature scaling.

ECE: images are binned by their top probability into 15 bins of equal width. It is the mean absolute difference between
accuracy and mean confidence over the bins, weighted by their counts (Guo et al., 2017, arXiv:1706.04599).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import metrics
from sightline.errors import DataError, plural
from sightline.intervals import Interval

BINS = 15
MIN_IMAGES = 200  # with fewer images, the noise (the square root of 0.9 * 0.1 / 200: 0.02) is as large as usual ECEs
MIN_ERRORS = 10  # with fewer errors, a single image changes the temperature a lot
TEMPERATURE_TOLERANCE = 0.005  # temperatures this close to 1 print as 1.00 and change no displayed probability
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0  # range of temperatures


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Images with a confidence in (low, high]: their count, mean confidence and accuracy."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Temperature:
    """The `value` that logits are divided by; mean cross-entropy (nats) and ECE of `count` images before and after.

    `note` explains why the temperature is unreliable, "" if it is not.
    """

    value: float
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float
    count: int
    note: str = ""

    @property
    def is_at_bound(self) -> bool:
        """Whether the images do not determine the value: the loss would fall further beyond the range."""
        return is_at_bound(self.value)


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """ECE and reliability of the evaluated images, as served and after the temperature fitted on validation images.

    The ECE is None for masks in which no pixel has a class, and `ece_after` is None without a temperature. `interval`
    is that of the ECE as served, or None with the reason in `interval_note`; that of masks is among their metrics.
    """

    ece: float | None
    bins: tuple[ReliabilityBin, ...]
    temperature: Temperature | None
    ece_after: float | None
    bins_after: tuple[ReliabilityBin, ...]
    note: str
    interval: Interval | None = None
    interval_note: str = ""

    @property
    def unchanged(self) -> bool:
        """Whether the temperature is 1 to two decimals: the model already divides by it, or need not."""
        return self.temperature is not None and abs(self.temperature.value - 1) < TEMPERATURE_TOLERANCE


def reliability_bins(probabilities: NDArray[np.float32], labels: NDArray[np.int32]) -> tuple[ReliabilityBin, ...]:
    """Return the non-empty bins of equal width, lowest first, of probabilities float32 [N, K] and labels int32 [N]."""
    return make_bins(sum_bins(probabilities.max(1), probabilities.argmax(1) == labels))


def sum_bins(confidence: NDArray[Any], correct: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the count, the summed confidence and the number correct in each bin, float64 [bins, 3]; these add up."""
    confidence = confidence.astype(np.float64)
    number = bin_indices(confidence)
    sums = (np.bincount(number, weights, BINS) for weights in (None, confidence, correct))
    return np.stack([np.asarray(column, np.float64) for column in sums], axis=1)


def make_bins(sums: NDArray[np.float64]) -> tuple[ReliabilityBin, ...]:
    """Return the non-empty bins of the sums [bins, 3] of `sum_bins`, lowest first."""
    bins = len(sums)
    return tuple(
        ReliabilityBin(i / bins, (i + 1) / bins, int(count), confidence / count, correct / count)
        for i, (count, confidence, correct) in enumerate(sums.tolist())
        if count
    )


def compute_gaps(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return accuracy minus mean confidence of each bin of sums [..., bins, 3] of `sum_bins`, times its fraction."""
    count, confidence, correct = np.moveaxis(sums, -1, 0)
    gaps: NDArray[np.float64] = (correct - confidence) / np.maximum(count.sum(-1, keepdims=True), 1)
    return gaps


def compute_binned_ece(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the expected calibration error of sums [..., bins, 3] of `sum_bins`, float64 [...]; 0 for none."""
    ece: NDArray[np.float64] = np.abs(compute_gaps(sums)).sum(-1)
    return ece


def bin_indices(confidence: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the bin index of each confidence, int64 [N]; bins are open below and closed above."""
    return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)


def compute_ece(probabilities: NDArray[np.float32], labels: NDArray[np.int32]) -> float:
    """Return the expected calibration error in [0, 1]; 0 for no images."""
    return float(compute_binned_ece(sum_bins(probabilities.max(1), probabilities.argmax(1) == labels)))


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int32], unit: str = "image") -> Temperature:
    """Fit the temperature T in [0.05, 20] that minimizes the mean cross-entropy of softmax(logits / T), by bisection.

    The cross-entropy is convex in 1 / T, so its slope has one root. Log-probabilities work as well as logits, since
    they differ by a constant in each row. `logits` are float32 [N, K], `labels` int32 [N], each of one `unit`. Raises
    `DataError` if there are none or if a logit is NaN.
    """
    if not len(labels):
        raise DataError(f"There are no {unit}s to fit a temperature on: use a validation split.")
    z = logits.astype(np.float64)
    z -= z.max(1, keepdims=True)
    z = np.maximum(z, -1e4)  # log-probabilities of 0 are infinite
    if np.isnan(z).any():
        raise DataError("The logits contain NaN, so no temperature can be fitted: train the model again.")
    true = z[np.arange(len(labels)), labels]

    def slope(inverse: float) -> float:
        raised = np.exp(inverse * z)
        return float(((raised * z).sum(1) / raised.sum(1) - true).mean())

    value = find_temperature(slope)
    before, after = (metrics.softmax((z / t).astype(np.float32)) for t in (1.0, value))
    return Temperature(
        value=value,
        nll_before=metrics.cross_entropy_from_logits(z.astype(np.float32), labels),
        nll_after=metrics.cross_entropy_from_logits((z / value).astype(np.float32), labels),
        ece_before=compute_ece(before, labels),
        ece_after=compute_ece(after, labels),
        count=len(labels),
        note=_reliability_note(len(labels), int((z.argmax(1) != labels).sum()), value, unit),
    )


def find_temperature(slope: Callable[[float], float]) -> float:
    """Return the temperature T in [0.05, 20] of least cross-entropy, by bisection.

    `slope` is the slope of the cross-entropy at 1 / T, in which it is convex.
    """
    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) <= 0 else (low, middle)  # 0 by underflow is still falling
    return 2 / (low + high)


def is_at_bound(value: float) -> bool:
    """Return whether the loss would fall further beyond the range of temperatures."""
    return not MIN_TEMPERATURE * 1.01 < value < MAX_TEMPERATURE * 0.99


def _reliability_note(count: int, errors: int, value: float, unit: str) -> str:
    if is_at_bound(value):
        return (
            f"The temperature reached its bound ({value:.3g}): these {unit}s cannot determine it, so none is applied."
        )
    if count < MIN_IMAGES or errors < MIN_ERRORS:
        return (
            f"With {plural(count, unit)}, {errors} of them misclassified, the calibration is mostly noise: it "
            f"needs at least {MIN_IMAGES} {unit}s and {MIN_ERRORS} errors."
        )
    return ""
