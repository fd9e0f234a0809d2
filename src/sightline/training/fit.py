"""The training loop: stages, epochs and steps; best weights, early stopping, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend, hosts, metrics
from sightline.config import AugmentConfig, RunConfig, StageConfig
from sightline.data.loader import batches, epoch_order
from sightline.errors import DivergedError, Interrupted, ModelError
from sightline.models.build import Network
from sightline.prediction.base import filled
from sightline.records import EpochRecord, Progress, Samples
from sightline.training import augment, checkpoint, devices, stages
from sightline.training.average import averaged, settle, share
from sightline.training.checkpoint import Checkpoint
from sightline.training.divergence import Limit
from sightline.training.interrupt import Stop, listening
from sightline.training.optimizer import class_weights, label_shares, loss, optimizer
from sightline.training.schedule import eased, schedule
from sightline.training.state import Saver, State, pack, unpack
from sightline.watch import Watcher


@dataclass(frozen=True, slots=True)
class Fitted:
    """The result of `fit`; the model holds the weights of the best epoch, or of the last one if so configured.

    `validation_logits` are those of the final weights, float32 [N, K]; None if they were not computed.
    """

    history: tuple[EpochRecord, ...]
    best: EpochRecord | None
    images_per_second: float
    validation_logits: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class _Task:
    """One stage, ready to run: `learner` is trained (it may augment first), `judge` computes logits."""

    config: RunConfig
    stage: StageConfig
    network: Network
    learner: Any
    judge: Any
    train: Samples
    validation: Samples
    augment: AugmentConfig | None
    rate: Callable[[int], float]
    weights: NDArray[np.float32] | None
    epochs: int
    batch_size: int
    step: devices.Step
    limit: Limit


def fit(
    network: Network,
    train: Samples,
    validation: Samples,
    config: RunConfig,
    watcher: Watcher,
    *,
    checkpoints: Path | None = None,
    saved: Checkpoint | None = None,
) -> Fitted:
    """Train `network` in place on `train`; evaluate it on `validation` (which may be empty) after every epoch.

    Checkpoints are written to `checkpoints` as configured in ``[train]``. `saved` is the checkpoint to resume from; the
    final weights match those of an uninterrupted run bit for bit. Raises `Interrupted` after Ctrl-C or SIGTERM (a
    checkpoint is written first) and `DivergedError` at the first loss that is NaN or above `divergence.Limit`; in both
    cases the model holds the best weights so far, if there are any.
    """
    limit = Limit.of(network)
    state, optimizer_arrays = unpack(saved, network) if saved else (State(), {})
    saver = Saver(checkpoints, config.train, saved.state["serial"] if saved else 0)
    plan = config.train.stages or (StageConfig("training"),)
    source = _Source(network, train, validation, config, plan, limit)
    with listening(hosts.agreement()) as stop:
        try:
            for number in range(state.stage, len(plan)):
                try:
                    task = source.task(number, _stoppable(watcher, stop), watcher)
                except Interrupted:
                    if state.stage and state.untouched:  # else the existing checkpoint holds at least as much
                        saver.save(pack(state, network, None))
                    raise
                if optimizer_arrays:
                    checkpoint.restore(task.learner.optimizer, optimizer_arrays)
                    optimizer_arrays = {}
                _run_stage(task, state, watcher, stop, saver, last=number == len(plan) - 1)
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
    return Fitted(tuple(state.history), state.best, seen / seconds if seconds else 0.0, logits)


def _stoppable(watcher: Watcher, stop: Stop) -> Progress:
    def progress(task: str, done: int, total: int) -> None:
        watcher.progress(task, done, total)
        stop.check(f"while computing the {task}, {done} of {total}")

    return progress


class _Source:
    """Prepares each stage, and the features of frozen layers that stages share."""

    def __init__(
        self,
        network: Network,
        train: Samples,
        validation: Samples,
        config: RunConfig,
        plan: Sequence[StageConfig],
        limit: Limit,
    ) -> None:
        self._parts = (network, train, validation)
        self._config, self._plan, self._limit = config, plan, limit
        self._sharing: tuple[StageConfig, ...] = ()
        self._base: stages.Features | None = None

    def task(self, number: int, progress: Progress, watcher: Watcher) -> _Task:
        """Return stage `number`, ready to run; the model's weights are those at its start, or later ones."""
        network, train, validation = self._parts
        stage = self._plan[number]
        sharing = stages.group(network, self._plan, number)
        if sharing != self._sharing or self._base is None:
            self._sharing, self._base = sharing, None
            if sharing:
                self._base = stages.extract(network, sharing, train, validation, self._config, progress)
                if self._config.augment != augment.unmixed(self._config.augment):
                    watcher.say(f"{stage.name}: mixup and CutMix do not apply to features of frozen layers")
        features = stages.onward(network, self._base, stage, self._config, progress) if self._base else None
        task = _prepare(network, train, validation, features, self._config, stage, self._limit)
        if task.batch_size < (asked := stage.batch_size or self._config.train.batch_size):
            watcher.say(f"{stage.name}: the batch size is {task.batch_size}, not {asked}: there are no more images")
        return task


