"""Print results to standard output, and progress, warnings and errors to standard error.

All text passes through here, and untrusted text (file names, class names) is escaped: no terminal interprets it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import typer
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from sightline import jsonio
from sightline.errors import plural
from sightline.escaping import CsvWriter, TextFile, printable
from sightline.progress import StyledText, make_console, styled_line

MAX_ROWS = 40  # rows of a table before it is truncated


OutputFormat = Literal["text", "json"]
"""How a command prints its result."""
TableFormat = Literal["text", "json", "csv"]
"""How a command prints a result that is a table."""

FormatOption = Annotated[OutputFormat, typer.Option("--format", help="Output format.")]
TableFormatOption = Annotated[TableFormat, typer.Option("--format", help="Output format.")]
RawCsv = Annotated[
    bool, typer.Option("--raw-csv", help="Do not escape CSV text that starts with =, +, - or @ with an apostrophe.")
]


def csv_format(unit: str) -> Any:
    """Return the option ``--format`` for a command whose CSV has one row per `unit`."""
    return typer.Option("--format", help=f"Output format; csv: one row per {unit}.")


def terminal_width() -> int:
    """Return the width of the terminal in columns, or a large number if there is none."""
    return make_console().width


def print_line(*pieces: StyledText, stderr: bool = False, soft_wrap: bool | None = None) -> None:
    """Print one line to standard output or standard error; an empty line without `pieces`."""
    make_console(stderr=stderr).print(styled_line(*pieces), soft_wrap=soft_wrap)


def print_written(out: object, total: int, failed: int, example: str) -> None:
    """Print to standard error how many images were written, and `example`: the first that failed, with the reason."""
    print_line(f"{plural(total, 'image')}{f', {failed} of them failed' if failed else ''}: {out}", stderr=True)
    if example:
        print_line(f"failed     {printable(example)}{f' (the first of {failed})' if failed > 1 else ''}", stderr=True)


def print_json(value: Any) -> None:
    """Print one JSON object on one line of standard output."""
    out = results_stream()
    out.write(jsonio.fit_encoding(jsonio.dumps(value), getattr(out, "encoding", None)) + "\n")
    out.flush()


def print_csv(columns: Sequence[str], rows: Iterable[Sequence[object]], *, raw: bool) -> None:
    """Print a header and `rows` as CSV to standard output, with the cells of `jsonio.to_cell`."""
    writer = CsvWriter(results_stream())
    writer.write_row([jsonio.to_cell(name, raw=raw) for name in columns])
    writer.write_rows([jsonio.to_cell(value, raw=raw) for value in row] for row in rows)


def is_terminal() -> bool:
    """Return whether results go to a terminal."""
    return sys.stdout.isatty()


def results_stream() -> TextFile:
    """Return standard output for CSV rows and JSON lines; control characters are escaped if it is a terminal."""
    return _EscapedRows(sys.stdout) if is_terminal() else sys.stdout


class _EscapedRows:
    """Writes rows to a terminal with control characters escaped; each write is one whole row."""

    def __init__(self, file: TextFile) -> None:
        self._file = file
        self.encoding = getattr(file, "encoding", None)

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
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    right: Sequence[str] = (),
    *,
    rest: str = "",
    limit: int | None = None,
    total: int | None = None,
) -> None:
    """Print a table to standard output, with the columns named in `right` right-aligned.

    Long text wraps, numbers do not; if the terminal is too narrow, the columns are printed in several blocks, each with
    the first column. Only `limit` rows are printed; by default `MAX_ROWS` on a terminal, or anywhere if `rest` is
    given. The last line then states how many rows are left out, and `rest` where to find them. `total` is the total
    number of rows, if `rows` has only the first.
    """
    console = make_console()
    if limit is None and len(rows) > MAX_ROWS + MAX_ROWS // 10 and (console.is_terminal or rest):
        limit = MAX_ROWS
    printed = rows if limit is None else rows[:limit]
    cells = [[[cell] if isinstance(cell, str) else list(cell) for cell in row] for row in printed]
    widths = [_measure_column(name, [row[i] for row in cells], name in right) for i, name in enumerate(columns)]
    for number, block in enumerate(_split_columns(widths, console.width)):
        if number:
            print_line()
        grid = Table(box=None, pad_edge=False, header_style="bold")
        for i, width in _fit_columns(widths, block, console.width).items():
            justify: Any = "right" if columns[i] in right else "left"
            grid.add_column(styled_line(columns[i]), justify=justify, overflow="fold", width=width)
        for row in cells:
            grid.add_row(*(Text("\n").join(map(styled_line, row[i])) for i in block))
        console.print(grid)
    total = len(rows) if total is None else total
    if len(printed) < total:
        where = rest or "use --format json or redirect the output to a file to see all"
        print_line(f"... and {total - len(printed):,} more of {total:,}: {where}")


COLUMN_GAP = 2  # spaces between columns
MIN_WRAPPED = 16  # minimum columns of wrapped text; an interval such as 0.9123 to 0.9456 stays on one line


def measure_text(text: str) -> int:
    """Return the width of a text in terminal columns."""
    return cell_len(printable(text))


def _measure_column(name: str, cells: Sequence[Sequence[str]], is_number: bool) -> tuple[int, int]:
    """Return the minimum width of a column and the width at which nothing wraps, in terminal columns."""
    widest = max((measure_text(line) for cell in cells for line in cell), default=0)
    words = max((measure_text(word) for word in name.split()), default=0)
    return max(words, widest if is_number else min(widest, MIN_WRAPPED), 1), max(measure_text(name), widest, 1)


def _split_columns(widths: Sequence[tuple[int, int]], total: int) -> list[list[int]]:
    """Return the columns of each block that fits into `total`; each block includes the first column."""
    blocks = [[0]]
    for i in range(1, len(widths)):
        needed = sum(widths[j][0] + COLUMN_GAP for j in blocks[-1]) + widths[i][0]
        if needed > total and len(blocks[-1]) > 1:
            blocks.append([0])
        blocks[-1].append(i)
    return blocks if widths else []


def _fit_columns(widths: Sequence[tuple[int, int]], block: Sequence[int], total: int) -> dict[int, int]:
    """Return the width of each column of a block: the widest ones wrap until the block fits `total`."""
    fitted = {i: widths[i][1] for i in block}
    excess = sum(fitted.values()) + COLUMN_GAP * (len(block) - 1) - total
    for _ in range(excess):
        flexible = [i for i in block if fitted[i] > widths[i][0]] or [i for i in block if fitted[i] > 1]
        if not flexible:
            break
        fitted[max(flexible, key=lambda i: fitted[i])] -= 1
    return fitted
