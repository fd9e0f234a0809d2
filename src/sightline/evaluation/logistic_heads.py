"""Logistic regressions on few labeled images, many of them solved at once: the heads of `active_learning`.

The target of an image is its class, or the classes that it has: then each class has a regression of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.metrics import softmax

PENALTY = 0.3  # between those that were best on cats_vs_dogs (0.1) and flowers5 (0.3 to 1)
MAX_ITERATIONS = 100
MAX_LOGITS = 1 << 23  # of all heads that are solved at once: 100 MB, with the arrays that they take


def fit_heads(
    features: NDArray[np.float32],
    targets: NDArray[Any],
    used: NDArray[np.bool_],
    num_classes: int,
    start: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Return the weights [D + 1, M, K] of M logistic regressions, of which m is trained on the images ``used[m]``.

    `features` are float32 [n, D], `used` bool [M, n]; `targets` are the class of each image, int64 [n], or 1 for each
    class that it has, else 0: uint8 [n, K]. All are solved at once, by products of matrices, from the weights `start`.
    The last row is the bias, which has no penalty.
    """
    from scipy.optimize import minimize  # comes with scikit-learn

    group = max(1, MAX_LOGITS // (len(features) * num_classes))
    if len(used) > group:  # heads do not depend on each other
        starts = [None if start is None else start[:, i : i + group] for i in range(0, len(used), group)]
        parts = [fit_heads(features, targets, used[i * group :][:group], num_classes, s) for i, s in enumerate(starts)]
        return np.concatenate(parts, axis=1)
    count, heads = len(features), len(used)
    x = np.hstack([features, np.ones((count, 1), np.float32)])
    weights = (used / np.maximum(used.sum(1, keepdims=True), 1)).T.astype(np.float32)  # [n, M]
    shape = (x.shape[1], heads, num_classes)
    differentiate = _differentiate_softmax if targets.ndim == 1 else _differentiate_logistic

    def evaluate(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        matrix = theta.reshape(shape[0], -1)
        losses, residuals = differentiate((x @ matrix.astype(np.float32)).reshape(count, heads, num_classes), targets)
        loss = float((weights * losses).sum(dtype=np.float64))
        residuals *= weights[..., None]
        gradient = (x.T @ residuals.reshape(count, -1)).astype(np.float64)
        gradient[:-1] += PENALTY * matrix[:-1]
        return loss + PENALTY / 2 * float(np.square(matrix[:-1]).sum()), gradient.ravel()

    theta = np.zeros(shape) if start is None else start
    options = {"maxiter": MAX_ITERATIONS, "ftol": 1e-6, "gtol": 1e-4}
    return np.asarray(minimize(evaluate, theta.ravel(), method="L-BFGS-B", jac=True, options=options).x).reshape(shape)


def _differentiate_softmax(
    logits: NDArray[np.float32], classes: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the cross-entropy [n, M] of `logits` [n, M, K], and its derivative by them, in their memory."""
    rows = np.arange(len(classes))
    logits -= logits.max(2, keepdims=True)
    residuals = np.exp(logits)
    sums = residuals.sum(2)
    losses = np.log(sums) - logits[rows, :, classes]
    residuals /= sums[..., None]
    residuals[rows, :, classes] -= 1
    return losses, residuals


def _differentiate_logistic(
    logits: NDArray[np.float32], has_class: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the sum over the classes of the binary cross-entropy [n, M], and its derivative by `logits` [n, M, K]."""
    truth = has_class[:, None].astype(np.float32)
    small = np.exp(-np.abs(logits))
    losses = (np.maximum(logits, 0) - truth * logits + np.log1p(small)).sum(2)
    return losses, np.where(logits >= 0, np.float32(1), small) / (1 + small) - truth


def predict_probabilities(
    features: NDArray[np.float32], weights: NDArray[np.float64], *, several: bool = False
) -> NDArray[np.float32]:
    """Return the probabilities float32 [N, K] of one head with weights [D + 1, K]; `several`: of each class alone."""
    weights32 = weights.astype(np.float32)
    logits = features @ weights32[:-1] + weights32[-1]
    return np.exp(-np.logaddexp(0, -logits)) if several else softmax(logits)
