"""Training on images that the device keeps gives the same weights as batches from the host, bit for bit; on JAX."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from networks import make_plan, make_subset
from sightline import backend
from sightline.callbacks import Callback, no_progress
from sightline.config import (
    AugmentConfig,
    DeviceConfig,
    EarlyStoppingConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    StageConfig,
    TrainConfig,
)
from sightline.errors import DivergedError, Interrupted, UsageError
from sightline.inference import device_images
from sightline.models.build import Network, build_model
from sightline.models.describe import weights_sha256
from sightline.training import device_steps, stage_features
from sightline.training.loop import FitResult, fit
from sightline.training.state import load_latest

pytestmark = pytest.mark.backends
ON_JAX = pytest.mark.usefixtures("on_jax")


@pytest.fixture(scope="module")
def on_jax() -> None:
    if backend.name() != "jax":
        pytest.skip("only JAX keeps images on its device")


TRAIN, VALIDATION = make_subset(29), make_subset(9, 1)  # 4 steps of 8, the last of 5 images
CONFIG = RunConfig(
    seed=3,
    augment=AugmentConfig(horizontal_flip=True, rotation=20, brightness=0.1, mixup=0.4),
    train=TrainConfig(
        epochs=3, batch_size=8, checkpoint_minutes=0, optimizer=OptimizerConfig("adam", 3e-3), ema_decay=0.5,
        schedule=ScheduleConfig("cosine"), class_weights="balanced",
        early_stopping=EarlyStoppingConfig(monitor="val_loss"),
    ),
    device=DeviceConfig(data_on_device="on"),
)  # fmt: skip
STAGED = replace(
    CONFIG,
    train=replace(
        CONFIG.train,
        stages=(StageConfig("head", unfreeze=0, epochs=2), StageConfig("all", unfreeze=-1, epochs=2)),
    ),
)


def from_host(config: RunConfig) -> RunConfig:
    return replace(config, device=replace(config.device, data_on_device="off"))


def build_network() -> Network:
    return build_model(make_plan("cifar10-simple", classes=3, hidden_units=(8,)))  # with dropout


def train(config: RunConfig, callback: Callback | None = None, **options: Any) -> tuple[Network, FitResult]:
    network = build_network()
    return network, fit(network, TRAIN, VALIDATION, config, callback or Callback(), **options)


def get_outcome(network: Network, result: FitResult) -> tuple[Any, ...]:
    """Return all that must be the same: weights, losses, accuracies, rates and validation logits."""
    records = [replace(record, seconds=0, images_per_second=0) for record in result.history]
    logits = result.validation_logits
    return weights_sha256(network.model), records, None if logits is None else logits.tobytes()


@pytest.fixture(scope="module")
def on_host(on_jax: None) -> tuple[Any, ...]:
    return get_outcome(*train(from_host(CONFIG)))


@ON_JAX
def test_the_weights_are_those_of_batches_from_the_host(on_host: Any) -> None:
    assert get_outcome(*train(CONFIG)) == on_host


@ON_JAX
def test_images_that_do_not_fit_are_copied_ahead(on_host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps to a chunk: the second thread makes two chunks an epoch, and those of the next epoch."""
    monkeypatch.setattr(device_images, "find_free_bytes", lambda: 1000)
    monkeypatch.setattr(device_steps, "CHUNK_BYTES", 2 * 8 * (8 * 8 * 3 + 150))
    chunks: list[tuple[int, int]] = []
    make_chunk = device_steps.DeviceRunner._make_chunk

    def count(runner: Any, epoch: int, number: int) -> Any:
        chunks.append((epoch, number))
        return make_chunk(runner, epoch, number)

    monkeypatch.setattr(device_steps.DeviceRunner, "_make_chunk", count)
    assert get_outcome(*train(CONFIG)) == on_host
    assert chunks == [(epoch, number) for epoch in (1, 2, 3) for number in (0, 1)]


@ON_JAX
@pytest.mark.slow
def test_stages_of_frozen_features_give_the_same_weights() -> None:
    assert get_outcome(*train(STAGED)) == get_outcome(*train(from_host(STAGED)))


