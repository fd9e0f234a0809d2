"""The training loop against plain Keras: padded batches, class weights, best weights, rates and mixed labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import log_softmax

from networks import pictures, plan
from sightline import backend
from sightline.config import (
    AugmentConfig,
    EarlyStopConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    StageConfig,
    TrainConfig,
)
from sightline.data.loader import epoch_order
from sightline.models.build import Network, build
from sightline.models.describe import weights_sha256
from sightline.records import EpochRecord, Samples
from sightline.training import augment, devices
from sightline.training.fit import fit
from sightline.training.optimizer import label_shares
from sightline.watch import Watcher

SGD = OptimizerConfig("sgd", learning_rate=0.1, momentum=0.0)


def samples(labels: list[int], seed: int = 0, side: int = 8) -> Samples:
    count = len(labels)
    pixels = pictures(count, side, seed=seed)
    return Samples(pixels, np.arange(count), np.array(labels, np.int32), tuple(f"{seed}-{i}" for i in range(count)))


NONE = samples([])


def simple(seed: int = 0) -> Network:
    """Return a model without dropout and batch normalization, for 8x8 pixels and three classes."""
    return build(plan("fashion-cnn", classes=3, seed=seed))


def configured(augmenting: AugmentConfig | None = None, **train: Any) -> RunConfig:
    settings: dict[str, Any] = {"optimizer": SGD, "epochs": 1, "batch_size": 8}
    return RunConfig(augment=augmenting or AugmentConfig(), train=TrainConfig(**(settings | train)))


def by_keras(given: Samples, size: int, weights: dict[int, float] | None = None) -> tuple[Network, float, float]:
    """Train one epoch in plain Keras; return the model and the mean loss and accuracy before each step."""
    keras = backend.keras()
    made = simple()
    model = keras.Model(made.model.input, made.logits)
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    order = epoch_order(len(given), 0, 1)
    loss = right = 0.0
    for start in range(0, len(given), size):
        rows = order[start : start + size]
        pixels, labels = given.take(rows), given.labels[rows]
        right += (model.predict_on_batch(pixels).argmax(1) == labels).sum()
        loss += len(rows) * float(model.train_on_batch(pixels, labels, class_weight=weights))
    return made, loss / len(given), right / len(given)


def assert_same_weights(one: Network, other: Network, start: Network) -> None:
    for a, b, c in zip(one.model.get_weights(), other.model.get_weights(), start.model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
        assert (a != c).any(), "the weights must have changed"


LABELS = [0, 1, 1, 2, 1]


@pytest.mark.backends
def test_a_filled_step_is_the_step_of_its_real_pictures() -> None:
    given = samples(LABELS)
    made = simple()
    found = fit(made, given, NONE, configured(batch_size=3), Watcher())  # 3 images, then 2 and one padding row
    plain, loss, accuracy = by_keras(given, 3)
    (record,) = found.history
    assert record.loss == pytest.approx(loss, abs=1e-6)
    assert record.accuracy == pytest.approx(accuracy, abs=1e-6)
    assert_same_weights(made, plain, simple())


def test_filling_up_does_not_count_in_an_epoch_of_several_steps() -> None:
    """13 images in batches of 8: metrics are means over 13, and the second batch counts as 5."""
    given = samples([0, 1, 2] * 4 + [0])
    still = OptimizerConfig("sgd", learning_rate=0.0, momentum=0.0)
    made = simple()
    (record,) = fit(made, given, NONE, configured(optimizer=still), Watcher()).history
    logits = backend.keras().Model(made.model.input, made.logits).predict_on_batch(given.take(slice(None)))
    assert record.loss == pytest.approx(-log_softmax(logits, 1)[np.arange(13), given.labels].mean(), abs=1e-6)
    assert record.accuracy == pytest.approx((logits.argmax(1) == given.labels).mean(), abs=1e-6)


@pytest.mark.parametrize("batch_size", [5, 3])
def test_balanced_classes_are_keras_class_weights(batch_size: int) -> None:
    given = samples(LABELS)
    made = simple()
    found = fit(made, given, NONE, configured(batch_size=batch_size, class_weights="balanced"), Watcher())
    plain, loss, accuracy = by_keras(given, batch_size, {0: 5 / 3, 1: 5 / 9, 2: 5 / 3})
    (record,) = found.history
    assert record.loss == pytest.approx(loss, abs=1e-6)
    assert record.accuracy == pytest.approx(accuracy, abs=1e-6)
    assert_same_weights(made, plain, simple())


class Weights(Watcher):
    """Records the hash of the weights after each epoch, and all messages."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.seen: dict[int, str] = {}
        self.said: list[str] = []

    def epoch(self, record: EpochRecord) -> None:
        self.seen[record.epoch] = weights_sha256(self.network.model)

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize(
    ("plans", "best", "restore"),
    [
        ([(0, 0.05), (-1, 1.0)], "first", True),  # the head only, then all weights are ruined
        ([(-1, 0.01), (2, 0.01), (0, 100.0)], "second", True),  # layers frozen later were trained before
        ([(0, 0.05), (-1, 1.0)], "first", False),
    ],
    ids=range(3),
)
def test_best_weights_are_whole_whatever_was_frozen(plans: list[tuple[int, float]], best: str, restore: bool) -> None:
    made = simple()
    stages = tuple(
        StageConfig(name, thaw=thaw, learning_rate=rate, epochs=2)
        for name, (thaw, rate) in zip(("first", "second", "third"), plans, strict=False)
    )
    given = samples([0, 1, 2] * 8)
    watcher = Weights(made)
    config = configured(stages=stages, early_stop=EarlyStopConfig(restore_best=restore))
    found = fit(made, given, given, config, watcher)  # validated on the training images, so that training improves it
    assert found.best is not None
    assert found.best.stage == best
    assert len(set(watcher.seen.values())) == 2 * len(plans)
    assert weights_sha256(made.model) == watcher.seen[found.best.epoch if restore else 2 * len(plans)]


