"""Fine-tuning of a compressed network, on labels alone or also on a teacher's logits.

Each fine-tuning keeps checkpoints in its own folder, so that after an interruption it continues from its last step, and
is not repeated once complete.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sightline import backend
from sightline._keras.fused_kernels import use_fused_kernels
from sightline._keras.training_steps import train_on_batch
from sightline.callbacks import Callback
from sightline.compress import prune
from sightline.compress.channel_groups import ChannelGroups
from sightline.compress.distill import Distillation, TeacherLogits
from sightline.config import EarlyStoppingConfig, RunConfig, ScheduleConfig, StageConfig
from sightline.data.batches import epoch_order, iterate_batches
from sightline.data.types import Subset
from sightline.errors import ModelError
from sightline.models.build import Network
from sightline.models.head import LOGITS
from sightline.seeding import derive_seed
from sightline.tasks.protocol import Objective, find_task
from sightline.training import checkpoints, state
from sightline.training.loop import fit
from sightline.training.precision import mixed_precision

TAYLOR_BATCHES = 16  # batches for averaging Taylor scores
HEAD_EPOCHS = 12  # epochs of a new head on cached features of frozen layers
MAX_EPOCH_FACTOR = 3  # a new head or a student trains for at most this multiple of the fine-tuning epochs
MIN_HEAD_STEPS = 300  # minimum number of steps of a new head, within the maximum number of epochs
HEAD_BATCH = 32
HEAD_RATE = 3e-3


@dataclass(frozen=True, slots=True)
class FineTuner:
    """Trains compressed networks with the settings `config` of the run, for `epochs` epochs.

    `backbone` lists the layers before the head of the original network. If `pretrained`, their weights came from a
    file, and their batch normalization keeps its statistics. `teacher` returns the teacher's logits, and is called only
    when they are needed; None trains on the labels alone.
    """

    config: RunConfig
    train: Subset
    validation: Subset
    epochs: int
    backbone: tuple[str, ...]
    pretrained: bool
    teacher: Callable[[], TeacherLogits] | None
    callback: Callback

    @property
    def rate(self) -> float:
        """The learning rate of the last stage that trained more than just the head."""
        rate = self.config.train.optimizer.learning_rate
        for stage in self.config.train.stages:
            if stage.unfreeze != 0 and stage.learning_rate is not None:
                rate = stage.learning_rate
        return rate

    def make_network(self, model: Any) -> Network:
        """Return `model`, a compressed form of the original network, ready for training."""
        use_fused_kernels(model)
        names = {layer.name for layer in model.layers}
        return Network(model, tuple(name for name in self.backbone if name in names), self.pretrained)

    def fine_tune(self, network: Network, folder: Path, *, epoch_factor: int = 1, rate: float | None = None) -> None:
        """Train the whole `network` in place for `epoch_factor` times the usual epochs, with checkpoints in `folder`.

        With a learning `rate`, Adam is used with this rate instead of the run's optimizer and rate.
        """
        config = self._make_config(epoch_factor * self.epochs, self.rate if rate is None else rate)
        if rate is not None:
            config = _use_adam(config)
        if not config.train.epochs:
            return
        teacher = None if self.teacher is None else self.teacher()
        objective = None if teacher is None else Distillation.from_config(config, self.train, teacher)
        with mixed_precision(network.model, self.config.train.precision):
            self._fit(network, config, folder, objective)

    def train_head(self, network: Network, folder: Path) -> None:
        """Train only the head of `network`, on features that are computed once; checkpoints go to `folder`."""
        size = min(self.config.train.batch_size, HEAD_BATCH, len(self.train))
        epochs = max(HEAD_EPOCHS, math.ceil(MIN_HEAD_STEPS * size / len(self.train)))
        epochs = min(epochs, 5 * HEAD_EPOCHS, MAX_EPOCH_FACTOR * self.epochs)
        stage = StageConfig("new head", unfreeze=0, epochs=epochs, learning_rate=HEAD_RATE, batch_size=size)
        self._fit(network, _use_adam(self._make_config(epochs, HEAD_RATE, (stage,))), folder)

    def _fit(self, network: Network, config: RunConfig, folder: Path, objective: Objective | None = None) -> None:
        checkpoint = state.load_latest(folder, self.callback.on_message)
        try:
            fit(
                network, self.train, self.validation, config, self.callback,
                objective=objective, checkpoint_dir=folder, resume_from=checkpoint,
            )  # fmt: skip
        except ModelError as error:
            raise ModelError(f"{error} Remove {folder} to train again.") from error
        checkpoints.prune_checkpoints(folder)

    def score_by_taylor(self, model: Any, groups: ChannelGroups) -> prune.Scores:
        """Return the Taylor importance scores of `model` over a few batches of training images."""
        size, classes = min(self.config.train.batch_size, len(self.train)), model.output[LOGITS].shape[-1]
        plain = replace(self.config.train, label_smoothing=0.0, class_weights="none")
        task, config = find_task(self.config.model.task), replace(self.config, train=plain)
        objective = task.make_objective(config, self.train, classes, None)
        order = epoch_order(len(self.train), derive_seed(self.config.seed, "taylor"), 0)
        num_batches = min(max(len(order) // size, 1), TAYLOR_BATCHES)
        batches = list(iterate_batches(self.train, size, order[: num_batches * size]))
        frozen = [layer for layer in model.layers if not layer.trainable]
        for layer in model.layers:
            layer.trainable = True
        training_model = backend.keras().Model(model.input, model.output[LOGITS])
        remaining = list(batches)

        def run_step(recorder: Any) -> int:
            if len(remaining) == len(batches):
                training_model.compile(recorder, objective.build_loss())
            batch = remaining.pop()
            train_on_batch(training_model, batch.pixels, objective.compute_targets(batch.positions, 1, None))
            self.callback.on_progress("scoring channels (batches)", len(batches) - len(remaining), len(batches))
            return len(remaining)

        scores = prune.score_by_taylor(model, groups, run_step)
        for layer in frozen:
            layer.trainable = False
        return scores

    def _make_config(self, epochs: int, rate: float, stages: Sequence[StageConfig] = ()) -> RunConfig:
        train = replace(
            self.config.train,
            epochs=epochs,
            stages=tuple(stages),
            precision="float32",
            l2=0.0,
            optimizer=replace(self.config.train.optimizer, learning_rate=rate),
            schedule=ScheduleConfig("cosine", warmup_fraction=0.1),
            early_stopping=EarlyStoppingConfig(restore_best_weights=False),  # validation images accept, not select
            keep_last_checkpoint=True,
        )
        return replace(self.config, train=train)


def _use_adam(config: RunConfig) -> RunConfig:
    return replace(config, train=replace(config.train, optimizer=replace(config.train.optimizer, name="adam")))