class StepCallback(Callback):
    """Records the steps that were reported, and sends SIGTERM at one of them."""

    def __init__(self, signal_at: int = -1) -> None:
        self.steps: list[tuple[int, int]] = []
        self._signal_at = signal_at

    def on_step_end(self, epoch: int, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
        self.steps.append((epoch, step))
        if len(self.steps) == self._signal_at:
            signal.raise_signal(signal.SIGTERM)


@ON_JAX
@pytest.mark.usefixtures("claimed", "no_thread_left")
@pytest.mark.parametrize("at", [pytest.param(1, marks=pytest.mark.slow), 6])
def test_an_interrupted_training_resumes_bit_for_bit(
    at: int, on_host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps in flight at the signal are waited for, reported, and part of the checkpoint."""
    monkeypatch.setattr(device_steps, "READ_SECONDS", 1e9)  # as many steps between two readings as there may be
    callback = StepCallback(at)
    with pytest.raises(Interrupted, match=r"in epoch \d, before step \d of 4|while validating"):
        train(CONFIG, callback, checkpoint_dir=tmp_path)
    saved = load_latest(tmp_path)
    assert saved is not None
    assert len(callback.steps) == 4 * saved.state["epoch"] + saved.state["step"]
    resumed = StepCallback()
    assert get_outcome(*train(CONFIG, resumed, resume_from=saved)) == on_host
    assert callback.steps + resumed.steps == [(epoch, step) for epoch in (1, 2, 3) for step in (1, 2, 3, 4)]


@ON_JAX
def test_a_checkpoint_between_two_readings_holds_every_step_before_it(on_host: Any, tmp_path: Path) -> None:
    config = replace(CONFIG, train=replace(CONFIG.train, checkpoint_steps=3, max_checkpoints=50))
    assert get_outcome(*train(config, checkpoint_dir=tmp_path)) == on_host
    saved = [np.load(path)["state"].item() for path in sorted(tmp_path.glob("*.npz"))]
    assert any('"step": 3' in state for state in saved)


@ON_JAX
def test_a_loss_that_is_not_finite_is_reported_with_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found at a later reading, and the error names the step, the rate and the images of a host's training."""
    monkeypatch.setattr(device_steps, "READ_SECONDS", 1e9)
    optimizer = OptimizerConfig("sgd", 1e30)
    config = replace(CONFIG, train=replace(CONFIG.train, optimizer=optimizer, schedule=ScheduleConfig()))
    errors = []
    for each in (config, from_host(config)):
        callback = StepCallback()
        with pytest.raises(DivergedError, match=r"at step \d of epoch 1, learning rate 1e\+30, in") as caught:
            train(each, callback)
        errors.append((str(caught.value), caught.value.batch, callback.steps))
    assert errors[0] == errors[1]


@ON_JAX
def test_an_error_leaves_weights_in_the_model() -> None:
    """The variables of a step that was started hold deleted buffers until its result is stored."""

    class Failing(Callback):
        def on_step_end(self, epoch: int, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
            raise KeyboardInterrupt

    network = build_network()
    with pytest.raises(KeyboardInterrupt):
        fit(network, TRAIN, VALIDATION, CONFIG, Failing())
    assert np.isfinite(network.model.predict_on_batch(VALIDATION.take(slice(None)))["logits"]).all()


def test_the_setting_is_refused_where_it_has_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not device_images.keeps_images(DeviceConfig(data_on_device="off"))
    assert not device_images.keeps_images(DeviceConfig()), "a CPU has its images in memory anyway"
    if backend.name() != "jax":
        with pytest.raises(UsageError, match=r"data_on_device is on, but \w+ cannot: use device.backend=jax, or"):
            device_images.keeps_images(DeviceConfig(data_on_device="on"))
    else:
        assert device_images.keeps_images(DeviceConfig(data_on_device="on"))
        monkeypatch.setattr(backend, "has_accelerator", lambda: True)
        assert device_images.keeps_images(DeviceConfig())


@ON_JAX
@pytest.mark.parametrize("count", [9, 70])
def test_features_of_frozen_layers_do_not_wait_for_each_other(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 32, the last one padded, with the bits that batches from the host have."""
    network = build_model(make_plan("fashion-cnn", side=8))
    group = [StageConfig(unfreeze=0, views=2)]
    launched: list[int] = []
    iterate = device_images.DeviceInference.iterate

    def count_batches(inference: Any, *arguments: Any, **options: Any) -> Any:
        for batch in iterate(inference, *arguments, **options):
            launched.append(len(batch))
            yield batch

    monkeypatch.setattr(device_images.DeviceInference, "iterate", count_batches)
    rows = {}
    for setting in ("on", "off"):
        device = DeviceConfig(feature_runtime="keras", data_on_device=setting)
        config = replace(CONFIG, device=device)
        features = stage_features.extract_features(network, group, make_subset(count), VALIDATION, config, no_progress)
        assert features is not None
        rows[setting] = [subset.take(slice(None)).tobytes() for subset in (features.train, features.validation)]
        assert sum(launched) == count + len(VALIDATION), "the original images, not their augmented copies"
    assert rows["on"] == rows["off"]
