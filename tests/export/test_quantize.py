"""int8 files: their contents, what stays in float, and that ONNX Runtime computes it in float."""

from __future__ import annotations

import copy
import logging
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from networks import random_images
from sightline import backend
from sightline.errors import DataError
from sightline.export import int8_scales, quantize
from sightline.export.keras_to_onnx import convert_model
from sightline.export.quantize import CalibratedGraph
from sightline.inference.runtimes.onnx import OnnxPredictor
from sightline.inference.safety.onnx_graph import parse_graph
from sightline.inference.safety.onnx_limits import check_limits
from sightline.preprocessing import PreprocessingSpec


@cache
def graph() -> bytes:
    """Return a residual block of MobileNetV2 with batch normalization statistics as an ONNX file."""
    keras = backend.keras()
    layers, he = keras.layers, keras.initializers.HeNormal
    inputs = keras.Input((16, 16, 3), dtype="uint8", name="pixels")
    first = x = layers.Rescaling(1 / 127.5, -1.0, name="normalize")(inputs)
    for name, layer in (
        ("stem", layers.Conv2D(8, 3, 2, "same", use_bias=False, kernel_initializer=he(1), name="stem")),
        ("depthwise", layers.DepthwiseConv2D(3, padding="same", depthwise_initializer=he(2), name="depthwise")),
    ):
        x = layers.BatchNormalization(momentum=0.0, name=f"{name}_bn")(layer(x))
        x = layers.ReLU(6.0, name=f"{name}_relu")(x)
        first = x if name == "stem" else first
    shortcut = layers.Conv2D(8, 1, kernel_initializer=he(3), name="project")(x)
    x = layers.Add(name="sum")([first, shortcut])
    x = layers.Activation("linear", name="features")(layers.GlobalAveragePooling2D(name="pool")(x))
    logits = layers.Dense(3, kernel_initializer=keras.initializers.RandomNormal(0, 4, seed=4), name="predictions")(x)
    outputs = {"probabilities": layers.Softmax(name="probabilities")(logits), "logits": logits, "features": x}
    model = keras.Model(inputs, outputs)
    model(random_images(64, 16), training=True)  # updates the batch normalization statistics
    depthwise_kernel = model.get_layer("depthwise").kernel  # channels of very different sizes, as depthwise layers have
    depthwise_kernel.assign(depthwise_kernel.numpy() * np.logspace(-2, 1, 8)[None, None, :, None])
    batch_norm = model.get_layer("depthwise_bn")
    batch_norm.moving_variance.assign(np.logspace(-4, 2, 8))
    batch_norm.gamma.assign(np.full(8, 0.3))  # nothing reaches 6: only then does the runtime remove the Clip
    return convert_model(model)


@cache
def calibrate_block() -> CalibratedGraph:
    return quantize.calibrate_graph(graph(), random_images(16, 16))


def compute_logits(file: bytes) -> NDArray[np.float32]:
    predictor = OnnxPredictor(file, ("a", "b", "c"), PreprocessingSpec(16, 16))
    return predictor.outputs(random_images(16, 16, seed=9)).logits


