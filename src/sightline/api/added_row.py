"""Add a class to a single-label model: a new row of the last layer, fitted to images of this class and others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import metrics
from sightline.api.class_extension import MIN_IMAGES, REFERENCE_SPLIT, Extension, embed_new, join_labeled
from sightline.api.classifier import Classifier
from sightline.callbacks import Callback, Progress
from sightline.data.types import Subset
from sightline.errors import DataError, ModelError, UsageError, list_some, plural, suggest
from sightline.evaluation.scoring import compute_evaluation
from sightline.export.extend_head import Head, read_head, replace_head
from sightline.inference import runner
from sightline.inference.bundle import Bundle
from sightline.inference.embeddings import ADDED_CLASS, Embeddings
from sightline.inference.inputs import InputItem
from sightline.seeding import make_generator
from sightline.training.new_class import fit_new_class

MAX_OTHERS = 2000  # limit on images of the other classes that the row is fitted to
MAX_NAMES = 5  # limit on classes named in a message


@dataclass(frozen=True, slots=True)
class _Others:
    """Images of the earlier classes: features to fit to, and features [N, F] with labels [N] of `split` to evaluate.

    `paths` [N] and `groups`, by path, belong to the images to evaluate.
    """

    features: NDArray[np.float32]
    split: str | None
    split_features: NDArray[np.float32]
    split_labels: NDArray[np.int32]
    paths: tuple[str, ...]
    groups: Mapping[str, str] = field(default_factory=dict)


def append_row(
    classifier: Classifier,
    source: Bundle,
    label: str,
    items: Sequence[InputItem],
    reference: Iterable[Embeddings] | None,
    callback: Callback,
) -> Extension:
    """Return the bundle `source` of a model with one more row in its last layer, for the class `label` of `items`."""
    try:
        head = read_head(source.model)
    except ModelError as error:
        raise ModelError(f"No class can be added to {classifier.path}: {error}.") from error
    new, kept_items = embed_new(classifier, items, callback)
    if reference:
        others = _read_reference(reference, classifier, callback)
    else:
        others = _read_run(classifier, callback.on_progress)
    fit = fit_new_class(
        new.vectors, head.compute_logits(new.vectors), others.features, head.compute_logits(others.features)
    )
    new_head = head.append(fit.kernel, fit.bias)
    before, after = (_evaluate(h, source.manifest.classes, label, others) for h in (head, new_head))
    return Extension(
        replace_head(source.model, new_head),
        new_head.kernel[:, -1].tobytes() + new_head.bias[-1:].tobytes(),
        len(new_head.kernel) + 1,
        kept_items,
        lambda outputs: metrics.softmax(new_head.compute_logits(outputs.features)),
        fit.is_recalled,
        fit.folds,
        others.split,
        len(others.split_labels),
        0 if after is None else int((after.probabilities.argmax(1) == len(source.manifest.classes)).sum()),
        None if before is None else before.accuracy,
        None if after is None else after.accuracy,
        None if after is None else after.accuracy_interval,
        metrics={} if after is None or others.split is None else {others.split: after.summarize()},
    )


def _read_run(classifier: Classifier, progress: Progress) -> _Others:
    """Return features of images of the run: of the training split, and of the test split, else the validation split."""
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
        return _Others(features, None, features[:0], train.labels[:0], ())
    labeled = labeled_images.load(alternative=advice)
    outputs = runner.predict_outputs(classifier.predictor, labeled.subset, task="evaluating", progress=progress)
    subset = labeled.subset
    return _Others(features, labeled.split, outputs.features, subset.labels, subset.paths, labeled.groups)


def _read_reference(reference: Iterable[Embeddings], classifier: Classifier, callback: Callback) -> _Others:
    """Return the features of labeled images: two thirds of them to fit to, and one third to evaluate on.

    A message names the classes without images.
    """
    embeddings, names = join_labeled(classifier, reference)
    index = {label: k for k, label in enumerate(classifier.classes)}
    for path, label in zip(embeddings.paths, names, strict=True):
        if label not in index:
            raise DataError(
                f"The reference image {path} has the label {label!r}, which is not a class of the model."
                f"{suggest(label, index)}"
            )
    if missing := [label for label in classifier.classes if label not in names]:
        listed = list_some([*map(repr, missing)], MAX_NAMES)
        callback.on_message(
            f"warning: the reference has no image of {plural(len(missing), 'class', 'classes')} of the model "
            f"({listed}): images of {'it' if len(missing) == 1 else 'them'} may be predicted as the new class"
        )
    labels = np.array([index[label] for label in names], np.int32)
    is_held_out = _rank_in_class(labels) % 3 == 2
    if (~is_held_out).sum() < MIN_IMAGES:
        raise DataError(
            f"The reference has only {plural(len(labels), 'readable image')} to fit a class against: "
            "give more labeled images with --reference."
        )
    fitted = np.flatnonzero(~is_held_out)
    fitted = fitted[_choose_balanced(labels[fitted])]
    split = REFERENCE_SPLIT if is_held_out.any() else None
    paths = tuple(embeddings.paths[i] for i in np.flatnonzero(is_held_out))
    return _Others(embeddings.vectors[fitted], split, embeddings.vectors[is_held_out], labels[is_held_out], paths)


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


def _evaluate(head: Head, classes: tuple[str, ...], label: str, others: _Others) -> Any:
    """Return the evaluation of a head on the images of the earlier classes; None without any."""
    if not len(others.split_labels):
        return None
    all_classes = classes if head.kernel.shape[1] == len(classes) else (*classes, label)
    probabilities = metrics.softmax(head.compute_logits(others.split_features)).astype(np.float32)
    subset = Subset(others.split_features, np.arange(len(others.paths)), others.split_labels, others.paths)
    return compute_evaluation(all_classes, probabilities, subset, group_by_path=others.groups)
