"""The training loop against plain Keras: padded batches, class weights, best weights, rates and mixed labels."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import log_softmax

from networks import make_plan, random_images
from sightline import backend
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
from sightline.data.batches import epoch_order
from sightline.data.types import Subset
from sightline.distributed import devices
from sightline.inference import frozen_layers
from sightline.models.build import Network, build_model
from sightline.models.describe import weights_sha256
from sightline.tasks.protocol import find_task
from sightline.training.augment import pipeline
from sightline.training.loop import fit
from sightline.training.optimizers import smooth_labels

SGD = OptimizerConfig("sgd", learning_rate=0.1, momentum=0.0)


def make_subset(labels: list[int], seed: int = 0, side: int = 8) -> Subset:
    count = len(labels)
    pixels = random_images(count, side, seed=seed)
    return Subset(pixels, np.arange(count), np.array(labels, np.int32), tuple(f"{seed}-{i}" for i in range(count)))


EMPTY = make_subset([])


def build_simple_network(seed: int = 0) -> Network:
    """Return a model without dropout and batch normalization, for 8x8 pixels and three classes."""
    return build_model(make_plan("fashion-cnn", classes=3, seed=seed))


def make_config(augment_config: AugmentConfig | None = None, **train: Any) -> RunConfig:
    settings: dict[str, Any] = {"optimizer": SGD, "epochs": 1, "batch_size": 8}
    return RunConfig(augment=augment_config or AugmentConfig(), train=TrainConfig(**(settings | train)))


def train_with_keras(
    subset: Subset, size: int, weights: dict[int, float] | None = None
) -> tuple[Network, float, float]:
    """Train one epoch in plain Keras; return the model and the mean loss and accuracy before each step."""
    keras = backend.keras()
    network = build_simple_network()
    model = keras.Model(network.model.input, network.logits)
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    order = epoch_order(len(subset), 0, 1)
    loss = num_correct = 0.0
    for start in range(0, len(subset), size):
        rows = order[start : start + size]
        pixels, labels = subset.take(rows), subset.labels[rows]
        num_correct += (model.predict_on_batch(pixels).argmax(1) == labels).sum()
        loss += len(rows) * float(model.train_on_batch(pixels, labels, class_weight=weights))
    return network, loss / len(subset), num_correct / len(subset)


def assert_same_weights(one: Network, other: Network, start: Network) -> None:
    for a, b, c in zip(one.model.get_weights(), other.model.get_weights(), start.model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
        assert (a != c).any(), "the weights must have changed"


LABELS = [0, 1, 1, 2, 1]


@pytest.mark.backends
def test_a_padded_step_equals_a_step_on_its_images() -> None:
    subset = make_subset(LABELS)
    network = build_simple_network()
    result = fit(network, subset, EMPTY, make_config(batch_size=3), Callback())  # 3 images, then 2 and one padding row
    keras_network, loss, accuracy = train_with_keras(subset, 3)
    (record,) = result.history
    assert record.loss == pytest.approx(loss, abs=1e-6)
    assert record.accuracy == pytest.approx(accuracy, abs=1e-6)
    assert_same_weights(network, keras_network, build_simple_network())


def test_a_step_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFlow traces it again if a first trace creates variables, such as those of a metric given by name."""
    if backend.name() != "tensorflow":
        pytest.skip("only TensorFlow traces again")
    model_class, traces = backend.keras().Model, []
    train_step = model_class.train_step

    def count(model: Any, data: Any) -> Any:
        traces.append(data)
        return train_step(model, data)

    monkeypatch.setattr(model_class, "train_step", count)
    fit(build_simple_network(), make_subset(LABELS), EMPTY, make_config(batch_size=3), Callback())
    assert len(traces) == 1


def test_padding_does_not_count_in_an_epoch_of_several_steps() -> None:
    """13 images in batches of 8: metrics are means over 13, and the second batch counts as 5."""
    subset = make_subset([0, 1, 2] * 4 + [0])
    zero_rate = OptimizerConfig("sgd", learning_rate=0.0, momentum=0.0)
    network = build_simple_network()
    (record,) = fit(network, subset, EMPTY, make_config(optimizer=zero_rate), Callback()).history
    logits = backend.keras().Model(network.model.input, network.logits).predict_on_batch(subset.take(slice(None)))
    assert record.loss == pytest.approx(-log_softmax(logits, 1)[np.arange(13), subset.labels].mean(), abs=1e-6)
    assert record.accuracy == pytest.approx((logits.argmax(1) == subset.labels).mean(), abs=1e-6)


