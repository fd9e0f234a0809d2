"""Layer costs match hand calculations, and the hash of the weights its definition."""

from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from networks import GRAPHS, build_network, make_plan
from sightline import backend
from sightline.config import ModelConfig
from sightline.errors import ModelError
from sightline.models.build import ModelSpec, build_shapes_only
from sightline.models.describe import (
    LayerDescription,
    ModelDescription,
    count_parameters,
    describe_model,
    weights_sha256,
)
from sightline.models.layers.windows import compute_output_size


def make_model_with_weight(value: NDArray[Any], name: str = "kernel") -> Any:
    """Return a stand-in for a model with one weight."""
    return SimpleNamespace(weights=[backend.keras().Variable(value, dtype=value.dtype.name, name=name)])


def test_hash_is_over_path_dtype_shape_and_little_endian_bytes() -> None:
    model = build_network("fashion-cnn").model
    digest = hashlib.sha256()
    for variable in model.weights:
        value = np.asarray(backend.keras().ops.convert_to_numpy(variable))
        digest.update(f"{variable.path} float32 {value.shape}\n".encode())
        digest.update(value.astype("<f4").tobytes())
    assert weights_sha256(model) == digest.hexdigest()


ZEROS = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    "other",
    [
        (np.full((2, 3), 1e-30, np.float32), "kernel"),
        (-ZEROS, "kernel"),
        (np.zeros((3, 2), np.float32), "kernel"),
        (np.zeros((2, 3), np.int32), "kernel"),
        (ZEROS, "bias"),
    ],
    ids=["value", "sign", "shape", "dtype", "path"],
)
def test_every_difference_counts(other: tuple[NDArray[Any], str]) -> None:
    assert weights_sha256(make_model_with_weight(ZEROS)) == weights_sha256(make_model_with_weight(ZEROS.copy()))
    assert weights_sha256(make_model_with_weight(*other)) != weights_sha256(make_model_with_weight(ZEROS))


def test_random_seeds_are_not_weights() -> None:
    model = build_network("cifar10-deep").model
    before = weights_sha256(model)
    num_parameters = count_parameters(model)
    model(np.zeros((1, 8, 8, 3), np.uint8), training=True)  # samples dropout masks
    assert weights_sha256(model) == before
    assert num_parameters == sum(int(np.prod(v.shape)) for v in model.weights) == model.count_params()
    assert len(model.variables) > len(model.weights)


# Layer costs


def describe_layer(keras_layers: Any, size: tuple[int, ...]) -> LayerDescription:
    """Return the description of a Keras layer, or of the last of several in sequence, for images of `size`."""
    keras = backend.keras()
    inputs = outputs = keras.Input(size)
    for each in keras_layers if isinstance(keras_layers, list) else [keras_layers]:
        outputs = each(outputs)
    return describe_model(keras.Model(inputs, outputs), "x").layers[-1]


def get_keras_layers() -> Any:
    return backend.keras().layers


def test_a_convolution_from_3_to_192_channels_has_5184_weights() -> None:
    description = describe_layer(get_keras_layers().Conv2D(192, 3, padding="same", use_bias=False), (224, 224, 3))
    assert (description.parameters, description.parameters_formula) == (5184, "3·3·3·192 = 5,184")
    assert description.output == (224, 224, 192)
    assert description.output_formula == "(224 - 3 + 2·1) / 1 + 1 = 224"
    assert description.multiply_adds == 224 * 224 * 5184
    assert description.bytes == 4 * 224 * 224 * 192
    assert description.receptive_field == (3, 3)
    biased = describe_layer(get_keras_layers().Conv2D(192, 3), (224, 224, 3))
    assert (biased.parameters, biased.parameters_formula) == (5376, "3·3·3·192 + 192 = 5,376")
    assert biased.multiply_adds == 222 * 222 * 5184  # a bias is added, not multiplied
    assert biased.output_formula == "(224 - 3 + 2·0) / 1 + 1 = 222"


