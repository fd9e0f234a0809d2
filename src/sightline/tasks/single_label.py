"""Single-label classification: each image belongs to one of several classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sightline import backend, metrics
from sightline.config import AugmentConfig, RunConfig
from sightline.data.targets import CLASS_TARGETS
from sightline.data.types import Subset
from sightline.errors import UsageError
from sightline.evaluation import calibration, report
from sightline.evaluation.report import EvaluationReport
from sightline.evaluation.results import EvaluationResult
from sightline.evaluation.scoring import compute_evaluation
from sightline.inference import decisions, parity
from sightline.inference.ood import compute_energy
from sightline.inference.parity import Parity
from sightline.inference.predictor import ModelOutputs
from sightline.inference.results import NO_THRESHOLDS, Nonconformity, ThresholdRequest, Thresholds
from sightline.models.entry import Activation
from sightline.tasks.augmented_objective import AugmentedObjective, drop_disabled
from sightline.tasks.protocol import EvaluationInputs, LossGradient, Score, Task, check_targets, register_task
from sightline.training.optimizers import build_loss, compute_class_weights, smooth_labels

TINY = 1e-30  # for the logarithm of a probability of zero


@dataclass(frozen=True, slots=True)
class Classification(AugmentedObjective):
    """The loss of ``train.loss`` against the labels of `train`, with smoothing, class weights and mixing of images."""

    num_classes: int
    class_weights: NDArray[np.float32] | None

    def compute_targets(
        self,
        rows: NDArray[np.int64],
        epoch: int,  # noqa: ARG002  # labels are the same in every epoch
        params: NDArray[np.float32] | None,
    ) -> NDArray[np.float32]:
        """Return soft labels, float32 [n, K]."""
        labels = self.train.labels[rows]
        soft_labels = smooth_labels(labels, self.num_classes, self.config.train.label_smoothing)
        if self.class_weights is not None:
            soft_labels *= self.class_weights[labels, None]  # the loss is linear in them; the accuracy is not weighted
        return self.mix_targets(soft_labels, params)

    def build_loss(self) -> Any:
        """Return the loss of ``train.loss``."""
        return build_loss(self.config.train)

    def build_accuracy(self) -> Any:
        """Return Keras' own metric."""
        return backend.keras().metrics.CategoricalAccuracy(name="categorical_accuracy")


