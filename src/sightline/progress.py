"""Show the progress of long work on standard error: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from sightline.callbacks import ArgumentNames, Callback, EpochRecord, as_callback
from sightline.errors import plural
from sightline.escaping import printable


def make_console(*, stderr: bool = False) -> Console:
    """Return a console that honors NO_COLOR and does not wrap lines unless it is a terminal.

    It interprets escapes and markup in its text, so commands print with `print_line` and `print_table` instead.
    """
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console = Console(stderr=stderr, highlight=False, width=10_000, soft_wrap=True)
    return console


SHORT_SECONDS = 2  # a task as short as this gets no line
FIRST_LINE_SECONDS = 5  # wait before the first line of a long task without bars; doubles from line to line
MAX_LINE_SECONDS = 60

StyledText = str | tuple[str, str]
"""A piece of a line: text, or a pair of text and rich style."""


def styled_line(*pieces: StyledText) -> Text:
    """Return one line of text, with control characters escaped and markup taken literally."""
    styled = (piece if isinstance(piece, tuple) else (piece, "") for piece in pieces)
    return Text.assemble(*((printable(text), style) for text, style in styled))


def format_time_left(seconds: float) -> str:
    """Return a duration as text.

    >>> [format_time_left(seconds) for seconds in (7.2, 754, 93600)]
    ['7 s', '13 min', '26 h 0 min']
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60:,} h {minutes % 60} min"


@contextmanager
def show_progress(progress: bool = True, callback: Callback | None = None) -> Iterator[Callback]:  # noqa: FBT001, FBT002
    """Yield the callback for a long call from Python: `callback` if given, else a display on standard error.

    With `progress` False, nothing is shown. In a notebook, bars need ipywidgets; without it, and if standard error is a
    file, there is a line for each epoch, and one from time to time for each slow task. Messages name arguments, except
    for a `ProgressDisplay`, which is that of the command line. Raises `UsageError` for a `callback` that is not one.
    """
    if isinstance(callback, ProgressDisplay):
        yield callback
    elif callback is not None or not progress:
        yield ArgumentNames(as_callback(callback))
    else:
        with ProgressDisplay() as display:
            yield ArgumentNames(display)


class ProgressDisplay(Callback):
    """Shows progress on standard error: bars on a terminal, elsewhere one line per epoch and per slow task.

    A task of more than 5 seconds gets lines with the time left at its speed so far: after 5, 15 and 35 seconds, and so
    on, and finally one every minute.
    """

    def __init__(self, *, quiet: bool = False, messages_only: bool = False) -> None:
        """`quiet` shows nothing, `messages_only` hides tasks."""
        self._console = make_console(stderr=True)
        self._quiet, self._shows_tasks = quiet, not (quiet or messages_only)
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, tuple[float, int]] = {}  # start time, and the items already done then
        self._next_lines: dict[str, tuple[float, float]] = {}  # time when the next line is due, and the wait before it
        self._epochs = self._steps = self._first_epoch = self._last_epoch = 0

    def __enter__(self) -> Self:
        has_widgets = self._console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None
        if (self._console.is_terminal or has_widgets) and self._shows_tasks:
            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}", markup=False), console=self._console, transient=True,
                redirect_stdout=sys.stdout.isatty(),  # results redirected to a file must not end up on the terminal
            )  # fmt: skip
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def on_message(self, text: str) -> None:
        if not self._quiet:
            self._console.print(styled_line(text))

    def on_progress(self, task: str, done: int, total: int) -> None:
        if self._bars is not None:
            self._advance(task, done, total, "")
        if self._bars is not None or not self._shows_tasks:
            return
        now = time.perf_counter()
        started, first = self._started.setdefault(task, (now, done))
        due, wait = self._next_lines.setdefault(task, (started + FIRST_LINE_SECONDS, FIRST_LINE_SECONDS))
        if 0 < total <= done:
            del self._started[task], self._next_lines[task]
            if now - started > SHORT_SECONDS:
                self.on_message(f"{task}: {total:,} in {now - started:.1f} s")
        elif now >= due and done > first:
            wait = min(2 * wait, MAX_LINE_SECONDS)
            self._next_lines[task] = now + wait, wait
            seconds = (now - started) * (total - done) / (done - first)
            rest = f" of {total:,}, {format_time_left(seconds)} left" if total else " so far"
            self.on_message(f"{task}: {done:,}{rest}")

    def on_stage_begin(self, name: str, epochs: int, steps: int) -> None:
        self._epochs, self._steps, self._first_epoch = epochs, steps, self._last_epoch
        self.on_message(f"{name}: {plural(epochs, 'epoch')} of {plural(steps, 'step')}")

    def on_step_end(self, epoch: int, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
        if self._bars is not None:
            if self._last_epoch < epoch - 1:  # a resumed run: the earlier epochs were in another process
                self._last_epoch = self._first_epoch = epoch - 1
            # when several models are trained, each counts from 1
            first = self._first_epoch if epoch > self._first_epoch else 0
            done = (epoch - 1 - first) * self._steps + step
            statistics = f"epoch {epoch}  {images_per_second:,.0f} images/s  loss {loss:.3f}  accuracy {accuracy:.3f}"
            self._advance("training", done, self._epochs * self._steps, statistics)

    def on_epoch_end(self, record: EpochRecord) -> None:
        self._last_epoch = record.epoch
        validation = ""
        if record.val_loss is not None and record.val_accuracy is not None:
            validation = f"  val_loss {record.val_loss:.4f}  val_accuracy {record.val_accuracy:.4f}"
        if record.val_mean_iou is not None:
            validation += f"  val_mean_iou {record.val_mean_iou:.4f}"
        if record.val_calibrated_loss is not None:
            validation += f"  val_calibrated_loss {record.val_calibrated_loss:.4f}"
        self.on_message(
            f"epoch {record.epoch}  loss {record.loss:.4f}  accuracy {record.accuracy:.4f}{validation}  "
            f"{record.images_per_second:,.0f} images/s  {record.seconds:.1f} s"
        )

    def _advance(self, task: str, done: int, total: int, statistics: str) -> None:
        assert self._bars is not None
        if task not in self._tasks:
            if 0 < total <= done:
                return
            self._bars.start()  # only now: most calls end before there is anything to show
            self._tasks[task] = self._bars.add_task(printable(task), total=None, figures="")
        self._bars.update(self._tasks[task], completed=done, total=total or None, figures=statistics)
        if 0 < total <= done:
            self._bars.remove_task(self._tasks.pop(task))