def test_strides_that_differ_by_axis() -> None:
    description = describe_layer(
        [get_keras_layers().Conv2D(8, 3, strides=(2, 1)), get_keras_layers().Conv2D(4, 3)], (9, 9, 1)
    )
    assert description.output == (2, 5, 4)
    assert description.output_formula == "rows (4 - 3 + 2·0) / 1 + 1 = 2; columns (7 - 3 + 2·0) / 1 + 1 = 5"
    assert description.receptive_field == (3 + 2 * 2, 3 + 2 * 1)
    assert description.jump == (2, 1)


def test_depthwise_grouped_and_separable_convolutions() -> None:
    depthwise = describe_layer(get_keras_layers().DepthwiseConv2D(3, padding="same", use_bias=False), (8, 8, 32))
    assert (depthwise.parameters, depthwise.multiply_adds) == (288, 8 * 8 * 288)
    grouped = describe_layer(get_keras_layers().Conv2D(256, 5, padding="same", groups=2), (27, 27, 96))
    assert grouped.parameters_formula == "5·5·(96/2)·256 + 256 = 307,456"
    assert (grouped.parameters, grouped.multiply_adds) == (307_456, 27 * 27 * 5 * 5 * 48 * 256)
    row = describe_layer(get_keras_layers().Conv1D(8, 3, groups=2), (10, 4))
    assert (row.parameters, row.parameters_formula) == (56, "3·(4/2)·8 + 8 = 56")
    separable = describe_layer(get_keras_layers().SeparableConv2D(64, 3, strides=2, use_bias=False), (9, 9, 32))
    assert (separable.parameters, separable.multiply_adds) == (9 * 32 + 32 * 64, 16 * (9 * 32 + 32 * 64))


def test_dilation_widens_the_window() -> None:
    description = describe_layer(get_keras_layers().Conv2D(4, 3, dilation_rate=2), (16, 16, 1))
    assert description.output == (12, 12, 4)
    assert description.output_formula == "(16 - 5 + 2·0) / 1 + 1 = 12"
    assert description.receptive_field == (5, 5)


def test_pooling_rounds_down_and_has_no_weights() -> None:
    description = describe_layer(get_keras_layers().MaxPooling2D(3, 2), (8, 7, 5))
    assert description.output == (3, 3, 5)
    assert description.output_formula == "rows ⌊(8 - 3 + 2·0) / 2⌋ + 1 = 3; columns (7 - 3 + 2·0) / 2 + 1 = 3"
    assert (description.parameters, description.parameters_formula, description.multiply_adds) == (0, "", 0)


def test_dense_and_normalization() -> None:
    dense = describe_layer([get_keras_layers().Flatten(), get_keras_layers().Dense(10)], (7, 7, 64))
    assert (dense.parameters_formula, dense.multiply_adds) == ("3136·10 + 10 = 31,370", 31_360)
    assert dense.receptive_field == (7, 7), "the whole image"
    assert describe_layer(get_keras_layers().BatchNormalization(), (4, 4, 64)).parameters_formula == "4·64 = 256"


def test_a_stack_of_three_small_windows_sees_what_one_large_one_does() -> None:
    three = describe_layer([get_keras_layers().Conv2D(4, 3, padding="same") for _ in range(3)], (32, 32, 4))
    assert (
        three.receptive_field == describe_layer(get_keras_layers().Conv2D(4, 7), (32, 32, 4)).receptive_field == (7, 7)
    )


def test_the_wider_branch_decides_the_receptive_field() -> None:
    keras = backend.keras()
    x = keras.Input((16, 16, 4))
    a, b = get_keras_layers().Conv2D(4, 5, padding="same")(x), get_keras_layers().Conv2D(4, 1)(x)
    rows = describe_model(keras.Model(x, get_keras_layers().Add()([b, a])), "x").layers
    assert rows[-1].receptive_field == (5, 5)
    assert {rows[i].name for i in rows[-1].inputs} == {rows[1].name, rows[2].name}


def test_shared_weights_count_once() -> None:
    keras = backend.keras()
    shared = get_keras_layers().Conv2D(4, 3, padding="same", use_bias=False)
    x = keras.Input((8, 8, 4))
    model = keras.Model(x, shared(shared(x)))
    assert [row.parameters for row in describe_model(model, "x").layers] == [0, 144, 0]


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("window", [1, 2, 3, 5])
def test_the_formula_gives_the_size_that_keras_gives(window: int, stride: int, padding: str) -> None:
    for side in (5, 8, 9, 16):
        pooled = get_keras_layers().MaxPooling2D(window, stride, padding=padding)(
            np.zeros((1, side, side, 1), np.float32)
        )
        positions, text = compute_output_size(side, window, stride, padding)
        assert positions == pooled.shape[1]
        formula = text.rpartition(" = ")[0].replace("·", "*").replace("⌊", "int(").replace("⌋", ")")
        assert eval(formula) == positions, text  # noqa: S307  # the formula is ours, and must evaluate to its result


