"""Training killed at any point and resumed from its last checkpoint gives the same result as without the kill."""

from __future__ import annotations

import dataclasses
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from networks import make_plan, make_subset
from sightline.callbacks import Callback, EpochRecord
from sightline.config import (
    AugmentConfig,
    EarlyStoppingConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    StageConfig,
    TrainConfig,
)
from sightline.errors import DivergedError, Interrupted, ModelError
from sightline.models.build import Network, build_model
from sightline.models.describe import weights_sha256
from sightline.training import checkpoints, stages
from sightline.training.loop import FitResult, fit
from sightline.training.state import CheckpointManager, TrainingState, pack_state, unpack_state

TRAIN, VALIDATION = make_subset(20), make_subset(9, 1)

SINGLE_STAGE = RunConfig(
    augment=AugmentConfig(horizontal_flip=True, rotation=10, mixup=0.4),
    train=TrainConfig(
        epochs=3, batch_size=8, checkpoint_steps=1, optimizer=OptimizerConfig("adam", 1e-3),
        schedule=ScheduleConfig("plateau", patience=1, factor=0.5),
    ),
)  # fmt: skip
MULTI_STAGE = RunConfig(
    augment=AugmentConfig(horizontal_flip=True),
    train=TrainConfig(
        batch_size=8, checkpoint_steps=1, optimizer=OptimizerConfig("sgd", 0.01, momentum=0.9), ema_decay=0.8,
        early_stopping=EarlyStoppingConfig(patience=1, monitor="val_loss"),
        schedule=ScheduleConfig("one_cycle"),
        stages=(
            StageConfig("deep head", unfreeze=3, epochs=2, views=2),
            StageConfig("head", unfreeze=0, epochs=2, views=2, learning_rate=0.3),
            StageConfig("all", unfreeze=-1, epochs=2, learning_rate=0.001),
        ),
    ),
)  # fmt: skip
CONFIGS = {"plain": ("cifar10-deep", SINGLE_STAGE), "staged": ("cifar10-deep", MULTI_STAGE)}


class SimulatedKill(Exception):
    """Raised by a test to simulate a kill; nothing in the project catches it."""


class KillCallback(Callback):
    """Counts the calls of its methods, and simulates a kill at call number `at`."""

    def __init__(self, kill_at: int = -1) -> None:
        self.kill_at, self.num_calls = kill_at, 0

    def _count_call(self) -> None:
        self.num_calls += 1
        if self.num_calls == self.kill_at:
            raise SimulatedKill

    def on_step_end(self, epoch: int, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
        self._count_call()

    def on_epoch_end(self, record: EpochRecord) -> None:
        self._count_call()

    def on_stage_begin(self, name: str, epochs: int, steps: int) -> None:
        self._count_call()

    def on_progress(self, task: str, done: int, total: int) -> None:
        self._count_call()


def build_test_network(name: str, seed: int = 0) -> Network:
    return build_model(make_plan(name, side=8, classes=3, seed=seed))


def get_outcome(network: Network, result: FitResult) -> tuple[str, list[tuple[Any, ...]], Any]:
    """Return everything that must not depend on the interruption; times do."""
    rows = [dataclasses.astuple(dataclasses.replace(r, seconds=0, images_per_second=0)) for r in result.history]
    logits = result.validation_logits
    return weights_sha256(network.model), rows, None if logits is None else logits.tobytes()


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "stride"),
    [("plain", 17), ("staged", 23), pytest.param("plain", 1, marks=SLOW), pytest.param("staged", 1, marks=SLOW)],
)
def test_resuming_after_a_kill_anywhere_gives_the_same_result(kind: str, stride: int, tmp_path: Path) -> None:
    name, config = CONFIGS[kind]
    callback = KillCallback()
    network = build_test_network(name)
    expected = get_outcome(network, fit(network, TRAIN, VALIDATION, config, callback))
    assert len({row[2] for row in expected[1]}) == len(expected[1]), "the loss must change"
    for kill_at in range(3, callback.num_calls + 1, stride):
        folder = tmp_path / str(kill_at)
        for next_kill in (kill_at, 4, -1):  # killed twice, the second time soon after resuming
            saved = checkpoints.load_latest(folder)
            network = build_test_network(
                name, seed=1 if saved else 0
            )  # the weights come from the checkpoint, if there is one
            with suppress(SimulatedKill):
                result = fit(
                    network,
                    TRAIN,
                    VALIDATION,
                    config,
                    KillCallback(next_kill),
                    checkpoint_dir=folder,
                    resume_from=saved,
                )
                assert get_outcome(network, result) == expected, f"killed at call {kill_at} of {callback.num_calls}"


@pytest.mark.backends
def test_the_checkpoint_contains_all_mutable_state(tmp_path: Path) -> None:
    """It includes Keras' dropout seeds, and those best weights that differ from the current ones."""
    network = build_test_network("cifar10-deep")
    fit(network, TRAIN, VALIDATION, SINGLE_STAGE, Callback(), checkpoint_dir=tmp_path)
    saved = checkpoints.load_latest(tmp_path)
    assert saved is not None
    assert {name.split("/")[0] for name in saved.arrays} >= {"model", "optimizer", "best_logits"}
    seeds = [name for name in saved.arrays if "seed_generator_state" in name and name.startswith("model/")]
    assert len(seeds) == sum(type(layer).__name__ == "Dropout" for layer in network.model.layers) > 0
    assert len(saved.state["history"]) >= 2  # the state after the last epoch need not be saved
    state, _ = unpack_state(saved, network)
    assert state.best is not None
    repacked = pack_state(
        TrainingState(history=state.history, best=state.best, best_arrays=checkpoints.copy_variables(network.model)),
        network,
        None,
    )
    assert not [name for name in repacked.arrays if name.startswith("best/")]
    with pytest.raises(ModelError, match="does not fit"):
        unpack_state(saved, build_test_network("fashion-cnn"))


