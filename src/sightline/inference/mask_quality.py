"""Estimate how well a predicted mask matches the true one, from its pixel probabilities alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sightline.inference.results import Decision, Thresholds


class MaskQuality:
    """The expected IoU of the mask of an image; its probabilities are added in parts.

    For each predicted class, the expected intersection of the predicted and the true pixels is divided by their
    expected union, both computed from sums of probabilities, as the Soft Dice Confidence does for Dice (Borges et al.,
    2024, arXiv:2402.10665); the result is the mean over these classes. It assumes that the probabilities are calibrated
    and the pixels independent. It serves to rank images; thresholds for it are chosen on images with known masks.
    """

    def __init__(self, num_classes: int) -> None:
        self._areas, self._inside, self._sums = np.zeros((3, num_classes))

    def add(self, probabilities: NDArray[np.float32]) -> None:
        """Add the probabilities of some pixels, float32 [..., K]."""
        rows = probabilities.reshape(-1, len(self._areas))
        predicted = rows.argmax(1)
        self._areas += np.bincount(predicted, minlength=len(self._areas))
        self._inside += np.bincount(predicted, rows[np.arange(len(rows)), predicted], len(self._areas))
        self._sums += rows.sum(0, dtype=np.float64)

    def compute_iou(self) -> float:
        """Return the expected IoU in [0, 1]."""
        present = self._areas > 0
        union = self._areas + self._sums - self._inside
        return float((self._inside[present] / union[present]).mean())


def estimate_iou(probabilities: NDArray[np.float32]) -> float:
    """Return the expected IoU of the mask of the most probable classes for probabilities [H, W, K]."""
    quality = MaskQuality(probabilities.shape[-1])
    quality.add(probabilities)
    return quality.compute_iou()


def decide_mask(quality: float, thresholds: Thresholds | None) -> Decision | None:
    """Return whether a mask of this expected IoU is accepted; None for a model without a threshold."""
    if thresholds is None or thresholds.min_iou is None:
        return None
    is_accepted = thresholds.quality is not None and quality >= thresholds.quality
    return Decision("mask" if is_accepted else "abstain", None, None)
