"""`Evaluation`: metrics with intervals, calibration, abstention, OOD detection, errors and slices of one model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.api import owned_png
from sightline.api.classifier import Classifier
from sightline.api.label_issues import LabelCheck, find_label_issues
from sightline.api.ood_evaluation import DEFAULT_ALLOWED, AllowedImages, OutputReader, evaluate_ood, index_ood_images
from sightline.api.record_list import RecordList, format_html_table, format_text_table
from sightline.api.report_writer import refresh_report, save_evaluation
from sightline.api.stored_thresholds import check_not_in_run, merge_configured
from sightline.callbacks import Progress
from sightline.data.indexing import Sources
from sightline.data.label_patch import hold_patch, read_entries
from sightline.data.types import OUT_OF_FOLD, LabeledSubset, Split
from sightline.errors import DataError, UsageError, plural
from sightline.evaluation import label_issues as issues
from sightline.evaluation import ood
from sightline.evaluation.label_issues import LabelIssueCount
from sightline.evaluation.multi_label import MultiLabelReport, MultiLabelResult, list_predictions
from sightline.evaluation.report import EvaluationReport
from sightline.evaluation.results import EvaluationResult, Metric, TaskReport, TaskResult
from sightline.evaluation.segmentation import SegmentationResult, list_image_metrics
from sightline.inference.results import ThresholdRequest, Thresholds
from sightline.inference.tta import TTA, VIEWS, TTAPredictor
from sightline.report import plotting, run_plots
from sightline.report.plotting import RenderedFigure
from sightline.runs import run_images
from sightline.runs.labeled_images import LabeledImages
from sightline.tasks.protocol import EvaluationInputs


class Evaluation:
    """What [`Classifier.evaluate`][sightline.Classifier.evaluate] measured on labeled images.

    In a notebook it is shown as a table of metrics.

    Attributes:
        result: The metrics with the probabilities and labels that they were computed from.
        report: All analyses: calibration, abstention, slices, errors.
        label_issues: The likely label errors, the most likely first; None if they were not searched for.
        unchecked_classes: The classes with too few images to check their labels; None if none were checked.
        tta_views: The number of views of each image that its prediction averages.
    """

    def __init__(self, report: TaskReport, label_check: LabelCheck | None, tta_views: int) -> None:
        self.report = report
        self.tta_views = tta_views
        self.result: TaskResult = report.evaluation
        self.label_issues = None if label_check is None else RecordList(label_check.issues, asdict)
        self.unchecked_classes = None if label_check is None else label_check.unchecked_classes

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """The metrics by name, such as ``accuracy``, ``macro_f1``, ``auroc`` and ``log_loss``.

        Each has a `value` and its 95% `interval`. A value that cannot be computed is None, and its `note` says why.
        """
        result = self.result
        if isinstance(result, SegmentationResult):  # that of pixels, of which there may be none
            return {"accuracy": result.metrics["pixel_accuracy"], **result.metrics}
        return {"accuracy": Metric(result.accuracy, result.accuracy_interval), **result.metrics}

    @property
    def accuracy(self) -> float | None:
        """The fraction of images whose most probable class is the true one, in [0, 1].

        With several labels per image, the fraction of correct decisions, one for each image and class. For masks, the
        fraction of pixels whose class is predicted; None if no pixel has a class.
        """
        return self.result.accuracy

    @property
    def split(self) -> str:
        """The evaluated split: train, validation or test; ``out-of-fold`` with folds, ``other`` without splits."""
        return self.report.split

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of `confusion` and of all probabilities."""
        return self.result.classes

    @property
    def confusion(self) -> NDArray[np.int64]:
        """The number of images by true class (rows) and predicted class (columns), int64 [K, K].

        Raises `UsageError` for a multi-label classifier, which has none.
        """
        return self._single_label_result.confusion

    @property
    def label_issue_counts(self) -> tuple[LabelIssueCount, ...] | None:
        """How many labels of each class are probably missing and how many probably wrong, highest counts first.

        None if they were not searched for, or if each image has one label.
        """
        if self.label_issues is None or not isinstance(self.result, MultiLabelResult):
            return None
        return issues.count_label_issues((issue.label, issue.suggested_label) for issue in self.label_issues)

    @property
    def _single_label_result(self) -> EvaluationResult:
        if isinstance(self.result, EvaluationResult):
            return self.result
        if isinstance(self.result, SegmentationResult):
            raise UsageError("The confusion of the pixels of each image is in `result.confusions`.")
        raise UsageError(
            "Images with several labels have no confusion matrix: see `report.errors.confused_pairs` and "
            "`result.per_class`."
        )

    @property
    def thresholds(self) -> Thresholds | None:
        """The thresholds by which the model abstains; None if none were fitted."""
        return self.report.thresholds

    @property
    def targets_met(self) -> bool:
        """Whether there are thresholds that reach all requested targets."""
        if isinstance(self.report, MultiLabelReport):
            return not self.report.unreached
        threshold = self.report.threshold
        binary = self.report.binary if isinstance(self.report, EvaluationReport) else None
        points = () if binary is None else binary.operating_points
        missed = threshold is not None and threshold.confidence is None
        return not missed and all(point.threshold is not None for point in points)

    @property
    def predictions(self) -> RecordList[dict[str, Any]]:
        """The path, true class, predicted class and its probability of each image, in the order of evaluation."""
        result = self.result
        if isinstance(result, MultiLabelResult):
            return RecordList(list_predictions(result), dict)
        if isinstance(result, SegmentationResult):
            return RecordList(list_image_metrics(result, self.thresholds), dict)
        predicted = result.probabilities.argmax(1)
        rows = zip(result.paths, result.labels.tolist(), predicted.tolist(), strict=True)
        return RecordList(
            (
                {
                    "path": path,
                    "label": result.classes[label],
                    "predicted": result.classes[k],
                    "probability": float(result.probabilities[i, k]),
                    "correct": label == k,
                }
                for i, (path, label, k) in enumerate(rows)
            ),
            dict,
        )

    @property
    def errors(self) -> RecordList[dict[str, Any]]:
        """The wrong predictions, most confident first; for masks, all images with a class, worst first."""
        if isinstance(self.result, SegmentationResult):
            known = [row for row in self.predictions if row["iou"] is not None]
            return RecordList(sorted(known, key=lambda row: row["iou"]), dict)
        wrong = [row for row in self.predictions if not row["correct"]]
        return RecordList(sorted(wrong, key=lambda row: -(row["probability"] or 0)), dict)

    def to_frame(self) -> Any:
        """Return the predictions as a pandas DataFrame.

        Returns:
            A DataFrame with a row for each image and the columns path, label, predicted, probability and correct; for
            masks path, iou, pixel_accuracy, quality and, with a threshold, decision.

        Raises:
            MissingExtraError: If pandas is not installed; the message says how to install it.
        """
        return self.predictions.to_frame()

    def to_dict(self) -> dict[str, Any]:
        """Return what ``sightline evaluate --format json`` prints, as JSON-compatible values."""
        suspects, counts = self.label_issues, self.label_issue_counts
        return self.report.to_dict() | {
            "label_issues": None if suspects is None else [issue.to_patch() for issue in suspects],
            "label_issue_counts": None if counts is None else [asdict(count) for count in counts],
            "unchecked_classes": None if self.unchecked_classes is None else list(self.unchecked_classes),
            "tta_views": self.tta_views,
        }

    def plot_confusion(self, out: Path | str | None = None, *, percentages: bool = False) -> RenderedFigure:
        """Draw the confusion matrix, with true classes in rows.

        Args:
            out: A PNG file to write.
            percentages: Whether to show percentages of the true class instead of numbers of images.

        Returns:
            The figure, which a notebook shows.

        Raises:
            MissingExtraError: If matplotlib is not installed.
            OutputError: If `out` exists and is not such a figure, or cannot be written.
        """
        path = None if out is None else owned_png.check_output(out, "out")
        figure = run_plots.plot_confusion(self._single_label_result, self.split, percentages=percentages)
        if path is not None:
            owned_png.save_owned_png(path, figure.png)
        return figure

    def __repr__(self) -> str:
        rows = format_text_table(self._metric_rows())
        return f"Evaluation of {self._describe()}\n{rows}"

    def _describe(self) -> str:
        images = plural(self.result.count, "image")
        if self.split == OUT_OF_FOLD:
            return f"{images}, each by a model that was not trained on it"
        return images if self.split == "other" else f"the {self.split} split, {images}"

    def _metric_rows(self) -> list[dict[str, Any]]:
        return [
            {
                "metric": name,
                "value": metric.value,
                "95% interval": "" if (i := metric.interval) is None else f"{i.low:.4g} to {i.high:.4g}",
                "note": metric.note,
            }
            for name, metric in self.metrics.items()
            if name != "top_1"  # the accuracy again
        ]

    def _repr_html_(self) -> str:
        return format_html_table(self._metric_rows(), title=f"Evaluation of {self._describe()}")


