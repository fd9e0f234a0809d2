"""`MaskScores`: what an evaluation of masks stores of each image, so that it needs neither the model nor the masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.evaluation.segmentation_metrics import average_iou


@dataclass(frozen=True, slots=True)
class MaskScores:
    """The pixels of N images by their true and their predicted class, of K `classes`, and the `quality` float64 [N].

    `cells` int64 [M, 4] are the image, the true class, the predicted class and the number of these pixels, from 1 on:
    what an image does not have takes no room. Pixels without a class count nowhere. The quality of a mask is the IoU
    that the probabilities of its pixels promise, in [0, 1].
    """

    cells: NDArray[np.int64]
    quality: NDArray[np.float64]
    classes: int

    @classmethod
    def from_confusions(cls, confusions: NDArray[np.int64], quality: NDArray[np.float64]) -> MaskScores:
        """Return the scores of images with `confusions` int64 [N, K, K], true classes in rows.

        >>> MaskScores.from_confusions(np.array([[[5, 0], [2, 9]]]), np.array([0.8])).cells.tolist()
        [[0, 0, 0, 5], [0, 1, 0, 2], [0, 1, 1, 9]]
        """
        at = np.nonzero(confusions)
        return cls(np.stack([*at, confusions[at]], 1).astype(np.int64), quality, confusions.shape[1])

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], count: int, classes: int) -> MaskScores | None:
        """Return what `to_arrays` returned for `count` images; None if it is not among the `arrays`.

        Raises `KeyError` or `ValueError` for arrays that cannot be these.
        """
        if "mask_cells" not in arrays:
            return None
        cells, quality = arrays["mask_cells"], arrays["mask_quality"]
        kinds = cells.dtype.kind + quality.dtype.kind
        if kinds != "if" or cells.ndim != 2 or cells.shape[1] != 4 or quality.shape != (count,):
            shapes = f"{cells.dtype} {list(cells.shape)} and {quality.dtype} {list(quality.shape)}"
            raise ValueError(f"mask_cells and mask_quality have the wrong types or shapes: {shapes}")
        is_valid = (cells >= [0, 0, 0, 1]).all() and (cells[:, :3] < [count, classes, classes]).all()
        if not is_valid or not np.isfinite(quality).all():
            raise ValueError("mask_cells or mask_quality have values that no image can have")
        return cls(cells.astype(np.int64), quality.astype(np.float64), classes)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the fields as arrays of ``predictions.npz``."""
        return {"mask_cells": self.cells, "mask_quality": self.quality}

    def compute_total(self) -> NDArray[np.int64]:
        """Return the confusion of all images together, int64 [K, K]."""
        total = np.zeros((self.classes, self.classes), np.int64)
        np.add.at(total, (self.cells[:, 1], self.cells[:, 2]), self.cells[:, 3])
        return total

    def compute_iou(self) -> NDArray[np.float64]:
        """Return the mean IoU of each image by itself, float64 [N], as `compute_image_iou` does."""
        images, true, predicted, pixels = self.cells.T
        shape = (len(self.quality), self.classes)
        hits, of_true, of_predicted = (np.zeros(shape) for _ in range(3))
        is_hit = true == predicted
        np.add.at(hits, (images[is_hit], true[is_hit]), pixels[is_hit])
        np.add.at(of_true, (images, true), pixels)
        np.add.at(of_predicted, (images, predicted), pixels)
        return average_iou(hits, of_true, of_predicted)

    def count_pixels(self, true: int, predicted: int) -> NDArray[np.int64]:
        """Return how many pixels of class `true` each image has that are predicted as `predicted`, int64 [N]."""
        is_meant = (self.cells[:, 1] == true) & (self.cells[:, 2] == predicted)
        counts = np.zeros(len(self.quality), np.int64)
        counts[self.cells[is_meant, 0]] = self.cells[is_meant, 3]
        return counts

    def find_predicted(self) -> NDArray[np.bool_]:
        """Return which classes are predicted for a pixel of each image, bool [N, K]."""
        is_predicted = np.zeros((len(self.quality), self.classes), bool)
        is_predicted[self.cells[:, 0], self.cells[:, 2]] = True
        return is_predicted

    def find_most_confused(self) -> dict[int, tuple[int, int]]:
        """Return the true and the predicted class of most wrong pixels of each image that has some."""
        wrong = self.cells[self.cells[:, 1] != self.cells[:, 2]][::-1]
        order = np.argsort(wrong[:, 3], kind="stable")  # the last one of an image is kept: the first of equals
        return {int(image): (int(true), int(predicted)) for image, true, predicted, _ in wrong[order]}
