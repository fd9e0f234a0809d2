"""`ImageModel`: a loaded model applied to images: it predicts classes, computes embeddings and finds similar images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from sightline.api import prediction_folder
from sightline.api.dataset import Dataset
from sightline.api.images import ImageLike, list_items, list_labeled_items, prediction_row, to_class_indices
from sightline.api.masks import MaskModel
from sightline.api.options import Settings
from sightline.api.record_list import RecordList
from sightline.callbacks import Callback
from sightline.data.indexing import Sources
from sightline.errors import DataError, UsageError
from sightline.inference import embedding_files, nearest, stream
from sightline.inference.embeddings import Embeddings, check_same_model, join_embeddings
from sightline.inference.knn import KnnPredictor
from sightline.inference.nearest import SimilarImage
from sightline.inference.prediction_files import PredictionFiles
from sightline.inference.results import Prediction
from sightline.preprocessing import PreprocessingSpec
from sightline.progress import show_progress


class ImageModel(MaskModel):
    """A loaded model and what it computes for images, without a training framework if it is a bundle."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of all probabilities."""
        return self.predictor.classes

    @property
    def preprocess(self) -> PreprocessingSpec:
        """The preprocessing spec: how an image becomes the uint8 pixels [H, W, C] of the model."""
        return self.predictor.preprocess

    def predict(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        top: int = 5,
        knn: int | None = None,
        reference: Dataset | Sources | Embeddings | None = None,
        set: Settings = (),
    ) -> RecordList[Prediction]:
        """Predict the class of each image.

        Args:
            images: One or more images: paths (of files, folders or globs), encoded bytes, binary files, Pillow
                images, or uint8 arrays [H, W] or [H, W, C] from 0 to 255 with 1, 3 (RGB) or 4 (RGBA) channels. An
                array [N, H, W, C] is N images.
            top: The number of classes in each prediction, the most probable ones first.
            knn: Classify by this number of nearest neighbors in `reference` instead of the model's own classes: a
                probability is then the fraction of their votes, weighted by similarity.
            reference: The labeled images of `knn`, or their embeddings: a file, or what `embed` returned.
            set: ``{"data.limits.file_mb": 512}`` raises the limit on the size of a file, in MiB.

        Returns:
            One [`Prediction`][sightline.Prediction] for each image, in order. For a file that cannot be read, only
            its `error` is set. `to_frame` makes a DataFrame of them.

        Raises:
            UsageError: For what is not an image, e.g. an array of fractions.
            DataError: If `reference` has no labels, or its embeddings are those of another model.

        Example:
            ```python
            predictions = clf.predict(["new.jpg", "photos/"])
            print(predictions[0].probability)
            ```
        """
        if (knn is None) != (reference is None):
            raise UsageError(
                "knn and reference go together: the number of neighbors, and the images that they are from."
            )
        model = self if knn is None or reference is None else self.with_neighbors(reference, knn=knn, set=set)
        return RecordList(model.iter_predictions(images, top=top, set=set), prediction_row)

    def iter_predictions(
        self, images: ImageLike | Iterable[ImageLike | stream.InputItem], *, top: int = 5, set: Settings = ()
    ) -> Iterator[Prediction]:
        """Yield what `predict` returns as it is ready, for any number of images: few of them are in memory at once.

        Args:
            images: As for `predict`; may be a generator.
            top: As for `predict`.
            set: As for `predict`.
        """
        if top < 1:
            raise UsageError(f"top is the number of classes of each prediction, at least 1, not {top}.")
        items = list_items(images, self.preprocess.channels, set)
        return stream.predict(
            self.predictor, items, top=min(top, len(self.classes)), thresholds=self.thresholds,
            interpret=self.task.interpret,
        )  # fmt: skip

    def write_predictions(
        self,
        images: ImageLike | Iterable[ImageLike | stream.InputItem],
        out: str | Path,
        *,
        top: int = 5,
        probabilities: bool = False,
        shard: str | None = None,
        rows_per_part: int | None = None,
        engine: str = "local",
        ray_address: str | None = None,
        set: Settings = (),
        progress: bool | None = None,
        callback: Callback | None = None,
    ) -> PredictionFiles:
        """Predict any number of images into a folder of Parquet files, which can be resumed and divided.

        Each file is a part: the predictions of a number of consecutive images. It is written atomically, so that a
        process that is killed at any time loses less than a part: the same call goes on where it stopped. Several
        processes may write parts of one folder at once, each with its `shard`; the files do not depend on their
        number. pandas, pyarrow, DuckDB and Spark read the folder as one table.

        Args:
            images: As for `predict`, in the same order each time; may be a generator. A folder is listed while its
                images are predicted.
            out: The folder to write, whose name ends with ``.parquet``; also at an address such as
                ``s3://bucket/labels.parquet``.
            top: The number of classes in each row, the most probable ones first.
            probabilities: Whether each row has the probabilities of all classes, in the order of `classes`.
            shard: ``"0/4"`` to ``"3/4"`` predict a fourth of the parts each; None predicts all.
            rows_per_part: The number of images of a part, rounded up to whole batches; None is 1,024.
            engine: ``"ray"`` predicts with the workers of a Ray cluster, which this process feeds, into the same files.
                They need the paths of `images`, or their addresses; arrays are refused.
            ray_address: The cluster, as ``HOST:PORT``, or ``auto`` for the one that runs on this machine; None uses
                ``RAY_ADDRESS``, or else starts one of this machine's cores.
            set: As for `predict`.
            progress: Whether to show the progress on standard error; None shows it in a terminal and in a notebook.
            callback: Receives the progress in place of the display.

        Returns:
            The numbers of images and of those that could not be read, and whether the parts of all shards are there.

        Raises:
            OutputError: If `out` is anything else, or was written by another model or with other options.
            DataError: If a part that exists holds other images than those at its place in `images`.
            HostError: If there is no Ray cluster, or a worker does not see the images.

        Example:
            ```python
            clf.write_predictions("photos/", "labels.parquet")
            ```
        """
        with show_progress(progress, callback) as display:
            return prediction_folder.write_predictions(
                self, images, out, display.on_progress, top=top, probabilities=probabilities, shard=shard,
                rows_per_part=rows_per_part, settings=set, engine=engine, ray_address=ray_address,
            )  # fmt: skip

    def predict_proba(self, images: ImageLike | Iterable[ImageLike], *, set: Settings = ()) -> NDArray[np.float32]:
        """Return the probabilities of all classes, as scikit-learn's classifiers do.

        Args:
            images: As for `predict`.
            set: As for `predict`.

        Returns:
            float32 [N, K], in the order of `classes`; each row sums to 1.

        Raises:
            DataError: If an image cannot be read; `predict` states its error instead.
            UsageError: For what is not an image.
        """
        items = list_items(images, self.preprocess.channels, set)
        column = {label: k for k, label in enumerate(self.classes)}
        rows = []
        for prediction in stream.predict(self.predictor, items, top=len(column), interpret=self.task.interpret):
            if prediction.error is not None:
                raise DataError(f"{prediction.path} cannot be classified: {prediction.error}.")
            row = np.zeros(len(column), np.float32)
            for candidate in prediction.top:
                row[column[candidate.label]] = candidate.probability
            rows.append(row)
        return np.stack(rows) if rows else np.zeros((0, len(column)), np.float32)

    def score(self, images: ImageLike | Iterable[ImageLike], y: Sequence[Any] | NDArray[Any]) -> float:
        """Return the accuracy on labeled images, as scikit-learn's classifiers do.

        The predicted class is the most probable one. [`evaluate`][sightline.Classifier.evaluate] has an interval and
        much more.

        Args:
            images: As for `predict`.
            y: N labels: names of classes; for a model whose classes are numbers, also integers.

        Returns:
            The fraction of images whose predicted class is their label, in [0, 1].

        Raises:
            DataError: If the labels do not fit the images or the classes.
        """
        if self.task.targets.allows_several:
            raise UsageError(
                "The accuracy of images with several labels, or with masks, has no one meaning: use evaluate."
            )
        predicted = self.predict_proba(images).argmax(1)
        labels = to_class_indices(y, self.classes, len(predicted))
        return float(np.mean(predicted == labels))

    def embed(
        self, images: ImageLike | Iterable[ImageLike] | Dataset, *, labeled: bool = False, set: Settings = ()
    ) -> Embeddings:
        """Compute the embedding of each image: the features that the last layer of the network classifies.

        Images that look alike to the model have embeddings in similar directions, so they serve to search, to cluster
        and to train other models on.

        Args:
            images: As for `predict`, or a [`Dataset`][sightline.Dataset], whose labels the result then has.
            labeled: Whether `images` are sources of labeled images, as for [`train`][sightline.train]: their labels
                become part of the result.
            set: As for `predict`.

        Returns:
            The embeddings, with a row for each image, in order. A file that cannot be read has a row of NaN, and its
            reason is in `errors`. `save` writes a file, and `to_frame` makes a DataFrame.

        Raises:
            UsageError: For what is not an image.

        Example:
            ```python
            embeddings = clf.embed("photos/")
            print(embeddings.vectors.shape, embeddings.paths[0])
            ```
        """
        batches = list(self.iter_embeddings(images, labeled=labeled, set=set))
        size = 0 if batches else stream.compute_feature_size(self.predictor)
        return join_embeddings(batches, size, self.feature_model_id)

    def iter_embeddings(
        self,
        images: ImageLike | Iterable[ImageLike | stream.InputItem] | Dataset,
        *,
        labeled: bool = False,
        set: Settings = (),
    ) -> Iterator[Embeddings]:
        """Yield what `embed` returns in batches, for any number of images: few of them are in memory at once.

        Args:
            images: As for `embed`; may be a generator.
            labeled: As for `embed`.
            set: As for `predict`.
        """
        if labeled or isinstance(images, Dataset):
            items = list_labeled_items(cast("Dataset | Sources", images), set)
        else:
            items = list_items(images, self.preprocess.channels, set)
        return stream.embed(self.predictor, items, self.feature_model_id)

    def similar(
        self,
        images: ImageLike | Iterable[ImageLike],
        data: ImageLike | Iterable[ImageLike] | Dataset | Embeddings,
        *,
        top: int = 5,
        set: Settings = (),
        progress: bool | None = None,
        callback: Callback | None = None,
    ) -> RecordList[SimilarImage]:
        """Find the images that are most similar to each image, by the cosine similarity of their embeddings.

        All images of `data` are compared, in parts, so that a million of them fit in memory. An image is not compared
        with itself, the file of the same path.

        Args:
            images: As for `predict`: one image or several.
            data: The images to search, as for `predict`; or their embeddings: a file that `sightline embed` or
                `Embeddings.save` wrote, or what `embed` returned.
            top: The number of similar images for each image.
            set: As for `predict`.
            progress: Whether to show messages on standard error, such as the number of images of `data` that cannot be
                read; None shows them in a terminal and in a notebook.
            callback: Receives the messages in place of the display.

        Returns:
            `top` rows for each image, the most similar one first: `image`, `rank`, `path` and `similarity`. For an
            image that cannot be read, one row with its `error`.

        Raises:
            DataError: If no image of `data` can be read, or its embeddings are those of another model.

        Example:
            ```python
            for row in clf.similar("new.jpg", "photos/", top=3):
                print(row.path, row.similarity)
            ```
        """
        if top < 1:
            raise UsageError(f"top is the number of similar images, at least 1, not {top}.")
        batches = self._iter_searched(data, set)
        queries = self.embed(images, set=set)
        with show_progress(progress, callback) as display:
            results = nearest.find_similar(queries, batches, top, display.on_message)
        return RecordList(results, SimilarImage.to_dict)

    def with_neighbors(self, reference: Dataset | Sources | Embeddings, *, knn: int = 5, set: Settings = ()) -> Self:
        """Return a classifier whose classes are the labels of `reference`, by a vote of the nearest images there.

        Nothing is trained, so a class may have five images. A vote is weighted by cosine similarity s as exp(s / 0.07)
        (Wu et al., 2018); the probabilities are fractions of the votes, and are not calibrated.

        Args:
            reference: Labeled images, or their embeddings: a file that `sightline embed --labeled` wrote, or what
                `embed` returned. Their embeddings are in memory.
            knn: The number of nearest images that vote.
            set: As for `predict`.

        Raises:
            DataError: If `reference` has no labels, or its embeddings are those of another model.
            UsageError: If it has fewer images than `knn`.

        Example:
            ```python
            clf.with_neighbors("labeled/", knn=5).predict("new.jpg")
            ```
        """
        model = type(self)(KnnPredictor(self.predictor, iter_labeled(self, reference, set), knn), path=self.path)
        model.feature_model_id = self.feature_model_id
        return model

    def _iter_searched(self, data: Any, settings: Settings) -> Iterator[Embeddings]:
        """Return the embeddings of `data`; raises `DataError` at once if they are those of another model."""
        if isinstance(data, Embeddings):
            check_same_model("data", data.model, self.feature_model_id)
            return iter([data])
        if _is_embeddings_path(data):
            return _iter_file(self, Path(data))
        if isinstance(data, Dataset):
            return self.iter_embeddings(data, set=settings)
        items = list_items(data, self.preprocess.channels, settings)
        return stream.embed(self.predictor, chain(stream.take_first(items), items), self.feature_model_id)


def iter_labeled(model: ImageModel, reference: Any, settings: Settings) -> Iterator[Embeddings]:
    """Return the embeddings of labeled images; raises `DataError` at once if they are those of another model."""
    if isinstance(reference, Embeddings):
        check_same_model("reference", reference.model, model.feature_model_id)
        return iter([reference])
    if _is_embeddings_path(reference):
        return _iter_file(model, Path(reference))
    return model.iter_embeddings(reference, labeled=True, set=settings)


def _iter_file(model: ImageModel, path: Path) -> Iterator[Embeddings]:
    file = embedding_files.open_file(path)
    check_same_model(str(path), file.model, model.feature_model_id)
    return file.iterate()


def _is_embeddings_path(value: Any) -> bool:
    return isinstance(value, str | Path) and embedding_files.has_embeddings(Path(value))