def evaluate_fully(  # noqa: PLR0913  # keyword arguments, each an option of the command
    classifier: Classifier,
    sources: Sources | None,
    *,
    split: Split | None,
    threshold_request: ThresholdRequest,
    ood_sources: Sources | None,
    label_issues: Path | None,
    tta: TTA | None,
    allowed: AllowedImages,
    cache: bool,
    progress: Progress,
) -> Evaluation:
    """Evaluate a model with `evaluate_model`, with test-time augmentation if `tta`, and find label issues.

    `label_issues` is the patch file to add them to; images with a ``keep`` line in it are not reported. Raises
    `UsageError` for thresholds or label issues with `tta`.
    """
    if tta is not None and tta not in VIEWS:
        names = " or ".join(map(repr, VIEWS))
        raise UsageError(f"There is no test-time augmentation {tta!r}: use {names}, or leave it out.")
    if tta and (label_issues is not None or threshold_request):
        raise UsageError(
            "--tta cannot be combined with thresholds or --find-label-issues, which are computed from single images: "
            "leave it out."
        )
    with ExitStack() as stack:
        if label_issues is not None:
            if "label-issues" not in classifier.task.sections:
                raise UsageError(
                    f"--find-label-issues checks the labels of whole images, not those of {classifier.task.name}: "
                    "leave it out."
                )
            issues.check_packages()  # before the evaluation, not after it
            label_issues = stack.enter_context(hold_patch(label_issues))
            read_entries(label_issues)  # raises now if it is no patch
        report = evaluate_model(
            classifier.with_tta(tta) if tta else classifier, sources, split=split, threshold_request=threshold_request,
            ood_sources=ood_sources, allowed=allowed, cache=cache, progress=progress,
        )  # fmt: skip
        check = None
        if label_issues is not None:
            check = find_label_issues(
                classifier, label_issues, allow_missing=allowed.missing, cache=cache, progress=progress
            )
    return Evaluation(report, check, VIEWS[tta] if tta else 1)


