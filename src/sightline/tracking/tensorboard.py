"""TensorBoard event files below the run directory, written without TensorFlow."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Mapping
from typing import Any

from sightline import _io
from sightline._keras.imports import import_tensorboard
from sightline.tracking.tracker import Status, TrackedRun, Tracker

FOLDER = "tensorboard"
_NUMBERS = itertools.count()  # numbers this process's files, as several may be opened within a second


class TensorBoardTracker(Tracker):
    """Writes scalars, and the settings for the HPARAMS tab; stores no other files."""

    def start(self, run: TrackedRun) -> None:
        """Open a new event file in the run; TensorBoard merges the files of a folder."""
        folder = run.path / FOLDER
        _io.refuse_links(run.path, folder)
        self._event = import_tensorboard("compat.proto.event_pb2").Event
        self._scalar = import_tensorboard("plugins.scalar.summary_v2").scalar_pb
        self.last_epoch = run.epochs
        # TensorBoard's own EventFileWriter would import TensorFlow, if installed, only to open this file.
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS)}"
        self._writer: Any = import_tensorboard("summary.writer.record_writer").RecordWriter(
            _io.create_exclusive(folder / name)
        )
        self._write(file_version="brain.Event:2")
        if not run.epochs:
            hparams = import_tensorboard("plugins.hparams.summary_v2")
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
        self._write(step=step, summary=summary)

    def _write(self, **fields: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **fields).SerializeToString())


def _to_hparam(value: Any) -> bool | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)
