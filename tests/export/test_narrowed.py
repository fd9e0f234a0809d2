"""Weights stored in 16 bits: which ones, and the effect on the outputs."""

from __future__ import annotations

import numpy as np
import onnx as package
import pytest

from networks import pictures, plan
from sightline.export import onnx
from sightline.models.build import build
from sightline.prediction import onnxfile
from sightline.prediction.onnx import OnnxPredictor
from sightline.preprocess import Preprocess


@pytest.fixture(scope="module")
def graph() -> bytes:
    """Return MobileNet as ONNX: half of its layers are depthwise convolutions."""
    return onnx.convert(build(plan("mobilenet")).model)


@pytest.mark.parametrize(("precision", "size", "error"), [("float16", 0.54, 0.002), ("bfloat16", 0.57, 0.008)])
def test_answers_stay_near_at_about_half_the_size(graph: bytes, precision: str, size: float, error: float) -> None:
    """With depthwise kernels in bfloat16 too, the error would be 0.0101 of the features' spread, not 0.0060."""
    file = onnx.narrowed(graph, precision)
    onnxfile.check_graph(file)
    assert len(file) < size * len(graph)
    side = plan("mobilenet").height
    pixels = pictures(16, side, seed=3)
    truth, small = (OnnxPredictor(f, ("a", "b"), Preprocess(side, side)).outputs(pixels) for f in (graph, file))
    assert 0 < np.sqrt(np.mean((small.features - truth.features) ** 2)) / truth.features.std() < error


def test_bfloat16_leaves_depthwise_kernels_in_float32(graph: bytes) -> None:
    types = package.TensorProto
    weights = {w.name: w for w in package.load_model_from_string(onnx.narrowed(graph, "bfloat16")).graph.initializer}
    kernels = {name: w for name, w in weights.items() if len(w.dims) == 4}
    depthwise = {name for name, w in kernels.items() if w.dims[1] == 1}
    assert len(depthwise) == 13
    assert {weights[name].data_type for name in depthwise} == {types.FLOAT}
    wide = {w.data_type for name, w in kernels.items() if name not in depthwise and np.prod(w.dims) >= 256}
    assert wide == {types.BFLOAT16}
