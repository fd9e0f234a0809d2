"""Prepare the stages of a training run, with the features of frozen layers that they share, and validate a stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline._keras.compilation import share_compiled_draws
from sightline.callbacks import Callback, Progress, no_progress
from sightline.config import RunConfig, StageConfig, TrainConfig
from sightline.config.stage_epochs import count_epochs
from sightline.data.types import Subset
from sightline.distributed import devices
from sightline.inference import device_images
from sightline.inference.runner import choose_batch_size, iterate_results
from sightline.models.build import Network
from sightline.tasks.protocol import Objective, find_task
from sightline.training import linear_head, stage_features, stages
from sightline.training.augment import pipeline
from sightline.training.device_steps import DeviceRunner
from sightline.training.divergence import LossLimit
from sightline.training.early_features import EarlyFeatures
from sightline.training.ema import limit_decay
from sightline.training.optimizers import build_optimizer
from sightline.training.schedules import build_schedule
from sightline.training.steps import HostRunner, StepInputs, StepRunner


@dataclass(frozen=True, slots=True)
class StageRun:
    """A stage, ready to run: `training_model` is trained (it may augment first), `logits_model` computes logits.

    `train` has `views` rows per image.
    """

    config: RunConfig
    stage: StageConfig
    network: Network
    training_model: Any
    logits_model: Any
    train: Subset
    validation: Subset
    objective: Objective
    base_rate: float
    rate_at: Callable[[int], float]
    epochs: int
    batch_size: int
    inputs: StepInputs
    runner: StepRunner
    limit: LossLimit
    validation_inference: device_images.DeviceInference | None
    views: int = 1

    @property
    def steps(self) -> int:
        """The number of steps in an epoch."""
        return self.inputs.steps

    @property
    def validation_batch_size(self) -> int:
        """The number of images in a validation batch: at least the size of a step, for which there is enough memory."""
        return max(self.batch_size, choose_batch_size(self.validation.pixels.shape[1:]))


ViewLimit = Callable[[int, Callable[[], float], Callable[[], int]], int]
"""Returns how many of the configured number of views to train on.

Its other arguments measure the seconds per view, and count the views whose features are already cached.
"""


class StagePreparer:
    """Prepares each stage, and the features of frozen layers that stages share."""

    def __init__(
        self,
        network: Network,
        train: Subset,
        validation: Subset,
        config: RunConfig,
        stage_configs: Sequence[StageConfig],
        objective: Objective | None,
        limit: LossLimit,
        early: EarlyFeatures | None,
    ) -> None:
        linear_head.check_settings(network, config)
        self._inputs, self._early = (network, train, validation), early
        self._config, self._stage_configs, self._objective, self._limit = config, stage_configs, objective, limit
        self._group: tuple[StageConfig, ...] = ()
        self._group_features: stage_features.StageFeatures | None = None  # for the original images
        self._view_features: stage_features.StageFeatures | None = None  # including augmented views

    def prepare_stage(
        self,
        number: int,
        progress: Progress,
        callback: Callback,
        limit_views: ViewLimit | None = None,
    ) -> StageRun:
        """Return stage `number`, ready to run; the model's weights are from its start or later.

        `limit_views` returns how many views of each image to train on.
        """
        network, train, validation = self._inputs
        stage = self._stage_configs[number]
        features = self._compute_features(number, progress, callback, limit_views)
        stage_run = _prepare_stage(
            network, train, validation, features, self._config, stage, self._objective, self._limit
        )
        if stage_run.batch_size < (configured_size := stage.batch_size or self._config.train.batch_size):
            callback.on_message(
                f"{stage.name}: the batch size is {stage_run.batch_size}, not {configured_size}: "
                "there are no more images"
            )
        return stage_run

    def _compute_features(
        self,
        number: int,
        progress: Progress,
        callback: Callback,
        limit_views: ViewLimit | None,
    ) -> stage_features.StageFeatures | None:
        """Return the features that stage `number` trains on, after computing its group's; None to train on pixels."""
        (network, train, validation), config, stage = self._inputs, self._config, self._stage_configs[number]
        group = stages.group_stages(network, self._stage_configs, number)
        if group != self._group or self._group_features is None:
            self._group, self._group_features, self._view_features = group, None, None
            if group:
                if stage.is_solved:
                    linear_head.load_solver()  # in parallel with early features
                self._group_features = stage_features.extract_features(
                    network, group, train, validation, config, progress, callback.on_message, self._early
                )
                if config.augment != pipeline.without_mixing(config.augment):
                    callback.on_message(f"{stage.name}: mixup and CutMix do not apply to features of frozen layers")
        features = self._group_features
        if features is None:
            return None
        views = stage_features.count_views(stage, config)
        if views > 1 and limit_views is not None:
            views = limit_views(
                views,
                partial(stage_features.time_view, features.layers, train, config),
                partial(stage_features.count_cached_views, features, views, train, validation, config),
            )
        if self._view_features is not None and self._view_features.views >= views:
            features = self._view_features
        elif views > 1:
            self._view_features = None  # frees memory
            features = stage_features.add_views(features, views, train, validation, config, progress)
            self._view_features = features
        stage = replace(stage, views=views)
        return stage_features.advance_features(network, features, stage, config, progress, callback.on_message)


