"""A search space: the settings shared by all trials, and the parameters with their values.

An example of its file:

    recipe = "transfer"                 # the base; `config` is a TOML file that overrides it (relative to this one)
    sampler = "random"                  # grid, random or tpe
    trials = 20                         # total number of trials; a grid defaults to all its cells
    monitor = "validation.accuracy"     # one of MONITORS; by default that of the task
    pruner = "median"                   # none, median or hyperband
    startup_trials = 5                  # trials to complete before pruning starts
    warmup_epochs = 1                   # epochs of a trial before it can be pruned

    [settings]                          # overrides for all trials
    train.epochs = 5

    [space]                             # a list, a range, or named choices of several settings at once
    train.batch_size = [16, 32]
    train.optimizer.learning_rate = { low = 1e-5, high = 1e-1, log = true }
    [space.base.frozen]
    "train.stages.0.unfreeze" = 0
    [space.base.trainable]
    "train.stages.0.unfreeze" = -1

A key below a section of the configuration is a setting; any other key is the name of a set of choices.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal, get_args

from sightline import _io, jsonio
from sightline.api.options import format_toml
from sightline.config import RunConfig, parse, recipes, resolve_config
from sightline.config.parse import setting
from sightline.data.targets import Targets
from sightline.errors import ConfigError, UsageError, suggest
from sightline.sweeps.parameters import (
    Parameter,
    RangeParameter,
    Settings,
    Value,
    flatten_settings,
    parse_parameters,
)
from sightline.tasks.protocol import find_task

Monitor = Literal[  # the default is the first that the task has
    "validation.mean_iou", "validation.mean_average_precision", "validation.accuracy", "validation.loss",
    "validation.quadratic_weighted_kappa", "validation.hierarchical_f1",
]  # fmt: skip
IN_EACH_EPOCH = ("validation.accuracy", "validation.loss", "validation.mean_iou")  # others are known at the end
MAX_CELLS = 100_000  # a larger grid is probably a mistake


@dataclass(frozen=True, slots=True)
class SpaceOptions:
    """The top-level keys of a search space."""

    recipe: str = setting("auto", "recipe that all trials are based on")
    config: str | None = setting(None, "a TOML file that overrides the recipe, relative to the space's file")
    sampler: Literal["grid", "random", "tpe"] = setting("grid", "how parameter values are chosen")
    trials: int | None = setting(None, "number of trials; unset: all cells of a grid, else 20", 1)
    monitor: Monitor | None = setting(  # noqa: RUF009  # an alias of immutable strings
        None, "ranking metric; unset: mean_iou of masks, mean_average_precision of several labels, else accuracy"
    )
    pruner: Literal["none", "median", "hyperband"] = setting("none", "how unpromising trials are stopped early")
    startup_trials: int = setting(5, "median: trials to complete before pruning starts", 1)
    warmup_epochs: int = setting(1, "epochs of a trial before it can be pruned", 1)


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """A search space; `settings` override the base in all trials."""

    name: str
    text: str
    options: SpaceOptions
    config: Path | None
    settings: Settings
    parameters: tuple[Parameter, ...]

    @property
    def monitor(self) -> Monitor:
        """The validation metric that ranks the trials; if none is chosen yet, that of single-label classification."""
        return self.options.monitor or "validation.accuracy"

    @property
    def metric(self) -> str:
        """The monitored metric, without its split."""
        return self.monitor.removeprefix("validation.")

    @property
    def minimize(self) -> bool:
        """Whether lower values of the monitored metric are better."""
        return self.metric == "loss"

    @property
    def monitored_field(self) -> str | None:
        """The monitored metric's field in `EpochRecord`; None for one that only a finished run has."""
        return f"val_{self.metric}" if self.monitor in IN_EACH_EPOCH else None

    def check_settings(self, assignments: Sequence[str]) -> None:
        """Raise `UsageError` for a setting of all trials that the space varies: it would override the varied values."""
        varied = {key for p in self.parameters for value in p.check_values for key in p.settings(value)}
        for text in assignments:
            name = text.partition("=")[0].strip()
            if overridden := [key for key in varied if f"{key}.".startswith(f"{name}.")]:
                raise UsageError(
                    f"{name} cannot be the same in all trials, since {self.name} varies {min(overridden)}: leave it "
                    "out, or take it out of the search space."
                )

    def with_monitor(self, assignments: Sequence[str]) -> SearchSpace:
        """Return the space with its task's metric, if it has no monitor; `assignments` apply to all trials.

        Raises `ConfigError` for a metric of another task, and for a pruner with a metric that only finished runs have.
        """
        cells = [{p.name: value} for p in self.parameters for value in p.check_values]
        tasks = {self.trial_config(cell, assignments).model.task for cell in cells}
        metrics = set.intersection(*(_list_monitors(find_task(task).targets) for task in tasks))
        prunes = self.options.pruner != "none"
        best_first = [name for name in get_args(Monitor) if name in metrics and (name in IN_EACH_EPOCH or not prunes)]
        default = best_first[0]
        if default == "validation.accuracy" and "validation.mean_average_precision" in metrics:
            default = "validation.loss"  # multi-label thresholds are chosen only at the end
        monitor = self.options.monitor or default
        if monitor not in metrics:
            raise ConfigError(
                f"{self.name}: {monitor} is a metric of a task other than {', '.join(sorted(tasks))}: set monitor to "
                f"one of {', '.join(best_first)}."
            )
        if monitor not in best_first:
            raise ConfigError(
                f'{self.name}: {monitor} is computed when a trial has ended, and pruner = "{self.options.pruner}" '
                f'needs a metric of each epoch: set monitor to one of {", ".join(best_first)}, or pruner = "none".'
            )
        return dataclasses.replace(self, options=dataclasses.replace(self.options, monitor=monitor))

    @property
    def grid_size(self) -> int | None:
        """The number of grid cells; None for other samplers."""
        if self.options.sampler != "grid":
            return None
        return math.prod(len(parameter.check_values) for parameter in self.parameters)

    def num_trials(self, requested: int | None = None) -> int:
        """Return the number of trials; `requested` is the value from the command line."""
        target = requested or self.options.trials
        size = self.grid_size
        return (target or 20) if size is None else min(target or size, size)

    def iter_grid(self) -> Iterator[dict[str, Value]]:
        """Yield the cells of a grid; the last parameter varies fastest."""
        for values in itertools.product(*(p.check_values for p in self.parameters)):
            yield {p.name: value for p, value in zip(self.parameters, values, strict=True)}

    def trial_assignments(self, values: Mapping[str, Value]) -> list[str]:
        """Return the ``KEY=VALUE`` assignments of a trial with these parameter `values`."""
        settings = dict(self.settings)
        for parameter in self.parameters:
            if parameter.name in values:
                settings |= parameter.settings(values[parameter.name])
        return [f"{key}={value if value == 'unset' else format_toml(value)}" for key, value in settings.items()]

    def trial_config(self, values: Mapping[str, Value] | None = None, assignments: Sequence[str] = ()) -> RunConfig:
        """Return the configuration of a trial before the images are read; raise `ConfigError` if it is invalid.

        `assignments` are applied after those of the space.
        """
        layers = [recipes.load(self.options.recipe)]
        if self.config is not None:
            layers.append(parse.read_toml(self.config))
        return resolve_config(*layers, assignments=[*self.trial_assignments(values or {}), *assignments])

    def canonical_text(self) -> str:
        """Return a canonical text of the space, independent of the comments and formatting of its file."""
        layer = parse.read_toml(self.config) if self.config is not None else {}
        ranges = [dataclasses.asdict(p) | {"values": list(p.check_values)} for p in self.parameters]
        choices = [[p.settings(v) for v in p.check_values] for p in self.parameters]
        head = [self.options.recipe, self.options.sampler, self.monitor]
        return jsonio.dumps([head, layer, self.settings, ranges, choices], default=str, ensure_ascii=True)


