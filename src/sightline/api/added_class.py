"""`add_class`: a bundle with one more class, from a few images of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from sightline import _io, intervals, jsonio
from sightline.api.added_label import append_label
from sightline.api.added_row import append_row
from sightline.api.class_extension import Extension
from sightline.api.classifier import Classifier
from sightline.callbacks import Callback
from sightline.data.targets import SEPARATOR
from sightline.errors import ModelError, OutputError, UsageError, check_installed
from sightline.inference import bundle, exported_folder, stream
from sightline.inference.bundle import Bundle
from sightline.inference.embeddings import ADDED_CLASS, Embeddings
from sightline.inference.inputs import InputItem
from sightline.inference.manifest import Manifest, ReferenceExample
from sightline.inference.parity import Parity, Tolerance
from sightline.inference.reference_examples import check_reference_examples, hash_pixels
from sightline.inference.results import Thresholds
from sightline.inference.runtimes.onnx import OnnxPredictor
from sightline.intervals import Interval
from sightline.runs.finalize import encode_image, to_portable_file
from sightline.runs.paths import is_run

MAX_CANDIDATES = 8  # considered as reference examples of the new class; the smallest file among them is used
MAX_PARITY_IMAGES = 64


@dataclass(frozen=True, slots=True, repr=False)
class AddedClass:
    """A class that was added to a model.

    Attributes:
        path: The new bundle, which `load` opens and every command accepts.
        label: The new class, the last of `classes`.
        classes: All classes, the earlier ones in their order.
        count: The number of images of the new class.
        recalled: The number of these images that a model fitted without them classifies correctly.
        recall_interval: The 95% interval of the recall, `recalled` / `count`.
        folds: The number of fits that left images out; `count` of them left out one image each.
        split: The images of the earlier classes that both models were evaluated on: the test or validation split of the
            run, or ``"reference"`` for a third of the reference images. None if there are none.
        split_count: The number of these images.
        accuracy_before: The accuracy of the earlier model on them; None without any.
        accuracy: The accuracy of the new model on them.
        accuracy_interval: Its 95% interval.
        taken: The number of them that the new model mistakes for the new class.
        threshold: The lowest probability at which the new class is predicted, if images may have several labels; None
            otherwise.
        parity: The differences between the probabilities of the file and those of the fitted model.
        dropped_thresholds: Whether abstention thresholds of the earlier model, or label sets where an image may have
            several labels, were dropped because they do not fit the new one.

    If images may have several labels, the earlier labels keep their probabilities, so there is no accuracy. `recalled`
    and `taken` then count the images for which the new label is predicted, alone or with others, and `split` may be
    ``"train"``.
    """

    path: Path
    label: str
    classes: tuple[str, ...]
    count: int
    recalled: int
    recall_interval: Interval
    folds: int
    split: str | None
    split_count: int
    accuracy_before: float | None
    accuracy: float | None
    accuracy_interval: Interval | None
    taken: int
    threshold: float | None
    parity: Parity
    dropped_thresholds: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return jsonio.fields_to_dict(self)

    def __repr__(self) -> str:
        rest = "" if self.accuracy is None else f", accuracy {self.accuracy:.4f} on the others"
        return f"AddedClass({str(self.path)!r}, {self.label!r}: {self.recalled} of {self.count} recalled{rest})"


def add_class(
    classifier: Classifier,
    label: str,
    items: Sequence[InputItem],
    *,
    reference: Iterable[Embeddings] | None,
    out: Path | None,
    force: bool,
    callback: Callback,
) -> AddedClass:
    """Write a bundle with the class `label` for `items`; see `Classifier.add_class`."""
    check_installed("onnx", "sklearn", purpose="Adding a class")
    _check_label(label, classifier.classes, has_several=classifier.task.targets.allows_several)
    source = _read_bundle(classifier)
    target = _choose_target(classifier, label, out, force=force)
    append = append_row if source.manifest.task == "single_label" else append_label
    extension = append(classifier, source, label, items, reference, callback)
    manifest = _extend_manifest(source.manifest, label, extension)
    predictor = Bundle(manifest, extension.graph, {}).make_predictor()
    examples, files = _extend_references(source, predictor, label, extension.items)
    agreement = _check_parity(classifier, predictor, extension, [*extension.items, *_reference_items(source)])
    count, recalled = len(extension.is_recalled), int(extension.is_recalled.sum())
    result = AddedClass(
        target, label, manifest.classes, count, recalled, intervals.wilson_interval(recalled, count), extension.folds,
        extension.split, extension.split_count, extension.accuracy_before, extension.accuracy,
        extension.accuracy_interval, extension.taken, extension.threshold, agreement,
        _are_dropped(classifier.thresholds, extension.thresholds),
    )  # fmt: skip
    manifest = replace(
        manifest,
        reference_examples=examples,
        parity=agreement.to_dict(),
        lineage=(*source.manifest.lineage, _describe_step(source.manifest, result)),
    )
    extended = bundle.make(manifest, extension.graph, files)
    check_reference_examples(extended.manifest, extended.files, extended.make_predictor())
    bundle.write(extended, target)
    return result


def _are_dropped(old: Thresholds | None, new: Thresholds | None) -> bool:
    return old is not None and (new is None or new.set_threshold != old.set_threshold)


def _check_label(label: str, classes: Sequence[str], *, has_several: bool) -> None:
    if label in classes:
        raise UsageError(f"{label!r} is already a class of the model: choose another name.")
    if not label or not jsonio.is_encodable(label):
        raise UsageError(f"{label!r} cannot be the name of a class: give a name in valid UTF-8.")
    if has_several and SEPARATOR in label:
        raise UsageError(f"{label!r} has a {SEPARATOR!r}, which separates the labels of an image: choose another name.")
    if near := [name for name in classes if name.casefold() == label.casefold()]:
        raise UsageError(f"{label!r} differs from the class {near[0]!r} only in case: choose another name.")


def _read_bundle(classifier: Classifier) -> Bundle:
    """Return the float32 bundle of the model; raises `ModelError` for a model without one."""
    run, path = classifier.run, classifier.model_path
    if run is None and exported_folder.find(path) is not None:
        raise ModelError(f"{path} is an export: add the class to the model that it was exported from.")
    bundle_path = path if run is None else run.bundle
    if bundle_path is None:
        raise ModelError(f"The run {path} has no bundle to add a class to: train again, then add it.")
    source = bundle.read(bundle_path)
    if source.manifest.task not in {"single_label", "multi_label"}:
        examples = "masks that have" if classifier.task.targets.are_masks else "images of"
        raise ModelError(
            f"{path} has the task {source.manifest.task}, but a class can be added only to a single_label or "
            f"multi_label model: train again with {examples} the new class among the others."
        )
    if source.manifest.precision != "float32":
        raise ModelError(
            f"{path} is stored in {source.manifest.precision}: add the class to the float32 model, and export that."
        )
    return source


def _choose_target(classifier: Classifier, label: str, out: Path | None, *, force: bool) -> Path:
    """Return where to write; raises `OutputError` if something is there that may not be replaced."""
    if out is None:
        run = classifier.require_run()
        out = run.path / f"with-{_io.safe_stem(label)}"
        _io.refuse_links(run.path, out.parent)
    out = _io.output_path(out)
    _io.check_writable(out)
    if _io.is_free(out):
        return out
    if not bundle.is_bundle(out) or (is_run(out.parent) and out.name == "bundle"):
        raise OutputError(f"{out} exists and is not the result of add-class: choose another place with --out.")
    if not force:
        raise OutputError(f"{out} exists: choose another place with --out, or replace it with --force.")
    bundle.refuse_foreign_files(out, bundle.to_files(bundle.read(out)))
    return out


def _extend_manifest(manifest: Manifest, label: str, extension: Extension) -> Manifest:
    """Return the manifest with the class, without the fields that do not fit the new model."""
    counts = dict(manifest.data.get("counts", {}))
    counts["train"] = counts.get("train", 0) + len(extension.is_recalled)
    name = manifest.data.get("name", "")
    weights = manifest.weights_sha256.encode() + extension.weights
    return replace(
        manifest,
        classes=(*manifest.classes, label),
        parameters=manifest.parameters + extension.parameters,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        data={"name": f"{name} and {label}" if name else label, "counts": counts},  # `positive` is only for two classes
        thresholds=None if extension.thresholds is None else extension.thresholds.to_stored(),
        metrics=extension.metrics,
        reference_examples=(),
        version=metadata.version("sightline"),
    )


def _reference_items(source: Bundle) -> list[InputItem]:
    """Return the reference examples of a bundle as images."""
    files = [example.file for example in source.manifest.reference_examples if example.file in source.files]
    return [InputItem(file, lambda file=file: source.files[file]) for file in files]  # type: ignore[misc]


def _extend_references(
    source: Bundle, predictor: OnnxPredictor, label: str, items: Sequence[InputItem]
) -> tuple[tuple[ReferenceExample, ...], dict[str, bytes]]:
    """Return the reference examples with their new probabilities, and the smallest file of the new class as another."""
    files = {e.file: source.files[e.file] for e in source.manifest.reference_examples if e.file in source.files}
    labels = {e.file: e.label for e in source.manifest.reference_examples}
    encoded = min((encode_image(_read(item)) for item in items[:MAX_CANDIDATES]), key=len)
    content, suffix = to_portable_file(predictor, encoded)
    numbers = [int(file.split("/")[1].split(".")[0]) for file in files]
    name = f"reference/{max(numbers, default=-1) + 1}.{suffix}"
    files[name], labels[name] = content, label
    examples = []
    for file, image in files.items():
        pixels = predictor.preprocess.decode(image)
        probabilities = tuple(float(p) for p in predictor.probabilities(pixels[None])[0])
        examples.append(ReferenceExample(file, labels[file], hash_pixels(pixels), probabilities))
    return tuple(examples), files


def _read(item: InputItem) -> Any:
    """Return the content of an item that can be encoded: bytes, or pixels [H, W, C]."""
    content = item.read()
    return content if isinstance(content, bytes | bytearray | memoryview) else np.asarray(content)


def _check_parity(
    classifier: Classifier, predictor: OnnxPredictor, extension: Extension, items: Sequence[InputItem]
) -> Parity:
    """Compare the file, which `predictor` runs, with the fit on some images; raises `ModelError` if they differ."""
    expected, actual = [], []
    for item in items[:MAX_PARITY_IMAGES]:
        pixels = stream.decode_item(predictor.preprocess, item)[None]
        expected.append(extension.compute_probabilities(classifier.predictor.outputs(pixels)))
        actual.append(predictor.probabilities(pixels))
    result = classifier.task.compare(np.concatenate(expected), np.concatenate(actual))
    if failures := result.list_failures(Tolerance()):
        raise ModelError(f"The file with the new class differs from its fit: {' and '.join(failures)}.")
    return result


def _describe_step(manifest: Manifest, result: AddedClass) -> dict[str, Any]:
    """Return the step of the lineage: how the class was added, and how far its evaluation goes."""
    return {
        "step": ADDED_CLASS,
        "class": result.label,
        "images": result.count,
        "recalled_when_left_out": result.recalled,
        "folds": result.folds,
        "accuracy_before": result.accuracy_before,
        "calibration": f"not fitted to {result.label}",
        "from": manifest.graph_sha256,
        "weights_sha256": manifest.weights_sha256,
    }
