"""A model that returns NaN or infinity is refused when loaded, in every form; predict reports it for each image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from command import skip_without
from networks import make_plan, random_images
from sightline.errors import ModelError
from sightline.export import keras_to_onnx, openvino, tensorflow
from sightline.inference import bundle, exported_folder, stream
from sightline.inference.inputs import make_items
from sightline.inference.manifest import Manifest, ReferenceExample
from sightline.inference.predictor import FakePredictor, Outputs, check_finite
from sightline.inference.reference_examples import hash_pixels
from sightline.inference.results import Thresholds
from sightline.inference.runtimes.keras import KerasPredictor
from sightline.models.build import build_model
from sightline.preprocessing import PreprocessingSpec

CLASSES = ("ant", "bee", "cat")
PREPROCESS = PreprocessingSpec(8, 8, 3)
MANIFEST = Manifest("cifar10-simple", CLASSES, PREPROCESS)


def build_network(bad: float) -> Any:
    """A Keras model with one weight `bad` in its last layer."""
    model = build_model(make_plan("cifar10-simple", side=8, classes=3, hidden_units=(8,))).model
    *others, bias = model.get_weights()
    bias = bias.copy()
    bias[1] = bad
    model.set_weights([*others, bias])
    return model


@pytest.fixture(scope="module", params=[np.nan, np.inf], ids=str)
def diverged(request: pytest.FixtureRequest) -> Any:
    return build_network(request.param)


@pytest.fixture(scope="module")
def graph(diverged: Any) -> bytes:
    return keras_to_onnx.convert_model(diverged)


def test_a_folder_a_zip_and_a_lone_file_are_refused(graph: bytes, tmp_path: Path) -> None:
    made_bundle = bundle.make(MANIFEST, graph, {})
    bundle.write_folder(made_bundle, tmp_path / "folder")
    bundle.write_zip(made_bundle, tmp_path / "b.zip")
    (tmp_path / "lone.onnx").write_bytes(made_bundle.model)
    for name in ("folder", "b.zip", "lone.onnx"):
        with pytest.raises(ModelError, match=rf"{name} cannot be used: for a random image, \d of its 3 prob"):
            bundle.load(tmp_path / name)


def test_reference_examples_are_refused_too(graph: bytes, tmp_path: Path) -> None:
    from synthetic_images import encode_png

    content = encode_png(1, 0, 8)
    example = ReferenceExample("reference/0.png", "ant", hash_pixels(PREPROCESS.decode(content)), (1.0, 0.0, 0.0))
    manifest = Manifest("cifar10-simple", CLASSES, PREPROCESS, reference_examples=(example,))
    bundle.write_folder(bundle.make(manifest, graph, {example.file: content}), tmp_path / "b")
    with pytest.raises(ModelError, match="reference examples give probabilities that are NaN or infinite"):
        bundle.load(tmp_path / "b")


def test_a_keras_model_is_refused(diverged: Any, tmp_path: Path) -> None:
    diverged.save(tmp_path / "model.keras")
    with pytest.raises(ModelError, match=r"model\.keras cannot be used: for a random image, .*Train it again\.$"):
        KerasPredictor.load(tmp_path / "model.keras", CLASSES, PREPROCESS)
    build_network(0.5).save(tmp_path / "sound.keras")
    sound = KerasPredictor.load(tmp_path / "sound.keras", CLASSES, PREPROCESS)
    pixels = random_images(2, 8)
    for one, other in zip(
        *(list_arrays(ask(pixels)) for ask in (sound.outputs, sound.outputs_uncompiled)), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-6)


def list_arrays(outputs: Outputs) -> list[NDArray[np.float32]]:
    return [outputs.probabilities, outputs.logits, outputs.features]


@pytest.mark.parametrize(
    ("form", "package"),
    [
        ("saved_model", "tensorflow"),
        pytest.param("openvino", "openvino", marks=pytest.mark.installed),
        pytest.param("litert", "ai_edge_litert", marks=pytest.mark.installed),
    ],
)
def test_an_export_of_another_format_is_refused(form: str, package: str, tmp_path: Path) -> None:
    skip_without(package)
    model, folder = build_network(np.nan), tmp_path / form
    folder.mkdir()
    if form == "openvino":
        openvino.export_openvino(keras_to_onnx.convert_model(model), folder, float16=False, manifest=MANIFEST.to_json())
    else:
        (tensorflow.export_litert if form == "litert" else tensorflow.export_saved_model)(model, folder)
    exported_folder.add_manifest(folder, form, MANIFEST, {})
    with pytest.raises(ModelError, match=rf"{form} cannot be used: for a random image, \d of its 3 prob"):
        exported_folder.load(folder)


class Overflowing(FakePredictor):
    """Returns infinite features, and NaN for bright images."""

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        bright = pixels.mean((1, 2, 3))[:, None] > 128
        return np.where(bright, np.float32(np.nan), super().probabilities(pixels))

    def outputs(self, pixels: NDArray[np.uint8]) -> Outputs:
        probabilities = self.probabilities(pixels)
        return Outputs(probabilities, np.log(probabilities), np.full((len(pixels), 2), np.inf, np.float32))


def test_features_count_too() -> None:
    class Loud(FakePredictor):
        def outputs(self, pixels: NDArray[np.uint8]) -> Outputs:
            outputs = super().outputs(pixels)
            return Outputs(outputs.probabilities, outputs.logits, np.full_like(outputs.features, np.inf))

    with (
        np.errstate(divide="ignore"),
        pytest.raises(ModelError, match="3 of its 3 features are NaN or infinite"),
    ):
        check_finite(Loud(CLASSES, PREPROCESS).outputs, PREPROCESS)
    check_finite(FakePredictor(CLASSES, PREPROCESS).outputs, PREPROCESS)


@pytest.mark.parametrize("thresholds", [None, Thresholds(5, target_precision=0.9, confidence=0.5)], ids=["", "decided"])
def test_such_an_answer_is_a_row_with_its_reason(thresholds: Thresholds | None) -> None:
    images = [np.full((8, 8), level, np.uint8) for level in (10, 250, 20)]
    rows = list(
        stream.predict(Overflowing(CLASSES, PREPROCESS), make_items(images), thresholds=thresholds)
    )  # fmt: skip
    assert [(row.label, row.error) for row in rows] == [
        ("ant", None), (None, "the model's answer is not a finite number"), ("ant", None),
    ]  # fmt: skip
