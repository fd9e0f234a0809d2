"""Print results to standard output, and progress, warnings and errors to standard error.

All text passes through here, and untrusted text (file names, class names) is escaped: no terminal interprets it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from sightline import jsonio
from sightline.callbacks import Callback, EpochRecord
from sightline.errors import plural
from sightline.escaping import TextFile, printable

MAX_ROWS = 40  # rows of a table before it is truncated


class OutputFormat(StrEnum):
    """How a command prints its result."""

    text = "text"
    json = "json"


FormatOption = Annotated[OutputFormat, typer.Option("--format", help="Output format.")]


def _console(*, stderr: bool = False) -> Console:
    """Return a console that honors NO_COLOR and does not wrap lines unless it is a terminal.

    It interprets escapes and markup in its text, so commands print with `print_line` and `print_table` instead.
    """
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console = Console(stderr=stderr, highlight=False, width=10_000, soft_wrap=True)
    return console


def terminal_width() -> int:
    """Return the width of the terminal in columns, or a large number if there is none."""
    return _console().width


StyledText = str | tuple[str, str]
"""A piece of a line: text, or a pair of text and rich style."""


def styled_line(*pieces: StyledText) -> Text:
    """Return one line of text, with control characters escaped and markup taken literally."""
    styled = (piece if isinstance(piece, tuple) else (piece, "") for piece in pieces)
    return Text.assemble(*((printable(text), style) for text, style in styled))


def print_line(*pieces: StyledText, stderr: bool = False, soft_wrap: bool | None = None) -> None:
    """Print one line to standard output or standard error; an empty one without `pieces`."""
    _console(stderr=stderr).print(styled_line(*pieces), soft_wrap=soft_wrap)


def print_json(value: Any) -> None:
    """Print one JSON object on one line of standard output."""
    out = results_stream()
    out.write(jsonio.dumps(value) + "\n")
    out.flush()


def results_stream() -> TextFile:
    """Return standard output for CSV rows and JSON lines; control characters are escaped if it is a terminal."""
    return _EscapedRows(sys.stdout) if sys.stdout.isatty() else sys.stdout


class _EscapedRows:
    """Writes rows to a terminal with control characters escaped; each write is one whole row."""

    def __init__(self, file: TextFile) -> None:
        self._file = file

    def write(self, text: str, /) -> object:
        """Write one row."""
        return self._file.write(printable(text.removesuffix("\n")) + "\n")

    def flush(self) -> object:
        """Flush the file."""
        return self._file.flush()


def print_text(text: str) -> None:
    """Print multi-line text to standard output, with control characters other than line feeds escaped."""
    sys.stdout.write(printable(text, keep="\n"))
    sys.stdout.flush()


def print_error(message: str) -> None:
    """Print an error to standard error."""
    print_line(("error:", "bold red"), " ", message, stderr=True, soft_wrap=True)


Cell = str | list[str]
"""A cell of a table: one line, or several."""


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[Cell]], right: Sequence[str] = (), *, rest: str = ""
) -> None:
    """Print a table to standard output, with the columns named in `right` right-aligned.

    A long table is truncated and ends with `rest`, which says where all rows can be found. Without `rest`, it is
    truncated on a terminal only, and printed in full to a pipe or a file.
    """
    console = _console()
    is_truncated = len(rows) > MAX_ROWS + MAX_ROWS // 10 and (console.is_terminal or bool(rest))
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(styled_line(column), justify="right" if column in right else "left", overflow="fold")
    for row in rows[:MAX_ROWS] if is_truncated else rows:
        grid.add_row(*(Text("\n").join(map(styled_line, [cell] if isinstance(cell, str) else cell)) for cell in row))
    console.print(grid)
    if is_truncated:
        where = rest or "use --format json or redirect the output to a file to see all"
        print_line(f"... and {len(rows) - MAX_ROWS:,} more of {len(rows):,}: {where}")


class ProgressDisplay(Callback):
    """Shows progress on standard error: bars on a terminal, elsewhere one line per epoch and per slow task."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = _console(stderr=True)
        self._quiet = quiet
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}
        self._epochs = self._steps = self._first_epoch = self._last_epoch = 0

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._quiet:
            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}", markup=False), console=self._console, transient=True,
            )  # fmt: skip
            self._bars.start()
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
            return
        started = self._started.setdefault(task, time.perf_counter())
        if done >= total:
            seconds = time.perf_counter() - self._started.pop(task, started)
            if seconds > 2:  # shorter tasks are not worth a line
                self.on_message(f"{task}: {total} in {seconds:.1f} s")

    def on_stage_begin(self, name: str, epochs: int, steps: int) -> None:
        self._epochs, self._steps, self._first_epoch = epochs, steps, self._last_epoch
        self.on_message(f"{name}: {plural(epochs, 'epoch')} of {plural(steps, 'step')}")

    def on_step_end(self, epoch: int, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
        if self._bars is not None:
            if self._last_epoch < epoch - 1:  # a resumed run: this process did not see the earlier epochs
                self._last_epoch = self._first_epoch = epoch - 1
            first = (
                self._first_epoch if epoch > self._first_epoch else 0
            )  # when several models are trained, each counts from 1
            done = (epoch - 1 - first) * self._steps + step
            statistics = f"epoch {epoch}  {images_per_second:,.0f} images/s  loss {loss:.3f}  accuracy {accuracy:.3f}"
            self._advance("training", done, self._epochs * self._steps, statistics)

    def on_epoch_end(self, record: EpochRecord) -> None:
        self._last_epoch = record.epoch
        validation = ""
        if record.val_loss is not None and record.val_accuracy is not None:
            validation = f"  val_loss {record.val_loss:.4f}  val_accuracy {record.val_accuracy:.4f}"
        self.on_message(
            f"epoch {record.epoch}  loss {record.loss:.4f}  accuracy {record.accuracy:.4f}{validation}  "
            f"{record.images_per_second:,.0f} images/s  {record.seconds:.1f} s"
        )

    def _advance(self, task: str, done: int, total: int, statistics: str) -> None:
        assert self._bars is not None
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(printable(task), total=total, figures="")
        self._bars.update(self._tasks[task], completed=done, total=total, figures=statistics)
        if done >= total:
            self._bars.remove_task(self._tasks.pop(task))
