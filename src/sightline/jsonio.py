"""Strict JSON: the only module that serializes values to JSON and parses untrusted JSON.

NaN is never written, and NaN or malicious input is rejected.
"""

from __future__ import annotations

import codecs
import dataclasses
import json
import math
import os
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NotRequired, TypeVar, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

from sightline._io import open_regular, read_regular
from sightline.errors import ModelError
from sightline.escaping import escape_formula
from sightline.nesting import MAX_DEPTH, is_deep

T = TypeVar("T")
MAX_BYTES = 64 << 20  # limit for one value: a manifest with 100,000 classes takes 10 MiB
MAX_PARTS = 1_000_000  # limit on lists and objects in one value: each takes up to 30 times the memory of its text
MAX_FILE_BYTES = 1 << 30  # limit for a file of lines: enough for five million images
_LARGE_NUMBER = re.compile(r"[0-9]{19}|[0-9][eE]\+?[0-9]{3}")  # what any infinite or 64-bit number contains


def dumps(value: Any, **options: Any) -> str:
    """Return `value` as JSON; `options` are passed to `json.dumps`, with ``ensure_ascii=False`` by default.

    Numbers that are not finite become null, which means an undefined value in all our JSON: JSON cannot represent
    them, and parsers reject the ``NaN`` that Python would write.

    >>> dumps({"loss": float("nan"), "ends": [0.5, float("inf")]})
    '{"loss": null, "ends": [0.5, null]}'
    """
    options = {"ensure_ascii": False} | options
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_replace_nonfinite(value), allow_nan=False, **options)


def fit_encoding(text: str, encoding: str | None) -> str:
    r"""Return JSON for a text stream of this encoding: non-ASCII is escaped unless the encoding is UTF-8 or None.

    >>> fit_encoding('{"path": "caf\u00e9.png"}', "latin-1")
    '{"path": "caf\\u00e9.png"}'
    """
    if encoding is None or codecs.lookup(encoding).name == "utf-8":
        return text
    return re.sub(r"[^\x00-\x7f]", lambda character: json.dumps(character[0])[1:-1], text)