@register_task("single_label")
class SingleLabel(Task):
    """One class for each image."""

    targets = CLASS_TARGETS
    activation: ClassVar[Activation] = "softmax"
    nonconformity: ClassVar[Nonconformity] = "lac"
    sections: ClassVar[tuple[str, ...]] = (
        "metrics", "confusion", "classes", "calibration", "detection", "operating-points", "abstention",
        "out-of-distribution", "slices", "errors", "label-issues",
    )  # fmt: skip
    supports_folds = True
    supports_ood = True
    has_calibrated_loss = True
    interpret = staticmethod(decisions.predict_class)
    compute_result: ClassVar[Callable[..., EvaluationResult]] = staticmethod(compute_evaluation)
    """The function that computes the metrics of an evaluation, with the parameters of `compute_evaluation`."""
    objective: ClassVar[type[Classification]] = Classification

    def check_settings(self, config: RunConfig) -> None:
        """Raise `UsageError` for settings of several labels per image, and for targets outside (0, 1)."""
        targets = config.evaluation
        if targets.target_recall is not None or targets.target_fnr is not None:
            name = "target_recall" if targets.target_fnr is None else "target_fnr"
            raise UsageError(
                f"evaluation.{name} is for several labels per image: use evaluation.target_precision or "
                "evaluation.coverage, or set model.task=multi_label."
            )
        check_targets(targets)
        several = {
            "train.loss=asymmetric": config.train.loss == "asymmetric",
            "augment.label_mixing=union": config.augment.label_mixing == "union",
        }
        for setting, applies in several.items():
            if applies:
                raise UsageError(
                    f"{setting} is for several labels per image: leave it out, or set model.task=multi_label."
                )
        if config.train.loss == "dice":
            raise UsageError("train.loss is dice, which is for masks (model.task=segmentation): choose another.")

    def check_request(self, request: ThresholdRequest, classes: Sequence[str]) -> None:
        """Raise `UsageError` if a target is outside (0, 1), or does not fit the classes."""
        report.check_request(request, classes)

    def make_objective(
        self, config: RunConfig, train: Subset, num_classes: int, augmentation: AugmentConfig | None
    ) -> Classification:
        """Return the loss of ``train.loss`` against the classes, weighted by ``train.class_weights``."""
        weights = compute_class_weights(train.labels, num_classes, config.train.class_weights)
        return self.objective(config, train, drop_disabled(augmentation), num_classes, weights)

    def score(self, logits: NDArray[np.float32], labels: NDArray[np.int32]) -> Score:
        """Return the mean cross-entropy, and the fraction of images whose most probable class is the true one."""
        accuracy = float(np.mean(logits.argmax(1) == labels))
        return Score(metrics.cross_entropy_from_logits(logits, labels), accuracy)

    def compute_calibrated_loss(self, logits: NDArray[np.float32], labels: NDArray[np.int32]) -> float:
        """Return the mean cross-entropy at the temperature at which it is lowest."""
        return calibration.fit_temperature(logits, labels).nll_after

    def differentiate_loss(self, logits: NDArray[np.float64], labels: NDArray[np.int32]) -> LossGradient:
        """Return the cross-entropy of the softmax."""
        shifted = logits - logits.max(1, keepdims=True)
        at_label = (np.arange(len(labels)), labels)
        residuals = np.exp(shifted)
        sums = residuals.sum(1, keepdims=True)
        losses = np.log(sums) - shifted[at_label][:, None]
        residuals /= sums
        residuals[at_label] -= 1
        return LossGradient(losses, residuals, (shifted.argmax(1) == labels).astype(np.float64))

    def compute_weights(self, labels: NDArray[np.int32], num_classes: int, mode: str) -> NDArray[np.float32] | None:
        """Return the weight of each image's class, float32 [N, 1]."""
        weights = compute_class_weights(labels, num_classes, mode)
        return None if weights is None else weights[labels, None]

    def activate(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the softmax."""
        return metrics.softmax(logits)

    def deactivate(self, probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logarithm: logits up to a constant, which changes no probability."""
        return np.asarray(np.log(np.maximum(probabilities, TINY)), np.float32)

    def score_images(
        self,
        classes: tuple[str, ...],  # noqa: ARG002  # the most probable class decides
        outputs: ModelOutputs,
        thresholds: Thresholds | None,  # noqa: ARG002  # abstaining is not an error
    ) -> NDArray[np.bool_]:
        """Return whether the most probable class of each image is the true one."""
        correct: NDArray[np.bool_] = np.equal(outputs.outputs.logits.argmax(1), outputs.labels)
        return correct

    def fit_temperature(self, logits: NDArray[np.float32], labels: NDArray[np.int32]) -> float | None:
        """Return the temperature of least cross-entropy; None if there are too few images or errors."""
        temperature = calibration.fit_temperature(logits, labels)
        return None if temperature.note else temperature.value

    def compute_energy(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the energy."""
        return compute_energy(logits)

    def fit_thresholds(
        self,
        classes: tuple[str, ...],
        outputs: ModelOutputs,
        request: ThresholdRequest = NO_THRESHOLDS,
        old: Thresholds | None = None,
    ) -> Thresholds | None:
        """Return the requested thresholds, see `evaluation.report.fit_thresholds`."""
        return report.fit_thresholds(outputs, request, old, classes, self.nonconformity)[0] if request else old

    def compare(
        self,
        first: NDArray[np.floating[Any]],
        second: NDArray[np.floating[Any]],
        labels: NDArray[np.int32] | None = None,
        size: int = 0,
    ) -> Parity:
        """Compare the probabilities and the most probable classes."""
        return parity.compare_probabilities(first, second, labels, size)

    def evaluate(self, inputs: EvaluationInputs) -> EvaluationReport:
        """Return accuracy, calibration, selective prediction, errors and slices."""
        return report.build_report(inputs, self.compute_result)