# Rates


def test_the_rate_falls_on_a_plateau_and_starts_anew_with_the_stage() -> None:
    stuck = OptimizerConfig("sgd", learning_rate=1e-12, momentum=0.0)
    schedule = ScheduleConfig(name="plateau", monitor="val_accuracy", compare="previous", patience=2, factor=0.1)
    stages = (StageConfig("one", epochs=6), StageConfig("two", epochs=2, learning_rate=1e-11))
    config = configured(optimizer=stuck, schedule=schedule, stages=stages)
    found = fit(simple(), samples(LABELS), samples(LABELS, 1), config, Watcher())
    rates = [record.learning_rate for record in found.history]
    assert rates == pytest.approx([1e-12] * 3 + [1e-13] * 2 + [1e-14] + [1e-11] * 2)


# Mixing


def soft_cross_entropy(network: Network, pixels: NDArray[Any], shares: NDArray[np.float32]) -> NDArray[np.float64]:
    logits = backend.keras().Model(network.model.input, network.logits).predict_on_batch(pixels)
    return np.asarray(-(shares * log_softmax(logits.astype(np.float64), 1)).sum(1))


@pytest.mark.parametrize(
    "changing",
    [AugmentConfig(mixup=1.0), AugmentConfig(cutmix=1.0, flip=True), AugmentConfig(mixup=0.5, cutmix=1.0)],
    ids=["mixup", "cutmix", "both"],
)
def test_pixels_and_labels_are_mixed_alike(changing: AugmentConfig) -> None:
    """At learning rate 0, the loss of an epoch matches NumPy; in the second step, a partner is a padding row."""
    still = OptimizerConfig("sgd", learning_rate=0.0, momentum=0.0)
    config = configured(changing, optimizer=still, label_smoothing=0.1, class_weights="balanced")
    given, made = samples(LABELS * 2), simple()  # 10 real images in two steps of 8
    (record,) = fit(made, given, NONE, config, Watcher()).history
    order = np.resize(epoch_order(10, 0, 1), 16)
    drawn = augment.draw(changing, 10, (8, 8), 0, 1)[order]
    weights = np.array([5 / 3, 5 / 9, 5 / 3], np.float32)[given.labels[order], None]
    shares = label_shares(given.labels[order], 3, 0.1) * weights
    keep = drawn[:, augment.MIXED][:, :1]
    partners = np.concatenate([np.roll(np.arange(start, start + 8), 1) for start in (0, 8)])
    mixed = keep * shares + (1 - keep) * shares[partners]
    to_numpy = backend.keras().ops.convert_to_numpy
    steps = [slice(0, 8), slice(8, 16)]
    pixels = np.concatenate([to_numpy(augment.apply(changing, given.take(order[s]), drawn[s])) for s in steps])
    assert record.loss == pytest.approx(soft_cross_entropy(made, pixels, mixed)[:10].mean(), abs=1e-5)
    assert record.loss != pytest.approx(soft_cross_entropy(made, pixels, shares)[:10].mean(), abs=1e-3)


