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

from networks import pictures
from sightline import backend
from sightline.errors import DataError
from sightline.export import integers, quantize
from sightline.export.onnx import convert
from sightline.export.quantize import Calibration
from sightline.prediction.onnx import OnnxPredictor
from sightline.prediction.onnx_graph import parse
from sightline.prediction.onnx_limits import check_limits
from sightline.preprocess import Preprocess


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
    short = layers.Conv2D(8, 1, kernel_initializer=he(3), name="project")(x)
    x = layers.Add(name="sum")([first, short])
    x = layers.Activation("linear", name="features")(layers.GlobalAveragePooling2D(name="pool")(x))
    logits = layers.Dense(3, kernel_initializer=keras.initializers.RandomNormal(0, 4, seed=4), name="predictions")(x)
    outputs = {"probabilities": layers.Softmax(name="probabilities")(logits), "logits": logits, "features": x}
    model = keras.Model(inputs, outputs)
    model(pictures(64, 16), training=True)  # updates the batch normalization statistics
    wide = model.get_layer("depthwise").kernel  # channels of very different sizes, as depthwise layers have
    wide.assign(wide.numpy() * np.logspace(-2, 1, 8)[None, None, :, None])
    normal = model.get_layer("depthwise_bn")
    normal.moving_variance.assign(np.logspace(-4, 2, 8))
    normal.gamma.assign(np.full(8, 0.3))  # nothing reaches 6: only then does the runtime remove the Clip
    return convert(model)


@cache
def calibration() -> Calibration:
    return quantize.calibrate(graph(), [pictures(8, 16, seed=seed) for seed in range(2)])


def logits(file: bytes) -> NDArray[np.float32]:
    predictor = OnnxPredictor(file, ("a", "b", "c"), Preprocess(16, 16))
    return predictor.outputs(pictures(16, 16, seed=9)).logits