def _list_monitors(targets: Targets) -> set[str]:
    """Return the metrics of the tasks with these targets."""
    several = targets.allows_several
    has_metric = {
        "mean_iou": targets.are_masks, "mean_average_precision": several and not targets.are_masks, "accuracy": True,
        "loss": True, "quadratic_weighted_kappa": targets.are_ordered, "hierarchical_f1": targets.are_paths,
    }  # fmt: skip
    return {f"validation.{name}" for name, applies in has_metric.items() if applies}


def load_space(path_or_name: str | Path) -> SearchSpace:
    """Read a search space from the path of its file, or a built-in one by name.

    Raises `ConfigError` for an invalid file, `UsageError` for an unknown name.
    """
    path = _io.expand_home(path_or_name)
    if path.is_file() or path.suffix == ".toml":
        space = parse_space(parse.read_config_text(path), path.stem, path)
    else:
        folder = resources.files("sightline.recipes") / "sweeps"
        if str(path_or_name) not in list_spaces():
            raise UsageError(
                f"There is no search space {str(path_or_name)!r}, neither a file nor a built-in one."
                f"{suggest(str(path_or_name), list_spaces())}"
            )
        file = Path(f"{path_or_name}.toml")
        space = parse_space((folder / file.name).read_text(encoding="utf-8"), str(path_or_name), file)
    for parameter in space.parameters:  # fail on invalid settings before reading any image
        values = parameter.check_values
        if isinstance(parameter, RangeParameter) and parameter.step is not None:
            values.append(parameter.low + parameter.step)
        for value in values:
            space.trial_config({parameter.name: value})
    return space


