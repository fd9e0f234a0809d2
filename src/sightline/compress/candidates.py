"""Candidates of a compression search: created once, measured in ONNX Runtime, and saved with their bundle."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.callbacks import Callback, Progress, no_progress
from sightline.compress.noninferiority import Comparison, PairedTest, compare_images
from sightline.compress.search_dir import CompressionCandidate, SearchDir
from sightline.config import ModelConfig
from sightline.data.dataset import DecodedDataset
from sightline.errors import DivergedError, ModelError
from sightline.evaluation.bootstrap import number_groups
from sightline.evaluation.results import TaskResult
from sightline.export import keras_to_onnx, quantize
from sightline.inference import parity
from sightline.inference.bundle import Bundle
from sightline.inference.predictor import ModelOutputs, Outputs
from sightline.inference.results import NO_THRESHOLDS, ThresholdRequest, Thresholds
from sightline.inference.runtimes.keras import KerasPredictor
from sightline.inference.runtimes.onnx import OnnxPredictor
from sightline.metrics import describe_metric
from sightline.models.describe import count_parameters, describe_model
from sightline.models.head import TEMPERATURE_LAYER
from sightline.preprocessing import PreprocessingSpec
from sightline.tasks.protocol import EvaluationInputs, find_task

ORIGINAL = "original"  # name of the first candidate, the reference for all others
CALIBRATION_IMAGES = 128  # training images for calibrating int8
LATENCY_SECONDS = 2.0  # duration of the latency measurement of each candidate

Pack = Callable[[Any, bytes, OnnxPredictor, Mapping[str, Any]], Bundle]
"""Called with a Keras model, its ONNX file, a predictor for that file and further fields of the manifest."""
Calibrate = Callable[[Any, NDArray[np.float32], NDArray[Any]], Any]
"""Called with a Keras model at temperature 1, and logits of the validation split with their labels.

Logits and labels are `ModelOutputs.calibration`.
"""
Scores = NDArray[np.bool_] | NDArray[np.float64]
"""The result of `Task.score_images`."""
Lineage = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class CompressionTask:
    """The model to compress: a Keras model, its configuration and data, and how to pack it.

    `calibrate` sets the temperature of each candidate with weights of its own; None if the run has no temperature. Each
    candidate has thresholds for `request`, fitted on the validation split. `leaked` are the images of that split that
    are also in the training split, as in `LabeledSubset`.
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
    request: ThresholdRequest = NO_THRESHOLDS
    leaked: Mapping[str, str] = field(default_factory=dict)


