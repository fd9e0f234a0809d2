"""Text from strangers, made harmless for what shows it: a terminal, a table, a spreadsheet.

File names, class names and what files say of themselves may hold anything. A terminal obeys escape sequences, a line
feed in a name forges a row of a table, and an override of the writing direction shows a name backwards (Boucher and
Anderson, "Trojan Source", USENIX Security 2023). JSON and HTML have escapes of their own.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Protocol

_UNSAFE = re.compile(
    "["
    "\\x00-\\x1f\\x7f-\\x9f"  # C0, DEL and C1: ESC, and CSI in one character
    "\\u061c\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069"  # direction
    "\\u2028\\u2029"  # separators of lines and paragraphs
    "\\ud800-\\udfff"  # halves of characters: bytes of a file name that are no UTF-8
    "]"
)
_SHORT = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}
_FORMULA = re.compile("[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # the last four: their full-width forms


class TextFile(Protocol):
    """What text is written to: a file, or standard output."""

    def write(self, text: str, /) -> object:
        """Write some text."""

    def flush(self) -> object:
        """Hand on what was written."""


def printable(text: str, *, keep: str = "") -> str:
    r"""Return `text` on one line, its control characters and direction marks as escapes; those in `keep` stay.

    Backslashes stay as they are: paths of Windows hold many. JSON text keeps its value: it holds none of the characters
    below a space, and the others become escapes that JSON knows.

    >>> printable("a\x1b[2J\nb.png \u202egnp.exe")
    'a\\x1b[2J\\nb.png \\u202egnp.exe'
    """
    return _UNSAFE.sub(lambda match: match[0] if match[0] in keep else _escape(match[0]), text)


def _escape(letter: str) -> str:
    code = ord(letter)
    return _SHORT.get(letter) or (f"\\x{code:02x}" if code < 0x20 else f"\\u{code:04x}")


def spreadsheet_text(text: str) -> str:
    """Return `text` so that a spreadsheet takes it for text: after an apostrophe where it would be a formula.

    As OWASP advises: https://owasp.org/www-community/attacks/CSV_Injection.

    >>> spreadsheet_text("=1+1"), spreadsheet_text("cat")
    ("'=1+1", 'cat')
    """
    return f"'{text}" if _FORMULA.match(text) else text


def spreadsheet_cell(value: object) -> object:
    """Return what stands in a CSV file for a value: numbers as they are, text as `spreadsheet_text` has it."""
    return spreadsheet_text(value) if isinstance(value, str) else value


class CsvWriter:
    """Writes rows of CSV, each at once and ended by a line feed.

    Python's own writer leaves a carriage return in a cell unquoted there, which readers take for the end of the row.
    """

    def __init__(self, file: TextFile) -> None:
        self._file = file
        self._row = io.StringIO()
        self._writer = csv.writer(self._row, lineterminator="\r\n")

    def write_row(self, cells: Sequence[object]) -> None:
        """Write one row."""
        self._row.seek(0)
        self._row.truncate()
        self._writer.writerow(cells)
        self._file.write(self._row.getvalue().removesuffix("\r\n") + "\n")

    def write_rows(self, rows: Iterable[Sequence[object]]) -> None:
        """Write several rows."""
        for row in rows:
            self.write_row(row)
