"""Distillation (Hinton et al., 2015, arXiv:1503.02531) through `keras.distillation`, from logits computed once.

`keras.distillation.Distiller` runs its teacher at every step. Here the teacher's logits are cached and passed as an
additional input, and the distiller's teacher is an identity model on that input. Its losses are used unchanged, and a
step costs no more than the student's own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import _io, backend, metrics
from sightline._keras import training_steps
from sightline.callbacks import Callback, EpochRecord, Progress
from sightline.config import AugmentConfig, RunConfig, StageConfig
from sightline.data.loader import epoch_order, iterate_batches
from sightline.data.types import Subset
from sightline.distributed import devices
from sightline.errors import Interrupted
from sightline.models.build import Network
from sightline.seeding import derive_seed
from sightline.training import checkpoints, stages
from sightline.training.augment import pipeline
from sightline.training.divergence import LossLimit
from sightline.training.interrupt import catch_stop_signals
from sightline.training.loop import predict_logits
from sightline.training.optimizers import build_loss, build_optimizer, smooth_labels
from sightline.training.schedules import build_schedule

TEMPERATURE = 4.0
LABEL_WEIGHT = 0.3  # weight of the label loss; the rest is the weight of the distillation loss
VIEWS = 4  # augmented views of each image with cached teacher logits
SHIFT = 0.1  # used if the run has no augmentation: small enough to keep the content of any image
BATCH = 32


@dataclass(frozen=True, slots=True)
class TeacherLogits:
    """The teacher's cached logits of each augmented view of each training image.

    `logits` is float32 [V, N, K]. `params` float32 [V, N, D] are the sampled parameters of the augmentation
    `augmentation`. Student and teacher see the same views.
    """

    logits: NDArray[np.float32]
    params: NDArray[np.float32]
    augmentation: AugmentConfig


def compute_teacher_logits(
    model: Any, train: Subset, config: RunConfig, path: Path, progress: Progress
) -> TeacherLogits:
    """Compute the logits of `model` for `VIEWS` augmented views of all training images, or read them from `path`.

    The augmentation is that of the run without mixing of images, or a shift by up to `SHIFT` if it has none: a teacher
    that sees the same varied views as its student teaches better (Beyer et al., 2022, arXiv:2106.05237).
    """
    augmentation, views = pipeline.without_mixing(config.augment), VIEWS
    if not pipeline.is_enabled(augmentation):
        augmentation = replace(augmentation, translation=SHIFT)
    seed, size = derive_seed(config.seed, "lessons"), train.pixels.shape[1:3]
    params = np.stack([pipeline.sample_params(augmentation, len(train), size, seed, view) for view in range(views)])
    if path.is_file():
        logits = _read_logits(path)
        if logits is not None and logits.shape == (views, len(train), model.output["logits"].shape[-1]):
            return TeacherLogits(logits, params, augmentation)
    augmented_model = stages.add_augmentation(backend.keras().Model(model.input, model.output["logits"]), augmentation)
    logits = np.stack([_predict_view(augmented_model, train, params, view, views, progress) for view in range(views)])
    _io.write_atomic(path, lambda aside: _save_array(aside, logits))
    return TeacherLogits(logits, params, augmentation)


def _read_logits(path: Path) -> NDArray[np.float32] | None:
    """Return the logits in a file; None if it holds anything else and must be written again."""
    try:
        with _io.open_regular(path) as file:
            logits: Any = _io.load_array(file)
    except (OSError, ValueError):
        return None
    return logits if isinstance(logits, np.ndarray) and logits.dtype == np.float32 else None


def _save_array(path: Path, array: NDArray[np.float32]) -> None:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def _predict_view(
    model: Any, train: Subset, params: NDArray[np.float32], view: int, views: int, progress: Progress
) -> NDArray[np.float32]:
    logits = []
    for batch in iterate_batches(train, BATCH):
        logits.append(training_steps.predict_on_batch(model, [batch.pixels, params[view][batch.positions]]))
        progress("teacher logits", view * len(train) + sum(map(len, logits)), views * len(train))
    return np.concatenate(logits)


def distill(
    network: Network,
    teacher_logits: TeacherLogits,
    train: Subset,
    validation: Subset,
    config: RunConfig,
    callback: Callback,
) -> None:
    """Train `network` in place on labels and teacher logits, and restore the weights of the best epoch.

    Epochs, batch size, optimizer, rate and schedule are those of ``config.train``. Best is the highest accuracy on
    `validation`, then the lowest loss. Raises `Interrupted` and `DivergedError` as `training.loop.fit` does.
    """
    stages.freeze_layers(network, StageConfig("distillation"))
    logits_model = backend.keras().Model(network.model.input, network.logits)
    limit, size = LossLimit.from_network(network), devices.limit_batch_size(config.train.batch_size, len(train))
    steps = math.ceil(len(train) / size)
    rates = config.train.optimizer.learning_rate
    rate = build_schedule(config.train.schedule, rates, config.train.epochs * steps)
    learner = _build_distiller(logits_model, teacher_logits)
    learner.compile(
        build_optimizer(config.train.optimizer, rates), build_loss(config.train), metrics=["categorical_accuracy"]
    )
    best: tuple[float, float] | None = None
    arrays: checkpoints.Arrays = {}
    current_rate = 0.0
    callback.on_stage_begin("distillation", config.train.epochs, steps)
    with catch_stop_signals() as stop:
        for epoch in range(1, config.train.epochs + 1):
            started = time.perf_counter()
            order = np.resize(epoch_order(len(train), config.seed, epoch), steps * size)
            batch_metrics: list[tuple[float, float]] = []
            for batch in iterate_batches(train, size, order):
                if stop.requested:
                    raise Interrupted(f"Stopped in epoch {epoch} of a distillation; earlier candidates are kept.")
                learner.optimizer.learning_rate = current_rate = rate((epoch - 1) * steps + len(batch_metrics))
                targets = smooth_labels(batch.labels, teacher_logits.logits.shape[-1], config.train.label_smoothing)
                inputs = _batch_inputs(
                    teacher_logits, (epoch - 1) % len(teacher_logits.logits), batch.positions, batch.pixels
                )
                logs = training_steps.train_on_batch(learner, inputs, targets)
                batch_metrics.append((float(logs["loss"]), float(logs["categorical_accuracy"])))
                if limit.is_exceeded(batch_metrics[-1][0]):
                    raise limit.make_error(batch_metrics[-1][0], f"epoch {epoch} of a distillation", current_rate)
                mean = np.mean(batch_metrics, axis=0)
                speed = len(batch_metrics) * len(batch.labels) / (time.perf_counter() - started)
                callback.on_step_end(epoch, len(batch_metrics), float(mean[0]), float(mean[1]), speed)
            record = _epoch_record(epoch, batch_metrics, logits_model, validation, current_rate, started, len(train))
            callback.on_epoch_end(record)
            score = (record.val_accuracy or 0.0, -(record.val_loss or 0.0))
            if best is None or score > best:
                best, arrays = score, checkpoints.copy_variables(network.model)
    if arrays:
        checkpoints.restore_variables(network.model, arrays)


def _build_distiller(logits_model: Any, teacher_logits: TeacherLogits) -> Any:
    keras = backend.keras()
    inputs = [
        keras.Input(logits_model.input.shape[1:], dtype="uint8", name="pixels"),
        keras.Input(teacher_logits.params.shape[2:], dtype="float32", name="drawn"),
        keras.Input(teacher_logits.logits.shape[2:], dtype="float32", name="answers"),
    ]
    pixels = pipeline.apply(teacher_logits.augmentation, inputs[0], inputs[1])
    cached_logits = keras.layers.Identity(name="cached")(inputs[-1])
    # With the default, the name "kl_divergence", the loss would get raw logits (Keras 3.15): only an instance gets
    # probabilities and the factor of the squared temperature.
    distillation_loss = keras.distillation.LogitsDistillation(temperature=TEMPERATURE, loss=keras.losses.KLDivergence())
    return keras.distillation.Distiller(
        teacher=keras.Model(inputs, cached_logits),
        student=keras.Model(inputs, logits_model(pixels)),
        distillation_losses=distillation_loss,
        student_loss_weight=LABEL_WEIGHT,
    )


def _batch_inputs(
    teacher_logits: TeacherLogits, view: int, positions: NDArray[np.int64], pixels: NDArray[np.uint8]
) -> list[Any]:
    return [pixels, teacher_logits.params[view][positions], teacher_logits.logits[view][positions]]


def _epoch_record(
    epoch: int,
    batch_metrics: Sequence[tuple[float, float]],
    logits_model: Any,
    validation: Subset,
    rate: float,
    started: float,
    count: int,
) -> EpochRecord:
    seconds = time.perf_counter() - started
    value, accuracy = map(float, np.mean(batch_metrics, axis=0))
    logits = predict_logits(logits_model, validation, BATCH)
    held_out = metrics.cross_entropy_from_logits(logits, validation.labels)
    val_accuracy = float(np.mean(logits.argmax(1) == validation.labels))
    return EpochRecord(epoch, "distillation", value, accuracy, held_out, val_accuracy, rate, seconds, count / seconds)
