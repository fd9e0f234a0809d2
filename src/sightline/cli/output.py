"""Where results and news go: results to standard output, everything else to standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from sightline import jsonio
from sightline.errors import plural
from sightline.records import EpochRecord
from sightline.watch import Watcher

LONGEST = 40  # rows of a table, where it is cut


def console(*, stderr: bool = False) -> Console:
    """Return a console that honours NO_COLOR and breaks no lines where nobody watches."""
    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal:
        made = Console(stderr=stderr, highlight=False, width=10_000, soft_wrap=True)
    return made


def print_json(value: Any) -> None:
    """Print one JSON object on one line of standard output."""
    sys.stdout.write(jsonio.dumps(value) + "\n")
    sys.stdout.flush()


def complain(message: str) -> None:
    """Print an error to standard error."""
    console(stderr=True).print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)


def escape(text: str) -> str:
    """Return `text` so that rich takes none of it as markup."""
    return text.replace("[", r"\[")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = (), *, rest: str = "") -> None:
    """Print a table to standard output; the columns named in `right` are flushed right.

    A long one is cut and ends with where the rest is: `rest`, such as a file that holds every row. Where there is no
    such place, it is cut on a terminal alone, and printed in full into a pipe or a file.
    """
    out = console()
    cut = len(rows) > LONGEST + LONGEST // 10 and (out.is_terminal or bool(rest))
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows[:LONGEST] if cut else rows:
        made.add_row(*[escape(cell) for cell in row])
    out.print(made)
    if cut:
        where = rest or "add --json or send the output to a file to see all"
        out.print(f"... and {len(rows) - LONGEST:,} more of {len(rows):,}: {escape(where)}")


class Display(Watcher):
    """Shows training on standard error: bars on a terminal, a line for each epoch and slow task elsewhere."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = console(stderr=True)
        self._quiet = quiet
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._begun: dict[str, float] = {}
        self._epochs = self._steps = self._first = self._seen = 0

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._quiet:
            self._bars = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"), console=self._console, transient=True,
            )  # fmt: skip
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def say(self, text: str) -> None:
        if not self._quiet:
            self._console.print(escape(text))

    def progress(self, task: str, done: int, total: int) -> None:
        if self._bars is not None:
            self._advance(task, done, total, "")
            return
        begun = self._begun.setdefault(task, time.perf_counter())
        if done >= total:
            seconds = time.perf_counter() - self._begun.pop(task, begun)
            if seconds > 2:  # shorter work needs no report
                self.say(f"{task}: {total} in {seconds:.1f} s")

    def stage(self, name: str, epochs: int, steps: int) -> None:
        self._epochs, self._steps, self._first = epochs, steps, self._seen
        self.say(f"{name}: {plural(epochs, 'epoch')} of {plural(steps, 'step')}")

    def step(self, epoch: int, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
        if self._bars is not None:
            if self._seen < epoch - 1:  # a resumed run: the epochs before were not seen here
                self._seen = self._first = epoch - 1
            first = self._first if epoch > self._first else 0  # of several trainings, each counts from 1
            done = (epoch - 1 - first) * self._steps + step
            figures = f"epoch {epoch}  {images_per_second:,.0f} images/s  loss {loss:.3f}  accuracy {accuracy:.3f}"
            self._advance("training", done, self._epochs * self._steps, figures)

    def epoch(self, record: EpochRecord) -> None:
        self._seen = record.epoch
        held_out = ""
        if record.val_loss is not None and record.val_accuracy is not None:
            held_out = f"  val_loss {record.val_loss:.4f}  val_accuracy {record.val_accuracy:.4f}"
        self.say(
            f"epoch {record.epoch}  loss {record.loss:.4f}  accuracy {record.accuracy:.4f}{held_out}  "
            f"{record.images_per_second:,.0f} images/s  {record.seconds:.1f} s"
        )

    def _advance(self, task: str, done: int, total: int, figures: str) -> None:
        assert self._bars is not None
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(task, total=total, figures="")
        self._bars.update(self._tasks[task], completed=done, total=total, figures=figures)
        if done >= total:
            self._bars.remove_task(self._tasks.pop(task))
