"""`Classifier`: a trained model in Python, with the same methods and results as the commands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sightline.api.dataset import Dataset, list_data
from sightline.api.images import ImageLike, prediction_row, split_images, to_class_indices
from sightline.api.loaded_model import LoadedModel
from sightline.api.options import Settings, parse_split, to_assignments
from sightline.api.record_list import RecordList, format_html_table
from sightline.callbacks import Callback
from sightline.data.indexing import Sources
from sightline.errors import DataError, ModelError, UsageError, plural
from sightline.inference import stream
from sightline.inference.results import Prediction
from sightline.inference.tta import FlipTTA
from sightline.preprocessing import PreprocessingSpec
from sightline.progress import show_progress

if TYPE_CHECKING:  # each is imported by the method that needs it
    from sightline.api.compression import CompressionResult
    from sightline.api.evaluation import Evaluation
    from sightline.api.export import ExportResult
    from sightline.explain.explanation import Explanation


class Classifier(LoadedModel):
    """A trained model that classifies images: `load` makes one of a run, a bundle or an exported file.

    Its methods are the commands of the same names, and their options those of the commands.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of all probabilities."""
        return self.predictor.classes

    @property
    def preprocess(self) -> PreprocessingSpec:
        """The preprocessing spec."""
        return self.predictor.preprocess

    def with_flip_tta(self) -> Classifier:
        """Return a classifier with flip test-time augmentation, at twice the cost."""
        flipped = Classifier(FlipTTA(self.predictor), self.run, self.manifest, self.path)
        flipped.thresholds, flipped.trained_on = self.thresholds, self.trained_on
        return flipped

    def predict(
        self, images: ImageLike | Iterable[ImageLike], *, top: int = 5, set: Settings = ()
    ) -> RecordList[Prediction]:
        """Return one `Prediction` per image, in order; `to_frame` turns them into a DataFrame.

        An image is a path (a file, a folder or a glob), encoded bytes, a uint8 array [H, W(, C)] or a Pillow image; an
        array [N, H, W, C] is N images. An unreadable image yields a prediction with only `error` set. `top` is the
        number of classes in each prediction; `set` may contain ``data.limits.file_mb``, the maximum file size in MiB.
        """
        return RecordList(self.iter_predictions(images, top=top, set=set), prediction_row)

    def iter_predictions(
        self, images: ImageLike | Iterable[ImageLike | stream.InputItem], *, top: int = 5, set: Settings = ()
    ) -> Iterator[Prediction]:
        """Yield the predictions of `predict` as they are ready, for any number of images: few are in memory at once."""
        if top < 1:
            raise UsageError(f"top is the number of classes of each prediction, at least 1, not {top}.")
        items = self._list_items(images, set)
        return stream.predict(self.predictor, items, top=min(top, len(self.classes)), thresholds=self.thresholds)

    def _list_items(
        self, images: ImageLike | Iterable[ImageLike | stream.InputItem], settings: Settings
    ) -> Iterator[stream.InputItem]:
        limits = stream.parse_file_limits(to_assignments(settings))
        return stream.make_items(split_images(images, self.preprocess.channels), limits)

    def predict_proba(self, images: ImageLike | Iterable[ImageLike], *, set: Settings = ()) -> NDArray[np.float32]:
        """Return the probabilities of all classes, float32 [N, K], in the order of `classes`; each row sums to 1.

        `images`: see `predict`. Raises `DataError` for an image that cannot be read, where `predict` states its error.
        """
        items = self._list_items(images, set)
        column = {label: k for k, label in enumerate(self.classes)}
        rows = []
        for prediction in stream.predict(self.predictor, items, top=len(column)):
            if prediction.error is not None:
                raise DataError(f"{prediction.path} cannot be classified: {prediction.error}.")
            row = np.zeros(len(column), np.float32)
            for candidate in prediction.top:
                row[column[candidate.label]] = candidate.probability
            rows.append(row)
        return np.stack(rows) if rows else np.zeros((0, len(column)), np.float32)

    def score(self, images: ImageLike | Iterable[ImageLike], y: Sequence[Any] | NDArray[Any]) -> float:
        """Return the accuracy in [0, 1] on `images` with the labels `y`, as scikit-learn's classifiers do.

        The predicted class is the most probable one. `y` holds class names; for a model whose classes are numbers, also
        integers. For an interval and everything else, see `evaluate`. Raises `DataError` for labels that do not fit.
        """
        labels = to_class_indices(y, self.classes)
        predicted = self.predict_proba(images).argmax(1)
        if len(labels) != len(predicted) or not len(labels):
            raise DataError(f"score expects a label for each image: got {len(predicted)} images, {len(labels)} labels.")
        return float(np.mean(predicted == labels))

    def explain(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        method: str | None = None,
        label: str | None = None,
        out: str | Path | None = None,
        seed: int = 0,
        set: Settings = (),
        progress: bool | None = None,
        callback: Callback | None = None,
    ) -> list[Explanation]:
        """Return heat maps of the evidence for `label`, by default the predicted class of each image.

        `method` is gradcam, gradcam++, occlusion or rise; with `out`, a folder, a figure per image is written there.
        For `set`, see `predict`; for `progress` and `callback`, see `train`.
        """
        from sightline.api.explanation import explain

        items = list(self._list_items(images, set))
        folder = None if out is None else Path(out)
        predictor = self.explanation_predictor(method)
        with show_progress(progress, callback) as display:
            return list(
                explain(
                    predictor, items, method=method, label=label, out=folder, seed=seed, progress=display.on_progress
                )
            )

    def evaluate(
        self,
        data: Dataset | Sources | None = None,
        *,
        split: str | None = None,
        target_precision: float | None = None,
        conservative: bool = True,
        positive: str | None = None,
        target_sensitivity: float | None = None,
        target_specificity: float | None = None,
        coverage: float | None = None,
        ood: Dataset | Sources | None = None,
        find_label_issues: str | Path | None = None,
        tta: Literal["flip"] | None = None,
        include_training: bool = False,
        allow_missing: bool = False,
        column: Settings | None = None,
        set: Settings = (),
        cache: bool = True,
        progress: bool | None = None,
        callback: Callback | None = None,
    ) -> Evaluation:
        """Evaluate the model on labeled images, and how far its predictions can be trusted.

        Without `data`: on the run's own images of `split` (default: test, else validation), split as in training; the
        metrics and figures are then saved in the run. With `data`: on its split `split`; if that is None, on its test
        split if it has splits, else on all images. Images that the model was trained or validated on, and near
        duplicates of them, are left out as far as they are known, unless `include_training`. A run on images in memory
        takes the data that it was trained on for its own.

        `target_precision` fits the confidence below which the model abstains, `coverage` conformal prediction sets,
        `target_sensitivity` or `target_specificity` the threshold of the `positive` of two classes: on validation
        images, and saved with the model, so that `predict` decides by them. `conservative` thresholds reach their
        target on new images with 95% confidence. `ood` are out-of-distribution images; `find_label_issues` is a
        patch file to write, with likely label errors of the run. `tta` averages over each image and its mirror image.
        For `progress` and `callback`, see `train`.

        Raises `MissingImagesError` if images of the run are missing or changed, unless `allow_missing`; `DataError` if
        there are no images to evaluate on, or no validation images to fit a threshold on; `UsageError` for options that
        do not fit each other or the classes.
        """
        from sightline.api.evaluation import AllowedImages, evaluate_fully
        from sightline.evaluation.report import ThresholdRequest

        if tta not in (None, "flip"):
            raise UsageError(f"There is no test-time augmentation {tta!r}: use 'flip', or leave it out.")
        request = ThresholdRequest(
            target_precision, coverage, conservative, positive or "", target_sensitivity, target_specificity
        )
        with show_progress(progress, callback) as display:
            return evaluate_fully(
                self, list_data(data, column, set),
                split=parse_split(split), threshold_request=request,
                ood_sources=list_data(ood),
                label_issues=None if find_label_issues is None else Path(find_label_issues), tta=tta == "flip",
                allowed=AllowedImages(include_training, allow_missing), cache=cache, progress=display.on_progress,
            )  # fmt: skip

    def export(
        self,
        out: str | Path | None = None,
        *,
        to: str = "onnx",
        precision: str = "float32",
        parity: Dataset | Sources | None = None,
        tolerance: float | None = None,
        min_agreement: float | None = None,
        column: Settings | None = None,
        set: Settings = (),
        progress: bool | None = None,
        callback: Callback | None = None,
    ) -> ExportResult:
        """Write the model to `out` in another format, load it in the runtime of that format and compare the two.

        `out` is a folder, or a ``.onnx`` or ``.zip`` file, by default ``exports/<format>`` in the run; `to` is a format
        that is registered (`register_exporter`): onnx, bundle, openvino, litert, saved_model, or that of an installed
        package; `precision` is float32, bfloat16, float16 or int8. They are compared on the run's validation split, or
        on the labeled images `parity`: probabilities may differ by `tolerance`, and a fraction `min_agreement` of the
        images must have the same class. For `progress` and `callback`, see `train`.

        Raises `ModelError` if the two differ by more: then nothing is written.
        """
        from sightline.api.export import export_model

        data = self.trained_on if parity is None else parity
        with show_progress(progress, callback) as display:
            exported = export_model(
                self.model_path, to, precision=precision, out=out,
                data=list_data(data, column, set), tolerance=tolerance, agreement=min_agreement,
                callback=display,
            )  # fmt: skip
        if not exported.accepted:
            raise ModelError(exported.describe_rejection())
        return exported

    def compress(
        self,
        data: Dataset | Sources | None = None,
        *,
        out: str | Path | None = None,
        max_drop: float = 0.0,
        max_size: str | None = None,
        max_latency: str | None = None,
        max_params: int | None = None,
        methods: str | Sequence[str] = "shrink-head,prune,distill,int8,float16",
        epochs: int | None = None,
        column: Settings | None = None,
        set: Settings = (),
        progress: bool | None = None,
        callback: Callback | None = None,
    ) -> CompressionResult:
        """Search for a smaller model that is no less accurate, and save each candidate as a bundle; the run stays.

        `max_drop` is the largest drop of the validation accuracy, in percentage points; 0 allows no significant one.
        `max_size` is such as ``"2MB"``, `max_latency` such as ``"5ms"`` for one image, `max_params` a number of
        parameters. `methods` are those to try, by default all; `epochs` are those of each fine-tuning. `data` are
        labeled images to use in place of the run's own. `out` is the folder of the search, by default ``compressed`` in
        the run; the same call continues an interrupted search there. For `progress` and `callback`, see `train`.

        The result has the `candidates`, and the `best` one that meets the budget, or None. Raises `ModelError` for a
        model without its run, which could not be trained further.
        """
        from sightline.api.compression import build_budget, compress

        methods = methods.split(",") if isinstance(methods, str) else methods
        data = self.trained_on if data is None else data
        with show_progress(progress, callback) as display:
            return compress(
                self.model_path, data=list_data(data, column, set), out=out,
                budget=build_budget(max_drop, max_size, max_latency, max_params),
                methods=[name.strip() for name in methods if name.strip()], epochs=epochs, callback=display,
            )  # fmt: skip

    def model_card(self) -> str:
        """Write a model card in Hugging Face format into the run's bundle, and return its text.

        Raises `ModelError` for a model without its run, and for a run without a bundle.
        """
        from sightline.api.model_card import write_model_card

        return write_model_card(self.model_path)[0]

    def __repr__(self) -> str:
        place = "" if self.path is None else f"{str(self.path)!r}, "
        return f"Classifier({place}{self._describe()})"

    def _describe(self) -> str:
        names = ", ".join(self.classes[:5]) + (", ..." if len(self.classes) > 5 else "")
        spec = self.preprocess
        size = f"{spec.height}x{spec.width}x{spec.channels}"
        return f"{plural(len(self.classes), 'class', 'classes')}: {names}; {size} images"

    def _repr_html_(self) -> str:
        rows = [{"property": name, "value": value} for name, value in self._properties().items()]
        return format_html_table(rows, title="Classifier" if self.path is None else str(self.path))

    def _properties(self) -> Mapping[str, str]:
        spec, thresholds = self.preprocess, self.thresholds
        stored = {} if self.manifest is None else {"model": self.manifest.model, "precision": self.manifest.precision}
        return {
            **stored,
            "classes": ", ".join(self.classes[:20]) + (", ..." if len(self.classes) > 20 else ""),
            "input": f"{spec.height}x{spec.width}x{spec.channels}, uint8",
            "abstains": "no" if thresholds is None else "yes, by thresholds of the validation split",
        }