def evaluate_model(
    classifier: Classifier,
    sources: Sources | LabeledImages | None,
    *,
    split: Split | None,
    threshold_request: ThresholdRequest,
    ood_sources: Sources | None = None,
    allowed: AllowedImages = DEFAULT_ALLOWED,
    cache: bool = True,
    progress: Progress,
) -> TaskReport:
    """Evaluate a classifier, and how far its predictions can be trusted, as `Classifier.evaluate` does.

    `threshold_request` thresholds are fitted on the validation split: the run's or, for a bundle, zip or file, which
    has no images, that of `sources`. They are saved in the run, or in the bundle, zip or file, and evaluated on the
    other images. `ood_sources` are out-of-distribution images, of which at most a thousand are used. If a complete
    split of the run's own images is evaluated, metrics and figures are saved in the run.

    Raises `DataError` if thresholds are requested without validation images, `MissingImagesError` if some of the run's
    own images are missing and `allowed` does not allow it, `ModelError` if the run is being trained or was trained
    further since the model was loaded, and `UsageError` if thresholds cannot be saved (see
    `LoadedModel.save_thresholds`).
    """
    fits_thresholds = bool(threshold_request)
    thresholds = None if threshold_request.reset else classifier.thresholds
    threshold_request = merge_configured(classifier.run, threshold_request)
    positive = threshold_request.positive or _find_positive(classifier, thresholds)
    threshold_request = replace(threshold_request, positive=positive)
    classifier.task.check_request(threshold_request, classifier.classes)
    if ood_sources is not None and not classifier.task.supports_ood:
        raise UsageError(
            f"--ood measures how a classifier detects unusual images, which a model of {classifier.task.name} does not "
            "do: leave it out."
        )
    if fits_thresholds and classifier.run is None and classifier.path is not None:
        check_not_in_run(classifier.path)
    if ood_sources is not None and classifier.run is not None:  # its training images may be known
        ood.check_packages()
    ood_index = None if ood_sources is None else index_ood_images(ood_sources, progress)
    labeled_images = sources if isinstance(sources, LabeledImages) else classifier.labeled_images(sources, progress)
    if classifier.run is not None and labeled_images.is_own:  # its figures are redrawn
        plotting.check_packages()
        classifier.check_run_unchanged()  # now, not only after the evaluation
    # A run has validation images; for a bundle they are the validation split of the given sources.
    own_images = (
        labeled_images
        if labeled_images.is_own or classifier.run is None
        else classifier.labeled_images(progress=progress)
    )
    output_reader = OutputReader(classifier, own_images, allowed, progress, cache=cache)
    labeled, outputs = output_reader.load(labeled_images, split)
    split_name = labeled.split or "other"
    held_out = OUT_OF_FOLD if output_reader.is_folded else "validation"
    is_validation = split_name == "validation" or (classifier.run is None and split == "validation")
    validation_outputs = (
        outputs
        if is_validation
        else output_reader.collect_outputs("validation", strict=fits_thresholds or labeled_images.is_own)
    )
    if fits_thresholds:
        if validation_outputs is None:
            raise DataError(_no_validation_message(classifier))
        thresholds = classifier.task.fit_thresholds(
            classifier.classes, validation_outputs, threshold_request, thresholds
        )
    name = held_out if split_name == "validation" else split_name
    result: TaskReport = classifier.task.evaluate(
        EvaluationInputs(
            classifier.classes, outputs, labeled, name, validation_outputs, thresholds, threshold_request, held_out
        )
    )
    if ood_index is not None and isinstance(result, EvaluationReport | MultiLabelReport):
        ood_result = evaluate_ood(output_reader, outputs, result.thresholds, ood_index)
        result = replace(result, ood=ood_result)
    _save_results(classifier, result, labeled, save_thresholds=fits_thresholds)
    return result


