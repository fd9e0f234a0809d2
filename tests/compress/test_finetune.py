"""Fine-tuning: `--epochs` limits each training, and a training that was interrupted continues where it was."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from networks import make_plan, random_images
from sightline.api.compression import _choose_epochs
from sightline.callbacks import Callback
from sightline.compress import finetune
from sightline.compress.distill import TeacherLogits
from sightline.compress.finetune import MAX_EPOCH_FACTOR, FineTuner
from sightline.config import AugmentConfig, RunConfig, StageConfig, TrainConfig
from sightline.data.dataset import DecodedDataset
from sightline.data.types import Subset
from sightline.errors import ModelError
from sightline.models.build import build_model
from sightline.training import checkpoints
from sightline.training.checkpoints import Arrays

SOME = Subset(random_images(6, 8), np.arange(6), np.zeros(6, np.int32), ("",) * 6)


@pytest.mark.parametrize(("epochs", "head"), [(0, 0), (1, 3), (4, 12), (20, 60), (100, 60)])
def test_a_new_head_takes_at_most_three_times_the_epochs(
    epochs: int, head: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With so few images it takes the maximum, and batches no larger than the number of images."""
    requests: list[TrainConfig] = []
    monkeypatch.setattr(finetune, "fit", lambda *arguments, **_: requests.append(arguments[3].train))
    tuner = FineTuner(RunConfig(train=TrainConfig(batch_size=64)), SOME, SOME, epochs, (), False, None, Callback())
    network = build_model(make_plan("fashion-cnn", classes=3))
    tuner.train_head(network, tmp_path / "head")
    tuner.fine_tune(network, tmp_path / "fine-tune")
    assert requests[0].stages[0].epochs == head <= MAX_EPOCH_FACTOR * epochs
    assert requests[0].stages[0].batch_size == 6
    assert [train.epochs for train in requests[1:]] == [epochs] * (epochs > 0)


class Few:
    def __init__(self, count: int) -> None:
        self.count = count

    def counts(self) -> Mapping[str, int]:
        return {"train": self.count}


@pytest.mark.parametrize(
    ("train", "count", "expected"),
    [
        (TrainConfig(epochs=40), 3200, 10),
        (TrainConfig(epochs=40, stages=(StageConfig(epochs=12), StageConfig(epochs=4))), 3200, 4),
        (TrainConfig(epochs=12, stages=(StageConfig(), StageConfig(epochs=4))), 3200, 4),
        (TrainConfig(epochs=1), 320, 10),  # a hundred steps
        (TrainConfig(epochs=1), 32, 20),
    ],
)
def test_the_default_is_a_quarter_of_the_epochs_of_all_stages(train: TrainConfig, count: int, expected: int) -> None:
    data: Any = Few(count)
    assert _choose_epochs(RunConfig(train=train), cast("DecodedDataset", data)) == expected


class StopAt(Callback):
    """Counts the steps of all trainings; stops at one of them, as Ctrl-C does."""

    def __init__(self, step: int = 0) -> None:
        self.step, self.steps = step, 0

    def on_step_end(self, *_: Any) -> None:
        self.steps += 1
        if self.steps == self.step:
            raise KeyboardInterrupt


@pytest.mark.slow_with("False")
@pytest.mark.parametrize("teacher", [False, True])
def test_an_interrupted_fine_tuning_continues_from_its_last_step(teacher: bool, tmp_path: Path) -> None:
    """Two trainings of two epochs of three steps, stopped in either: the weights are those of an uninterrupted one."""
    labels = (np.arange(12) % 3).astype(np.int32)
    images = Subset(random_images(12, 8), np.arange(12), labels, ("",) * 12)
    logits = np.random.default_rng(0).normal(0, 3, (1, 12, 3)).astype(np.float32)
    taught = TeacherLogits(logits, np.zeros((1, 12, 0), np.float32), AugmentConfig())
    config = RunConfig(train=TrainConfig(batch_size=4, checkpoint_steps=1, ema_decay=0.5))

    def train(folder: Path, stop: int = 0) -> tuple[Arrays, int]:
        callback = StopAt(stop)
        tuner = FineTuner(config, images, images, 2, (), False, (lambda: taught) if teacher else None, callback)
        network = tuner.make_network(build_model(make_plan("cifar10-simple", side=8, classes=3)).model)
        for number in (1, 2):
            tuner.fine_tune(network, folder / str(number))
        return checkpoints.copy_variables(network.model), callback.steps

    expected, steps = train(tmp_path / "whole")
    assert steps == 12
    for stop in (4, 9):
        folder = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            train(folder, stop)
        weights, steps = train(folder)
        assert steps == 12 - stop + 1, "the step that was interrupted is repeated, and no other"
        for name, array in expected.items():
            np.testing.assert_array_equal(weights[name], array, err_msg=name)


def test_validation_images_do_not_select_the_weights(tmp_path: Path) -> None:
    """The best of several epochs on the images that accept a candidate would look better than it is."""
    labels = (np.arange(12) % 3).astype(np.int32)
    images = Subset(random_images(12, 8), np.arange(12), labels, ("",) * 12)
    weights = []
    for number in range(3):
        validation = replace(images, labels=((labels + number) % 3).astype(np.int32))
        tuner = FineTuner(
            RunConfig(train=TrainConfig(batch_size=4)), images, validation, 4, (), False, None, Callback()
        )
        network = tuner.make_network(build_model(make_plan("cifar10-simple", side=8, classes=3)).model)
        tuner.fine_tune(network, tmp_path / str(number))
        weights.append(checkpoints.copy_variables(network.model))
    for name, array in weights[0].items():
        for others in weights[1:]:
            np.testing.assert_array_equal(others[name], array, err_msg=name)


def test_checkpoints_of_another_network_are_named(tmp_path: Path) -> None:
    tuner = FineTuner(RunConfig(train=TrainConfig(batch_size=4)), SOME, SOME, 1, (), False, None, Callback())
    tuner.fine_tune(build_model(make_plan("cifar10-simple", side=8, classes=3)), tmp_path / "one")
    other = build_model(make_plan("cifar10-simple", side=8, classes=3, hidden_units=(5,)))
    with pytest.raises(ModelError, match=re.escape(f"Remove {tmp_path / 'one'} to train again.")):
        tuner.fine_tune(other, tmp_path / "one")
