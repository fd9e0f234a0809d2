"""Callbacks that report the progress of long work; the base class does nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from sightline.errors import UsageError, name_arguments

Progress = Callable[[str, int, int], None]
"""Called as ``progress(task, done, total)`` from any thread, at most a few times a second."""


def no_progress(task: str, done: int, total: int) -> None:
    """Do nothing; the default wherever a `Progress` is accepted."""


Batch = TypeVar("Batch")


def track(
    batches: Iterable[Batch],
    task: str,
    progress: Progress,
    count: Callable[[], int | None],
    measure: Callable[[Batch], int],
) -> Iterator[Batch]:
    """Yield each of `batches`, and report how many items `task` has done; `measure` counts the items of a batch.

    `count` returns the total number of items, or None while it is not known.
    """
    done = total = 0
    for batch in batches:
        yield batch
        done += measure(batch)
        total = max(count() or 0, done) if count() is not None else 0
        progress(task, done, total)
    if done != total:
        progress(task, done, done)


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One epoch of training.

    Attributes:
        epoch: The epoch, from 1.
        stage: The name of the stage.
        loss: The mean training loss over the steps of the epoch.
        accuracy: The mean training accuracy over the steps of the epoch, in [0, 1].
        val_loss: The loss on the validation split; None without one.
        val_accuracy: The accuracy on the validation split; None without one.
        learning_rate: The learning rate of the last step; None for a head that was solved without steps.
        seconds: The duration of the epoch.
        images_per_second: The speed of the training steps.
        penalty: The L2 penalty of a head that was solved; None for an epoch with steps.
        val_mean_iou: The mean IoU of the masks of the validation split; None without a split or without masks.
        val_calibrated_loss: The loss on the validation split at the temperature at which it is lowest; None unless it
            selects the best epoch.
    """

    epoch: int
    stage: str
    loss: float
    accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    learning_rate: float | None
    seconds: float
    images_per_second: float
    penalty: float | None = None
    val_mean_iou: float | None = None
    val_calibrated_loss: float | None = None


class Callback:
    """Receives the progress events of long work.

    Subclasses override the methods that they need; the methods of this class do nothing.

    Example:
        >>> class Losses(Callback):
        ...     def on_epoch_end(self, record: EpochRecord) -> None:
        ...         print(record.epoch, record.val_loss)
    """

    def on_message(self, text: str) -> None:
        """Receive one line of text to show.

        Args:
            text: The line, without a newline.
        """

    def on_progress(self, task: str, done: int, total: int) -> None:
        """Receive the progress of a task other than training, at most a few times a second, from any thread.

        Args:
            task: The name of the task, such as ``"decoding"``.
            done: The number of items done.
            total: The total number of items; 0 while it is not known.
        """

    def on_stage_begin(self, name: str, epochs: int, steps: int) -> None:
        """Receive the beginning of a training stage.

        Args:
            name: The name of the stage.
            epochs: Its number of epochs.
            steps: The number of steps in each epoch.
        """

    def on_step_end(self, epoch: int, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
        """Receive the end of a training step.

        Args:
            epoch: The epoch, from 1.
            step: The step in the epoch, from 1.
            loss: The mean loss of the epoch so far.
            accuracy: The mean accuracy of the epoch so far, in [0, 1].
            images_per_second: The speed.
        """

    def on_epoch_end(self, record: EpochRecord) -> None:
        """Receive the end of an epoch.

        Args:
            record: Its losses, accuracies, learning rate and speed.
        """


def as_callback(callback: Callback | None) -> Callback:
    """Return `callback`, or a callback that does nothing for None; raises `UsageError` for anything else."""
    if callback is not None and not isinstance(callback, Callback):
        raise UsageError(
            f"callback is {callback!r}, but expected an object of a subclass of sightline.Callback, whose methods "
            "receive the events."
        )
    return callback or Callback()


class ForwardingCallback(Callback):
    """Forwards every event to `inner`."""

    def __init__(self, inner: Callback) -> None:
        self._inner = inner

    def on_message(self, text: str) -> None:
        self._inner.on_message(text)

    def on_progress(self, task: str, done: int, total: int) -> None:
        self._inner.on_progress(task, done, total)

    def on_stage_begin(self, name: str, epochs: int, steps: int) -> None:
        self._inner.on_stage_begin(name, epochs, steps)

    def on_step_end(self, epoch: int, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
        self._inner.on_step_end(epoch, step, loss, accuracy, images_per_second)

    def on_epoch_end(self, record: EpochRecord) -> None:
        self._inner.on_epoch_end(record)


class CallbackList(ForwardingCallback):
    """Calls `on_epoch` first, then forwards every event to `inner`."""

    def __init__(self, inner: Callback, on_epoch: Callable[[EpochRecord], None]) -> None:
        super().__init__(inner)
        self._on_epoch = on_epoch

    def on_epoch_end(self, record: EpochRecord) -> None:
        self._on_epoch(record)
        super().on_epoch_end(record)


class ArgumentNames(ForwardingCallback):
    """Names Python arguments in messages, in place of options of the command line."""

    def on_message(self, text: str) -> None:
        super().on_message(name_arguments(text))