def _prepare_stage(
    network: Network,
    train: Subset,
    validation: Subset,
    features: stage_features.StageFeatures | None,
    config: RunConfig,
    stage: StageConfig,
    objective: Objective | None,
    limit: LossLimit,
) -> StageRun:
    stages.freeze_layers(network, stage, freeze_batch_norm=config.train.freeze_batch_norm)
    task, num_classes = find_task(config.model.task), network.logits.shape[-1]
    if features is None:
        objective = objective or task.make_objective(config, train, num_classes, config.augment)
        logits_model = training_model = backend.keras().Model(network.model.input, network.logits)
        if objective.augmentation is not None:
            training_model = stages.add_augmentation(logits_model, objective.augmentation)
    else:
        train, validation = features.train, features.validation
        objective = task.make_objective(config, train, num_classes, None)
        logits_model = training_model = backend.keras().Model(features.tensor, network.logits)
    batch_size = stage.batch_size or config.train.batch_size
    base_rate = config.train.optimizer.learning_rate if stage.learning_rate is None else stage.learning_rate
    batch_size, base_rate = devices.scale_batch_and_rate(config.device, batch_size, base_rate)
    batch_size = devices.limit_batch_size(batch_size, len(train))
    epochs = count_epochs(config.train, stage)
    inputs = StepInputs(train, objective, config.seed, batch_size)
    steps = epochs * inputs.steps
    rate_at = build_schedule(config.train.schedule, base_rate, steps)
    train_step = _compile_stage(config.train, stage, training_model, objective, base_rate, steps)
    on_device = device_images.keeps_images(config.device)
    runner = DeviceRunner(training_model, inputs) if on_device else HostRunner(training_model, train_step, inputs)
    is_resident = on_device and len(validation) > 0 and device_images.fit_on_device(train, validation)
    inference = device_images.DeviceInference(logits_model, validation) if is_resident else None
    return StageRun(
        config, stage, network, training_model, logits_model, train, validation, objective, base_rate, rate_at, epochs,
        batch_size, inputs, runner, limit, inference, 1 if features is None else features.views,
    )  # fmt: skip


def set_epochs(stage_run: StageRun, epochs: int) -> StageRun:
    """Return `stage_run` with this number of epochs; its schedule and moving average then span them.

    The model is compiled again only if the decay of the average changes: compiling takes longer than many steps.
    """
    config, steps = stage_run.config.train, epochs * stage_run.steps
    rate_at = build_schedule(config.schedule, stage_run.base_rate, steps)
    if limit_decay(config.ema_decay, steps) != limit_decay(config.ema_decay, stage_run.epochs * stage_run.steps):
        train_step = _compile_stage(
            config, stage_run.stage, stage_run.training_model, stage_run.objective, stage_run.base_rate, steps
        )
        stage_run.runner.set_train_step(train_step)
    return replace(stage_run, epochs=epochs, rate_at=rate_at)


def _compile_stage(
    config: TrainConfig, stage: StageConfig, training_model: Any, objective: Objective, base_rate: float, steps: int
) -> devices.TrainStep:
    """Compile the model for a stage of `steps` steps, and return the training step."""
    ema_decay = 0.0 if stage.is_solved else limit_decay(config.ema_decay, steps)
    training_model.compile(
        optimizer=build_optimizer(config.optimizer, base_rate, ema_decay),
        loss=objective.build_loss(),
        weighted_metrics=[objective.build_accuracy()],
    )
    with share_compiled_draws():  # early, so that a checkpoint can be restored into the optimizer
        training_model.optimizer.build(training_model.trainable_variables)
    return devices.make_train_step(training_model)


def predict_validation(
    stage_run: StageRun, progress: Progress = no_progress, count: int | None = None
) -> NDArray[np.float32]:
    """Return the logits of the first `count` validation images (default: all): float32 [n, K]."""
    return np.concatenate([logits for logits, _ in iterate_validation(stage_run, progress, count)])


def iterate_validation(
    stage_run: StageRun, progress: Progress, count: int | None = None
) -> Iterator[tuple[NDArray[np.float32], NDArray[Any]]]:
    """Yield the logits and labels [n, ...] of each batch of validation images; see `predict_validation`."""
    subset = stage_run.validation if count is None else stage_run.validation.head(count)
    size = stage_run.validation_batch_size
    if stage_run.validation_inference is not None:
        done = 0
        for logits in stage_run.validation_inference.iterate(size, progress, count):
            yield logits, subset.labels[done : done + len(logits)]
            done += len(logits)
        return
    predict = partial(devices.predict_on_batch, stage_run.logits_model)
    for batch, logits in iterate_results(predict, subset, batch_size=size, progress=progress):
        yield logits, batch.labels
