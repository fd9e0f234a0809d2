"""The options that the Python functions share with the command line, as assignments of settings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline import jsonio
from sightline.data.types import SPLITS, Split
from sightline.errors import UsageError, suggest
from sightline.tracking.tracker import PACKAGES

Settings = Mapping[str, Any] | Sequence[str]
"""Settings by name, as in ``{"train.epochs": 5}``, or ``KEY=VALUE`` texts as after ``--set``."""

ROLES = ("path", "label", "split")


def to_assignments(settings: Settings) -> list[str]:
    """Return `settings` as ``KEY=VALUE`` texts; a value of None removes the setting, and a path becomes text.

    >>> to_assignments({"train.epochs": 5, "model.name": "vgg16", "input.page": None})
    ['train.epochs=5', 'model.name="vgg16"', 'input.page=unset']
    """
    if isinstance(settings, str):
        raise UsageError(f'set is a dict or a list of "KEY=VALUE", not the string {settings!r}: write [{settings!r}].')
    if not isinstance(settings, Mapping):
        return _list_texts(settings, 'set must be a dict or a list of "KEY=VALUE"')
    assignments = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            assignments += to_assignments({f"{key}.{name}": inner for name, inner in value.items()})
        else:
            assignments.append(f"{key}={'unset' if value is None else format_toml(value)}")
    return assignments


def format_toml(value: Any) -> str:
    """Return a value as TOML on one line, which differs from JSON in tables and in numbers that are not finite.

    An entry of None in a table is omitted and keeps its default. Raises `UsageError` for what TOML cannot express.

    >>> format_toml([{"name": "invert", "strength": 0.5, "seed": None}]), format_toml(1e-7), format_toml(True)
    ('[{"name" = "invert", "strength" = 0.5}]', '1e-07', 'true')
    """
    if hasattr(value, "tolist"):  # a NumPy number or array
        value = value.tolist()
    if isinstance(value, Mapping):
        cells = (f"{jsonio.dumps(k)} = {format_toml(inner)}" for k, inner in value.items() if inner is not None)
        return f"{{{', '.join(cells)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(format_toml, value))}]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    try:
        return jsonio.dumps(str(value) if isinstance(value, Path) else value)
    except TypeError:
        raise UsageError(f"A setting is a number, a text, True, False or a list of these, not {value!r:.80}.") from None


def data_assignments(column: Settings | None, allow: Sequence[str] | None = None) -> list[str]:
    """Return the assignments for `column`, as in ``{"label": "breed"}``, and `allow`; raises `UsageError`."""
    for name, text in (("column", column), ("allow", allow)):
        if isinstance(text, str):
            raise UsageError(f"{name} is not the string {text!r}, but a list: write [{text!r}].")
    expected = 'column must be a dict or a list of "ROLE=NAME"'
    pairs = column.items() if isinstance(column, Mapping) else map(_split_column, _list_texts(column or (), expected))
    assignments = []
    for role, name in pairs:
        if role not in ROLES:
            raise UsageError(f"--column: unknown role {role!r}.{suggest(role, ROLES)}")
        # Quoted, so that column 2 is not read as a number.
        assignments.append(f"data.columns.{role}={jsonio.dumps(str(name))}")
    if allow:
        assignments.append(f"data.allow_findings={jsonio.dumps(_list_texts(allow, 'allow must be a list of strings'))}")
    return assignments


def merge_settings(
    settings: Sequence[str],
    shortcuts: Mapping[str, Any],
    set: Settings,  # noqa: A002  # the name of the option
    column: Settings | None,
    allow: Sequence[str],
) -> list[str]:
    """Return the assignments of a command; later ones override earlier ones.

    Those of a data set come first, then `shortcuts` (settings by name, where None sets nothing), and then the options
    `set`, `column` and `allow`. Raises `UsageError` as `to_assignments` and `data_assignments` do.
    """
    chosen = {key: value for key, value in shortcuts.items() if value is not None}
    return [*settings, *to_assignments(chosen), *to_assignments(set), *data_assignments(column, allow)]


def refuse_decoding(settings: Settings) -> None:
    """Raise `UsageError` for settings of anything but files and classes: a model defines how its images are decoded."""
    if others := [text for text in to_assignments(settings) if not text.startswith("data.")]:
        raise UsageError(
            f"--set accepts only settings that begin with data. here, e.g. data.class_level=2, not {others[0]!r}: the "
            "model says how its images are decoded."
        )


def _list_texts(texts: Any, expected: str) -> list[str]:
    """Return texts as a list; raises `UsageError` with what is `expected` for anything else."""
    listed = list(texts) if isinstance(texts, Iterable) else [texts]
    if not all(isinstance(text, str) for text in listed):
        raise UsageError(f"{expected}, not {texts!r}.")
    return listed


def _split_column(text: str) -> tuple[str, str]:
    role, equals, name = text.partition("=")
    if not equals or not name:
        raise UsageError(f"--column expects ROLE=NAME such as label=breed, not {text!r}.")
    return role, name


def parse_devices(devices: int | str | None) -> int | None:
    """Return `devices` as a value of ``device.num_devices``, 0 for ``all``; raises `UsageError` for other text."""
    if devices is None:
        return None
    if devices == "all":
        return 0
    if not str(devices).isdecimal() or not int(devices):
        raise UsageError(f"--devices expects a number, at least 1, or all, not {devices!r}.")
    return int(devices)


def parse_track(track: str | Sequence[str] | None) -> Sequence[str] | None:
    """Return `track` as a value of ``train.track``; raises `UsageError` for an unknown name."""
    if track is None:
        return None
    names = [track] if isinstance(track, str) else _list_texts(track, "track must be a string or a list of strings")
    for name in names:
        if name not in PACKAGES:
            raise UsageError(f"--track cannot be {name!r}.{suggest(name, PACKAGES)}")
    return names


def parse_split(text: str | None) -> Split | None:
    """Return `text` as a split name; raises `UsageError` if it is not one."""
    if text is None:
        return None
    for split in SPLITS:
        if text == split:
            return split
    raise UsageError(f"There is no split {text!r}.{suggest(text, SPLITS)}")
