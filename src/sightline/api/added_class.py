"""`add_class`: a bundle with one more class, whose last layer has one more row, fitted to a few images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import _io, intervals, jsonio, metrics
from sightline.api.classifier import Classifier
from sightline.callbacks import Callback, Progress
from sightline.data.types import Subset
from sightline.errors import DataError, ModelError, OutputError, UsageError, check_installed, plural, suggest
from sightline.evaluation.evaluator import compute_evaluation
from sightline.export.extend_head import Head, read_head, replace_head
from sightline.inference import bundle, exported_folder, parity, runner, stream
from sightline.inference.bundle import Bundle
from sightline.inference.embeddings import ADDED_CLASS, Embeddings, join_embeddings
from sightline.inference.manifest import Manifest, ReferenceExample
from sightline.inference.parity import Parity, Tolerance
from sightline.inference.stream import InputItem
from sightline.intervals import Interval
from sightline.runs.finalize import encode_image, to_portable_file
from sightline.seeding import make_generator
from sightline.training.new_class import NewClassFit, fit_new_class

MIN_IMAGES = 2  # of the new class: one to leave out, and one to fit to
MAX_OTHERS = 2000  # images of the other classes that the row is fitted to
MAX_CANDIDATES = 8  # images of the new class among which the smallest becomes a reference example
MAX_PARITY_IMAGES = 64
REFERENCE_SPLIT = "reference"


@dataclass(frozen=True, slots=True, repr=False)
class AddedClass:
    """A class that was added to a model.

    Attributes:
        path: The new bundle, which `load` opens and every command takes.
        label: The new class, the last of `classes`.
        classes: All classes, the earlier ones in their order.
        count: The number of images of the new class.
        recalled: How many of them are classified correctly by a model that was fitted without them.
        recall_interval: The 95% interval of the recall, `recalled` / `count`.
        folds: The number of fits that left images out; `count` of them left out one each.
        split: The images of the earlier classes that both models were evaluated on: test or validation of the run, or
            ``"reference"`` for a third of the reference images. None if there are none.
        split_count: The number of these images.
        accuracy_before: The accuracy of the earlier model on them; None without any.
        accuracy: The accuracy of the new model on them.
        accuracy_interval: Its 95% interval.
        taken: How many of them the new model takes for the new class.
        parity: How far the probabilities of the file are from those of the fit.
        dropped_thresholds: Whether the earlier model had abstention thresholds, which do not fit the new one.
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
    parity: Parity
    dropped_thresholds: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return jsonio.fields_to_dict(self, skip=["path"]) | {"path": str(self.path)}

    def __repr__(self) -> str:
        rest = "" if self.accuracy is None else f", accuracy {self.accuracy:.4f} on the others"
        return f"AddedClass({str(self.path)!r}, {self.label!r}: {self.recalled} of {self.count} recalled{rest})"


@dataclass(frozen=True, slots=True)
class _Others:
    """Images of the earlier classes: features to fit to, and features [N, F] with labels [N] of `split` to evaluate."""

    features: NDArray[np.float32]
    split: str | None
    split_features: NDArray[np.float32]
    split_labels: NDArray[np.int32]


