"""From a trained Keras model to the bundle; the metrics of a run are those of the exported file itself."""

from __future__ import annotations

import io
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sightline import backend, metrics
from sightline.config import RunConfig
from sightline.data.dataset import Dataset
from sightline.evaluation.calibration import Temperature, fit_temperature
from sightline.evaluation.judgement import Said, listen
from sightline.export import onnx
from sightline.models.describe import parameters, weights_sha256
from sightline.prediction import bundle, parity
from sightline.prediction.base import Predictor
from sightline.prediction.bundle import Bundle
from sightline.prediction.keras import KerasPredictor
from sightline.prediction.manifest import Golden, Manifest
from sightline.prediction.onnx import OnnxPredictor
from sightline.prediction.parity import Parity, Tolerance
from sightline.preprocess import Preprocess, inspect
from sightline.records import PARTS, Evaluation, Index, Part, Progress, no_progress
from sightline.report import summary

SAMPLE = 256  # training images for the comparison, if there is no validation split
CANDIDATES = 8  # files per class among which the smallest become reference examples


def export(
    model: Any, classes: tuple[str, ...], preprocess: Preprocess, threads: int = 0
) -> tuple[bytes, OnnxPredictor]:
    """Convert a trained Keras model to ONNX; return the file and its predictor."""
    graph = onnx.convert(model)
    return graph, OnnxPredictor(graph, classes, preprocess, threads)


def calibrate(model: Any, logits: NDArray[np.float32], labels: NDArray[np.int32]) -> Temperature | None:
    """Fit the temperature on validation images, set it in the Keras model's graph, and return it.

    `logits` float32 [N, K] are the model's, at temperature 1. Returns None and changes nothing if there are too few
    images or errors to fit a meaningful temperature.
    """
    if not len(labels):
        return None
    found = fit_temperature(logits, labels)
    if found.note:
        return None
    model.get_layer("temperature").scale = 1 / found.value
    return found


def logits_of(model: Any, data: Dataset, fitted: NDArray[np.float32] | None, precision: str) -> NDArray[np.float32]:
    """Return the logits float32 [N, K] of the validation split in full float32, at temperature 1.

    Those from training (`fitted`) are used if it ran in float32 on a CPU; otherwise they are recomputed.
    """
    samples = data.part("validation")
    whole = fitted is not None and fitted.dtype == np.float32 and fitted.shape == (len(samples), len(data.classes))
    if fitted is not None and whole and precision == "float32" and not backend.accelerated():
        return fitted
    if not len(samples):
        return np.zeros((0, len(data.classes)), np.float32)
    trained = KerasPredictor(model, data.classes, Preprocess())  # the pixels are already decoded
    return listen(trained, samples).outputs.logits


def hear(predictor: Predictor, data: Dataset, progress: Progress = no_progress) -> dict[Part, Said]:
    """Return the model outputs on the validation and test splits that contain images."""
    parts = {part: data.part(part) for part in PARTS[1:]}
    return {
        part: listen(predictor, samples, progress, f"evaluating ({part})")
        for part, samples in parts.items()
        if len(samples)
    }


def compare(model: Any, predictor: OnnxPredictor, data: Dataset, logits: Any, heard: Mapping[Part, Said]) -> Parity:
    """Compare a Keras model with its exported file on the validation split, for which `logits` are the model's.

    Without a validation split, both models run on up to `SAMPLE` training images.
    """
    if "validation" in heard:
        said = heard["validation"]
        return parity.compare(metrics.softmax(logits), said.outputs.probabilities, said.labels)
    whole = data.part("train")
    some = whole.at(np.linspace(0, len(whole) - 1, min(SAMPLE, len(whole))).astype(np.int64))
    trained = KerasPredictor(model, predictor.classes, predictor.preprocess)
    return parity.compare(parity.probabilities(trained, some), parity.probabilities(predictor, some), some.labels)


def refusal(found: Parity) -> str | None:
    """Return why no bundle is written, if the outputs of the exported file differ from the trained model's."""
    reasons = found.reasons(Tolerance())
    if not reasons:
        return None
    return f"the outputs of the exported file differ from the model's: on {found.count} images {' and '.join(reasons)}"


def pack(
    trained: Any,
    graph: bytes,
    predictor: OnnxPredictor,
    data: Dataset,
    index: Index,
    config: RunConfig,
    **facts: Any,
) -> Bundle:
    """Assemble the bundle of a run configured as `config`; `facts` are the other fields of its `Manifest`."""
    positive = {"positive": config.evaluation.positive} if config.evaluation.positive else {}
    examples, files = _examples(data, index, predictor, config.bundle.golden)
    manifest = Manifest(
        classes=predictor.classes,
        preprocess=predictor.preprocess,
        parameters=parameters(trained),
        weights_sha256=weights_sha256(trained),
        data={"name": data.name, "counts": dict(data.counts())} | positive,
        golden=examples,
        version=metadata.version("sightline"),
        recipe=config.recipe,
        **facts,
    )
    return bundle.make(manifest, graph, files)


def figures_of(found: Mapping[Part, Evaluation]) -> dict[str, Any]:
    """Return the metrics of each split in the form of the manifest."""
    return {part: summary.headline(value) for part, value in found.items()}


def _examples(
    data: Dataset, index: Index, predictor: OnnxPredictor, count: int
) -> tuple[tuple[Golden, ...], dict[str, bytes]]:
    """Choose the smallest validation (else training) file of each class, then the next ones."""
    number = {p.sha256: i for i, p in enumerate(index.pictures)}
    part: Part = "validation" if "validation" in data.parts else "train"
    by_class: dict[int, list[tuple[int, bytes]]] = {}
    for i in map(int, np.flatnonzero(np.array(data.parts) == part)):
        label = int(data.labels[i])
        known = by_class.get(label, [])
        if len(known) < CANDIDATES and (known or len(by_class) < count):
            by_class[label] = [*known, (i, _encoded(index.read(number[data.pictures[i].sha256])))]
    ranked = [sorted(found, key=lambda pair: len(pair[1])) for _, found in sorted(by_class.items())]
    turns = [found[turn] for turn in range(CANDIDATES) for found in ranked if turn < len(found)][:count]
    examples, files = [], {}
    for at, (i, encoded) in enumerate(turns):
        pixels = predictor.preprocess.decode(encoded)
        # A bundle must load without pillow-heif, so HEIF pixels are stored as PNG.
        stored = _encoded(pixels) if inspect(encoded).format == "HEIF" else encoded
        name = f"golden/{at}.{inspect(stored).format.lower()}"
        files[name] = stored
        answer = tuple(float(p) for p in predictor.probabilities(pixels[None])[0])
        examples.append(Golden(name, data.pictures[i].label, bundle.pixels_sha256(pixels), answer))
    return tuple(examples), files


def _encoded(content: Any) -> bytes:
    """Return an image's encoded bytes; pixels in memory are encoded as PNG."""
    if isinstance(content, bytes | bytearray | memoryview):
        return bytes(content)
    file = io.BytesIO()
    Image.fromarray(content[..., 0] if content.shape[2:] == (1,) else content).save(file, "PNG")
    return file.getvalue()
