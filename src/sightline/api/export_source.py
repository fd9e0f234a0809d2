"""`ExportSource`: the parts of a model that an export needs, from its run or its bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sightline.api.classifier import Classifier
from sightline.api.loading import load
from sightline.callbacks import Progress
from sightline.errors import ModelError
from sightline.export import keras_to_onnx
from sightline.inference import bundle
from sightline.inference.embeddings import ADDED_CLASS
from sightline.inference.manifest import Manifest
from sightline.inference.predictor import Predictor
from sightline.inference.runtimes.keras import KerasPredictor
from sightline.models.describe import count_parameters, weights_sha256
from sightline.runs.labeled_images import LabeledImages


@dataclass(frozen=True, slots=True)
class ExportSource:
    """A model to export: its ONNX graph, manifest, reference examples and reference predictor.

    `run_images` are the images of its run.
    """

    classifier: Classifier
    run_images: LabeledImages
    reference: Predictor
    manifest: Manifest
    graph: bytes
    reference_files: Mapping[str, bytes]
    sample: bytes | None = None


def load_source(path: Path, classifier: Classifier, progress: Progress) -> ExportSource:
    """Return the parts of a run or a bundle that an export needs."""
    run_images = classifier.labeled_images(progress=progress)
    run = classifier.run
    if run is None:
        path = classifier.path or path
        loaded_bundle = bundle.read(path)
        reference = _load_keras_model(path, loaded_bundle.manifest) or classifier.predictor
        files = dict(loaded_bundle.files)
        sample = files.pop(bundle.SAMPLE_FILE, None)
        return ExportSource(
            classifier, run_images, reference, loaded_bundle.manifest, loaded_bundle.model, files, sample
        )
    keras = load(path, engine="keras")
    bundle_path = run.bundle
    if bundle_path is None:
        config = run.config
        predictor = keras.predictor
        assert isinstance(predictor, KerasPredictor)
        manifest = Manifest(
            config.model.name, keras.classes, keras.preprocess, config.model.task, config.recipe,
            parameters=count_parameters(predictor.model), weights_sha256=weights_sha256(predictor.model),
            tile=config.input.tile,
        )  # fmt: skip
        return ExportSource(
            classifier, run_images, predictor, manifest, keras_to_onnx.convert_model(predictor.model), {}
        )
    loaded_bundle = bundle.read(bundle_path)
    manifest = loaded_bundle.manifest
    if (manifest.classes, manifest.preprocess) != (keras.classes, keras.preprocess):
        raise ModelError(
            f"The classes or the preprocessing of the bundle of {path} differ from its model.json: one of them was "
            "modified. Train again, or restore the modified file."
        )
    reference_files = {name: content for name, content in loaded_bundle.files.items() if name.startswith("reference/")}
    sample = loaded_bundle.files.get(bundle.SAMPLE_FILE)
    return ExportSource(classifier, run_images, keras.predictor, manifest, loaded_bundle.model, reference_files, sample)


def list_keras_files(path: Path, manifest: Manifest) -> list[Path]:
    """Return the files next to a bundle that may be its Keras model, which `compress` saves there."""
    if any(step.get("step") == ADDED_CLASS for step in manifest.lineage):  # model.keras next to it is the run's
        return []
    files = (path.with_name("model.keras"), path.with_name(f"{path.name}.keras"))
    return [file for file in files if path.is_dir() and manifest.precision == "float32" and file.is_file()]


def _load_keras_model(path: Path, manifest: Manifest) -> KerasPredictor | None:
    """Return the Keras model next to a bundle; None if there is none with its weights."""
    for file in list_keras_files(path, manifest):
        predictor = KerasPredictor.load(file, manifest.classes, manifest.preprocess)
        if weights_sha256(predictor.model) == manifest.weights_sha256:
            return predictor
    return None
