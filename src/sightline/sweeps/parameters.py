"""The parameters of a search space, from its [space] table: lists, ranges and named choices."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sightline.api.options import format_toml
from sightline.config import RunConfig
from sightline.errors import ConfigError, suggest

Value = bool | int | float | str
Settings = dict[str, Any]

SECTIONS = {f.name for f in dataclasses.fields(RunConfig)}


@dataclass(frozen=True, slots=True)
class CategoricalParameter:
    """A categorical parameter; each value represents one or more settings (dotted keys)."""

    name: str
    values: Mapping[Value, Settings]

    def settings(self, value: Value) -> Settings:
        """Return the settings for `value`."""
        return self.values[value]

    @property
    def check_values(self) -> list[Value]:
        """Values used to validate the settings."""
        return list(self.values)


@dataclass(frozen=True, slots=True)
class RangeParameter:
    """A numeric setting in a closed interval."""

    name: str
    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def is_integer(self) -> bool:
        """Whether all values are integers."""
        return all(isinstance(end, int) for end in (self.low, self.high, self.step or 1))

    def settings(self, value: Value) -> Settings:
        """Return the setting for `value`."""
        return {self.name: value}

    @property
    def check_values(self) -> list[Value]:
        """Values used to validate the settings."""
        return [self.low, self.high]


Parameter = CategoricalParameter | RangeParameter


def parse_parameters(table: Mapping[str, Any], space_name: str) -> Iterator[Parameter]:
    """Yield the parameters of a [space] table: keys in a configuration section are settings, others named choices."""
    for key, value in table.items():
        if key == "recipe":
            raise ConfigError(
                f"{space_name}: recipe is the base of all trials, not a parameter: vary its settings instead."
            )
        if key.partition(".")[0] not in SECTIONS:
            yield _parse_choices(key, value, space_name)
            continue
        for path, leaf in _iter_leaves(key, value):
            yield (
                _parse_range(path, leaf, space_name)
                if isinstance(leaf, Mapping)
                else _parse_list(path, leaf, space_name)
            )


def _iter_leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and not {"low", "high"} & set(value):
        for key, inner in value.items():
            yield from _iter_leaves(f"{path}.{key}", inner)
    else:
        yield path, value


def _parse_list(path: str, values: Any, space_name: str) -> CategoricalParameter:
    if not isinstance(values, list) or not values:
        raise ConfigError(
            f"{space_name}: {path} expects a list of values or {{ low = .., high = .. }}, not {values!r}."
        )
    return _unique_choices(
        path, [(v if isinstance(v, Value) else format_toml(v), {path: v}) for v in values], space_name
    )


def _parse_choices(name: str, table: Any, space_name: str) -> CategoricalParameter:
    if not isinstance(table, Mapping) or not table or not all(isinstance(v, Mapping) for v in table.values()):
        raise ConfigError(
            f"{space_name}: {name!r} is not a section of the configuration, so it must name choices, each a table, "
            f'as in [space.{name}.first] "train.epochs" = 5.{suggest(name, SECTIONS)}'
        )
    return _unique_choices(
        name, [(choice, flatten_settings(settings)) for choice, settings in table.items()], space_name
    )


def _unique_choices(name: str, values: list[tuple[Value, Settings]], space_name: str) -> CategoricalParameter:
    if len({format_toml(value) for value, _ in values}) != len(values) or len(dict(values)) != len(values):
        raise ConfigError(f"{space_name}: {name} contains a value twice.")
    return CategoricalParameter(name, dict(values))


def _parse_range(path: str, table: Mapping[str, Any], space_name: str) -> RangeParameter:
    valid_keys = ("low", "high", "log", "step")
    unknown = set(table) - set(valid_keys)
    if unknown:
        raise ConfigError(f"{space_name}: {path} has no key {min(unknown)!r}.{suggest(min(unknown), valid_keys)}")
    for key in ("low", "high"):
        if key not in table:
            raise ConfigError(f"{space_name}: {path} is a range without {key!r}.")
    for key in ("low", "high", "step"):
        if key in table and (not isinstance(table[key], int | float) or isinstance(table[key], bool)):
            raise ConfigError(f"{space_name}: {path}.{key} expects a number, not {table[key]!r}.")
    if not isinstance(table.get("log", False), bool):
        raise ConfigError(f"{space_name}: {path}.log expects true or false, not {table['log']!r}.")
    parameter = RangeParameter(path, table["low"], table["high"], table.get("log", False), table.get("step"))
    if not parameter.low < parameter.high:
        raise ConfigError(f"{space_name}: {path} must have low < high, not {parameter.low} and {parameter.high}.")
    if parameter.log and (parameter.step is not None or parameter.low <= 0):
        raise ConfigError(f"{space_name}: {path} is logarithmic, so low must be above 0 and step cannot be given.")
    if parameter.step is not None and not 0 < parameter.step <= parameter.high - parameter.low:
        raise ConfigError(f"{space_name}: {path}.step must be above 0 and at most high - low, not {parameter.step}.")
    return parameter


def flatten_settings(table: Mapping[str, Any], prefix: str = "") -> Settings:
    """Flatten nested tables to dotted keys; lists are kept.

    >>> flatten_settings({"train": {"epochs": 3, "stages": [{"unfreeze": 0}]}})
    {'train.epochs': 3, 'train.stages': [{'unfreeze': 0}]}
    """
    flat: Settings = {}
    for key, value in table.items():
        flat |= flatten_settings(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
