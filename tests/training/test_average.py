"""Exponential moving average: validation and the final model use the average, training continues from the weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from networks import pictures, plan
from sightline import backend
from sightline.config import EarlyStopConfig, OptimizerConfig, RunConfig, TrainConfig
from sightline.models.build import Network, build
from sightline.records import Samples
from sightline.training.average import averaged
from sightline.training.fit import Fitted, fit
from sightline.training.optimizer import optimizer
from sightline.watch import Watcher

SHARE = 0.7


def samples(count: int, seed: int) -> Samples:
    labels = (np.arange(count) % 3).astype(np.int32)
    return Samples(pictures(count, 8, seed=seed), np.arange(count), labels, tuple(f"{i}.png" for i in range(count)))


TRAIN, HELD_OUT = samples(24, 1), samples(9, 2)


def trained(average: float, *, best: bool, epochs: int = 12) -> tuple[Network, Fitted]:
    network = build(plan("fashion-cnn", classes=3))
    train = TrainConfig(
        epochs=epochs, batch_size=8, optimizer=OptimizerConfig("sgd", 0.2, momentum=0.0), average=average,
        early_stop=EarlyStopConfig(restore_best=best),
    )  # fmt: skip
    return network, fit(network, TRAIN, HELD_OUT, RunConfig(train=train), Watcher())


def by_hand(epochs: int) -> list[Any]:
    """Run the same steps without an average; return the average of the weights after each step, by NumPy."""
    network = build(plan("fashion-cnn", classes=3))
    found: list[Any] = []

    class Steps(Watcher):
        def step(self, *_: object) -> None:
            now = network.model.get_weights()
            found[:] = now if not found else [SHARE * a + (1 - SHARE) * b for a, b in zip(found, now, strict=True)]

    train = TrainConfig(epochs=epochs, batch_size=8, optimizer=OptimizerConfig("sgd", 0.2, momentum=0.0))
    fit(network, TRAIN, HELD_OUT, RunConfig(train=train), Steps())
    return found


@pytest.mark.parametrize("best", [pytest.param(True, marks=pytest.mark.backends), False])
def test_a_run_ends_with_the_average(best: bool) -> None:
    network, fitted = trained(SHARE, best=best)
    epochs = 1 + int(np.argmin([r.val_loss or 0.0 for r in fitted.history])) if best else 12
    for ours, expected in zip(network.model.get_weights(), by_hand(epochs), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_the_average_is_what_is_judged_and_steps_go_on_from_the_weights() -> None:
    _, plain = trained(0.0, best=False)
    network, fitted = trained(SHARE, best=True)
    assert [r.loss for r in fitted.history] == [r.loss for r in plain.history], "training steps must not change"
    assert [r.val_loss for r in fitted.history] != [r.val_loss for r in plain.history]
    logits = network.model.predict_on_batch(HELD_OUT.take(slice(None)))["logits"]
    assert fitted.validation_logits is not None
    np.testing.assert_allclose(logits, fitted.validation_logits, atol=1e-5)


@pytest.mark.backends
def test_the_weights_come_back_bit_for_bit() -> None:
    keras = backend.keras()
    network = build(plan("fashion-cnn", classes=3))
    learner = keras.Model(network.model.input, network.logits)
    learner.compile(optimizer=optimizer(OptimizerConfig("sgd", 0.3), 0.3, 0.9), loss="mse")
    for seed in range(3):
        learner.train_on_batch(pictures(4, 8, seed=seed), np.eye(3, dtype=np.float32)[[0, 1, 2, 0]])
    before = learner.get_weights()
    with averaged(learner):
        assert any((a != b).any() for a, b in zip(before, learner.get_weights(), strict=True))
    for a, b in zip(before, learner.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_short_run_is_not_judged_by_its_beginning() -> None:
    """An average over more steps than there are would keep the untrained weights."""
    _, plain = trained(0.0, best=False)
    _, fitted = trained(0.999, best=False)
    assert fitted.history[-1].val_loss == pytest.approx(plain.history[-1].val_loss, rel=0.05)
