"""Exponential moving average: validation and the final model use the average, training continues from the weights."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from networks import make_plan, make_subset, random_images
from sightline import backend
from sightline.callbacks import Callback
from sightline.config import EarlyStoppingConfig, OptimizerConfig, RunConfig, TrainConfig
from sightline.models.build import Network, build_model
from sightline.training.ema import swap_in_ema
from sightline.training.loop import FitResult, fit
from sightline.training.optimizers import build_optimizer

DECAY = 0.7


TRAIN, VALIDATION = make_subset(24, 1), make_subset(9, 2)


@cache
def train_network(ema_decay: float, *, restore_best: bool) -> tuple[Network, FitResult, list[list[Any]]]:
    """Return a network, its training of twelve epochs, and the average of its weights after each epoch, by NumPy.

    Read-only. The average is that of `DECAY`, of the weights that the steps of this training made.
    """
    network = build_model(make_plan("cifar10-simple", classes=3, hidden_units=(8,)))
    averages: list[list[Any]] = []

    class AverageByNumPy(Callback):
        ema_weights: list[Any] | None = None

        def on_step_end(self, *_: object) -> None:
            weights = network.model.get_weights()
            self.ema_weights = (
                weights
                if self.ema_weights is None
                else [DECAY * a + (1 - DECAY) * b for a, b in zip(self.ema_weights, weights, strict=True)]
            )

        def on_epoch_end(self, _record: object) -> None:
            assert self.ema_weights is not None
            averages.append(self.ema_weights)

    train = TrainConfig(
        epochs=12, batch_size=8, optimizer=OptimizerConfig("sgd", 0.2, momentum=0.0), ema_decay=ema_decay,
        early_stopping=EarlyStoppingConfig(restore_best_weights=restore_best),
    )  # fmt: skip
    return network, fit(network, TRAIN, VALIDATION, RunConfig(train=train), AverageByNumPy()), averages


def train_without_average() -> tuple[Network, FitResult, list[list[Any]]]:
    return train_network(0.0, restore_best=False)


@pytest.mark.parametrize("best", [pytest.param(True, marks=pytest.mark.backends), False])
def test_a_run_ends_with_the_average(best: bool) -> None:
    network, fitted, _ = train_network(DECAY, restore_best=best)
    _, _, averages = train_without_average()
    epochs = 1 + int(np.argmin([r.val_loss or 0.0 for r in fitted.history])) if best else 12
    for ours, expected in zip(network.model.get_weights(), averages[epochs - 1], strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_validation_uses_the_average_and_training_continues_from_the_weights() -> None:
    _, plain, _ = train_without_average()
    network, fitted, _ = train_network(DECAY, restore_best=True)
    assert [r.loss for r in fitted.history] == [r.loss for r in plain.history], "training steps must not change"
    assert [r.val_loss for r in fitted.history] != [r.val_loss for r in plain.history]
    logits = network.model.predict_on_batch(VALIDATION.take(slice(None)))["logits"]
    assert fitted.validation_logits is not None
    np.testing.assert_allclose(logits, fitted.validation_logits, atol=1e-5)


@pytest.mark.backends
def test_the_weights_are_restored_bit_for_bit() -> None:
    keras = backend.keras()
    network = build_model(make_plan("cifar10-simple", classes=3, hidden_units=(8,)))
    training_model = keras.Model(network.model.input, network.logits)
    training_model.compile(optimizer=build_optimizer(OptimizerConfig("sgd", 0.3), 0.3, 0.9), loss="mse")
    for seed in range(3):
        training_model.train_on_batch(random_images(4, 8, seed=seed), np.eye(3, dtype=np.float32)[[0, 1, 2, 0]])
    before = training_model.get_weights()
    with swap_in_ema(training_model):
        assert any((a != b).any() for a, b in zip(before, training_model.get_weights(), strict=True))
    for a, b in zip(before, training_model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_short_run_does_not_average_its_initial_weights() -> None:
    """An average over more steps than there are would keep the untrained weights."""
    _, plain, _ = train_without_average()
    _, fitted, _ = train_network(0.999, restore_best=False)
    assert fitted.history[-1].val_loss == pytest.approx(plain.history[-1].val_loss, rel=0.05)
