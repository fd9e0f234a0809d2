"""The results of an evaluation: metrics with their intervals, per class and overall."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from sightline import jsonio
from sightline.data.types import MissingImages, TrainingOverlap, UnreadableImage
from sightline.errors import plural
from sightline.intervals import Interval

if TYPE_CHECKING:  # annotations only: the command line's help must not wait for NumPy
    import numpy as np
    from numpy.typing import NDArray

    from sightline.evaluation.multi_label import MultiLabelReport
    from sightline.evaluation.report import EvaluationReport
    from sightline.evaluation.segmentation import SegmentationReport
    from sightline.evaluation.segmentation_metrics import MaskScores

TaskReport: TypeAlias = "EvaluationReport | MultiLabelReport | SegmentationReport"
"""The evaluation of any task: a `TaskResult`, and the analyses beside it."""


def describe_report(report: TaskReport) -> str:
    """Return a line for a report: its metrics, and the names of its analyses, whose values would fill pages."""
    names = (f.name for f in fields(report) if f.name not in {"evaluation", "split"})
    analyses = ", ".join(name for name in names if getattr(report, name) is not None)
    return f"{type(report).__name__}({report.split}, {report.evaluation.describe()}; {analyses})"


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """Metrics of one class of `support` images, with 95% intervals: Wilson's, or of `grouped_proportions`.

    None if a metric is undefined: precision if the class was never predicted, recall and F1 if no image of it was
    evaluated.
    """

    label: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int
    precision_interval: Interval | None = None
    recall_interval: Interval | None = None


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric with its 95% interval.

    Attributes:
        value: The metric; None if it cannot be computed.
        interval: Its 95% interval, with `low` and `high`; None if it cannot be computed.
        note: Why a value or an interval is missing or inexact, or what the value is a mean of.
        classes: The number of classes that a mean over classes includes: those with evaluated images.
    """

    value: float | None
    interval: Interval | None = None
    note: str = ""
    classes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values; `classes` only for a mean over classes."""
        return jsonio.fields_to_dict(self, skip=["classes"] if self.classes is None else [])

    def __repr__(self) -> str:
        """Return the metric as a report states it.

        >>> Metric(0.971, Interval(0.948, 0.988))
        0.971 (95% interval 0.948 to 0.988)
        >>> Metric(0.11, note="no interval: fewer than 5 images")
        0.11 (no interval: fewer than 5 images)
        >>> Metric(None, note="no image of class b was evaluated")
        undefined: no image of class b was evaluated
        """
        if self.value is None:
            return f"undefined: {self.note}" if self.note else "undefined"
        i = self.interval
        remark = self.note if i is None else f"95% interval {i.low:.4g} to {i.high:.4g}"
        return f"{self.value:.4g}" + (f" ({remark})" if remark else "")


NO_IMAGES = Metric(None, note="there are no images")


@dataclass(frozen=True, slots=True, repr=False)
class TaskResult:
    """The result of evaluating any task: its metrics on labeled images.

    `accuracy` and `loss` are None where they are not defined: for masks in which no pixel has a class.

    `probabilities` are float32 [N, K], `labels` [N, ...] as the task encodes them. `metrics` contains, by name, all
    metrics without a field of their own. `groups` is the number of groups that their intervals resample; None if images
    are independent. `leaked` and the fields after it relate the images to those of the run, see `LabeledSubset`.
    """

    classes: tuple[str, ...]
    accuracy: float | None
    accuracy_interval: Interval
    loss: float | None
    count: int
    per_class: tuple[Any, ...]
    unreadable: tuple[UnreadableImage, ...]
    paths: tuple[str, ...]
    labels: NDArray[Any]
    probabilities: NDArray[np.float32]
    seconds: float
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    groups: int | None = None
    leaked: LeakedImages | None = None
    missing: MissingImages | None = None
    added: int = 0
    overlap: TrainingOverlap | None = None

    headlines: ClassVar[tuple[str, ...]] = ()
    """The `metrics` that a run reports first, beside the accuracy."""

    @property
    def untested_classes(self) -> tuple[str, ...]:
        """The classes without any evaluated image."""
        return tuple(c.label for c in self.per_class if not c.support)

    def describe(self) -> str:
        """Return the number of images, the accuracy, and the metrics that a run reports first, on one line."""
        first = {name: self.metrics[name] for name in self.headlines if name in self.metrics}
        values = {"accuracy": Metric(self.accuracy, self.accuracy_interval), **first}
        return f"{plural(self.count, 'image')}: " + ", ".join(f"{name} {metric}" for name, metric in values.items())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.describe()})"

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics as JSON values, without the arrays of each image."""
        return {
            "accuracy": self.accuracy,
            "accuracy_interval": list(self.accuracy_interval),
            "loss": self.loss,
            "count": self.count,
            "classes": list(self.classes),
            "untested_classes": list(self.untested_classes),
            "per_class": jsonio.to_plain(self.per_class),
            "unreadable": [{"path": image.path, "reason": image.reason} for image in self.unreadable],
            "seconds": self.seconds,
            "metrics": jsonio.to_plain(self.metrics),
            "groups": self.groups,
            "leaked": jsonio.to_plain(self.leaked),
            "missing": jsonio.to_plain(self.missing),
            "added": self.added,
            "training_images": jsonio.to_plain(self.overlap),
        }

    def summarize(self) -> dict[str, Any]:
        """Return the few metrics that a run and a bundle keep of each split, as JSON values."""
        summary = {
            "accuracy": self.accuracy,
            "accuracy_interval": list(self.accuracy_interval),
            "loss": self.loss,
            "count": self.count,
            "untested_classes": list(self.untested_classes),
        } | {name: jsonio.to_plain(self.metrics[name]) for name in self.headlines}
        return summary if self.leaked is None else summary | {"leaked": self.leaked.summarize()}