def _prepare(
    network: Network,
    train: Samples,
    validation: Samples,
    features: stages.Features | None,
    config: RunConfig,
    stage: StageConfig,
    limit: Limit,
) -> _Task:
    stages.freeze(network, stage)
    changing: AugmentConfig | None = None
    weights = class_weights(train.labels, network.logits.shape[-1], config.train.class_weights)
    if features is None:
        judge = learner = backend.keras().Model(network.model.input, network.logits)
        if augment.changes(config.augment):
            changing = config.augment
            learner = stages.with_augmentation(judge, changing)
    else:
        judge = learner = backend.keras().Model(features.tensor, network.logits)
        train, validation = features.train, features.validation
    epochs = config.train.epochs if stage.epochs is None else stage.epochs
    size = stage.batch_size or config.train.batch_size
    start = config.train.optimizer.learning_rate if stage.learning_rate is None else stage.learning_rate
    size, start = devices.scaled(config.device, size, start)
    size = devices.at_most(size, len(train))
    steps = epochs * math.ceil(len(train) / size)
    rate = schedule(config.train.schedule, start, steps)
    learner.compile(
        optimizer=optimizer(config.train.optimizer, start, share(config.train.average, steps)),
        loss=loss(config.train),
        weighted_metrics=["categorical_accuracy"],
    )
    learner.optimizer.build(learner.trainable_variables)  # so that a checkpoint can be restored into it
    step = devices.stepper(learner)
    return _Task(
        config, stage, network, learner, judge, train, validation, changing, rate, weights, epochs, size, step, limit
    )


def _run_stage(task: _Task, state: State, watcher: Watcher, stop: Stop, saver: Saver, *, last: bool) -> None:
    """Run the rest of a stage; the `last` one writes a checkpoint so that the run can be extended."""

    def packed() -> Checkpoint:
        return pack(state, task.network, task.learner.optimizer)

    steps = math.ceil(len(task.train) / task.batch_size)
    watcher.stage(task.stage.name, task.epochs, steps)
    frozen = checkpoint.variables(task.network.model)  # copying all of them after each epoch took 0.1 s
    stopping = task.config.train.early_stop
    if state.step > steps:
        raise ModelError(f"The checkpoint is from other data: it is at step {state.step} of an epoch of {steps}.")
    while state.epoch < task.epochs and not (stopping.patience and state.since_best >= stopping.patience):
        ease = eased(task.config.train.schedule, state.history[state.begun :])
        try:
            record, logits = _epoch(task, state, ease, watcher, stop, lambda: saver.after_step(packed))
        except Interrupted:
            saver.save(packed())
            raise
        state.end_epoch(record)
        if _better(record, state.best, stopping.monitor, stopping.min_delta):
            state.best, state.since_best = record, 0
            with averaged(task.learner):
                state.best_arrays = frozen | checkpoint.variables(task.network.model, task.judge)
            state.best_logits = logits
        else:
            state.since_best += 1
        watcher.epoch(record)
        saver.after_epoch(packed)
    if stop.due:
        saver.save(packed())
        stop.check(f"after epoch {len(state.history)}")
    if last:
        saver.after_all(packed)
    settle(task.learner)
    state.end_stage()


