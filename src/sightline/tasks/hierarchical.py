"""Hierarchical classification: each image belongs to one class, and the classes are the leaves of a tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline.config import AugmentConfig, RunConfig
from sightline.data.targets import CLASS_PATHS
from sightline.data.types import Subset
from sightline.errors import UsageError
from sightline.evaluation import hierarchy
from sightline.evaluation.hierarchy import HierarchyReport
from sightline.inference import decisions
from sightline.inference.predictor import ModelOutputs
from sightline.inference.results import NO_THRESHOLDS, ThresholdRequest, Thresholds
from sightline.tasks.augmented_objective import drop_disabled
from sightline.tasks.protocol import EvaluationInputs, LossGradient, register_task
from sightline.tasks.single_label import Classification, SingleLabel
from sightline.training.optimizers import compute_class_weights, make_loss

TINY_FLOAT = 1e-12  # added to probabilities, so that those of a node's classes never sum to zero


@dataclass(frozen=True, slots=True)
class TreeObjective(Classification):
    """The loss where an image may be labeled with a parent class: it trains the levels down to that class.

    Such an image has one of the classes below its node, and which one is not known. Its loss is minus the logarithm of
    their summed probability, whose gradient equals that of soft labels: the probabilities that the network gives these
    classes, scaled to sum to 1 (Grandvalet, 2002). So every loss, label smoothing, class weights and mixing of images
    apply to it as well.

    `members` bool [I, K] are the classes below each node, `columns` int64 [N] the class of each image, or K or more for
    a node; targets are float32 [n, K + I].
    """

    members: NDArray[np.bool_]
    columns: NDArray[np.int64]

    def compute_targets(
        self,
        rows: NDArray[np.int64],
        epoch: int,  # noqa: ARG002  # labels are the same in every epoch
        params: NDArray[np.float32] | None,
    ) -> NDArray[np.float32]:
        """Return soft labels of the classes and the nodes, float32 [n, K + I]; smoothing is over the classes."""
        smoothing, columns = self.config.train.label_smoothing, self.columns[rows]
        soft_labels = np.zeros((len(rows), self.num_classes + len(self.members)), np.float32)
        soft_labels[:, : self.num_classes] = smoothing / self.num_classes
        soft_labels[np.arange(len(rows)), columns] += 1 - smoothing
        if self.class_weights is not None:
            soft_labels *= self.class_weights[columns, None]
        return self.mix_targets(soft_labels, params)

    def build_loss(self) -> Any:
        """Return the loss of ``train.loss``; cross-entropy of a node is that of the sum of its classes."""
        ops, loss = backend.keras().ops, Classification.build_loss(self)

        def tree_loss(targets: Any, logits: Any) -> Any:
            soft_labels, sums = self._complete(targets, logits)
            losses = loss.call(soft_labels, logits)
            if self.config.train.loss != "cross_entropy":
                return losses
            of_nodes = soft_labels - targets[:, : self.num_classes]
            logs = ops.stop_gradient(ops.log_softmax(logits, axis=-1))
            entropy = ops.sum(targets[:, self.num_classes :] * ops.log(sums), -1) - ops.sum(of_nodes * logs, -1)
            return losses - entropy

        return make_loss(tree_loss, self.config.train.loss)

    def build_accuracy(self) -> Any:
        """Return the fraction of images whose most probable class is the true one, or below the node."""
        ops = backend.keras().ops

        def accuracy(targets: Any, logits: Any) -> Any:
            soft_labels, _ = self._complete(targets, logits)
            return ops.cast(ops.equal(ops.argmax(soft_labels, -1), ops.argmax(logits, -1)), "float32")

        return backend.keras().metrics.MeanMetricWrapper(accuracy, name="categorical_accuracy")

    def _complete(self, targets: Any, logits: Any) -> tuple[Any, Any]:
        """Return soft labels of the classes alone [n, K], and the summed probability of each node [n, I]."""
        ops, members = backend.keras().ops, self.members.astype(np.float32)
        p = ops.stop_gradient(ops.softmax(ops.cast(logits, "float32"), axis=-1)) + TINY_FLOAT
        sums = ops.matmul(p, members.T)
        of_nodes = p * ops.matmul(targets[:, self.num_classes :] / sums, members)
        return targets[:, : self.num_classes] + of_nodes, sums


@register_task("hierarchical")
class Hierarchical(SingleLabel):
    """One class for each image, named by its path in a tree.

    The network is that of single-label classification, with a softmax over the leaves. The probability of a parent
    class is the sum over its leaves.
    """

    targets = CLASS_PATHS
    sections = ("levels", *SingleLabel.sections)
    interpret = staticmethod(decisions.predict_in_tree)

    def check_settings(self, config: RunConfig) -> None:
        """Raise `UsageError` for settings of other tasks, and for targets that do not apply to a tree."""
        super().check_settings(config)
        if config.evaluation.coverage is not None:
            raise UsageError(
                "evaluation.coverage is for single-label classification: a hierarchical model predicts a parent "
                "class instead of a set; set evaluation.target_precision."
            )
        if config.evaluation.positive_class:
            raise UsageError("evaluation.positive_class is for single-label classification: leave it out.")

    def check_request(self, request: ThresholdRequest, classes: Sequence[str]) -> None:
        """Raise `UsageError` for targets that do not apply to a tree, or are outside (0, 1)."""
        if request.coverage is not None or request.rates or request.positive:
            raise UsageError(
                "--coverage, --positive, --target-sensitivity and --target-specificity are for single-label "
                "classification: a hierarchical model has --target-precision."
            )
        super().check_request(request, classes)

    def make_objective(
        self, config: RunConfig, train: Subset, num_classes: int, augmentation: AugmentConfig | None
    ) -> Classification:
        """Return the loss of ``train.loss`` against the classes, or against nodes of the tree, see `TreeObjective`."""
        has_class = np.ones(len(train), bool) if train.labels.ndim == 1 else train.labels.sum(1) == 1
        if has_class.all():
            labels = train.labels if train.labels.ndim == 1 else train.labels.argmax(1).astype(np.int32)
            return super().make_objective(config, replace(train, labels=labels), num_classes, augmentation)
        members, nodes = np.unique(train.labels[~has_class], axis=0, return_inverse=True)
        columns = train.labels.argmax(1).astype(np.int64)
        columns[~has_class] = num_classes + nodes.reshape(-1)
        weights = compute_class_weights(columns[has_class], num_classes, config.train.class_weights)
        if weights is not None:
            weights = np.concatenate([weights, members @ weights / members.sum(1)]).astype(np.float32)
        return TreeObjective(
            config, train, drop_disabled(augmentation), num_classes, weights, members.astype(bool), columns
        )

    def differentiate_loss(self, logits: NDArray[np.float64], labels: NDArray[Any]) -> LossGradient:
        """Return the cross-entropy of the softmax, summed over the classes that `labels` uint8 [n, K] leave possible.

        Labels int32 [n] are of one class each.
        """
        if labels.ndim == 1:
            return super().differentiate_loss(logits, labels)
        from scipy.special import logsumexp, softmax  # comes with scikit-learn

        of_all, of_possible = softmax(logits, 1), softmax(np.where(labels, logits, -np.inf), 1)
        losses = logsumexp(logits, 1, keepdims=True) - logsumexp(np.where(labels, logits, -np.inf), 1, keepdims=True)
        correct = np.take_along_axis(labels, logits.argmax(1)[:, None], 1)[:, 0]
        return LossGradient(losses, of_all - of_possible, correct.astype(np.float64))

    def compute_weights(self, labels: NDArray[Any], num_classes: int, mode: str) -> NDArray[np.float32] | None:
        """Return the weight of each image's class, or the mean over its possible classes: float32 [N, 1]."""
        if labels.ndim == 1:
            return super().compute_weights(labels, num_classes, mode)
        sizes = labels.sum(1, keepdims=True)
        weights = compute_class_weights(labels[sizes[:, 0] == 1].argmax(1), num_classes, mode)
        return None if weights is None else (labels @ weights[:, None] / sizes).astype(np.float32)

    def fit_thresholds(
        self,
        classes: tuple[str, ...],
        outputs: ModelOutputs,
        request: ThresholdRequest = NO_THRESHOLDS,
        old: Thresholds | None = None,
    ) -> Thresholds | None:
        """Return the threshold of nodes for the target precision, see `evaluation.hierarchy.choose_threshold`."""
        return hierarchy.fit_thresholds(classes, outputs, request, old) if request else old

    def evaluate(self, inputs: EvaluationInputs) -> HierarchyReport:
        """Return a single-label evaluation, with the accuracy at each level and the precision at each depth."""
        return hierarchy.build_report(inputs)
