"""What a new class adds to a bundle, and the images that it is created from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.api.classifier import Classifier
from sightline.callbacks import Callback
from sightline.errors import DataError, plural
from sightline.inference.embeddings import Embeddings, join_embeddings
from sightline.inference.inputs import InputItem
from sightline.inference.predictor import Outputs
from sightline.inference.results import Thresholds
from sightline.intervals import Interval

MIN_IMAGES = 2  # images of a new class: one to leave out, and one to fit to
REFERENCE_SPLIT = "reference"


@dataclass(frozen=True, slots=True)
class Extension:
    """A bundle's `graph` with one more class, and its evaluation; the metrics are those of `AddedClass`.

    `items` are the images that the new class was made from. `compute_probabilities` returns the probabilities of all
    classes, float32 [N, K + 1], from the outputs of the earlier model. `weights` are the bytes of the `parameters` that
    were added. `metrics` are the metrics of the splits, as stored in a manifest.
    """

    graph: bytes
    weights: bytes
    parameters: int
    items: Sequence[InputItem]
    compute_probabilities: Callable[[Outputs], NDArray[np.float32]]
    is_recalled: NDArray[np.bool_]
    folds: int
    split: str | None
    split_count: int
    taken: int
    accuracy_before: float | None = None
    accuracy: float | None = None
    accuracy_interval: Interval | None = None
    threshold: float | None = None
    thresholds: Thresholds | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)


def embed_new(
    classifier: Classifier, items: Sequence[InputItem], callback: Callback
) -> tuple[Embeddings, list[InputItem]]:
    """Return the embeddings of the new images and their items, without unreadable images and duplicates."""
    batches = list(classifier.iter_embeddings(items, callback=callback))
    embeddings = join_embeddings(batches, 0, classifier.feature_model_id)
    failed = [f"{p}: {e}" for p, e in zip(embeddings.paths, embeddings.errors, strict=True) if e is not None]
    valid = np.flatnonzero(embeddings.is_valid)
    first = np.sort(np.unique(embeddings.vectors[valid], axis=0, return_index=True)[1]) if len(valid) else valid
    positions = valid[first] if len(valid) else valid
    if len(positions) < len(valid):
        callback.on_message(f"{plural(len(valid) - len(positions), 'image')} left out as duplicates")
    if len(positions) < MIN_IMAGES:
        reason = f", e.g. {failed[0]}" if failed else ""
        raise DataError(
            f"A class needs at least {MIN_IMAGES} different images, preferably 5 or more, but there "
            f"{'is' if len(positions) == 1 else 'are'} {len(positions)} that can be read{reason}."
        )
    if failed:
        callback.on_message(f"{plural(len(failed), 'image')} cannot be read, e.g. {failed[0]}")
    return embeddings.select(positions), [items[i] for i in positions]


def join_labeled(classifier: Classifier, reference: Iterable[Embeddings]) -> tuple[Embeddings, list[str]]:
    """Return the embeddings of the readable reference images and their labels; raises `DataError` without a label."""
    batches = [batch.select(batch.is_valid) for batch in reference]
    embeddings = join_embeddings(batches, 0, classifier.feature_model_id)
    labels = [label for label in embeddings.labels if label is not None]
    if len(labels) < len(embeddings.labels):
        path = embeddings.paths[embeddings.labels.index(None)]
        raise DataError(
            f"The reference image {path} has no label: give labeled images, or `sightline embed --labeled`."
        )
    return embeddings, labels
