"""The protocol of trackers, and the trackers of one run, none of which can stop its training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from sightline.callbacks import EpochRecord
from sightline.errors import UsageError, check_installed, first_line, suggest

Status = Literal["complete", "interrupted", "failed"]
PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}
"""The trackers, and the import name of the package required by each."""


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A run as passed to a tracker.

    Attributes:
        path: The run directory.
        params: The resolved settings by dotted key.
        tracked_id: The id that the tracker assigned when the run first started; "" for a new run.
        epochs: The number of epochs that a resumed run has completed.
    """

    path: Path
    params: Mapping[str, Any]
    tracked_id: str = ""
    epochs: int = 0


class Tracker(ABC):
    """A destination that a run is written to. Every method may raise any error of its library.

    Attributes:
        tracked_id: The id for continuing the run when it is resumed; "" if none is needed.
        last_epoch: The last epoch that is already written.
        note: A line for the user, after `start`.
    """

    tracked_id = ""
    last_epoch = 0
    note = ""

    @abstractmethod
    def start(self, run: TrackedRun) -> None:
        """Start a run, or continue `run.tracked_id`, and write its settings."""

    @abstractmethod
    def log_metrics(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Write the metrics of an epoch, numbered from 1, by name, such as ``loss/train`` or ``test/accuracy``."""

    def log_result(self, metrics: Mapping[str, float], epoch: int, artifacts: Sequence[Path]) -> None:
        """Write the metrics of the final model, after `epoch` epochs, and store files and folders of the run.

        Files are stored only if the library supports it; a resumed run may do this again.
        """
        del artifacts
        self.log_metrics(metrics, epoch)

    @abstractmethod
    def finish(self, status: Status) -> None:
        """Write remaining data, and close the run."""


class TrackerList:
    """The trackers of a run. If one raises an error, it is reported in one line and removed; training goes on."""

    def __init__(self, trackers: Mapping[str, Tracker], report: Callable[[str], None]) -> None:
        self._unstarted = dict(trackers)
        self._trackers: dict[str, Tracker] = {}
        self._report = report

    def start(self, runs: Mapping[str, TrackedRun], history: Sequence[EpochRecord]) -> dict[str, str]:
        """Start each tracker with its entry in `runs`, write the epochs it lacks, and return the ids by tracker."""
        for name, tracker in self._unstarted.items():
            if self._succeeds(name, partial(tracker.start, runs[name])):
                self._trackers[name] = tracker  # only now: a tracker whose start is interrupted cannot be closed
        for tracker in self._trackers.values():
            if tracker.note:
                self._report(tracker.note)
        for record in history:
            self.log_epoch(record)
        return {name: tracker.tracked_id for name, tracker in self._trackers.items() if tracker.tracked_id}

    def log_epoch(self, record: EpochRecord) -> None:
        """Write the metrics of an epoch, unless already written."""
        metrics = {name: value for name, value in list_epoch_metrics(record).items() if value is not None}

        def log(tracker: Tracker) -> None:
            if record.epoch > tracker.last_epoch:
                tracker.log_metrics(metrics, record.epoch)

        self._call(log)

    def log_result(self, metrics: Mapping[str, float], epoch: int, artifacts: Sequence[Path]) -> None:
        """Write the metrics of the final model, after `epoch` epochs, and store the files and folders."""
        self._call(lambda tracker: tracker.log_result(metrics, epoch, artifacts))

    def finish(self, status: Status) -> None:
        """Close all trackers."""
        self._call(lambda tracker: tracker.finish(status))
        self._trackers.clear()

    def _call(self, function: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            if not self._succeeds(name, partial(function, tracker)):
                del self._trackers[name]

    def _succeeds(self, name: str, call: Callable[[], None]) -> bool:
        """Return whether a call of a tracker raises no error; report an error that it raises."""
        try:
            call()
        except Exception as error:  # noqa: BLE001  # raised by the library for a disk, a network, an account
            self._report(
                f"warning: tracking with {name} ended: {first_line(error)[:200]}. Training continues without it."
            )
            return False
        return True


def list_epoch_metrics(record: EpochRecord) -> dict[str, float | None]:
    """Return the metrics of an epoch by the names used in all trackers."""
    return {
        "loss/train": record.loss,
        "loss/validation": record.val_loss,
        "accuracy/train": record.accuracy,
        "accuracy/validation": record.val_accuracy,
        "mean_iou/validation": record.val_mean_iou,
        "calibrated_loss/validation": record.val_calibrated_loss,
        "learning_rate": record.learning_rate,
        "images_per_second": record.images_per_second,
    }


def check_trackers(names: Sequence[str]) -> None:
    """Raise `MissingExtraError` if a tracker in `names` needs a package that is not installed."""
    for name in names:
        check_installed(PACKAGES[name], purpose=f"train.track={name}")


def make_tracker(name: str) -> Tracker:
    """Return the tracker with this name, a key of `PACKAGES`; its library is imported when it starts."""
    if name == "tensorboard":
        from sightline.tracking.tensorboard import TensorBoardTracker

        return TensorBoardTracker()
    if name == "mlflow":
        from sightline.tracking.mlflow import MlflowTracker

        return MlflowTracker()
    if name == "wandb":
        from sightline.tracking.wandb import WandbTracker

        return WandbTracker()
    raise UsageError(f"There is no tracker {name!r}.{suggest(name, PACKAGES)}")
