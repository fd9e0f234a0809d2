"""Add a label to a multi-label model, by votes of images with and without it; the other labels stay unchanged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sightline.api.class_extension import MIN_IMAGES, REFERENCE_SPLIT, Extension, embed_new, join_labeled
from sightline.api.classifier import Classifier
from sightline.callbacks import Callback
from sightline.data.targets import LABEL_SETS
from sightline.data.types import Subset
from sightline.errors import DataError, UsageError, plural, suggest
from sightline.evaluation.label_thresholds import DEFAULT_THRESHOLD, fit_f1
from sightline.export.extend_head import Votes
from sightline.export.extend_head import append_label as append_to_graph
from sightline.inference import runner
from sightline.inference.bundle import Bundle
from sightline.inference.embeddings import ADDED_CLASS, Embeddings
from sightline.inference.inputs import InputItem
from sightline.inference.knn import MIN_PROBABILITY, TEMPERATURE
from sightline.inference.label_votes import LabelVotes, find_copies
from sightline.inference.predictor import Outputs
from sightline.inference.results import Thresholds
from sightline.metrics import sigmoid
from sightline.seeding import make_generator

MAX_VOTES = 500  # maximum number of images with the label, and of images without it: 2.5 MB each with 1,280 features
KEPT_METRICS = ("count", "mean_average_precision", "macro_f1")  # means over the labels that were evaluated


@dataclass(frozen=True, slots=True)
class _Others:
    """Features: [N, F] of images without the label, [n, F] of some with it, and those of `split` to count predictions.

    Without a split, predictions are counted on the images without the label, each by the votes of the others.
    """

    without: NDArray[np.float32]
    having: NDArray[np.float32]
    split: str
    split_features: NDArray[np.float32] | None


def append_label(
    classifier: Classifier,
    source: Bundle,
    label: str,
    items: Sequence[InputItem],
    reference: Iterable[Embeddings] | None,
    callback: Callback,
) -> Extension:
    """Return the bundle `source` of a multi-label model with one more label, `label`, which `items` have."""
    new, kept_items = embed_new(classifier, items, callback)
    others = _read_reference(reference, classifier, label) if reference else _read_run(classifier, callback)
    having = np.concatenate([new.vectors, others.having[~find_copies(others.having, new.vectors)]])
    copies = find_copies(others.without, having)
    if copies.any():
        callback.on_message(
            f"{plural(int(copies.sum()), 'image')} without the label left out: "
            f"{'it is a copy of one' if copies.sum() == 1 else 'they are copies of images'} with it"
        )
    without = others.without[~copies]
    if len(without) < MIN_IMAGES:
        raise DataError(
            f"A label needs at least {MIN_IMAGES} images without it for comparison, but there are {len(without)}: "
            "give more labeled images with --reference."
        )
    having, without = (_choose(features, side) for features, side in ((having, "with"), (without, "without")))
    votes = LabelVotes(np.concatenate([having, without]), np.arange(len(having) + len(without)) < len(having))
    left_out = sigmoid(votes.leave_out().astype(np.float64))
    threshold = fit_f1(left_out, votes.is_present, balanced=True)
    if others.split_features is None:
        counted = left_out[~votes.is_present]
    else:
        unknown = others.split_features[~find_copies(others.split_features, votes.rows)]
        counted = sigmoid(votes.compute_logits(unknown).astype(np.float64))

    def compute_probabilities(outputs: Outputs) -> NDArray[np.float32]:
        added = sigmoid(votes.compute_logits(outputs.features).astype(np.float64))
        return np.concatenate([outputs.probabilities, added[:, None].astype(np.float32)], 1)

    return Extension(
        append_to_graph(source.model, Votes(votes.rows, votes.biases, votes.is_present, TEMPERATURE, MIN_PROBABILITY)),
        votes.rows.tobytes() + votes.biases.tobytes(),
        votes.rows.size + votes.biases.size,
        kept_items,
        compute_probabilities,
        _find_recalled(left_out, votes.is_present),
        len(having),
        others.split,
        len(counted),
        int((counted >= threshold).sum()),
        threshold=threshold,
        thresholds=_extend_thresholds(classifier.thresholds, classifier.classes, label, threshold),
        metrics={
            split: {key: values[key] for key in KEPT_METRICS if key in values}
            | {"untested_classes": [*values.get("untested_classes", []), label]}
            for split, values in source.manifest.metrics.items()
        },
    )


def _choose(features: NDArray[np.float32], side: str) -> NDArray[np.float32]:
    """Return at most `MAX_VOTES` of N rows, chosen at random, in their order."""
    chosen = make_generator(0, ADDED_CLASS, side).permutation(len(features))[:MAX_VOTES]
    return features[np.sort(chosen)]


def _find_recalled(left_out: NDArray[np.float64], is_present: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which images with the label are predicted to have it, bool [n], by votes and a threshold without them."""
    recalled = []
    for position in np.flatnonzero(is_present):
        is_other = np.arange(len(left_out)) != position
        threshold = fit_f1(left_out[is_other], is_present[is_other], balanced=True)
        recalled.append(left_out[position] >= threshold)
    return np.array(recalled, bool)


