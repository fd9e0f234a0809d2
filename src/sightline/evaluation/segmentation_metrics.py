"""Mask metrics, per class and overall, from the pixels of each image, with bootstrap intervals over images.

The pixels of an image depend on each other, so images are resampled, not pixels, or groups if the run was split by
groups. Pixels without a class are ignored. IoU is the intersection of the pixels that have a class and those
that are predicted to, over their union (Everingham et al., 2010); the mean is over the classes that any image has.
`boundaries` defines the boundary F1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.data.masks import VOID
from sightline.evaluation import calibration
from sightline.evaluation.bootstrap import EACH_IMAGE, Resampling
from sightline.evaluation.boundaries import compute_boundary_f1
from sightline.evaluation.results import Metric


@dataclass(frozen=True, slots=True)
class MaskClassMetrics:
    """Metrics of one class: `support` images have it, and `fraction` of all pixels with a class."""

    label: str
    iou: Metric
    dice: Metric
    precision: Metric
    recall: Metric
    boundary_f1: Metric
    support: int
    fraction: float


def count_confusions(predicted: NDArray[np.uint8], true: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """Return how often each class was predicted for the pixels of each class: int64 [K, K], true classes in rows.

    `predicted` and `true` are masks uint8 [H, W]; pixels whose true class is `VOID` are left out.
    """
    known = true != VOID
    cells = true[known].astype(np.int64) * classes + predicted[known]
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def compute_iou(confusion: NDArray[Any]) -> NDArray[np.float64]:
    """Return the IoU of each class, float64 [..., K], of confusions [..., K, K]; NaN for a class without pixels."""
    return _compute_iou(*_count_parts(confusion))


def compute_dice(confusion: NDArray[Any]) -> NDArray[np.float64]:
    """Return the Dice coefficient (F1) of each class, float64 [..., K]; NaN for a class without pixels."""
    hits, true, predicted = _count_parts(confusion)
    return _divide(2 * hits, true + predicted, true)


def compute_pixel_accuracy(confusion: NDArray[Any]) -> NDArray[np.float64]:
    """Return the fraction of pixels whose class is predicted, float64 [...]; NaN without pixels."""
    total = confusion.sum((-2, -1), dtype=np.float64)
    return _divide(np.trace(confusion, axis1=-2, axis2=-1), total, total)


def compute_mask_metrics(
    classes: Sequence[str],
    confusions: NDArray[np.int64],
    boundaries: NDArray[np.int64],
    reliability: NDArray[np.float64],
    resampling: Resampling = EACH_IMAGE,
) -> tuple[dict[str, Metric], tuple[MaskClassMetrics, ...]]:
    """Return the metrics of all classes by name, and those of each class.

    `confusions` int64 [N, K, K], `boundaries` int64 [N, K, 4] and `reliability` float64 [N, B, 3] are those of each
    image, as in `MaskOutputs`.
    """
    total, has_class = confusions.sum(0), confusions.sum(2) > 0  # [K, K], [N, K]
    present = total.sum(1) > 0
    resampled, count = _resample(confusions, resampling), len(confusions)

    def measure(compute: Callable[[NDArray[Any]], NDArray[np.float64]]) -> tuple[Metric, list[Metric]]:
        values, spread = compute(total), compute(resampled)

        def measure_class(k: int, label: str) -> Metric:
            if not present[k]:
                return Metric(None, None, f"no pixel has the class {label}")
            if not math.isfinite(values[k]):
                return Metric(None, None, f"the class {label} is never predicted")
            return resampling.make_metric(float(values[k]), spread[:, k], count, having=has_class[:, k])

        each = [measure_class(k, label) for k, label in enumerate(classes)]
        if not present.any():
            return Metric(None, None, "no pixel has a class"), each
        mean = float(np.mean(values[present]))
        return resampling.make_metric(mean, _mean_of_present(spread), count, int(present.sum())), each

    def measure_pixels(
        value: NDArray[np.float64], spread: NDArray[np.float64], noise: NDArray[np.float64] | None = None
    ) -> Metric:
        if not present.any():
            return Metric(None, None, "no pixel has a class")
        return resampling.make_metric(float(value), spread, count, noise=noise)

    mean_iou, iou = measure(compute_iou)
    mean_dice, dice = measure(compute_dice)
    mean_recall, recall = measure(_compute_recall)
    _, precision = measure(_compute_precision)  # undefined for a class that is never predicted, so there is no mean
    boundary, boundary_classes = _measure_boundaries(classes, boundaries, present, resampling)
    gaps, spread = (
        calibration.compute_gaps(reliability.sum(0)),
        calibration.compute_gaps(_resample(reliability, resampling)),
    )
    metrics = {
        "mean_iou": mean_iou,
        "mean_dice": mean_dice,
        "boundary_f1": boundary,
        "pixel_accuracy": measure_pixels(compute_pixel_accuracy(total), compute_pixel_accuracy(resampled)),
        "mean_class_accuracy": mean_recall,
        "ece": measure_pixels(np.abs(gaps).sum(), np.abs(spread).sum(1), np.abs(spread - gaps).sum(1)),
    }
    support = has_class.sum(0)
    fractions = total.sum(1) / max(int(total.sum()), 1)
    per_class = tuple(
        MaskClassMetrics(
            label, iou[k], dice[k], precision[k], recall[k], boundary_classes[k], int(support[k]), float(fractions[k])
        )
        for k, label in enumerate(classes)
    )
    return metrics, per_class


def _measure_boundaries(
    classes: Sequence[str], boundaries: NDArray[np.int64], present: NDArray[np.bool_], resampling: Resampling
) -> tuple[Metric, list[Metric]]:
    """Return the boundary F1 of all classes and of each: means over the images in which a class has a boundary."""
    f1 = compute_boundary_f1(boundaries)  # [N, K]
    known = np.isfinite(f1)
    sums = np.stack([np.where(known, f1, 0), known.astype(np.float64)], axis=-1)

    def compute(totals: NDArray[np.float64]) -> NDArray[np.float64]:
        return _divide(totals[..., 0], totals[..., 1], totals[..., 1])

    values, spread = compute(sums.sum(0)), compute(_resample(sums, resampling))
    has_value = present & np.isfinite(values)
    each = [
        resampling.make_metric(float(values[k]), spread[:, k], len(f1), having=known[:, k])
        if has_value[k]
        else Metric(
            None, None, f"the class {label} has no boundary" if present[k] else f"no pixel has the class {label}"
        )
        for k, label in enumerate(classes)
    ]
    if not has_value.any():
        return Metric(None, None, "no class has a boundary"), each
    mean = float(values[has_value].mean())
    return resampling.make_metric(mean, _mean_of_present(spread[:, has_value]), len(f1), int(has_value.sum())), each


def compute_image_iou(confusions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean IoU of each image on its own, float64 [...], over the classes that it has; NaN without any pixel.

    `confusions` are int64 [..., K, K].
    """
    return average_iou(*_count_parts(confusions))