@pytest.mark.parametrize("batch_size", [5, 3])
def test_balanced_classes_are_keras_class_weights(batch_size: int) -> None:
    subset = make_subset(LABELS)
    network = build_simple_network()
    result = fit(network, subset, EMPTY, make_config(batch_size=batch_size, class_weights="balanced"), Callback())
    keras_network, loss, accuracy = train_with_keras(subset, batch_size, {0: 5 / 3, 1: 5 / 9, 2: 5 / 3})
    (record,) = result.history
    assert record.loss == pytest.approx(loss, abs=1e-6)
    assert record.accuracy == pytest.approx(accuracy, abs=1e-6)
    assert_same_weights(network, keras_network, build_simple_network())


class WeightsCallback(Callback):
    """Records the hash of the weights after each epoch, and all messages."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.hashes: dict[int, str] = {}
        self.messages: list[str] = []

    def on_epoch_end(self, record: EpochRecord) -> None:
        self.hashes[record.epoch] = weights_sha256(self.network.model)

    def on_message(self, text: str) -> None:
        self.messages.append(text)


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
    network = build_simple_network()
    stages = tuple(
        StageConfig(name, unfreeze=unfreeze, learning_rate=rate, epochs=2)
        for name, (unfreeze, rate) in zip(("first", "second", "third"), plans, strict=False)
    )
    subset = make_subset([0, 1, 2] * 8)
    callback = WeightsCallback(network)
    config = make_config(stages=stages, early_stopping=EarlyStoppingConfig(restore_best_weights=restore))
    result = fit(
        network, subset, subset, config, callback
    )  # validated on the training images, so that training improves it
    assert result.best is not None
    assert result.best.stage == best
    assert len(set(callback.hashes.values())) == 2 * len(plans)
    assert weights_sha256(network.model) == callback.hashes[result.best.epoch if restore else 2 * len(plans)]


def test_an_epoch_that_is_only_overconfident_is_not_worse() -> None:
    """Its loss is higher, and its loss after temperature scaling the same, so a lower one is left to chance alone."""
    task, logits = find_task("single_label"), np.array([[3, 0, 0], [0, 2, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    labels = np.array([0, 1, 2, 2], np.int32)
    calibrated = task.compute_calibrated_loss(logits, labels)
    assert task.score(10 * logits, labels).loss > 2 * task.score(logits, labels).loss > 2 * calibrated
    assert task.compute_calibrated_loss(10 * logits, labels) == pytest.approx(calibrated, abs=1e-6)


@pytest.mark.parametrize("monitor", ["val_loss", "val_calibrated_loss"])
def test_the_best_epoch_has_the_lowest_loss_after_temperature_scaling(monitor: Any) -> None:
    """The logits of each epoch are seen by the task, so that the losses can be computed again."""
    train, validation = make_subset([0, 1, 2, 0, 1, 2, 1]), make_subset([0, 1, 2, 1, 1, 0], seed=4)
    config = make_config(epochs=4, early_stopping=EarlyStoppingConfig(monitor=monitor))
    result = fit(build_simple_network(), train, validation, config, Callback())
    losses = [getattr(record, monitor) for record in result.history]
    assert result.best == result.history[int(np.argmin(losses))]
    assert all(record.val_calibrated_loss is None for record in result.history) is (monitor == "val_loss")
    if monitor == "val_calibrated_loss":
        assert result.best is not None
        assert result.validation_logits is not None
        expected = find_task("single_label").compute_calibrated_loss(result.validation_logits, validation.labels)
        assert result.best.val_calibrated_loss == pytest.approx(expected)


def test_a_named_epoch_is_reached_whatever_came_before() -> None:
    """The first stage is perfect on validation, and the settings name an epoch of the second."""
    stages = (StageConfig("solved", unfreeze=0, solver="logistic"), StageConfig("named", epochs=3))
    validation = make_subset([0, 1, 2])
    for epoch, expected in ((None, ["solved"]), (3, ["solved", "named", "named"])):
        early_stopping = EarlyStoppingConfig(monitor="val_accuracy", epoch=epoch)
        config = make_config(stages=stages, early_stopping=early_stopping)
        network = build_model(make_plan("cifar10-simple", side=8, classes=3, hidden_units=()))
        result = fit(network, validation, validation, config, Callback())
        assert result.history[0].val_accuracy == 1
        assert [record.stage for record in result.history] == expected
        assert result.best == result.history[-1]


# Rates


def test_the_rate_drops_on_a_plateau_and_restarts_with_the_stage() -> None:
    tiny_rate = OptimizerConfig("sgd", learning_rate=1e-12, momentum=0.0)
    schedule = ScheduleConfig(name="plateau", monitor="val_accuracy", compare="previous", patience=2, factor=0.1)
    stages = (StageConfig("one", epochs=6), StageConfig("two", epochs=2, learning_rate=1e-11))
    config = make_config(optimizer=tiny_rate, schedule=schedule, stages=stages)
    result = fit(build_simple_network(), make_subset(LABELS), make_subset(LABELS, 1), config, Callback())
    rates = [record.learning_rate for record in result.history]
    assert rates == pytest.approx([1e-12] * 3 + [1e-13] * 2 + [1e-14] + [1e-11] * 2)


# Mixing


def soft_cross_entropy(network: Network, pixels: NDArray[Any], soft_labels: NDArray[np.float32]) -> NDArray[np.float64]:
    logits = backend.keras().Model(network.model.input, network.logits).predict_on_batch(pixels)
    return np.asarray(-(soft_labels * log_softmax(logits.astype(np.float64), 1)).sum(1))


@pytest.mark.parametrize(
    "changing",
    [AugmentConfig(mixup=1.0), AugmentConfig(cutmix=1.0, horizontal_flip=True), AugmentConfig(mixup=0.5, cutmix=1.0)],
    ids=["mixup", "cutmix", "both"],
)
def test_pixels_and_labels_are_mixed_alike(changing: AugmentConfig) -> None:
    """At learning rate 0, the loss of an epoch matches NumPy; in the second step, a partner is a padding row."""
    zero_rate = OptimizerConfig("sgd", learning_rate=0.0, momentum=0.0)
    config = make_config(changing, optimizer=zero_rate, label_smoothing=0.1, class_weights="balanced")
    subset, network = make_subset(LABELS * 2), build_simple_network()  # 10 real images in two steps of 8
    (record,) = fit(network, subset, EMPTY, config, Callback()).history
    order = np.resize(epoch_order(10, 0, 1), 16)
    params = pipeline.sample_params(changing, 10, (8, 8), 0, 1)[order]
    weights = np.array([5 / 3, 5 / 9, 5 / 3], np.float32)[subset.labels[order], None]
    soft_labels = smooth_labels(subset.labels[order], 3, 0.1) * weights
    label_weights = params[:, pipeline.get_columns(changing)["mixing"]][:, :1]
    partners = np.concatenate([np.roll(np.arange(start, start + 8), 1) for start in (0, 8)])
    mixed = label_weights * soft_labels + (1 - label_weights) * soft_labels[partners]
    to_numpy = backend.keras().ops.convert_to_numpy
    steps = [slice(0, 8), slice(8, 16)]
    pixels = np.concatenate([to_numpy(pipeline.apply(changing, subset.take(order[s]), params[s])) for s in steps])
    assert record.loss == pytest.approx(soft_cross_entropy(network, pixels, mixed)[:10].mean(), abs=1e-5)
    assert record.loss != pytest.approx(soft_cross_entropy(network, pixels, soft_labels)[:10].mean(), abs=1e-3)


@pytest.mark.parametrize("runtime", ["keras", "onnxruntime"])
def test_a_message_says_that_keras_replaces_onnx_runtime(
    monkeypatch: pytest.MonkeyPatch, runtime: Literal["keras", "onnxruntime"]
) -> None:
    monkeypatch.setattr(frozen_layers, "outputs_agree", lambda *_: False)
    network = build_simple_network()
    config = make_config(stages=(StageConfig("head", unfreeze=0),))
    config = dataclasses.replace(config, device=dataclasses.replace(config.device, feature_runtime=runtime))
    callback = WeightsCallback(network)
    fit(network, make_subset(LABELS), EMPTY, config, callback)
    expected = ["Keras computes the features of the frozen layers, since those of ONNX Runtime differ"]
    assert [line for line in callback.messages if "ONNX Runtime" in line] == (expected if runtime != "keras" else [])


def test_features_of_frozen_layers_are_not_mixed_with_a_message() -> None:
    mixing_config = AugmentConfig(horizontal_flip=True, mixup=1.0)
    zero_rate = OptimizerConfig("sgd", learning_rate=0.0, momentum=0.0)
    stage_configs = (StageConfig("head", unfreeze=0, views=2),)
    subset = make_subset(LABELS)
    losses = []
    for augment_config in (mixing_config, AugmentConfig(horizontal_flip=True)):
        network = build_simple_network()
        callback = WeightsCallback(network)
        result = fit(
            network, subset, EMPTY, make_config(augment_config, optimizer=zero_rate, stages=stage_configs), callback
        )
        losses.append(result.history[0].loss)
        assert any("mixup and CutMix do not apply" in line for line in callback.messages) is (
            augment_config is mixing_config
        )
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_training_with_everything_on_learns() -> None:
    augment_config = AugmentConfig(
        horizontal_flip=True, rotation=10, translation=0.1, zoom=0.1, crop=0.1, brightness=0.1, contrast=0.1,
        saturation=0.1, hue=0.05,
        erasing_probability=0.3, randaugment=1, mixup=0.2, cutmix=1.0,
    )  # fmt: skip
    colors = np.repeat(np.eye(3, dtype=np.uint8) * 255, 16, 0)[:, None, None]
    pixels = np.ascontiguousarray(np.broadcast_to(colors, (48, 8, 8, 3)))
    labels = np.repeat(np.arange(3, dtype=np.int32), 16)
    subset = Subset(pixels, np.arange(48), labels, tuple(map(str, range(48))))
    config = make_config(augment_config, epochs=12, optimizer=OptimizerConfig("adam", learning_rate=3e-3))
    result = fit(build_simple_network(), subset, subset, config, Callback())
    assert result.best is not None
    assert result.best.val_accuracy == 1


# A batch larger than the data


def test_a_batch_larger_than_the_subset_is_clamped() -> None:
    """The batch must not be padded: a padding row costs as much time and memory as an image."""
    subset = make_subset(LABELS)
    outcomes, callbacks = [], []
    for size in (5, 500):
        network = build_simple_network()
        callbacks.append(callback := WeightsCallback(network))
        result = fit(network, subset, subset, make_config(batch_size=size, epochs=2), callback)
        outcomes.append((weights_sha256(network.model), [(r.loss, r.val_loss) for r in result.history]))
    assert outcomes[0] == outcomes[1]
    assert callbacks[-1].messages == ["training: the batch size is 5, not 500: there are no more images"]


def test_the_clamped_batch_size_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    batch_sizes: list[int] = []

    def stepper(model: Any) -> devices.TrainStep:
        def step(inputs: Any, soft_labels: Any, weights: Any) -> dict[str, float]:
            batch_sizes.append(len(inputs))
            assert len(inputs) == len(soft_labels) == len(weights)
            return {"loss": 1.0, "categorical_accuracy": 0.0}

        return step

    monkeypatch.setattr(devices, "make_train_step", stepper)
    fit(build_simple_network(), make_subset(LABELS), EMPTY, make_config(batch_size=64), Callback())
    monkeypatch.setattr(devices, "count_replicas", lambda: 4)
    fit(build_simple_network(), make_subset(LABELS), EMPTY, make_config(batch_size=64), Callback())
    assert batch_sizes == [5, 8], "a multiple of four devices"


def test_a_loss_of_minus_zero_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """For perfect predictions, Keras returns -0.0, which would be printed as -0.0000."""

    def stepper(model: Any) -> devices.TrainStep:
        return lambda inputs, targets, weights: {"loss": -0.0, "categorical_accuracy": 1.0}

    monkeypatch.setattr(devices, "make_train_step", stepper)
    (record,) = fit(build_simple_network(), make_subset(LABELS), EMPTY, make_config(), Callback()).history
    assert f"{record.loss:.4f}" == "0.0000"
