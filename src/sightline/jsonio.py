"""JSON as the standard has it: the one place where values become text, and text from anywhere becomes values.

No file or answer of ours ever holds NaN, and none that does, or that is made to harm, is taken.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sightline.errors import ModelError
from sightline.files import open_regular

MOST = 64 << 20  # bytes of one value: a manifest of 100,000 classes has 10


def dumps(value: Any, **options: Any) -> str:
    """Return `value` as JSON; `options` are those of `json.dumps`, text stays as it is unless `ensure_ascii` is set.

    A number that is not finite has no form in JSON, and parsers refuse the ``NaN`` that Python would write: it becomes
    null, which is how all our JSON states an undefined value.

    >>> dumps({"loss": float("nan"), "ends": [0.5, float("inf")]})
    '{"loss": null, "ends": [0.5, null]}'
    """
    options = {"ensure_ascii": False} | options
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, **options)


def dump_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Return each row as a line of JSON, in UTF-8 (see `encoded`)."""
    return encoded("".join(dumps(row) + "\n" for row in rows))


def loads(text: str | bytes) -> Any:
    """Return the value of JSON text that may come from anywhere; raises `ValueError`, and nothing else.

    Refused beyond what the grammar refuses: numbers that are not finite, integers of more than 64 bits, and a nesting
    too deep for the parser.

    >>> loads('{"loss": null}')
    {'loss': None}
    >>> loads('{"loss": 1e999}')
    Traceback (most recent call last):
        ...
    ValueError: 1e999 is not a finite number
    """
    try:
        return json.loads(text, parse_constant=_number, parse_float=_number, parse_int=_integer)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read(path: Path, most: int = MOST) -> dict[str, Any]:
    """Return the object in a JSON file; raises `ModelError`, naming the file, if it is none of at most `most` bytes."""
    try:
        with open_regular(path) as file:
            text = file.read(most + 1)
        value = loads(text) if len(text) <= most else None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} cannot be read: expected a JSON object of at most {most >> 20} MiB.")
    return value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines; raises `ModelError`, naming file and line, if it cannot be read."""
    rows: list[dict[str, Any]] = []
    try:
        with open_regular(path) as file:
            for number, line in enumerate(file, 1):
                row = loads(line) if len(line) <= MOST and line.strip() else {} if not line.strip() else None
                if not isinstance(row, dict):
                    raise ModelError(f"{path} cannot be read: line {number} is no JSON object.")
                rows += [row] if row else []
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: line {len(rows) + 1}: {error}.") from error
    return rows


def is_text(name: str) -> bool:
    r"""Tell whether a string can be written as UTF-8: JSON may hold halves of characters, and so may file names.

    >>> is_text("caf\u00e9"), is_text("\udcff")
    (True, False)
    """
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is not a finite number")
    return value


def _integer(text: str) -> int:
    if len(text) > 20 or not -(1 << 63) <= int(text) < 1 << 64:
        raise ValueError(f"{text[:40]} is too large an integer")
    return int(text)


def encoded(text: str) -> bytes:
    """Return JSON as UTF-8; what a file name holds that is no text becomes an escape, which JSON reads back."""
    return text.encode(errors="backslashreplace")


def _finite(value: Any) -> Any:
    """Return `value` with None for each number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
