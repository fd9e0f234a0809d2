"""Prepare the stages of a training run, and the features of frozen layers that they share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sightline import backend
from sightline.callbacks import Callback, Progress
from sightline.config import RunConfig, StageConfig
from sightline.config.stage_epochs import count_epochs
from sightline.data.types import Subset
from sightline.distributed import devices
from sightline.models.build import Network
from sightline.tasks.protocol import Objective, find_task
from sightline.training import linear_head, stages
from sightline.training.augment import pipeline
from sightline.training.divergence import LossLimit
from sightline.training.ema import limit_decay
from sightline.training.optimizers import build_optimizer
from sightline.training.schedules import build_schedule


@dataclass(frozen=True, slots=True)
class StageRun:
    """One stage, ready to run: `training_model` is trained (it may augment first), `logits_model` computes logits."""

    config: RunConfig
    stage: StageConfig
    network: Network
    training_model: Any
    logits_model: Any
    train: Subset
    validation: Subset
    objective: Objective
    rate_at: Callable[[int], float]
    epochs: int
    batch_size: int
    train_step: devices.TrainStep
    limit: LossLimit


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
    ) -> None:
        linear_head.check_settings(network, config)
        self._inputs = (network, train, validation)
        self._config, self._stage_configs, self._objective, self._limit = config, stage_configs, objective, limit
        self._group: tuple[StageConfig, ...] = ()
        self._group_features: stages.StageFeatures | None = None

    def prepare_stage(self, number: int, progress: Progress, callback: Callback) -> StageRun:
        """Return stage `number`, ready to run; the model's weights are those at its start, or later ones."""
        network, train, validation = self._inputs
        stage = self._stage_configs[number]
        group = stages.group_stages(network, self._stage_configs, number)
        if group != self._group or self._group_features is None:
            self._group, self._group_features = group, None
            if group:
                self._group_features = stages.extract_features(
                    network, group, train, validation, self._config, progress, callback.on_message
                )
                if self._config.augment != pipeline.without_mixing(self._config.augment):
                    callback.on_message(f"{stage.name}: mixup and CutMix do not apply to features of frozen layers")
        features = (
            stages.advance_features(network, self._group_features, stage, self._config, progress, callback.on_message)
            if self._group_features
            else None
        )
        stage_run = _prepare_stage(
            network, train, validation, features, self._config, stage, self._objective, self._limit
        )
        if stage_run.batch_size < (configured_size := stage.batch_size or self._config.train.batch_size):
            callback.on_message(
                f"{stage.name}: the batch size is {stage_run.batch_size}, not {configured_size}: "
                "there are no more images"
            )
        return stage_run


def _prepare_stage(
    network: Network,
    train: Subset,
    validation: Subset,
    features: stages.StageFeatures | None,
    config: RunConfig,
    stage: StageConfig,
    objective: Objective | None,
    limit: LossLimit,
) -> StageRun:
    stages.freeze_layers(network, stage)
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
    epochs = count_epochs(config.train, stage)
    batch_size = stage.batch_size or config.train.batch_size
    base_rate = config.train.optimizer.learning_rate if stage.learning_rate is None else stage.learning_rate
    batch_size, base_rate = devices.scale_batch_and_rate(config.device, batch_size, base_rate)
    batch_size = devices.limit_batch_size(batch_size, len(train))
    steps = epochs * math.ceil(len(train) / batch_size)
    rate_at = build_schedule(config.train.schedule, base_rate, steps)
    ema_decay = 0.0 if stage.is_solved else limit_decay(config.train.ema_decay, steps)
    training_model.compile(
        optimizer=build_optimizer(config.train.optimizer, base_rate, ema_decay),
        loss=objective.build_loss(),
        weighted_metrics=[objective.build_accuracy()],
    )
    training_model.optimizer.build(training_model.trainable_variables)  # so that a checkpoint can be restored into it
    train_step = devices.make_train_step(training_model)
    return StageRun(
        config,
        stage,
        network,
        training_model,
        logits_model,
        train,
        validation,
        objective,
        rate_at,
        epochs,
        batch_size,
        train_step,
        limit,
    )
