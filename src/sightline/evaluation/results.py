"""What an evaluation returns: metrics with their intervals, per class and overall."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sightline.data.types import MissingImages, TrainingOverlap, UnreadableImage
from sightline.intervals import Interval

if TYPE_CHECKING:  # annotations only: the command line's help must not wait for NumPy
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """Metrics of one class of `support` images, with Wilson's 95% intervals.

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
    """One metric with its 95% interval; either is None if it cannot be computed, and `note` says why.

    `classes` is the number of classes that a mean over classes includes: those with evaluated images.
    """

    value: float | None
    interval: Interval | None = None
    note: str = ""
    classes: int | None = None


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """The metrics of a classifier on labeled images.

    `confusion` is int64 [K, K], true classes in rows; `probabilities` float32 [N, K]; `labels` int32 [N]. `metrics`
    holds all other metrics by name, such as ``macro_f1`` and ``auroc``; see `sightline.evaluation.scoring`. `leaked`
    and the fields after it relate the images to those of the run, see `LabeledSubset`.
    """

    classes: tuple[str, ...]
    accuracy: float
    accuracy_interval: Interval
    loss: float
    count: int
    per_class: tuple[ClassMetrics, ...]
    confusion: NDArray[np.int64]
    unreadable: tuple[UnreadableImage, ...]
    paths: tuple[str, ...]
    labels: NDArray[np.int32]
    probabilities: NDArray[np.float32]
    seconds: float
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    leaked: LeakedImages | None = None
    missing: MissingImages | None = None
    added: int = 0
    overlap: TrainingOverlap | None = None

    @property
    def untested_classes(self) -> tuple[str, ...]:
        """The classes without any evaluated image."""
        return tuple(c.label for c in self.per_class if not c.support)


@dataclass(frozen=True, slots=True)
class LeakedImages:
    """Evaluated images that are also in an earlier split: how many as the same file, how many as near duplicates.

    `without_leaked` is the evaluation on the remaining images, None if there are none.
    """

    identical: int
    near: int
    paths: tuple[str, ...]
    without_leaked: EvaluationResult | None


@dataclass(frozen=True, slots=True)
class LabeledPredictions:
    """Predictions for labeled images: `labels` int32 [N], `probabilities` float32 [N, K] of `classes`."""

    paths: tuple[str, ...]
    labels: NDArray[np.int32]
    probabilities: NDArray[np.float32]
    classes: tuple[str, ...]