def _find_positive(classifier: Classifier, thresholds: Thresholds | None) -> str:
    """Return the positive class of the saved threshold, else of the run or the bundle; "" if there is none."""
    if thresholds is not None and thresholds.positive is not None:
        return thresholds.positive
    if classifier.run is not None:
        return classifier.run.config.evaluation.positive_class
    return "" if classifier.manifest is None else str(classifier.manifest.data.get("positive", ""))


def _no_validation_message(classifier: Classifier) -> str:
    if classifier.run is None:
        return (
            "Thresholds are fitted on validation images, and a model without its run has none: give images with a "
            "validation split (folders validation/ and test/), none of which the model was trained on."
        )
    if run_images.is_in_memory(classifier.run):
        return (
            "Thresholds are fitted on validation images, and this run was trained on images in memory, which it does "
            "not store: give the same data again, as in clf.evaluate(data, target_precision=0.99)."
        )
    return (
        "Thresholds are fitted on validation images, and none are available for this run: restore its images, or train "
        "with split.validation above 0."
    )


def _save_results(classifier: Classifier, result: TaskReport, labeled: LabeledSubset, *, save_thresholds: bool) -> None:
    if save_thresholds and result.thresholds != classifier.thresholds:
        classifier.save_thresholds(result.thresholds)
    run = classifier.run
    if run is None:
        return
    if labeled.split is not None and labeled.missing is None and not isinstance(classifier.predictor, TTAPredictor):
        classifier.check_run_unchanged()
        save_evaluation(run, labeled.split, result, labeled.subset)
    elif save_thresholds:
        refresh_report(run)
