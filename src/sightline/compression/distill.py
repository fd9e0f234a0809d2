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

from sightline import backend, files, metrics
from sightline.config import AugmentConfig, RunConfig, StageConfig
from sightline.data.loader import batches, epoch_order
from sightline.errors import Interrupted
from sightline.models.build import Network
from sightline.randomness import derive
from sightline.records import EpochRecord, Progress, Samples
from sightline.training import augment, checkpoint, devices, stages
from sightline.training.divergence import Limit
from sightline.training.fit import predict_logits
from sightline.training.interrupt import listening
from sightline.training.optimizer import label_shares, loss, optimizer
from sightline.training.schedule import schedule
from sightline.watch import Watcher

TEMPERATURE = 4.0
LABELS = 0.3  # weight of the label loss; the rest is the weight of the distillation loss
VIEWS = 4  # augmented views of each image with cached teacher logits
SHIFT = 0.1  # used if the run has no augmentation: small enough to keep the content of any image
ROWS = 32


@dataclass(frozen=True, slots=True)
class Teacher:
    """The teacher's cached logits of each augmented view of each training image.

    `logits` is float32 [V, N, K]. `drawn` float32 [V, N, D] are the sampled parameters of the augmentation `augment`.
    Student and teacher see the same views.
    """

    logits: NDArray[np.float32]
    drawn: NDArray[np.float32]
    augment: AugmentConfig


def teacher(model: Any, train: Samples, config: RunConfig, path: Path, progress: Progress) -> Teacher:
    """Compute the logits of `model` for `VIEWS` augmented views of all training images, or read them from `path`.

    The augmentation is that of the run without mixing of images, or a shift by up to `SHIFT` if it has none: a teacher
    that sees the same varied views as its student teaches better (Beyer et al., 2022, arXiv:2106.05237).
    """
    changing, views = augment.unmixed(config.augment), VIEWS
    if not augment.changes(changing):
        changing = replace(changing, shift=SHIFT)
    seed, size = derive(config.seed, "lessons"), train.pixels.shape[1:3]
    drawn = np.stack([augment.draw(changing, len(train), size, seed, view) for view in range(views)])
    if path.is_file():
        logits = _kept(path)
        if logits is not None and logits.shape == (views, len(train), model.output["logits"].shape[-1]):
            return Teacher(logits, drawn, changing)
    asked = stages.with_augmentation(backend.keras().Model(model.input, model.output["logits"]), changing)
    logits = np.stack([_ask(asked, train, drawn, view, views, progress) for view in range(views)])
    files.write(path, lambda aside: _save(aside, logits))
    return Teacher(logits, drawn, changing)


def _kept(path: Path) -> NDArray[np.float32] | None:
    """Return the logits in a file; None if it holds anything else and must be written again."""
    try:
        with files.open_regular(path) as file:
            logits: Any = files.load_array(file)
    except (OSError, ValueError):
        return None
    return logits if isinstance(logits, np.ndarray) and logits.dtype == np.float32 else None


def _save(path: Path, array: NDArray[np.float32]) -> None:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def _ask(
    model: Any, train: Samples, drawn: NDArray[np.float32], view: int, views: int, progress: Progress
) -> NDArray[np.float32]:
    found = []
    for batch in batches(train, ROWS):
        found.append(model.predict_on_batch([batch.pixels, drawn[view][batch.positions]]))
        progress("teacher logits", view * len(train) + sum(map(len, found)), views * len(train))
    return np.concatenate(found)


