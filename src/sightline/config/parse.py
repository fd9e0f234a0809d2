"""Convert plain mappings to frozen dataclasses and back, checking keys, types and ranges."""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from sightline._io import open_regular
from sightline.errors import ConfigError, require, suggest
from sightline.nesting import MAX_DEPTH, is_deep

T = TypeVar("T")
MAX_FILE_BYTES = 1 << 20  # bytes per file; a complete configuration has about 20,000
_KEY_PART = r"""(?:[\w-]{1,200}+|"(?:[^"\\\n]|\\.){0,200}+"|'[^'\n]{0,200}+')"""
_LONG_KEY = re.compile(rf"{_KEY_PART}(?:[ \t]{{0,9}}+\.[ \t]{{0,9}}+{_KEY_PART}){{{MAX_DEPTH}}}")


def setting(
    default: Any,
    doc: str,
    at_least: float | None = None,
    at_most: float | None = None,
    check: Callable[[Any, str], object] | None = None,
) -> Any:
    """Declare a dataclass field with its description (a phrase) and its closed range.

    `check` is called with the value and the setting's name, and raises `ConfigError` for an invalid value.
    """
    metadata = {"doc": doc, "at_least": at_least, "at_most": at_most, "check": check}
    return dataclasses.field(default=default, metadata=metadata)