def _extend_thresholds(old: Thresholds | None, classes: Sequence[str], label: str, threshold: float) -> Thresholds:
    """Return the thresholds with one for the new label, on which the model does not abstain.

    The limit of the joint energy stays: another label lowers the energy, so it makes no image unusual. That of the
    distance is left out, because images with the new label may be far from the others. So are label sets, because one
    threshold for all labels no longer reaches their false-negative rate.
    """
    old = old or Thresholds(0, ood="joint_energy")
    if old.ood == "distance":
        old = replace(old, ood="joint_energy", ood_limit=None, ood_space=None)
    labels = dict.fromkeys(classes, DEFAULT_THRESHOLD) if old.labels is None else dict(old.labels)
    absent = None if old.absent is None else {**old.absent, label: threshold}
    return replace(
        old, labels=labels | {label: threshold}, label_target=old.label_target or "f1", absent=absent, target_fnr=None,
        set_threshold=None,
    )  # fmt: skip


def _read_run(classifier: Classifier, callback: Callback) -> _Others:
    """Return features of images of the run: of the training split, and of the test split, else the validation split.

    These images were not labeled for the new label, so they count as images without it.
    """
    if classifier.run is None:
        raise UsageError("A model without its run has no images of its own: give labeled images with --reference.")
    labeled_images = classifier.labeled_images(progress=callback.on_progress)
    advice = "or give labeled images with --reference"
    train = labeled_images.load("train", alternative=advice).subset
    chosen = make_generator(0, ADDED_CLASS).permutation(len(train))[: 2 * MAX_VOTES]

    def compute_features(subset: Subset, task: str) -> NDArray[np.float32]:
        outputs = runner.predict_outputs(classifier.predictor, subset, task=task, progress=callback.on_progress)
        return outputs.features

    features = compute_features(train.select(np.sort(chosen)), "embedding")
    counts = {} if classifier.manifest is None else classifier.manifest.data.get("counts", {})
    if not counts.get("test") and not counts.get("validation"):
        return _Others(features, features[:0], "train", None)
    labeled = labeled_images.load(alternative=advice)
    return _Others(features, features[:0], str(labeled.split), compute_features(labeled.subset, "evaluating"))


def _read_reference(reference: Iterable[Embeddings], classifier: Classifier, label: str) -> _Others:
    """Return the features of labeled images: those that have the new label, and the others."""
    embeddings, labels = join_labeled(classifier, reference)
    known, having = {*classifier.classes, label}, []
    for path, text in zip(embeddings.paths, labels, strict=True):
        names = LABEL_SETS.list_classes(text)
        if unknown := sorted({*names} - known):
            raise DataError(
                f"The reference image {path} has the label {unknown[0]!r}, which is neither the new label nor one of "
                f"the model.{suggest(unknown[0], known)}"
            )
        having.append(label in names)
    is_present = np.array(having, bool)
    return _Others(embeddings.vectors[~is_present], embeddings.vectors[is_present], REFERENCE_SPLIT, None)
