"""A full evaluation of masks: metrics of pixels with intervals over images, confused classes, the worst images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import jsonio
from sightline.data.masks import VOID
from sightline.data.types import LabeledSubset, Subset, UnreadableImage
from sightline.errors import DataError
from sightline.evaluation import segmentation_metrics
from sightline.evaluation.error_analysis import MAX_EXAMPLES
from sightline.evaluation.leakage import add_leakage
from sightline.evaluation.results import TaskResult
from sightline.evaluation.segmentation_metrics import MaskClassMetrics
from sightline.intervals import Interval, wilson_interval

MAX_PAIRS = 10
MIN_PROBABILITY = 1e-12  # of the true class of a pixel, so that the loss is finite


@dataclass(frozen=True, slots=True)
class SegmentationResult(TaskResult):
    """The metrics of masks on images with a mask each.

    `accuracy` is the fraction of pixels whose class is predicted, `loss` the mean cross-entropy of a pixel in an image.
    `probabilities` float32 [N, K] are the means over the pixels of each image, `labels` bool [N, K] the classes that it
    has, and `confusions` int64 [N, K, K] the pixels of each class (rows) by the predicted one.
    """

    per_class: tuple[MaskClassMetrics, ...]
    confusions: NDArray[np.int64] = field(kw_only=True)
    headlines = ("mean_iou", "mean_dice")


@dataclass(frozen=True, slots=True)
class MaskExample:
    """Image number `index` of the evaluation: the mean IoU of its own classes, and the classes most confused in it.

    `mask` is the predicted one, uint8 [H, W].
    """

    index: int
    path: str
    iou: float
    label: str
    predicted: str
    mask: NDArray[np.uint8] = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields but the number of the image and its mask as JSON values."""
        return jsonio.fields_to_dict(self, skip=["index", "mask"])


@dataclass(frozen=True, slots=True)
class ClassPair:
    """A `fraction` of the pixels of class `label` is predicted as `predicted`."""

    label: str
    predicted: str
    fraction: float


@dataclass(frozen=True, slots=True)
class MaskErrors:
    """The images with the lowest IoU, the lowest first, and the classes that are confused most."""

    worst_images: tuple[MaskExample, ...]
    confused_pairs: tuple[ClassPair, ...]


