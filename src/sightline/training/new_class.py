"""Fit one more row of a linear head: a class is added from a few images, and the other logits stay as they are.

With the other logits fixed, the cross-entropy over all classes is that of a logistic regression of the new class
against the rest whose offset is minus the log-sum-exp of the other logits. It is convex and has one weight per
feature, so that a fit takes a fraction of a second, and its penalty can be chosen by leaving images out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.training.linear_head import MAX_ITERATIONS

PENALTIES = (3.0, 1.0, 0.3, 0.1, 0.03)  # as for `linear_head`; weaker ones trust a few images too much
MAX_FOLDS = 10  # up to this number of images of the new class, each is left out in turn


@dataclass(frozen=True, slots=True)
class NewClassFit:
    """The row of the new class: its logit is features @ `kernel` + `bias`, with `kernel` float32 [F].

    `is_recalled` bool [n] tells which images of the new class are classified as it by a row that was fitted without
    them, in one of `folds` folds, with the same `penalty`.
    """

    kernel: NDArray[np.float32]
    bias: float
    penalty: float
    folds: int
    is_recalled: NDArray[np.bool_]


def fit_new_class(
    new_features: NDArray[np.float32],
    new_logits: NDArray[np.float32],
    features: NDArray[np.float32],
    logits: NDArray[np.float32],
) -> NewClassFit:
    """Return the row for n >= 2 images of the new class, given N >= 2 images of the K other classes.

    Features are float32 [n, F] and [N, F], logits of the other classes float32 [n, K] and [N, K]. The new class counts
    as much as the mean of the others, whatever their numbers of images. The penalty is the one of `PENALTIES` with the
    lowest cross-entropy on images that were left out, in `MAX_FOLDS` folds or one for each image of the new class.
    """
    problem = _Problem(new_features, new_logits, features, logits)
    folds = min(len(new_features), MAX_FOLDS)
    theta, trials = problem.zeros(), []
    for penalty in PENALTIES:  # from the strongest, so that each solution is near the next
        theta = problem.solve(penalty, theta)
        loss, is_recalled = problem.cross_validate(penalty, folds, theta)
        trials.append((loss, penalty, theta, is_recalled))
    _, penalty, theta, is_recalled = min(trials, key=lambda trial: trial[0])
    kernel, bias = problem.to_plain(theta)
    return NewClassFit(kernel, bias, penalty, folds, is_recalled)


def _multiply(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the product of a finite matrix and vector; OpenBLAS was seen to raise the flag for NaN without one."""
    with np.errstate(invalid="ignore"):
        product: NDArray[np.float32] = first @ second
    return product


class _Problem:
    """The regression on standardized features; the rows of the new class come first."""

    def __init__(
        self,
        new_features: NDArray[np.float32],
        new_logits: NDArray[np.float32],
        features: NDArray[np.float32],
        logits: NDArray[np.float32],
    ) -> None:
        x = np.concatenate([new_features, features])
        z = np.concatenate([new_logits, logits]).astype(np.float64)
        self._mean, std = x.mean(0, np.float64), x.std(0, np.float64)
        self._std = np.where(std > 1e-3 * std.max(initial=0), std, 1.0)  # constants are not scaled
        self._x = ((x - self._mean) / self._std).astype(np.float32)
        self._largest = z.max(1)
        self._offsets = -(self._largest + np.log(np.exp(z - self._largest[:, None]).sum(1)))
        self._is_new = np.arange(len(x)) < len(new_features)
        self._num_classes = z.shape[1]
        self._folds = np.concatenate([np.arange(len(new_features)), np.arange(len(features))])

    def _weigh(self, included: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the weights of the rows, which sum to 1: each class has the same, and rows not included have none."""
        weights = np.where(self._is_new, 1 / max(1, int((self._is_new & included).sum())), 0.0)
        weights[~self._is_new] = self._num_classes / max(1, int((~self._is_new & included).sum()))
        weights[~included] = 0
        normalized: NDArray[np.float64] = weights / (self._num_classes + 1)
        return normalized

    def zeros(self) -> NDArray[np.float64]:
        """Return the parameters to start from, float64 [F + 1]: the kernel for standardized features, then the bias."""
        return np.zeros(self._x.shape[1] + 1)

    def cross_validate(self, penalty: float, folds: int, start: NDArray[np.float64]) -> tuple[float, NDArray[np.bool_]]:
        """Return the mean loss of rows that were left out, and which of the new class are classified as it.

        Each fit starts from `start`, the solution for all rows.
        """
        logits = np.empty(len(self._x))
        for fold in range(folds):
            left_out = self._folds % folds == fold
            theta = self._minimize(penalty, self._weigh(~left_out), start)
            logits[left_out] = self._compute_logits(theta)[left_out]
        loss = float(self._weigh(np.ones(len(self._x), bool)) @ self._losses(logits))
        return loss, (logits > self._largest)[self._is_new]

    def _losses(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        margins = logits + self._offsets
        losses: NDArray[np.float64] = np.logaddexp(0, np.where(self._is_new, -margins, margins))
        return losses

    def solve(self, penalty: float, start: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the optimum for all rows, float64 [F + 1]."""
        return self._minimize(penalty, self._weigh(np.ones(len(self._x), bool)), start)

    def to_plain(self, theta: NDArray[np.float64]) -> tuple[NDArray[np.float32], float]:
        """Return the kernel float32 [F] and the bias for plain features."""
        kernel = theta[:-1] / self._std
        return kernel.astype(np.float32), float(theta[-1] - self._mean @ kernel)

    def _compute_logits(self, theta: NDArray[np.float64]) -> NDArray[np.float64]:
        logits: NDArray[np.float64] = _multiply(self._x, theta[:-1].astype(np.float32)) + theta[-1]
        return logits

    def _minimize(
        self, penalty: float, weights: NDArray[np.float64], start: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        from scipy.optimize import minimize  # comes with scikit-learn

        def evaluate(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            logits = self._compute_logits(theta)
            probabilities = np.exp(-np.logaddexp(0, -(logits + self._offsets)))
            residuals = weights * (probabilities - self._is_new)
            kernel_gradient = _multiply(residuals.astype(np.float32), self._x) + penalty * theta[:-1]
            gradient = np.append(kernel_gradient, residuals.sum())
            return float(weights @ self._losses(logits)) + penalty / 2 * float(theta[:-1] @ theta[:-1]), gradient

        minimum: Callable[..., Any] = minimize
        options = {"maxiter": MAX_ITERATIONS, "ftol": 1e-7, "gtol": 1e-5}  # the loss is below 1, so both are absolute
        solution: NDArray[np.float64] = minimum(evaluate, start, jac=True, method="L-BFGS-B", options=options).x
        return solution