class SignalCallback(KillCallback):
    """Sends itself SIGTERM at call number `at`, as preemption on a cluster would."""

    def _count_call(self) -> None:
        self.num_calls += 1
        if self.num_calls == self.kill_at:
            signal.raise_signal(signal.SIGTERM)


STAGED_WITHOUT_STEPS = dataclasses.replace(
    MULTI_STAGE, train=dataclasses.replace(MULTI_STAGE.train, checkpoint_steps=0)
)


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[str, list[tuple[Any, ...]], Any]:
    network = build_test_network("cifar10-deep")
    return get_outcome(network, fit(network, TRAIN, VALIDATION, STAGED_WITHOUT_STEPS, Callback()))


@pytest.mark.slow_with("2", "9")
@pytest.mark.usefixtures("claimed")
@pytest.mark.parametrize("at", [2, pytest.param(9, marks=pytest.mark.backends), 17])
def test_a_signal_saves_a_checkpoint_of_the_last_step(at: int, uninterrupted: Any, tmp_path: Path) -> None:
    """During feature extraction of the first stage (nothing to save yet), during its steps, and after an epoch."""
    config = STAGED_WITHOUT_STEPS
    network = build_test_network("cifar10-deep")
    with pytest.raises(Interrupted, match="Stopped"):
        fit(network, TRAIN, VALIDATION, config, SignalCallback(at), checkpoint_dir=tmp_path)
    saved = checkpoints.load_latest(tmp_path)
    assert (saved is None) is (at == 2)
    network = build_test_network("cifar10-deep")
    assert get_outcome(network, fit(network, TRAIN, VALIDATION, config, Callback(), resume_from=saved)) == uninterrupted


def test_checkpoints_stay_within_their_time_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a fake clock: a save takes 2 s, so the next automatic one waits for 100 s."""
    clock = [0.0]
    monkeypatch.setattr("sightline.training.state.time.monotonic", lambda: clock[0])
    written: list[float] = []

    def write(*_: Any) -> None:
        written.append(clock[0])
        clock[0] += 2

    monkeypatch.setattr("sightline.training.state.checkpoints.write_checkpoint", write)
    manager = CheckpointManager(tmp_path, TrainConfig(checkpoint_minutes=1.0), 0)

    def make_checkpoint() -> checkpoints.Checkpoint:
        return checkpoints.Checkpoint({}, {})

    for _ in range(300):
        clock[0] += 1
        manager.after_step(make_checkpoint)
    assert written == [60, 162, 264]
    clock[0] = 300
    manager.after_epoch(make_checkpoint)
    assert len(written) == 3
    clock[0] = 366
    manager.after_epoch(make_checkpoint)
    assert written[3:] == [366]
    step_manager = CheckpointManager(tmp_path, TrainConfig(checkpoint_minutes=0.0, checkpoint_steps=5), 0)
    for _ in range(12):
        step_manager.after_step(make_checkpoint)
    assert len(written) == 6


def test_a_nan_loss_reports_step_rate_and_files() -> None:
    config = RunConfig(train=TrainConfig(batch_size=8, optimizer=OptimizerConfig("sgd", 1e30)))
    with pytest.raises(
        DivergedError,
        match=r"diverged: the loss is nan at step \d of epoch 1, learning rate 1e\+30, in the batch of \d+\.png,",
    ) as caught:
        fit(build_test_network("fashion-cnn"), TRAIN, VALIDATION, config, Callback())
    assert set(caught.value.batch) <= set(TRAIN.paths)
    assert 1 <= len(caught.value.batch) <= 8


def test_a_nan_validation_loss_is_never_the_best() -> None:
    """The last step of an epoch may diverge, and no training step follows it."""
    train = TrainConfig(epochs=1, batch_size=len(TRAIN), optimizer=OptimizerConfig("sgd", 1e38))  # one step
    with pytest.raises(DivergedError, match="at the end of epoch 1, on validation") as caught:
        fit(build_test_network("fashion-cnn"), TRAIN, VALIDATION, RunConfig(train=train), Callback())
    assert set(caught.value.batch) == set(TRAIN.paths)


@pytest.mark.parametrize(
    ("unfreezes", "shared"),
    [
        ((0, 2, -1, 0), [(0, 2), (0, 2), (), (0,)]),
        ((-1,), [()]),
        ((99, 0), [(), (0,)]),  # the whole backbone is trained first: there are no frozen layers
    ],
)
def test_features_are_shared_by_the_same_stages_wherever_training_goes_on(unfreezes: Any, shared: Any) -> None:
    network = build_test_network("cifar10-deep")
    stage_configs = tuple(
        StageConfig(f"{n}", unfreeze=min(unfreeze, len(network.backbone))) for n, unfreeze in enumerate(unfreezes)
    )
    groups = [
        tuple(stage.unfreeze for stage in stages.group_stages(network, stage_configs, n))
        for n in range(len(stage_configs))
    ]
    assert groups == shared
