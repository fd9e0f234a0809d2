"""Print results to standard output, and progress, warnings and errors to standard error.

All text passes through here, and untrusted text (file names, class names) is escaped: no terminal interprets it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from sightline import jsonio
from sightline.escaping import TextFile, printable
from sightline.progress import ProgressDisplay, StyledText, make_console, styled_line

__all__ = [
    "MAX_ROWS",
    "Cell",
    "FormatOption",
    "OutputFormat",
    "ProgressDisplay",
    "print_error",
    "print_json",
    "print_line",
    "print_table",
    "print_text",
    "results_stream",
    "terminal_width",
]

MAX_ROWS = 40  # rows of a table before it is truncated


class OutputFormat(StrEnum):
    """How a command prints its result."""

    text = "text"
    json = "json"


FormatOption = Annotated[OutputFormat, typer.Option("--format", help="Output format.")]


def terminal_width() -> int:
    """Return the width of the terminal in columns, or a large number if there is none."""
    return make_console().width


def print_line(*pieces: StyledText, stderr: bool = False, soft_wrap: bool | None = None) -> None:
    """Print one line to standard output or standard error; an empty one without `pieces`."""
    make_console(stderr=stderr).print(styled_line(*pieces), soft_wrap=soft_wrap)


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
    console = make_console()
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