def add_class(
    classifier: Classifier,
    label: str,
    items: Sequence[InputItem],
    *,
    reference: Iterable[Embeddings] | None = None,
    out: Path | None = None,
    force: bool = False,
    callback: Callback | None = None,
) -> AddedClass:
    """Write a bundle with the class `label` for `items`; see `Classifier.add_class`."""
    callback = callback or Callback()
    check_installed("onnx", "sklearn", purpose="Adding a class")
    _check_label(label, classifier.classes)
    source = _read_bundle(classifier)
    target = _choose_target(classifier, label, out, force=force)
    try:
        head = read_head(source.model)
    except ModelError as error:
        raise ModelError(f"No class can be added to {classifier.path}: {error}.") from error
    new, kept_items = _embed_new(classifier, items, callback)
    others = _read_reference(reference, classifier) if reference else _read_run(classifier, callback.on_progress)
    fit = fit_new_class(
        new.vectors, head.compute_logits(new.vectors), others.features, head.compute_logits(others.features)
    )
    new_head = head.append(fit.kernel, fit.bias)
    graph = replace_head(source.model, new_head)
    manifest = _extend_manifest(source.manifest, label, fit, new_head)
    examples, files = _extend_references(source, manifest, graph, label, kept_items)
    agreement = _check_parity(classifier, manifest, graph, new_head, [*kept_items, *_reference_items(source)])
    before, after = (_evaluate(h, source.manifest.classes, label, others) for h in (head, new_head))
    result = AddedClass(
        target, label, manifest.classes, len(new), int(fit.is_recalled.sum()),
        intervals.wilson_interval(int(fit.is_recalled.sum()), len(new)), fit.folds,
        others.split, len(others.split_labels),
        None if before is None else before.accuracy, None if after is None else after.accuracy,
        None if after is None else after.accuracy_interval,
        0 if after is None else int((after.probabilities.argmax(1) == len(manifest.classes) - 1).sum()),
        agreement, classifier.thresholds is not None,
    )  # fmt: skip
    manifest = replace(
        manifest,
        reference_examples=examples,
        parity=agreement.to_dict(),
        metrics={} if after is None or others.split is None else {others.split: after.summarize()},
        lineage=(*source.manifest.lineage, _describe_step(source.manifest, result)),
    )
    extended = bundle.make(manifest, graph, files)
    bundle.check_reference_examples(extended, extended.make_predictor())
    bundle.write(extended, target)
    return result


def _check_label(label: str, classes: Sequence[str]) -> None:
    if label in classes:
        raise UsageError(f"{label!r} is already a class of the model: choose another name.")
    if not label or not jsonio.is_encodable(label):
        raise UsageError(f"{label!r} cannot be the name of a class: give a name in valid UTF-8.")
    if near := [name for name in classes if name.casefold() == label.casefold()]:
        raise UsageError(f"{label!r} differs from the class {near[0]!r} by its case alone: choose another name.")


def _read_bundle(classifier: Classifier) -> Bundle:
    """Return the float32 bundle of the model; raises `ModelError` for a model without one."""
    run, path = classifier.run, classifier.model_path
    if run is None and exported_folder.find(path) is not None:
        raise ModelError(f"{path} is an export: add the class to the model that it was exported from.")
    if run is not None and run.bundle is None:
        raise ModelError(f"The run {path} has no bundle, to which a class could be added.")
    bundle_path = path if run is None else run.bundle
    assert bundle_path is not None, "checked above"
    source = bundle.read(bundle_path)
    if source.manifest.task != "single_label":
        raise ModelError(f"{path} has the task {source.manifest.task}: a class can be added to single_label alone.")
    if source.manifest.precision != "float32":
        raise ModelError(
            f"{path} is stored in {source.manifest.precision}: add the class to the float32 model, and export that."
        )
    return source


def _choose_target(classifier: Classifier, label: str, out: Path | None, *, force: bool) -> Path:
    """Return where to write; raises `OutputError` if something is there that may not be replaced."""
    if out is None:
        if classifier.run is None:
            raise UsageError("Only a run has a default folder for a model with one more class: give one with --out.")
        out = classifier.run.path / f"with-{_io.safe_stem(label)}"
        _io.refuse_links(classifier.run.path, out.parent)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return out
    if not bundle.is_bundle(out) or ((out.parent / "run.json").is_file() and out.name == "bundle"):
        raise OutputError(f"{out} exists and is not the result of add-class: choose another place with --out.")
    if not force:
        raise OutputError(f"{out} exists: choose another place with --out, or replace it with --force.")
    if foreign_files := bundle.list_foreign_files(out, bundle.read(out)):
        raise OutputError(
            f"{out} contains {foreign_files[0]}, which is not part of the bundle: move it elsewhere first."
        )
    return out