class CandidateFactory:
    """Creates candidates, or reads existing ones; `candidates` are all of them so far, the original model first."""

    def __init__(self, task: CompressionTask, search_dir: SearchDir, max_drop: float, callback: Callback) -> None:
        self.task, self._kind = task, find_task(task.config.task)
        self._labeled = replace(task.data.labeled_subset("validation"), leaked=task.leaked)
        self.validation = self._labeled.subset
        self._groups = number_groups(self.validation.paths, self._labeled.groups)
        self.candidates: list[CompressionCandidate] = []
        self._search_dir, self._max_drop, self._callback = search_dir, max_drop, callback
        self._models: dict[str, Any] = {ORIGINAL: task.model}
        self._original_scores: Scores | None = None
        self._last_outputs: tuple[bytes, ModelOutputs] | None = None  # hash of an ONNX file, and its outputs

    def create(
        self,
        name: str,
        parent: CompressionCandidate | None,
        step: Mapping[str, Any],
        make: Callable[[Path], Any],
    ) -> CompressionCandidate:
        """Return a float32 candidate; `make`, called with a folder for checkpoints, returns its model."""
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
                outputs = self._collect_outputs(_convert_uncalibrated(model), self._callback.on_progress)
                if parent is not None and self.task.calibrate is not None:
                    model.get_layer(TEMPERATURE_LAYER).scale = 1.0
                    self.task.calibrate(model, *outputs.calibration)
                graph = keras_to_onnx.convert_model(model)
                outputs = self._scale_outputs(model, graph, outputs)
                candidate = self._save(name, parent, "float32", lineage, model, graph, outputs, started)
        return self._add(candidate)

    def create_float16(self, base: CompressionCandidate) -> None:
        """Create a candidate from `base` with float16 weights."""

        def cast(graph: bytes) -> tuple[bytes, Mapping[str, Any]]:
            return keras_to_onnx.cast_weights(graph, "float16"), {"weights only": True}

        self._create_precision(base, "float16", cast)

    def create_int8(self, base: CompressionCandidate) -> None:
        """Create a candidate from `base` in int8, with enough layers left in float to be non-inferior."""

        def quantize_graph(graph: bytes) -> tuple[bytes, Mapping[str, Any]]:
            images = self.task.data.subset("train").sample_evenly(CALIBRATION_IMAGES)
            pixels = images.take(slice(None))
            calibration = quantize.calibrate_graph(graph, pixels, self._callback.on_progress)
            quantized, float_layers, _ = calibration.quantize_until_accepted(
                lambda file: self._compare(self._collect_outputs(file)).is_non_inferior(self._max_drop),
                pixels,
                self._callback.on_progress,
            )
            return quantized, {"calibrated on": len(images), "left in float": list(float_layers)}

        self._create_precision(base, "int8", quantize_graph)

    def load_model(self, name: str) -> Any:
        """Return the Keras model of a candidate; besides the original, only one stays in memory."""
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
        return not candidate.failed and candidate.comparison.is_non_inferior(self._max_drop)

    def evaluate(self, model: Any) -> Comparison:
        """Compare a Keras model with the original model on the validation images."""
        return self._compare(self._collect_outputs(_convert_uncalibrated(model)))

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
            outputs = self._collect_outputs(graph, self._callback.on_progress)
            candidate = self._save(name, base, precision, lineage, model, graph, outputs, started)
        self._add(candidate)

    def _add(self, candidate: CompressionCandidate) -> CompressionCandidate:
        self.candidates.append(candidate)
        metrics = ", ".join(f"{describe_metric(name)} {value:.4f}" for name, value in candidate.shown_metrics.items())
        self._callback.on_message(
            f"{candidate.name}: {candidate.failed}" if candidate.failed else
            f"{candidate.name}: {metrics}, {candidate.parameters:,} parameters, {candidate.bytes / 1e6:.2f} MB, "
            f"{candidate.latency:.2f} ms"
        )  # fmt: skip
        return candidate

    def _save(
        self, name: str, parent: CompressionCandidate | None, precision: str, lineage: Lineage, model: Any,
        graph: bytes, outputs: ModelOutputs, started: float,
    ) -> CompressionCandidate:  # fmt: skip
        """Measure an ONNX file, with its `outputs` for the validation images; write its bundle and record."""
        predictor = OnnxPredictor(graph, self.task.classes, self.task.preprocess, self.task.threads)
        thresholds = self._fit_thresholds(outputs)
        if name == ORIGINAL:
            self._original_scores = self._score(outputs, thresholds)
        comparison = self._compare(outputs, thresholds)
        evaluation = self._kind.evaluate(
            EvaluationInputs(
                self.task.classes, outputs, self._labeled, "validation", outputs, thresholds, self.task.request
            )
        ).evaluation
        median, p99, throughput = self._measure_latency(predictor)
        fields = {
            "model": next((str(step["student"]) for step in lineage if "student" in step), self.task.config.name),
            "temperature": 1 / float(model.get_layer(TEMPERATURE_LAYER).scale),
            "precision": precision,
            "lineage": lineage,
            "metrics": {"validation": evaluation.summarize()},
            "thresholds": thresholds and thresholds.to_stored(),
        }
        bundle = self.task.pack(model, graph, predictor, fields)
        candidate = CompressionCandidate(
            name,
            parent.name if parent else None,
            precision,
            lineage,
            count=len(self.validation),
            parameters=count_parameters(model),
            bytes=len(bundle.model),
            multiply_adds=describe_model(model, name).multiply_adds,
            latency=median,
            latency_p99=p99,
            throughput=throughput,
            seconds=time.perf_counter() - started,
            **_record_comparison(comparison, evaluation),
        )
        has_own_weights = precision == "float32" and name != ORIGINAL
        self._search_dir.write_candidate(candidate, bundle, model.save if has_own_weights else None)
        return candidate

    def _measure_latency(self, predictor: OnnxPredictor) -> tuple[float, float, float]:
        """Return median and 99th percentile in milliseconds at batch size 1, and images per second at 32."""
        pixels = self.validation.take(slice(0, 32))
        seconds = parity.measure_speed(predictor, pixels, 3)[0] / 1e3
        return parity.measure_speed(predictor, pixels, int(np.clip(LATENCY_SECONDS / max(seconds, 1e-6), 10, 200)))

    def _compare(self, outputs: ModelOutputs, thresholds: Thresholds | None = None) -> Comparison:
        """Compare a model with the original by its `outputs`; decisions use `thresholds`, else fitted thresholds."""
        if self._original_scores is None:
            model = self.task.model
            original = self._collect_outputs(_convert_uncalibrated(model))
            original = self._scale_outputs(model, keras_to_onnx.convert_model(model), original)
            self._original_scores = self._score(original, self._fit_thresholds(original))
        scores = self._score(outputs, thresholds or self._fit_thresholds(outputs))
        return compare_images(self._kind.image_score, self._original_scores, scores, "validation", self._groups)

    def _score(self, outputs: ModelOutputs, thresholds: Thresholds | None) -> Scores:
        return self._kind.score_images(self.task.classes, outputs, thresholds)

    def _fit_thresholds(self, outputs: ModelOutputs) -> Thresholds | None:
        return self._kind.fit_thresholds(self.task.classes, outputs, self.task.request)

    def _collect_outputs(self, graph: bytes, progress: Progress = no_progress) -> ModelOutputs:
        """Return the outputs of an ONNX file for the validation images, with groups; the last outputs are cached."""
        digest = hashlib.sha256(graph).digest()
        if self._last_outputs is None or self._last_outputs[0] != digest:
            predictor = OnnxPredictor(graph, self.task.classes, self.task.preprocess, self.task.threads)
            outputs = self._kind.collect_outputs(predictor, self.validation, progress, "validation")
            self._last_outputs = digest, replace(outputs, groups=self._groups)
        return self._last_outputs[1]

    def _scale_outputs(self, model: Any, graph: bytes, outputs: ModelOutputs) -> ModelOutputs:
        """Return the outputs of a Keras model, and its file `graph`, from the `outputs` at temperature 1."""
        if self._kind.targets.are_masks:  # outputs are sums over an image's pixels, which change with temperature
            return self._collect_outputs(graph)
        logits = outputs.outputs.logits * np.float32(model.get_layer(TEMPERATURE_LAYER).scale)
        return replace(outputs, outputs=Outputs(self._kind.activate(logits), logits, outputs.outputs.features))