def test_uneven_padding_adds_more_at_the_end() -> None:
    """A convolution of ones with ones counts how much of each window lies inside the image."""
    keras = backend.keras()
    counting_conv = get_keras_layers().Conv2D(
        1, 3, strides=2, padding="same", kernel_initializer="ones", use_bias=False
    )
    counts = keras.ops.convert_to_numpy(counting_conv(np.ones((1, 4, 1, 1), np.float32)))[0, :, 0, 0]
    np.testing.assert_array_equal(counts, [3, 2])
    assert compute_output_size(4, 3, 2, "same")[1] == "(4 - 3 + 0 + 1) / 2 + 1 = 2"


# Whole networks


def test_vgg16_by_the_numbers() -> None:
    model = build_shapes_only(ModelSpec(ModelConfig(name="vgg16"), 224, 224, 3, 1000)).model
    description = describe_model(model, "vgg16")
    assert description.parameters == count_parameters(model) == 138_357_544
    assert description.multiply_adds == 15_470_264_320
    assert description.receptive_field == (212, 212)
    by_name = {row.name: row for row in description.layers}
    assert by_name["block3_conv3"].receptive_field == (40, 40)
    assert by_name["block5_conv1"].jump == (16, 16)
    assert (description.size, description.classes) == ((224, 224, 3), 1000)


def test_building_shapes_only_leaves_no_state() -> None:
    build_shapes_only(make_plan("cifar10-simple"))
    keras = backend.keras()
    with keras.StatelessScope():
        pass  # its exit would initialize remaining variables
    assert build_network("cifar10-simple").model.weights[0].numpy().any()
    assert not keras.src.backend.common.global_state.get_global_attribute("uninitialized_variables")


@pytest.mark.parametrize("name", GRAPHS)
def test_every_model_is_described_correctly(name: str) -> None:
    model = build_shapes_only(make_plan(name, classes=3)).model
    description = describe_model(model, name)
    assert description.parameters == count_parameters(model)
    assert description.classes == 3
    for row in description.layers:
        if row.output_formula and row.window:
            rows, _, columns = row.output_formula.partition("; columns ")
            assert [int(formula.rpartition(" = ")[2]) for formula in (rows, columns or rows)] == list(row.output[:2])
        if row.kind == "dense" or "convolution" in row.kind:
            assert row.multiply_adds >= row.parameters - row.output[-1], "each weight is used at least once"
    shapes = {row.name: row.output for row in description.layers}
    for layer_ in model.layers:
        if layer_.name in shapes and None not in layer_.output.shape[1:]:
            assert shapes[layer_.name] == tuple(layer_.output.shape[1:])


def test_resnet50_by_the_numbers() -> None:
    """ResNet50 at 224: 4.09 G by He et al.'s layers with the stride on the 3x3; Keras puts it on the 1x1: 3.86 G."""
    description = describe_model(build_shapes_only(make_plan("resnet50", side=224, classes=1000)).model, "resnet50")
    assert description.multiply_adds == pytest.approx(3.86e9, rel=0.002)
    assert description.receptive_field == (483, 483)  # Araujo, Norris and Sim, 2019, "Computing receptive fields"


@pytest.mark.parametrize("name", ["cifar10-simple", "se-resnet"])
def test_a_stored_description_is_the_same(name: str) -> None:
    description = describe_model(build_network(name).model, name)
    stored = json.loads(json.dumps(description.to_dict()))
    assert ModelDescription.from_dict(stored, "network.json") == description
    stored["layers"][1]["inputs"] = ["nowhere"]
    with pytest.raises(ModelError, match=r"network\.json cannot be read: layers\.1\.inputs names 'nowhere'"):
        ModelDescription.from_dict(stored, "network.json")
