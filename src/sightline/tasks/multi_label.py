"""Multi-label classification: each image has any number of classes, including none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline.config import AugmentConfig, RunConfig
from sightline.data.targets import LABEL_SETS, join_classes
from sightline.data.types import Subset
from sightline.errors import UsageError
from sightline.evaluation import calibration, label_thresholds, multi_label, ood, selective
from sightline.evaluation.bootstrap import count_groups
from sightline.evaluation.label_thresholds import list_limits, list_thresholds, list_unreached
from sightline.evaluation.multi_label import MultiLabelReport
from sightline.evaluation.multi_label_metrics import compute_example_f1
from sightline.inference import decisions
from sightline.inference.ood import compute_joint_energy
from sightline.inference.parity import Parity
from sightline.inference.predictor import ModelOutputs
from sightline.inference.results import NO_THRESHOLDS, ClassProbability, Prediction, ThresholdRequest, Thresholds
from sightline.metrics import sigmoid
from sightline.tasks.augmented_objective import AugmentedObjective, drop_disabled
from sightline.tasks.protocol import EvaluationInputs, LossGradient, Score, Task, check_targets, register_task
from sightline.training.optimizers import make_loss

FOCAL_GAMMA, FOCAL_ALPHA = 2.0, 0.25  # Lin et al., 2017, arXiv:1708.02002
ASYMMETRIC_GAMMA, ASYMMETRIC_MARGIN = 4.0, 0.05  # Ben-Baruch et al., 2021, arXiv:2009.14119; for positives, gamma is 0
TIE_MARGIN = 1e-4  # distance from one half at which rounding to float32 may reverse a decision
TINY, EPSILON = 1e-30, 2.0**-24  # distances of a float32 probability from 0 and 1
MIN_IMAGES = 50  # validation images; fewer do not determine a temperature


@dataclass(frozen=True, slots=True)
class LabelSetObjective(AugmentedObjective):
    """Binary cross-entropy, focal or asymmetric loss of each class, as in ``train.loss``; the mean over the classes.

    `positive_weights` float32 [K] multiply the loss of the images that have a class; None for 1.
    """

    positive_weights: NDArray[np.float32] | None

    def compute_targets(
        self,
        rows: NDArray[np.int64],
        epoch: int,  # noqa: ARG002  # labels are the same in every epoch
        params: NDArray[np.float32] | None,
    ) -> NDArray[np.float32]:
        """Return how far each class applies, float32 [n, K]; mixed images have fractions of their classes."""
        smoothing = np.float32(self.config.train.label_smoothing)
        targets = self.train.labels[rows].astype(np.float32) * (1 - smoothing) + smoothing / 2
        return self.mix_targets(targets, params)

    def build_loss(self) -> Any:
        """Return the loss of ``train.loss``; ``binary`` is the same as ``cross_entropy`` here.

        The asymmetric loss leaves out a class that an image lacks if its probability is below a margin, and weighs it
        less the lower the probability is, since most images lack most classes.
        """
        ops, kind = backend.keras().ops, self.config.train.loss
        weights = 1.0 if self.positive_weights is None else self.positive_weights

        def binary_loss(targets: Any, logits: Any) -> Any:
            positive, negative = ops.softplus(-logits) * weights, ops.softplus(logits)
            if kind == "focal":
                p = ops.sigmoid(logits)
                positive = FOCAL_ALPHA * (1 - p) ** FOCAL_GAMMA * positive
                negative = (1 - FOCAL_ALPHA) * p**FOCAL_GAMMA * negative
            elif kind == "asymmetric":
                p = ops.relu(ops.sigmoid(logits) - ASYMMETRIC_MARGIN)
                negative = -(p**ASYMMETRIC_GAMMA) * ops.log(1 - p)
            return ops.mean(targets * positive + (1 - targets) * negative, axis=-1)

        return make_loss(binary_loss, "binary_cross_entropy")

    def build_accuracy(self) -> Any:
        """Return the fraction of the classes that are decided correctly at a probability of one half."""
        ops = backend.keras().ops

        def accuracy(targets: Any, logits: Any) -> Any:
            return ops.mean(ops.cast(ops.equal(targets >= 0.5, logits >= 0), "float32"), axis=-1)

        return backend.keras().metrics.MeanMetricWrapper(accuracy, name="categorical_accuracy")


@register_task("multi_label")
class MultiLabel(Task):
    """Any number of classes for each image."""

    targets = LABEL_SETS
    activation = "sigmoid"
    supports_folds = True
    supports_ood = True
    image_score = "example_f1"
    sections = ("label-metrics", "label-classes", "label-abstention", "label-errors", "label-issues")

    def check_settings(self, config: RunConfig) -> None:
        """Raise `UsageError` for a head or thresholds of another task."""
        if config.model.head != "softmax":
            raise UsageError(
                f"model.head is {config.model.head}, which is for single-label classification: leave it out, since "
                "model.task=multi_label has one sigmoid for each class."
            )
        if config.train.loss == "dice":
            raise UsageError("train.loss is dice, which is for masks (model.task=segmentation): choose another.")
        if config.evaluation.positive_class:
            raise UsageError(
                "evaluation.positive_class is for single-label classification with two classes: leave it out."
            )
        targets = config.evaluation
        if targets.coverage is not None:
            raise UsageError(
                "evaluation.coverage is for single-label classification: set evaluation.target_fnr for label sets."
            )
        if targets.target_precision is not None and targets.target_recall is not None:
            raise UsageError(
                "A class has one threshold, for evaluation.target_precision or for evaluation.target_recall: leave one "
                "of them out."
            )
        check_targets(targets)

    def check_request(self, request: ThresholdRequest, classes: Sequence[str]) -> None:
        """Raise `UsageError` for targets of other tasks."""
        del classes
        label_thresholds.check_request(request)

    def make_objective(
        self,
        config: RunConfig,
        train: Subset,
        num_classes: int,  # noqa: ARG002  # labels have a column for each class
        augmentation: AugmentConfig | None,
    ) -> LabelSetObjective:
        """Return the loss of ``train.loss`` against the classes of each image."""
        weights = _weigh_positives(train.labels, config.train.class_weights)
        return LabelSetObjective(config, train, drop_disabled(augmentation), weights)

    def score(self, logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> Score:
        """Return the mean binary cross-entropy, and the fraction of decisions at one half that are right."""
        gradient = self.differentiate_loss(logits.astype(np.float64), labels)
        return Score(float(gradient.losses.mean()), float(gradient.correct.mean()))

    def differentiate_loss(self, logits: NDArray[np.float64], labels: NDArray[np.uint8]) -> LossGradient:
        """Return the binary cross-entropy of each class."""
        losses = np.logaddexp(0, logits) - labels * logits
        residuals = sigmoid(logits) - labels
        return LossGradient(losses, residuals, ((logits >= 0) == labels.astype(bool)).mean(1))

    def compute_weights(
        self,
        labels: NDArray[np.uint8],
        num_classes: int,  # noqa: ARG002  # labels have a column for each class
        mode: str,
    ) -> NDArray[np.float32] | None:
        """Return the weight of each image for each class, float32 [N, K]: higher for images with a rare class."""
        weights = _weigh_positives(labels, mode)
        return None if weights is None else np.where(labels.astype(bool), weights, np.float32(1)).astype(np.float32)

    def activate(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the sigmoid."""
        return sigmoid(logits.astype(np.float64)).astype(np.float32)

    def deactivate(self, probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logit, at most 16.6: the next probability below 1."""
        p = np.clip(probabilities.astype(np.float64), TINY, 1 - EPSILON)
        return (np.log(p) - np.log1p(-p)).astype(np.float32)

    def score_images(
        self, classes: tuple[str, ...], outputs: ModelOutputs, thresholds: Thresholds | None
    ) -> NDArray[np.float64]:
        """Return the F1 of the classes of each image, at their thresholds.

        The fraction of correct decisions would hide a loss: for an image with 3 of 80 classes, it is 0.96 for a model
        that never predicts any. The average precision of an image does not count false alarms if the image has no
        class.
        """
        predicted = outputs.outputs.probabilities >= list_thresholds(thresholds, classes)
        return compute_example_f1(predicted, outputs.labels.astype(bool))

    def fit_temperature(self, logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> float | None:
        """Return the temperature of least binary cross-entropy; None if the images do not determine it."""
        if len(labels) < MIN_IMAGES:
            return None
        z = logits.astype(np.float64)
        value = calibration.find_temperature(lambda inverse: float((z * (sigmoid(inverse * z) - labels)).mean()))
        return None if calibration.is_at_bound(value) else value

    def fit_thresholds(
        self,
        classes: tuple[str, ...],
        outputs: ModelOutputs,
        request: ThresholdRequest = NO_THRESHOLDS,
        old: Thresholds | None = None,
    ) -> Thresholds:
        """Return a threshold of each class, for the highest F1 or the requested targets, and one for OOD images."""
        thresholds = label_thresholds.fit_thresholds(
            classes, outputs.outputs.probabilities, outputs.labels.astype(bool), request, old
        )
        return ood.fit_detection(thresholds, outputs, "joint_energy")

    def compute_energy(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the joint energy of the classes."""
        return compute_joint_energy(logits)

    @staticmethod
    def interpret(
        path: str,
        probabilities: NDArray[np.float32],
        classes: tuple[str, ...],
        *,
        top: int,
        thresholds: Thresholds | None,
        ood_score: float | None,
    ) -> Prediction:
        """Return the classes that reach their thresholds, the most probable first.

        The model abstains if the out-of-distribution score exceeds its limit.
        """
        order = np.argsort(-probabilities, kind="stable")

        def name(chosen: NDArray[np.bool_]) -> tuple[str, ...]:
            return tuple(classes[i] for i in order if chosen[i])

        reached, limits = probabilities >= list_thresholds(thresholds, classes), list_limits(thresholds, classes)
        set_threshold = None if thresholds is None else thresholds.set_threshold
        labels, decision = name(reached), None
        if thresholds is not None and thresholds.decides and ood_score is not None:
            decision = decisions.decide_labels(ood_score, thresholds)
        return Prediction(
            path,
            join_classes(labels),
            float(probabilities[reached].min()) if labels else None,
            tuple(ClassProbability(classes[i], float(probabilities[i])) for i in order[:top]),
            decision=decision,
            labels=labels,
            undecided=None if limits is None else name(~reached & (probabilities > limits)),
            label_set=None if set_threshold is None else name(probabilities >= np.float64(set_threshold)),
        )

    def compare(
        self,
        first: NDArray[np.floating[Any]],
        second: NDArray[np.floating[Any]],
        labels: NDArray[np.uint8] | None = None,
        size: int = 0,
    ) -> Parity:
        """Compare the probabilities, and the decisions at one half except those that rounding may reverse."""
        differences = np.abs(first.astype(np.float64) - second)
        clear = np.abs(first.astype(np.float64) - 0.5) > TIE_MARGIN
        agrees = ((first >= 0.5) == (second >= 0.5))[clear]
        change = None
        if labels is not None and len(labels):
            true = labels.astype(bool)
            change = float(((second >= 0.5) == true).mean() - ((first >= 0.5) == true).mean())
        return Parity(
            len(first), float(differences.max(initial=0)), float(differences.mean()) if differences.size else 0.0,
            float(agrees.mean()) if len(agrees) else 1.0, change, None, size,
        )  # fmt: skip

    def evaluate(self, inputs: EvaluationInputs) -> MultiLabelReport:
        """Return average precision, F1 and calibration of each class and of all, and the images to look at."""
        outputs, thresholds, request = inputs.outputs.outputs, inputs.thresholds, inputs.threshold_request
        unreached = list_unreached(thresholds) if request and thresholds is not None else ()
        report = multi_label.build_report(
            inputs.classes, outputs.probabilities, inputs.labeled, inputs.split, thresholds, unreached,
            conservative=request.conservative,
        )  # fmt: skip
        held_out, note = inputs.validation_outputs, ""
        has_target = request.target_precision is not None or request.recall is not None
        if has_target and held_out is not None and (num_groups := count_groups(held_out.groups)) is not None:
            note = selective.explain_groups(len(held_out.labels), num_groups)
        return replace(report, energies=compute_joint_energy(outputs.logits), note=note)


def _weigh_positives(labels: NDArray[Any], mode: str) -> NDArray[np.float32] | None:
    """Return how much more an image with each class counts than one without it, float32 [K]; None for equal weights."""
    if mode == "none":
        return None
    positives = labels.sum(0, dtype=np.int64)
    ratios: NDArray[np.float32] = (np.maximum(len(labels) - positives, 1) / np.maximum(positives, 1)).astype(np.float32)
    return ratios
