"""Does a confidence of 0.9 mean right nine times in ten? Reliability, ECE, and a temperature.

ECE: pictures go into 15 bins of equal width by the greatest probability; the gap between the share that is right and
the mean confidence is averaged over the bins, weighted by their pictures (Guo et al., 2017, arXiv:1706.04599).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline import metrics
from sightline.errors import DataError, plural

BINS = 15
ENOUGH = 200  # pictures; with fewer, chance alone (the square root of 0.9 * 0.1 / 200: 0.02) is as large as usual ECEs
MISTAKES = 10  # the temperature is decided by them; with fewer, one picture more or less moves it far
LOWEST, HIGHEST = 0.05, 20.0  # temperatures


@dataclass(frozen=True, slots=True)
class Bin:
    """Pictures whose confidence is in (low, high]: how many, their mean confidence, and the share that is right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Temperature:
    """The `value` that logits are divided by; mean cross-entropy (nats) and ECE of `count` pictures before and after.

    `note` says in a sentence why not to trust it, where that is so.
    """

    value: float
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float
    count: int
    note: str = ""


def reliability(probabilities: NDArray[np.float32], labels: NDArray[np.int32], bins: int = BINS) -> tuple[Bin, ...]:
    """Return the bins of equal width that hold pictures, lowest first."""
    if not len(labels):
        return ()
    confidence = probabilities.max(1).astype(np.float64)
    right = probabilities.argmax(1) == labels
    number = bin_of(confidence, bins)
    return tuple(
        Bin(i / bins, (i + 1) / bins, int(at.sum()), float(confidence[at].mean()), float(right[at].mean()))
        for i in range(bins)
        if (at := number == i).any()
    )


def bin_of(confidence: NDArray[np.float64], bins: int = BINS) -> NDArray[np.int64]:
    """Return the number of the bin of each confidence, int64 [N]; bins are open below and closed above."""
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def ece(probabilities: NDArray[np.float32], labels: NDArray[np.int32], bins: int = BINS) -> float:
    """Return the expected calibration error in [0, 1]; 0 for no pictures."""
    found = reliability(probabilities, labels, bins)
    return sum(b.count * abs(b.accuracy - b.confidence) for b in found) / max(len(labels), 1)


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int32]) -> Temperature:
    """Find the temperature in [0.05, 20] of the least mean cross-entropy of softmax(logits / T), by bisection.

    The cross-entropy is convex in 1 / T, so its slope has one root. Log-probabilities serve as well as logits, as they
    differ by a constant in each row. `logits` float32 [N, K], `labels` int32 [N]. Raises `DataError` for no pictures
    and for logits that are no numbers.
    """
    if not len(labels):
        raise DataError("There are no pictures to fit a temperature on: keep some for validation.")
    z = logits.astype(np.float64)
    z -= z.max(1, keepdims=True)
    z = np.maximum(z, -1e4)  # log-probabilities of 0
    if np.isnan(z).any():
        raise DataError("The logits to fit a temperature on hold values that are no numbers: train the model again.")
    true = z[np.arange(len(labels)), labels]

    def slope(inverse: float) -> float:
        raised = np.exp(inverse * z)
        return float(((raised * z).sum(1) / raised.sum(1) - true).mean())

    low, high = 1 / HIGHEST, 1 / LOWEST
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    value = 1 / ((low + high) / 2)
    before, after = (metrics.softmax((z / t).astype(np.float32)) for t in (1.0, value))
    return Temperature(
        value=value,
        nll_before=metrics.cross_entropy_of_logits(z.astype(np.float32), labels),
        nll_after=metrics.cross_entropy_of_logits((z / value).astype(np.float32), labels),
        ece_before=ece(before, labels),
        ece_after=ece(after, labels),
        count=len(labels),
        note=_note(len(labels), int((z.argmax(1) != labels).sum()), value),
    )


def _note(count: int, mistakes: int, value: float) -> str:
    if not LOWEST * 1.01 < value < HIGHEST * 0.99:
        return f"The temperature ran into its bound ({value:.3g}): the pictures do not decide it, so do not use it."
    if count < ENOUGH or mistakes < MISTAKES:
        return (
            f"With {plural(count, 'image')}, {mistakes} of them named wrongly, calibration is mostly chance: it takes "
            f"{ENOUGH} pictures and {MISTAKES} mistakes or more to mean anything."
        )
    return ""
