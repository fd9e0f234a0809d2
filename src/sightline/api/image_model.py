"""`ImageModel`: a loaded model that predicts classes or masks of images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sightline.api import prediction_folder
from sightline.api.dataset import Dataset
from sightline.api.embedding_model import EmbeddingModel
from sightline.api.images import (
    PREDICTION_COLUMNS,
    ImageLike,
    explanation_row,
    list_items,
    prediction_row,
    to_class_indices,
    track_images,
)
from sightline.api.masks import check_tile, write_masks
from sightline.api.options import Settings
from sightline.api.record_list import RecordList
from sightline.callbacks import Callback
from sightline.data.indexing import Sources
from sightline.errors import DataError, UsageError, plural
from sightline.inference import stream
from sightline.inference.embeddings import Embeddings
from sightline.inference.inputs import InputItem
from sightline.inference.knn import KnnPredictor
from sightline.inference.masks import MaskPrediction, predict_masks
from sightline.inference.prediction_files import PredictionFiles
from sightline.inference.results import Prediction
from sightline.preprocessing import PreprocessingSpec
from sightline.progress import show_progress

if TYPE_CHECKING:  # imported by the method that needs it
    from sightline.explain.explanation import Explanation


class ImageModel(EmbeddingModel):
    """A loaded model and its predictions; for a bundle, no training framework is needed."""

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
        progress: bool = True,
        callback: Callback | None = None,
    ) -> RecordList[Prediction]:
        """Predict the class of each image.

        Args:
            images: One or more images: paths (of files, folders or globs), encoded bytes, binary files, Pillow
                images, or uint8 arrays [H, W] or [H, W, C] from 0 to 255 with 1, 3 (RGB) or 4 (RGBA) channels. An
                array [N, H, W, C] is N images, and an array [N, H, W] with W > 4 is N grayscale images.
            top: The number of classes in each prediction, the most probable ones first.
            knn: Classify by this number of nearest neighbors in `reference` instead of the model's own classes: a
                probability is then the fraction of their votes, weighted by similarity.
            reference: The labeled images of `knn`, or their embeddings: a file, or what `embed` returned.
            set: Limits on files and archives, the settings ``data.limits`` of the [reference](reference.md):
                ``{"data.limits.file_mb": 512}`` raises the limit on the size of an image file, in MiB.
            progress: Whether to show progress on standard error.
            callback: Receives the progress events in place of the display.

        Returns:
            One [`Prediction`][sightline.Prediction] for each image, in order. For a file that cannot be read, only
            its `error` is set. `to_frame` makes a DataFrame of them.

        Raises:
            UsageError: For anything that is not an image, e.g. an array of fractions.
            DataError: If `reference` has no labels, or its embeddings come from another model.

        Example:
            ```python
            predictions = clf.predict(["new.jpg", "photos/"])
            print(predictions[0].probability)
            ```
        """
        if (knn is None) != (reference is None):
            raise UsageError("knn and reference go together: give the number of neighbors and the reference images.")
        with show_progress(progress, callback) as display:
            model = self
            if knn is not None and reference is not None:
                model = self.with_neighbors(reference, knn=knn, set=set, callback=display)
            predictions = model.iter_predictions(images, top=top, set=set, callback=display)
            return RecordList(predictions, prediction_row, PREDICTION_COLUMNS)

    def iter_predictions(
        self,
        images: ImageLike | Iterable[ImageLike | InputItem],
        *,
        top: int = 5,
        set: Settings = (),
        callback: Callback | None = None,
    ) -> Iterator[Prediction]:
        """Yield each result of `predict` once it is ready, for any number of images: only a few are in memory at once.

        Args:
            images: As for `predict`; may be a generator.
            top: As for `predict`.
            set: As for `predict`.
            callback: Receives the progress events.

        Raises:
            UsageError: As `predict` does.
        """
        if top < 1:
            raise UsageError(f"top is the number of classes of each prediction, at least 1, not {top}.")
        items = list_items(images, self.preprocess.channels, set, callback)
        predictions = stream.predict(
            self.predictor, items, top=min(top, len(self.classes)), thresholds=self.thresholds,
            interpret=self.task.interpret,
        )  # fmt: skip
        return predictions if callback is None else self._report_predictions(predictions, images, set, callback)

    def _report_predictions(
        self, predictions: Iterator[Prediction], images: Any, settings: Settings, callback: Callback
    ) -> Iterator[Prediction]:
        yield from track_images(predictions, "predicting", images, self.preprocess.channels, settings, callback)
        if isinstance(self.predictor, KnnPredictor) and (count := self.predictor.count_own_images()):
            callback.on_message(
                f"{plural(count, 'image')} to predict {'is' if count == 1 else 'are'} among the reference images too, "
                "by their features: such an image votes for its own label, so its prediction does not show how well "
                "new images are classified."
            )

    def write_predictions(
        self,
        images: ImageLike | Iterable[ImageLike | InputItem],
        out: str | Path,
        *,
        top: int = 5,
        probabilities: bool = False,
        shard: str | None = None,
        rows_per_part: int | None = None,
        engine: str = "local",
        ray_address: str | None = None,
        set: Settings = (),
        progress: bool = True,
        callback: Callback | None = None,
    ) -> PredictionFiles:
        """Write predictions for any number of images to a folder of Parquet files; the work can be resumed and divided.

        Each file is a part: the predictions for a number of consecutive images. It is written atomically, so a process
        that is killed loses less than one part, and the same call continues where it stopped. Several processes may
        write to one folder at once, each with its own `shard`; the files do not depend on the number of processes.
        pandas, pyarrow, DuckDB and Spark read the folder as one table.

        Args:
            images: As for `predict`, in the same order each time; may be a generator. A folder is listed while its
                images are predicted.
            out: The folder to write, whose name ends with ``.parquet``; it may be at an address such as
                ``s3://bucket/labels.parquet``.
            top: The number of classes in each row, the most probable ones first.
            probabilities: Whether each row has the probabilities of all classes, in the order of `classes`.
            shard: ``"0/4"`` to ``"3/4"`` predict a quarter of the parts each; None predicts all.
            rows_per_part: The number of images in a part, rounded up to whole batches; None means 1,024.
            engine: ``"ray"`` predicts on the workers of a Ray cluster, which this process feeds, and writes the same
                files. `images` must then be paths or addresses; arrays are refused.
            ray_address: The cluster, as ``HOST:PORT``, or ``auto`` for the cluster on this machine; None uses
                ``RAY_ADDRESS``, or else starts one on this machine's cores.
            set: As for `predict`.
            progress: Whether to show progress on standard error.
            callback: Receives the progress in place of the display.

        Returns:
            The number of images, how many could not be read, and whether the parts of all shards are there.

        Raises:
            OutputError: If `out` is not such a folder, or was written by another model or with other options.
            DataError: If an existing part contains images other than those at its place in `images`.
            HostError: If there is no Ray cluster, or a worker does not see the images.

        Example:
            ```python
            clf.write_predictions("photos/", "labels.parquet")
            ```
        """
        with show_progress(progress, callback) as display:
            return prediction_folder.write_predictions(
                self, images, out, display, top=top, probabilities=probabilities, shard=shard,
                rows_per_part=rows_per_part, settings=set, engine=engine, ray_address=ray_address,
            )  # fmt: skip

    def predict_proba(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        set: Settings = (),
        progress: bool = True,
        callback: Callback | None = None,
    ) -> NDArray[np.float32]:
        """Return the probabilities of all classes, as scikit-learn's classifiers do.

        Args:
            images: As for `predict`.
            set: As for `predict`.
            progress: As for `predict`.
            callback: As for `predict`.

        Returns:
            float32 [N, K], in the order of `classes`. Each row sums to 1, unless images may have several labels: then
            each class has its own probability.

        Raises:
            DataError: If an image cannot be read; `predict` states its error instead.
            UsageError: For anything that is not an image.
        """
        column = {label: k for k, label in enumerate(self.classes)}
        rows = []
        with show_progress(progress, callback) as display:
            items = list_items(images, self.preprocess.channels, set, display)
            predictions = stream.predict(self.predictor, items, top=len(column), interpret=self.task.interpret)
            for prediction in self._report_predictions(predictions, images, set, display):
                if prediction.error is not None:
                    raise DataError(f"{prediction.path} cannot be classified: {prediction.error}.")
                row = np.zeros(len(column), np.float32)
                for candidate in prediction.top:
                    row[column[candidate.label]] = candidate.probability
                rows.append(row)
        return np.stack(rows) if rows else np.zeros((0, len(column)), np.float32)

    def score(self, images: ImageLike | Iterable[ImageLike], y: Sequence[Any] | NDArray[Any]) -> float:
        """Return the accuracy on labeled images, as scikit-learn's classifiers do.

        The predicted class is the most probable one. [`evaluate`][sightline.Classifier.evaluate] reports an interval
        and much more.

        Args:
            images: As for `predict`.
            y: N labels: names of classes; for a model whose classes are numbers, also integers.

        Returns:
            The fraction of images whose predicted class is their label, in [0, 1].

        Raises:
            DataError: If the labels do not fit the images or the classes, or an image cannot be read.
            UsageError: If images have several labels, or masks.
        """
        if self.task.targets.allows_several:
            raise UsageError("Accuracy has no single meaning for images with several labels or masks: use evaluate.")
        predicted = self.predict_proba(images).argmax(1)
        labels = to_class_indices(y, self.classes, len(predicted))
        return float(np.mean(predicted == labels))

    def predict_masks(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        out: str | Path | None = None,
        tile: float | None = None,
        set: Settings = (),
        progress: bool = True,
        callback: Callback | None = None,
    ) -> RecordList[MaskPrediction]:
        """Predict the class of each pixel, with a model of ``model.task="segmentation"``.

        Args:
            images: As for `predict`.
            out: A folder for two files per image: ``<name>.png`` is the mask, an indexed PNG whose values are positions
                in `classes`; ``<name>.overlay.png`` shows its colors over the image, with at most 4096 pixels on the
                longer side. Only files that Sightline wrote are replaced.
            tile: Predict images of any size in overlapping tiles of the network's input size, cut from the image at
                this scale: 1 is its full resolution, 0 resizes the whole image instead. None uses the ``input.tile`` of
                the training, by default 0.
            set: As for `predict`.
            progress: As for `predict`.
            callback: As for `predict`.

        Returns:
            One mask for each image, in order: `mask` is uint8 [H, W] at the size of the image, `areas` the fraction of
            its pixels in each class, `quality` the expected IoU, and `decision` the decision of a threshold on it;
            with `out`, `file` is the name of its file there.
            For a file that cannot be read, only its `error` is set.

        Raises:
            UsageError: If the model predicts no masks, or `tile` is not from 0 to 16.
            OutputError: If `out` cannot be written, or contains a file that would be replaced.

        Example:
            ```python
            masks = clf.predict_masks("street.jpg", out="masks")
            print(masks[0].mask.shape, masks[0].areas)
            ```
        """
        with show_progress(progress, callback) as display:
            masks = self.iter_masks(images, out=out, tile=tile, set=set, callback=display)
            return RecordList(masks, MaskPrediction.to_dict)

    def iter_masks(
        self,
        images: ImageLike | Iterable[ImageLike | InputItem],
        *,
        out: str | Path | None = None,
        tile: float | None = None,
        set: Settings = (),
        callback: Callback | None = None,
    ) -> Iterator[MaskPrediction]:
        """Yield each mask of `predict_masks` once it is ready, for any number of images: few are in memory at once.

        Args:
            images: As for `predict`; may be a generator.
            out: As for `predict_masks`.
            tile: As for `predict_masks`.
            set: As for `predict`.
            callback: Receives the progress events.
        """
        if not self.task.targets.are_masks:
            raise UsageError("This model classifies whole images: masks need one with model.task=segmentation.")
        scale = self.tile if tile is None else check_tile(tile)
        items = list_items(images, self.preprocess.channels, set, callback)
        if out is None:
            masks = predict_masks(self.predictor, items, scale, self.thresholds)
        else:
            masks = write_masks(self.predictor, items, Path(out), scale, self.thresholds)
        return track_images(masks, "predicting", images, self.preprocess.channels, set, callback)

    def explain(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        method: str | None = None,
        label: str | None = None,
        out: str | Path | None = None,
        seed: int = 0,
        set: Settings = (),
        progress: bool = True,
        callback: Callback | None = None,
    ) -> RecordList[Explanation]:
        """Compute heat maps of the evidence for a class.

        Args:
            images: As for `predict`.
            method: gradcam (Selvaraju et al., 2017; for masks Vinogradova et al., 2020) or occlusion (Zeiler and
                Fergus, 2014); except for masks also gradcam++ (Chattopadhay et al., 2018) or rise (Petsiuk et al.,
                2018). By default gradcam if it can be computed, else occlusion.
            label: The class to explain; by default the predicted one, or for a mask the class of the most pixels.
            out: A folder to write a figure for each image to.
            seed: The seed of random masks and positions.
            set: As for `predict`.
            progress: Whether to show progress on standard error.
            callback: Receives the progress events in place of the display.

        Returns:
            One explanation for each image: `heat` is float32 [H, W] in [0, 1], at the size of the model's input,
            `region` its hottest region, and `faithfulness` how much masking that region lowers the probability.

        Raises:
            UsageError: If there is no such method or class, or Grad-CAM cannot be computed from the model.
            OutputError: If `out` cannot be written.
        """
        from sightline.api.explanation import explain

        with show_progress(progress, callback) as display:
            items = list(list_items(images, self.preprocess.channels, set, display))
            predictor = self.explanation_predictor(method, display)
            explanations = explain(
                self, predictor, items, method=method, label=label, out=None if out is None else Path(out), seed=seed,
                progress=display.on_progress,
            )  # fmt: skip
            return RecordList(explanations, explanation_row)
