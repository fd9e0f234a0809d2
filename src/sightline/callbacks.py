"""Callbacks that report the progress of long work; the base class does nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[str, int, int], None]
"""Called as ``progress(task, done, total)`` from any thread, at most a few times a second."""


def no_progress(task: str, done: int, total: int) -> None:
    """Do nothing; the default wherever a `Progress` is accepted."""


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One line of ``history.jsonl``; `loss` and `accuracy` are running means over the training steps of the epoch."""

    epoch: int
    stage: str
    loss: float
    accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    learning_rate: float
    seconds: float
    images_per_second: float


class Callback:
    """Receives progress events; subclasses override the methods that they need."""

    def on_message(self, text: str) -> None:
        """Called with one line of text to show."""

    def on_progress(self, task: str, done: int, total: int) -> None:
        """Called when `done` of `total` items of a task other than training are done."""

    def on_stage_begin(self, name: str, epochs: int, steps: int) -> None:
        """Called when a training stage of `epochs` epochs of `steps` steps begins."""

    def on_step_end(self, epoch: int, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
        """Called after each step (both count from 1); `loss` and `accuracy` are means over the epoch so far."""

    def on_epoch_end(self, record: EpochRecord) -> None:
        """Called after each epoch."""


class CallbackList(Callback):
    """Calls `on_epoch` first, then forwards every event to `inner`."""

    def __init__(self, inner: Callback, on_epoch: Callable[[EpochRecord], None]) -> None:
        self._inner, self._on_epoch = inner, on_epoch

    def on_message(self, text: str) -> None:
        self._inner.on_message(text)

    def on_progress(self, task: str, done: int, total: int) -> None:
        self._inner.on_progress(task, done, total)

    def on_stage_begin(self, name: str, epochs: int, steps: int) -> None:
        self._inner.on_stage_begin(name, epochs, steps)

    def on_step_end(self, epoch: int, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
        self._inner.on_step_end(epoch, step, loss, accuracy, images_per_second)

    def on_epoch_end(self, record: EpochRecord) -> None:
        self._on_epoch(record)
        self._inner.on_epoch_end(record)
