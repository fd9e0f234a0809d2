"""The protocol of a task, and the registry of all tasks.

Training, inference, evaluation and reports use a task only through this protocol. The tasks themselves are in the other
modules of this package, which is in a higher layer: the registry imports them by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from sightline.callbacks import Progress, no_progress
from sightline.config import AugmentConfig, EvaluationConfig, RunConfig
from sightline.data.targets import Targets
from sightline.data.types import LabeledSubset, Subset
from sightline.errors import DataError, UsageError
from sightline.inference.decisions import Interpreter
from sightline.inference.parity import Parity
from sightline.inference.predictor import ModelOutputs, Predictor
from sightline.inference.results import NO_THRESHOLDS, ThresholdRequest, Thresholds
from sightline.inference.runner import predict_outputs
from sightline.models.entry import Activation
from sightline.plugins import Registry

BUILT_IN = ("single_label", "hierarchical", "ordinal", "multi_label", "segmentation")
"""The tasks of this package, each in the module of the same name."""


class Objective(Protocol):
    """The objective that a training step minimizes for the images of a subset.

    A step passes the images, augmented, to the network, and its logits float32 [n, K] with the targets float32 [n, T]
    and the sample weights float32 [n] to the loss.
    """

    @property
    def augmentation(self) -> AugmentConfig | None:
        """The augmentation of the images, if any."""

    def sample_params(self, epoch: int) -> NDArray[np.float32]:
        """Return the augmentation parameters of each image in an epoch (1-based): float32 [N, D].

        It is called only with an `augmentation`.
        """

    def compute_targets(
        self, rows: NDArray[np.int64], epoch: int, params: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """Return the targets of a batch, float32 [n, T]: the images at `rows` int64 [n], augmented with `params`."""

    def build_loss(self) -> Any:
        """Return the Keras loss of logits against targets."""

    def build_accuracy(self) -> Any:
        """Return the Keras metric of logits against targets, named ``categorical_accuracy``.

        It is a `keras.Metric` whose variables exist: a name or a function makes TensorFlow trace the first step twice.
        """


class Score(NamedTuple):
    """The `loss`, the `accuracy` and, for masks, the `mean_iou` of logits, as recorded in the history of a run."""

    loss: float
    accuracy: float
    mean_iou: float | None = None


class LossGradient(NamedTuple):
    """The loss of n scores and its gradient.

    `losses` are float64 [n, 1], or [n, K] for a loss that is a sum over the classes; `residuals` float64 [n, U] are
    their derivatives with respect to the scores, and `correct` float64 [n] is how far each image counts as classified
    correctly.
    """

    losses: NDArray[np.float64]
    residuals: NDArray[np.float64]
    correct: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class EvaluationInputs:
    """The inputs of an evaluation: the images `labeled`, the `outputs` for them, and those for validation images.

    `split` is the name of the evaluated split, `validation_split` that of the validation images: ``out-of-fold`` with
    folds. `thresholds` are those of the model, fitted for `threshold_request` if it requests any.
    """

    classes: tuple[str, ...]
    outputs: ModelOutputs
    labeled: LabeledSubset
    split: str
    validation_outputs: ModelOutputs | None
    thresholds: Thresholds | None = None
    threshold_request: ThresholdRequest = NO_THRESHOLDS
    validation_split: str = "validation"

    @property
    def are_fitted(self) -> bool:
        """Whether the thresholds were fitted on the evaluated images."""
        return self.validation_outputs is self.outputs


class Task(ABC):
    """What a network learns from the label of an image.

    N images have logits float32 [N, K] for K classes, and targets as `targets` encodes them, here called labels.
    """

    name: str
    targets: ClassVar[Targets]
    """How labels are read and encoded."""
    activation: ClassVar[Activation]
    """How the network turns logits into probabilities."""
    sections: ClassVar[tuple[str, ...]]
    """The sections of a run's report that depend on the task, by the names in its template."""
    supports_folds: ClassVar[bool] = False
    """Whether `train --folds` can train it; this requires `deactivate`, except for masks."""
    supports_ood: ClassVar[bool] = False
    """Whether `evaluate --ood` can evaluate it; this requires `compute_energy`."""
    has_calibrated_loss: ClassVar[bool] = False
    """Whether `compute_calibrated_loss`, which can compare epochs, is defined."""
    image_score: ClassVar[str] = "accuracy"
    """The metric that is the mean of `score_images`, which a compressed model must not reduce."""
    unsupported_methods: ClassVar[Mapping[str, str]] = {}
    """The methods of `compress` that cannot be used, each with the reason as a clause."""

    def check_settings(self, config: RunConfig) -> None:
        """Raise `UsageError` for settings that do not apply to the task; by default, all apply."""
        del config

    def check_request(self, request: ThresholdRequest, classes: Sequence[str]) -> None:
        """Raise `UsageError` for thresholds that an evaluation cannot fit; by default, it can fit all."""
        del request, classes

    @abstractmethod
    def make_objective(
        self, config: RunConfig, train: Subset, num_classes: int, augmentation: AugmentConfig | None
    ) -> Objective:
        """Return the objective of a training step for the labels of `train`; `augmentation` changes the images."""

    @abstractmethod
    def score(self, logits: NDArray[np.float32], labels: NDArray[Any]) -> Score:
        """Return the loss and the accuracy of N logits; NaN if a logit is NaN."""

    def compute_calibrated_loss(self, logits: NDArray[np.float32], labels: NDArray[Any]) -> float:
        """Return the loss of N logits at the temperature at which it is lowest; by default not possible.

        Unlike the loss, it does not rise with overconfidence, which the temperature of the finished model corrects.
        """
        del logits, labels
        raise NotImplementedError(f"The task {self.name} has no calibrated loss.")

    def score_batches(self, batches: Iterable[tuple[NDArray[np.float32], NDArray[Any]]]) -> Score:
        """Return the score of logits and their labels, in one or more batches; by default of all together."""
        logits, labels = (np.concatenate(values) for values in zip(*batches, strict=True))
        return self.score(logits, labels)

    def count_units(self, num_classes: int) -> int:
        """Return the number U of scores that the last dense layer computes for K classes; by default K: the logits."""
        return num_classes

    def link_scores(self, scores: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Return the logits float32 [N, K] of scores [N, U], as the network computes them; by default the same."""
        return np.asarray(scores, np.float32)

    @abstractmethod
    def differentiate_loss(self, scores: NDArray[np.float64], labels: NDArray[Any]) -> LossGradient:
        """Return the loss of n scores [n, U] and its gradient, which are used to solve a linear head."""

    @abstractmethod
    def compute_weights(self, labels: NDArray[Any], num_classes: int, mode: str) -> NDArray[np.float32] | None:
        """Return the weight of each loss of `differentiate_loss` under ``train.class_weights``; None if equal."""

    @abstractmethod
    def activate(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the probabilities of logits, as the network computes them: float32 [N, K]."""

    def deactivate(self, probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits that have these probabilities, float32 [N, K]; by default not possible."""
        del probabilities
        raise NotImplementedError(f"The task {self.name} does not support folds.")

    def compute_energy(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return a score of logits [N, K] that is higher for out-of-distribution images; by default not possible."""
        del logits
        raise NotImplementedError(f"The task {self.name} does not detect out-of-distribution images.")

    def collect_outputs(
        self, predictor: Predictor, samples: Subset, progress: Progress = no_progress, task: str = "evaluating"
    ) -> ModelOutputs:
        """Return the outputs of `predictor` for all `samples`, in the form that `evaluate` and `fit_thresholds` expect.

        Raises `DataError` if there are no images.
        """
        if not len(samples):
            raise DataError("There are no images to evaluate the model on.")
        return ModelOutputs(predict_outputs(predictor, samples, task=task, progress=progress), samples.labels)

    @abstractmethod
    def score_images(
        self, classes: tuple[str, ...], outputs: ModelOutputs, thresholds: Thresholds | None
    ) -> NDArray[np.bool_] | NDArray[np.float64]:
        """Return how correct the model's decision by `thresholds` is for each image, [N].

        Right or wrong, bool; or a score in [0, 1], float64, NaN if the label gives no information. Two models are
        compared by McNemar's test, or by the mean difference of their scores.
        """

    @abstractmethod
    def fit_temperature(self, logits: NDArray[np.float32], labels: NDArray[Any]) -> float | None:
        """Return the temperature that calibrates at least one logit; None if the images do not determine it."""

    def fit_thresholds(
        self,
        classes: tuple[str, ...],
        outputs: ModelOutputs,
        request: ThresholdRequest = NO_THRESHOLDS,
        old: Thresholds | None = None,
    ) -> Thresholds | None:
        """Return the thresholds for `request`, fitted on validation images; by default `old`.

        Thresholds that are not requested stay as in `old`. Without a request, the thresholds are those that every model
        has.
        """
        del classes, outputs, request
        return old

    @property
    @abstractmethod
    def interpret(self) -> Interpreter:
        """The function that turns the outputs for one image into its prediction; a method may define it."""

    @abstractmethod
    def compare(
        self,
        first: NDArray[np.floating[Any]],
        second: NDArray[np.floating[Any]],
        labels: NDArray[Any] | None = None,
        size: int = 0,
    ) -> Parity:
        """Compare the probabilities of two forms of a model; see `inference.parity.compare_probabilities`."""

    def compare_batches(
        self,
        batches: Iterable[tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]], NDArray[Any] | None]],
        size: int = 0,
    ) -> Parity:
        """Compare the probabilities of two forms, with the labels, in one or more batches; by default all together."""
        first, second, labels = zip(*batches, strict=True)
        known = [label for label in labels if label is not None]
        return self.compare(
            np.concatenate(first), np.concatenate(second), np.concatenate(known) if known else None, size
        )

    @abstractmethod
    def evaluate(self, inputs: EvaluationInputs) -> Any:
        """Return the evaluation of a model's outputs; see `evaluation.report.build_report`."""