def _record_comparison(comparison: Comparison, evaluation: TaskResult) -> dict[str, Any]:
    """Return the fields of a record about the quality of the model compared with the original."""
    if isinstance(comparison, PairedTest):
        return {
            "accuracy": comparison.compressed_accuracy,
            "only_original_correct": comparison.only_original_correct,
            "only_this_correct": comparison.only_compressed_correct,
        }
    if comparison.metric == "accuracy":  # images in groups
        return {"accuracy": comparison.compressed_score, "scores": comparison}
    values = {name: evaluation.metrics[name].value for name in evaluation.headlines}
    known = {name: value for name, value in values.items() if value is not None}
    return {"accuracy": evaluation.accuracy, "metrics": known, "scores": comparison}


def _convert_uncalibrated(model: Any) -> bytes:
    """Return the ONNX file of a Keras model at temperature 1, which does not affect its decisions."""
    layer = model.get_layer(TEMPERATURE_LAYER)
    scale, layer.scale = layer.scale, 1.0
    try:
        return keras_to_onnx.convert_model(model)
    finally:
        layer.scale = scale


def _describe_step(step: Mapping[str, Any]) -> str:
    details = (f"{key.replace('_', ' ')} {step[key]}" for key in step if key not in ("step", "weights_sha256"))
    return ", ".join([str(step["step"]), *details])