def distill(
    network: Network, taught: Teacher, train: Samples, validation: Samples, config: RunConfig, watcher: Watcher
) -> None:
    """Train `network` in place on labels and teacher logits, and restore the weights of the best epoch.

    Epochs, batch size, optimizer, rate and schedule are those of ``config.train``. Best is the highest accuracy on
    `validation`, then the lowest loss. Raises `Interrupted` and `DivergedError` as `training.fit.fit` does.
    """
    stages.freeze(network, StageConfig("distillation"))
    judge = backend.keras().Model(network.model.input, network.logits)
    limit, size = Limit.of(network), devices.at_most(config.train.batch_size, len(train))
    steps = math.ceil(len(train) / size)
    rates = config.train.optimizer.learning_rate
    rate = schedule(config.train.schedule, rates, config.train.epochs * steps)
    learner = _learner(judge, taught)
    learner.compile(optimizer(config.train.optimizer, rates), loss(config.train), metrics=["categorical_accuracy"])
    best: tuple[float, float] | None = None
    arrays: checkpoint.Arrays = {}
    now = 0.0
    watcher.stage("distillation", config.train.epochs, steps)
    with listening() as stop:
        for epoch in range(1, config.train.epochs + 1):
            started = time.perf_counter()
            order = np.resize(epoch_order(len(train), config.seed, epoch), steps * size)
            seen: list[tuple[float, float]] = []
            for batch in batches(train, size, order):
                if stop.asked:
                    raise Interrupted(f"Stopped in epoch {epoch} of a distillation; earlier candidates are kept.")
                learner.optimizer.learning_rate = now = rate((epoch - 1) * steps + len(seen))
                shares = label_shares(batch.labels, taught.logits.shape[-1], config.train.label_smoothing)
                given = _inputs(taught, (epoch - 1) % len(taught.logits), batch.positions, batch.pixels)
                logs = learner.train_on_batch(given, shares, return_dict=True)
                seen.append((float(logs["loss"]), float(logs["categorical_accuracy"])))
                if limit.exceeded(seen[-1][0]):
                    raise limit.error(seen[-1][0], f"epoch {epoch} of a distillation", now)
                mean = np.mean(seen, axis=0)
                speed = len(seen) * len(batch.labels) / (time.perf_counter() - started)
                watcher.step(epoch, len(seen), float(mean[0]), float(mean[1]), speed)
            record = _record(epoch, seen, judge, validation, now, started, len(train))
            watcher.epoch(record)
            figures = (record.val_accuracy or 0.0, -(record.val_loss or 0.0))
            if best is None or figures > best:
                best, arrays = figures, checkpoint.variables(network.model)
    if arrays:
        checkpoint.restore(network.model, arrays)


def _learner(judge: Any, taught: Teacher) -> Any:
    keras = backend.keras()
    inputs = [
        keras.Input(judge.input.shape[1:], dtype="uint8", name="pixels"),
        keras.Input(taught.drawn.shape[2:], dtype="float32", name="drawn"),
        keras.Input(taught.logits.shape[2:], dtype="float32", name="answers"),
    ]
    pixels = augment.apply(taught.augment, inputs[0], inputs[1])
    answers = keras.layers.Identity(name="cached")(inputs[-1])
    # With the default, the name "kl_divergence", the loss would get raw logits (Keras 3.15): only an instance gets
    # probabilities and the factor of the squared temperature.
    softened = keras.distillation.LogitsDistillation(temperature=TEMPERATURE, loss=keras.losses.KLDivergence())
    return keras.distillation.Distiller(
        teacher=keras.Model(inputs, answers),
        student=keras.Model(inputs, judge(pixels)),
        distillation_losses=softened,
        student_loss_weight=LABELS,
    )


def _inputs(taught: Teacher, view: int, positions: NDArray[np.int64], pixels: NDArray[np.uint8]) -> list[Any]:
    return [pixels, taught.drawn[view][positions], taught.logits[view][positions]]


def _record(
    epoch: int,
    seen: Sequence[tuple[float, float]],
    judge: Any,
    validation: Samples,
    rate: float,
    started: float,
    count: int,
) -> EpochRecord:
    seconds = time.perf_counter() - started
    value, accuracy = map(float, np.mean(seen, axis=0))
    logits = predict_logits(judge, validation, ROWS)
    held_out = metrics.cross_entropy_of_logits(logits, validation.labels)
    right = float(np.mean(logits.argmax(1) == validation.labels))
    return EpochRecord(epoch, "distillation", value, accuracy, held_out, right, rate, seconds, count / seconds)
