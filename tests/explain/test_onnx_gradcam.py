"""Grad-CAM of ONNX files, in closed form, is that of the Keras model that they were exported from.

That each network of the registry has it, or none, is in test_heatmaps.py.
"""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

import networks
from corner_task import CLASSES, SIDE, draw_images
from sightline.explain.heatmaps import compute_heat_maps, resolve_method, share_gradcam
from sightline.explain.onnx_gradcam import PooledHead
from sightline.export import keras_to_onnx
from sightline.export.quantize import calibrate_graph
from sightline.inference.predictor import FakePredictor
from sightline.inference.runtimes.keras import KerasPredictor
from sightline.inference.runtimes.onnx import OnnxPredictor
from sightline.inference.safety import onnx_file, onnx_graph
from sightline.models.build import build_model
from sightline.preprocessing import PreprocessingSpec
from sightline.runs.calibration import set_temperature


def pair_predictors(model: Any, classes: tuple[str, ...]) -> tuple[KerasPredictor, OnnxPredictor]:
    """The Keras model and its exported file."""
    _, height, width, _ = model.input.shape
    spec = PreprocessingSpec(height, width)
    return KerasPredictor(model, classes, spec), OnnxPredictor(keras_to_onnx.convert_model(model), classes, spec)


@pytest.mark.parametrize("settings", [{"head": "softmax"}, {"head": "sigmoid"}], ids=str)
def test_two_classes_of_a_calibrated_model(settings: dict[str, Any]) -> None:
    """With a sigmoid, the first class has no weights of its own; the temperature scales the gradient of Grad-CAM++."""
    model = build_model(networks.make_plan("fast-small", side=SIDE, **settings)).model
    set_temperature(model, 2.5)
    keras_predictor, exported = pair_predictors(model, ("a", "b"))
    pixels = networks.random_images(10, SIDE)
    for method in ("gradcam", "gradcam++"):
        expected, heat = (
            compute_heat_maps(each, pixels, np.arange(10) % 2, method) for each in (keras_predictor, exported)
        )
        assert expected.any()
        np.testing.assert_allclose(heat, expected, atol=2e-3)
    head = PooledHead.find(exported.file)
    assert head is not None
    assert head.kernel.shape[1] == (1 if settings["head"] == "sigmoid" else 2)


def test_a_smaller_file_has_nearly_the_maps_of_the_float32_one() -> None:
    model = build_model(networks.make_plan("fast-small", side=SIDE, classes=3)).model
    set_temperature(model, 2.5)
    pixels, labels = draw_images(24, seed=99)
    keras_predictor, exported = pair_predictors(model, CLASSES)
    expected, heat = (compute_heat_maps(each, pixels, labels, "gradcam") for each in (keras_predictor, exported))
    np.testing.assert_allclose(heat, expected, atol=2e-3)
    quantized = calibrate_graph(exported.file, draw_images(32)[0]).quantize()
    float16, bfloat16 = (keras_to_onnx.cast_weights(exported.file, name) for name in ("float16", "bfloat16"))
    for file, limit in ((quantized, 0.05), (float16, 0.005), (bfloat16, 0.03)):
        smaller = OnnxPredictor(file, CLASSES, exported.preprocess)
        assert resolve_method(None, smaller) == "gradcam"
        changed = compute_heat_maps(smaller, pixels, labels, "gradcam")
        difference = np.abs(changed - expected).mean()
        assert 0 < difference < limit
        assert difference < np.abs(changed - expected[::-1]).mean() / 3


def test_an_int8_file_of_average_pooling_has_them_behind_quantized_rows() -> None:
    model = build_model(networks.make_plan("squeezenet", side=64, classes=3)).model
    _, exported = pair_predictors(model, CLASSES)
    pixels = networks.random_images(4, 64)
    file = calibrate_graph(exported.file, networks.random_images(8, 64, seed=1)).quantize()
    int8 = OnnxPredictor(file, CLASSES, exported.preprocess)
    expected, heat = (compute_heat_maps(each, pixels, np.zeros(4, np.int64), "gradcam") for each in (exported, int8))
    assert expected.any()
    assert np.abs(heat - expected).mean() < 0.1


def test_the_file_of_a_session_differs_by_an_output() -> None:
    """The outputs of the file itself stay, bit by bit."""
    _, exported = pair_predictors(networks.build_network("fast-small").model, ("a", "b", "c"))
    head = PooledHead.find(exported.file)
    assert head is not None
    changed = onnx_file.add_output(exported.file, head.maps)
    assert onnx_file.read_metadata(changed) == onnx_file.read_metadata(exported.file)
    assert len(changed) - len(exported.file) < 100
    pixels = networks.random_images(2, exported.preprocess.height)
    maps = exported.open_value(head.maps)(pixels)
    assert maps.ndim == 4
    assert maps.shape[:2] == (2, head.kernel.shape[0])
    np.testing.assert_allclose(
        (maps.max((2, 3)) if head.has_max_pooling else maps.mean((2, 3))), exported.outputs(pixels).features, rtol=1e-4
    )


@pytest.mark.parametrize("uses", [False, True])
def test_a_model_that_is_no_longer_served_is_freed(uses: bool) -> None:
    _, exported = pair_predictors(networks.build_network("fast-small").model, ("a", "b", "c"))
    wrapper = FakePredictor(("a", "b", "c"), exported.preprocess)
    share_gradcam(wrapper, exported)
    if uses:
        pixels = networks.random_images(3, exported.preprocess.height)
        assert compute_heat_maps(wrapper, pixels, np.arange(3), "gradcam").any()
    alive = weakref.ref(exported)
    del exported, wrapper
    gc.collect()
    assert alive() is None


def test_the_place_of_a_weight_is_that_of_its_numbers() -> None:
    model = networks.build_network("fast-small").model
    file = keras_to_onnx.convert_model(model)
    place = onnx_graph.parse_graph(file).weights["predictions:kernel"].place
    assert place is not None
    kernel = np.frombuffer(file[slice(*place)], "<f4")
    np.testing.assert_array_equal(kernel, np.asarray(model.get_layer("predictions").kernel).ravel())


@pytest.mark.parametrize(("name", "value"), [("transB", 1), ("alpha", 2.0)])
def test_another_product_has_none(name: str, value: float) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_model_from_string(keras_to_onnx.convert_model(networks.build_network("fast-small").model))
    dense = next(node for node in model.graph.node if node.op_type == "Gemm")
    assert PooledHead.find(model.SerializeToString()) is not None
    dense.attribute.append(onnx.helper.make_attribute(name, value))
    assert PooledHead.find(model.SerializeToString()) is None