@dataclass(frozen=True, slots=True)
class SegmentationReport:
    """The evaluation of split `split`, with the images to look at."""

    evaluation: SegmentationResult
    split: str
    errors: MaskErrors
    thresholds: None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``metrics.json``."""
        return {"task": "segmentation"} | self.evaluation.to_dict() | jsonio.fields_to_dict(self, skip=["evaluation"])


def list_image_metrics(result: SegmentationResult) -> Iterator[dict[str, Any]]:
    """Yield the path of each image, the mean IoU of its own classes, and the fraction of its pixels that are right."""
    ious = segmentation_metrics.compute_image_iou(result.confusions)
    accuracies = segmentation_metrics.compute_pixel_accuracy(result.confusions)
    for path, iou, accuracy in zip(result.paths, ious.tolist(), accuracies.tolist(), strict=True):
        known = math.isfinite(accuracy)  # else no pixel of the image has a class
        yield {"path": path, "iou": iou if known else None, "pixel_accuracy": accuracy if known else None}


def build_report(
    classes: tuple[str, ...], probabilities: NDArray[np.float32], labeled: LabeledSubset, split: str
) -> SegmentationReport:
    """Return the evaluation of `probabilities` float32 [N, H, W, K] for images whose labels are masks."""
    _check_probabilities(probabilities, labeled.subset.paths)
    masks = labeled.subset.labels
    confusions = np.concatenate([
        segmentation_metrics.count_confusions(row[None].argmax(-1).astype(np.uint8), mask[None], len(classes))
        for row, mask in zip(probabilities, masks, strict=True)
    ])  # fmt: skip
    losses = np.array([_compute_loss(row, mask) for row, mask in zip(probabilities, masks, strict=True)])
    means = np.array([row.mean((0, 1), dtype=np.float64) for row in probabilities], np.float32)
    positions = {path: i for i, path in enumerate(labeled.subset.paths)}

    def evaluate(
        rows: NDArray[np.float32], samples: Subset, unreadable: Sequence[UnreadableImage] = ()
    ) -> SegmentationResult:
        at = np.array([positions[path] for path in samples.paths], np.int64)
        return _evaluate(classes, rows, confusions[at], losses[at], samples.paths, unreadable)

    evaluation = add_leakage(evaluate(means, labeled.subset, labeled.unreadable), labeled, evaluate)
    return SegmentationReport(evaluation, split, _find_errors(evaluation, probabilities))


def _evaluate(
    classes: tuple[str, ...],
    probabilities: NDArray[np.float32],
    confusions: NDArray[np.int64],
    losses: NDArray[np.float64],
    paths: tuple[str, ...],
    unreadable: Sequence[UnreadableImage],
) -> SegmentationResult:
    metrics, per_class = segmentation_metrics.compute_mask_metrics(classes, confusions)
    accuracy = metrics["pixel_accuracy"]
    known = losses[np.isfinite(losses)]
    return SegmentationResult(
        classes=classes,
        accuracy=accuracy.value or 0.0,
        accuracy_interval=accuracy.interval or _compute_image_interval(accuracy.value, len(paths)),
        loss=float(known.mean()) if len(known) else 0.0,
        count=len(paths),
        per_class=per_class,
        unreadable=tuple(unreadable),
        paths=paths,
        labels=confusions.sum(2) > 0,
        probabilities=probabilities,
        seconds=0.0,
        metrics=metrics,
        confusions=confusions,
    )


def _compute_image_interval(accuracy: float | None, images: int) -> Interval:
    """Return Wilson's interval as of one pixel for each image, for images too few to be resampled.

    The pixels of an image depend on each other: an interval that counts them all would be far too narrow.
    """
    return wilson_interval(round((accuracy or 0.0) * images), images)


def _compute_loss(probabilities: NDArray[np.float32], mask: NDArray[np.uint8]) -> float:
    """Return the mean cross-entropy of the pixels that have a class, in nats; NaN without any."""
    known = mask != VOID
    if not known.any():
        return float("nan")
    true = np.take_along_axis(probabilities[known], mask[known].astype(np.int64)[:, None], axis=1)
    return float(-np.log(np.maximum(true, MIN_PROBABILITY), dtype=np.float64).mean())


def _check_probabilities(probabilities: NDArray[np.float32], paths: tuple[str, ...]) -> None:
    for row, path in zip(probabilities, paths, strict=True):
        if not (np.isfinite(row).all() and np.abs(row.sum(-1) - 1).max(initial=0) <= 1e-2):
            raise DataError(
                f"The predicted probabilities of the pixels of {path} are not finite or do not sum to 1: the weights "
                "are damaged or training diverged; train the model again."
            )


def _find_errors(evaluation: SegmentationResult, probabilities: NDArray[np.float32]) -> MaskErrors:
    classes, confusions = evaluation.classes, evaluation.confusions
    ious = segmentation_metrics.compute_image_iou(confusions)
    order = [int(i) for i in np.argsort(ious, kind="stable") if np.isfinite(ious[i])]
    examples = tuple(
        MaskExample(
            i,
            evaluation.paths[i],
            float(ious[i]),
            *_most_confused(classes, confusions[i]),
            probabilities[i].argmax(-1).astype(np.uint8),
        )
        for i in order[:MAX_EXAMPLES]
    )
    total = confusions.sum(0)
    fractions = total / np.maximum(total.sum(1, keepdims=True), 1)
    np.fill_diagonal(fractions, 0)
    pairs = tuple(
        ClassPair(classes[i], classes[j], float(fractions[i, j]))
        for i, j in (
            divmod(int(at), len(classes)) for at in np.argsort(-fractions, axis=None, kind="stable")[:MAX_PAIRS]
        )
        if fractions[i, j] > 0
    )
    return MaskErrors(examples, pairs)


def _most_confused(classes: Sequence[str], confusion: NDArray[np.int64]) -> tuple[str, str]:
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    true, predicted = divmod(int(wrong.argmax()), len(classes))
    return (classes[true], classes[predicted]) if wrong.any() else ("", "")
