"""`EmbeddingModel`: the features of a loaded model as embeddings, and the images and labels that are nearest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Self, cast

from sightline import _io
from sightline.api.dataset import Dataset
from sightline.api.images import ImageLike, list_items, list_labeled_items, track_images
from sightline.api.loaded_model import LoadedModel
from sightline.api.options import Settings
from sightline.api.record_list import RecordList
from sightline.callbacks import Callback, as_callback, track
from sightline.data.indexing import Sources
from sightline.errors import UsageError
from sightline.inference import embedding_files, nearest, stream
from sightline.inference.embeddings import Embeddings, check_same_model, join_embeddings
from sightline.inference.inputs import InputItem, take_first
from sightline.inference.knn import KnnPredictor
from sightline.inference.nearest import SimilarImage
from sightline.progress import show_progress


class EmbeddingModel(LoadedModel):
    """A loaded model whose features can be used to search, to cluster and to train other models."""

    def embed(
        self,
        images: ImageLike | Iterable[ImageLike] | Dataset,
        *,
        labeled: bool = False,
        set: Settings = (),
        progress: bool = True,
        callback: Callback | None = None,
    ) -> Embeddings:
        """Compute the embedding of each image: the features that the last layer of the network classifies.

        Images that look alike to the model have embeddings in similar directions, so they can be used to search, to
        cluster and to train other models.

        Args:
            images: As for `predict`, or a [`Dataset`][sightline.Dataset], whose labels the result keeps.
            labeled: Whether `images` are sources of labeled images, as for [`train`][sightline.train]: their labels
                become part of the result.
            set: As for `predict`.
            progress: As for `predict`.
            callback: As for `predict`.

        Returns:
            The embeddings, with a row for each image, in order. A file that cannot be read has a row of NaN, and the
            reason is in `errors`. `save` writes a file, and `to_frame` makes a DataFrame.

        Raises:
            UsageError: For anything that is not an image.

        Example:
            ```python
            embeddings = clf.embed("photos/")
            print(embeddings.vectors.shape, embeddings.paths[0])
            ```
        """
        with show_progress(progress, callback) as display:
            batches = list(self.iter_embeddings(images, labeled=labeled, set=set, callback=display))
        size = 0 if batches else stream.compute_feature_size(self.predictor)
        return join_embeddings(batches, size, self.feature_model_id)

    def iter_embeddings(
        self,
        images: ImageLike | Iterable[ImageLike | InputItem] | Dataset,
        *,
        labeled: bool = False,
        set: Settings = (),
        callback: Callback | None = None,
    ) -> Iterator[Embeddings]:
        """Yield what `embed` returns, in batches, for any number of images: only a few are in memory at once.

        Args:
            images: As for `embed`; may be a generator.
            labeled: As for `embed`.
            set: As for `predict`.
            callback: Receives the progress events.
        """
        if labeled or isinstance(images, Dataset):
            data = self.wrap_labeled(cast("Dataset | Sources", images), set)
            progress = as_callback(callback).on_progress
            labeled_items = list(list_labeled_items(data, progress))
            batches = stream.embed(self.predictor, labeled_items, self.feature_model_id)
            return track(batches, "embedding", progress, lambda: len(labeled_items), len)
        channels = self.predictor.preprocess.channels
        items = list_items(images, channels, set, callback)
        batches = stream.embed(self.predictor, chain(take_first(items), items), self.feature_model_id)
        return track_images(batches, "embedding", images, channels, set, callback, len)

    def similar(
        self,
        images: ImageLike | Iterable[ImageLike],
        data: ImageLike | Iterable[ImageLike] | Dataset | Embeddings,
        *,
        top: int = 5,
        set: Settings = (),
        progress: bool = True,
        callback: Callback | None = None,
    ) -> RecordList[SimilarImage]:
        """Find the images that are most similar to each image, by the cosine similarity of their embeddings.

        All images of `data` are compared, in parts, so that a million of them fit in memory. An image is not compared
        with itself, that is, with the file of the same path.

        Args:
            images: As for `predict`: one image or several.
            data: The images to search, as for `predict`; or their embeddings: a file that `sightline embed` or
                `Embeddings.save` wrote, or what `embed` returned.
            top: The number of similar images for each image.
            set: As for `predict`.
            progress: As for `predict`.
            callback: As for `predict`.

        Returns:
            `top` rows for each image, the most similar one first: `image`, `rank`, `path` and `similarity`. For an
            image that cannot be read, one row with its `error`.

        Raises:
            DataError: If no image of `data` can be read, or its embeddings come from another model.

        Example:
            ```python
            for row in clf.similar("new.jpg", "photos/", top=3):
                print(row.path, row.similarity)
            ```
        """
        if top < 1:
            raise UsageError(f"top is the number of similar images, at least 1, not {top}.")
        with show_progress(progress, callback) as display:
            batches = _read_embeddings(self, data, "data") or self.iter_embeddings(
                cast("Any", data), set=set, callback=display
            )
            queries = self.embed(images, set=set, progress=False)
            results = nearest.find_similar(queries, batches, top, display.on_message)
        return RecordList(results, SimilarImage.to_dict)

    def with_neighbors(
        self,
        reference: Dataset | Sources | Embeddings,
        *,
        knn: int = 5,
        set: Settings = (),
        progress: bool = True,
        callback: Callback | None = None,
    ) -> Self:
        """Return a classifier for the labels of `reference`, in which the nearest images vote.

        Nothing is trained, so five images of a class can be enough. The classifier exists in memory only: it cannot be
        exported. A vote is weighted by cosine similarity s as exp(s / 0.07) (Wu et al., 2018); the probabilities are
        fractions of the votes, and are not calibrated.

        If images of `reference` have several labels, or the model predicts several, each label has its own probability:
        a neighbor votes for all of its labels. A label is predicted with at least half of the votes.

        Args:
            reference: Labeled images, or their embeddings: a file that `sightline embed --labeled` wrote, or what
                `embed` returned. Their embeddings are kept in memory.
            knn: The number of nearest images that vote.
            set: As for `predict`.
            progress: As for `predict`.
            callback: As for `predict`.

        Raises:
            DataError: If `reference` has no labels, or its embeddings come from another model.
            UsageError: If it has fewer images than `knn`.

        Example:
            ```python
            clf.with_neighbors("labeled/", knn=5).predict("new.jpg")
            ```
        """
        with show_progress(progress, callback) as display:
            several = True if self.task.targets.allows_several and not self.task.targets.are_masks else None
            batches = _read_embeddings(self, reference, "reference")
            if batches is None:
                data = self.wrap_labeled(cast("Dataset | Sources", reference), set)
                batches = self.iter_embeddings(data, labeled=True, callback=display)
                several = several or data.read_index(display.on_progress).targets.allows_several
            predictor = KnnPredictor(self.predictor, batches, knn, several_labels=several)
            model = type(self)(predictor, path=self.path)
        model.feature_model_id = self.feature_model_id
        model.task_name = "multi_label" if predictor.has_several_labels else "single_label"
        return model


def iter_labeled(model: EmbeddingModel, reference: Any, settings: Settings, callback: Callback) -> Iterator[Embeddings]:
    """Return the embeddings of labeled images; raises `DataError` at once if they come from another model."""
    stored = _read_embeddings(model, reference, "reference")
    return stored or model.iter_embeddings(reference, labeled=True, set=settings, callback=callback)


def _read_embeddings(model: EmbeddingModel, value: Any, name: str) -> Iterator[Embeddings] | None:
    """Return the rows of embeddings or of their file, None for others; raises `DataError` like `iter_labeled`."""
    if isinstance(value, Embeddings):
        check_same_model(name, value.model, model.feature_model_id)
        return iter([value])
    if not (isinstance(value, str | Path) and embedding_files.has_embeddings(_io.expand_home(value))):
        return None
    file = embedding_files.open_file(_io.expand_home(value))
    check_same_model(str(value), file.model, model.feature_model_id)
    return file.iterate()
