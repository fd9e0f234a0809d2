"""`RunConfig`, the complete configuration of a run, and how to read and write it.

Layers, lowest precedence first: defaults, recipe, TOML file, ``KEY=VALUE`` assignments. The resolved configuration is
saved with the run. Setting ``train.epochs`` on top of a recipe with stages scales those stages (`epochs.share`); stages
that the user defined are left unchanged.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sightline.config import epochs, parse
from sightline.config.parse import dump_toml, read_toml, to_dict
from sightline.config.tree import (
    AugmentConfig,
    BundleConfig,
    ColumnsConfig,
    DataConfig,
    DeviceConfig,
    EarlyStopConfig,
    EvaluationConfig,
    LimitsConfig,
    ModelConfig,
    OptimizerConfig,
    PictureConfig,
    RunConfig,
    ScheduleConfig,
    SplitConfig,
    StageConfig,
    TrainConfig,
)
from sightline.errors import ConfigError

__all__ = [
    "AugmentConfig",
    "BundleConfig",
    "ColumnsConfig",
    "DataConfig",
    "DeviceConfig",
    "EarlyStopConfig",
    "EvaluationConfig",
    "LimitsConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PictureConfig",
    "RunConfig",
    "ScheduleConfig",
    "SplitConfig",
    "StageConfig",
    "TrainConfig",
    "dump_toml",
    "load_config",
    "read_toml",
    "resolve",
    "to_dict",
]


def resolve(*layers: dict[str, Any], assignments: Iterable[str] = ()) -> RunConfig:
    """Merge nested dicts over the defaults, lowest precedence first, then apply ``KEY=VALUE`` assignments.

    >>> resolve({"train": {"epochs": 3}}, assignments=["train.batch_size=8"]).train.epochs
    3
    """
    values: dict[str, Any] = {}
    for layer in layers:
        values = parse.merge(values, copy.deepcopy(layer))  # assignments modify nested values in place
    assignments = list(assignments)
    for expression in assignments:
        parse.assign(values, expression)
    over = [_names(layer.get("train")) for layer in layers[1:]]
    over.append({text.partition("=")[0].strip().removeprefix("train.") for text in assignments})
    if any("epochs" in names for names in over) and not any("stages" in names for names in over):
        stages = [name.split(".") for name in over[-1] if name.startswith("stages.")]
        fixed = {int(keys[1]) for keys in stages if keys[1].isdigit() and keys[2:] == ["epochs"]}
        epochs.share(values["train"], fixed)
    return parse.from_dict(RunConfig, values)


def _names(table: Any) -> set[str]:
    return set(table) if isinstance(table, dict) else set()


def load_config(path: Path) -> RunConfig:
    """Read a complete or partial configuration from a TOML file; raises `ConfigError`, naming the file."""
    values = read_toml(path)
    try:
        return resolve(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
