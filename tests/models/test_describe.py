"""Layer costs match hand calculations, and the hash of the weights its definition."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from networks import NAMES, network, plan
from sightline import backend
from sightline.config import ModelConfig
from sightline.models.arithmetic import windowed
from sightline.models.build import Plan, outline
from sightline.models.describe import Layer, describe, parameters, weights_sha256


def holding(value: NDArray[Any], name: str = "kernel") -> Any:
    """Return a stand-in for a model with one weight."""
    return SimpleNamespace(weights=[backend.keras().Variable(value, dtype=value.dtype.name, name=name)])


def test_hash_is_over_path_dtype_shape_and_little_endian_bytes() -> None:
    model = network("fashion-cnn").model
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
    assert weights_sha256(holding(ZEROS)) == weights_sha256(holding(ZEROS.copy()))
    assert weights_sha256(holding(*other)) != weights_sha256(holding(ZEROS))


def test_random_streams_are_no_weights() -> None:
    model = network("cifar10-deep").model
    before = weights_sha256(model)
    counted = parameters(model)
    model(np.zeros((1, 8, 8, 3), np.uint8), training=True)  # samples dropout masks
    assert weights_sha256(model) == before
    assert counted == sum(int(np.prod(v.shape)) for v in model.weights) == model.count_params()
    assert len(model.variables) > len(model.weights)


# Layer costs


def layer(made: Any, size: tuple[int, ...]) -> Layer:
    """Return the description of a Keras layer, or of the last of several in sequence, for images of `size`."""
    keras = backend.keras()
    inputs = outputs = keras.Input(size)
    for each in made if isinstance(made, list) else [made]:
        outputs = each(outputs)
    return describe(keras.Model(inputs, outputs), "x").layers[-1]


def layers() -> Any:
    return backend.keras().layers


def test_a_convolution_from_3_to_192_channels_has_5184_weights() -> None:
    found = layer(layers().Conv2D(192, 3, padding="same", use_bias=False), (224, 224, 3))
    assert (found.parameters, found.parameters_sum) == (5184, "3·3·3·192 = 5,184")
    assert found.output == (224, 224, 192)
    assert found.output_sum == "(224 - 3 + 2·1) / 1 + 1 = 224"
    assert found.multiply_adds == 224 * 224 * 5184
    assert found.bytes == 4 * 224 * 224 * 192
    assert found.receptive_field == (3, 3)
    biased = layer(layers().Conv2D(192, 3), (224, 224, 3))
    assert (biased.parameters, biased.parameters_sum) == (5376, "3·3·3·192 + 192 = 5,376")
    assert biased.multiply_adds == 222 * 222 * 5184  # a bias is added, not multiplied
    assert biased.output_sum == "(224 - 3 + 2·0) / 1 + 1 = 222"


def test_strides_that_differ_by_axis() -> None:
    found = layer([layers().Conv2D(8, 3, strides=(2, 1)), layers().Conv2D(4, 3)], (9, 9, 1))
    assert found.output == (2, 5, 4)
    assert found.output_sum == "rows (4 - 3 + 2·0) / 1 + 1 = 2; columns (7 - 3 + 2·0) / 1 + 1 = 5"
    assert found.receptive_field == (3 + 2 * 2, 3 + 2 * 1)
    assert found.jump == (2, 1)


def test_depthwise_grouped_and_separable_convolutions() -> None:
    depthwise = layer(layers().DepthwiseConv2D(3, padding="same", use_bias=False), (8, 8, 32))
    assert (depthwise.parameters, depthwise.multiply_adds) == (288, 8 * 8 * 288)
    grouped = layer(layers().Conv2D(256, 5, padding="same", groups=2), (27, 27, 96))
    assert grouped.parameters_sum == "5·5·(96/2)·256 + 256 = 307,456"
    assert (grouped.parameters, grouped.multiply_adds) == (307_456, 27 * 27 * 5 * 5 * 48 * 256)
    separable = layer(layers().SeparableConv2D(64, 3, strides=2, use_bias=False), (9, 9, 32))
    assert (separable.parameters, separable.multiply_adds) == (9 * 32 + 32 * 64, 16 * (9 * 32 + 32 * 64))


def test_dilation_widens_the_window() -> None:
    found = layer(layers().Conv2D(4, 3, dilation_rate=2), (16, 16, 1))
    assert found.output == (12, 12, 4)
    assert found.output_sum == "(16 - 5 + 2·0) / 1 + 1 = 12"
    assert found.receptive_field == (5, 5)


def test_pooling_rounds_down_and_has_nothing_to_learn() -> None:
    found = layer(layers().MaxPooling2D(3, 2), (8, 7, 5))
    assert found.output == (3, 3, 5)
    assert found.output_sum == "rows ⌊(8 - 3 + 2·0) / 2⌋ + 1 = 3; columns (7 - 3 + 2·0) / 2 + 1 = 3"
    assert (found.parameters, found.parameters_sum, found.multiply_adds) == (0, "", 0)


def test_dense_and_normalisation() -> None:
    dense = layer([layers().Flatten(), layers().Dense(10)], (7, 7, 64))
    assert (dense.parameters_sum, dense.multiply_adds) == ("3136·10 + 10 = 31,370", 31_360)
    assert dense.receptive_field == (7, 7), "the whole image"
    assert layer(layers().BatchNormalization(), (4, 4, 64)).parameters_sum == "4·64 = 256"


def test_a_stack_of_three_small_windows_sees_what_one_large_one_does() -> None:
    three = layer([layers().Conv2D(4, 3, padding="same") for _ in range(3)], (32, 32, 4))
    assert three.receptive_field == layer(layers().Conv2D(4, 7), (32, 32, 4)).receptive_field == (7, 7)


def test_the_wider_branch_decides_the_receptive_field() -> None:
    keras = backend.keras()
    x = keras.Input((16, 16, 4))
    a, b = layers().Conv2D(4, 5, padding="same")(x), layers().Conv2D(4, 1)(x)
    rows = describe(keras.Model(x, layers().Add()([b, a])), "x").layers
    assert rows[-1].receptive_field == (5, 5)
    assert {rows[i].name for i in rows[-1].inputs} == {rows[1].name, rows[2].name}


def test_shared_weights_count_once() -> None:
    keras = backend.keras()
    shared = layers().Conv2D(4, 3, padding="same", use_bias=False)
    x = keras.Input((8, 8, 4))
    model = keras.Model(x, shared(shared(x)))
    assert [row.parameters for row in describe(model, "x").layers] == [0, 144, 0]


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("window", [1, 2, 3, 5])
def test_the_formula_gives_the_size_that_keras_gives(window: int, stride: int, padding: str) -> None:
    for side in (5, 8, 9, 16):
        kept = layers().MaxPooling2D(window, stride, padding=padding)(np.zeros((1, side, side, 1), np.float32))
        places, text = windowed(side, window, stride, padding)
        assert places == kept.shape[1]
        formula = text.rpartition(" = ")[0].replace("·", "*").replace("⌊", "int(").replace("⌋", ")")
        assert eval(formula) == places, text  # noqa: S307  # the formula is ours, and must evaluate to its result


def test_more_padding_stands_at_the_end_where_it_is_uneven() -> None:
    """A convolution of ones with ones counts how much of each window lies inside the image."""
    keras = backend.keras()
    counted = layers().Conv2D(1, 3, strides=2, padding="same", kernel_initializer="ones", use_bias=False)
    seen = keras.ops.convert_to_numpy(counted(np.ones((1, 4, 1, 1), np.float32)))[0, :, 0, 0]
    np.testing.assert_array_equal(seen, [3, 2])
    assert windowed(4, 3, 2, "same")[1] == "(4 - 3 + 0 + 1) / 2 + 1 = 2"


# Whole networks


def test_vgg16_by_the_numbers() -> None:
    made = outline(Plan(ModelConfig(name="vgg16"), 224, 224, 3, 1000)).model
    found = describe(made, "vgg16")
    assert found.parameters == parameters(made) == 138_357_544
    assert found.multiply_adds == 15_470_264_320
    assert found.receptive_field == (212, 212)
    by_name = {row.name: row for row in found.layers}
    assert by_name["block3_conv3"].receptive_field == (40, 40)
    assert by_name["block5_conv1"].jump == (16, 16)
    assert (found.size, found.classes) == ((224, 224, 3), 1000)


def test_an_outline_fills_no_weights_and_leaves_nothing_behind() -> None:
    outline(plan("cifar10-simple"))
    keras = backend.keras()
    with keras.StatelessScope():
        pass  # its exit would initialize remaining variables
    assert network("cifar10-simple").model.weights[0].numpy().any()
    assert not keras.src.backend.common.global_state.get_global_attribute("uninitialized_variables")


@pytest.mark.parametrize("name", NAMES)
def test_every_network_is_described_truly(name: str) -> None:
    made = outline(plan(name, classes=3)).model
    found = describe(made, name)
    assert found.parameters == parameters(made)
    assert found.classes == 3
    for row in found.layers:
        if row.output_sum and row.window:
            rows, _, columns = row.output_sum.partition("; columns ")
            assert [int(part.rpartition(" = ")[2]) for part in (rows, columns or rows)] == list(row.output[:2])
        if row.kind == "dense" or "convolution" in row.kind:
            assert row.multiply_adds >= row.parameters - row.output[-1], "each weight is used at least once"
    shapes = {row.name: row.output for row in found.layers}
    for one in made.layers:
        if one.name in shapes and None not in one.output.shape[1:]:
            assert shapes[one.name] == tuple(one.output.shape[1:])


def test_resnet50_by_the_numbers() -> None:
    """ResNet50 at 224: 4.09 G by He et al.'s layers with the stride on the 3x3; Keras puts it on the 1x1: 3.86 G."""
    found = describe(outline(plan("resnet50", side=224, classes=1000)).model, "resnet50")
    assert found.multiply_adds == pytest.approx(3.86e9, rel=0.002)
    assert found.receptive_field == (483, 483)  # Araujo, Norris and Sim, 2019, "Computing receptive fields"
