"""Power laws of learning curves: error = asymptote + scale * labels ** -exponent.

Errors of classifiers fall with the number of training images as a power law, toward an asymptote (Cortes et al., 1994,
NeurIPS 6; Hestness et al., 2017, arXiv:1712.00409).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EXPONENTS = np.geomspace(0.1, 2.0, 40)
"""Exponents to choose from. Few curves are steeper or flatter, and a short one does not tell much finer steps apart."""


@dataclass(frozen=True, slots=True)
class PowerLaws:
    """The laws of B curves: `asymptote` and `scale` float64 [B], at least 0, and `exponent` float64 [B]."""

    asymptote: NDArray[np.float64]
    scale: NDArray[np.float64]
    exponent: NDArray[np.float64]

    def predict_errors(self, labels: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the errors [B, L] at numbers of labels [L], at most 1."""
        powers = labels[None, :] ** -self.exponent[:, None]
        return np.minimum(self.asymptote[:, None] + self.scale[:, None] * powers, 1.0)


def fit_power_laws(labels: NDArray[np.float64], errors: NDArray[np.float64], weights: NDArray[np.float64]) -> PowerLaws:
    """Return the weighted least-squares fits to B curves: `errors` [B, S] at `labels` [S], with `weights` [S].

    For each exponent, the best asymptote and scale that are not negative have a closed form.

    >>> labels = np.array([25.0, 50, 100, 200])
    >>> law = fit_power_laws(labels, (0.02 + 0.9 * labels**-0.5)[None], np.ones(4))
    >>> float(law.predict_errors(np.array([400.0]))[0, 0].round(3))
    0.065
    """
    weights = weights / weights.sum()
    basis = labels[None, :] ** -EXPONENTS[:, None]  # [C, S]
    mean_basis, mean_errors = basis @ weights, errors @ weights  # [C], [B]
    covariance = (errors * weights) @ basis.T - mean_errors[:, None] * mean_basis  # [B, C]
    variance = basis**2 @ weights - mean_basis**2
    scale = np.maximum(covariance / variance, 0)
    asymptote = mean_errors[:, None] - scale * mean_basis
    through_zero = np.maximum((errors * weights) @ basis.T / (basis**2 @ weights), 0)  # the scale without an asymptote
    scale = np.where(asymptote < 0, through_zero, scale)
    asymptote = np.maximum(asymptote, 0)
    residuals = errors[:, None, :] - asymptote[:, :, None] - scale[:, :, None] * basis  # [B, C, S]
    best = (residuals**2 @ weights).argmin(1)
    rows = np.arange(len(errors))
    return PowerLaws(asymptote[rows, best], scale[rows, best], EXPONENTS[best])
