"""Each type of layer: its ONNX nodes give what Keras gives, it is described, drawn, and pruned or left alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command import skip_without
from networks import compute_outputs
from sightline import backend
from sightline.compress import channel_groups, prune
from sightline.errors import ModelError, UsageError
from sightline.export import keras_to_onnx
from sightline.export.openvino import export_openvino
from sightline.export.tensorflow import export_saved_model
from sightline.inference.runtimes.onnx_sessions import create_session
from sightline.inference.safety import onnx_file, openvino_model
from sightline.inference.safety.onnx_graph import parse_graph
from sightline.inference.safety.onnx_limits import check_limits
from sightline.inference.safety.saved_model import check_saved_model
from sightline.models import layers
from sightline.models.describe import describe_model
from sightline.models.layers import layer_type
from sightline.report import diagram, diagram_blocks

CHANNELS = 6
LAYERS: dict[str, Callable[[Any], Any]] = {
    "average": lambda k: lambda x: k.Average()([x, k.ReLU()(x)]),
    "batch norm": lambda k: k.BatchNormalization(),
    "bilinear upsampling": lambda k: k.UpSampling2D((2, 3), interpolation="bilinear"),
    "bicubic upsampling": lambda k: k.UpSampling2D(2, interpolation="bicubic"),
    "elu": lambda k: k.ELU(0.7),
    "elu activation": lambda k: k.Activation("elu"),
    "gelu": lambda k: k.Activation("gelu"),
    "group norm": lambda k: k.GroupNormalization(3),
    "group norm of all": lambda k: k.GroupNormalization(1, scale=False),
    "hard sigmoid": lambda k: k.Activation("hard_sigmoid"),
    "hard swish": lambda k: k.Activation("hard_silu"),
    "instance norm": lambda k: k.GroupNormalization(-1, epsilon=1e-2),
    "layer norm": lambda k: k.LayerNormalization(center=False),
    "leaky relu": lambda k: k.LeakyReLU(0.3),
    "leaky relu activation": lambda k: k.Activation("leaky_relu"),
    "maximum": lambda k: lambda x: k.Maximum()([x, k.Activation("tanh")(x)]),
    "mish": lambda k: k.Activation("mish"),
    "noise": lambda k: k.GaussianNoise(0.5),
    "permute": lambda k: k.Permute((2, 1, 3)),
    "prelu": lambda k: k.PReLU(),
    "prelu by channel": lambda k: k.PReLU(shared_axes=[1, 2]),
    "relu to 4": lambda k: k.ReLU(4),
    "relu with a slope": lambda k: k.ReLU(negative_slope=0.2),
    "relu6": lambda k: k.ReLU(6),
    "relu6 activation": lambda k: k.Activation("relu6"),
    "selu": lambda k: k.Activation("selu"),
    "softmax": lambda k: k.Activation("softmax"),
    "softmax in a layer": lambda k: k.Conv2D(4, 1, activation="softmax"),
    "softplus": lambda k: k.Activation("softplus"),
    "spatial dropout": lambda k: k.SpatialDropout2D(0.5),
    "subtract": lambda k: lambda x: k.Subtract()([x, k.ReLU()(x)]),
    "transposed": lambda k: k.Conv2DTranspose(5, 3, strides=2, padding="same"),
    "transposed, even kernel": lambda k: k.Conv2DTranspose(5, 4, strides=(2, 3), padding="same", activation="relu"),
    "transposed, small kernel": lambda k: k.Conv2DTranspose(4, 2, strides=3, padding="same"),
    "transposed, valid": lambda k: k.Conv2DTranspose(4, 3, strides=2, use_bias=False),
    "transposed, small and valid": lambda k: k.Conv2DTranspose(4, 2, strides=3),
    "upsampling": lambda k: k.UpSampling2D((3, 2)),
}


def build(make: Callable[[Any], Any]) -> Any:
    """A network with the layer between two convolutions, with weights that show."""
    keras = backend.keras()
    pixels = keras.Input((7, 5, 3), name="pixels")
    x = keras.layers.Conv2D(CHANNELS, 3, padding="same", name="before")(pixels)
    x = make(keras.layers)(x)
    x = keras.layers.Conv2D(4, 3, padding="same", name="after")(x)
    model = keras.Model(pixels, x)
    rng = np.random.default_rng(0)
    for weight in model.weights:
        positive = weight.name in {"moving_variance", "gamma"}
        weight.assign(rng.uniform(0.5, 1.5, weight.shape) if positive else rng.normal(0, 0.4, weight.shape))
    return model


@pytest.mark.backends
@pytest.mark.parametrize("name", LAYERS)
def test_it_gives_the_same_in_onnx_as_in_keras(name: str) -> None:
    model = build(LAYERS[name])
    images = np.random.default_rng(1).normal(0, 2, (3, 7, 5, 3)).astype(np.float32)
    with backend.full_precision():
        expected = backend.keras().ops.convert_to_numpy(model(images, training=False))
    file = keras_to_onnx.convert_layers(model)
    check_limits(parse_graph(file), 3)
    (actual,) = create_session(file, 1).run(None, {"pixels": images})
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(actual, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.installed
@pytest.mark.parametrize("name", LAYERS)
def test_it_gives_the_same_in_openvino(name: str, tmp_path: Path) -> None:
    skip_without("openvino")
    from sightline._keras import imports

    model = build(LAYERS[name])
    images = np.random.default_rng(1).normal(0, 2, (3, 7, 5, 3)).astype(np.float32)
    export_openvino(keras_to_onnx.convert_layers(model), tmp_path)
    openvino_model.check_xml((tmp_path / "model.xml").read_bytes())
    compiled = (
        imports.import_openvino()
        .Core()
        .compile_model(tmp_path / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    )
    expected = backend.keras().ops.convert_to_numpy(model(images, training=False))
    np.testing.assert_allclose(compiled(images)[0], expected, atol=1e-4)


def test_a_saved_model_may_hold_them(tmp_path: Path) -> None:
    names = (
        "gelu",
        "mish",
        "selu",
        "prelu",
        "group norm",
        "layer norm",
        "bilinear upsampling",
        "upsampling",
        "transposed",
    )

    def stack(keras_layers: Any) -> Callable[[Any], Any]:
        return lambda x: functools.reduce(lambda value, name: LAYERS[name](keras_layers)(value), names, x)

    model = build(stack)
    features = backend.keras().layers.Flatten()(model.output)
    outputs = dict.fromkeys(("logits", "probabilities", "features"), features)
    pixels = backend.keras().Model(model.input, outputs)
    export_saved_model(pixels, tmp_path)
    files = {p.relative_to(tmp_path).as_posix(): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    check_saved_model(files)


@pytest.mark.parametrize("name", LAYERS)
def test_it_is_described_and_drawn(name: str) -> None:
    model = build(LAYERS[name])
    description = describe_model(model, name)
    assert description.parameters == model.count_params()
    assert [layer.output for layer in description.layers] == [layer.output.shape[1:] for layer in model.layers]
    assert diagram_blocks.group_layers(description)
    assert diagram.plot_architecture(description).startswith(b"\x89PNG")


@pytest.mark.parametrize("name", LAYERS)
def test_channels_are_pruned_through_it_or_left_alone(name: str) -> None:
    """Removing channels whose weights are zero changes nothing; through a layer that mixes them, none is removed."""
    model = build(LAYERS[name])
    keras = backend.keras()
    features = keras.layers.GlobalAveragePooling2D()(model.output)
    logits = keras.layers.Dense(3)(features)
    outputs = {"logits": logits, "probabilities": keras.layers.Softmax()(logits), "features": features}
    model = keras.Model(model.input, outputs)
    groups = channel_groups.trace_channels(model)
    removed = ~groups.protected & (np.arange(groups.count) % 2 == 0)
    for call in groups.calls:
        for weight, axes in call.weights():
            array = prune._to_numpy(weight).copy()
            for axis, slots in enumerate(axes):
                if slots is call.outputs[0] and weight.name != "moving_variance":
                    np.moveaxis(array, axis, 0)[removed[groups.group[slots]]] = 0
            weight.assign(array)
    small = prune.prune(model, groups, removed)
    before, after = (m.get_layer("before").filters for m in (model, small))
    mixes = name in {"group norm", "group norm of all", "instance norm", "layer norm", "permute"}
    mixes = mixes or name.startswith("softmax")
    assert (after == before) if mixes else (after < before)
    if name not in {"hard sigmoid", "softplus"}:  # where zero does not stay zero
        images = np.random.default_rng(1).normal(0, 2, (3, 7, 5, 3)).astype(np.float32)
        expected, actual = (compute_outputs(m, images)["logits"] for m in (model, small))
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_what_a_transposed_convolution_and_upsampling_cost() -> None:
    keras = backend.keras()
    pixels = keras.Input((10, 10, 8))
    x = keras.layers.Conv2DTranspose(4, 3, strides=2, padding="same", use_bias=False)(pixels)
    x = keras.layers.UpSampling2D((2, 3))(x)
    transposed, enlarged = describe_model(keras.Model(pixels, x), "x").layers[1:]
    assert (transposed.kind, transposed.role) == ("transposed convolution", "convolution")
    assert transposed.multiply_adds == 10 * 10 * 3 * 3 * 8 * 4
    assert transposed.output_formula == "(10 - 1)·2 - (0 + 1) + 3 = 20"
    assert transposed.receptive_field == (2, 2), "two of the inputs are under a kernel of three"
    assert enlarged.output_formula == "rows 20·2 = 40; columns 20·3 = 60"
    assert enlarged.multiply_adds == 0


@pytest.mark.parametrize(
    ("kernel", "strides", "options", "formula"),
    [
        (4, 2, {"padding": "same"}, "(10 - 1)·2 - 2·1 + 4 = 20"),  # o = (i - 1)s - 2p + k
        (3, 2, {}, "(10 - 1)·2 + 3 = 21"),
        (2, 3, {"padding": "same"}, "(10 - 1)·3 + 2 + 1 = 30"),
        (3, 2, {"output_padding": 1}, "(10 - 1)·2 + 3 + 1 = 22"),
        (3, 1, {"dilation_rate": 2}, "(10 - 1)·1 + 5 = 14"),
    ],
)
def test_the_size_of_a_transposed_convolution_is_worked_out(
    kernel: int, strides: int, options: dict[str, Any], formula: str
) -> None:
    keras = backend.keras()
    pixels = keras.Input((10, 10, 8))
    model = keras.Model(pixels, keras.layers.Conv2DTranspose(4, kernel, strides, **options)(pixels))
    layer = describe_model(model, "x").layers[1]
    assert layer.output_formula == formula
    left, _, size = formula.partition(" = ")
    assert layer.output[0] == int(size) == eval(left.replace("·", "*"))  # noqa: S307  # the formulas above


def test_options_that_cannot_be_converted_are_named() -> None:
    cases: list[tuple[Callable[[Any], Any], str]] = [
        (lambda k: k.GroupNormalization(2, axis=1), "group normalization of axes other than"),
        (lambda k: k.LayerNormalization(axis=[1, 2, 3]), "layer normalization over axes other than"),
        (lambda k: k.ReLU(threshold=0.5), "ReLU with a threshold"),
        (lambda k: k.Conv2DTranspose(4, 3, strides=2, output_padding=1), "output padding"),
        (lambda k: k.Activation("log_sigmoid"), "the activation 'log_sigmoid' cannot be exported"),
        (lambda _: lambda x: backend.keras().ops.flip(x, axis=1), "a flip along the axis 1 cannot be exported"),
        (lambda _: backend.keras().ops.flip, "a flip along the axis None cannot be exported"),
        (lambda _: lambda x: backend.keras().ops.split(x, 2, axis=1)[0], "a split at 2 along the axis 1 cannot be"),
        (lambda _: lambda x: backend.keras().ops.split(x, [1], axis=-1)[0], r"a split at \(1,\) along the axis -1"),
    ]
    for make, words in cases:
        keras = backend.keras()
        pixels = keras.Input((6, 6, 4), name="pixels")
        with pytest.raises(ModelError, match=words):
            keras_to_onnx.convert_layers(keras.Model(pixels, make(keras.layers)(pixels)))


def test_an_unknown_type_is_described_but_not_exported_or_pruned() -> None:
    model = build(lambda k: k.UnitNormalization())
    description = describe_model(model, "unknown").layers[2]
    assert (description.kind, description.role, description.multiply_adds) == ("unit normalization", "", 0)
    with pytest.raises(ModelError, match=r"\(UnitNormalization\) cannot be exported to ONNX: .*register_layer"):
        keras_to_onnx.convert_layers(model)


def test_a_network_without_channels_to_prune_says_why() -> None:
    keras = backend.keras()
    pixels = keras.Input((6, 6, 3), name="pixels")
    features = keras.layers.GlobalAveragePooling2D()(
        keras.layers.GroupNormalization(2)(keras.layers.Conv2D(4, 3)(pixels))
    )
    logits = keras.layers.Dense(3)(features)
    outputs = {"logits": logits, "probabilities": keras.layers.Softmax()(logits), "features": features}
    groups = channel_groups.trace_channels(keras.Model(pixels, outputs))
    with pytest.raises(
        ModelError, match=r"No channels of this network can be pruned: .*\(GroupNormalization, Softmax\)"
    ):
        groups.check_removable()


def test_registering_adds_no_operation_to_those_that_are_loaded() -> None:
    class Sine(layer_type.LayerType):
        channels = "keep"

        def convert(self, graph: Any, layer: Any, arguments: Any, name: str) -> Any:
            return graph.apply("Sin", arguments[0], name)

    allowed = set(onnx_file.ALLOWED_OPERATIONS)
    layers.register_layer("UnitNormalization")(Sine)
    try:
        file = keras_to_onnx.convert_layers(build(lambda k: k.UnitNormalization()))
    finally:
        del layers.LAYER_TYPES._entries["UnitNormalization"]
    assert allowed == onnx_file.ALLOWED_OPERATIONS
    with pytest.raises(ModelError, match="operation 'Sin' of ONNX, which is not one that Sightline loads"):
        parse_graph(file)
    with pytest.raises(UsageError, match="There is already a layer type 'Conv2D'"):
        layers.register_layer("Conv2D")(Sine)
