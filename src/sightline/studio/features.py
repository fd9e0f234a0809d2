"""`RunModel`: the model of a run, and the features of the run's images, computed in the background."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from sightline import jsonio
from sightline.api.classifier import Classifier
from sightline.api.run import Run
from sightline.callbacks import Progress
from sightline.data import feature_cache
from sightline.data.cache import release_pages
from sightline.data.recorded_images import map_groups
from sightline.data.types import SPLITS, Index, Split
from sightline.errors import ModelError
from sightline.evaluation import bootstrap
from sightline.evaluation.covariance import ROWS, iter_blocks
from sightline.evaluation.results import LabeledPredictions
from sightline.inference import bundle
from sightline.inference.bundle import Bundle
from sightline.inference.inputs import InputItem
from sightline.inference.nearest import NearestRows, normalize_rows
from sightline.inference.stream import compute_feature_size
from sightline.runs.folds import is_folded
from sightline.studio.background import BackgroundTask
from sightline.tasks.protocol import find_task

MAX_MEMORY_BYTES = 1 << 26  # larger features are kept in a file even while they are computed


class RunModel:
    """A run with its model, which is loaded on first use; methods may be called from any thread.

    Attributes:
        run: The run.
        index: Its images.
        splits: The splits of its images during training, by path and content.
        is_training: Which of them the model was trained on, bool [N].
        features: Their features.
        predicts_masks: Whether the model predicts the class of each pixel.
        is_folded: Whether the model was trained on all images, and evaluated out of fold instead of on a validation
            split.
    """

    def __init__(self, run: Run, index: Index) -> None:
        self.run, self.index = run, index
        self.predicts_masks = find_task(run.config.model.task).targets.are_masks
        self.is_folded = is_folded(run.config)
        self._lock = Lock()
        self.splits = {(row.path, row.sha256): row.split for row in run.directory.read_data() or ()}
        recorded = [self.splits.get((image.path, image.sha256)) for image in index.images]
        self.is_training = np.array([split == "train" for split in recorded], bool)
        self._positions = {index.images[i].path: i for i, split in enumerate(recorded) if split is not None}
        self.features = BackgroundFeatures(index, lambda: self.classifier)

    @cached_property
    def predictions(self) -> dict[Split, LabeledPredictions]:
        """The run's predictions for the images of each evaluated split."""
        predictions = {split: self.run.directory.read_predictions(split) for split in SPLITS}
        return {split: of_split for split, of_split in predictions.items() if of_split is not None}

    def find_recorded_split(self, split: str) -> str:
        """Return the split recorded for the images evaluated as `split`: with folds, all are training images."""
        return "train" if self.is_folded and split == "validation" else split

    def number_groups(self, split: Split) -> NDArray[np.int64] | None:
        """Return the group number of each predicted image of a split, from 0; None without ``split.group``."""
        rows, recorded = self.run.directory.read_data() or (), self.find_recorded_split(split)
        group_by_path = map_groups(row for row in rows if row.split == recorded)
        return bootstrap.number_groups(self.predictions[split].paths, group_by_path)

    @property
    def classifier(self) -> Classifier:
        """The model; accessing it raises `ModelError` if the run has none yet."""
        with self._lock:
            return self.run.classifier

    def read_bundle(self) -> Bundle:
        """Read and verify the bundle of the run; raise `ModelError` if it has none."""
        path = self.run.directory.bundle
        if path is None:
            raise ModelError(f"{self.run.path.name} has no bundle, so its model runs only in the studio.")
        return bundle.read(path)

    def find_positions(self, paths: Iterable[str]) -> list[int | None]:
        """Return the position of each path in the index; None if the image is missing or has changed since training."""
        return [self._positions.get(path) for path in paths]


class ImageFeatures(BackgroundTask):
    """Features of images, computed with `compute` once started, and the nearest images by these features."""

    def __init__(self, compute: Callable[[Progress], NDArray[np.float32]]) -> None:
        super().__init__("features", self._keep)
        self._compute = compute
        self._vectors: NDArray[np.float32] | None = None

    @property
    def vectors(self) -> NDArray[np.float32] | None:
        """The features, float32 [N, F], with a row of NaN for an unreadable image; None until they are complete."""
        return self._vectors

    def find_nearest(
        self, query: NDArray[np.float32], is_searched: NDArray[np.bool_], count: int
    ) -> list[tuple[int, float]]:
        """Return the positions of the images whose features are nearest to `query` [F], with the cosine similarity.

        `is_searched`, bool [N], selects the images to compare. Empty until the features are complete.
        """
        if self._vectors is None:
            return []
        nearest: NearestRows[int] = NearestRows(query[None], count)
        for block, rows in iter_blocks(self._vectors):
            positions = np.flatnonzero(is_searched[block] & np.isfinite(rows).all(1))
            nearest.add(normalize_rows(rows[positions]), (block.start + positions).tolist())
        return list(zip(nearest.keys[0], np.clip(nearest.similarities[0], -1, 1).tolist(), strict=True))

    def _keep(self, progress: Progress) -> None:
        vectors = self._compute(progress)
        release_pages(vectors)  # they were read for checksums
        self._vectors = vectors


class BackgroundFeatures(ImageFeatures):
    """The features of an index's images, computed by a model that is loaded when the task starts."""

    def __init__(self, index: Index, load_classifier: Callable[[], Classifier]) -> None:
        super().__init__(self._load)
        self._index, self._load_classifier = index, load_classifier

    def _load(self, progress: Progress) -> NDArray[np.float32]:
        progress("loading the model", 0, 0)
        classifier = self._load_classifier()
        progress("features", 0, len(self._index.images))
        provenance = [classifier.feature_model_id, [image.sha256 for image in self._index.images]]
        name = hashlib.sha256(jsonio.dumps(provenance).encode()).hexdigest()[:32]
        vectors = feature_cache.load_features(name)
        if vectors is None:
            shape = (len(self._index.images), compute_feature_size(classifier.predictor))
            vectors = feature_cache.allocate_features(shape, MAX_MEMORY_BYTES)
            with feature_cache.resumable_features(name, vectors) as (done, store):
                for start, rows in self._iter_rows(classifier, done):
                    vectors[start : start + len(rows)] = rows
                    store(start, start + len(rows))
                    if (start + len(rows)) % ROWS < len(rows):
                        release_pages(vectors)
                    progress("features", start + len(rows), len(vectors))
            feature_cache.save_features(name, vectors)
            cached = feature_cache.load_features(name)  # mapped from disk, so that they take no memory
            vectors = vectors if cached is None else cached
        progress("features", len(vectors), len(vectors))
        return vectors

    def _iter_rows(self, classifier: Classifier, start: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        images = list(enumerate(self._index.images))[start:]
        items = (InputItem(image.path, partial(self._index.read, i)) for i, image in images)
        for batch in classifier.iter_embeddings(items):
            yield start, batch.vectors
            start += len(batch)