def _embed_new(
    classifier: Classifier, items: Sequence[InputItem], callback: Callback
) -> tuple[Embeddings, list[InputItem]]:
    """Return the embeddings of the new images and their items, without unreadable ones and repeated ones."""
    batches = list(classifier.iter_embeddings(items, callback=callback))
    embeddings = join_embeddings(batches, 0, classifier.feature_model_id)
    failed = [f"{p}: {e}" for p, e in zip(embeddings.paths, embeddings.errors, strict=True) if e is not None]
    if failed:
        callback.on_message(f"{plural(len(failed), 'image')} cannot be read, e.g. {failed[0]}")
    valid = np.flatnonzero(embeddings.is_valid)
    first = np.sort(np.unique(embeddings.vectors[valid], axis=0, return_index=True)[1]) if len(valid) else valid
    positions = valid[first] if len(valid) else valid
    if len(positions) < len(valid):
        callback.on_message(f"{plural(len(valid) - len(positions), 'image')} left out that repeat another")
    if len(positions) < MIN_IMAGES:
        reason = f", e.g. {failed[0]}" if failed else ""
        raise DataError(
            f"A class needs at least {MIN_IMAGES} different images, better 5 or more, and there "
            f"{'is' if len(positions) == 1 else 'are'} {len(positions)} that can be read{reason}."
        )
    return embeddings.select(positions), [items[i] for i in positions]


def _read_run(classifier: Classifier, progress: Progress) -> _Others:
    """Return the features of the run's own images: of training, and of its test, else its validation split."""
    if classifier.run is None:
        raise UsageError(
            "A model without its run has no images of its own: give labeled images of its classes with --reference."
        )
    labeled_images = classifier.labeled_images(progress=progress)
    advice = "or give labeled images of its classes with --reference"
    train = labeled_images.load("train", alternative=advice).subset
    train = train.select(_choose_balanced(train.labels))
    counts = {} if classifier.manifest is None else classifier.manifest.data.get("counts", {})
    features = runner.predict_outputs(classifier.predictor, train, task="embedding", progress=progress).features
    if not counts.get("test") and not counts.get("validation"):
        return _Others(features, None, features[:0], train.labels[:0])
    labeled = labeled_images.load(alternative=advice)
    outputs = runner.predict_outputs(classifier.predictor, labeled.subset, task="evaluating", progress=progress)
    return _Others(features, labeled.split, outputs.features, labeled.subset.labels)


def _read_reference(reference: Iterable[Embeddings], classifier: Classifier) -> _Others:
    """Return the features of labeled images: two of three to fit to, the third to evaluate on."""
    batches = [batch.select(batch.is_valid) for batch in reference]
    embeddings = join_embeddings(batches, 0, classifier.feature_model_id)
    index = {label: k for k, label in enumerate(classifier.classes)}
    for path, label in zip(embeddings.paths, embeddings.labels, strict=True):
        if label is None:
            raise DataError(
                f"The reference image {path} has no label: give labeled images, or `sightline embed --labeled`."
            )
        if label not in index:
            raise DataError(
                f"The reference image {path} has the label {label!r}, which is not a class of the model."
                f"{suggest(label, index)}"
            )
    labels = np.array([index[str(label)] for label in embeddings.labels], np.int32)
    is_held_out = _rank_in_class(labels) % 3 == 2
    if (~is_held_out).sum() < MIN_IMAGES:
        raise DataError(f"The reference has {plural(len(labels), 'readable image')}, too few to fit a class against.")
    fitted = np.flatnonzero(~is_held_out)
    fitted = fitted[_choose_balanced(labels[fitted])]
    split = REFERENCE_SPLIT if is_held_out.any() else None
    return _Others(embeddings.vectors[fitted], split, embeddings.vectors[is_held_out], labels[is_held_out])


