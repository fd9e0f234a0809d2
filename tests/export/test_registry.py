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

from networks import RUNS, pictures, plan
from pictures import draw_classes
from sightline.export import onnx, quantize
from sightline.models import registry
from sightline.models.build import build
from sightline.prediction import parity
from sightline.prediction.keras import KerasPredictor
from sightline.prediction.onnx import OnnxPredictor
from sightline.prediction.onnx_graph import parse
from sightline.prediction.onnx_limits import check_limits
from sightline.prediction.parity import Tolerance
from sightline.preprocess import Preprocess


@functools.cache
def script() -> ModuleType:
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
    root = tmp_path_factory.mktemp("pictures")
    draw_classes(root, dict.fromkeys(("a", "b", "c", "d"), 4), 96, "png")
    return root


ON_EACH_BACKEND = ("cifar10-simple", "fast-small", "squeezenet")


@pytest.mark.parametrize(
    "name", [pytest.param(run, marks=pytest.mark.backends) if run in ON_EACH_BACKEND else run for run in RUNS]
)
def test_onnx_answers_as_keras_does(name: str, folder: Path) -> None:
    side = registry.ENTRIES[name].smallest
    pixels: NDArray[np.uint8] = script().pictures(folder, side, 16)
    model: Any = script().lively(name, pixels, 1.2)
    preprocess = Preprocess(side, side)
    truth = KerasPredictor(model, script().CLASSES, preprocess).outputs(pixels)
    assert np.ptp(truth.logits, axis=0).min() >= 1, "outputs that ignore the image prove nothing"
    file = onnx.convert(model)
    check_limits(parse(file), 16)
    predictor = OnnxPredictor(file, script().CLASSES, preprocess)
    found = predictor.outputs(pixels)
    assert parity.compare(truth.probabilities, found.probabilities).within(Tolerance(1e-4, 0.93))
    np.testing.assert_allclose(found.logits, truth.logits, atol=2e-3)
    np.testing.assert_allclose(found.features, truth.features, rtol=1e-2, atol=1e-3 * np.abs(truth.features).max())
    swapped = predictor.probabilities(np.ascontiguousarray(pixels[..., ::-1]))
    assert not parity.compare(truth.probabilities, swapped).within(Tolerance(1e-4, 0.93)), "the check must notice"


@pytest.mark.parametrize(
    "name", [n if n == "alexnet" else pytest.param(n, marks=pytest.mark.slow) for n in registry.ENTRIES]
)
def test_int8_is_near_and_made_of_our_operations(name: str) -> None:
    """AlexNet has layer names that look like those that the quantizer adds.

    This uses freshly initialized weights, since those of the test above are sensitive to rounding.
    """
    side = registry.ENTRIES[name].smallest
    graph, ranges, pixels = (
        onnx.convert(build(plan(name, side=side)).model),
        pictures(8, side),
        pictures(16, side, seed=3),
    )
    file = quantize.quantized(graph, [ranges])
    check_limits(parse(file), 1)
    classes = tuple("abcdefghij"[: plan(name).classes])
    truth, found = (OnnxPredictor(f, classes, Preprocess(side, side)).outputs(pixels) for f in (graph, file))
    error = np.sqrt(np.mean((found.features - truth.features) ** 2)) / truth.features.std()
    assert 0 < error < 0.2, f"{error:.3f} of the features' spread"