@dataclass(frozen=True, slots=True, repr=False)
class EvaluationResult(TaskResult):
    """The metrics of a classifier on images with one label each, `labels` int32 [N].

    `confusion` is int64 [K, K], true classes in rows. The `metrics`, such as ``macro_f1`` and ``auroc``, are those of
    `sightline.evaluation.scoring`.
    """

    per_class: tuple[ClassMetrics, ...]
    confusion: NDArray[np.int64] = field(kw_only=True)

    @property
    def lowest_recall(self) -> ClassMetrics | None:
        """The class with the lowest recall, of several the one with the fewest images; None without images."""
        tested = [(c.recall, c.support, c) for c in self.per_class if c.recall is not None]
        return min(tested, key=lambda entry: entry[:2])[2] if tested else None

    @property
    def expected_grades(self) -> NDArray[np.float64] | None:
        """The expected grade of each image, float64 [N]; None unless the classes are grades."""
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics as JSON values, without the arrays of each image."""
        from sightline.metrics import most_confused_pairs

        return TaskResult.to_dict(self) | {
            "confusion": self.confusion.tolist(),
            "most_confused": [
                {"label": self.classes[i], "predicted": self.classes[j], "count": count}
                for i, j, count in most_confused_pairs(self.confusion)
            ],
        }


@dataclass(frozen=True, slots=True)
class LeakedImages:
    """Evaluated images that are also in an earlier split: how many as the same file, how many as near duplicates.

    `without_leaked` is the evaluation on the remaining images, None if there are none.
    """

    identical: int
    near_duplicates: int
    paths: tuple[str, ...]
    without_leaked: TaskResult | None

    def to_dict(self) -> dict[str, Any]:
        """Return the counts, the paths, and the metrics without these images, as JSON values."""
        values, other = self.summarize() | {"images": list(self.paths)}, self.without_leaked
        if other is not None:
            values["without_leaked"] |= {"metrics": jsonio.to_plain(other.metrics)}
        return values

    def summarize(self) -> dict[str, Any]:
        """Return the counts, and the main metrics without these images, as JSON values."""
        other = self.without_leaked
        return {
            "count": len(self.paths),
            "identical": self.identical,
            "near_duplicates": self.near_duplicates,
            "without_leaked": None if other is None else other.summarize(),
        }


@dataclass(frozen=True, slots=True)
class LabeledPredictions:
    """Predictions for labeled images: `probabilities` float32 [N, K] of `classes`, `labels` int32 [N].

    With several labels per image, `labels` are bool [N, K]. `energies` and `slice_masks` are as in `EvaluationReport`.
    With masks, `labels` are the classes in them, and `mask_scores` count their pixels.
    """

    paths: tuple[str, ...]
    labels: NDArray[Any]
    probabilities: NDArray[np.float32]
    classes: tuple[str, ...]
    energies: NDArray[np.float64] | None = None
    slice_masks: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    mask_scores: MaskScores | None = None
