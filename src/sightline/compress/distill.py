"""Distillation (Hinton et al., 2015, arXiv:1503.02531) from teacher logits that are computed only once.

`training.loop` runs the training step with the teacher's logits as part of its targets, so a step costs no more than
training the student on labels. (`keras.distillation.Distiller` runs its teacher in every step, and its losses ignore
sample weights, so the padding of the last batch would count.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import _io, _packed, backend
from sightline._keras import training_steps
from sightline.callbacks import Progress
from sightline.config import AugmentConfig, RunConfig
from sightline.data.batches import iterate_batches
from sightline.data.types import Subset
from sightline.models.entry import Activation
from sightline.models.head import LOGITS
from sightline.seeding import derive_seed
from sightline.tasks.protocol import Objective, find_task
from sightline.training import stages
from sightline.training.augment import pipeline
from sightline.training.optimizers import make_loss

TEMPERATURE = 4.0
LABEL_WEIGHT = 0.3  # weight of the label loss; the rest is the weight of the divergence from the teacher
VIEWS = 4  # augmented views per image with cached teacher logits
SHIFT = 0.1  # fraction of the image, small enough to keep the content; used if the run has no augmentation
BATCH_SIZE = 32  # for the teacher


@dataclass(frozen=True, slots=True)
class TeacherLogits:
    """The teacher's cached logits for each augmented view of each training image.

    `logits` are float32 [V, N, K]; `params` float32 [V, N, D] are the sampled parameters of `augmentation`. Student and
    teacher see the same views.
    """

    logits: NDArray[np.float32]
    params: NDArray[np.float32]
    augmentation: AugmentConfig


def compute_teacher_logits(
    model: Any, train: Subset, config: RunConfig, path: Path, progress: Progress
) -> TeacherLogits:
    """Compute the logits of `model` for `VIEWS` augmented views of each training image, or read them from `path`.

    The augmentation is the run's without mixing of images, or a shift by up to `SHIFT` if it has none: a teacher that
    sees the same varied views as its student teaches better (Beyer et al., 2022, arXiv:2106.05237).
    """
    augmentation = pipeline.without_mixing(config.augment)
    if not pipeline.is_enabled(augmentation):
        augmentation = replace(augmentation, translation=SHIFT)
    seed, size = derive_seed(config.seed, "teacher views"), train.pixels.shape[1:3]
    params = np.stack([pipeline.sample_params(augmentation, len(train), size, seed, view) for view in range(VIEWS)])
    if path.is_file():
        logits = _read_logits(path)
        if logits is not None and logits.shape == (VIEWS, len(train), model.output[LOGITS].shape[-1]):
            return TeacherLogits(logits, params, augmentation)
    augmented_model = stages.add_augmentation(backend.keras().Model(model.input, model.output[LOGITS]), augmentation)
    logits = np.stack([_predict_view(augmented_model, train, params, view, progress) for view in range(VIEWS)])
    _io.write_atomic(path, lambda file: np.save(file, logits, allow_pickle=False))
    return TeacherLogits(logits, params, augmentation)


def _read_logits(path: Path) -> NDArray[np.float32] | None:
    """Return the logits in a file; None if the file is damaged and must be rewritten."""
    try:
        with _io.open_regular(path) as file:
            logits: Any = _packed.load_array(file)
    except (OSError, ValueError):
        return None
    is_valid = isinstance(logits, np.ndarray) and logits.dtype == np.float32 and np.isfinite(logits).all()
    return logits if is_valid else None


def _predict_view(
    model: Any, train: Subset, params: NDArray[np.float32], view: int, progress: Progress
) -> NDArray[np.float32]:
    logits = []
    for batch in iterate_batches(train, BATCH_SIZE):
        logits.append(training_steps.predict_on_batch(model, [batch.pixels, params[view][batch.positions]]))
        progress("teacher logits", view * len(train) + sum(map(len, logits)), VIEWS * len(train))
    return np.concatenate(logits)


@dataclass(frozen=True, slots=True)
class Distillation:
    """The objective of a student: the loss of the labels, and its divergence from the teacher's softened probabilities.

    Targets are float32 [n, T + K]: those of `labels`, then the teacher's logits for the same augmented images.
    `activation` is how logits become probabilities: with a softmax, the divergence is between distributions over the
    classes; with sigmoids, it is the mean of the divergences of each class.
    """

    teacher: TeacherLogits
    labels: Objective
    activation: Activation = "softmax"

    @classmethod
    def from_config(cls, config: RunConfig, train: Subset, teacher: TeacherLogits) -> Distillation:
        """Return the objective for the images of `train`; labels are encoded as in training without a teacher."""
        task, num_classes = find_task(config.model.task), teacher.logits.shape[-1]
        labels = task.make_objective(config, train, num_classes, teacher.augmentation)
        return cls(teacher, labels, task.activation)

    @property
    def augmentation(self) -> AugmentConfig | None:
        """The augmentation of the teacher's images."""
        return self.labels.augmentation

    def sample_params(self, epoch: int) -> NDArray[np.float32]:
        """Return the parameters of this epoch's view; epochs cycle through the views."""
        params: NDArray[np.float32] = self.teacher.params[self._view(epoch)]
        return params

    def compute_targets(
        self, rows: NDArray[np.int64], epoch: int, params: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """Return the targets of the labels and the teacher's logits, float32 [n, T + K]."""
        label_targets = self.labels.compute_targets(rows, epoch, params)
        return np.concatenate([label_targets, self.teacher.logits[self._view(epoch), rows]], axis=1)

    def build_loss(self) -> Any:
        """Return `LABEL_WEIGHT` times the label loss, plus the rest times the divergence at `TEMPERATURE`.

        The divergence is multiplied by the squared temperature, which keeps the size of its gradients.
        """
        label_loss, num_classes = self.labels.build_loss(), self._num_classes
        measure = _diverge_by_class if self.activation == "sigmoid" else _diverge

        def distillation_loss(targets: Any, logits: Any) -> Any:
            divergence = measure(targets[:, -num_classes:] / TEMPERATURE, logits / TEMPERATURE) * TEMPERATURE**2
            return LABEL_WEIGHT * label_loss.call(targets[:, :-num_classes], logits) + (1 - LABEL_WEIGHT) * divergence

        return make_loss(distillation_loss, "distillation")

    def build_accuracy(self) -> Any:
        """Return the accuracy on the labels."""
        keras, accuracy, num_classes = backend.keras(), self.labels.build_accuracy(), self._num_classes

        class LabelAccuracy(keras.metrics.Metric):  # type: ignore[name-defined]  # Keras is imported lazily
            def __init__(self) -> None:
                super().__init__(name="categorical_accuracy")
                self.accuracy = accuracy

            def update_state(self, targets: Any, logits: Any, sample_weight: Any = None) -> None:
                self.accuracy.update_state(targets[:, :-num_classes], logits, sample_weight)

            def result(self) -> Any:
                return self.accuracy.result()

            def reset_state(self) -> None:
                self.accuracy.reset_state()

        return LabelAccuracy()

    @property
    def _num_classes(self) -> int:
        return int(self.teacher.logits.shape[-1])

    def _view(self, epoch: int) -> int:
        return (epoch - 1) % len(self.teacher.logits)


def _diverge(teacher: Any, student: Any) -> Any:
    """Return the divergence [n] between the softmax of `teacher` and `student` logits [n, K]."""
    ops = backend.keras().ops
    teacher_log, student_log = ops.log_softmax(teacher, axis=-1), ops.log_softmax(student, axis=-1)
    return ops.sum(ops.exp(teacher_log) * (teacher_log - student_log), axis=-1)


def _diverge_by_class(teacher: Any, student: Any) -> Any:
    """Return the divergence [n] between sigmoids of `teacher` and `student` logits [n, K], averaged over classes."""
    ops = backend.keras().ops
    present = ops.sigmoid(teacher) * (ops.log_sigmoid(teacher) - ops.log_sigmoid(student))
    absent = ops.sigmoid(-teacher) * (ops.log_sigmoid(-teacher) - ops.log_sigmoid(-student))
    return ops.mean(present + absent, axis=-1)
