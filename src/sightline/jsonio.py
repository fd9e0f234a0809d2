"""JSON as the standard has it: the one place where values become text, so that no file or answer ever holds NaN."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sightline.errors import ModelError


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


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of JSON lines; raises `ModelError` if it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # `splitlines` knows ends of lines that JSON does not
        return [json.loads(line) for line in lines if line]
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}.") from error


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
