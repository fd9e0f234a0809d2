"""Every registered model gives the same outputs in ONNX as in Keras, with weights that respond to the image."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from networks import NAMES, SLOW, make_plan, random_images
from sightline.export import keras_to_onnx, quantize
from sightline.inference import parity
from sightline.inference.parity import Tolerance
from sightline.inference.runtimes.keras import KerasPredictor
from sightline.inference.runtimes.onnx import OnnxPredictor
from sightline.inference.safety.onnx_graph import parse_graph
from sightline.inference.safety.onnx_limits import check_limits
from sightline.models import registry
from sightline.models.build import build_model
from sightline.preprocessing import PreprocessingSpec
from synthetic_images import draw_classes


@functools.cache
def load_parity_script() -> ModuleType:
    """Return the script behind `make parity`."""
    spec = importlib.util.spec_from_file_location("parity_table", Path(__file__).parents[2] / "docs" / "parity.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their annotations there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    draw_classes(root, dict.fromkeys(("a", "b", "c", "d"), 4), 96, "png")
    return root


# EfficientNet-Lite0 is the network of most runs, and has the operations of MobileNetV2: it is not slow here.
MARKS = dict.fromkeys((SLOW | {"alexnet", "mobilenetv2", "vgg16"}) - {"efficientnet-lite0"}, pytest.mark.slow)
MARKS |= dict.fromkeys(("cifar10-simple", "fast-small", "squeezenet"), pytest.mark.backends)


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, ())) for name in NAMES])
def test_onnx_matches_keras(name: str, folder: Path) -> None:
    side = registry.ENTRIES[name].min_input_size
    pixels: NDArray[np.uint8] = load_parity_script().images(folder, side, 16)
    model: Any = load_parity_script().lively(name, pixels, 1.2)
    preprocess = PreprocessingSpec(side, side)
    expected = KerasPredictor(model, load_parity_script().CLASSES, preprocess).outputs(pixels)
    assert np.ptp(expected.logits, axis=0).min() >= 1, "outputs that ignore the image prove nothing"
    file = keras_to_onnx.convert_model(model)
    check_limits(parse_graph(file), 16)
    predictor = OnnxPredictor(file, load_parity_script().CLASSES, preprocess)
    actual = predictor.outputs(pixels)
    assert parity.compare_probabilities(expected.probabilities, actual.probabilities).is_within(Tolerance(1e-4, 0.93))
    np.testing.assert_allclose(actual.logits, expected.logits, atol=2e-3)
    np.testing.assert_allclose(
        actual.features, expected.features, rtol=1e-2, atol=1e-3 * np.abs(expected.features).max()
    )
    swapped_probabilities = predictor.probabilities(np.ascontiguousarray(pixels[..., ::-1]))
    assert not parity.compare_probabilities(expected.probabilities, swapped_probabilities).is_within(
        Tolerance(1e-4, 0.93)
    ), "the check must notice"


@pytest.mark.parametrize(
    "name", [n if n == "alexnet" else pytest.param(n, marks=pytest.mark.slow) for n in registry.ENTRIES]
)
def test_int8_is_close_and_uses_allowed_operations(name: str) -> None:
    """AlexNet has layer names that look like those that the quantizer adds.

    This uses freshly initialized weights, since those of the test above are sensitive to rounding.
    """
    side = registry.ENTRIES[name].min_input_size
    graph, calibration_pixels, pixels = (
        keras_to_onnx.convert_model(build_model(make_plan(name, side=side)).model),
        random_images(8, side),
        random_images(16, side, seed=3),
    )
    file = quantize.calibrate_graph(graph, calibration_pixels).quantize()
    check_limits(parse_graph(file), 1)
    classes = tuple("abcdefghij"[: make_plan(name).classes])
    expected, actual = (OnnxPredictor(f, classes, PreprocessingSpec(side, side)).outputs(pixels) for f in (graph, file))
    error = np.sqrt(np.mean((actual.features - expected.features) ** 2)) / expected.features.std()
    assert 0 < error < 0.2, f"{error:.3f} of the features' spread"
