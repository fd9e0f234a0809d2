"""`export`: convert a model to another format or precision, and keep the file only if its outputs agree."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sightline import files
from sightline.data.index import Sources
from sightline.errors import ModelError, OutputError, UsageError, check_installed, suggest
from sightline.export import onnx, openvino, quantize, tensorflow
from sightline.models.describe import parameters, weights_sha256
from sightline.prediction import bundle, exported, parity
from sightline.prediction.base import Predictor
from sightline.prediction.bundle import Bundle
from sightline.prediction.keras import KerasPredictor
from sightline.prediction.manifest import Golden, Manifest
from sightline.prediction.parity import Parity, Tolerance
from sightline.records import Progress, Samples
from sightline.watch import Watcher
from sightline.workflow.classifier import Classifier, load
from sightline.workflow.labeled import LabeledImages

Format = Literal["onnx", "bundle", "openvino", "litert", "saved_model"]
Precision = Literal["float32", "bfloat16", "float16", "int8"]
PRECISIONS: dict[str, tuple[str, ...]] = {
    "onnx": ("float32", "bfloat16", "float16", "int8"),
    "bundle": ("float32", "bfloat16", "float16", "int8"),
    "openvino": ("float32", "float16", "int8"),
    "litert": ("float32",),
    "saved_model": ("float32",),
}
"""The precisions that each format supports."""

BY_KERAS = frozenset({"litert", "saved_model"})  # exported from the Keras model on TensorFlow, in float32 only

PACKAGES: dict[str, tuple[str, ...]] = {
    "onnx": (), "bundle": (), "openvino": ("openvino",), "litert": ("ai_edge_litert", "tensorflow"),
    "saved_model": ("tensorflow",),
}  # fmt: skip
"""The packages that each format needs, in float32."""

TOLERANCES: dict[str, Tolerance] = {
    "float32": Tolerance(),
    "float16": Tolerance(0.05, 0.98),
    "bfloat16": Tolerance(0.1, 0.97),
    "int8": Tolerance(0.5, 0.97),
}
"""How much the outputs of a file may differ from the model's.