def from_dict(cls: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Build the dataclass `cls` from `values`; missing keys get their defaults.

    Raises `ConfigError` naming the key for an unknown key, a wrong type or a value out of range.
    """
    hints = get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]  # callers pass a dataclass
    kwargs = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if key not in fields:
            parent = prefix.rpartition(": ")[2]  # the part before it names a file
            others = [] if prefix else find_settings(cls, key)
            hint = suggest(key, others or fields, parent) if len(others) != 1 else f" Did you mean {others[0]!r}?"
            raise ConfigError(f"There is no setting {path!r}.{hint}")
        kwargs[key] = _convert(hints[key], value, path)
        _check_range(kwargs[key], fields[key].metadata, path)
        if check := fields[key].metadata.get("check"):
            check(kwargs[key], path)
    return cls(**kwargs)


def check_name(table: Any, name: str, prefix: str = "") -> None:
    """Raise `ConfigError` if `table`, a dataclass or a list of them, has no setting `name` (``stages.0.epochs``)."""
    key, _, rest = name.partition(".")
    is_list = get_origin(table) is tuple
    inner = get_args(table)[0] if is_list else get_type_hints(table).get(key)
    if inner is None:
        from_dict(table, {key: None}, prefix)  # raises the error
    if rest:
        check_name(inner, rest, f"{prefix}{key}.")


def find_settings(cls: type[Any], name: str) -> list[str]:
    """Return the full names of the settings of the dataclass `cls` that end in `name`, except those in lists.

    >>> from sightline.config import RunConfig
    >>> find_settings(RunConfig, "mixup")
    ['augment.mixup']
    """
    names = []
    for key, hint in get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            names += [f"{key}.{inner}" for inner in find_settings(hint, name)]  # type: ignore[arg-type]  # is a class
        elif key == name:
            names.append(key)
    return names


def to_dict(config: Any) -> dict[str, Any]:
    """Convert `config` to nested dicts and lists; unset (None) fields are omitted."""
    out: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            out[f.name] = to_dict(value)
        elif isinstance(value, tuple):
            out[f.name] = [to_dict(v) if dataclasses.is_dataclass(v) else v for v in value]
        elif value is not None:
            out[f.name] = value
    return out


def flatten_config(config: Any) -> dict[str, Any]:
    """Flatten a configuration to dotted keys; entries of lists of tables are numbered."""
    flat: dict[str, Any] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{path}.{key}" if path else key)
        elif isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
            for number, inner in enumerate(value):
                walk(inner, f"{path}.{number}")
        else:
            flat[path] = value

    walk(to_dict(config), "")
    return flat


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; raises `ConfigError` with the location of the error."""
    try:
        return parse_toml(read_config_text(path))
    except ValueError as error:
        raise ConfigError(f"{path} is not a readable TOML file: {error}.") from error


def read_config_text(path: Path) -> str:
    """Return the text of a TOML file; raises `ConfigError`."""
    try:
        with open_regular(path) as file:
            data = file.read(MAX_FILE_BYTES + 1)
        text = data.decode("utf-8-sig")  # some editors write a byte order mark
    except FileNotFoundError:
        raise ConfigError(f"There is no TOML file {path}: check the path.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a readable TOML file: it is not UTF-8 text.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path} is not a readable TOML file: {reason}.") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is not a readable TOML file: it is larger than {MAX_FILE_BYTES >> 20} MiB.")
    return text.replace("\r\n", "\n")


def parse_toml(text: str) -> dict[str, Any]:
    """Parse untrusted TOML text; raises only `ValueError`.

    Deep nesting is rejected too: the parser takes cubic time for a dotted key of many parts.
    """
    if _LONG_KEY.search(text):
        raise ValueError(f"it contains a key of more than {MAX_DEPTH} parts")
    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if is_deep(values):
        raise ValueError("it is nested too deeply")
    return values


def dump_toml(config: Any) -> str:
    """Write the complete `config` as TOML, each setting below a comment that describes it."""
    tomlkit = require("tomlkit", "Writing a configuration")

    def is_table(item: Any) -> bool:
        return dataclasses.is_dataclass(item[0] if isinstance(item, tuple) and item else item)

    def fill(table: Any, value: Any) -> Any:
        # Values must precede tables, or TOML would assign them to the last table.
        for f in sorted(dataclasses.fields(value), key=lambda f: is_table(getattr(value, f.name))):
            item = getattr(value, f.name)
            doc = f.metadata.get("doc", "")
            if dataclasses.is_dataclass(item):
                table.add(f.name, fill(tomlkit.table(), item))
            elif is_table(item):
                array = tomlkit.aot()
                for element in item:
                    array.append(fill(tomlkit.table(), element))
                table.add(f.name, array)
            else:
                if doc:
                    table.add(tomlkit.comment(doc))
                if item is None:
                    table.add(tomlkit.comment(f"{f.name} is unset"))
                else:
                    table.add(f.name, list(item) if isinstance(item, tuple) else item)
        return table

    return str(tomlkit.dumps(fill(tomlkit.document(), config)))


def merge_tables(base: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` updated with `overrides`, table by table; lists and values are replaced entirely."""
    out = dict(base)
    for key, value in overrides.items():
        if isinstance(value, Mapping) and isinstance(out.get(key), Mapping):
            out[key] = merge_tables(out[key], value)
        else:
            out[key] = value
    return out


def apply_assignment(values: dict[str, Any], expression: str) -> None:
    """Apply ``"train.epochs=5"`` to the nested dict `values`, in place.

    The right-hand side is parsed as a TOML value, or else taken as plain text; ``unset`` removes the key. A number in
    the path indexes a list (``train.stages.0.epochs=5``).
    """
    path, equals, text = expression.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set expects KEY=VALUE such as train.epochs=5, not {expression!r}.")
    target: Any = values
    for key, following in pairwise(keys):
        if isinstance(target, dict) and key not in target and following.isdigit():
            raise ConfigError(
                f"There is no setting {path!r}: the configuration has no {key} yet. Use a recipe that has it, or pass "
                f"a file with [[{path.partition('.' + following)[0]}]] with --config."
            )
        target = _get_element(target, key, path) if isinstance(target, list) else target.setdefault(key, {})
        if not isinstance(target, dict | list):
            raise ConfigError(f"There is no setting {path!r}: {key!r} is a value, not a table.")
    if isinstance(target, list):
        raise ConfigError(f"There is no setting {path!r}: name a field of that entry, as in {path}.epochs.")
    if text.strip() == "unset":
        target.pop(keys[-1], None)
    else:
        target[keys[-1]] = _parse_literal(text.strip())


def _get_element(items: list[Any], key: str, path: str) -> Any:
    if key not in map(str, range(len(items))):
        raise ConfigError(
            f"There is no setting {path!r}: {key!r} is not one of the {len(items)} entries, which are numbered from 0."
        )
    return items[int(key)]


def _parse_literal(text: str) -> Any:
    with suppress(ValueError):
        values = parse_toml(f"value = {text}")
        if len(values) == 1:  # a second line could be another setting
            return values["value"]
    return text


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return _convert_union([a for a in args if a is not type(None)], value, path)
    if origin is Literal:
        if value not in args or type(value) is not type(args[0]):  # 3.0 and True compare equal to integers
            raise ConfigError(f"{path} cannot be {_format_value(value)}.{suggest(str(value), map(str, args))}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ConfigError(f"{path} expects a list, not {_format_value(value)}.")
        if args[-1] is not ... and len(value) != len(args):
            raise ConfigError(f"{path} expects a list of {len(args)} values, not {_format_value(value)}.")
        are_words = get_origin(args[0]) is Literal  # messages need no index for words
        return tuple(_convert(args[0], v, path if are_words else f"{path}.{i}") for i, v in enumerate(value))
    return _convert_table(hint, value, path) if dataclasses.is_dataclass(hint) else _convert_value(hint, value, path)


def _convert_union(hints: Sequence[Any], value: Any, path: str) -> Any:
    """Convert with the first of `hints` that accepts the value; a list only with the list type."""
    lists = [h for h in hints if get_origin(h) is tuple and isinstance(value, list | tuple)]
    if len(lists or hints) == 1:
        return _convert((lists or hints)[0], value, path)
    for hint in hints:
        try:
            return _convert(hint, value, path)
        except ConfigError:
            continue
    type_names = [
        " or ".join(map(str, get_args(h))) if get_origin(h) is Literal else _TYPE_NAMES.get(h, "a list") for h in hints
    ]
    raise ConfigError(f"{path} expects {' or '.join(type_names)}, not {_format_value(value)}.")


def _convert_table(hint: Any, value: Any, path: str) -> Any:
    if not isinstance(value, Mapping):
        first_field = dataclasses.fields(hint)[0].name
        raise ConfigError(f"{path} is a table of settings: set one of them, as in {path}.{first_field}=...")
    return from_dict(hint, value, f"{path}.")


def _convert_value(hint: Any, value: Any, path: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 1 << 1023 else math.inf
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{path} expects {_TYPE_NAMES[hint]}, not {_format_value(value)}.")
    if hint is int and not -(1 << 63) <= value < 1 << 63:
        raise ConfigError(f"{path} expects a whole number of at most 64 bits.")
    return value


def _format_value(value: Any) -> str:
    """Format a value for a message; Python itself refuses to print integers of thousands of digits."""
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        return "a number of more than 64 bits"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _check_range(value: Any, metadata: Mapping[str, Any], path: str) -> None:
    low, high = metadata.get("at_least"), metadata.get("at_most")
    if isinstance(value, tuple):
        for i, item in enumerate(value):
            _check_range(item, metadata, f"{path}.{i}")
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{path} must be a finite number, not {value}.")
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ConfigError(f"{path} must be {bounds}, not {value}.")
