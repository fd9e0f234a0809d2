"""Classification metrics of probabilities and labels, in NumPy."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = TypeVar("Floats", bound=np.floating[Any])

WORDS = {"auroc": "AUROC", "f1": "F1", "iou": "IoU", "dice": "Dice", "hamming": "Hamming", "brier": "Brier score"}
NAMES = {
    "top_1": "accuracy",
    "top_5": "top-5 accuracy",
    "within_one_grade": "fraction within one grade",
    "ece": "calibration error of pixels (ECE)",
}


def describe_metric(name: str) -> str:
    """Return the name of a metric as written in text.

    >>> [describe_metric(name) for name in ("macro_f1", "auroc", "top_1", "accuracy_level_2")]
    ['macro F1', 'AUROC', 'accuracy', 'accuracy of level 2']
    """
    if name in NAMES:
        return NAMES[name]
    name = name.replace("_level_", "_of_level_")
    return " ".join(WORDS.get(word, word) for word in name.split("_"))


def cross_entropy(probabilities: NDArray[np.float32], labels: NDArray[np.int32]) -> float:
    """Return the mean of -log p(true class) in nats; 0 for no images.

    `probabilities` are float32 [N, K], clipped to at least 1e-7; `labels` int32 [N] are the indices of the classes.
    """
    if not len(labels):
        return 0.0
    true = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(negative_log(true).mean())


def negative_log(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return -log p in nats, with p clipped to at least 1e-7; 0.0 for p = 1, where NumPy returns -0.0."""
    return -np.log(np.clip(probabilities, 1e-7, 1.0)) + 0.0


def cross_entropy_from_logits(logits: NDArray[np.float32], labels: NDArray[np.int32]) -> float:
    """Return the mean cross-entropy of softmax(logits) in nats, without clipping; 0 for no images.

    `logits` are float32 [N, K], `labels` int32 [N]. The result is NaN if a logit is NaN.
    """
    if not len(labels):
        return 0.0
    x = logits.astype(np.float64)
    top = x.max(1)
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        log_sum = top + np.log(np.exp(x - top[:, None]).sum(1))
    return nonnegative_loss(float((log_sum - x[np.arange(len(labels)), labels]).mean()))


def nonnegative_loss(loss: float) -> float:
    """Return a nonnegative loss with rounding errors removed: -0.0 and -1e-9 become 0.0, NaN stays.

    >>> nonnegative_loss(-0.0), nonnegative_loss(0.5), nonnegative_loss(math.nan)
    (0.0, 0.5, nan)
    """
    return 0.0 if -1e-6 < loss <= 0 else loss


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the probabilities float32 [N, K] of logits [N, K].

    >>> softmax(np.array([[0, 0]], np.float32)).tolist()
    [[0.5, 0.5]]
    """
    exponentials: NDArray[np.float32] = np.exp(logits - logits.max(1, keepdims=True))
    probabilities: NDArray[np.float32] = exponentials / exponentials.sum(1, keepdims=True)
    return probabilities


def sigmoid(logits: NDArray[Floats]) -> NDArray[Floats]:
    """Return the probability of each logit, 1 / (1 + exp(-x)), of the same shape and dtype; it never overflows.

    >>> sigmoid(np.array([-1000.0, 0.0, 1000.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    probabilities: NDArray[Floats] = np.exp(-np.logaddexp(0, -logits))
    return probabilities


def confusion_matrix(labels: NDArray[np.int32], predictions: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Return counts int64 [K, K]: true classes in rows, predicted classes in columns."""
    flat = np.bincount(labels.astype(np.int64) * classes + predictions, minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.int64)


def in_top_k(probabilities: NDArray[np.float32], labels: NDArray[np.int32], k: int) -> NDArray[np.bool_]:
    """Return bool [N]: whether the true class is among the `k` most probable; ties go to the lower index."""
    true = probabilities[np.arange(len(labels)), labels][:, None]
    number = np.arange(probabilities.shape[1])
    ahead = (probabilities > true) | ((probabilities == true) & (number < labels[:, None]))
    hits: NDArray[np.bool_] = ahead.sum(1) < k
    return hits


def brier_scores(probabilities: NDArray[np.float32], labels: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return each image's squared error summed over the classes, float64 [N] in [0, 2] (Brier, 1950, MWR 78:1-3)."""
    p = probabilities.astype(np.float64)
    true = p[np.arange(len(labels)), labels]
    squares: NDArray[np.float64] = np.maximum((p**2).sum(1) - 2 * true + 1, 0)
    return squares


def auroc_and_ap(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return AUROC and average precision of `scores` [N] for R sets of image weights, [R] each.

    `weights` [R, N] are how often each image counts. Ties count half (AUROC) or as one threshold (average precision,
    the step-wise sum, as in scikit-learn). NaN without positives or without negatives.
    """
    order = np.argsort(-scores, kind="stable")
    # the last index of each group of ties
    group_ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    group_starts = np.append(0, group_ends[:-1] + 1)
    positive_positions = np.flatnonzero(positive[order])
    if not len(positive_positions):
        return np.full(len(weights), np.nan), np.full(len(weights), np.nan)
    # the groups that contain a positive
    positive_groups, first_hits = np.unique(np.searchsorted(group_ends, positive_positions), return_index=True)
    w = weights[:, order]
    cumulative = np.cumsum(w, 1)  # [R, N]
    hits = np.cumsum(w[:, positive_positions], 1)[:, np.append(first_hits[1:], len(positive_positions)) - 1]
    new_hits, ranked = np.diff(hits, axis=1, prepend=0.0), cumulative[:, group_ends[positive_groups]]
    negatives_above = ranked - hits
    if (group_ends[positive_groups] > group_starts[positive_groups]).any():  # ties count half
        negatives_above = (
            negatives_above
            + cumulative[:, group_starts[positive_groups]]
            - w[:, group_starts[positive_groups]]
            - (hits - new_hits)
        ) / 2
    count = new_hits.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        area = 1 - np.einsum("rn,rn->r", negatives_above, new_hits) / (count * (cumulative[:, -1] - count))
        precision = np.divide(hits, ranked, out=np.zeros_like(hits), where=ranked > 0)
        average_precision = np.einsum("rn,rn->r", precision, new_hits) / count
    return area, average_precision


def auroc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Return the probability that a positive scores above a negative; NaN if either is missing.

    >>> auroc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
    0.75
    """
    if not len(scores):
        return math.nan
    return float(auroc_and_ap(scores, positive, np.ones((1, len(scores))))[0][0])


def most_confused_pairs(
    confusion: NDArray[np.int64] | Sequence[Sequence[int]], limit: int = 5
) -> list[tuple[int, int, int]]:
    """Return (true class, predicted class, count) of the most frequent confusions, in descending order.

    Ties go to the lower true class, then to the lower predicted one.

    >>> most_confused_pairs([[5, 2], [3, 9]])
    [(1, 0, 3), (0, 1, 2)]
    """
    pairs = (  # one at a time: a large matrix has millions
        (i, j, int(row[j])) for i, row in enumerate(confusion) for j in np.flatnonzero(row).tolist() if i != j
    )
    return heapq.nsmallest(limit, pairs, key=lambda pair: -pair[2])