def to_plain(value: Any) -> Any:
    """Return a value as JSON values, using its own `to_dict` if it has one, else field by field.

    Tuples and arrays become lists, and paths text.

    >>> to_plain({"interval": (0.5, 0.75), "run": None})
    {'interval': [0.5, 0.75], 'run': None}
    """
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if dataclasses.is_dataclass(value):
        return fields_to_dict(value)
    if isinstance(value, Mapping):
        return {key: to_plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    return value.tolist() if hasattr(value, "tolist") else value


def fields_to_dict(value: Any, *, skip: Sequence[str] = ()) -> dict[str, Any]:
    """Return the fields of a dataclass as JSON values (see `to_plain`), except for those in `skip`."""
    names = [field.name for field in dataclasses.fields(value) if field.name not in skip]
    return {name: to_plain(getattr(value, name)) for name in names}


def to_cell(value: object, *, raw: bool = False) -> str:
    """Return a value as a cell of a CSV file.

    Text that a spreadsheet would read as a formula gets an apostrophe, unless `raw`; None and NaN are empty; other
    values are written as in JSON.

    >>> [to_cell(value) for value in ("=1", True, None, (1, 2))]
    ["'=1", 'true', '', '[1, 2]']
    """
    if isinstance(value, str):
        return value if raw else escape_formula(value)
    text = dumps(to_plain(value))
    return "" if text == "null" else text


def dump_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Return the rows as JSON lines in UTF-8 (see `encode_text`)."""
    return encode_text("".join(dumps(row) + "\n" for row in rows))


def loads(text: str | bytes, max_parts: float = MAX_PARTS) -> Any:
    """Parse untrusted JSON text; raises `ValueError` and no other exception.

    Besides invalid syntax, it rejects numbers that are not finite, integers of more than 64 bits, nesting deeper than
    `nesting.MAX_DEPTH` and, before parsing, more than `max_parts` lists and objects.

    >>> loads('{"loss": null}')
    {'loss': None}
    >>> loads('{"loss": 1e999}')
    Traceback (most recent call last):
        ...
    ValueError: 1e999 is not a finite number
    """
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text), "surrogatepass")
    parts = text.count("[") + text.count("{")
    if parts > max_parts:
        raise ValueError(f"it has more than {max_parts:,} lists and objects")
    # a function for each number takes several times as long as the standard library, and few texts need one
    may_be_large = _LARGE_NUMBER.search(text) is not None
    parse_float, parse_int = (_parse_float, _parse_int) if may_be_large else (None, None)
    try:
        value = json.loads(text, parse_constant=_parse_float, parse_float=parse_float, parse_int=parse_int)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if parts > MAX_DEPTH and is_deep(value):
        raise ValueError("it is nested too deeply")
    return value


def read_object(path: Path, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Return the object in a JSON file of at most `max_bytes` bytes.

    Raises `ModelError`, naming the file, if it cannot be read.
    """
    try:
        value = loads(read_regular(path, max_bytes))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise ModelError(f"{path} cannot be read: {error}.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} cannot be read: it is not a JSON object.")
    return value


def read_records(
    path: Path, kind: Callable[[Mapping[str, Any]], type[T]], max_lines: int | None = None
) -> tuple[T, ...]:
    """Return the lines of a JSON lines file, each converted to the type that `kind` returns for its object.

    A file may have `MAX_FILE_BYTES` bytes, and a line `MAX_BYTES`. Raises `ModelError`, naming file and line, for a
    file that cannot be read, a line that `build` rejects, and more than `max_lines` lines.
    """
    records: list[T] = []
    for number, row in _lines(path):
        if max_lines is not None and number > max_lines:
            raise ModelError(f"{path} cannot be read: it has more than {max_lines:,} lines.")
        records.append(build(kind(row), row, f"{path}, line {number},"))
    return tuple(records)


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    try:
        with open_regular(path) as file:
            if (size := os.fstat(file.fileno()).st_size) > MAX_FILE_BYTES:
                raise ModelError(f"{path} cannot be read: it has {size:,} bytes, expected at most {MAX_FILE_BYTES:,}.")
            while line := file.readline(MAX_BYTES + 1):
                number += 1
                if len(line) > MAX_BYTES:
                    raise ModelError(f"{path} cannot be read: line {number} has more than {MAX_BYTES:,} bytes.")
                if not line.strip():
                    continue
                row = loads(line)
                if not isinstance(row, dict):
                    raise ModelError(f"{path} cannot be read: line {number} is not a JSON object.")
                yield number, row
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise ModelError(f"{path} cannot be read: line {number}: {error}.") from error


def build(kind: type[T], values: Any, where: str) -> T:
    """Return JSON `values` as a dataclass or a `TypedDict`, with each value checked against its annotation.

    Lists become tuples and integers become floats where the annotation says so. A dataclass accepts no unknown keys; a
    `TypedDict` passes them through. Raises `ModelError`, whose message starts with `where` and names the key.
    """
    try:
        return convert(kind, values)
    except ValueError as error:
        raise ModelError(f"{where} cannot be read: {error}.") from error


def convert(kind: type[T], values: Any) -> T:
    """Convert like `build`, but raise `ValueError`, which names the key, for the caller to explain."""
    return cast("T", _checker(cast("Any", kind))(values, ""))


_Check = Callable[[Any, str], Any]
_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


@cache
def _checker(hint: Any) -> _Check:
    """Return a function that converts a value with a given name to the type `hint`, or raises `ValueError`."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return _pass_through
    if origin in (Union, types.UnionType):
        return _union_checker([_checker(a) for a in args])
    if origin is Literal:
        return _literal_checker(args)
    if origin in (tuple, list, Sequence):
        fixed = origin is tuple and args[-1] is not ...
        return _sequence_checker(
            [_checker(a) for a in args if a is not ...], list if origin is list else tuple, fixed=fixed
        )
    if origin in (dict, Mapping):
        return _mapping_checker(_checker(args[1]))
    return _class_checker(hint)


def _class_checker(kind: Any) -> _Check:
    if hasattr(kind, "_make"):  # a named tuple
        return _sequence_checker([_checker(h) for h in get_type_hints(kind).values()], kind._make, fixed=True)
    return _record_checker(kind) if dataclasses.is_dataclass(kind) or is_typeddict(kind) else _plain_checker(kind)


def _pass_through(value: Any, _name: str) -> Any:
    return value


def _type_error(name: str, value: Any, expected: str) -> ValueError:
    text = repr(value)
    return ValueError(f"{name or 'it'} is {text if len(text) <= 40 else text[:37] + '...'}, expected {expected}")


def _plain_checker(kind: Any) -> _Check:
    def check(value: Any, name: str) -> Any:
        if type(value) is kind:
            return value
        if kind is float and type(value) is int:
            return float(value)
        raise _type_error(name, value, _TYPE_NAMES[kind])

    return check


def _literal_checker(allowed_values: Sequence[Any]) -> _Check:
    def check(value: Any, name: str) -> Any:
        if any(type(value) is type(allowed) and value == allowed for allowed in allowed_values):
            return value
        raise _type_error(name, value, " or ".join(map(repr, allowed_values)))

    return check


def _union_checker(checks: Sequence[_Check]) -> _Check:
    def check(value: Any, name: str) -> Any:
        first_error: ValueError | None = None
        for checker in checks:
            try:
                return checker(value, name)
            except ValueError as error:
                first_error = first_error or error
        assert first_error is not None
        raise first_error

    return check


def _sequence_checker(checks: Sequence[_Check], kind: Callable[[Iterable[Any]], Any], *, fixed: bool) -> _Check:
    def check(value: Any, name: str) -> Any:
        if not isinstance(value, list | tuple) or (fixed and len(value) != len(checks)):
            raise _type_error(name, value, f"a list of {len(checks)} values" if fixed else "a list")
        item_checks = checks if fixed else [*checks] * len(value)
        return kind(
            [
                check_item(item, f"{name}.{i}")
                for i, (check_item, item) in enumerate(zip(item_checks, value, strict=True))
            ]
        )

    return check


def _mapping_checker(inner: _Check) -> _Check:
    def check(value: Any, name: str) -> Any:
        if not isinstance(value, dict):
            raise _type_error(name, value, "an object")
        return {key: inner(item, f"{name}.{key}") for key, item in value.items()}

    return check


def _record_checker(kind: Any) -> _Check:
    hints = get_type_hints(kind)
    checks = {name: _checker(hint) for name, hint in hints.items()}
    if dataclasses.is_dataclass(kind):
        missing = dataclasses.MISSING
        fields = dataclasses.fields(kind)
        required = {f.name for f in fields if f.default is missing and f.default_factory is missing}
        allows_unknown = False
    else:
        marked = get_type_hints(kind, include_extras=True)  # `__required_keys__` ignores hints that are strings
        optional = {name for name, hint in marked.items() if get_origin(hint) is NotRequired}
        required, allows_unknown = set(kind.__required_keys__) - optional, True

    def check(value: Any, name: str) -> Any:
        if not isinstance(value, dict):
            raise _type_error(name, value, "an object")
        if required - value.keys():
            raise ValueError(f"{name or 'it'} lacks {', '.join(sorted(required - value.keys()))}")
        start = f"{name}." if name else ""
        converted = {}
        for key, item in value.items():
            if key in checks:
                converted[key] = checks[key](item, start + key)
            elif allows_unknown:
                converted[key] = item
            else:
                raise ValueError(f"{name or 'it'} has an unknown key {key[:40]!r}")
        return kind(**converted)

    return check


def is_encodable(name: str) -> bool:
    r"""Return whether a string can be encoded as UTF-8: JSON and file names may contain lone surrogates.

    >>> is_encodable("caf\u00e9"), is_encodable("\udcff")
    (True, False)
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parse_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is not a finite number")
    return value


def _parse_int(text: str) -> int:
    if len(text) > 20 or not -(1 << 63) <= int(text) < 1 << 64:
        raise ValueError(f"{text[:40]} is too large an integer")
    return int(text)


def encode_text(text: str) -> bytes:
    """Return JSON as UTF-8; lone surrogates, e.g. from file names, become escapes that JSON parsers read back."""
    return text.encode(errors="backslashreplace")


def _replace_nonfinite(value: Any) -> Any:
    """Return `value` with numbers that are not finite replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _replace_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_nonfinite(item) for item in value]
    return value