def list_spaces() -> tuple[str, ...]:
    """Return the names of the built-in search spaces, sorted."""
    space_files = (resources.files("sightline.recipes") / "sweeps").iterdir()
    return tuple(sorted(f.name.removesuffix(".toml") for f in space_files if f.name.endswith(".toml")))


def parse_space(text: str, name: str, file: Path) -> SearchSpace:
    """Parse the text of a search space; its relative paths are resolved against the folder of its `file`."""
    try:
        values = parse.parse_toml(text)
    except ValueError as error:
        raise ConfigError(f"{file} is not a readable TOML file: {error}.") from error
    settings, space = values.pop("settings", {}), values.pop("space", {})
    sections = {field.name for field in dataclasses.fields(RunConfig)} - {"recipe"}
    if outside := [
        key for key, value in values.items() if key.partition(".")[0] in sections or isinstance(value, dict)
    ]:
        raise ConfigError(
            f"{name}: {outside[0]!r} is outside the tables: put settings shared by all trials under [settings], and "
            "those that vary under [space]."
        )
    options = parse.from_dict(SpaceOptions, values, f"{name}: ")
    for key, table in (("settings", settings), ("space", space)):
        if not isinstance(table, dict):
            raise ConfigError(f"{name}: {key} must be a table of settings, not {table!r}.")
    parameters = tuple(parse_parameters(space, name))
    if not parameters:
        raise ConfigError(f"{name} varies nothing: define at least one parameter under [space].")
    if options.sampler == "grid":
        for parameter in parameters:
            if isinstance(parameter, RangeParameter):
                raise ConfigError(
                    f"{name}: {parameter.name} is a range, but a grid needs a list of values: "
                    'list them, or set sampler = "random".'
                )
    config = file.parent / options.config if options.config is not None else None
    parsed_space = SearchSpace(name, text, options, config, flatten_settings(settings), parameters)
    if (parsed_space.grid_size or 0) > MAX_CELLS:
        raise ConfigError(
            f"{name} is a grid of {parsed_space.grid_size:,} trials: use fewer values, or another sampler."
        )
    return parsed_space
