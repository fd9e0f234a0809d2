"""`Evaluation`: metrics with intervals, calibration, abstention, OOD detection, errors and slices of one model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.api import owned_png
from sightline.api.argument_types import check_method_types
from sightline.api.label_issues import LabelCheck
from sightline.api.record_list import RecordList, format_html_table, format_text_table
from sightline.data.types import OUT_OF_FOLD
from sightline.errors import UsageError, plural
from sightline.evaluation import label_issues as issues
from sightline.evaluation.label_issues import LabelIssueCount
from sightline.evaluation.multi_label import MultiLabelReport, MultiLabelResult, list_predictions
from sightline.evaluation.report import EvaluationReport
from sightline.evaluation.results import EvaluationResult, Metric, TaskReport, TaskResult
from sightline.evaluation.segmentation import SegmentationResult, list_image_metrics
from sightline.inference.results import Thresholds
from sightline.report import run_plots
from sightline.report.plotting import RenderedFigure


@check_method_types
class Evaluation:
    """What [`Classifier.evaluate`][sightline.Classifier.evaluate] measured on labeled images.

    In a notebook it is shown as a table of metrics.

    Attributes:
        result: The metrics with the probabilities and labels that they were computed from.
        report: All analyses: calibration, abstention, slices, errors.
        label_issues: The labels that may be wrong, worst first; None if they were not searched for.
        unchecked_classes: The classes with too few images to check their labels; None if none were checked.
        label_agreement: The fraction of the checked labels that models trained without these images predict. If it is
            low, most label issues are errors of these models. None if none were checked, or for several labels.
        tta_views: The number of views of each image that its prediction averages.
    """

    def __init__(self, report: TaskReport, label_check: LabelCheck | None, tta_views: int) -> None:
        self.report = report
        self.tta_views = tta_views
        self.result: TaskResult = report.evaluation
        self.label_issues = None if label_check is None else RecordList(label_check.issues, asdict)
        self.unchecked_classes = None if label_check is None else label_check.unchecked_classes
        self.label_agreement = None if label_check is None else label_check.agreement

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """The metrics by name, such as ``accuracy``, ``macro_f1``, ``auroc`` and ``log_loss``.

        Each has a `value` and its 95% `interval`. A value that cannot be computed is None, and its `note` says why.
        """
        result = self.result
        if isinstance(result, SegmentationResult):  # the accuracy of pixels is None if no pixel has a class
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
        """How many labels of each class are possibly missing and how many possibly wrong, highest counts first.

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
        """The abstention thresholds of the model; None if none were fitted."""
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
        predictions = self.predictions
        wrong = [row for row in predictions if not row["correct"]]
        columns = list(next(iter(predictions), ()))
        return RecordList(sorted(wrong, key=lambda row: -(row["probability"] or 0)), dict, columns)

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
            "label_agreement": self.label_agreement,
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
            if name != "top_1"  # same as the accuracy
        ]

    def _repr_html_(self) -> str:
        return format_html_table(self._metric_rows(), title=f"Evaluation of {self._describe()}")
