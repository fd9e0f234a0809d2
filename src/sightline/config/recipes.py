"""Recipes: named, commented, partial configurations that ship as TOML files.

A table ``[efforts.NAME]`` in a recipe holds the settings that ``train.effort=NAME`` applies on top.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

from sightline.config import parse
from sightline.errors import ConfigError, suggest

EFFORTS = "efforts"  # the key of a recipe's table of efforts
DEFAULT_EFFORT = "balanced"


def names() -> tuple[str, ...]:
    """Return the names of all recipes, sorted."""
    recipe_files = resources.files("sightline.recipes").iterdir()
    return tuple(sorted(f.name.removesuffix(".toml") for f in recipe_files if f.name.endswith(".toml")))


def text(name: str) -> str:
    """Return the text of a recipe's file; raises `ConfigError`, suggesting the nearest name."""
    if name not in names():
        raise ConfigError(f"There is no recipe {name!r}.{suggest(name, names())}")
    return (resources.files("sightline.recipes") / f"{name}.toml").read_text(encoding="utf-8")


def load(name: str) -> dict[str, Any]:
    """Return a recipe's settings as nested dicts, with the settings of its efforts under the key `EFFORTS`."""
    return tomllib.loads(text(name)) | {"recipe": name}


def apply_effort(recipe: Mapping[str, Any], effort: Any) -> dict[str, Any]:
    """Return the settings of a recipe with one of its efforts applied and the others removed; None means the default.

    `recipe` may be any table of settings; a table without efforts is returned unchanged.

    >>> recipe = {"train": {"epochs": 5}, "efforts": {"balanced": {}, "fast": {"train": {"epochs": 1}}}}
    >>> apply_effort(recipe, "fast"), apply_effort(recipe, None)["train"]["effort"]
    ({'train': {'epochs': 1, 'effort': 'fast'}}, 'balanced')
    """
    efforts = recipe.get(EFFORTS)
    if not isinstance(efforts, Mapping):
        return dict(recipe)
    settings = {key: value for key, value in recipe.items() if key != EFFORTS}
    effort = DEFAULT_EFFORT if effort is None else effort
    own = efforts.get(effort, {}) if isinstance(effort, str) else {}  # other types are rejected later, as a setting
    if not isinstance(own, Mapping):
        raise ConfigError(f"{EFFORTS}.{effort} must be a table of settings.")
    return parse.merge_tables(parse.merge_tables(settings, own), {"train": {"effort": effort}})


def find_effort(layers: Iterable[Mapping[str, Any]], assignments: Iterable[str]) -> Any:
    """Return ``train.effort`` as set by `layers`, lowest precedence first, and ``KEY=VALUE`` texts; None if unset."""
    values: dict[str, Any] = {"train": {}}
    for layer in layers:
        train = layer.get("train")
        if isinstance(train, Mapping) and "effort" in train:
            values["train"]["effort"] = train["effort"]
    for assignment in assignments:
        if assignment.partition("=")[0].strip() == "train.effort":
            parse.apply_assignment(values, assignment)
    return values["train"].get("effort")


def first_sentence(name: str) -> str:
    """Return the first sentence of the comment at the top of a recipe's file."""
    lines = []
    for line in text(name).splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines).split(". ")[0].rstrip(".")
