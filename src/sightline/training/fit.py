"""The training loop: stages, epochs, steps; best weights, early stopping, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend, metrics
from sightline.config import AugmentConfig, RunConfig, StageConfig
from sightline.data.loader import Batch, batches, epoch_order
from sightline.errors import DivergedError, Interrupted
from sightline.models.build import Network
from sightline.prediction.base import filled
from sightline.records import EpochRecord, Progress, Samples
from sightline.training import augment, checkpoint, stages
from sightline.training.checkpoint import Arrays, Checkpoint
from sightline.training.interrupt import Stop, listening
from sightline.training.optimizer import class_weights, label_shares, loss, optimizer
from sightline.training.schedule import eased, schedule
from sightline.watch import Watcher

SAVE_SECONDS = 20.0  # epochs on cached features take tenths of a second: saving each would take longer than training


@dataclass(frozen=True, slots=True)
class Fitted:
    """The outcome of `fit`; the network's own weights are the best epoch's, or the last one's where so configured.

    `pieces` are compiled models that lead, one after the other, from pixels to logits. `validation_logits` are those of
    the network's weights, float32 [N, K]; None where they are not at hand.
    """

    history: tuple[EpochRecord, ...]
    best: EpochRecord | None
    images_per_second: float
    pieces: tuple[Any, ...]
    validation_logits: NDArray[np.float32] | None


@dataclass(slots=True)
class _State:
    """What changes while training runs."""

    history: list[EpochRecord] = field(default_factory=list)
    best: EpochRecord | None = None
    frozen_arrays: Arrays = field(default_factory=dict)
    best_arrays: Arrays = field(default_factory=dict)
    best_logits: NDArray[np.float32] | None = None
    since_best: int = 0
    saved: float = -math.inf


@dataclass(frozen=True, slots=True)
class _Task:
    """One stage, ready to run: `learner` is trained (it may augment first), `judge` gives logits of samples.

    `before` are the models that make its samples out of pixels, where it trains on features.
    """

    config: RunConfig
    stage: StageConfig
    network: Network
    learner: Any
    judge: Any
    before: tuple[Any, ...]
    train: Samples
    validation: Samples
    augment: AugmentConfig | None
    rate: Callable[[int], float]
    weights: NDArray[np.float32] | None
    epochs: int
    batch_size: int


def fit(
    network: Network,
    train: Samples,
    validation: Samples,
    config: RunConfig,
    watcher: Watcher,
    *,
    checkpoints: Path | None = None,
) -> Fitted:
    """Train `network` in place on `train`, judged on `validation` (which may be empty) after every epoch.

    The state of training is saved in `checkpoints` after an epoch, though not more often than every `SAVE_SECONDS`.
    Raises `Interrupted` after Ctrl-C or SIGTERM (a checkpoint is written first) and `DivergedError` at the first loss
    that is no number; in both cases the network holds the best weights so far, where there are any.
    """
    state = _State()
    plan = config.train.stages or (StageConfig("training"),)
    base: stages.Features | None = None
    pieces: tuple[Any, ...] = ()
    with listening() as stop:
        try:
            for number, stage in enumerate(plan):
                if stage.thaw < 0:
                    base = None
                elif base is None:
                    group = list(takewhile(lambda following: following.thaw >= 0, plan[number:]))
                    base = stages.extract(network, group, train, validation, config, _stoppable(watcher, stop))
                    if base is not None and config.augment != augment.unmixed(config.augment):
                        watcher.say(f"{stage.name}: features of frozen layers are not mixed (augment.mixup, cutmix)")
                task = _prepare(network, train, validation, base, config, stage)
                _run_stage(task, state, watcher, stop, checkpoints)
                pieces = (*task.before, task.judge)
        except (Interrupted, DivergedError):
            if state.best_arrays:
                checkpoint.restore(network.model, state.best_arrays)
            raise
    logits = None
    if config.train.early_stop.restore_best and state.best_arrays:
        checkpoint.restore(network.model, state.best_arrays)
        logits = state.best_logits
    seconds = sum(r.seconds for r in state.history)
    seen = sum(r.seconds * r.images_per_second for r in state.history)
    return Fitted(tuple(state.history), state.best, seen / seconds if seconds else 0.0, pieces, logits)


def _stoppable(watcher: Watcher, stop: Stop) -> Progress:
    def progress(task: str, done: int, total: int) -> None:
        watcher.progress(task, done, total)
        if stop.asked:
            raise Interrupted(f"Stopped while computing the {task}, {done} of {total}.")

    return progress


def _prepare(
    network: Network,
    train: Samples,
    validation: Samples,
    base: stages.Features | None,
    config: RunConfig,
    stage: StageConfig,
) -> _Task:
    stages.freeze(network, stage)
    changing: AugmentConfig | None = None
    before: tuple[Any, ...] = ()
    weights = class_weights(train.labels, network.logits.shape[-1], config.train.class_weights)
    if base is None:
        judge = learner = backend.keras().Model(network.model.input, network.logits)
        if augment.changes(config.augment):
            changing = config.augment
            learner = stages.with_augmentation(judge, changing)
    else:
        features = stages.onward(network, base, stage)
        judge = learner = backend.keras().Model(features.tensor, network.logits)
        train, validation, before = features.train, features.validation, features.pieces
    epochs = config.train.epochs if stage.epochs is None else stage.epochs
    size = stage.batch_size or config.train.batch_size
    start = config.train.optimizer.learning_rate if stage.learning_rate is None else stage.learning_rate
    rate = schedule(config.train.schedule, start, epochs * math.ceil(len(train) / size))
    learner.compile(
        optimizer=optimizer(config.train.optimizer, start),
        loss=loss(config.train),
        weighted_metrics=["categorical_accuracy"],
    )
    return _Task(
        config, stage, network, learner, judge, before, train, validation, changing, rate, weights, epochs, size
    )


def _run_stage(
    task: _Task,
    state: _State,
    watcher: Watcher,
    stop: Stop,
    checkpoints: Path | None,
) -> None:
    steps = math.ceil(len(task.train) / task.batch_size)
    watcher.stage(task.stage.name, task.epochs, steps)
    state.since_best = 0
    state.frozen_arrays = checkpoint.variables(task.network.model)  # copying them at each epoch's end took 0.1 s
    stopping, begun = task.config.train.early_stop, len(state.history)
    for epoch in range(task.epochs):
        number = len(state.history) + 1
        ease = eased(task.config.train.schedule, state.history[begun:])
        try:
            record, logits = _epoch(task, epoch, number, ease, watcher, stop)
        except Interrupted:
            _save(task, state, checkpoints, number)
            raise
        state.history.append(record)
        if _better(record, state.best, stopping.monitor, stopping.min_delta):
            state.best, state.since_best = record, 0
            state.best_arrays = state.frozen_arrays | checkpoint.variables(task.network.model, task.judge)
            state.best_logits = logits
        else:
            state.since_best += 1
        watcher.epoch(record)
        if time.monotonic() - state.saved >= SAVE_SECONDS:
            _save(task, state, checkpoints, number)
        if stopping.patience and state.since_best >= stopping.patience:
            return


def _epoch(
    task: _Task, epoch: int, number: int, ease: float, watcher: Watcher, stop: Stop
) -> tuple[EpochRecord, NDArray[np.float32] | None]:
    seed, count = task.config.seed, len(task.train)
    order = epoch_order(count, seed, number)
    drawn = None
    if task.augment is not None:
        drawn = augment.draw(task.augment, count, task.train.pixels.shape[1:3], seed, number)
    started, seen, total, hits, rate = time.perf_counter(), 0, 0.0, 0.0, 0.0
    steps = math.ceil(count / task.batch_size)
    order = np.resize(order, steps * task.batch_size)  # the last step is filled up from the beginning, at weight 0
    for step, batch in enumerate(batches(task.train, task.batch_size, order)):
        if stop.asked:
            raise Interrupted(f"Stopped in epoch {number}, before step {step + 1} of {steps}.")
        rate = ease * task.rate(epoch * steps + step)
        task.learner.optimizer.learning_rate = rate
        n = min(task.batch_size, count - step * task.batch_size)
        value, accuracy = _step(task, batch, drawn, n)
        if not math.isfinite(value):
            raise DivergedError(
                f"The loss is {value} at step {step + 1} of epoch {number}, learning rate {rate:g}, starting with "
                f"{task.train.paths[int(batch.positions[0])]}. Lower train.optimizer.learning_rate."
            )
        seen, total, hits = seen + n, total + value * n, hits + accuracy * n
        watcher.step(number, step + 1, total / seen, hits / seen, seen / (time.perf_counter() - started))
    seconds = time.perf_counter() - started
    val_loss = val_accuracy = logits = None
    if len(task.validation):
        logits = predict_logits(task.judge, task.validation, max(task.batch_size, 32))
        val_loss = metrics.cross_entropy_of_logits(logits, task.validation.labels)
        val_accuracy = float(np.mean(logits.argmax(1) == task.validation.labels))
    figures = (total / seen, hits / seen, val_loss, val_accuracy)
    return EpochRecord(number, task.stage.name, *figures, rate, seconds, seen / seconds), logits


def _step(task: _Task, batch: Batch, drawn: NDArray[np.float32] | None, real: int) -> tuple[float, float]:
    """Take one step and return the mean loss and accuracy of the `real` first pictures of the batch.

    The others only fill it up: a step of another size would be compiled anew, 12 s for the whole MobileNetV2 on two
    cores. They weigh 0 in loss and gradient; only layers that normalize over the batch see them.
    """
    inputs: Any = batch.pixels if drawn is None else [batch.pixels, drawn[batch.positions]]
    shares = label_shares(batch.labels, task.network.logits.shape[-1], task.config.train.label_smoothing)
    if task.weights is not None:
        shares *= task.weights[batch.labels, None]  # the loss is linear in them, and the accuracy stays unweighted
    if drawn is not None:
        shares = augment.mix_labels(shares, drawn[batch.positions])
    weights = np.zeros(len(shares), np.float32)
    weights[:real] = len(shares) / real
    logs = task.learner.train_on_batch(inputs, shares, sample_weight=weights, return_dict=True)
    return float(logs["loss"]), float(logs["categorical_accuracy"])


def predict_logits(model: Any, samples: Samples, batch_size: int) -> NDArray[np.float32]:
    """Return the logits of a part: float32 [N, K]."""
    size = min(batch_size, len(samples))
    return np.concatenate([filled(model.predict_on_batch, b.pixels, size) for b in batches(samples, size)])


def _better(record: EpochRecord, best: EpochRecord | None, monitor: str, min_delta: float) -> bool:
    if best is None:
        return True
    new, old = getattr(record, monitor), getattr(best, monitor)
    if new is None or old is None:  # no validation part: judge by training
        new, old = record.loss, best.loss
        monitor = "loss"
    return bool(new < old - min_delta if monitor.endswith("loss") else new > old + min_delta)


def _save(task: _Task, state: _State, folder: Path | None, epoch: int) -> None:
    if folder is None:
        return
    arrays = {f"model/{k}": v for k, v in checkpoint.variables(task.network.model).items()}
    arrays |= {f"optimizer/{k}": v for k, v in checkpoint.variables(task.learner.optimizer).items()}
    best = state.best.epoch if state.best else None
    state.saved = time.monotonic()
    checkpoint.write(folder, epoch, Checkpoint(arrays, {"epoch": epoch, "stage": task.stage.name, "best_epoch": best}))
