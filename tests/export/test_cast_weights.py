"""Weights stored in 16 bits: which ones, and the effect on the outputs."""

from __future__ import annotations

import numpy as np
import onnx as package
import pytest

from networks import make_plan, random_images
from sightline.export import keras_to_onnx
from sightline.inference.runtimes.onnx import OnnxPredictor
from sightline.inference.safety import onnx_file
from sightline.models.build import build_model
from sightline.preprocessing import PreprocessingSpec


@pytest.fixture(scope="module")
def graph() -> bytes:
    """Return MobileNet as ONNX: half of its layers are depthwise convolutions."""
    return keras_to_onnx.convert_model(build_model(make_plan("mobilenet")).model)


@pytest.mark.parametrize(("precision", "size", "error"), [("float16", 0.54, 0.002), ("bfloat16", 0.57, 0.008)])
def test_outputs_stay_close_at_about_half_the_size(graph: bytes, precision: str, size: float, error: float) -> None:
    """With depthwise kernels in bfloat16 too, the error would be 0.0101 of the features' spread, not 0.0060."""
    file = keras_to_onnx.cast_weights(graph, precision)
    onnx_file.check_graph(file)
    assert len(file) < size * len(graph)
    side = make_plan("mobilenet").height
    pixels = random_images(16, side, seed=3)
    expected, actual = (
        OnnxPredictor(f, ("a", "b"), PreprocessingSpec(side, side)).outputs(pixels) for f in (graph, file)
    )
    assert 0 < np.sqrt(np.mean((actual.features - expected.features) ** 2)) / expected.features.std() < error


def test_bfloat16_leaves_depthwise_kernels_in_float32(graph: bytes) -> None:
    types = package.TensorProto
    weights = {
        w.name: w
        for w in package.load_model_from_string(keras_to_onnx.cast_weights(graph, "bfloat16")).graph.initializer
    }
    kernels = {name: w for name, w in weights.items() if len(w.dims) == 4}
    depthwise = {name for name, w in kernels.items() if w.dims[1] == 1}
    assert len(depthwise) == 13
    assert {weights[name].data_type for name in depthwise} == {types.FLOAT}
    wide = {w.data_type for name, w in kernels.items() if name not in depthwise and np.prod(w.dims) >= 256}
    assert wide == {types.BFLOAT16}


def test_float16_leaves_weights_in_float32_that_would_become_infinite(graph: bytes) -> None:
    model = package.load_model_from_string(graph)
    variance = next(w for w in model.graph.initializer if w.name.endswith("_bn:variance") and w.dims[0] >= 256)
    large = package.numpy_helper.to_array(variance) * np.float32(1e5)
    variance.CopyFrom(package.numpy_helper.from_array(large, variance.name))
    file = keras_to_onnx.cast_weights(model.SerializeToString(), "float16")
    weights = {w.name: w for w in package.load_model_from_string(file).graph.initializer}
    np.testing.assert_array_equal(package.numpy_helper.to_array(weights[variance.name]), large)
    assert package.TensorProto.FLOAT16 in {w.data_type for w in weights.values()}
