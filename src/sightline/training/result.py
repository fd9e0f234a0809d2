"""The result of training, and the record of the time spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sightline import jsonio
from sightline.callbacks import EpochRecord
from sightline.intervals import Interval


@dataclass(frozen=True, slots=True)
class SplitMetrics:
    """The accuracy and loss on a split; None if no pixel of the masks has a class.

    Attributes:
        accuracy: The fraction of images whose most probable class is the true one, in [0, 1].
        loss: The mean cross-entropy, in nats.
        count: The number of images.
        accuracy_interval: The 95% interval of the accuracy, if it was computed.
    """

    accuracy: float | None
    loss: float | None
    count: int
    accuracy_interval: Interval | None = None

    def describe_accuracy(self) -> str:
        """Return the accuracy with its interval.

        >>> SplitMetrics(0.975, 0.1, 240, Interval(0.9465, 0.9885)).describe_accuracy()
        'accuracy 0.9750 (95% interval 0.9465 to 0.9885)'
        """
        return f"accuracy {format_value(self.accuracy, self.accuracy_interval)}"


def format_value(value: float | None, interval: Sequence[float] | None = None) -> str:
    """Return the value of a metric with its 95% interval, if it has one.

    >>> format_value(0.5), format_value(None)
    ('0.5000', 'not defined')
    """
    if value is None:
        return "not defined"
    return f"{value:.4f}" + ("" if interval is None else f" (95% interval {interval[0]:.4f} to {interval[1]:.4f})")


@dataclass(frozen=True, slots=True)
class TrainingMetrics:
    """The accuracy and loss on the training split in the best epoch.

    Attributes:
        accuracy: The accuracy, in [0, 1]; None without an epoch.
        loss: The loss; None without an epoch.
        count: The number of images.
    """

    accuracy: float | None
    loss: float | None
    count: int

    @classmethod
    def from_epoch(cls, best: EpochRecord | None, count: int) -> TrainingMetrics:
        """Return the metrics of the `best` epoch, whose weights were kept."""
        return cls(None, None, count) if best is None else cls(best.accuracy, best.loss, count)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The result of a training run, with the fields of ``train --format json``.

    `bundle` is the path of the bundle, or None if none was written; `no_bundle_reason` is the reason.
    """

    run: str
    model: str
    parameters: int
    classes: tuple[str, ...]
    train: TrainingMetrics
    validation: SplitMetrics | None
    test: SplitMetrics | None
    epochs: int
    seconds: float
    images_per_second: float
    weights_sha256: str
    recipe: str
    notes: tuple[str, ...] = ()
    bundle: str | None = None
    no_bundle_reason: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values, with the `details` merged in."""
        return jsonio.fields_to_dict(self, skip=["details"]) | dict(self.details)


@dataclass(frozen=True, slots=True)
class StagePlan:
    """How many of the `configured` epochs of a stage fit, and the seconds per epoch including `validation`.

    The seconds are None if there was no time to measure them. `views` is the number of views of each image.
    """

    configured: int
    epochs: int
    seconds: float | None
    validation: float
    views: int


@dataclass(slots=True)
class TimeRecord:
    """The measurements (in seconds) and decisions of a run with a time limit so far; stored in ``run.json``.

    `elapsed` is the time of all sessions of the run, `finishing` the estimated time from the end of training to the end
    of the run. `stages` are the plans by stage number. `stopped` means that training ended before the planned epochs.
    """

    elapsed: float = 0.0
    finishing: float = 0.0
    stages: dict[str, StagePlan] = field(default_factory=dict)
    stopped: bool = False
