"""The probability that an image has a label, from a vote of reference images with and without it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sightline.inference.knn import MIN_PROBABILITY, SAME_IMAGE, TEMPERATURE
from sightline.inference.nearest import normalize_rows


class LabelVotes:
    """The votes of reference images, weighted by exp(s / 0.07) for similarity s to an image, as in `knn`.

    All reference images vote, so that no number of neighbors has to be chosen. The images with the label have the same
    total weight as the images without it, whatever their numbers. The probability of the label is its fraction of the
    votes.

    Attributes:
        rows: float32 [R, D], the features of the reference images, normalized to length 1.
        is_present: bool [R], whether each has the label.
        biases: float32 [R], the logarithm of the weight of each vote.
    """

    def __init__(self, features: NDArray[np.float32], is_present: NDArray[np.bool_]) -> None:
        """`features` are float32 [R, D]; `is_present` bool [R] must have both values."""
        self.rows, self.is_present = normalize_rows(features), is_present
        self.biases = -np.log(np.where(is_present, is_present.sum(), (~is_present).sum())).astype(np.float32)

    def compute_logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the log-odds of the label, float32 [N], for features float32 [N, D]."""
        return self._count(normalize_rows(features) @ self.rows.T / TEMPERATURE + self.biases)

    def leave_out(self) -> NDArray[np.float32]:
        """Return the log-odds of the label for each reference image, float32 [R], from the votes of the others."""
        scores = (self.rows @ self.rows.T / TEMPERATURE).astype(np.float64)
        np.fill_diagonal(scores, -np.inf)
        sizes = np.array([(~self.is_present).sum(), self.is_present.sum()])
        of_own_side = self.is_present[:, None] == self.is_present
        counts = sizes[self.is_present.astype(int)] - of_own_side  # the image itself does not vote for its side
        return self._count(scores - np.log(np.maximum(counts, 1)))

    def _count(self, scores: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return the log-odds, float32 [N], from the logarithms of the votes [N, R]."""
        weights = np.exp(scores - scores.max(1, keepdims=True))
        fractions = np.stack([weights[:, self.is_present].sum(1), weights[:, ~self.is_present].sum(1)], 1)
        logarithms = np.log(np.maximum(fractions / weights.sum(1, keepdims=True), MIN_PROBABILITY))
        logits: NDArray[np.float32] = (logarithms[:, 0] - logarithms[:, 1]).astype(np.float32)
        return logits


def find_copies(features: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which images, by their features float32 [N, D], are among others, float32 [M, D]: bool [N]."""
    return np.asarray((normalize_rows(features) @ normalize_rows(others).T >= SAME_IMAGE).any(1))
