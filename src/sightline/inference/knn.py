"""Classify images by their nearest neighbors among labeled embeddings: no training, and any classes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

from sightline.data.targets import CLASS_TARGETS, LABEL_SETS, SEPARATOR, join_classes
from sightline.errors import DataError, UsageError
from sightline.inference.embeddings import Embeddings, regroup
from sightline.inference.nearest import NearestRows, normalize_rows
from sightline.inference.predictor import Outputs, OutputsPredictor, Predictor

TEMPERATURE = 0.07  # from Wu et al., 2018: when the similarity drops by 0.07, the vote drops to 1/e
SAME_IMAGE = 1 - 1e-6  # minimum similarity at which two images count as the same
MIN_PROBABILITY = 1e-7  # for a class without votes, so that its logit is finite


def are_label_sets(labels: Sequence[str]) -> bool:
    """Return whether labels are sets of classes: whether any of them names two or more classes, or none.

    >>> are_label_sets(["car", "car;tree"]), are_label_sets(["car", ""]), are_label_sets(["car", "tree;car", "a;"])
    (True, True, False)
    """
    return any(
        not label or (SEPARATOR in label and join_classes(LABEL_SETS.list_classes(label)) == label) for label in labels
    )


class KnnPredictor(OutputsPredictor):
    """A predictor that classifies an image by a weighted vote of the labels of the nearest reference images.

    The vote of a neighbor with cosine similarity s is exp(s / 0.07) (Wu et al., "Unsupervised feature learning via
    non-parametric instance discrimination", 2018), and the probability of a class is its fraction of the votes, which
    is not calibrated. A neighbor with several labels votes for each of them, and the probabilities of the classes are
    then independent of each other.

    Attributes:
        classes: The labels of the reference images, sorted; label sets are split into single labels.
        preprocess: How an image becomes pixels.
        unreadable: The reference images without an embedding: path and reason.
        has_several_labels: Whether an image may have any number of labels.
    """

    def __init__(
        self, predictor: Predictor, reference: Iterable[Embeddings], count: int, *, several_labels: bool | None = None
    ) -> None:
        """`reference` are labeled embeddings of `predictor`, `count` is the number of neighbors.

        `several_labels` is whether an image may have several labels; None decides by the labels of the reference.
        Raises `DataError` if there are no labels, `UsageError` if there are fewer images than `count`.
        """
        self._predictor, self._count = predictor, count
        self.preprocess = predictor.preprocess
        self.unreadable: list[tuple[str, str]] = []
        self._own_images: set[bytes] = set()  # hashes of the features of queries that are reference images
        self._rows: list[NDArray[np.float32]] = []
        labels: list[str] = []
        for batch in regroup(reference):
            texts = zip(batch.paths, batch.errors, strict=True)
            self.unreadable += [(path, error) for path, error in texts if error is not None]
            rows = batch.select(batch.is_valid)
            if missing := [path for path, label in zip(rows.paths, rows.labels, strict=True) if label is None]:
                raise DataError(
                    f"The reference image {missing[0]} has no label: give labeled images, or embeddings that "
                    "`sightline embed --labeled` wrote."
                )
            labels += [str(label) for label in rows.labels]
            self._rows.append(normalize_rows(rows.vectors))
        if not 1 <= count <= len(labels):
            raise UsageError(
                f"The number of neighbors must be between 1 and {len(labels)}, the number of reference images, not "
                f"{count}."
            )
        self.has_several_labels = are_label_sets(labels) if several_labels is None else several_labels
        targets = LABEL_SETS if self.has_several_labels else CLASS_TARGETS
        names = [targets.list_classes(label) for label in labels]
        self.classes = tuple(sorted({*chain.from_iterable(names)}))
        if not self.classes:
            raise DataError("The reference images have no labels, so they have no class to vote for.")
        index = {label: k for k, label in enumerate(self.classes)}
        votes = iter([tuple(index[name] for name in chosen) for chosen in names])
        self._votes = [list(islice(votes, len(rows))) for rows in self._rows]

    @property
    def sha256(self) -> str:
        """A hash of the reference and the number of neighbors: with the same model and hash, predictions are equal."""
        digest = hashlib.sha256(repr((self._count, self.classes)).encode(errors="surrogatepass"))
        for rows, votes in zip(self._rows, self._votes, strict=True):
            digest.update(np.ascontiguousarray(rows).data)
            digest.update(repr(votes).encode())
        return digest.hexdigest()

    def count_own_images(self) -> int:
        """Return how many different predicted images are also reference images, by their features."""
        return len(self._own_images)

    def outputs(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Return the fractions of the votes, their logits, and the features for uint8 pixels [N, H, W, C]."""
        features = self._predictor.outputs(pixels).features
        probabilities = self.vote(features)
        logits = np.log(np.maximum(probabilities, np.float32(MIN_PROBABILITY)))
        if self.has_several_labels:
            logits -= np.log(np.maximum(1 - probabilities, np.float32(MIN_PROBABILITY)))
        return Outputs(probabilities, logits, features)

    def vote(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the fractions of the votes, float32 [N, K], for features float32 [N, D]; NaN for NaN features."""
        nearest: NearestRows[tuple[int, ...]] = NearestRows(features, self._count)
        for rows, chosen in zip(self._rows, self._votes, strict=True):
            nearest.add(rows, chosen)
        votes = np.full((len(features), len(self.classes)), np.nan, np.float32)
        queries = np.ascontiguousarray(features)
        for query, row, similarities, neighbors in zip(queries, votes, nearest.similarities, nearest.keys, strict=True):
            if neighbors:
                if similarities[0] >= SAME_IMAGE:
                    self._own_images.add(hashlib.sha256(query.data).digest())
                weights = np.exp((similarities - similarities[0]).astype(np.float64) / TEMPERATURE)
                indices = np.fromiter(chain.from_iterable(neighbors), np.int64)
                fractions = np.repeat(weights / weights.sum(), [len(labels) for labels in neighbors])
                row[:] = np.minimum(np.bincount(indices, fractions, len(row)), 1)
        return votes
