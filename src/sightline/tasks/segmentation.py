"""Semantic segmentation: each pixel of an image belongs to one of several classes, or to none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sightline import backend, metrics
from sightline.callbacks import Progress, no_progress
from sightline.config import AugmentConfig, RunConfig
from sightline.data.masks import VOID
from sightline.data.targets import MASKS, join_classes
from sightline.data.types import Subset
from sightline.errors import UsageError
from sightline.evaluation import calibration, mask_decisions, segmentation
from sightline.evaluation.mask_outputs import MaskOutputs, collect_mask_outputs
from sightline.evaluation.segmentation import SegmentationReport
from sightline.evaluation.segmentation_metrics import compute_image_iou, compute_iou
from sightline.inference.mask_quality import decide_mask, estimate_iou
from sightline.inference.parity import Parity, find_ties
from sightline.inference.predictor import ModelOutputs, Predictor
from sightline.inference.results import NO_THRESHOLDS, ClassProbability, Prediction, ThresholdRequest, Thresholds
from sightline.tasks.augmented_objective import AugmentedObjective, drop_disabled
from sightline.tasks.protocol import EvaluationInputs, LossGradient, Score, Task, check_targets, register_task
from sightline.training.augment.pipeline import transform_masks
from sightline.training.optimizers import make_loss

FOCAL_GAMMA = 2.0  # Lin et al., 2017, arXiv:1708.02002
NOT_LINEAR = "A decoder cannot be solved as a logistic regression: leave out the solver of the stage."
EMPTY = 1.0  # pixels added to both areas of a class, so that a class in neither mask counts as correct


@dataclass(frozen=True, slots=True)
class MaskObjective(AugmentedObjective):
    """The loss of ``train.loss`` against masks, uint8 [N, H, W]: for each image, the mean over its pixels with a class.

    Images count equally, however many of their pixels have a class. `class_weights` float32 [K] multiply the losses of
    the pixels of each class; None for equal weights.
    """

    num_classes: int
    class_weights: NDArray[np.float32] | None

    def compute_targets(
        self,
        rows: NDArray[np.int64],
        epoch: int,  # noqa: ARG002  # masks are the same in every epoch
        params: NDArray[np.float32] | None,
    ) -> NDArray[np.float32]:
        """Return the class of each pixel, or `VOID`, moved and mixed as its image is: float32 [n, H, W]."""
        masks = self.augment_targets(transform_masks, self.train.labels[rows], params)
        return masks.astype(np.float32)

    def build_loss(self) -> Any:
        """Return cross-entropy, focal loss, or cross-entropy plus one minus the mean Dice coefficient."""
        ops, kind, classes = backend.keras().ops, self.config.train.loss, self.num_classes
        smoothing = self.config.train.label_smoothing
        weights = np.ones(classes, np.float32) if self.class_weights is None else self.class_weights

        def mask_loss(targets: Any, logits: Any) -> Any:
            known = ops.cast(targets < classes, "float32")
            true = ops.one_hot(ops.cast(ops.minimum(targets, classes - 1), "int32"), classes)
            soft = true * (1 - smoothing) + smoothing / classes
            log_probabilities = ops.log_softmax(logits, axis=-1)
            losses = -ops.sum(soft * log_probabilities, axis=-1)
            if kind == "focal":
                losses *= (1 - ops.exp(-losses)) ** FOCAL_GAMMA
            pixel_weights = known * ops.sum(true * weights, axis=-1)
            mean = ops.sum(pixel_weights * losses, axis=(1, 2)) / ops.maximum(ops.sum(known, axis=(1, 2)), 1.0)
            if kind != "dice":
                return mean
            true, predicted = true * known[..., None], ops.exp(log_probabilities) * known[..., None]
            areas = ops.sum(true, axis=(1, 2)) + ops.sum(predicted, axis=(1, 2))
            dice = (2 * ops.sum(true * predicted, axis=(1, 2)) + EMPTY) / (areas + EMPTY)
            return mean + 1 - ops.mean(dice, axis=-1)

        return make_loss(mask_loss, "mask_loss")

    def build_accuracy(self) -> Any:
        """Return the fraction of the pixels with a class that are predicted correctly."""
        ops, classes = backend.keras().ops, self.num_classes

        def accuracy(targets: Any, logits: Any) -> Any:
            known = ops.cast(targets < classes, "float32")
            hits = known * ops.cast(ops.equal(ops.cast(ops.argmax(logits, axis=-1), "float32"), targets), "float32")
            return ops.sum(hits, axis=(1, 2)) / ops.maximum(ops.sum(known, axis=(1, 2)), 1.0)

        return backend.keras().metrics.MeanMetricWrapper(accuracy, name="categorical_accuracy")


@register_task("segmentation")
class Segmentation(Task):
    """One class for each pixel. Logits are float32 [N, H, W, K], labels masks uint8 [N, H, W]."""

    targets = MASKS
    activation = "softmax"
    supports_folds = True
    image_score = "image_iou"
    unsupported_methods: ClassVar[Mapping[str, str]] = {
        "shrink-head": "a decoder has no flattened maps and no hidden layers to leave out",
        "distill": "a teacher's logits of every pixel, for several views of each image, take too much memory",
    }
    sections = ("mask-metrics", "mask-classes", "mask-calibration", "mask-abstention", "mask-errors")

    def check_settings(self, config: RunConfig) -> None:
        """Raise `UsageError` for settings that do not apply to masks."""
        evaluation = config.evaluation
        refused = {
            "model.head=sigmoid": config.model.head != "softmax",
            f"train.loss={config.train.loss}": config.train.loss in {"binary", "asymmetric"},
            "augment.label_mixing=union": config.augment.label_mixing == "union",
            "augment.randaugment": config.augment.randaugment > 0,
            "augment.custom": bool(config.augment.custom),
            "evaluation.positive_class": bool(evaluation.positive_class),
            "evaluation.coverage": evaluation.coverage is not None,
            "evaluation.target_recall": evaluation.target_recall is not None,
            "evaluation.target_fnr": evaluation.target_fnr is not None,
        }
        if named := [name for name, is_set in refused.items() if is_set]:
            raise UsageError(f"{named[0]} is for labels of whole images: leave it out with model.task=segmentation.")
        if any(stage.views > 1 for stage in config.train.stages):
            raise UsageError(
                "train.stages has views of each image, whose masks would not move with them: set views to 1 with "
                "model.task=segmentation; a stage that trains on pixels augments both."
            )
        if config.augment.mixup:
            raise UsageError(
                "augment.mixup blends two images, so a pixel shows two classes, but a mask states only one: use "
                "augment.cutmix, which pastes a box of the other image and of its mask."
            )
        check_targets(evaluation, are_masks=True)
        if evaluation.min_iou is not None and evaluation.target_precision is None:
            raise UsageError("evaluation.min_iou says which masks count for evaluation.target_precision: set both.")

    def check_request(self, request: ThresholdRequest, classes: Sequence[str]) -> None:
        """Raise `UsageError` for any target except that of accepted masks: a pixel has its most probable class."""
        del classes
        mask_decisions.check_request(request)

    def make_objective(
        self, config: RunConfig, train: Subset, num_classes: int, augmentation: AugmentConfig | None
    ) -> MaskObjective:
        """Return the loss of ``train.loss`` against the mask of each image."""
        weights = compute_pixel_weights(train.labels, num_classes, config.train.class_weights)
        return MaskObjective(config, train, drop_disabled(augmentation), num_classes, weights)

    def score_batches(self, batches: Iterable[tuple[NDArray[np.float32], NDArray[np.uint8]]]) -> Score:
        """Return the mean cross-entropy of a pixel, the fraction that is predicted correctly, and the mean IoU."""
        losses, confusion = 0.0, np.zeros((0, 0), np.int64)
        for row, mask in (pair for logits, labels in batches for pair in zip(logits, labels, strict=True)):
            known = mask != VOID
            true, scores = mask[known].astype(np.int32), row[known]
            if len(true):
                losses += len(true) * metrics.cross_entropy_from_logits(scores, true)
                counts = metrics.confusion_matrix(true, scores.argmax(1), scores.shape[1])
                confusion = counts + (confusion if confusion.size else 0)
        count, ious = int(confusion.sum()), compute_iou(confusion)
        mean_iou = float(np.nanmean(ious)) if count else 0.0  # over the classes in any mask
        return Score(losses / max(count, 1), int(np.trace(confusion)) / max(count, 1), mean_iou)

    def score(self, logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> Score:
        """Return the score of these logits, as `score_batches` does."""
        return self.score_batches([(logits, labels)])

    def differentiate_loss(self, logits: NDArray[np.float64], labels: NDArray[np.uint8]) -> LossGradient:
        """Raise `UsageError`: a decoder has several layers, which have no closed solution."""
        del logits, labels
        raise UsageError(NOT_LINEAR)

    def compute_weights(self, labels: NDArray[np.uint8], num_classes: int, mode: str) -> NDArray[np.float32] | None:
        """Raise `UsageError`, as `differentiate_loss` does."""
        del labels, num_classes, mode
        raise UsageError(NOT_LINEAR)

    def activate(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the softmax over the classes."""
        return np.stack([metrics.softmax(row.reshape(-1, row.shape[-1])).reshape(row.shape) for row in logits])

    def score_images(
        self,
        classes: tuple[str, ...],  # noqa: ARG002  # confusions have a row for each class
        outputs: ModelOutputs,
        thresholds: Thresholds | None,  # noqa: ARG002  # a pixel has its most probable class
    ) -> NDArray[np.float64]:
        """Return the mean IoU of the classes in each image, which large classes do not dominate as they do accuracy.

        It is NaN for an image without any pixel that has a class.
        """
        return compute_image_iou(_check_outputs(outputs).confusions)

    def fit_temperature(self, logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> float | None:
        """Return the temperature of least cross-entropy of pixels; None if there are too few, or no errors.

        `logits` are float32 [..., K] and `labels` [...] of any pixels.
        """
        mask = labels.reshape(-1)
        known = mask != VOID
        temperature = calibration.fit_temperature(
            logits.reshape(-1, logits.shape[-1])[known], mask[known].astype(np.int32), "pixel"
        )
        return None if temperature.note else temperature.value

    def fit_thresholds(
        self,
        classes: tuple[str, ...],
        outputs: ModelOutputs,
        request: ThresholdRequest = NO_THRESHOLDS,
        old: Thresholds | None = None,
    ) -> Thresholds | None:
        """Return the threshold of the quality of a mask that reaches the target precision."""
        del classes
        return mask_decisions.fit_thresholds(_check_outputs(outputs), request, old)

    def collect_outputs(
        self, predictor: Predictor, samples: Subset, progress: Progress = no_progress, task: str = "evaluating"
    ) -> MaskOutputs:
        """Return the outputs that an evaluation needs; only one batch is in memory at a time."""
        return collect_mask_outputs(predictor, samples, progress, task)

    @staticmethod
    def interpret(
        path: str,
        probabilities: NDArray[np.float32],
        classes: tuple[str, ...],
        *,
        top: int,
        thresholds: Thresholds | None,
        ood_score: float | None,  # noqa: ARG004  # the quality decides
    ) -> Prediction:
        """Return the classes in the mask of probabilities [H, W, K], their mean probabilities, and its quality."""
        areas = np.bincount(probabilities.argmax(-1).ravel(), minlength=len(classes))
        labels = tuple(classes[k] for k in np.argsort(-areas, kind="stable") if areas[k])
        means = probabilities.mean((0, 1), dtype=np.float64)
        candidates = tuple(
            ClassProbability(classes[k], float(means[k])) for k in np.argsort(-means, kind="stable")[:top]
        )
        sureness = float(probabilities.max(-1).mean(dtype=np.float64))
        quality = estimate_iou(probabilities)
        return Prediction(
            path, join_classes(labels), sureness, candidates, decision=decide_mask(quality, thresholds), labels=labels,
            quality=quality,
        )  # fmt: skip

    def compare_batches(
        self,
        batches: Iterable[tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]], NDArray[np.uint8] | None]],
        size: int = 0,
    ) -> Parity:
        """Compare the probabilities and the most probable classes of all pixels, one image after the other."""
        comparison = _MaskComparison()
        for first, second, labels in batches:
            masks: Sequence[NDArray[np.uint8] | None] = [None] * len(first) if labels is None else list(labels)
            for a, b, mask in zip(first, second, masks, strict=True):
                comparison.add(a, b, mask)
        return comparison.finish(size)

    def compare(
        self,
        first: NDArray[np.floating[Any]],
        second: NDArray[np.floating[Any]],
        labels: NDArray[np.uint8] | None = None,
        size: int = 0,
    ) -> Parity:
        """Compare the probabilities and the most probable classes of all pixels."""
        return self.compare_batches([(first, second, labels)], size)

    def evaluate(self, inputs: EvaluationInputs) -> SegmentationReport:
        """Return the metrics of each class and of all, the calibration of pixels, and the worst images."""
        held_out = None if inputs.validation_outputs is None else _check_outputs(inputs.validation_outputs)
        return segmentation.build_report(inputs, _check_outputs(inputs.outputs), held_out)


