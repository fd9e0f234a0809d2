"""Networks of masks in each format: what every decoder becomes is allowed there, and agrees on all pixels."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from sightline.config import ModelConfig
from sightline.export import keras_to_onnx
from sightline.inference import exported_folder
from sightline.inference.exporters import EXPORTERS, ExportInput
from sightline.inference.manifest import Manifest
from sightline.models.build import ModelSpec, build_model
from sightline.models.entry import Decoder
from sightline.preprocessing import PreprocessingSpec

SIZES = {"bilinear": (37, 50), "transposed": (37, 50), "fcn32": (32, 64), "fcn16": (37, 50), "fcn8": (37, 50)}
PACKAGES = {"openvino": "openvino", "litert": "ai_edge_litert.interpreter"}


@pytest.mark.parametrize(
    "decoder",
    [
        name if name in {"bilinear", "fcn8"} else pytest.param(name, marks=pytest.mark.slow)
        for name in get_args(Decoder)
    ],
)
@pytest.mark.parametrize(
    "form", ["safetensors", pytest.param("saved_model", marks=pytest.mark.slow), *(
        pytest.param(name, marks=pytest.mark.installed) for name in PACKAGES
    )],
)  # fmt: skip
def test_a_decoder_agrees_on_all_pixels(form: str, decoder: Decoder, tmp_path: Path) -> None:
    if form in PACKAGES:
        pytest.importorskip(PACKAGES[form])
    height, width = SIZES[decoder]
    spec = ModelSpec(ModelConfig("fcn"), height, width, 3, 4, 1, pixel_stats=(127.0, 60.0), decoder=decoder)
    model, exporter = build_model(spec).model, EXPORTERS[form]
    manifest = Manifest("fcn", ("a", "b", "c", "d"), PreprocessingSpec(height, width), "segmentation")
    graph = keras_to_onnx.convert_model(model) if exporter.source == "onnx" else b""
    exporter.write(ExportInput("float32", manifest, graph, model), tmp_path)
    predictor = exported_folder.load_unverified(tmp_path, exporter, manifest)
    for count in (1, 3):
        pixels = np.random.default_rng(count).integers(0, 256, (count, height, width, 3), np.uint8)
        expected = {name: np.asarray(value) for name, value in model(pixels, training=False).items()}
        outputs = predictor.outputs(pixels)
        assert outputs.probabilities.shape == (count, height, width, 4)
        np.testing.assert_allclose(outputs.probabilities, expected["probabilities"], atol=1e-4)
        np.testing.assert_allclose(outputs.logits, expected["logits"], atol=1e-3)
        np.testing.assert_array_equal(outputs.probabilities.argmax(-1), expected["probabilities"].argmax(-1))
