"""`RunConfig`, the complete configuration of a run, and how to read and write it.

Layers, lowest precedence first: defaults, recipe, its settings for ``train.effort``, TOML file, ``KEY=VALUE``
assignments. The resolved configuration is saved with the run. Setting ``train.epochs`` on top of a recipe with stages
scales those stages; stages that the user defined are left unchanged.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from sightline.config import parse, recipes, stage_epochs
from sightline.config.augmentation import AugmentConfig, CustomAugmentConfig
from sightline.config.data import ColumnsConfig, DataConfig, LimitsConfig
from sightline.config.device import DeviceConfig
from sightline.config.evaluation import EvaluationConfig
from sightline.config.parse import dump_toml, flatten_config, read_toml, to_dict
from sightline.config.schema import (
    BundleConfig,
    EarlyStoppingConfig,
    InputConfig,
    ModelConfig,
    OptimizerConfig,
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
    "CustomAugmentConfig",
    "DataConfig",
    "DeviceConfig",
    "EarlyStoppingConfig",
    "EvaluationConfig",
    "InputConfig",
    "LimitsConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RunConfig",
    "ScheduleConfig",
    "SplitConfig",
    "StageConfig",
    "TrainConfig",
    "dump_toml",
    "flatten_config",
    "load_config",
    "read_toml",
    "resolve_config",
    "to_dict",
]


def resolve_config(
    *layers: dict[str, Any], assignments: Iterable[str] = (), unsolved: Collection[int] = ()
) -> RunConfig:
    """Merge nested dicts over the defaults, lowest precedence first, then apply ``KEY=VALUE`` assignments.

    `unsolved` are the indices of stages with solver ``auto`` that cannot be solved; they may get more than one epoch
    when epochs are distributed over the stages.

    >>> resolve_config({"train": {"epochs": 3}}, assignments=["train.batch_size=8"]).train.epochs
    3
    """
    values: dict[str, Any] = {}
    assignments = list(assignments)
    effort = recipes.find_effort(layers, assignments)
    for layer in [recipes.apply_effort(layer, effort) for layer in layers]:
        values = parse.merge_tables(values, copy.deepcopy(layer))  # assignments modify nested values in place
    for expression in assignments:
        if expression.partition("=")[0].strip() == "recipe":
            raise ConfigError(
                "recipe is the base of all settings, and --set cannot change it: choose it with --recipe."
            )
        parse.apply_assignment(values, expression)
    overridden_keys = [_table_keys(layer.get("train")) for layer in layers[1:]]
    names = [text.partition("=")[0].strip() for text in assignments]
    overridden_keys.append({name.removeprefix("train.") for name in names if name.startswith("train.")})
    if any("epochs" in keys for keys in overridden_keys) and not any("stages" in keys for keys in overridden_keys):
        stages = [name.split(".") for name in overridden_keys[-1] if name.startswith("stages.")]
        fixed = {
            int(keys[1]) for keys in stages if keys[1].isascii() and keys[1].isdecimal() and keys[2:] == ["epochs"]
        }
        stage_epochs.scale_stage_epochs(values["train"], fixed, unsolved)
    config = parse.from_dict(RunConfig, values)
    for name, _, text in (expression.partition("=") for expression in assignments):
        if text.strip() == "unset":  # a name that is not removed from `values` was not checked
            parse.check_name(RunConfig, name.strip())
    return config


def _table_keys(table: Any) -> set[str]:
    return set(table) if isinstance(table, dict) else set()


def load_config(path: Path) -> RunConfig:
    """Read a complete or partial configuration from a TOML file; raises `ConfigError`, naming the file."""
    values = read_toml(path)
    try:
        return resolve_config(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