float32 differs only in the order of additions. A float16 weight has 11 significant bits and a relative error of at most
0.02%, a bfloat16 weight has 8 and at most 0.2%. The largest differences measured on photographs were 0.013 and 0.061,
the lowest agreements 0.997 and 0.987 (docs/export.md); a faulty file, such as one with red and blue swapped, differs by
0.28 or more. The agreement limits allow for small validation splits, where a single near tie is 1%. int8 also rounds
activations, and may keep layers in float to meet the limits.
"""

CALIBRATION = 256  # images for int8 calibration and for choosing the layers that stay in float


@dataclass(frozen=True, slots=True)
class Exported:
    """The result of an export: `path` is None if the file exceeded the tolerance and was discarded.

    `kept` names layers that int8 left in float; `pictures` describes the images used for the comparison.
    """

    path: str | None
    format: str
    precision: str
    pictures: str
    parity: Parity
    tolerance: Tolerance
    kept: tuple[str, ...] = ()

    @property
    def reasons(self) -> tuple[str, ...]:
        """The limits that the file exceeded, with the measured values; empty for an accepted file."""
        return self.parity.reasons(self.tolerance)

    @property
    def accepted(self) -> bool:
        """Whether the outputs of the file agree with the model's."""
        return self.path is not None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-compatible values."""
        return {
            "path": self.path,
            "format": self.format,
            "precision": self.precision,
            "accepted": self.accepted,
            "pictures": self.pictures,
            "parity": self.parity.to_dict(),
            "tolerance": {"difference": self.tolerance.difference, "agreement": self.tolerance.agreement},
            "reasons": list(self.reasons),
            "kept_in_float": list(self.kept),
        }


def export(
    model: str | Path,
    form: str = "onnx",
    *,
    precision: str = "float32",
    out: str | Path | None = None,
    data: Sources | None = None,
    tolerance: float | None = None,
    agreement: float | None = None,
    watcher: Watcher | None = None,
) -> Exported:
    """Write a model in another format, load it in the runtime of that format and compare it with the original.

    `model` is a run (whose Keras model is the reference) or a bundle. `data` are labeled images for the comparison, by
    default the run's validation split. A file that exceeds the tolerance is discarded. Raises `UsageError`,
    `ModelError`, `DataError`, `OutputError` and `MissingExtraError`.
    """
    watcher = watcher or Watcher()
    _check(form, precision)
    limits = TOLERANCES[precision]
    if tolerance is not None or agreement is not None:
        limits = Tolerance(
            limits.difference if tolerance is None else tolerance, limits.agreement if agreement is None else agreement
        )
    source = _source(Path(model), watcher.progress)
    if form in BY_KERAS and not isinstance(source.truth, KerasPredictor):
        raise ModelError(
            f"The format {form} requires a Keras model, which {model} does not contain: give the run, or a float32 "
            "bundle of `sightline compress` next to its model.keras."
        )
    target = _target(source, form, precision, out)
    samples, which = _pictures(source, data, watcher)
    return _Export(source, form, precision, target, samples, which, limits, watcher).go()


def _check(form: str, precision: str) -> None:
    if form not in PRECISIONS:
        raise UsageError(f"There is no format {form!r}.{suggest(form, PRECISIONS)}")
    if precision not in PRECISIONS[form]:
        able = ", ".join(PRECISIONS[form])
        raise UsageError(
            f"The format {form} cannot be written in {precision!r}: choose one of {able}, or --format onnx."
        )
    if precision != "float32":
        check_installed("onnx", purpose=f"Writing {precision}")
    check_installed(*PACKAGES[form], purpose=f"The format {form}")
    if form in BY_KERAS:
        tensorflow.check_backend(form)


@dataclass(frozen=True, slots=True)
class _Source:
    """A model to export: its float32 ONNX graph, manifest, reference examples and reference predictor.

    `own` are the images of its run.
    """

    classifier: Classifier
    own: LabeledImages
    truth: Predictor
    manifest: Manifest
    graph: bytes
    golden: Mapping[str, bytes]


def _source(path: Path, progress: Progress) -> _Source:
    classifier = load(path)
    own = classifier.labeled_images(progress=progress)
    run = classifier.run
    if run is None:
        if exported.find(path) is not None:
            raise UsageError(f"{path} is an export and cannot be converted to another format: give its run.")
        found, alone = bundle.load(path)
        truth = _beside(path, found.manifest) or alone
        return _Source(classifier, own, truth, found.manifest, found.model, found.files)
    keras = load(path, engine="keras")
    if run.bundle is None:
        predictor = keras.predictor
        assert isinstance(predictor, KerasPredictor)
        facts = Manifest(
            run.config.model.name, keras.classes, keras.preprocess, run.config.recipe,
            parameters=parameters(predictor.model), weights_sha256=weights_sha256(predictor.model),
        )  # fmt: skip
        return _Source(classifier, own, predictor, facts, onnx.convert(predictor.model), {})
    found, _ = bundle.load(run.bundle)
    facts = found.manifest
    if (facts.classes, facts.preprocess) != (keras.classes, keras.preprocess):
        raise ModelError(
            f"The classes or the preprocessing of the bundle of {path} differ from its model.json: one of them was "
            "modified. Train again, or restore the modified file."
        )
    golden = {name: content for name, content in found.files.items() if name.startswith("golden/")}
    return _Source(classifier, own, keras.predictor, facts, found.model, golden)


def _beside(path: Path, manifest: Manifest) -> KerasPredictor | None:
    """Return the Keras model that `compress` saved next to a bundle; None if there is none."""
    for file in (path.with_name("model.keras"), path.with_name(f"{path.name}.keras")):
        if path.is_dir() and manifest.precision == "float32" and file.is_file():
            found = KerasPredictor.load(file, manifest.classes, manifest.preprocess)
            if weights_sha256(found.model) == manifest.weights_sha256:
                return found
    return None


def _target(source: _Source, form: str, precision: str, out: str | Path | None) -> Path:
    if out is not None:
        target = Path(out)
        if form == "bundle" and target.suffix.lower() != ".zip":
            raise UsageError(f"A bundle is a zip file: end --out {target} with .zip, or use --format onnx.")
        if form not in {"onnx", "bundle"} and target.suffix:
            raise UsageError(f"The format {form} is a folder: give --out {target} without a suffix.")
        if target.is_dir() and any(target.iterdir()) and not (target / bundle.MANIFEST).is_file():
            raise OutputError(f"{target} contains files that are not an export: choose another folder with --out.")
        return target
    if source.classifier.run is None:
        raise UsageError("Only a run has a default folder for exports: give one with --out.")
    name = form if precision == "float32" else f"{form}-{precision}"
    files.refuse_links(source.classifier.run.path, source.classifier.run.path / "exports")
    return source.classifier.run.path / "exports" / (f"{name}.zip" if form == "bundle" else name)


def _pictures(source: _Source, data: Sources | None, watcher: Watcher) -> tuple[Samples, str]:
    if data is None and source.classifier.run is None:
        raise UsageError("Only a run has images for the comparison: give labeled images with --parity.")
    if data is None:
        otherwise = "or give labeled images for the comparison with --parity"
        return source.own.labelled("validation", otherwise=otherwise).samples, "the validation split"
    # Training images are fine for comparing a file with its model; only an accuracy would be misleading.
    found = source.classifier.labelled(data, include_training=True, progress=watcher.progress)
    seen = 0 if found.overlap is None else found.overlap.count
    return found.samples, "the given images" + f" ({seen} are training or validation images)" * bool(seen)


@dataclass(frozen=True, slots=True)
class _Export:
    source: _Source
    form: str
    precision: str
    target: Path
    samples: Samples
    pictures: str
    tolerance: Tolerance
    watcher: Watcher

    def go(self) -> Exported:
        truth = parity.probabilities(
            self.source.truth, self.samples, task="predicting (model)", progress=self.watcher.progress
        )
        graph, kept = self._graph(truth) if self.form in {"onnx", "bundle", "openvino"} else (b"", ())
        manifest = self._manifest(kept)
        files.refuse_links_in_run(self.target.parent)
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".part-", dir=self.target.parent) as aside:
                finish = self._bundle if self.form in {"onnx", "bundle"} else self._folder
                found, accepted = finish(Path(aside), graph, manifest, truth)
        except OSError as error:
            raise OutputError(f"{self.target} cannot be written: {error.strerror or error}.") from error
        path = str(self.target) if accepted else None
        return Exported(path, self.form, self.precision, self.pictures, found, self.tolerance, kept)

    def _graph(self, truth: Any) -> tuple[bytes, tuple[str, ...]]:
        """Return the ONNX file in the requested precision, and the layers that int8 left in float."""
        if self.precision == "float32" or (self.precision == "float16" and self.form == "openvino"):
            return self.source.graph, ()
        if self.precision != "int8":
            return onnx.narrowed(self.source.graph, self.precision), ()
        ranges = self._calibration()
        batches = [ranges[start : start + 32] for start in range(0, len(ranges), 32)]
        calibration = quantize.calibrate(self.source.graph, batches, self.watcher.progress)
        some = self.samples.first(CALIBRATION)

        def accept(file: bytes) -> bool:
            predictor = self._predictor(file)
            found = parity.probabilities(predictor, some, task="evaluating int8", progress=self.watcher.progress)
            return parity.compare(truth[: len(some)], found).within(self.tolerance)

        file, kept, _ = calibration.until(accept, ranges[:32], self.watcher.progress)
        return file, kept

    def _calibration(self) -> Any:
        """Return up to `CALIBRATION` images, from the run's training split if there is a run."""
        known = self.samples
        run = self.source.classifier.run
        if run is not None and run.config.data.sources:
            otherwise = "or choose another precision: int8 is calibrated on training images"
            known = self.source.own.labelled("train", otherwise=otherwise).samples
        return known.take(np.linspace(0, len(known) - 1, min(CALIBRATION, len(known))).astype(np.int64))

    def _predictor(self, graph: bytes) -> Predictor:
        return Bundle(self.source.manifest, graph, {}).predictor()

    def _manifest(self, kept: tuple[str, ...]) -> Manifest:
        """Return the manifest; metrics of the original model are kept for float32 only."""
        old = self.source.manifest
        step = {"step": "export", "format": self.form, "precision": self.precision, "from": old.graph_sha256}
        return replace(
            old,
            precision=self.precision,
            figures=old.figures if self.precision == "float32" else {},
            lineage=(*old.lineage, step | ({"kept_in_float": list(kept)} if kept else {})),
        )

    def _golden(self, manifest: Manifest, predictor: Predictor) -> Manifest:
        """Return the manifest with the probabilities that this file predicts for the reference examples."""
        examples: list[Golden] = []
        for example in manifest.golden:
            pixels = manifest.preprocess.decode(self.source.golden[example.file])
            answer = predictor.probabilities(pixels[None])[0]
            examples.append(replace(example, probabilities=tuple(float(p) for p in answer)))
        return replace(manifest, golden=tuple(examples) if self.source.golden else ())

    def _bundle(self, aside: Path, graph: bytes, manifest: Manifest, truth: Any) -> tuple[Parity, bool]:
        predictor = self._predictor(graph)
        first = bundle.make(self._golden(manifest, predictor), graph, self.source.golden)
        bundle.write(first, aside / "made")
        loaded, again = bundle.load(aside / "made")
        found = self._compare(truth, again, len(loaded.model))
        if not found.within(self.tolerance):
            return found, False
        made = bundle.make(replace(loaded.manifest, parity=found.to_dict()), graph, loaded.files)
        self._put(made)
        return found, True

    def _put(self, made: Bundle) -> None:
        ending = self.target.suffix.lower()
        if ending == ".onnx":
            files.write(self.target, made.model)
        elif ending == ".zip":
            packed = io.BytesIO()
            bundle.pack(made, packed)
            files.write(self.target, packed.getvalue())
        else:
            bundle.write(made, self.target)

    def _folder(self, aside: Path, graph: bytes, manifest: Manifest, truth: Any) -> tuple[Parity, bool]:
        made = aside / "made"
        made.mkdir()
        self._writer(graph, manifest)(made)
        size = exported.size(made)
        manifest = self._golden(manifest, exported.read(made, self.form, manifest))
        exported.seal(made, self.form, manifest, self.source.golden)
        _, predictor = exported.load(made)
        found = self._compare(truth, predictor, size)
        if not found.within(self.tolerance):
            return found, False
        exported.seal(made, self.form, replace(manifest, parity=found.to_dict()), {})
        exported.place(made, self.target)
        return found, True

    def _writer(self, graph: bytes, manifest: Manifest) -> Callable[[Path], None]:
        if self.form == "openvino":
            half = self.precision == "float16"
            return lambda folder: openvino.convert(graph, folder, half=half, manifest=manifest.to_json())
        truth = self.source.truth
        assert isinstance(truth, KerasPredictor)  # checked by `export`
        write = tensorflow.litert if self.form == "litert" else tensorflow.saved_model
        return lambda folder: write(truth.model, folder)

    def _compare(self, truth: Any, predictor: Predictor, size: int) -> Parity:
        watch = self.watcher.progress
        answers = parity.probabilities(predictor, self.samples, task=f"predicting ({self.form})", progress=watch)
        found = parity.compare(truth, answers, self.samples.labels, size)
        median, p99, throughput = parity.speed(predictor, self.samples.take(slice(0, parity.ROWS)))
        return replace(found, latency_median=median, latency_p99=p99, throughput=throughput)
