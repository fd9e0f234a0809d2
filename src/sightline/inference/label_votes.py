"""The probability that an image has a label, by a vote of reference images with and without it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sightline.inference.knn import MIN_PROBABILITY, SAME_IMAGE, TEMPERATURE
from sightline.inference.nearest import normalize_rows


class LabelVotes:
    """The votes of reference images, weighted by their similarity s to an image as exp(s / 0.07), as in `knn`.

    All of them vote, so that no number of neighbors has to be chosen; those with the label count together as much as
    those without it, whatever their numbers. The probability of the label is the fraction of the votes for it.

    Attributes:
        rows: float32 [R, D], the features of the reference images, of length 1.
        is_present: bool [R], whether each has the label.
        biases: float32 [R], the logarithm of what the vote of each counts.
    """

    def __init__(self, features: NDArray[np.float32], is_present: NDArray[np.bool_]) -> None:
        """`features` are float32 [R, D]; there must be images with the label, `is_present` bool [R], and without."""
        self.rows, self.is_present = normalize_rows(features), is_present
        self.biases = -np.log(np.where(is_present, is_present.sum(), (~is_present).sum())).astype(np.float32)

    def compute_logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the log-odds of the label, float32 [N], for features float32 [N, D]."""
        return self._count(normalize_rows(features) @ self.rows.T / TEMPERATURE + self.biases)

    def leave_out(self) -> NDArray[np.float32]:
        """Return the log-odds of the label for each reference image, float32 [R], by the votes of the others."""
        scores = (self.rows @ self.rows.T / TEMPERATURE).astype(np.float64)
        np.fill_diagonal(scores, -np.inf)
        sizes = np.array([(~self.is_present).sum(), self.is_present.sum()])
        of_own_side = self.is_present[:, None] == self.is_present
        counts = sizes[self.is_present.astype(int)] - of_own_side  # one fewer votes on the side of the image itself
        return self._count(scores - np.log(np.maximum(counts, 1)))

    def _count(self, scores: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return the log-odds of votes whose logarithms are [N, R]."""
        weights = np.exp(scores - scores.max(1, keepdims=True))
        fractions = np.stack([weights[:, self.is_present].sum(1), weights[:, ~self.is_present].sum(1)], 1)
        logarithms = np.log(np.maximum(fractions / weights.sum(1, keepdims=True), MIN_PROBABILITY))
        logits: NDArray[np.float32] = (logarithms[:, 0] - logarithms[:, 1]).astype(np.float32)
        return logits


def find_copies(features: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which of N images, by their features float32 [N, D], are one of others, float32 [M, D]: bool [N]."""
    return np.asarray((normalize_rows(features) @ normalize_rows(others).T >= SAME_IMAGE).any(1))