def _epoch(
    task: _Task, state: State, ease: float, watcher: Watcher, stop: Stop, after_step: Callable[[], None]
) -> tuple[EpochRecord, NDArray[np.float32] | None]:
    """Run the remaining steps of an epoch, then validate."""
    seed, count, number = task.config.seed, len(task.train), state.number
    order = epoch_order(count, seed, number)
    drawn = None
    if task.augment is not None:
        drawn = augment.draw(task.augment, count, task.train.pixels.shape[1:3], seed, number)
    started = time.perf_counter() - state.seconds
    steps = math.ceil(count / task.batch_size)
    order = np.resize(order, steps * task.batch_size)  # the last batch is padded with the first rows, at weight 0
    rows = order.reshape(steps, task.batch_size)
    own = devices.share(task.batch_size)
    for batch in batches(task.train, own.stop - own.start, rows[:, own].ravel(), state.step):
        step = state.step
        stop.check(f"in epoch {number}, before step {step + 1} of {steps}")
        rate = task.learner.optimizer.learning_rate = ease * task.rate(state.epoch * steps + step)
        n = min(task.batch_size, count - step * task.batch_size)
        value, accuracy = _step(task, batch.pixels, rows[step], drawn, n)
        if task.limit.exceeded(value):
            where = f"step {step + 1} of epoch {number}"
            raise task.limit.error(value, where, rate, _paths(task, rows[step][:n]))
        state.add(n, value, accuracy)
        state.seconds = time.perf_counter() - started
        watcher.step(number, step + 1, state.total / state.seen, state.hits / state.seen, state.seen / state.seconds)
        after_step()
    rate = ease * task.rate(state.epoch * steps + steps - 1)
    val_loss = val_accuracy = logits = None
    if len(task.validation):

        def check() -> None:
            stop.check(f"while validating epoch {number}")

        with averaged(task.learner):
            logits = predict_logits(task.judge, task.validation, max(task.batch_size, 32), check)
        val_loss = metrics.cross_entropy_of_logits(logits, task.validation.labels)
        val_accuracy = float(np.mean(logits.argmax(1) == task.validation.labels))
        val_loss, val_accuracy = hosts.first(np.array([val_loss, val_accuracy])).tolist()  # the same on every host
        if task.limit.exceeded(val_loss):  # the last step diverged, and no training batch follows it
            last = _paths(task, rows[-1][: count - (steps - 1) * task.batch_size])
            raise task.limit.error(val_loss, f"the end of epoch {number}, on validation", rate, last)
    figures = (state.total / state.seen, state.hits / state.seen, val_loss, val_accuracy)
    speed = state.seen / state.seconds
    return EpochRecord(number, task.stage.name, *figures, rate, state.seconds, speed), logits


def _paths(task: _Task, positions: NDArray[np.int64]) -> tuple[str, ...]:
    return tuple(task.train.paths[int(i)] for i in positions)


def _step(
    task: _Task, pixels: NDArray[Any], rows: NDArray[np.int64], drawn: NDArray[np.float32] | None, real: int
) -> tuple[float, float]:
    """Run one step and return the mean loss and accuracy over the first `real` images of the batch.

    `rows` int64 [n] are the positions of the global batch, `pixels` the images of it that this host loads. Rows beyond
    `real` are padding, since another batch size would be recompiled (12 s for MobileNetV2 on two cores). They have
    weight 0 in loss and gradient, but do count in layers that normalize over the batch.
    """
    labels, own = task.train.labels[rows], devices.share(len(rows))
    inputs: Any = pixels if drawn is None else [pixels, drawn[rows[own]]]
    shares = label_shares(labels, task.network.logits.shape[-1], task.config.train.label_smoothing)
    if task.weights is not None:
        shares *= task.weights[labels, None]  # the loss is linear in them; the accuracy is not weighted
    if drawn is not None:
        split = (np.split(values, devices.parts()) for values in (shares, drawn[rows]))
        shares = np.concatenate([augment.mix_labels(*part) for part in zip(*split, strict=True)])
    weights = np.zeros(len(shares), np.float32)
    weights[:real] = len(shares) / real
    logs = task.step(inputs, shares[own], weights[own])
    return metrics.not_negative(float(logs["loss"])), float(logs["categorical_accuracy"])


def predict_logits(
    model: Any, samples: Samples, batch_size: int, check: Callable[[], None] = lambda: None
) -> NDArray[np.float32]:
    """Return the logits of a subset: float32 [N, K]; `check` is called before each batch."""
    size = min(batch_size, len(samples))
    found = []
    for batch in batches(samples, size):
        check()
        found.append(filled(partial(devices.predict_on_batch, model), batch.pixels, size))
    return np.concatenate(found)


def _better(record: EpochRecord, best: EpochRecord | None, monitor: str, min_delta: float) -> bool:
    if best is None:
        return True
    new, old = getattr(record, monitor), getattr(best, monitor)
    if new is None or old is None:  # no validation split: use the training loss
        new, old = record.loss, best.loss
        monitor = "loss"
    return bool(new < old - min_delta if monitor.endswith("loss") else new > old + min_delta)