def average_iou(
    hits: NDArray[np.float64], true: NDArray[np.float64], predicted: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the mean IoU over the classes that are present, float64 [...]; NaN without any pixel.

    All are numbers of pixels of each class, [..., K]: predicted correctly, truly of the class, and predicted as it.
    """
    return _mean_of_present(_compute_iou(hits, true, predicted))


def _compute_iou(
    hits: NDArray[np.float64], true: NDArray[np.float64], predicted: NDArray[np.float64]
) -> NDArray[np.float64]:
    return _divide(hits, true + predicted - hits, true)


def _resample(values: NDArray[Any], resampling: Resampling) -> NDArray[np.float64]:
    """Return the sums of the `values` [N, ...] over resampled images, float64 [R, ...]."""
    cells = values.reshape(len(values), -1).astype(np.float64)
    return resampling.resample_sums(cells, "masks").reshape(-1, *values.shape[1:])


def _count_parts(
    confusion: NDArray[Any],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    hits = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    return hits, confusion.sum(-1, dtype=np.float64), confusion.sum(-2, dtype=np.float64)


def _compute_recall(confusion: NDArray[Any]) -> NDArray[np.float64]:
    hits, true, _ = _count_parts(confusion)
    return _divide(hits, true, true)


def _compute_precision(confusion: NDArray[Any]) -> NDArray[np.float64]:
    hits, _, predicted = _count_parts(confusion)
    return _divide(hits, predicted, predicted)


def _divide(
    numerator: NDArray[np.float64], denominator: NDArray[np.float64], required: NDArray[np.float64]
) -> NDArray[np.float64]:
    out = np.full(np.shape(denominator), np.nan)
    np.divide(numerator, denominator, out=out, where=(required > 0) & (denominator > 0))
    return out


def _mean_of_present(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of the values [..., K] that are numbers, float64 [...]; NaN where none is."""
    known = np.isfinite(values)
    counts = known.sum(-1)
    return np.where(counts > 0, np.where(known, values, 0).sum(-1) / np.maximum(counts, 1), np.nan)


@dataclass(frozen=True, slots=True)
class MaskScores:
    """The pixels of N images by their true and their predicted class, of K `classes`, and the `quality` float64 [N].

    `cells` int64 [M, 4] are the image, the true class, the predicted class and the number of these pixels, at least 1:
    absent pairs take no memory. Pixels without a class are not counted. The quality of a mask is the IoU expected from
    the probabilities of its pixels, in [0, 1].
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
        """Return the scores that `to_arrays` saved for `count` images; None if `arrays` has none.

        Raises `KeyError` or `ValueError` for invalid arrays.
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
        """Return the mean IoU of each image on its own, float64 [N], as `compute_image_iou` does."""
        images, true, predicted, pixels = self.cells.T
        shape = (len(self.quality), self.classes)
        hits, of_true, of_predicted = (np.zeros(shape) for _ in range(3))
        is_hit = true == predicted
        np.add.at(hits, (images[is_hit], true[is_hit]), pixels[is_hit])
        np.add.at(of_true, (images, true), pixels)
        np.add.at(of_predicted, (images, predicted), pixels)
        return average_iou(hits, of_true, of_predicted)

    def count_pixels(self, true: int, predicted: int) -> NDArray[np.int64]:
        """Return the number of pixels of class `true` in each image that are predicted as `predicted`, int64 [N]."""
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
        """Return the true and the predicted class of the most wrong pixels in each image that has any."""
        wrong = self.cells[self.cells[:, 1] != self.cells[:, 2]][::-1]
        order = np.argsort(wrong[:, 3], kind="stable")  # the last one per image is kept: the first of equals
        return {int(image): (int(true), int(predicted)) for image, true, predicted, _ in wrong[order]}