def check_targets(config: EvaluationConfig, *, are_masks: bool = False) -> None:
    """Raise `UsageError` for a target of ``evaluation`` that is 0 or 1, which no images can show to be reached.

    Only masks have a target for the IoU of an image.
    """
    if config.min_iou is not None and not are_masks:
        raise UsageError("evaluation.min_iou is for masks: leave it out, or set model.task=segmentation.")
    for name in ("target_precision", "coverage", "target_recall", "target_fnr", "min_iou"):
        if (value := getattr(config, name)) is not None and not 0 < value < 1:
            raise UsageError(f"evaluation.{name} must be between 0 and 1, e.g. 0.9; got {value:g}.")


TASKS: Registry[Task] = Registry("task")
T = TypeVar("T", bound=type[Task])


def register_task(name: str) -> Callable[[T], T]:
    """Register the decorated subclass of `Task`, which ``model.task`` then names.

    See [Extending](extending.md).

    Args:
        name: The name of the task.

    Returns:
        A decorator, which returns the class unchanged.

    Raises:
        UsageError: If another task has this name.
    """

    def make_task(task: T) -> Task:
        TASKS.check_subclass(task, Task)
        task.name = name
        return task()

    return TASKS.make_decorator(name, make_task)


def find_task(name: str) -> Task:
    """Return the task of a name; raises `UsageError`, with a suggestion, if there is none."""
    for built_in in (name,) if name in BUILT_IN else BUILT_IN:  # an unknown name may be meant for any of them
        import_module(f"sightline.tasks.{built_in}")
    return TASKS.find(name)
