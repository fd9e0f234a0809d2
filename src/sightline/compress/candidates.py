"""Candidates of a compression search: made once, measured in ONNX Runtime, and saved with their bundle."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.callbacks import Callback, Progress, no_progress
from sightline.compress.noninferiority import is_non_inferior
from sightline.compress.search_dir import CompressionCandidate, SearchDir
from sightline.config import ModelConfig
from sightline.data.dataset import DecodedDataset
from sightline.errors import DivergedError, ModelError
from sightline.export import keras_to_onnx, quantize
from sightline.inference import parity, runner
from sightline.inference.bundle import Bundle
from sightline.inference.runtimes.keras import KerasPredictor
from sightline.inference.runtimes.onnx import OnnxPredictor
from sightline.models.describe import count_parameters, describe_model
from sightline.models.head import TEMPERATURE_LAYER
from sightline.preprocessing import PreprocessingSpec

ORIGINAL = "original"  # name of the first candidate, which every other one is compared with
CALIBRATION_IMAGES = 128  # training images that int8 is calibrated on
LATENCY_SECONDS = 2.0  # of latency measurement for each candidate

Pack = Callable[[Any, bytes, OnnxPredictor, Mapping[str, Any]], Bundle]
"""Called with a Keras model, its ONNX file, a predictor of that file and further fields of the manifest."""
Calibrate = Callable[[Any, NDArray[np.float32], NDArray[np.int32]], Any]
"""Called with a Keras model of temperature 1, its logits of the validation split [N, K] and the labels there [N]."""
Lineage = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class CompressionTask:
    """The model to compress: a Keras model, its configuration and data, and how it is packed.

    `calibrate` sets the temperature of each candidate with weights of its own; None if the run has none.
    """

    model: Any
    config: ModelConfig
    seed: int
    classes: tuple[str, ...]
    preprocess: PreprocessingSpec
    data: DecodedDataset
    threads: int
    lineage: Mapping[str, Any]
    pack: Pack
    calibrate: Calibrate | None


class CandidateFactory:
    """Makes candidates, or reads those that exist; `candidates` are all so far, the original model first."""

    def __init__(self, task: CompressionTask, search_dir: SearchDir, max_drop: float, callback: Callback) -> None:
        self.task, self.validation = task, task.data.subset("validation")
        self.candidates: list[CompressionCandidate] = []
        self._search_dir, self._max_drop, self._callback = search_dir, max_drop, callback
        self._models: dict[str, Any] = {ORIGINAL: task.model}
        self._original_correct: NDArray[np.bool_] | None = None
        self._last_logits: tuple[bytes, NDArray[np.float32]] | None = None  # the hash of an ONNX file, and its logits

    def create(
        self,
        name: str,
        parent: CompressionCandidate | None,
        step: Mapping[str, Any],
        make: Callable[[Path], Any],
    ) -> CompressionCandidate:
        """Return a float32 candidate; `make` returns its model, and is called with a folder for checkpoints."""
        candidate = self._search_dir.read_candidate(name, parent, "float32")
        if candidate is None:
            started = time.perf_counter()
            lineage = (*(parent.lineage if parent else ()), step)
            self._callback.on_message(f"{name}: {_describe_step(step)}")
            try:
                model = make(self._search_dir.training_folder(name))
            except DivergedError as error:
                candidate = CompressionCandidate(
                    name, parent.name if parent else None, "float32", lineage, failed=str(error)
                )
                self._search_dir.write_candidate(candidate, None)
            else:
                self._models = {ORIGINAL: self.task.model, name: model}
                logits = self._predict_logits(_convert_uncalibrated(model), self._callback.on_progress)
                if parent is not None and self.task.calibrate is not None:
                    model.get_layer(TEMPERATURE_LAYER).scale = 1.0
                    self.task.calibrate(model, logits, self.validation.labels)
                graph = keras_to_onnx.convert_model(model)
                candidate = self._save(
                    name, parent, "float32", lineage, model, graph, self._is_correct(logits), started
                )
        return self._add(candidate)

    def create_float16(self, base: CompressionCandidate) -> None:
        """Create `base` with float16 weights."""

        def cast(graph: bytes) -> tuple[bytes, Mapping[str, Any]]:
            return keras_to_onnx.cast_weights(graph, "float16"), {"weights only": True}

        self._create_precision(base, "float16", cast)

    def create_int8(self, base: CompressionCandidate) -> None:
        """Create `base` in int8, with as many layers left in float as it takes to be non-inferior."""

        def quantize_graph(graph: bytes) -> tuple[bytes, Mapping[str, Any]]:
            images = self.task.data.subset("train").sample_evenly(CALIBRATION_IMAGES)
            pixels = images.take(slice(None))
            calibration = quantize.calibrate_graph(graph, pixels, self._callback.on_progress)
            quantized, float_layers, _ = calibration.quantize_until_accepted(
                lambda file: self.is_non_inferior(self._is_correct(self._predict_logits(file))),
                pixels,
                self._callback.on_progress,
            )
            return quantized, {"calibrated on": len(images), "left in float": list(float_layers)}

        self._create_precision(base, "int8", quantize_graph)

    def load_model(self, name: str) -> Any:
        """Return the Keras model of a candidate; one is kept in memory besides the original model."""
        if name not in self._models:
            folder, (classes, preprocess) = self._search_dir.folder(name), (self.task.classes, self.task.preprocess)
            try:
                file = self._search_dir.model_file(name) or folder / "model.keras"
                model = KerasPredictor.load(file, classes, preprocess).model
            except ModelError as error:
                raise ModelError(f"{error} Or remove {folder} to create this candidate again.") from error
            self._models = {ORIGINAL: self.task.model, name: model}
        return self._models[name]

    def is_good(self, candidate: CompressionCandidate) -> bool:
        """Return whether a candidate is non-inferior to the original model on validation."""
        return not candidate.failed and is_non_inferior(
            candidate.only_original_correct, candidate.only_this_correct, candidate.count, self._max_drop
        )

    def is_non_inferior(self, correct: NDArray[np.bool_]) -> bool:
        """Return whether a model is that classifies the validation images `correct` (bool [N]) correctly."""
        return is_non_inferior(*self._count_disagreements(correct), len(correct), self._max_drop)

    def evaluate(self, model: Any) -> NDArray[np.bool_]:
        """Return whether a Keras model classifies each validation image correctly: bool [N]."""
        return self._is_correct(self._predict_logits(_convert_uncalibrated(model)))

    def _create_precision(
        self,
        base: CompressionCandidate,
        precision: str,
        convert: Callable[[bytes], tuple[bytes, Mapping[str, Any]]],
    ) -> None:
        name = f"{base.name}-{precision}"
        candidate = self._search_dir.read_candidate(name, base, precision)
        if candidate is None:
            started, model = time.perf_counter(), self.load_model(base.name)
            graph, details = convert(keras_to_onnx.convert_model(model))
            lineage = (*base.lineage, {"step": precision, **details})
            correct = self._is_correct(self._predict_logits(graph, self._callback.on_progress))
            candidate = self._save(name, base, precision, lineage, model, graph, correct, started)
        self._add(candidate)

    def _add(self, candidate: CompressionCandidate) -> CompressionCandidate:
        self.candidates.append(candidate)
        self._callback.on_message(
            f"{candidate.name}: {candidate.failed}" if candidate.failed else
            f"{candidate.name}: accuracy {candidate.accuracy:.4f}, {candidate.parameters:,} parameters, "
            f"{candidate.bytes / 1e6:.2f} MB, {candidate.latency:.2f} ms"
        )  # fmt: skip
        return candidate

    def _save(
        self, name: str, parent: CompressionCandidate | None, precision: str, lineage: Lineage, model: Any,
        graph: bytes, correct: NDArray[np.bool_], started: float,
    ) -> CompressionCandidate:  # fmt: skip
        """Measure an ONNX file that classifies the validation images `correct`; write its bundle and its record."""
        predictor = OnnxPredictor(graph, self.task.classes, self.task.preprocess, self.task.threads)
        if name == ORIGINAL:
            self._original_correct = correct
        only_original_correct, only_this_correct = self._count_disagreements(correct)
        accuracy = float(correct.mean())
        median, p99, throughput = self._measure_latency(predictor)
        fields = {
            "model": next((str(step["student"]) for step in lineage if "student" in step), self.task.config.name),
            "temperature": 1 / float(model.get_layer(TEMPERATURE_LAYER).scale),
            "precision": precision,
            "lineage": lineage,
            "metrics": {"validation": {"accuracy": accuracy, "count": len(correct)}},
        }
        bundle = self.task.pack(model, graph, predictor, fields)
        candidate = CompressionCandidate(
            name,
            parent.name if parent else None,
            precision,
            lineage,
            accuracy=accuracy,
            count=len(correct),
            only_original_correct=only_original_correct,
            only_this_correct=only_this_correct,
            parameters=count_parameters(model),
            bytes=len(bundle.model),
            multiply_adds=describe_model(model, name).multiply_adds,
            latency=median,
            latency_p99=p99,
            throughput=throughput,
            seconds=time.perf_counter() - started,
        )
        has_own_weights = precision == "float32" and name != ORIGINAL
        self._search_dir.write_candidate(candidate, bundle, model.save if has_own_weights else None)
        return candidate

    def _measure_latency(self, predictor: OnnxPredictor) -> tuple[float, float, float]:
        """Return median and 99th percentile in milliseconds at batch 1, and images per second at batch 32."""
        pixels = self.validation.take(slice(0, 32))
        seconds = parity.measure_speed(predictor, pixels, 3)[0] / 1e3
        return parity.measure_speed(predictor, pixels, int(np.clip(LATENCY_SECONDS / max(seconds, 1e-6), 10, 200)))

    def _count_disagreements(self, correct: NDArray[np.bool_]) -> tuple[int, int]:
        """Count the validation images that only the original model, and only the other, classifies correctly."""
        if self._original_correct is None:
            self._original_correct = self.evaluate(self.task.model)
        return int((self._original_correct & ~correct).sum()), int((~self._original_correct & correct).sum())

    def _predict_logits(self, graph: bytes, progress: Progress = no_progress) -> NDArray[np.float32]:
        """Return the logits of an ONNX file for the validation images: float32 [N, K]; those of the last are kept."""
        digest = hashlib.sha256(graph).digest()
        if self._last_logits is None or self._last_logits[0] != digest:
            predictor = OnnxPredictor(graph, self.task.classes, self.task.preprocess, self.task.threads)
            logits = runner.run_subset(
                lambda pixels: predictor.outputs(pixels).logits, self.validation, task="validation", progress=progress
            )
            self._last_logits = digest, logits
        return self._last_logits[1]

    def _is_correct(self, logits: NDArray[np.float32]) -> NDArray[np.bool_]:
        correct: NDArray[np.bool_] = np.equal(logits.argmax(1), self.validation.labels)
        return correct


def _convert_uncalibrated(model: Any) -> bytes:
    """Return the ONNX file of a Keras model at temperature 1, whose logits have the same order at any other."""
    layer = model.get_layer(TEMPERATURE_LAYER)
    scale, layer.scale = layer.scale, 1.0
    try:
        return keras_to_onnx.convert_model(model)
    finally:
        layer.scale = scale


def _describe_step(step: Mapping[str, Any]) -> str:
    details = (f"{key.replace('_', ' ')} {step[key]}" for key in step if key not in ("step", "weights_sha256"))
    return ", ".join([str(step["step"]), *details])
