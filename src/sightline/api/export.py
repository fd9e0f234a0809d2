"""`export_model`: convert a model to another format or precision, and keep the file only if its outputs agree."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sightline import _io
from sightline.api.classifier import Classifier
from sightline.api.export_source import ExportSource, list_keras_files, load_source
from sightline.api.loading import load
from sightline.callbacks import Callback
from sightline.data.indexing import Sources
from sightline.data.recorded_images import map_groups
from sightline.data.types import Subset
from sightline.errors import DataError, ModelError, UsageError, check_installed, plural
from sightline.export import keras_to_onnx, quantize
from sightline.inference import bundle, exported_folder, parity, runner
from sightline.inference.bundle import Bundle
from sightline.inference.exporters import EXPORTERS, Exporter, ExportInput
from sightline.inference.manifest import Manifest, ReferenceExample
from sightline.inference.parity import TOLERANCES, Parity, Tolerance
from sightline.inference.predictor import Predictor
from sightline.inference.reference_examples import average_pixels
from sightline.inference.runtimes.keras import KerasPredictor
from sightline.runs import finalize

VALIDATION = "the validation split"
TRAINING = "the training split, since the run has no validation split"
CALIBRATION_IMAGES = 256  # images for int8 calibration, and for the first of two checks of its parity


@dataclass(frozen=True, slots=True, repr=False)
class ExportResult:
    """The result of an export.

    Attributes:
        path: The file or folder; None if it exceeded the tolerance and was discarded.
        format: The format, such as ``"onnx"``.
        precision: The precision, such as ``"int8"``.
        images_description: The images on which it was compared with the model.
        parity: How far its probabilities are from the model's, its size and its speed.
        tolerance: The limits that the parity must meet.
        float_layers: The layers that int8 left in float.
    """

    path: str | None
    format: str
    precision: str
    images_description: str
    parity: Parity
    tolerance: Tolerance
    float_layers: tuple[str, ...] = ()

    @property
    def exceeded_limits(self) -> tuple[str, ...]:
        """The limits that the file exceeded, with the measured values; empty for an accepted file."""
        return self.parity.list_failures(self.tolerance)

    @property
    def accepted(self) -> bool:
        """Whether the outputs of the file agree with the model's."""
        return self.path is not None

    def __repr__(self) -> str:
        p = self.parity
        return (
            f"ExportResult({self.path!r}, {self.format} in {self.precision}, {p.bytes / 1e6:.2f} MB; probabilities "
            f"differ by at most {p.max_difference:.2g} on {plural(p.count, 'image')})"
        )

    def describe_rejection(self) -> str:
        """Return why a file that exceeded the tolerance was not written, and what to do."""
        return (
            f"The {self.format} file in {self.precision} was not written: on {plural(self.parity.count, 'image')} "
            f"{' and '.join(self.exceeded_limits)}. Set another limit, or compare on more images with --parity."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-compatible values."""
        return {
            "path": self.path,
            "format": self.format,
            "precision": self.precision,
            "accepted": self.accepted,
            "images": self.images_description,
            "parity": self.parity.to_dict(),
            "tolerance": {"difference": self.tolerance.difference, "agreement": self.tolerance.agreement},
            "reasons": list(self.exceeded_limits),
            "kept_in_float": list(self.float_layers),
        }


def export_model(
    model: str | Path,
    export_format: str = "onnx",
    *,
    precision: str = "float32",
    out: str | Path | None = None,
    data: Sources | None = None,
    tolerance: float | None = None,
    agreement: float | None = None,
    callback: Callback | None = None,
) -> ExportResult:
    """Write a model in another format, load it in the runtime of that format and compare it with the original.

    `model` is a run (whose Keras model is the reference) or a bundle. `data` are labeled images for the comparison, by
    default the run's validation split, or its training images if it has none. A file that exceeds the tolerance is
    discarded. Raises `UsageError`, `ModelError`, `DataError`, `OutputError` and `MissingExtraError`.
    """
    callback = callback or Callback()
    exporter = _find_exporter(export_format, precision)
    tolerances = TOLERANCES[precision]
    if tolerance is not None or agreement is not None:
        tolerances = Tolerance(
            tolerances.difference if tolerance is None else tolerance,
            tolerances.agreement if agreement is None else agreement,
        )
    path = _io.expand_home(model)
    classifier = load(path)
    if classifier.run is None and exported_folder.find(path) is not None:
        raise UsageError(f"{path} is an export and cannot be converted to another format: give its run.")
    stored = "float32" if classifier.manifest is None else classifier.manifest.precision
    if stored not in ("float32", precision):  # the weights are already rounded
        raise UsageError(
            f"{path} is stored in {stored}: export it with --precision {stored}, or give the float32 model or its run."
        )
    may_have_keras = classifier.run is not None or (
        classifier.manifest is not None and bool(list_keras_files(path, classifier.manifest))
    )
    _require_keras(exporter, model, has_keras=may_have_keras)
    target = _resolve_target(classifier, exporter, precision, out)  # before Keras is loaded, which takes seconds
    source = load_source(path, classifier, callback.on_progress)
    _require_keras(exporter, model, has_keras=isinstance(source.reference, KerasPredictor))
    samples, images_description = _comparison_images(source, data, callback)
    return _ExportJob(source, exporter, precision, target, samples, images_description, tolerances, callback).export()


def _find_exporter(name: str, precision: str) -> Exporter:
    """Return the exporter of a format, after checking that it can write `precision` here."""
    exporter = EXPORTERS.find(name)
    if precision not in exporter.precisions:
        raise UsageError(
            f"The format {name} cannot be written in {precision!r}: choose "
            f"{'one of ' if len(exporter.precisions) > 1 else ''}{', '.join(exporter.precisions)}"
            f"{'' if name == 'onnx' else ', or --to onnx'}."
        )
    if precision != "float32":
        check_installed("onnx", purpose=f"Writing {precision}")
    exporter.check_requirements()
    return exporter


def _require_keras(exporter: Exporter, model: str | Path, *, has_keras: bool) -> None:
    if exporter.source == "keras" and not has_keras:
        raise ModelError(
            f"The format {exporter.name} requires a Keras model, which {model} does not contain: give the run, or a "
            "float32 bundle of `sightline compress` next to its model.keras."
        )


def _resolve_target(classifier: Classifier, exporter: Exporter, precision: str, out: str | Path | None) -> Path:
    is_file = "" not in exporter.suffixes
    if out is not None:
        target = _io.output_path(out)
        suffix = target.suffix.lower() if target.suffix[1:].isalpha() else ""  # v1.2 and cats.v2 are folders
        if suffix not in exporter.suffixes:
            file = " or ".join(filter(None, exporter.suffixes))
            kinds = ["" if is_file else "a folder without a suffix", file and f"a file that ends with {file}"]
            raise UsageError(
                f"The format {exporter.name} is {' or '.join(filter(None, kinds))}: change --out {target}, or name "
                f"another format with --to ({', '.join(EXPORTERS.registered_names)})."
            )
    else:
        run = classifier.require_run()
        name = exporter.name if precision == "float32" else f"{exporter.name}-{precision}"
        target = run.path / "exports" / (f"{name}{exporter.suffixes[0]}" if is_file else name)
        _io.refuse_links(run.path, target.parent)
    _io.check_writable(target)
    exported_folder.check_replaceable(target)
    return target


def _comparison_images(source: ExportSource, data: Sources | None, callback: Callback) -> tuple[Subset, str]:
    if data is None and source.classifier.run is None:
        raise UsageError("Only a run has images for the comparison: give labeled images with --parity.")
    if data is None:
        otherwise = "or give labeled images for the comparison with --parity"
        rows = None if source.classifier.run is None else source.classifier.run.read_data()
        if any(row.split == "validation" for row in rows or ()):
            return source.run_images.load("validation", alternative=otherwise).subset, VALIDATION
        # As at the end of training: a run with folds trains on all images, and others may have no validation split.
        training = source.run_images.load("train", alternative=otherwise).subset
        return training.sample_evenly(finalize.MAX_PARITY_IMAGES), TRAINING
    # Training images are fine for comparing a file with its model; only an accuracy would be misleading.
    labeled = source.classifier.labeled_images(data, callback.on_progress).load(include_training=True)
    overlap_count = 0 if labeled.overlap is None else labeled.overlap.count
    return labeled.subset, "the given images" + f" ({overlap_count} are training or validation images)" * bool(
        overlap_count
    )


@dataclass(frozen=True, slots=True)
class _ExportJob:
    source: ExportSource
    exporter: Exporter
    precision: str
    target: Path
    samples: Subset
    images_description: str
    tolerance: Tolerance
    callback: Callback

    def export(self) -> ExportResult:
        reference = runner.predict_probabilities(
            self.source.reference, self.samples, task="predicting (model)", progress=self.callback.on_progress
        )
        graph, float_layers = self._convert_graph(reference) if self.exporter.source == "onnx" else (b"", ())
        manifest = self._manifest(float_layers)
        _io.refuse_links_in_run(self.target.parent)
        with exported_folder.explain_write_errors(self.target):
            self.target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".part-", dir=self.target.parent) as temp_dir:
                finish = self._write_bundle if self.exporter.is_bundle else self._write_folder
                parity_result, accepted = finish(Path(temp_dir), graph, manifest, reference)
        path = str(self.target) if accepted else None
        return ExportResult(
            path, self.exporter.name, self.precision, self.images_description, parity_result, self.tolerance,
            float_layers,
        )  # fmt: skip

    def _convert_graph(self, reference: Any) -> tuple[bytes, tuple[str, ...]]:
        """Return the ONNX file in the precision that the exporter requires, and the layers that int8 left in float."""
        precision = self.exporter.get_graph_precision(self.precision)
        if precision in ("float32", self.source.manifest.precision):
            return self.source.graph, ()
        if precision != "int8":
            return keras_to_onnx.cast_weights(self.source.graph, precision), ()
        calibration_pixels = self._calibration_pixels()
        progress, compare = self.callback.on_progress, self.source.classifier.task.compare
        calibration = quantize.calibrate_graph(self.source.graph, calibration_pixels, progress)
        counts = sorted({min(CALIBRATION_IMAGES, len(self.samples)), len(self.samples)})  # few images, then all

        def has_parity(predictor: Predictor, count: int) -> bool:
            samples = self.samples.head(count)
            outputs = runner.predict_probabilities(predictor, samples, task="evaluating int8", progress=progress)
            return compare(reference[:count], outputs).is_within(self.tolerance)

        def accept(file: bytes) -> bool:
            predictor = self._predictor(file)
            return all(has_parity(predictor, count) for count in counts)

        file, float_layers, _ = calibration.quantize_until_accepted(accept, calibration_pixels, progress)
        return file, float_layers

    def _calibration_pixels(self) -> Any:
        """Return up to `CALIBRATION_IMAGES` images, from the run's training split if there is a run."""
        source_samples = self.samples
        run = self.source.classifier.run
        if run is not None and run.config.data.sources:
            otherwise = "or choose another precision: int8 is calibrated on training images"
            source_samples = self.source.run_images.load("train", alternative=otherwise).subset
        if not len(source_samples):
            raise DataError("int8 needs images for calibration, and there are none: give labeled images with --parity.")
        return source_samples.sample_evenly(CALIBRATION_IMAGES).take(slice(None))

    def _predictor(self, graph: bytes) -> Predictor:
        return Bundle(self.source.manifest, graph, {}).make_predictor()

    def _manifest(self, float_layers: tuple[str, ...]) -> Manifest:
        """Return the manifest; metrics of the original model are kept for float32 only."""
        model = self.source.manifest
        step = {"step": "export", "format": self.exporter.name, "precision": self.precision, "from": model.graph_sha256}
        return replace(
            model,
            precision=self.precision,
            metrics=model.metrics if self.precision == "float32" else {},
            lineage=(*model.lineage, step | ({"kept_in_float": list(float_layers)} if float_layers else {})),
        )

    def _update_references(self, manifest: Manifest, predictor: Predictor) -> Manifest:
        """Return the manifest with the probabilities that this file predicts for the reference examples."""
        examples: list[ReferenceExample] = []
        for example in manifest.reference_examples if self.source.reference_files else ():  # a lone file has no images
            pixels = manifest.preprocess.decode(self.source.reference_files[example.file])
            probabilities = average_pixels(predictor.probabilities(pixels[None]))[0]
            examples.append(replace(example, probabilities=tuple(map(float, probabilities))))
        return replace(manifest, reference_examples=tuple(examples))

    def _write_bundle(self, temp_dir: Path, graph: bytes, manifest: Manifest, reference: Any) -> tuple[Parity, bool]:
        predictor = self._predictor(graph)
        unchecked = bundle.make(self._update_references(manifest, predictor), graph, self.source.reference_files)
        file = temp_dir / "unchecked.zip"  # unlike a folder, not synced to disk
        bundle.write_zip(unchecked, file)
        loaded, reloaded = bundle.load(file)
        parity_result = self._compare(reference, reloaded, len(loaded.model))
        if not parity_result.is_within(self.tolerance):
            return parity_result, False
        files = {**loaded.files, **self._sample_validation(reloaded)}
        final_bundle = bundle.make(replace(loaded.manifest, parity=parity_result.to_dict()), graph, files)
        bundle.write(final_bundle, self.target)
        return parity_result, True

    def _sample_validation(self, predictor: Predictor) -> Mapping[str, bytes]:
        """Return the file of the model's sample of validation images, computed with the exported graph."""
        if self.source.sample is None:
            return {}
        if self.precision == "float32":
            return {bundle.SAMPLE_FILE: self.source.sample}
        classifier = self.source.classifier
        if self.images_description != VALIDATION or classifier.run is None:
            return {}
        groups = map_groups(classifier.run.read_data() or ())
        return finalize.sample_validation(classifier.task, predictor, self.samples, groups)

    def _write_folder(self, temp_dir: Path, graph: bytes, manifest: Manifest, reference: Any) -> tuple[Parity, bool]:
        folder, exporter = temp_dir / "made", self.exporter
        folder.mkdir()
        keras_model = self.source.reference.model if isinstance(self.source.reference, KerasPredictor) else None
        with exported_folder.explain_converter_errors(f"The format {exporter.name} cannot hold this model"):
            exporter.write(ExportInput(self.precision, manifest, graph, keras_model), folder)
        size = exported_folder.total_size(folder)
        manifest = self._update_references(manifest, exported_folder.load_unverified(folder, exporter, manifest))
        exported_folder.add_manifest(folder, exporter.name, manifest, self.source.reference_files)
        _, predictor = exported_folder.load(folder)
        parity_result = self._compare(reference, predictor, size)
        if not parity_result.is_within(self.tolerance):
            return parity_result, False
        exported_folder.add_manifest(folder, exporter.name, replace(manifest, parity=parity_result.to_dict()), {})
        exported_folder.move_into_place(folder, self.target)
        return parity_result, True

    def _compare(self, reference: Any, predictor: Predictor, size: int) -> Parity:
        progress = self.callback.on_progress
        probabilities = runner.predict_probabilities(
            predictor, self.samples, task=f"predicting ({self.exporter.name})", progress=progress
        )
        parity_result = self.source.classifier.task.compare(reference, probabilities, self.samples.labels, size)
        median, p99, throughput = parity.measure_speed(predictor, self.samples.take(slice(0, parity.BATCH_SIZE)))
        return replace(parity_result, latency_median=median, latency_p99=p99, throughput=throughput)
