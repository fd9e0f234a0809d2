"""The schema of ``eval/<split>/metrics.json``, so that an untrusted or damaged file is rejected when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from sightline import jsonio
from sightline.errors import ModelError
from sightline.evaluation.calibration import CalibrationReport
from sightline.evaluation.conformal import LabelSetMetrics, SetCoverage
from sightline.evaluation.hierarchy import HierarchyMetrics
from sightline.evaluation.label_thresholds import LabelDecisions
from sightline.evaluation.mask_decisions import MaskDecisions
from sightline.evaluation.multi_label_metrics import LabelMetrics
from sightline.evaluation.ood import OODResult
from sightline.evaluation.report import DecisionMetrics
from sightline.evaluation.results import ClassMetrics, Metric
from sightline.evaluation.segmentation_metrics import MaskClassMetrics
from sightline.evaluation.selective import SelectiveResult, Threshold
from sightline.evaluation.slices import SliceMetrics
from sightline.inference.manifest import LeakedInfo
from sightline.inference.results import Rate, Thresholds
from sightline.intervals import Interval


class ErrorInfo(TypedDict):
    """A prediction to look at; only a model of grades has an expected grade."""

    path: str
    label: str
    predicted: str
    probability: float
    expected_grade: NotRequired[float]


class ConfusedPairInfo(TypedDict):
    """Two classes, and how often the first is classified as the second."""

    label: str
    predicted: str
    count: int
    fraction: float


class ErrorsInfo(TypedDict):
    """The predictions to look at."""

    count: int
    most_confident_errors: list[ErrorInfo]
    confused_pairs: list[ConfusedPairInfo]


class CurveInfo(TypedDict):
    """The risk-coverage curve."""

    aurc: float | None
    coverage: list[float]
    risk: list[float | None]


class RocInfo(TypedDict):
    """The points of a ROC curve."""

    false_positive_rate: list[float]
    sensitivity: list[float]
    threshold: list[float | None]


class PrecisionRecallInfo(TypedDict):
    """The points of a precision-recall curve."""

    recall: list[float]
    precision: list[float]
    threshold: list[float | None]


class RatesInfo(TypedDict):
    """The metrics of a threshold of two classes."""

    threshold: float
    sensitivity: Metric
    specificity: Metric
    ppv: Metric
    npv: Metric


class OperatingPointInfo(TypedDict):
    """A threshold chosen on validation images, and its metrics on the evaluated ones."""

    rate: Rate
    target: float
    threshold: float | None
    rates: RatesInfo | None
    met: bool | None


class BinaryInfo(RatesInfo):
    """The metrics of two classes, one of which is to be detected."""

    positive: str
    rule: str
    positives: int
    negatives: int
    auroc: Metric
    average_precision: Metric
    roc: RocInfo
    precision_recall: PrecisionRecallInfo
    operating_points: list[OperatingPointInfo]
    usual_points: list[OperatingPointInfo]


class ShiftInfo(TypedDict):
    """The metrics of the validation split or of folds, and how those of the evaluated images differ."""

    split: NotRequired[str]
    count: int
    accuracy: float
    accuracy_interval: Interval
    loss: float | None
    ece: float
    accuracy_difference: float
    accuracy_difference_interval: Interval
    ece_difference: float
    ece_p_value: float
    accuracy_differs: bool
    ece_differs: bool


class UnreadableInfo(TypedDict):
    """A file that could not be used, and why."""

    path: str
    reason: str


class _SharedInfo(TypedDict):
    """The fields of ``metrics.json`` that every task has."""

    split: str
    accuracy_interval: Interval
    count: int
    classes: list[str]
    untested_classes: list[str]
    unreadable: list[UnreadableInfo]
    metrics: Mapping[str, Metric]
    leaked: LeakedInfo | None
    thresholds: Thresholds | None


class MetricsInfo(_SharedInfo):
    """The content of ``metrics.json``, as returned by `EvaluationReport.to_dict`; only class trees have a hierarchy."""

    accuracy: float
    loss: float | None
    per_class: list[ClassMetrics]
    confusion: list[list[int]]
    calibration: CalibrationReport
    risk_coverage: CurveInfo
    errors: ErrorsInfo
    slices: list[SliceMetrics]
    selective: DecisionMetrics | None
    selective_check: SelectiveResult | None
    set_coverage: SetCoverage | None
    binary: BinaryInfo | None
    ood: OODResult | None
    validation: ShiftInfo | None
    hierarchy: NotRequired[HierarchyMetrics]


class LabelPairInfo(TypedDict):
    """Two classes, and how often the second is predicted where the first is missed."""

    label: str
    predicted: str
    count: int


class LabelErrorsInfo(TypedDict):
    """The images to look at."""

    count: int
    most_confident_errors: list[ErrorInfo]
    confused_pairs: list[LabelPairInfo]


class MultiLabelInfo(_SharedInfo):
    """The content of ``metrics.json``, as returned by `MultiLabelReport.to_dict`."""

    task: Literal["multi_label"]
    accuracy: float
    loss: float
    per_class: list[LabelMetrics]
    errors: LabelErrorsInfo
    decisions: list[LabelDecisions] | None
    label_sets: LabelSetMetrics | None
    ood: OODResult | None
    unreached: list[str]


class MaskExampleInfo(TypedDict):
    """An image to look at, with its mean IoU and the classes most confused in it."""

    path: str
    iou: float
    label: str
    predicted: str
    quality: float


class ClassPairInfo(TypedDict):
    """Two classes, and the fraction of the pixels of the first that is predicted as the second."""

    label: str
    predicted: str
    fraction: float


class MaskErrorsInfo(TypedDict):
    """The images to look at."""

    worst_images: list[MaskExampleInfo]
    confused_pairs: list[ClassPairInfo]


class SegmentationInfo(_SharedInfo):
    """The content of ``metrics.json``, as returned by `SegmentationReport.to_dict`."""

    task: Literal["segmentation"]
    accuracy: float | None
    loss: float | None
    per_class: list[MaskClassMetrics]
    errors: MaskErrorsInfo
    calibration: CalibrationReport
    risk_coverage: CurveInfo
    threshold: Threshold | None
    selective: MaskDecisions | None


_INFO_BY_TASK = {"multi_label": MultiLabelInfo, "segmentation": SegmentationInfo}


def read_metrics(path: Path) -> dict[str, Any]:
    """Read and validate a ``metrics.json``, with defaults filled in; raises `ModelError`, naming the file."""
    read = jsonio.read_object(path)
    info = _INFO_BY_TASK.get(str(read.get("task")), MetricsInfo)
    values: dict[str, Any] = jsonio.to_plain(jsonio.build(info, read, str(path)))
    if histogram := (values.get("ood") or {}).get("histogram"):
        edges, *columns = histogram.values()
        if not columns[0] or {len(column) for column in columns} != {len(edges) - 1}:
            raise ModelError(f"{path} cannot be read: the bins of a histogram do not match.")
    if info is not MetricsInfo:
        return values
    curves = [values["risk_coverage"]]
    if binary := values["binary"]:
        curves += [binary["roc"], binary["precision_recall"]]
    for curve in curves:
        if len({len(column) for column in curve.values() if isinstance(column, list)}) > 1:
            raise ModelError(f"{path} cannot be read: a curve has columns of different lengths.")
    size = len(values["classes"])
    if [len(row) for row in values["confusion"]] != [size] * size:
        raise ModelError(f"{path} cannot be read: its confusion matrix does not have the shape {[size, size]}.")
    return values
