"""`RunConfig`, the complete configuration of a run, and the ways into and out of it.

Sources, weakest first: the defaults, a recipe, a TOML file, ``KEY=VALUE`` assignments. The resolved result is saved
with the run.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sightline.config import parse
from sightline.config.parse import dump_toml, read_toml, to_dict
from sightline.config.tree import (
    AugmentConfig,
    BundleConfig,
    DataConfig,
    DeviceConfig,
    EarlyStopConfig,
    ModelConfig,
    OptimizerConfig,
    PictureConfig,
    RunConfig,
    ScheduleConfig,
    SplitConfig,
    StageConfig,
    TrainConfig,
)

__all__ = [
    "AugmentConfig",
    "BundleConfig",
    "DataConfig",
    "DeviceConfig",
    "EarlyStopConfig",
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
    """Lay nested dicts on the defaults, weakest first, then ``KEY=VALUE`` assignments.

    >>> resolve({"train": {"epochs": 3}}, assignments=["train.batch_size=8"]).train.epochs
    3
    """
    values: dict[str, Any] = {}
    for layer in layers:
        values = parse.merge(values, copy.deepcopy(layer))  # assignments change what they reach
    for expression in assignments:
        parse.assign(values, expression)
    return parse.from_dict(RunConfig, values)


def load_config(path: Path) -> RunConfig:
    """Read a complete or partial configuration from a TOML file."""
    return resolve(read_toml(path))
