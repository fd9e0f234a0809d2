"""How strange a picture is: the energy of its logits, and its distance from the training pictures' features.

The distance is Mahalanobis', to the nearest class mean with one covariance for all (Lee et al., 2018,
arXiv:1807.03888), shrunk by Ledoit and Wolf's rule (2004), as features are often more than pictures. It was preferred
to the distance from the k-th neighbour, which must keep every training picture's features. Neither score knows the
strange pictures beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline import metrics
from sightline.errors import check_installed, require

PURPOSE = "The distance in feature space"
KEPT = 0.99  # of the validation pictures lie below the limit


@dataclass(frozen=True, slots=True)
class Distance:
    """Class means float64 [K, F] after whitening, and the matrix [F, F] that whitens."""

    means: NDArray[np.float64]
    whiten: NDArray[np.float64]

    def __call__(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the squared distance of features [N, F] to the nearest class mean, float64 [N]."""
        x = features.astype(np.float64) @ self.whiten
        squares = (x**2).sum(1)[:, None] - 2 * x @ self.means.T + (self.means**2).sum(1)
        found: NDArray[np.float64] = squares.min(1)
        return found


@dataclass(frozen=True, slots=True)
class Strangers:
    """AUROC of both scores for `strangers` pictures of another source against `count` of the model's own."""

    name: str
    energy: float
    distance: float | None
    count: int
    strangers: int
    flagged: float | None
    note: str = ""


def check_packages() -> None:
    """Raise `MissingExtraError` if what `fit_distance` needs is not installed."""
    check_installed("sklearn", purpose=PURPOSE)


def fit_distance(features: NDArray[np.float32], labels: NDArray[np.int32]) -> Distance:
    """Fit on the training pictures' features [N, F]; raises `MissingExtraError` without scikit-learn."""
    covariances = require("sklearn.covariance", PURPOSE)
    x = features.astype(np.float64)
    present = np.unique(labels)
    means = np.stack([x[labels == k].mean(0) for k in present])
    residuals = x - means[np.searchsorted(present, labels)]
    covariance, _ = covariances.ledoit_wolf(residuals, assume_centered=True)
    values, vectors = np.linalg.eigh(covariance)
    floor = max(float(values.max()) * 1e-6, 1e-12)  # features that never differ
    whiten = vectors / np.sqrt(np.maximum(values, floor))
    return Distance(means @ whiten, whiten)


def limit(scores: NDArray[np.float64]) -> float | None:
    """Return the score below which 99% of the pictures lie (rounded up, at most the greatest); None for no pictures."""
    if not len(scores):
        return None
    return float(np.sort(scores)[min(len(scores), int(np.ceil((len(scores) + 1) * KEPT))) - 1])


def auroc(own: NDArray[np.float64], strange: NDArray[np.float64]) -> float:
    """Return the chance that a stranger's score is above that of one of the model's own."""
    return metrics.auroc(np.concatenate([own, strange]), np.arange(len(own) + len(strange)) >= len(own))
