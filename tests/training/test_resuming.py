"""Training that was cut off anywhere and goes on from its last checkpoint ends as if nothing had happened."""

from __future__ import annotations

import dataclasses
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from networks import pictures, plan
from sightline.config import (
    AugmentConfig,
    EarlyStopConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    StageConfig,
    TrainConfig,
)
from sightline.errors import DivergedError, Interrupted, ModelError
from sightline.models.build import Network, build
from sightline.models.describe import weights_sha256
from sightline.records import EpochRecord, Samples
from sightline.training import checkpoint, stages
from sightline.training.fit import Fitted, fit
from sightline.training.state import Saver, State, pack, unpack
from sightline.watch import Watcher


def samples(count: int, seed: int = 0, side: int = 8) -> Samples:
    labels = (np.arange(count) % 3).astype(np.int32)
    return Samples(pictures(count, side, seed=seed), np.arange(count), labels, tuple(f"{i}.png" for i in range(count)))


TRAIN, VALIDATION = samples(20), samples(9, 1)

PLAIN = RunConfig(
    augment=AugmentConfig(flip=True, rotation=10, mixup=0.4),
    train=TrainConfig(
        epochs=3, batch_size=8, checkpoint_steps=1, optimizer=OptimizerConfig("adam", 1e-3),
        schedule=ScheduleConfig("plateau", patience=1, factor=0.5),
    ),
)  # fmt: skip
STAGED = RunConfig(
    augment=AugmentConfig(flip=True),
    train=TrainConfig(
        batch_size=8, checkpoint_steps=1, optimizer=OptimizerConfig("sgd", 0.01, momentum=0.9),
        early_stop=EarlyStopConfig(patience=1, monitor="val_loss"),
        schedule=ScheduleConfig("one_cycle"),
        stages=(
            StageConfig("deep head", thaw=3, epochs=2, views=2),
            StageConfig("head", thaw=0, epochs=2, views=2, learning_rate=0.3),
            StageConfig("all", thaw=-1, epochs=2, learning_rate=0.001),
        ),
    ),
)  # fmt: skip
CONFIGS = {"plain": ("cifar10-deep", PLAIN), "staged": ("cifar10-deep", STAGED)}


class Killed(Exception):
    """What a test throws in place of a kill: nothing of ours catches it."""


class Killer(Watcher):
    """Counts the places at which it is called, and ends the process, so to speak, at number `at`."""

    def __init__(self, at: int = -1) -> None:
        self.at, self.places = at, 0

    def _here(self) -> None:
        self.places += 1
        if self.places == self.at:
            raise Killed

    def step(self, epoch: int, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
        self._here()

    def epoch(self, record: EpochRecord) -> None:
        self._here()

    def stage(self, name: str, epochs: int, steps: int) -> None:
        self._here()

    def progress(self, task: str, done: int, total: int) -> None:
        self._here()


def network(name: str, seed: int = 0) -> Network:
    return build(plan(name, side=8, classes=3, seed=seed))


def outcome(made: Network, found: Fitted) -> tuple[str, list[tuple[Any, ...]], Any]:
    """Everything that must not depend on the break; times do."""
    rows = [dataclasses.astuple(dataclasses.replace(r, seconds=0, images_per_second=0)) for r in found.history]
    logits = found.validation_logits
    return weights_sha256(made.model), rows, None if logits is None else logits.tobytes()


@pytest.mark.parametrize("kind", CONFIGS)
def test_cut_off_anywhere_it_ends_the_same(kind: str, tmp_path: Path) -> None:
    name, config = CONFIGS[kind]
    watcher = Killer()
    made = network(name)
    expected = outcome(made, fit(made, TRAIN, VALIDATION, config, watcher))
    assert len({row[2] for row in expected[1]}) == len(expected[1]), "it must have learned"
    for at in range(1, watcher.places + 1, 1 if kind == "plain" else 3):
        folder = tmp_path / str(at)
        for cut in (at, 4):  # twice, the second time soon after going on
            made = network(name, seed=0)
            saved = checkpoint.latest(folder)
            try:
                found = fit(made, TRAIN, VALIDATION, config, Killer(cut), checkpoints=folder, saved=saved)
            except Killed:
                continue
            break
        else:
            made = network(name, seed=1)  # whose first weights all come from the checkpoint, but where there is none
            saved = checkpoint.latest(folder)
            made = made if saved else network(name)
            found = fit(made, TRAIN, VALIDATION, config, Watcher(), checkpoints=folder, saved=saved)
        assert outcome(made, found) == expected, f"cut off at place {at} of {watcher.places}"
