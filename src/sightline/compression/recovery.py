"""Fine-tuning after a network was compressed: on the labels, or on the teacher's logits too."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sightline import backend
from sightline.compression import slim
from sightline.compression.channels import Channels
from sightline.compression.distill import Teacher, distill
from sightline.config import EarlyStopConfig, RunConfig, ScheduleConfig, StageConfig
from sightline.data.loader import batches, epoch_order
from sightline.models.build import Network
from sightline.models.kernels import quicken
from sightline.randomness import derive
from sightline.records import Samples
from sightline.training.fit import fit
from sightline.training.optimizer import label_shares, loss
from sightline.training.precision import lowered
from sightline.watch import Watcher

BATCHES = 16  # to average Taylor scores over
HEAD_EPOCHS = 12  # of a new head on cached features of frozen layers
NEW_TIMES = 3  # maximum multiple of the fine-tuning epochs for a new head or student
HEAD_STEPS = 300  # at least, where there are few images
HEAD_BATCH = 32
HEAD_RATE = 3e-3


@dataclass(frozen=True, slots=True)
class Trainer:
    """Trains compressed networks with the run's settings for `epochs` epochs.

    `backbone` names the layers before the head of the network that was trained, `pretrained` tells whether they came
    from a file: their batch normalization keeps its statistics then. `teacher` is called when its answers are needed
    first; None: labels alone.
    """

    config: RunConfig
    train: Samples
    validation: Samples
    epochs: int
    backbone: tuple[str, ...]
    pretrained: bool
    teacher: Callable[[], Teacher] | None
    watcher: Watcher

    @property
    def rate(self) -> float:
        """The learning rate of the last stage that trained more than the head."""
        rate = self.config.train.optimizer.learning_rate
        for stage in self.config.train.stages:
            if stage.thaw != 0 and stage.learning_rate is not None:
                rate = stage.learning_rate
        return rate

    def network(self, model: Any) -> Network:
        """Return `model`, a compressed form of the trained network, ready for training."""
        quicken(model)
        names = {layer.name for layer in model.layers}
        return Network(model, tuple(name for name in self.backbone if name in names), self.pretrained)

    def recover(self, network: Network, *, times: int = 1, rate: float | None = None) -> None:
        """Train the whole `network` in place, `times` the usual number of epochs; with a `rate` of its own, by Adam."""
        config = self._settings(times * self.epochs, self.rate if rate is None else rate)
        if rate is not None:
            config = _by_adam(config)
        if not config.train.epochs:
            return
        teacher = None if self.teacher is None else self.teacher()
        with lowered(network.model, self.config.train.precision):
            if teacher is not None:
                distill(network, teacher, self.train, self.validation, config, self.watcher)
            else:
                fit(network, self.train, self.validation, config, self.watcher)

    def head(self, network: Network) -> None:
        """Train only the head of `network`, on features that are computed once."""
        size = min(self.config.train.batch_size, HEAD_BATCH, len(self.train))
        epochs = max(HEAD_EPOCHS, math.ceil(HEAD_STEPS * size / len(self.train)))
        epochs = min(epochs, 5 * HEAD_EPOCHS, NEW_TIMES * self.epochs)
        stage = StageConfig("new head", thaw=0, epochs=epochs, learning_rate=HEAD_RATE, batch_size=size)
        config = _by_adam(self._settings(epochs, HEAD_RATE, (stage,)))
        fit(network, self.train, self.validation, config, self.watcher)

    def taylor(self, model: Any, found: Channels) -> slim.Scores:
        """Return the Taylor importance scores of `model` over a few batches of training images."""
        size, classes = min(self.config.train.batch_size, len(self.train)), model.output["logits"].shape[-1]
        order = epoch_order(len(self.train), derive(self.config.seed, "taylor"), 0)
        some = list(batches(self.train, size, order[: max(len(order) // size, 1) * size][: BATCHES * size]))
        frozen = [layer for layer in model.layers if not layer.trainable]
        for layer in model.layers:
            layer.trainable = True
        learner = backend.keras().Model(model.input, model.output["logits"])
        left = list(some)

        def step(recorder: Any) -> int:
            if len(left) == len(some):
                learner.compile(recorder, loss(self.config.train))
            batch = left.pop()
            learner.train_on_batch(batch.pixels, label_shares(batch.labels, classes, 0.0))
            self.watcher.progress("scoring channels", len(some) - len(left), len(some))
            return len(left)

        scores = slim.by_taylor(model, found, step)
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
            schedule=ScheduleConfig("cosine", warmup=0.1),
            early_stop=EarlyStopConfig("val_accuracy" if len(self.validation) else "accuracy"),
        )
        return replace(self.config, train=train)


def _by_adam(config: RunConfig) -> RunConfig:
    return replace(config, train=replace(config.train, optimizer=replace(config.train.optimizer, name="adam")))
