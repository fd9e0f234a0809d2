"""Figures of probabilities against labels, in NumPy."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sightline.records import ClassFigures, Interval

Z95 = 1.959963984540054  # the standard normal's 97.5% point


def wilson(hits: int, count: int) -> Interval:
    """Return Wilson's 95% score interval of a proportion (Wilson, 1927, JASA 22:209-212).

    >>> wilson(9, 10)
    Interval(low=0.5958..., high=0.9821...)
    """
    if count == 0:
        return Interval(0.0, 1.0)
    p = hits / count
    scale = 1 + Z95**2 / count
    centre = (p + Z95**2 / (2 * count)) / scale
    half = Z95 / scale * math.sqrt(p * (1 - p) / count + Z95**2 / (4 * count**2))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Interval(low if hits else 0.0, high if hits < count else 1.0)  # exact where rounding would miss the end


def cross_entropy(probabilities: NDArray[np.float32], labels: NDArray[np.int32]) -> float:
    """Return the mean of -log p(true class), in nats; p is clipped to 1e-7 from below."""
    if not len(labels):
        return 0.0
    true = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.clip(true, 1e-7, 1.0)).mean())


def cross_entropy_of_logits(logits: NDArray[np.float32], labels: NDArray[np.int32]) -> float:
    """Return the mean cross-entropy of softmax(logits), in nats, without clipping; NaN for what is no number."""
    if not len(labels):
        return 0.0
    x = logits.astype(np.float64)
    top = x.max(1)
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        log_sum = top + np.log(np.exp(x - top[:, None]).sum(1))
    return float((log_sum - x[np.arange(len(labels)), labels]).mean())


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the probabilities float32 [N, K] of logits [N, K].

    >>> softmax(np.array([[0, 0]], np.float32)).tolist()
    [[0.5, 0.5]]
    """
    raised: NDArray[np.float32] = np.exp(logits - logits.max(1, keepdims=True))
    shares: NDArray[np.float32] = raised / raised.sum(1, keepdims=True)
    return shares


def confusion_matrix(labels: NDArray[np.int32], answers: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Return counts int64 [K, K]: true classes in rows, answers in columns."""
    flat = np.bincount(labels.astype(np.int64) * classes + answers, minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.int64)


def per_class(confusion: NDArray[np.int64], classes: tuple[str, ...]) -> tuple[ClassFigures, ...]:
    """Return precision, recall, F1 and support of each class; 0 where a figure has nothing to divide by."""
    hits = np.diagonal(confusion).astype(float)
    answered, there = confusion.sum(0), confusion.sum(1)
    precision = hits / np.maximum(answered, 1)
    recall = hits / np.maximum(there, 1)
    f1 = 2 * hits / np.maximum(answered + there, 1)
    return tuple(
        ClassFigures(label, float(precision[i]), float(recall[i]), float(f1[i]), int(there[i]))
        for i, label in enumerate(classes)
    )
