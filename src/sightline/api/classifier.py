"""`Classifier`: a trained model in Python, with the same methods and results as the commands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sightline.api.dataset import Dataset
from sightline.api.embedding_model import iter_labeled
from sightline.api.image_model import ImageModel
from sightline.api.images import ImageLike, list_data, list_items
from sightline.api.options import Settings, parse_split
from sightline.callbacks import Callback
from sightline.data.indexing import Sources
from sightline.errors import ModelError
from sightline.inference.embeddings import Embeddings
from sightline.inference.inputs import InputItem
from sightline.inference.tta import TTA
from sightline.progress import show_progress

if TYPE_CHECKING:  # each is imported by the method that needs it
    from sightline.api.added_class import AddedClass
    from sightline.api.compression_result import CompressionResult
    from sightline.api.evaluation import Evaluation
    from sightline.api.export import ExportResult
    from sightline.api.watching import WatchReport


class Classifier(ImageModel):
    """A trained model that classifies images.

    [`load`][sightline.load] creates one from a run, a bundle or an exported file; `Run.classifier` is another. The
    methods correspond to the commands of the same names and accept the same options.

    Attributes:
        path: The path that it was loaded from.
        thresholds: The fitted abstention thresholds, which `predict` applies; None before they are fitted.

    Example:
        ```python
        clf = sl.load("runs/a")
        print(clf.classes, clf.predict("new.jpg")[0].label)
        ```
    """

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
        target_recall: float | None = None,
        target_fnr: float | None = None,
        min_iou: float | None = None,
        reset_thresholds: bool = False,
        coverage: float | None = None,
        ood: Dataset | Sources | None = None,
        find_label_issues: str | Path | None = None,
        tta: TTA | None = None,
        include_training: bool = False,
        allow_missing: bool = False,
        column: Settings | None = None,
        set: Settings = (),
        cache: bool = True,
        progress: bool = True,
        callback: Callback | None = None,
    ) -> Evaluation:
        """Evaluate the model on labeled images, and measure how far its predictions can be trusted.

        Images that the model was trained or validated on, and near duplicates of them, are left out where known.

        Args:
            data: Labeled images. By default the run's own, split as in training; metrics and figures are then saved
                in the run.
            split: train, validation or test. By default test, else validation for a run's own images; for other
                `data`, their test split if they have splits, else all images.
            target_precision: Fit the confidence below which the model abstains, so that the precision of the remaining
                predictions reaches this, e.g. 0.99. With several labels per image, it abstains per class.
            conservative: Whether thresholds reach their targets on new images with 95% confidence, not only on the
                validation images.
            positive: The positive class of a model of two classes, e.g. ``"defect"``.
            target_sensitivity: Fit the threshold of the positive class that reaches this sensitivity.
            target_specificity: Fit the threshold of the positive class that reaches this specificity.
            target_recall: With several labels per image, fit the threshold of each class that reaches this recall.
            target_fnr: With several labels per image, fit conformal label sets that miss this fraction on average.
            min_iou: With masks, the minimum IoU of a correct mask for `target_precision`; 0.5 by default.
            reset_thresholds: Discard the targets of earlier evaluations; those of the run's settings apply again.
            coverage: Fit conformal prediction sets that contain the true class this often, e.g. 0.95.
            ood: Out-of-distribution images; the evaluation reports how well they are detected.
            find_label_issues: A patch file to add fixes of the run's labels that may be wrong to.
            tta: Average over several views of each image: ``"flip"`` uses it and its mirror image, ``"flip-shift"`` 6
                views, some of them slightly shifted. Each view costs as much as an image.
            include_training: Whether to keep images that the model was trained or validated on.
            allow_missing: Whether to evaluate the remaining images of a run if some are missing.
            column: The columns of a table, as in ``{"label": "breed"}``.
            set: Settings of how files and classes are read, as in ``{"data.class_level": 2}``.
            cache: Whether to keep decoded images on disk.
            progress: Whether to show progress on standard error.
            callback: Receives the progress events in place of the display.

        Returns:
            The evaluation. Thresholds are fitted on validation images and saved with the model, for `predict`.

        Raises:
            MissingImagesError: If images of the run are missing or changed.
            DataError: If there are no images to evaluate on, or no validation images to fit thresholds on.
            UsageError: If options do not fit each other or the classes.

        Example:
            ```python
            ev = clf.evaluate(coverage=0.9)
            print(ev.metrics["macro_f1"], ev.errors)
            ```
        """
        from sightline.api.model_evaluation import evaluate_fully
        from sightline.api.ood_evaluation import AllowedImages
        from sightline.inference.results import ThresholdRequest

        request = ThresholdRequest(
            target_precision, coverage, conservative, positive or "", target_sensitivity, target_specificity,
            target_recall, target_fnr, min_iou, reset_thresholds,
        )  # fmt: skip
        with show_progress(progress, callback) as display:
            return evaluate_fully(
                self, list_data(data, column, set),
                split=parse_split(split), threshold_request=request,
                ood_sources=list_data(ood),
                label_issues=None if find_label_issues is None else Path(find_label_issues), tta=tta,
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
        progress: bool = True,
        callback: Callback | None = None,
    ) -> ExportResult:
        """Write the model in another format, load the file in that format's runtime, and compare the two.

        Args:
            out: A folder, or a ``.onnx`` or ``.zip`` file; by default ``exports/<format>`` in the run.
            to: onnx, bundle, openvino, litert, saved_model, safetensors, or a format that was registered with
                [`register_exporter`][sightline.register_exporter].
            precision: float32, bfloat16, float16 or int8, if the format supports it.
            parity: Labeled images to compare on; by default the run's validation images, else its training images.
            tolerance: The largest allowed difference of any probability; by default the limit for the precision.
            min_agreement: The smallest fraction of images with the same class, in [0, 1]; by default the limit for the
                precision.
            column: The columns of a table, as in ``{"label": "breed"}``.
            set: Settings of how files and classes are read, as in ``{"data.class_level": 2}``.
            progress: Whether to show progress on standard error.
            callback: Receives the progress events in place of the display.

        Returns:
            The path of the file, and how far its probabilities are from the model's.

        Raises:
            ModelError: If the two differ by more than these limits; then nothing is written.
            UsageError: If there is no such format, or it does not support the precision.
            MissingExtraError: If a package that the format needs is not installed.

        Example:
            ```python
            exported = clf.export("model.onnx")
            print(exported.parity.max_difference)
            ```
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
        progress: bool = True,
        callback: Callback | None = None,
    ) -> CompressionResult:
        """Search for a smaller model that is no less accurate, and save each candidate as a bundle.

        Args:
            data: Labeled images to use in place of the run's own.
            out: The folder of the search, by default ``compressed`` in the run; the same call continues an
                interrupted search.
            max_drop: The largest drop in validation accuracy, or in the score of an image's labels or mask, plus its
                standard error, in percentage points; 0 allows no significant drop.
            max_size: The largest size of the ONNX file, e.g. ``"2MB"``.
            max_latency: The largest median time for one image, e.g. ``"5ms"``.
            max_params: The largest number of parameters.
            methods: The methods to try, in a list or separated by commas; by default all, for masks those that apply.
            epochs: The epochs of each fine-tuning; by default a quarter of the run's.
            column: The columns of a table, as in ``{"label": "breed"}``.
            set: Settings of how files and classes are read, as in ``{"data.class_level": 2}``.
            progress: Whether to show progress on standard error.
            callback: Receives the progress events in place of the display.

        Returns:
            The `candidates`, and the `best` one that meets the budget, or None.

        Raises:
            ModelError: For a model without its run, which cannot be trained further.
        """
        from sightline.api.compression import build_budget, compress, list_methods

        data = self.trained_on if data is None else data
        with show_progress(progress, callback) as display:
            return compress(
                self.model_path, data=list_data(data, column, set), out=out,
                budget=build_budget(max_drop, max_size, max_latency, max_params),
                methods=list_methods(methods), epochs=epochs, callback=display,
            )  # fmt: skip

    def add_class(
        self,
        name: str,
        images: ImageLike | Iterable[ImageLike | InputItem],
        *,
        reference: Dataset | Sources | Embeddings | None = None,
        out: str | Path | None = None,
        force: bool = False,
        set: Settings = (),
        progress: bool = True,
        callback: Callback | None = None,
    ) -> AddedClass:
        """Write a model with one more class, from a few images of it, in seconds.

        The last layer gains a row, a logistic regression of the new class against the others, whose logits do not
        change. With several labels per image, images with and without the new label vote on its probability; the
        probabilities of the other labels do not change.

        Args:
            name: The new class, which becomes the last one.
            images: At least two images of it, preferably five or more, as for `predict`.
            reference: Labeled images of the other classes, or embeddings; by default the images of the run. If images
                may have several labels, some of these may have the new one.
            out: The bundle to write: a folder, or a ``.zip`` or ``.onnx`` file; by default ``with-<name>`` in the run.
            force: Whether to replace a bundle at `out`.
            set: As for `predict`.
            progress: Whether to show progress on standard error.
            callback: Receives the progress events in place of the display.

        Returns:
            Where the bundle is, how many new images are recognized by a model that was fitted without them, and the
            accuracy of the other classes on the test split, or the threshold of the new label.

        Raises:
            UsageError: If the class already exists, or `reference` or `out` is required but missing.
            DataError: If too few images can be read, or `reference` does not fit, or images of the run are missing.
            ModelError: If the last layer of the model has no output for each class.
            OutputError: If `out` exists or cannot be written.

        Example:
            ```python
            added = clf.add_class("fox", "foxes/")
            print(added.recalled, "of", added.count, added.accuracy)
            sl.load(added.path).predict("new.jpg")
            ```
        """
        from sightline.api.added_class import add_class

        with show_progress(progress, callback) as display:
            return add_class(
                self, name, list(list_items(images, self.preprocess.channels, set, display)),
                reference=None if reference is None else iter_labeled(self, reference, set, display),
                out=None if out is None else Path(out), force=force, callback=display,
            )  # fmt: skip

    def watch(
        self,
        log: str | Path,
        *,
        reference: Dataset | Sources | None = None,
        level: float = 0.05,
        top: int = 10,
        figure: str | Path | None = None,
        set: Settings = (),
        progress: bool = True,
        callback: Callback | None = None,
    ) -> WatchReport:
        """Check whether the images that a server classified have drifted from the validation images.

        Args:
            log: The log that `sightline serve --log-features` writes; the server may still be running.
            reference: Labeled images that the model was not trained on, used for comparison instead of the sample of
                validation images in its bundle.
            level: The maximum probability of a false alarm, however often the log is checked.
            top: The number of images to label first.
            figure: A PNG file to plot the evidence for drift to.
            set: As for `predict`.
            progress: Whether to show progress on standard error.
            callback: Receives the progress events in place of the display.

        Returns:
            The report: `drift` with its evidence, the estimated `accuracy` (`mask_iou` for masks, `micro_f1` for
            several labels), and the images to label first.

        Raises:
            DataError: If the log is damaged, has no images, or comes from another model.
            ModelError: If the model has no sample of validation images, and there is no `reference`.
            UsageError: If `level` is not between 0 and 1, or `top` is negative.

        Example:
            ```python
            print(clf.watch("cats.log").drift.alarm)
            ```
        """
        from sightline.api.watching import watch

        with show_progress(progress, callback) as display:
            return watch(
                self, Path(log), reference=None if reference is None else self.wrap_labeled(reference, set),
                level=level, top=top, figure=None if figure is None else Path(figure), callback=display,
            )  # fmt: skip

    def model_card(self) -> str:
        """Write a model card in Hugging Face format into the run's bundle, and return its text.

        Raises:
            ModelError: For a model without its run, and for a run without a bundle.
        """
        from sightline.api.report_writer import write_model_card

        return write_model_card(self.model_path)[0]