def test_features_of_frozen_layers_are_not_mixed_and_that_is_said() -> None:
    changing = AugmentConfig(flip=True, mixup=1.0)
    still = OptimizerConfig("sgd", learning_rate=0.0, momentum=0.0)
    head = (StageConfig("head", thaw=0, views=2),)
    given = samples(LABELS)
    losses = []
    for augmenting in (changing, AugmentConfig(flip=True)):
        made = simple()
        watcher = Weights(made)
        found = fit(made, given, NONE, configured(augmenting, optimizer=still, stages=head), watcher)
        losses.append(found.history[0].loss)
        assert any("mixup and CutMix do not apply" in line for line in watcher.said) is (augmenting is changing)
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_training_with_everything_on_learns() -> None:
    everything = AugmentConfig(
        flip=True, rotation=10, shift=0.1, zoom=0.1, crop=0.1, brightness=0.1, contrast=0.1, saturation=0.1, hue=0.05,
        erasing=0.3, randaugment=1, mixup=0.2, cutmix=1.0,
    )  # fmt: skip
    colours = np.repeat(np.eye(3, dtype=np.uint8) * 255, 16, 0)[:, None, None]
    pixels = np.ascontiguousarray(np.broadcast_to(colours, (48, 8, 8, 3)))
    labels = np.repeat(np.arange(3, dtype=np.int32), 16)
    given = Samples(pixels, np.arange(48), labels, tuple(map(str, range(48))))
    config = configured(everything, epochs=12, optimizer=OptimizerConfig("adam", learning_rate=3e-3))
    found = fit(simple(), given, given, config, Watcher())
    assert found.best is not None
    assert found.best.val_accuracy == 1


# A batch larger than the data


def test_a_batch_larger_than_the_data_is_the_data() -> None:
    """The batch must not be padded: a padding row costs as much time and memory as an image."""
    given = samples(LABELS)
    outcomes, watchers = [], []
    for size in (5, 500):
        made = simple()
        watchers.append(watcher := Weights(made))
        found = fit(made, given, given, configured(batch_size=size, epochs=2), watcher)
        outcomes.append((weights_sha256(made.model), [(r.loss, r.val_loss) for r in found.history]))
    assert outcomes[0] == outcomes[1]
    assert watchers[-1].said == ["training: the batch size is 5, not 500: there are no more images"]


def test_a_clamped_batch_is_what_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def stepper(model: Any) -> devices.Step:
        def step(inputs: Any, shares: Any, weights: Any) -> dict[str, float]:
            seen.append(len(inputs))
            assert len(inputs) == len(shares) == len(weights)
            return {"loss": 1.0, "categorical_accuracy": 0.0}

        return step

    monkeypatch.setattr(devices, "stepper", stepper)
    fit(simple(), samples(LABELS), NONE, configured(batch_size=64), Watcher())
    monkeypatch.setattr(devices, "replicas", lambda: 4)
    fit(simple(), samples(LABELS), NONE, configured(batch_size=64), Watcher())
    assert seen == [5, 8], "a multiple of four devices"


def test_a_loss_of_minus_zero_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """For perfect predictions, Keras returns -0.0, which would be printed as -0.0000."""

    def stepper(model: Any) -> devices.Step:
        return lambda inputs, shares, weights: {"loss": -0.0, "categorical_accuracy": 1.0}

    monkeypatch.setattr(devices, "stepper", stepper)
    (record,) = fit(simple(), samples(LABELS), NONE, configured(), Watcher()).history
    assert f"{record.loss:.4f}" == "0.0000"