def _check_outputs(outputs: ModelOutputs) -> MaskOutputs:
    if not isinstance(outputs, MaskOutputs):
        raise TypeError("the outputs of masks are those of Segmentation.collect_outputs")
    return outputs


class _MaskComparison:
    """The differences between the probabilities of two forms of a model, summed over images."""

    def __init__(self) -> None:
        self._largest, self._total = 0.0, 0.0
        self._images = self._agreeing = self._untied = self._known = self._gained = 0

    def add(
        self, first: NDArray[np.floating[Any]], second: NDArray[np.floating[Any]], mask: NDArray[np.uint8] | None
    ) -> None:
        """Add the probabilities [H, W, K] of one image."""
        first, second = (rows.reshape(-1, rows.shape[-1]) for rows in (first, second))  # one row for each pixel
        differences = np.abs(first.astype(np.float64) - second)
        self._largest = float(np.maximum(self._largest, differences.max()))  # NaN if any is, unlike Python's max
        self._total += differences.mean()
        chosen, other, untied = first.argmax(1), second.argmax(1), ~find_ties(first)
        self._agreeing += int((chosen == other)[untied].sum())
        self._untied += int(untied.sum())
        self._images += 1
        if mask is not None:
            self._gained += int((other == mask.ravel()).sum()) - int((chosen == mask.ravel()).sum())
            self._known += int((mask != VOID).sum())

    def finish(self, size: int) -> Parity:
        """Return the comparison of all images; the second form has a file of `size` bytes."""
        return Parity(
            self._images, self._largest, float(self._total) / max(self._images, 1),
            self._agreeing / self._untied if self._untied else 1.0,
            self._gained / self._known if self._known else None, None, size,
        )  # fmt: skip


def compute_pixel_weights(masks: NDArray[np.uint8], classes: int, mode: str) -> NDArray[np.float32] | None:
    """Return the weight of each class, float32 [K]: in inverse proportion to its frequency; None for equal weights.

    The frequency of a class is that in the images that have it (Eigen and Fergus, 2015, arXiv:1411.4734). The mean
    weight of a pixel is 1, so that weights leave the scale of the loss as it is; a class without pixels has weight 1.
    """
    if mode == "none":
        return None
    counts = np.array([np.bincount(mask.ravel(), minlength=256)[:classes] for mask in masks], np.int64)
    known = counts.sum(1, keepdims=True)
    frequencies = counts.sum(0) / np.maximum(np.where(counts > 0, known, 0).sum(0), 1)
    present = frequencies > 0
    weights = np.ones(classes, np.float32)
    if present.any():
        weights[present] = 1 / frequencies[present]
        image_means = counts[known[:, 0] > 0] @ weights / known[known > 0]
        weights[present] /= image_means.mean()
    return weights
