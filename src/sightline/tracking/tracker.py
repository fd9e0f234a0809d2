"""The protocol of trackers, and the trackers of one run, none of which can stop its training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sightline.callbacks import EpochRecord
from sightline.errors import UsageError, check_installed, first_line, suggest

Status = Literal["complete", "interrupted", "failed"]
PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}
"""The trackers, and the import name of the package that each needs."""


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """What a tracker gets of a run.

    Attributes:
        path: The run directory.
        params: The resolved settings by dotted key.
        tracked_id: The id that the tracker gave it when it started; "" for a new run.
        epochs: The number of epochs that a resumed run has already.
    """

    path: Path
    params: Mapping[str, Any]
    tracked_id: str = ""
    epochs: int = 0


class Tracker(ABC):
    """One place that a run is written to. Every method may raise any error of its library.

    Attributes:
        tracked_id: The id by which a resumed run is continued; "" if it needs none.
        last_epoch: The last epoch that is there already.
        note: A line for the user, after `start`.
    """

    tracked_id = ""
    last_epoch = 0
    note = ""

    @abstractmethod
    def start(self, run: TrackedRun) -> None:
        """Start a run, or continue that of `run.tracked_id`, and write its settings."""

    @abstractmethod
    def log_metrics(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Write metrics by name, such as ``loss/train`` or ``test/accuracy``, of an epoch from 1."""

    def log_result(self, metrics: Mapping[str, float], epoch: int, artifacts: Sequence[Path]) -> None:
        """Write the metrics of the final model, after `epoch` epochs, and store files and folders of the run.

        Files are stored only where the library stores files; a resumed run may do this again.
        """
        del artifacts
        self.log_metrics(metrics, epoch)

    @abstractmethod
    def finish(self, status: Status) -> None:
        """Write what is left, and close the run."""


class TrackerList:
    """The trackers of a run. One that raises an error is reported in one line and left out; training goes on."""

    def __init__(self, trackers: Mapping[str, Tracker], report: Callable[[str], None]) -> None:
        self._unstarted = dict(trackers)
        self._trackers: dict[str, Tracker] = {}
        self._report = report

    def start(self, runs: Mapping[str, TrackedRun], history: Sequence[EpochRecord]) -> dict[str, str]:
        """Start each tracker on its entry of `runs`, write the epochs that it lacks, and return the ids by tracker."""
        self._trackers, self._unstarted = self._unstarted, {}
        self._call(lambda name, tracker: tracker.start(runs[name]))
        for tracker in self._trackers.values():
            if tracker.note:
                self._report(tracker.note)
        for record in history:
            self.log_epoch(record)
        return {name: tracker.tracked_id for name, tracker in self._trackers.items() if tracker.tracked_id}

    def log_epoch(self, record: EpochRecord) -> None:
        """Write the metrics of an epoch, unless they are there already."""
        metrics = {name: value for name, value in list_epoch_metrics(record).items() if value is not None}

        def log(_name: str, tracker: Tracker) -> None:
            if record.epoch > tracker.last_epoch:
                tracker.log_metrics(metrics, record.epoch)

        self._call(log)

    def log_result(self, metrics: Mapping[str, float], epoch: int, artifacts: Sequence[Path]) -> None:
        """Write the metrics of the final model, after `epoch` epochs, and store the files and folders."""
        self._call(lambda _, tracker: tracker.log_result(metrics, epoch, artifacts))

    def finish(self, status: Status) -> None:
        """Close all trackers."""
        self._call(lambda _, tracker: tracker.finish(status))
        self._trackers.clear()

    def _call(self, function: Callable[[str, Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                function(name, tracker)
            except Exception as error:  # noqa: BLE001  # of another library: a disk, a network, an account
                del self._trackers[name]
                self._report(
                    f"warning: tracking with {name} ended: {first_line(error)[:200]}. Training continues without it."
                )


def list_epoch_metrics(record: EpochRecord) -> dict[str, float | None]:
    """Return the metrics of an epoch by the names that all trackers use."""
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
    """Raise `MissingExtraError` if a tracker of `names` needs a package that is not installed."""
    for name in names:
        check_installed(PACKAGES[name], purpose=f"train.track={name}")


def make_tracker(name: str) -> Tracker:
    """Return the tracker of this name, one of `PACKAGES`; its library is imported when it starts."""
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
