"""Training killed at any point and resumed from its last checkpoint gives the same result as without the kill."""

from __future__ import annotations

import dataclasses
import signal
from contextlib import suppress
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
        batch_size=8, checkpoint_steps=1, optimizer=OptimizerConfig("sgd", 0.01, momentum=0.9), average=0.8,
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
    """Raised by a test to simulate a kill; nothing in the project catches it."""


class Killer(Watcher):
    """Counts the calls of its methods, and simulates a kill at call number `at`."""

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
    """Return everything that must not depend on the interruption; times do."""
    rows = [dataclasses.astuple(dataclasses.replace(r, seconds=0, images_per_second=0)) for r in found.history]
    logits = found.validation_logits
    return weights_sha256(made.model), rows, None if logits is None else logits.tobytes()


EVERY = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "stride"),
    [("plain", 6), ("staged", 7), pytest.param("plain", 1, marks=EVERY), pytest.param("staged", 1, marks=EVERY)],
)
def test_cut_off_anywhere_it_ends_the_same(kind: str, stride: int, tmp_path: Path) -> None:
    name, config = CONFIGS[kind]
    watcher = Killer()
    made = network(name)
    expected = outcome(made, fit(made, TRAIN, VALIDATION, config, watcher))
    assert len({row[2] for row in expected[1]}) == len(expected[1]), "the loss must change"
    for at in range(3, watcher.places + 1, stride):
        folder = tmp_path / str(at)
        for cut in (at, 4, -1):  # killed twice, the second time soon after resuming
            saved = checkpoint.latest(folder)
            made = network(name, seed=1 if saved else 0)  # the weights come from the checkpoint, if there is one
            with suppress(Killed):
                found = fit(made, TRAIN, VALIDATION, config, Killer(cut), checkpoints=folder, saved=saved)
                assert outcome(made, found) == expected, f"killed at call {at} of {watcher.places}"


@pytest.mark.backends
def test_all_that_changes_is_in_the_checkpoint(tmp_path: Path) -> None:
    """It includes Keras' dropout seeds, and those best weights that differ from the current ones."""
    made = network("cifar10-deep")
    fit(made, TRAIN, VALIDATION, PLAIN, Watcher(), checkpoints=tmp_path)
    saved = checkpoint.latest(tmp_path)
    assert saved is not None
    assert {name.split("/")[0] for name in saved.arrays} >= {"model", "optimizer", "best_logits"}
    seeds = [name for name in saved.arrays if "seed_generator_state" in name and name.startswith("model/")]
    assert len(seeds) == sum(type(layer).__name__ == "Dropout" for layer in made.model.layers) > 0
    assert len(saved.state["history"]) >= 2  # the state after the last epoch need not be saved
    state, _ = unpack(saved, made)
    assert state.best is not None
    same = pack(State(history=state.history, best=state.best, best_arrays=checkpoint.variables(made.model)), made, None)
    assert not [name for name in same.arrays if name.startswith("best/")]
    with pytest.raises(ModelError, match="does not fit"):
        unpack(saved, network("fashion-cnn"))


class Asker(Killer):
    """Sends itself SIGTERM at call number `at`, as preemption on a cluster would."""

    def _here(self) -> None:
        self.places += 1
        if self.places == self.at:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.usefixtures("claimed")
@pytest.mark.parametrize("at", [2, pytest.param(9, marks=pytest.mark.backends), 17])
def test_a_signal_saves_a_checkpoint_of_the_last_step(at: int, tmp_path: Path) -> None:
    """During feature extraction of the first stage (nothing to save yet), during its steps, and after an epoch."""
    config = dataclasses.replace(STAGED, train=dataclasses.replace(STAGED.train, checkpoint_steps=0))
    made = network("cifar10-deep")
    expected = outcome(made, fit(made, TRAIN, VALIDATION, config, Watcher()))
    made = network("cifar10-deep")
    with pytest.raises(Interrupted, match="Stopped"):
        fit(made, TRAIN, VALIDATION, config, Asker(at), checkpoints=tmp_path)
    saved = checkpoint.latest(tmp_path)
    assert (saved is None) is (at == 2)
    made = network("cifar10-deep")
    assert outcome(made, fit(made, TRAIN, VALIDATION, config, Watcher(), saved=saved)) == expected


def test_checkpoints_cost_no_more_than_they_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a fake clock: a save takes 2 s, so the next automatic one waits for 100 s."""
    now = [0.0]
    monkeypatch.setattr("sightline.training.state.time.monotonic", lambda: now[0])
    written: list[float] = []

    def write(*_: Any) -> None:
        written.append(now[0])
        now[0] += 2

    monkeypatch.setattr("sightline.training.state.checkpoint.write", write)
    saver = Saver(tmp_path, TrainConfig(checkpoint_minutes=1.0))

    def made() -> checkpoint.Checkpoint:
        return checkpoint.Checkpoint({}, {})

    for _ in range(300):
        now[0] += 1
        saver.after_step(made)
    assert written == [60, 162, 264]
    now[0] = 300
    saver.after_epoch(made)
    assert len(written) == 3
    now[0] = 366
    saver.after_epoch(made)
    assert written[3:] == [366]
    stepping = Saver(tmp_path, TrainConfig(checkpoint_minutes=0.0, checkpoint_steps=5))
    for _ in range(12):
        stepping.after_step(made)
    assert len(written) == 6


def test_a_loss_that_is_no_number_names_step_rate_and_files() -> None:
    config = RunConfig(train=TrainConfig(batch_size=8, optimizer=OptimizerConfig("sgd", 1e30)))
    with pytest.raises(
        DivergedError,
        match=r"diverged: the loss is nan at step \d of epoch 1, learning rate 1e\+30, in the batch of \d+\.png,",
    ) as caught:
        fit(network("fashion-cnn"), TRAIN, VALIDATION, config, Watcher())
    assert set(caught.value.batch) <= set(TRAIN.paths)
    assert 1 <= len(caught.value.batch) <= 8


def test_a_validation_loss_that_is_no_number_is_nobodys_best() -> None:
    """The last step of an epoch may diverge, and no training step follows it."""
    train = TrainConfig(epochs=1, batch_size=len(TRAIN), optimizer=OptimizerConfig("sgd", 1e38))  # one step
    with pytest.raises(DivergedError, match="at the end of epoch 1, on validation") as caught:
        fit(network("fashion-cnn"), TRAIN, VALIDATION, RunConfig(train=train), Watcher())
    assert set(caught.value.batch) == set(TRAIN.paths)


@pytest.mark.parametrize(
    ("thaws", "shared"),
    [
        ((0, 2, -1, 0), [(0, 2), (0, 2), (), (0,)]),
        ((-1,), [()]),
        ((99, 0), [(), (0,)]),  # the whole backbone is trained first: there are no frozen layers
    ],
)
def test_features_are_shared_by_the_same_stages_wherever_training_goes_on(thaws: Any, shared: Any) -> None:
    made = network("cifar10-deep")
    plans = tuple(StageConfig(f"{n}", thaw=min(thaw, len(made.backbone))) for n, thaw in enumerate(thaws))
    found = [tuple(stage.thaw for stage in stages.group(made, plans, n)) for n in range(len(plans))]
    assert found == shared
