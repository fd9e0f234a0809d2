"""Frozen layers run in ONNX Runtime if it agrees with Keras, else in Keras."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from command import skip_without
from networks import RUNS, build_network, random_images
from sightline import backend
from sightline.config import StageConfig
from sightline.data.types import Subset
from sightline.inference import frozen_layers as module
from sightline.inference.frozen_layers import build_frozen_layers
from sightline.inference.predictor import Streams
from sightline.models.registry import ENTRIES
from sightline.training import stages


def make_frozen_model(name: str, fraction: float = 0.0) -> Any:
    built = build_network(name)
    tensor = stages.find_freeze_boundary(built, StageConfig(unfreeze=int(fraction * len(built.backbone))))
    return backend.keras().Model(built.model.input, tensor)


@pytest.mark.parametrize("name", RUNS)
def test_frozen_layers_of_each_network_run_elsewhere_alike(name: str) -> None:
    model, pixels = make_frozen_model(name), random_images(3, ENTRIES[name].min_input_size)
    frozen_layers = build_frozen_layers(model, pixels, "auto", 1)
    assert frozen_layers.cache_key is not None, "it must not have fallen back"
    expected = np.asarray(model.predict_on_batch(pixels))
    np.testing.assert_allclose(frozen_layers.run(pixels), expected, atol=1e-4 * np.abs(expected).max())


def test_their_outputs_do_not_depend_on_how_many_images_run_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pixels = make_frozen_model("efficientnet-lite0"), random_images(5, 32)
    outputs = []
    for rows in (1, 2, 5):
        monkeypatch.setattr(module, "choose_streams", lambda *_, rows=rows: Streams(1, rows, 1))
        outputs.append(build_frozen_layers(model, pixels, "onnxruntime", 1).run(pixels))
    assert len(outputs[0]) == 5
    np.testing.assert_array_equal(outputs[1], outputs[0])
    np.testing.assert_array_equal(outputs[2], outputs[0])


@pytest.mark.backends
def test_layers_between_two_cuts_take_features() -> None:
    network = build_network("fashion-cnn")
    first, second = (stages.find_freeze_boundary(network, StageConfig(unfreeze=unfreeze)) for unfreeze in (5, 0))
    keras = backend.keras()
    features = keras.Model(network.model.input, first).predict_on_batch(random_images(3, 8))
    between = keras.Model(first, second)
    frozen_layers = build_frozen_layers(between, features, "auto", 1)
    assert frozen_layers.cache_key is not None
    np.testing.assert_allclose(frozen_layers.run(features), between.predict_on_batch(features), atol=1e-5)


@pytest.mark.backends
@pytest.mark.parametrize("name", ["fashion-cnn", pytest.param("efficientnet-lite0", marks=pytest.mark.slow)])
def test_openvino_runs_them_within_the_precision_of_the_processor(name: str) -> None:
    skip_without("openvino")
    model, pixels = make_frozen_model(name), random_images(3, ENTRIES[name].min_input_size)
    frozen_layers = build_frozen_layers(model, pixels, "openvino", 1)
    assert frozen_layers.cache_key is not None, "it must not have fallen back"
    tolerance = module.BFLOAT16_TOLERANCE if "bf16" in frozen_layers.cache_key else module.RELATIVE_TOLERANCE
    expected, outputs = np.asarray(model.predict_on_batch(pixels)), frozen_layers.run(pixels)
    np.testing.assert_allclose(outputs, expected, atol=tolerance * np.abs(expected).max())
    np.testing.assert_array_equal(frozen_layers.run(pixels), outputs)
    assert frozen_layers.exact is not None
    np.testing.assert_allclose(frozen_layers.exact.run(pixels), expected, atol=1e-4 * np.abs(expected).max())
    frozen_layers.run(pixels[::-1])
    np.testing.assert_array_equal(frozen_layers.run(pixels), outputs)


def test_int8_is_close_and_has_an_exact_form() -> None:
    model, pixels = make_frozen_model("efficientnet-lite0"), random_images(20, 32)
    layers = build_frozen_layers(model, pixels[:4], "onnxruntime-int8", 1, calibration=pixels[4:])
    expected, outputs = np.asarray(model.predict_on_batch(pixels)), layers.run(pixels)
    assert layers.exact is not None
    assert layers.cache_key != layers.exact.cache_key
    np.testing.assert_allclose(layers.exact.run(pixels), expected, atol=1e-4 * np.abs(expected).max())
    assert 0 < np.sqrt(np.mean((outputs - expected) ** 2)) < module.INT8_TOLERANCE * expected.std()
    again = build_frozen_layers(model, pixels[:4], "onnxruntime-int8", 1, calibration=pixels[4:])
    assert again.cache_key == layers.cache_key
    np.testing.assert_array_equal(again.run(pixels), outputs)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in ENTRIES])
def test_int8_layers_of_each_network_are_close_or_not_used(name: str) -> None:
    model = make_frozen_model(name)
    pixels = random_images(20, *model.input.shape[2:])
    layers = build_frozen_layers(model, pixels[:4], "onnxruntime-int8", 1, calibration=pixels[4:])
    assert not layers.fallback_reason
    expected = np.asarray(model.predict_on_batch(pixels))
    error = np.sqrt(np.mean((layers.run(pixels) - expected) ** 2)) / expected.std()
    assert error < 1.5 * module.INT8_TOLERANCE


def test_where_int8_differs_much_it_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INT8_TOLERANCE", 1e-6)
    model, pixels = make_frozen_model("fashion-cnn"), random_images(20, 8)
    layers = build_frozen_layers(model, pixels[:4], "onnxruntime-int8", 1, calibration=pixels[4:])
    assert layers.exact is not None
    np.testing.assert_array_equal(layers.run(pixels), layers.exact.run(pixels))
    expected = np.asarray(model.predict_on_batch(pixels))
    np.testing.assert_allclose(layers.run(pixels), expected, atol=1e-4 * np.abs(expected).max())


def test_layers_are_quantized_when_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    quantize = module._quantize

    def count(*arguments: Any) -> bytes:
        calls.append(1)
        return quantize(*arguments)

    monkeypatch.setattr(module, "_quantize", count)
    model, pixels = make_frozen_model("fashion-cnn"), random_images(20, 8)
    layers = build_frozen_layers(model, pixels[:4], "onnxruntime-int8", 1, calibration=pixels[4:])
    assert not calls, "where features are cached, they need not be"
    layers.run(pixels)
    layers.run(pixels)
    assert calls == [1]


def test_int8_is_calibrated_on_training_images_at_even_distances() -> None:
    pixels = random_images(500, 8)
    subset = Subset(pixels, np.arange(500), np.zeros(500, np.int32), ("",) * 500)
    images = module.choose_calibration("onnxruntime-int8", subset)
    assert images is not None
    np.testing.assert_array_equal(images, pixels[np.linspace(0, 499, 16).astype(int)])
    assert module.choose_calibration("onnxruntime", subset) is None
    assert module.choose_calibration("onnxruntime-int8", subset.head(499)) is None, "not worth it"
    features = dataclasses.replace(subset, pixels=pixels.astype(np.float32))
    assert module.choose_calibration("onnxruntime-int8", features) is None


def test_without_openvino_keras_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    model, pixels = make_frozen_model("fashion-cnn"), random_images(3, 8)
    frozen_layers = build_frozen_layers(model, pixels, "openvino", 1)
    assert frozen_layers.cache_key is None
    assert "OpenVINO cannot" in frozen_layers.fallback_reason


@pytest.mark.backends
def test_keras_on_demand() -> None:
    model, pixels = make_frozen_model("fashion-cnn"), random_images(3, 8)
    frozen_layers = build_frozen_layers(model, pixels, "keras", 1)
    assert frozen_layers.cache_key is None
    assert not frozen_layers.fallback_reason
    np.testing.assert_allclose(frozen_layers.run(pixels), model.predict_on_batch(pixels), atol=1e-6)


def test_a_file_that_answers_otherwise_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pixels = make_frozen_model("fashion-cnn"), random_images(3, 8)

    class Wrong:
        def run(self, _names: list[str], inputs: dict[str, NDArray[Any]]) -> list[Any]:
            return [1.001 * np.asarray(model.predict_on_batch(inputs["pixels"]))]

    monkeypatch.setattr(module, "create_session", lambda *_: Wrong())
    frozen_layers = build_frozen_layers(model, pixels, "onnxruntime", 1)
    assert frozen_layers.cache_key is None
    assert "differ" in frozen_layers.fallback_reason
    np.testing.assert_allclose(frozen_layers.run(pixels), model.predict_on_batch(pixels), atol=1e-6)


def test_a_layer_that_no_file_can_hold_is_left_to_keras() -> None:
    keras = backend.keras()
    inputs = keras.Input((8, 8, 3), dtype="uint8")
    model = keras.Model(inputs, keras.layers.UnitNormalization()(keras.layers.Rescaling(1.0)(inputs)))
    frozen_layers = build_frozen_layers(model, random_images(2, 8), "onnxruntime", 1)
    assert frozen_layers.cache_key is None
    assert "UnitNormalization" in frozen_layers.fallback_reason
    assert frozen_layers.run(random_images(2, 8)).shape == (2, 8, 8, 3)
