"""What a face shows of work under way; the base class shows nothing."""

from __future__ import annotations

from collections.abc import Callable

from sightline.records import EpochRecord


class Watcher:
    """Told what goes on; a face overrides what it shows."""

    def say(self, text: str) -> None:
        """Show one line of news."""

    def progress(self, task: str, done: int, total: int) -> None:
        """Some work outside the training steps has got so far."""

    def stage(self, name: str, epochs: int, steps: int) -> None:
        """A training stage of `epochs` epochs of `steps` steps begins."""

    def step(self, epoch: int, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
        """A step of `epoch` (both from 1) is done; `loss` and `accuracy` are means since the epoch began."""

    def epoch(self, record: EpochRecord) -> None:
        """An epoch is done."""


class Tee(Watcher):
    """Calls `on_epoch` first, then hands everything on to `inner`."""

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
