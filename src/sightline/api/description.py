"""`describe`: the layers and costs of a recipe, model or run, its diagram and its learning rates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sightline import _io
from sightline.api import owned_png
from sightline.api.argument_types import check_types
from sightline.api.loading import load
from sightline.api.options import Settings, to_assignments
from sightline.config import RunConfig, recipes, resolve_config
from sightline.errors import UsageError, suggest
from sightline.inference.runtimes.keras import KerasPredictor
from sightline.models import registry
from sightline.models.build import build_shapes_only
from sightline.models.describe import ModelDescription, describe_model
from sightline.report import lr_plot
from sightline.report.diagram import parse_format, plot_architecture
from sightline.runs.directory import RunDirectory
from sightline.runs.facts import specify_graph
from sightline.runs.steps import SMALL_SIDE


@dataclass(frozen=True, slots=True)
class _Target:
    """The recipe, model or run that a name refers to; a model has no training settings."""

    name: str
    config: RunConfig
    run: Path | None = None
    has_training: bool = True


def _find_target(name: str, assignments: Sequence[str]) -> _Target:
    """Return the recipe, else the model, else the run called `name`; raises `UsageError`, suggesting the nearest."""
    path = _io.expand_home(name)
    if name in recipes.names():
        config = resolve_config(recipes.load(name), assignments=assignments)
        if name == "auto" and config.model.name == "auto":
            raise UsageError(
                "The recipe auto chooses its network from the images: describe quick, transfer or a model instead."
            )
        return _Target(name, config)
    if name in registry.ENTRIES:
        return _Target(name, resolve_config({"model": {"name": name}}, assignments=assignments), has_training=False)
    if path.is_dir():
        if assignments:
            raise UsageError(f"{name} is a run, whose settings are fixed: omit --set, or describe its recipe.")
        return _Target(path.resolve().name, RunDirectory.open(path).config, path)
    valid_names = {*recipes.names(), *registry.ENTRIES}  # a recipe and its model may share a name
    raise UsageError(f"There is no recipe, model or run {name!r}.{suggest(name, valid_names)}")


@check_types
def describe(
    name: str | Path,
    *,
    size: str | None = None,
    classes: int | None = None,
    set: Settings = (),  # noqa: A002  # the option's own name
    diagram: str | Path | None = None,
    schedule: str | Path | None = None,
    steps: int = 100,
) -> ModelDescription:
    """Describe the layers and costs of a network; nothing is trained.

    Args:
        name: A recipe, else a model, else the path of a run.
        size: The size of the images, as in ``"224x224x3"`` or ``"224x224"``; by default the recipe's, else the
            model's. A run defines its own.
        classes: The number of classes; by default 10 for networks for small images, 1,000 for others, and 2 for a
            sigmoid output. A run defines its own.
        set: Settings of a recipe or a model, as in ``{"model.alpha": 0.5}``.
        diagram: A ``.svg`` or ``.png`` file to draw the network to.
        schedule: A ``.svg`` or ``.png`` file for a plot of the learning rate over the steps.
        steps: The number of steps in an epoch, for `schedule`.

    Returns:
        A row for each layer: output shape, parameters, multiply-adds, receptive field, memory.

    Raises:
        UsageError: If there is no recipe, model or run of this name; the message suggests the nearest one.
        OutputError: If a file cannot be written, or exists and is not such a figure.

    Example:
        ```python
        print(sl.describe("cifar10-simple", size="32x32", classes=10).parameters)
        ```
    """
    target = _find_target(str(name), to_assignments(set))
    schedule_path, diagram_path = (None if path is None else str(path) for path in (schedule, diagram))
    if steps < 1:
        raise UsageError(f"steps is the number of steps in an epoch, at least 1, not {steps}.")
    _check_outputs(target, schedule_path, diagram_path)
    description = _describe_target(target, size, classes)
    if diagram_path is not None:
        drawing = plot_architecture(description, parse_format(diagram_path))
        _io.write_atomic(_io.output_path(diagram_path), drawing)
    if schedule_path is not None:
        _io.write_atomic(_io.output_path(schedule_path), _plot_schedule(target, parse_format(schedule_path), steps))
    return description


def _describe_target(target: _Target, size: str | None, classes: int | None) -> ModelDescription:
    """Return the layers and costs of a network, with the arguments of `describe`; only a run's weights are read."""
    if target.run is not None:
        if size is not None or classes is not None:
            raise UsageError(
                f"{target.name} is a run, which defines its input size and classes: omit --size and --classes."
            )
        predictor = load(target.run, engine="keras").predictor
        assert isinstance(predictor, KerasPredictor)
        return describe_model(predictor.model, target.name)
    config = target.config
    model = replace(config.model, name="cifar10-deep") if config.model.name == "auto" else config.model
    entry = registry.get_entry(model.name)
    height, width, channels = _parse_input_size(config, entry.input_size, size)
    if classes is None:
        classes = 2 if model.head == "sigmoid" else 10 if entry.input_size <= SMALL_SIDE else 1000
    if classes < 2:
        raise UsageError(f"A classifier needs at least two classes, not {classes}.")
    spec = specify_graph(replace(config, model=model), height, width, channels, classes)
    return describe_model(build_shapes_only(spec).model, target.name)


def _parse_input_size(config: RunConfig, default_side: int, size_text: str | None) -> tuple[int, int, int]:
    input_config = config.input
    height = input_config.height or input_config.width or default_side
    channels = input_config.channels or 3
    if size_text is None:
        return height, input_config.width or height, channels
    match = re.fullmatch(r"(\d{1,4})x(\d{1,4})(?:x([13]))?", size_text.strip().lower())
    if match is None or not int(match[1]) or not int(match[2]):
        raise UsageError(f"--size {size_text} is not an image size: give height, width and channels, as in 224x224x3.")
    return int(match[1]), int(match[2]), int(match[3] or channels)


def _plot_schedule(target: _Target, figure_format: str, steps: int) -> bytes:
    """Return a plot of the learning rates of all stages, with `steps` steps per epoch."""
    stages = lr_plot.plan_stages(target.config, steps)
    schedule = target.config.train.schedule
    title = f"{target.name}: {schedule.name.replace('_', ' ')}"
    if schedule.name == "plateau":  # when it drops depends on training
        title += f", times {schedule.factor:g} whenever {schedule.monitor} plateaus"
    return lr_plot.plot_learning_rates(stages, steps, title, figure_format)


def _check_outputs(target: _Target, schedule_path: str | None, diagram_path: str | None) -> None:
    """Raise, before any work, if the figures could not be written."""
    for option, path in (("--schedule", schedule_path), ("--diagram", diagram_path)):
        if path is not None:
            parse_format(path)  # raises `UsageError` for another format
            owned_png.check_output(path, option, may_be_svg=True)
    if schedule_path is not None and not target.has_training:
        raise UsageError(f"{target.name} is a model, which has no learning rate: use --schedule for recipes or runs.")
    if schedule_path is not None and not lr_plot.plan_stages(target.config, 1):
        raise UsageError(f"{target.name} has no learning rate to plot: its head is solved, not trained by steps.")
