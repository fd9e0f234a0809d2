"""Channels are really removed; removing those that are zero changes no output."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from networks import RUNS, compute_outputs, make_plan, random_images
from sightline import backend
from sightline.compress import channel_groups, prune
from sightline.compress.channel_groups import ChannelGroups
from sightline.errors import ModelError
from sightline.export import keras_to_onnx
from sightline.models import registry
from sightline.models.build import build_model
from sightline.models.describe import count_parameters, describe_model
from sightline.models.layers import LAYER_TYPES, normalizations, register_layer

Mask = NDArray[np.bool_]


def build_random(name: str, **settings: Any) -> Any:
    """A network whose logits depend on the image: He kernels, and batch norms that are not the identity."""
    return randomize_weights(build_model(make_plan(name, classes=3, **settings)).model)


def randomize_weights(model: Any, seed: int = 0) -> Any:
    draw = np.random.default_rng(seed)
    for variable in model.weights:
        shape = tuple(variable.shape)
        if len(shape) > 1:
            fan = np.prod(shape[:2]) if shape[-1] == 1 else np.prod(shape[:-1])
            variable.assign(draw.normal(0, np.sqrt(2 / fan), shape))
        elif variable.name == "moving_variance":
            variable.assign(draw.uniform(0.5, 2, shape))
        else:
            variable.assign((variable.name == "gamma") + draw.normal(0, 0.2, shape))
    return model


def build_residual(seed: int = 0) -> Any:
    """A small net with every tie: an addition, a depthwise convolution, a gate, batch norms, a concatenation."""
    keras = backend.keras()
    layers = keras.layers
    pixels = keras.Input((8, 8, 3), dtype="uint8", name="pixels")
    x = layers.Conv2D(12, 3, padding="same", use_bias=False, name="stem")(layers.Rescaling(1 / 255)(pixels))
    x = start = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, 1, use_bias=False, name="wide")(x)))
    x = layers.ReLU()(layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)))
    gate = layers.Dense(16, "sigmoid", name="gate")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.BatchNormalization()(layers.Conv2D(12, 1, use_bias=False, name="narrow")(layers.Multiply()([x, gate])))
    x = layers.Add()([start, x])
    x = layers.Concatenate()([x, layers.BatchNormalization()(layers.Conv2D(6, 3, padding="same", name="side")(x))])
    features = layers.Activation("linear", name="features")(layers.GlobalAveragePooling2D()(x))
    logits = layers.Dense(3, name="logits")(features)
    named = {"logits": logits, "probabilities": layers.Softmax()(logits), "features": features}
    return randomize_weights(keras.Model(pixels, named), seed)


def draw_groups(channels: ChannelGroups, seed: int, fraction: float = 0.5) -> Mask:
    """Return random groups, but not all groups of any layer."""
    random_values = np.random.default_rng(seed).random(channels.count) < fraction
    for call in channels.producers():
        random_values[np.unique(channels.group[call.outputs[0]])[:2]] = False
    removed: Mask = random_values & ~channels.protected
    return removed


def zero_groups(channels: ChannelGroups, removed: Mask) -> None:
    """Zero all that makes the channels of the groups `removed`."""
    for call in channels.calls:
        for weight, axes in call.weights():
            array = prune._to_numpy(weight).copy()
            for axis, slots in enumerate(axes):
                if slots is call.outputs[0] and weight.name != "moving_variance":  # the mean, where there is no scale
                    np.moveaxis(array, axis, 0)[removed[channels.group[slots]]] = 0
            weight.assign(array)


@pytest.mark.slow_with("mobilenetv2", "vgg16")
@pytest.mark.parametrize("name", RUNS)
def test_removing_silent_channels_changes_no_output(name: str) -> None:
    model = build_random(name)
    channels = channel_groups.trace_channels(model)
    removed = draw_groups(channels, 1, 0.2)  # each layer of a deep net loses as much of the signal
    assert removed.any()
    zero_groups(channels, removed)
    small = prune.prune(model, channels, removed)
    colors = np.array([[0, 0, 0], [250, 120, 0], [0, 200, 250]]).reshape(3, 1, 1, 3)  # a deep net averages mere noise
    pixels = np.where(random_images(3, registry.ENTRIES[name].min_input_size) < 64, 255, colors).astype(np.uint8)
    before, after = compute_outputs(model, pixels), compute_outputs(small, pixels)
    scale = np.abs(before["logits"]).max()
    spread = np.ptp(before["logits"], axis=0).max()  # small behind dozens of layers of which each lost a fifth
    assert spread > 1e-5 * scale, "else the answer does not depend on the image"
    np.testing.assert_allclose(after["logits"], before["logits"], atol=min(1e-5 * max(scale, 1), 0.02 * spread), rtol=0)
    np.testing.assert_allclose(after["probabilities"], before["probabilities"], atol=1e-5)
    assert count_parameters(small) < 0.9 * count_parameters(model)
    assert describe_model(small, name).multiply_adds < describe_model(model, name).multiply_adds
    assert keras_to_onnx.convert_model(small)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1000), fraction=st.floats(0.05, 0.95))
def test_any_groups_can_be_removed(seed: int, fraction: float) -> None:
    model = build_residual(seed)
    channels = channel_groups.trace_channels(model)
    removed = draw_groups(channels, seed, fraction)
    zero_groups(channels, removed)
    pixels = random_images(2, 8, seed=seed)
    after = compute_outputs(prune.prune(model, channels, removed), pixels)["logits"]
    np.testing.assert_allclose(after, compute_outputs(model, pixels)["logits"], atol=1e-5)


def test_removing_a_channel_that_matters_changes_the_output() -> None:
    """The comparison above can fail."""
    model = build_random("cifar10-deep")
    channels = channel_groups.trace_channels(model)
    small = prune.prune(model, channels, draw_groups(channels, 1))
    pixels = random_images(2, 8)
    assert np.abs(compute_outputs(small, pixels)["logits"] - compute_outputs(model, pixels)["logits"]).max() > 1e-2


def test_the_size_is_counted_before_anything_is_built() -> None:
    model = build_residual()
    channels = channel_groups.trace_channels(model)
    removed = draw_groups(channels, 3)
    small = prune.prune(model, channels, removed)
    assert channel_groups.count_remaining(channels, np.zeros(channels.count, bool)) == (
        count_parameters(model), describe_model(model, "").multiply_adds,
    )  # fmt: skip
    assert channel_groups.count_remaining(channels, removed) == (
        count_parameters(small),
        describe_model(small, "").multiply_adds,
    )


def test_groups_of_a_residual_network_extend_through_additions() -> None:
    keras = backend.keras()
    pixels = keras.Input((8, 8, 3), dtype="uint8", name="pixels")
    x = keras.layers.Rescaling(1 / 255)(pixels)
    stem = keras.layers.Conv2D(4, 3, padding="same", name="stem")(x)
    inner = keras.layers.Conv2D(6, 3, padding="same", name="inner")(stem)
    back = keras.layers.Conv2D(4, 3, padding="same", name="back")(inner)
    x = keras.layers.Flatten()(keras.layers.Add()([stem, back]))
    logits = keras.layers.Dense(2, name="logits")(x)
    model = keras.Model(pixels, {"logits": logits, "probabilities": keras.layers.Softmax()(logits), "features": x})
    channels = channel_groups.trace_channels(model)
    outputs_of = {call.layer.name: channels.group[call.outputs[0]] for call in channels.producers()}
    assert outputs_of["stem"].tolist() == outputs_of["back"].tolist()
    assert not set(outputs_of["stem"]) & set(outputs_of["inner"])
    assert (~channels.protected).sum() == 4 + 6
    dense = next(call for call in channels.calls if call.layer.name == "logits")
    assert channels.group[dense.inputs[0]].tolist() == outputs_of["stem"].tolist() * 64


def test_a_layer_used_twice_is_refused() -> None:
    keras = backend.keras()
    pixels = keras.Input((8, 8, 3), dtype="uint8", name="pixels")
    layer = keras.layers.Conv2D(3, 3, padding="same", name="twice")
    x = keras.layers.GlobalAveragePooling2D()(layer(layer(keras.layers.Rescaling(1 / 255)(pixels))))
    with pytest.raises(ModelError, match="twice is used more than once"):
        channel_groups.trace_channels(keras.Model(pixels, {"logits": x, "probabilities": x, "features": x}))


def test_the_smallest_scales_are_removed_first_and_every_layer_keeps_some() -> None:
    model = build_residual()
    channels = channel_groups.trace_channels(model)
    weak = draw_groups(channels, 5, 0.3)
    for call in channels.calls:
        if type(call.layer).__name__ == "BatchNormalization":
            call.layer.gamma.assign(np.where(weak[channels.group[call.outputs[0]]], 1e-3, 1.0))
    scores = prune.score_by_scale(channels)
    assert scores[weak].max() < scores[~weak & ~channels.protected].min()
    removed = prune.choose_groups(channels, scores, 0.9, weigh=False)
    assert removed.any()
    assert weak[removed].all()
    least = prune.choose_groups(channels, scores, 0.0, weigh=False)
    small = prune.prune(model, channels, least)
    assert (
        min(call.node.outputs[0].shape[-1] for call in channel_groups.trace_channels(small).producers())
        == prune.MIN_CHANNELS
    )
    assert not prune.choose_groups(channels, scores, 1.0, weigh=False).any()


def test_scales_are_found_by_the_axes_of_a_layer_whatever_its_name() -> None:
    keras = backend.keras()

    class RenamedNormalization(keras.layers.BatchNormalization):  # type: ignore[name-defined,misc]
        pass

    register_layer("RenamedNormalization")(type("Renamed", (normalizations.BatchNormalization,), {}))
    try:
        pixels = keras.Input((8, 8, 3), name="pixels")
        x = RenamedNormalization(name="norm")(keras.layers.Conv2D(4, 3, name="conv")(pixels))
        features = keras.layers.GlobalAveragePooling2D()(x)
        logits = keras.layers.Dense(3)(features)
        outputs = {"logits": logits, "probabilities": keras.layers.Softmax()(logits), "features": features}
        model = keras.Model(pixels, outputs)
        model.get_layer("norm").gamma.assign([4.0, -2.0, 1.0, 1.0])
        channels = channel_groups.trace_channels(model)
        groups = channels.group[next(call.outputs[0] for call in channels.calls if call.layer.name == "conv")]
        np.testing.assert_allclose(prune.score_by_scale(channels)[groups], [2.0, 1.0, 0.5, 0.5])
    finally:
        del LAYER_TYPES._entries["RenamedNormalization"]


def test_taylor_scores_are_the_squared_first_order_change() -> None:
    """Against gradients taken by hand: logits z = x W + b, cross-entropy, dz = p - y."""
    keras = backend.keras()
    pixels = keras.Input((2, 2, 1), dtype="uint8", name="pixels")
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(pixels))
    hidden = keras.layers.Dense(5, name="hidden", bias_initializer="normal")(x)
    logits = keras.layers.Dense(3, name="last")(hidden)
    model = keras.Model(pixels, {"logits": logits, "probabilities": keras.layers.Softmax()(logits), "features": x})
    channels = channel_groups.trace_channels(model)
    images, labels = random_images(6, 2, 1), np.eye(3, dtype=np.float32)[[0, 1, 2, 2, 1, 0]]
    learner = keras.Model(model.input, model.output["logits"])
    saved_values = [prune._to_numpy(v).copy() for v in model.variables]

    def step(optimizer: Any) -> int:
        learner.compile(optimizer, keras.losses.CategoricalCrossentropy(from_logits=True))
        learner.train_on_batch(images, labels)
        return 0

    scores = prune.score_by_taylor(model, channels, step)
    flat = images.reshape(6, 4) / 255
    (w1, b1), (w2, _) = [[prune._to_numpy(v) for v in model.get_layer(n).weights] for n in ("hidden", "last")]
    h = flat @ w1 + b1
    z = h @ w2
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    dh = (p - labels) / 6 @ w2.T
    expected = (w1 * (flat.T @ dh)).sum(0) + b1 * dh.sum(0)
    group = next(channels.group[call.outputs[0]] for call in channels.calls if call.layer.name == "hidden")
    np.testing.assert_allclose(scores[group], expected**2, rtol=1e-3, atol=1e-9)
    assert all((prune._to_numpy(v) == old).all() for v, old in zip(model.variables, saved_values, strict=True))


def test_a_pruned_network_loads_in_safe_mode(tmp_path: Any) -> None:
    model = build_random("alexnet")
    channels = channel_groups.trace_channels(model)
    small = prune.prune(model, channels, prune.choose_groups(channels, prune.score_by_scale(channels), 0.6, weigh=True))
    small.save(tmp_path / "small.keras")
    loaded = backend.keras().saving.load_model(tmp_path / "small.keras", compile=False, safe_mode=True)
    pixels = random_images(2, registry.ENTRIES["alexnet"].min_input_size)
    np.testing.assert_array_equal(compute_outputs(loaded, pixels)["logits"], compute_outputs(small, pixels)["logits"])
    again = channel_groups.trace_channels(loaded)
    assert prune.choose_groups(again, prune.score_by_scale(again), 0.5, weigh=True).any()


def test_a_narrower_layer_has_less_dropout() -> None:
    keras = backend.keras()
    layers = keras.layers
    pixels = keras.Input((8, 8, 3), dtype="uint8", name="pixels")
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Conv2D(8, 3, name="wide")(pixels))
    x = layers.Activation("linear", name="features")(layers.Dropout(0.4, name="drop")(x))
    logits = layers.Dense(2, name="predictions")(x)
    outputs = {"probabilities": layers.Softmax(name="probabilities")(logits), "logits": logits, "features": x}
    model = keras.Model(pixels, outputs)
    channels = channel_groups.trace_channels(model)
    removed = np.zeros(channels.count, bool)
    removed[np.flatnonzero(~channels.protected)[:6]] = True
    assert prune.prune(model, channels, removed).get_layer("drop").rate == pytest.approx(0.4 * 2 / 8)
