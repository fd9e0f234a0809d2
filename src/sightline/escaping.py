"""Escape untrusted text for display in a terminal, a table or a spreadsheet.

File names, class names and file metadata may contain any characters. Terminals execute escape sequences, a line feed in
a name forges a table row, and a bidirectional override displays a name backwards (Boucher and Anderson, "Trojan
Source", USENIX Security 2023). JSON and HTML have their own escaping.
"""

from __future__ import annotations

import csv
import io
import re
import shlex
from collections.abc import Iterable, Sequence
from typing import Protocol

_UNSAFE = re.compile(
    "["
    "\\x00-\\x1f\\x7f-\\x9f"  # C0, DEL and C1: ESC, and CSI in one character
    "\\u061c\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069"  # bidirectional controls
    "\\u2028\\u2029"  # line and paragraph separators
    "\\ud800-\\udfff"  # lone surrogates: bytes of a file name that are not UTF-8
    "]"
)
_SHORT_ESCAPES = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}
_PASSWORD = re.compile(r"(https?://)[^/\s@?#]+@|([a-z][a-z0-9+.-]*://)[^/\s@?#:]*:[^/\s@?#]*@", re.IGNORECASE)
_SECRET = re.compile(  # X-Amz-Signature, X-Amz-Security-Token, sig and the like
    r"([?&;][\w.-]*(?:sig|token|secret|credential|passw|auth|key)[\w.-]*=)[^&;#\s'\"]+", re.IGNORECASE
)
_FORMULA = re.compile("[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # the last four are full-width forms


class TextFile(Protocol):
    """A text file or standard output."""

    def write(self, text: str, /) -> object:
        """Write some text."""

    def flush(self) -> object:
        """Flush the buffer."""


def printable(text: str, *, keep: str = "") -> str:
    r"""Return `text` on one line, with control and bidirectional characters escaped except for those in `keep`.

    Backslashes are not escaped, as Windows paths are full of them. JSON text keeps its value: it contains no raw
    control characters below a space, and the other escapes are valid JSON.

    >>> printable("a\x1b[2J\nb.png \u202egnp.exe")
    'a\\x1b[2J\\nb.png \\u202egnp.exe'
    """
    return _UNSAFE.sub(lambda match: match[0] if match[0] in keep else _escape(match[0]), text)


def _escape(letter: str) -> str:
    code = ord(letter)
    return _SHORT_ESCAPES.get(letter) or (f"\\x{code:02x}" if code < 0x20 else f"\\u{code:04x}")


def hide_secrets(text: str) -> str:
    """Return a text, such as an error message, with passwords and signatures removed from the addresses in it.

    >>> hide_secrets("https://host/a.png?X-Amz-Expires=60&X-Amz-Signature=f00 may not be read")
    'https://host/a.png?X-Amz-Expires=60&X-Amz-Signature=*** may not be read'
    >>> hide_secrets("s3://user:password@bucket/a.png")
    's3://***@bucket/a.png'
    """
    return _SECRET.sub(r"\1***", _PASSWORD.sub(lambda match: f"{match[1] or match[2]}***@", text))


def escape_surrogates(text: str) -> str:
    r"""Return `text` with lone surrogates (bytes of a file name that is not UTF-8) escaped, encodable as UTF-8.

    >>> escape_surrogates("caf\udce9.png")
    'caf\\udce9.png'
    """
    return text.encode(errors="backslashreplace").decode()


def escape_formula(text: str) -> str:
    """Return `text` with an apostrophe in front if a spreadsheet would read it as a formula.

    As recommended by OWASP: https://owasp.org/www-community/attacks/CSV_Injection.

    >>> escape_formula("=1+1"), escape_formula("cat")
    ("'=1+1", 'cat')
    """
    return f"'{text}" if _FORMULA.match(text) else text


def escape_cell(value: object) -> object:
    """Return a value as it is written to a CSV file: strings through `escape_formula`, others unchanged."""
    return escape_formula(value) if isinstance(value, str) else value


class CsvWriter:
    """Writes CSV rows without buffering, each terminated by a line feed.

    With that terminator, Python's writer leaves a carriage return in a cell unquoted, and readers end the row there.
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


def quote_path(path: object) -> str:
    """Return a path for a command that the user may copy, quoted for the shell if necessary.

    >>> quote_path("runs/a"), quote_path("My Photos/cats")
    ('runs/a', "'My Photos/cats'")
    """
    return shlex.quote(str(path))
