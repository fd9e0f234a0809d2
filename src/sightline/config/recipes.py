"""Recipes: named, commented, partial configurations that ship as TOML files."""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import Any

from sightline.errors import ConfigError, suggest


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
    """Return a recipe's settings as nested dicts."""
    return tomllib.loads(text(name)) | {"recipe": name}


def first_sentence(name: str) -> str:
    """Return the first sentence of the comment at the top of a recipe's file."""
    lines = []
    for line in text(name).splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines).split(". ")[0].rstrip(".")