def as_run(file: bytes, folder: Path) -> dict[str, str]:
    """Return the operation to which ONNX Runtime optimizes each node, by node name."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 4
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return {node.name: node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node}


def test_the_file_is_ours_and_near_the_float_one(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        file = quantize.quantized(graph(), [pictures(8, 16)])
    assert not caplog.records, "the quantizer's log must be suppressed"
    check_limits(parse(file), 1)
    assert {n.domain for n in onnx.load_from_string(file).graph.node} == {""}
    truth = logits(graph())
    assert not np.array_equal(logits(file), truth)
    assert np.abs(logits(file) - truth).max() < 0.1 * np.abs(truth).max()


def test_the_last_layer_stays_in_float() -> None:
    model = onnx.load_from_string(calibration().quantized())
    kinds = {n.name: n for n in model.graph.node}
    weights = {w.name: w.data_type for w in model.graph.initializer}
    assert weights[kinds["predictions"].input[1]] == onnx.TensorProto.FLOAT
    assert calibration().layers == ("stem", "depthwise", "project")


def test_the_first_layer_takes_pixels_as_they_are_and_means_the_same() -> None:
    (reader,) = [n for n in onnx.load_from_string(calibration().quantized()).graph.node if "pixels" in n.input]
    assert (reader.op_type, reader.name) == ("Transpose", "normalize:nchw")
    model = onnx.load_from_string(calibration().quantized(["stem"]))
    (reader,) = [n for n in model.graph.node if "pixels" in n.input]
    assert reader.op_type == "Cast", "a float first layer needs float pixels"


def changed(model: onnx.ModelProto, name: str, array: NDArray[np.float32]) -> onnx.ModelProto:
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
def test_one_mean_and_one_deviation_within_the_range_of_pixels_can_be_taken_over(
    scale: float, offset: float, possible: bool
) -> None:
    model = changed(calibration().model, "normalize:scale", np.array(scale))
    found = integers.pixels(changed(model, "normalize:offset", np.array(offset)))
    assert (found is not None) == possible
    if found is not None:
        assert abs(found.zero + offset / scale) <= 0.5 + 1e-6
        assert (200 - found.zero) * found.scale + found.rest == pytest.approx(200 * scale + offset, abs=1e-6)


def test_a_mean_for_each_channel_is_normalised_in_float() -> None:
    model = changed(calibration().model, "normalize:offset", np.array([-1.0, -0.9, -0.8]))
    assert integers.pixels(model) is None


def integer_weights(file: bytes) -> dict[str, NDArray[np.int64]]:
    model = onnx.load_from_string(file)
    return {
        w.name: onnx.numpy_helper.to_array(w).astype(int)
        for w in model.graph.initializer
        if w.data_type == onnx.TensorProto.INT8 and len(w.dims) == 4
    }


def test_no_neighbours_overflow_sixteen_bits_and_each_channel_fills_its_range() -> None:
    found = integer_weights(calibration().quantized())
    assert len(found) == 3
    for name, array in found.items():
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


def test_biases_take_back_what_rounding_weights_adds_on_average() -> None:
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
    found = quantize.calibrate(convert(keras.Model(pixels, outputs)), [pictures(32, 8)])
    (node,) = [n for n in found.model.graph.node if n.name == "wide"]
    read = found.means[node.input[0]]
    assert read == pytest.approx((pictures(32, 8) / 255).mean((0, 1, 2)), abs=1e-5)
    model = copy.deepcopy(found.model)
    integers.correct(model, ["wide"], found.steps, found.means)
    shift = integers.weights(model)[node.input[2]] - integers.weights(found.model)[node.input[2]]
    assert shift == pytest.approx(np.full(6, 0.4 / 127 * (read[1] + read[2])), rel=1e-3)


def test_layers_left_in_float_are_computed_in_float_by_the_runtime(tmp_path: Path) -> None:
    """ONNX Runtime would quantize them again on loading, with larger errors."""
    layer = "depthwise"
    kept = calibration().quantized([layer])
    model = onnx.load_from_string(kept)
    (node,) = [n for n in model.graph.node if n.name == layer]
    (weight,) = [w for w in model.graph.initializer if w.name == node.input[1]]
    assert weight.data_type == onnx.TensorProto.FLOAT
    plain = onnx.load_from_string(kept)
    (held,) = [n for n in plain.graph.node if n.op_type == "Max"]  # keeps the layer in float
    for n in plain.graph.node:
        if held.output[0] in n.input:
            n.input[0] = held.input[0]
    plain.graph.node.remove(held)
    assert as_run(plain.SerializeToString(), tmp_path)[layer] == "QLinearConv", "otherwise the Max is no longer needed"
    assert as_run(kept, tmp_path)[layer] != "QLinearConv"
    assert as_run(kept, tmp_path)["stem"] == "QLinearConv"


def test_sensitivities_name_every_layer_and_the_hurt_one() -> None:
    model = onnx.load_from_string(graph())
    spoilt = "project"
    for weight in model.graph.initializer:
        if weight.name == f"{spoilt}:kernel":
            array = onnx.numpy_helper.to_array(weight).copy()
            array[:, 0] *= 1000  # one weight takes the whole range of its channel: the others round to zero
            weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    calls = []
    found = quantize.sensitivities(model.SerializeToString(), [pictures(8, 16)], lambda *call: calls.append(call))
    assert set(found) == set(calibration().layers)
    assert all(value >= 0 for value in found.values())
    assert quantize.worst(found)[0] == max(found, key=lambda name: found[name])
    assert calls[-1][1:] == (len(found), len(found))


def test_layers_are_left_in_float_until_the_file_is_accepted() -> None:
    small = calibration().quantized()
    file, keep, accepted = calibration().until(lambda file: file != small, pictures(4, 16))
    assert accepted
    assert len(keep) == 1
    assert file != small
    _, keep, accepted = calibration().until(lambda _: False, pictures(4, 16))
    assert not accepted
    assert len(keep) <= len(calibration().layers) // 2


def test_no_pictures_is_an_error() -> None:
    with pytest.raises(DataError, match="needs images"):
        quantize.quantized(graph(), [])
