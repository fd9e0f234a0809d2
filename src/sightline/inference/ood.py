"""Out-of-distribution (OOD) scores: how unlike the validation images an image is.

The score is a distance in feature space: the squared Mahalanobis distance of the features, scaled to length 1 (Müller
and Hein, "Mahalanobis++", 2025, arXiv:2505.18032), from those of the validation images. Their covariance is that of
probabilistic principal component analysis (Tipping and Bishop, 1999), which a few directions determine. Where there are
too few validation images, or no features of them, it is the energy of the logits.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sightline.errors import ModelError

if TYPE_CHECKING:
    from sightline.inference.results import Thresholds


@dataclass(frozen=True, slots=True)
class FeatureSpace:
    """Where the features of the validation images lie, after scaling to length 1.

    Attributes:
        vectors: Their mean and their k main directions of variation, float16 [1 + k, F], as base64.
        variances: The variance along each of these directions.
        rest: The variance along any other direction.
    """

    vectors: str = field(repr=False)
    variances: tuple[float, ...]
    rest: float

    @classmethod
    def from_arrays(cls, vectors: NDArray[np.floating], variances: NDArray[np.float64], rest: float) -> FeatureSpace:
        """Return the space with these `vectors` [1 + k, F], the mean first, and `variances` [k]."""
        text = base64.b64encode(vectors.astype("<f2").tobytes()).decode()
        return cls(text, tuple(variances.tolist()), rest)

    def check(self) -> None:
        """Raise `ValueError` unless the values define a distance."""
        vectors = _decode(self.vectors, 1 + len(self.variances))
        if not np.isfinite(vectors).all() or not all(0 < v < np.inf for v in (*self.variances, self.rest)):
            raise ValueError("ood_space has a variance that is not above 0, or a number that is not finite")

    def measure(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the distance of features [N, F], float64 [N]: the mean of the F squared standardized deviations.

        It is about 1 for validation images. Raises `ModelError` for another number of features.
        """
        mean, *directions = vectors = _decode(self.vectors, 1 + len(self.variances))
        if features.shape[1] != vectors.shape[1]:
            raise ModelError(
                f"The model has {features.shape[1]} features, and its limit for out-of-distribution images is for "
                f"{vectors.shape[1]}: evaluate it again, with the same targets."
            )
        deviations = scale_to_unit_length(features) - mean
        along = deviations @ np.array(directions).T
        beyond = np.maximum((deviations**2).sum(1) - (along**2).sum(1), 0)
        squares = (along**2 / np.array(self.variances)).sum(1) + beyond / self.rest
        distances: NDArray[np.float64] = squares / features.shape[1]
        return distances


def scale_to_unit_length(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return features [N, F] as rows of length 1, float64; rows of zeros stay."""
    rows = features.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float64] = rows / np.where(lengths > 0, lengths, 1)
    return unit


@lru_cache(maxsize=16)
def _decode(text: str, rows: int) -> NDArray[np.float64]:
    """Return the vectors [rows, F] of a space; raises `ValueError`."""
    try:
        values = np.frombuffer(base64.b64decode(text, validate=True), "<f2")
        return values.reshape(rows, -1).astype(np.float64)
    except (ValueError, binascii.Error) as error:
        raise ValueError(f"ood_space is not {rows} vectors of one length: {error}") from error


def compute_energy(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the energy -log sum exp(logits), float64 [N]: higher for out-of-distribution images.

    Source: Liu et al., 2020, arXiv:2010.03759.
    """
    logits64 = logits.astype(np.float64)
    max_logits = logits64.max(1)
    energies: NDArray[np.float64] = -(max_logits + np.log(np.exp(logits64 - max_logits[:, None]).sum(1)))
    return energies


def compute_joint_energy(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the joint energy -sum log(1 + exp(logits)), float64 [N], for images that may have several classes.

    It is at most 0, and higher for out-of-distribution images, which show none of the classes clearly. Source: Wang et
    al., 2021, arXiv:2111.12797.
    """
    energies: NDArray[np.float64] = -np.logaddexp(0, logits.astype(np.float64)).sum(1)
    return energies


def compute_scores(
    thresholds: Thresholds, logits: NDArray[np.float32], features: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return the score of `thresholds` for outputs [N, K] and [N, F], float64 [N]: higher is more unusual.

    Stored predictions have no features. Their images, which belong to the run, have a distance of 0.
    """
    if thresholds.ood_space is not None:
        return thresholds.ood_space.measure(features) if features.shape[1] else np.zeros(len(features))
    return compute_joint_energy(logits) if thresholds.ood == "joint_energy" else compute_energy(logits)
