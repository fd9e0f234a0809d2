"""TensorBoard event files below the run directory, written without TensorFlow."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from sightline import _io
from sightline.errors import require
from sightline.tracking.tracker import Status, TrackedRun, Tracker

FOLDER = "tensorboard"


class TensorBoardTracker(Tracker):
    """Writes scalars, and the settings for the tab HPARAMS; stores no other files."""

    def start(self, run: TrackedRun) -> None:
        """Open a new event file in the run; TensorBoard joins those of a folder."""
        folder = run.path / FOLDER
        _io.refuse_links(run.path, folder)
        writer = require("tensorboard.summary.writer.event_file_writer", "train.track=tensorboard")
        self._scalar = require("tensorboard.plugins.scalar.summary_v2", "train.track=tensorboard").scalar_pb
        self.last_epoch = run.epochs
        self._writer: Any = writer.EventFileWriter(str(folder))
        if not run.epochs:
            hparams = require("tensorboard.plugins.hparams.summary_v2", "train.track=tensorboard")
            self._add(hparams.hparams_pb({key: _to_hparam(value) for key, value in run.params.items()}), 0)

    def log_metrics(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Write one scalar for each metric."""
        for name, value in metrics.items():
            self._add(self._scalar(name, value), epoch)
        self._writer.flush()

    def finish(self, status: Status) -> None:
        """Flush and close the file."""
        del status
        self._writer.close()

    def _add(self, summary: Any, step: int) -> None:
        event = require("tensorboard.compat.proto.event_pb2", "train.track=tensorboard").Event
        self._writer.add_event(event(step=step, wall_time=time.time(), summary=summary))


def _to_hparam(value: Any) -> bool | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)