def list_optimized_operations(file: bytes, folder: Path) -> dict[str, str]:
    """Return the operation to which ONNX Runtime optimizes each node, by node name."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 4
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return {node.name: node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node}


def test_the_file_is_allowed_and_close_to_float(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        file = quantize.calibrate_graph(graph(), random_images(8, 16)).quantize()
    assert not caplog.records, "the quantizer's log must be suppressed"
    check_limits(parse_graph(file), 1)
    assert {n.domain for n in onnx.load_from_string(file).graph.node} == {""}
    float_logits = compute_logits(graph())
    assert not np.array_equal(compute_logits(file), float_logits)
    assert np.abs(compute_logits(file) - float_logits).max() < 0.1 * np.abs(float_logits).max()


def test_the_last_layer_stays_in_float() -> None:
    model = onnx.load_from_string(calibrate_block().quantize())
    node_by_name = {n.name: n for n in model.graph.node}
    weights = {w.name: w.data_type for w in model.graph.initializer}
    assert weights[node_by_name["predictions"].input[1]] == onnx.TensorProto.FLOAT
    assert calibrate_block().layers == ("stem", "depthwise", "project")


def test_the_first_layer_reads_pixels_directly() -> None:
    (reader,) = [n for n in onnx.load_from_string(calibrate_block().quantize()).graph.node if "pixels" in n.input]
    assert (reader.op_type, reader.name) == ("Transpose", "normalize:nchw")
    model = onnx.load_from_string(calibrate_block().quantize(["stem"]))
    (reader,) = [n for n in model.graph.node if "pixels" in n.input]
    assert reader.op_type == "Cast", "a float first layer needs float pixels"


def replace_weight(model: onnx.ModelProto, name: str, array: NDArray[np.float32]) -> onnx.ModelProto:
    new = copy.deepcopy(model)
    (weight,) = [w for w in new.graph.initializer if w.name == name]
    weight.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return new


@pytest.mark.parametrize(
    ("scale", "offset", "possible"),
    [
        (1 / 127.5, -1.0, True), (1 / 255, 0.0, True), (1 / 60, -118.3 / 60, True), (1 / 60, 2.0, False),
        (-1.0, 1.0, False),
    ],
)  # fmt: skip
def test_uniform_normalization_is_absorbed_by_the_first_layer(scale: float, offset: float, possible: bool) -> None:
    model = replace_weight(calibrate_block().model, "normalize:scale", np.array(scale))
    normalization = int8_scales.find_pixel_normalization(replace_weight(model, "normalize:offset", np.array(offset)))
    assert (normalization is not None) == possible
    if normalization is not None:
        assert abs(normalization.zero + offset / scale) <= 0.5 + 1e-6
        assert (200 - normalization.zero) * normalization.scale + normalization.remainder == pytest.approx(
            200 * scale + offset, abs=1e-6
        )


def test_a_mean_for_each_channel_is_normalized_in_float() -> None:
    model = replace_weight(calibrate_block().model, "normalize:offset", np.array([-1.0, -0.9, -0.8]))
    assert int8_scales.find_pixel_normalization(model) is None


def integer_weights(file: bytes) -> dict[str, NDArray[np.int64]]:
    model = onnx.load_from_string(file)
    return {
        w.name: onnx.numpy_helper.to_array(w).astype(int)
        for w in model.graph.initializer
        if w.data_type == onnx.TensorProto.INT8 and len(w.dims) == 4
    }


def test_no_neighbors_overflow_sixteen_bits_and_each_channel_fills_its_range() -> None:
    weights = integer_weights(calibrate_block().quantize())
    assert len(weights) == 3
    for name, array in weights.items():
        rows = array.reshape(len(array), -1)
        if "depthwise" in name:  # accumulated in 32 bits: uses all 8 bits
            assert (np.abs(rows).max(1) == 127).all()
            continue
        across = array.transpose(0, 2, 3, 1).reshape(len(array), -1)
        sums = np.concatenate([r[:, 1:] + r[:, :-1] for r in (rows, across) if r.shape[1] > 1], 1)
        same = np.concatenate([r[:, 1:] * r[:, :-1] > 0 for r in (rows, across) if r.shape[1] > 1], 1)
        assert 255 * np.abs(sums * same).max() <= 32767
        full = np.maximum(np.abs(rows).max(1), np.abs(sums * same).max(1))
        assert (full >= 125).all(), "every channel must use its range"


def test_biases_correct_the_mean_error_of_rounding_weights() -> None:
    """Weights below half a step beside an outlier: their rounding errors are large and have the same sign."""
    keras = backend.keras()
    layers = keras.layers
    pixels = keras.Input((8, 8, 3), dtype="uint8", name="pixels")
    x = layers.Rescaling(1 / 255, 0.0, name="normalize")(pixels)
    kernel = np.full((1, 1, 3, 6), 0.4 / 127, np.float32)
    kernel[0, 0, 0] = -1  # one step is 1/127: the others round to zero
    x = layers.Conv2D(6, 1, name="wide", kernel_initializer=lambda *_, **__: kernel)(x)
    x = layers.Conv2D(4, 3, name="mix", kernel_initializer=keras.initializers.HeNormal(3))(layers.ReLU(name="relu")(x))
    x = layers.Activation("linear", name="features")(layers.GlobalAveragePooling2D(name="pool")(x))
    logits = layers.Dense(3, name="predictions", kernel_initializer=keras.initializers.HeNormal(5))(x)
    outputs = {"probabilities": layers.Softmax(name="probabilities")(logits), "logits": logits, "features": x}
    calibrated = quantize.calibrate_graph(convert_model(keras.Model(pixels, outputs)), random_images(32, 8))
    (node,) = [n for n in calibrated.model.graph.node if n.name == "wide"]
    input_mean = calibrated.input_means[node.input[0]]
    assert input_mean == pytest.approx((random_images(32, 8) / 255).mean((0, 1, 2)), abs=1e-5)
    model = copy.deepcopy(calibrated.model)
    int8_scales.correct_biases(model, ["wide"], calibrated.weight_scales, calibrated.input_means)
    shift = int8_scales.read_weights(model)[node.input[2]] - int8_scales.read_weights(calibrated.model)[node.input[2]]
    assert shift == pytest.approx(np.full(6, 0.4 / 127 * (input_mean[1] + input_mean[2])), rel=1e-3)


def test_layers_left_in_float_are_computed_in_float_by_the_runtime(tmp_path: Path) -> None:
    """ONNX Runtime would quantize them again on loading, with larger errors."""
    layer = "depthwise"
    float_file = calibrate_block().quantize([layer])
    model = onnx.load_from_string(float_file)
    (node,) = [n for n in model.graph.node if n.name == layer]
    (weight,) = [w for w in model.graph.initializer if w.name == node.input[1]]
    assert weight.data_type == onnx.TensorProto.FLOAT
    without_barrier = onnx.load_from_string(float_file)
    (barrier,) = [n for n in without_barrier.graph.node if n.op_type == "Max"]  # keeps the layer in float
    for n in without_barrier.graph.node:
        if barrier.output[0] in n.input:
            n.input[0] = barrier.input[0]
    without_barrier.graph.node.remove(barrier)
    assert list_optimized_operations(without_barrier.SerializeToString(), tmp_path)[layer] == "QLinearConv", (
        "otherwise the Max is no longer needed"
    )
    assert list_optimized_operations(float_file, tmp_path)[layer] != "QLinearConv"
    assert list_optimized_operations(float_file, tmp_path)["stem"] == "QLinearConv"


def test_sensitivities_cover_every_layer_and_rank_the_damaged_one_first() -> None:
    model = onnx.load_from_string(graph())
    damaged = "project"
    for weight in model.graph.initializer:
        if weight.name == f"{damaged}:kernel":
            array = onnx.numpy_helper.to_array(weight).copy()
            array[:, 0] *= 1000  # one weight takes the whole range of its channel: the others round to zero
            weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    calls = []
    pixels = random_images(8, 16)
    calibrated = quantize.calibrate_graph(model.SerializeToString(), pixels)
    sensitivities = calibrated.measure_sensitivities(pixels, lambda *call: calls.append(call))
    assert set(sensitivities) == set(calibrate_block().layers)
    assert all(value >= 0 for value in sensitivities.values())
    assert quantize.rank_by_sensitivity(sensitivities)[0] == max(sensitivities, key=lambda name: sensitivities[name])
    assert calls[-1][1:] == (len(sensitivities), len(sensitivities))


def test_layers_are_left_in_float_until_the_file_is_accepted() -> None:
    int8_file = calibrate_block().quantize()
    file, float_layers, accepted = calibrate_block().quantize_until_accepted(
        lambda file: file != int8_file, random_images(4, 16)
    )
    assert accepted
    assert len(float_layers) == 1
    assert file != int8_file
    _, float_layers, accepted = calibrate_block().quantize_until_accepted(lambda _: False, random_images(4, 16))
    assert not accepted
    assert len(float_layers) <= len(calibrate_block().layers) // 2


def test_calibration_reports_its_progress() -> None:
    counts: list[tuple[int, int]] = []
    calibrated = quantize.calibrate_graph(graph(), random_images(70, 16), lambda _, *count: counts.append(count))
    assert counts == [(done, 70) for done in range(71)]
    assert calibrated.layers == calibrate_block().layers


def test_no_images_is_an_error() -> None:
    with pytest.raises(DataError, match="needs images"):
        quantize.calibrate_graph(graph(), random_images(0, 16))
