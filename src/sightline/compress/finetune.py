"""Fine-tuning after a network was compressed: on the labels, or on the teacher's logits too."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sightline import backend
from sightline._keras.fused_kernels import use_fused_kernels
from sightline._keras.training_steps import train_on_batch
from sightline.callbacks import Callback
from sightline.compress import prune
from sightline.compress.channel_groups import ChannelGroups
from sightline.compress.distill import Distillation, TeacherLogits
from sightline.config import EarlyStoppingConfig, RunConfig, ScheduleConfig, StageConfig
from sightline.data.loader import epoch_order, iterate_batches
from sightline.data.types import Subset
from sightline.models.build import Network
from sightline.seeding import derive_seed
from sightline.training.loop import fit
from sightline.training.optimizers import build_loss, smooth_labels
from sightline.training.precision import mixed_precision

TAYLOR_BATCHES = 16  # to average Taylor scores over
HEAD_EPOCHS = 12  # of a new head on cached features of frozen layers
MAX_EPOCH_FACTOR = 3  # maximum multiple of the fine-tuning epochs for a new head or student
MIN_HEAD_STEPS = 300  # at least, where there are few images
HEAD_BATCH = 32
HEAD_RATE = 3e-3


@dataclass(frozen=True, slots=True)
class FineTuner:
    """Trains compressed networks with the run's settings for `epochs` epochs.

    `backbone` names the layers before the head of the network that was trained, `pretrained` tells whether they came
    from a file: their batch normalization keeps its statistics then. `teacher` is called when its answers are needed
    first; None: labels alone.
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
        """The learning rate of the last stage that trained more than the head."""
        rate = self.config.train.optimizer.learning_rate
        for stage in self.config.train.stages:
            if stage.unfreeze != 0 and stage.learning_rate is not None:
                rate = stage.learning_rate
        return rate

    def make_network(self, model: Any) -> Network:
        """Return `model`, a compressed form of the trained network, ready for training."""
        use_fused_kernels(model)
        names = {layer.name for layer in model.layers}
        return Network(model, tuple(name for name in self.backbone if name in names), self.pretrained)

    def fine_tune(self, network: Network, *, epoch_factor: int = 1, rate: float | None = None) -> None:
        """Train the whole `make_network` in place, `epoch_factor` the usual number of epochs.

        With a `rate` of its own, by Adam.
        """
        config = self._settings(epoch_factor * self.epochs, self.rate if rate is None else rate)
        if rate is not None:
            config = _with_adam(config)
        if not config.train.epochs:
            return
        teacher = None if self.teacher is None else self.teacher()
        objective = None if teacher is None else Distillation.from_config(config, self.train, teacher)
        with mixed_precision(network.model, self.config.train.precision):
            fit(network, self.train, self.validation, config, self.callback, objective=objective)

    def train_head(self, network: Network) -> None:
        """Train only the head of `make_network`, on features that are computed once."""
        size = min(self.config.train.batch_size, HEAD_BATCH, len(self.train))
        epochs = max(HEAD_EPOCHS, math.ceil(MIN_HEAD_STEPS * size / len(self.train)))
        epochs = min(epochs, 5 * HEAD_EPOCHS, MAX_EPOCH_FACTOR * self.epochs)
        stage = StageConfig("new head", unfreeze=0, epochs=epochs, learning_rate=HEAD_RATE, batch_size=size)
        config = _with_adam(self._settings(epochs, HEAD_RATE, (stage,)))
        fit(network, self.train, self.validation, config, self.callback)

    def taylor_scores(self, model: Any, groups: ChannelGroups) -> prune.Scores:
        """Return the Taylor importance scores of `model` over a few batches of training images."""
        size, classes = min(self.config.train.batch_size, len(self.train)), model.output["logits"].shape[-1]
        order = epoch_order(len(self.train), derive_seed(self.config.seed, "taylor"), 0)
        sampled = list(
            iterate_batches(self.train, size, order[: max(len(order) // size, 1) * size][: TAYLOR_BATCHES * size])
        )
        frozen = [layer for layer in model.layers if not layer.trainable]
        for layer in model.layers:
            layer.trainable = True
        learner = backend.keras().Model(model.input, model.output["logits"])
        remaining = list(sampled)

        def step(recorder: Any) -> int:
            if len(remaining) == len(sampled):
                learner.compile(recorder, build_loss(self.config.train))
            batch = remaining.pop()
            train_on_batch(learner, batch.pixels, smooth_labels(batch.labels, classes, 0.0))
            self.callback.on_progress("scoring channels", len(sampled) - len(remaining), len(sampled))
            return len(remaining)

        scores = prune.score_by_taylor(model, groups, step)
        for layer in frozen:
            layer.trainable = False
        return scores

    def _settings(self, epochs: int, rate: float, stages: Sequence[StageConfig] = ()) -> RunConfig:
        train = replace(
            self.config.train,
            epochs=epochs,
            stages=tuple(stages),
            precision="float32",
            l2=0.0,
            optimizer=replace(self.config.train.optimizer, learning_rate=rate),
            schedule=ScheduleConfig("cosine", warmup_fraction=0.1),
            early_stopping=EarlyStoppingConfig("val_accuracy" if len(self.validation) else "accuracy"),
        )
        return replace(self.config, train=train)


def _with_adam(config: RunConfig) -> RunConfig:
    return replace(config, train=replace(config.train, optimizer=replace(config.train.optimizer, name="adam")))
