"""The parameters of a search space, from its [space] table: lists, ranges and named choices."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sightline import jsonio
from sightline.config import RunConfig
from sightline.errors import ConfigError, suggest

Value = bool | int | float | str
Settings = dict[str, Any]

SECTIONS = {f.name for f in dataclasses.fields(RunConfig)}


@dataclass(frozen=True, slots=True)
class Choices:
    """A categorical parameter; each value stands for one or several settings (dotted keys)."""

    name: str
    values: Mapping[Value, Settings]

    def settings(self, value: Value) -> Settings:
        """Return the settings that `value` stands for."""
        return self.values[value]

    @property
    def probes(self) -> list[Value]:
        """Values used to validate the settings."""
        return list(self.values)


@dataclass(frozen=True, slots=True)
class Range:
    """A numeric setting in a closed interval."""

    name: str
    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        """Whether all values are integers."""
        return all(isinstance(end, int) for end in (self.low, self.high, self.step or 1))

    def settings(self, value: Value) -> Settings:
        """Return the setting that `value` stands for."""
        return {self.name: value}

    @property
    def probes(self) -> list[Value]:
        """Values used to validate the settings."""
        return [self.low, self.high]


Parameter = Choices | Range


def parameters(table: Mapping[str, Any], where: str) -> Iterator[Parameter]:
    """Yield the parameters of a [space] table: settings below a section of the configuration, else named choices."""
    for key, value in table.items():
        if key == "recipe":
            raise ConfigError(f"{where}: recipe is the base of all trials, not a parameter: vary its settings instead.")
        if key.partition(".")[0] not in SECTIONS:
            yield _named_choices(key, value, where)
            continue
        for path, leaf in _leaves(key, value):
            yield _range(path, leaf, where) if isinstance(leaf, Mapping) else _listed(path, leaf, where)


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and not {"low", "high"} & set(value):
        for key, inner in value.items():
            yield from _leaves(f"{path}.{key}", inner)
    else:
        yield path, value


def _listed(path: str, values: Any, where: str) -> Choices:
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{where}: {path} expects a list of values or {{ low = .., high = .. }}, not {values!r}.")
    return _distinct(path, [(v if isinstance(v, Value) else literal(v), {path: v}) for v in values], where)


def _named_choices(name: str, table: Any, where: str) -> Choices:
    if not isinstance(table, Mapping) or not table or not all(isinstance(v, Mapping) for v in table.values()):
        raise ConfigError(
            f"{where}: {name!r} is not a section of the configuration, so it must name choices, each a table, "
            f'as in [space.{name}.first] "train.epochs" = 5.{suggest(name, SECTIONS)}'
        )
    return _distinct(name, [(choice, flatten(settings)) for choice, settings in table.items()], where)


def _distinct(name: str, values: list[tuple[Value, Settings]], where: str) -> Choices:
    if len({literal(value) for value, _ in values}) != len(values) or len(dict(values)) != len(values):
        raise ConfigError(f"{where}: {name} contains a value twice.")
    return Choices(name, dict(values))


def _range(path: str, table: Mapping[str, Any], where: str) -> Range:
    known = ("low", "high", "log", "step")
    unknown = set(table) - set(known)
    if unknown:
        raise ConfigError(f"{where}: {path} has no key {min(unknown)!r}.{suggest(min(unknown), known)}")
    for key in ("low", "high"):
        if key not in table:
            raise ConfigError(f"{where}: {path} is a range without {key!r}.")
    for key in ("low", "high", "step"):
        if key in table and (not isinstance(table[key], int | float) or isinstance(table[key], bool)):
            raise ConfigError(f"{where}: {path}.{key} expects a number, not {table[key]!r}.")
    made = Range(path, table["low"], table["high"], table.get("log", False), table.get("step"))
    if not made.low < made.high:
        raise ConfigError(f"{where}: {path} must have low < high, not {made.low} and {made.high}.")
    if made.log and (made.step is not None or made.low <= 0):
        raise ConfigError(f"{where}: {path} is logarithmic, so low must be above 0 and step cannot be given.")
    if made.step is not None and made.step <= 0:
        raise ConfigError(f"{where}: {path}.step must be above 0, not {made.step}.")
    return made


def flatten(table: Mapping[str, Any], prefix: str = "") -> Settings:
    """Flatten nested tables to dotted keys; lists are kept.

    >>> flatten({"train": {"epochs": 3, "stages": [{"thaw": 0}]}})
    {'train.epochs': 3, 'train.stages': [{'thaw': 0}]}
    """
    found: Settings = {}
    for key, value in table.items():
        found |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def literal(value: Any) -> str:
    """Format `value` as TOML on one line; the text ``unset`` stays the bare word that removes a setting.

    >>> literal([{"name": "head", "thaw": 0}]), literal(1e-7), literal(True), literal("unset")
    ('[{"name" = "head", "thaw" = 0}]', '1e-07', 'true', 'unset')
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{jsonio.dumps(key)} = {literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(literal, value)) + "]"
    if isinstance(value, str):
        return value if value == "unset" else jsonio.dumps(value)
    return repr(value)