def _rank_in_class(labels: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the position of each label among the same labels, int64 [N]."""
    ranks = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        ranks[labels == label] = np.arange((labels == label).sum())
    return ranks


def _choose_balanced(labels: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the positions of at most `MAX_OTHERS` images: random ones, as many of each class as there are."""
    shuffled = make_generator(0, ADDED_CLASS).permutation(len(labels))
    ranks = _rank_in_class(labels[shuffled])
    chosen: NDArray[np.int64] = np.sort(shuffled[np.argsort(ranks, kind="stable")[:MAX_OTHERS]])
    return chosen


def _extend_manifest(manifest: Manifest, label: str, fit: NewClassFit, head: Head) -> Manifest:
    """Return the manifest with the class; what does not fit the new model is left out."""
    counts = dict(manifest.data.get("counts", {}))
    counts["train"] = counts.get("train", 0) + len(fit.is_recalled)
    name = manifest.data.get("name", "")
    weights = manifest.weights_sha256.encode() + head.kernel[:, -1].tobytes() + head.bias[-1:].tobytes()
    return replace(
        manifest,
        classes=(*manifest.classes, label),
        parameters=manifest.parameters + len(head.kernel) + 1,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        data={"name": f"{name} and {label}" if name else label, "counts": counts},  # two classes had a positive one
        thresholds=None,
        metrics={},
        reference_examples=(),
        version=metadata.version("sightline"),
    )


def _reference_items(source: Bundle) -> list[InputItem]:
    """Return the reference examples of a bundle as images."""
    files = [example.file for example in source.manifest.reference_examples if example.file in source.files]
    return [InputItem(file, lambda file=file: source.files[file]) for file in files]  # type: ignore[misc]


def _extend_references(
    source: Bundle, manifest: Manifest, graph: bytes, label: str, items: Sequence[InputItem]
) -> tuple[tuple[ReferenceExample, ...], dict[str, bytes]]:
    """Return the reference examples with their new probabilities, and one of the new class: the smallest file."""
    predictor = Bundle(manifest, graph, {}).make_predictor()
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
        examples.append(ReferenceExample(file, labels[file], bundle.hash_pixels(pixels), probabilities))
    return tuple(examples), files


def _read(item: InputItem) -> Any:
    """Return the content of an item that can be encoded: bytes, or pixels [H, W, C]."""
    content = item.read()
    return content if isinstance(content, bytes | bytearray | memoryview) else np.asarray(content)


def _check_parity(
    classifier: Classifier, manifest: Manifest, graph: bytes, head: Head, items: Sequence[InputItem]
) -> Parity:
    """Compare the file with the fit on some images; raises `ModelError` if they differ."""
    predictor = Bundle(manifest, graph, {}).make_predictor()
    expected, actual = [], []
    for item in items[:MAX_PARITY_IMAGES]:
        pixels = stream.decode_item(manifest.preprocess, item)[None]
        features = classifier.predictor.outputs(pixels).features
        expected.append(metrics.softmax(head.compute_logits(features)))
        actual.append(predictor.probabilities(pixels))
    result = parity.compare_probabilities(np.concatenate(expected), np.concatenate(actual))
    if failures := result.list_failures(Tolerance()):
        raise ModelError(f"The file with the new class differs from its fit: {' and '.join(failures)}.")
    return result


def _evaluate(head: Head, classes: tuple[str, ...], label: str, others: _Others) -> Any:
    """Return the evaluation of a head on the images of the earlier classes; None without any."""
    if not len(others.split_labels):
        return None
    all_classes = classes if head.kernel.shape[1] == len(classes) else (*classes, label)
    probabilities = metrics.softmax(head.compute_logits(others.split_features)).astype(np.float32)
    count = len(others.split_labels)
    subset = Subset(others.split_features, np.arange(count), others.split_labels, ("",) * count)
    return compute_evaluation(all_classes, probabilities, subset)


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
