"""Callbacks that report the progress of long work; the base class does nothing."""

from __future__ import annotations

from collections.abc import Callable

from sightline.records import EpochRecord


class Watcher:
    """Receives progress events; subclasses override the methods that they need."""

    def say(self, text: str) -> None:
        """Called with one line of text to show."""

    def progress(self, task: str, done: int, total: int) -> None:
        """Called when `done` of `total` items of a task other than training are done."""

    def stage(self, name: str, epochs: int, steps: int) -> None:
        """Called when a training stage of `epochs` epochs of `steps` steps begins."""

    def step(self, epoch: int, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
        """Called after each step (both count from 1); `loss` and `accuracy` are means over the epoch so far."""

    def epoch(self, record: EpochRecord) -> None:
        """Called after each epoch."""


class Tee(Watcher):
    """Calls `on_epoch` first, then forwards every event to `inner`."""

    def __init__(self, inner: Watcher, on_epoch: Callable[[EpochRecord], None]) -> None:
        self._inner, self._on_epoch = inner, on_epoch

    def say(self, text: str) -> None:
        self._inner.say(text)

    def progress(self, task: str, done: int, total: int) -> None:
        self._inner.progress(task, done, total)

    def stage(self, name: str, epochs: int, steps: int) -> None:
        self._inner.stage(name, epochs, steps)

    def step(self, epoch: int, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
        self._inner.step(epoch, step, loss, accuracy, images_per_second)

    def epoch(self, record: EpochRecord) -> None:
        self._on_epoch(record)
        self._inner.epoch(record)
