"""Out-of-distribution (OOD) detection by the energy of the logits and by the distance in feature space.

The energy is that of `inference.decisions`, with several labels per image the joint one. The distance is the
Mahalanobis distance to the nearest class mean with a shared covariance (Lee et al., 2018,
arXiv:1807.03888), shrunk after Ledoit and Wolf (2004), since there are often more features than images. Unlike the
distance to the k-th neighbor, it need not store the features of every training image. Neither score is fitted on OOD
images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import metrics
from sightline.errors import check_installed, require

PURPOSE = "The distance in feature space"
MAX_MEANS = 1000  # the most frequent sets of labels, each with a mean
LIMIT_QUANTILE = 0.99  # fraction of the validation images below the limit


@dataclass(frozen=True, slots=True)
class MahalanobisDistance:
    """Class means float64 [K, F] after whitening, and the matrix [F, F] that whitens."""

    means: NDArray[np.float64]
    whiten: NDArray[np.float64]

    def __call__(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the squared distance of features [N, F] to the nearest class mean, float64 [N]."""
        x = features.astype(np.float64) @ self.whiten
        squares = (x**2).sum(1)[:, None] - 2 * x @ self.means.T + (self.means**2).sum(1)
        nearest: NDArray[np.float64] = squares.min(1)
        return nearest


@dataclass(frozen=True, slots=True)
class OODResult:
    """AUROC of both scores for `ood_count` out-of-distribution images against `count` in-distribution ones."""

    name: str
    energy_auroc: float
    distance_auroc: float | None
    count: int
    ood_count: int
    flagged_fraction: float | None
    note: str = ""


def check_packages() -> None:
    """Raise `MissingExtraError` if a package that `fit_distance` needs is not installed."""
    check_installed("sklearn", purpose=PURPOSE)


def fit_distance(features: NDArray[np.float32], labels: NDArray[Any]) -> MahalanobisDistance:
    """Fit on the training images' features [N, F]; raises `MissingExtraError` without scikit-learn.

    `labels` are the class of each image, int32 [N], or which classes it has, uint8 [N, K]. Most sets of labels have few
    images, so the mean of each is a sum of a part for each label, by least squares.
    """
    covariances = require("sklearn.covariance", PURPOSE)
    x = features.astype(np.float64)
    present, inverse, counts = np.unique(labels, axis=0, return_inverse=True, return_counts=True)
    rows = inverse.ravel()  # a column in NumPy 2.0
    if labels.ndim == 1:
        means = np.stack([x[labels == k].mean(0) for k in present])
    else:
        design = np.column_stack([np.ones(len(present)), present])
        means = design @ np.linalg.lstsq(design[rows], x, rcond=None)[0]
    residuals = x - means[rows]
    means = means[np.argsort(-counts, kind="stable")[:MAX_MEANS]]
    covariance, _ = covariances.ledoit_wolf(residuals, assume_centered=True)
    values, vectors = np.linalg.eigh(covariance)
    floor = max(float(values.max()) * 1e-6, 1e-12)  # for constant features
    whiten = vectors / np.sqrt(np.maximum(values, floor))
    return MahalanobisDistance(means @ whiten, whiten)


def fit_limit(scores: NDArray[np.float64]) -> float | None:
    """Return the 99% quantile of scores float64 [N], rounded up to one of them; None if there are none."""
    if not len(scores):
        return None
    return float(np.sort(scores)[min(len(scores), int(np.ceil((len(scores) + 1) * LIMIT_QUANTILE))) - 1])


def ood_auroc(in_distribution: NDArray[np.float64], out_of_distribution: NDArray[np.float64]) -> float:
    """Return the AUROC of a score, float64 [N] and [M], that should be higher for out-of-distribution images."""
    return metrics.auroc(
        np.concatenate([in_distribution, out_of_distribution]),
        np.arange(len(in_distribution) + len(out_of_distribution)) >= len(in_distribution),
    )
