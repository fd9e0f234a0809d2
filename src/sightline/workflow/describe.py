"""`describe`: the layers and costs of a recipe, model or run, its diagram and its learning rates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sightline import files
from sightline.config import ModelConfig, RunConfig, recipes, resolve
from sightline.errors import OutputError, UsageError, suggest
from sightline.models import registry
from sightline.models.build import Plan, outline
from sightline.models.describe import Description
from sightline.models.describe import describe as describe_model
from sightline.prediction.keras import KerasPredictor
from sightline.report import diagram, schedules
from sightline.run import Run
from sightline.workflow.choose import SMALL
from sightline.workflow.classifier import load


@dataclass(frozen=True, slots=True)
class Subject:
    """The recipe, model or run that a name refers to; `trains` is false for a model, which has no training settings."""

    name: str
    config: RunConfig
    run: Path | None = None
    trains: bool = True


def find(name: str, assignments: Sequence[str] = ()) -> Subject:
    """Return the recipe, else the model, else the run called `name`.

    `assignments` are ``KEY=VALUE`` overrides. Raises `UsageError`, suggesting the nearest name.
    """
    path = Path(name)
    if name in recipes.names():
        config = resolve(recipes.load(name), assignments=assignments)
        if name == "auto" and config.model.name == "auto":
            raise UsageError(
                "The recipe auto chooses its network from the images: describe quick, transfer or a model instead."
            )
        return Subject(name, config)
    if name in registry.ENTRIES:
        return Subject(name, resolve({"model": {"name": name}}, assignments=assignments), trains=False)
    if path.is_dir():
        if assignments:
            raise UsageError(f"{name} is a run, whose settings are fixed: omit --set, or describe its recipe.")
        return Subject(path.resolve().name, Run.open(path).config, path)
    known = [*recipes.names(), *registry.ENTRIES]
    raise UsageError(f"There is no recipe, model or run {name!r}.{suggest(name, known)}")


def describe(subject: Subject, *, size: str | None = None, classes: int | None = None) -> Description:
    """Return the layers and costs of a network; nothing is trained, and only a run's weights are read.

    `size` is ``HxWxC`` or ``HxW``; default: the recipe's, else the model's, in color. `classes`: default 2 for a
    sigmoid output, else 10 for networks for small images and 1,000 for others. A run defines both.
    """
    if subject.run is not None:
        if size is not None or classes is not None:
            raise UsageError(
                f"{subject.name} is a run, which defines its input size and classes: omit --size and --classes."
            )
        predictor = load(subject.run, engine="keras").predictor
        assert isinstance(predictor, KerasPredictor)
        return describe_model(predictor.model, subject.name)
    config = subject.config
    model = replace(config.model, name="cifar10-deep") if config.model.name == "auto" else config.model
    entry = registry.find(model.name)
    height, width, channels = _size(config, entry.size, size)
    if classes is None:
        classes = 2 if model.head == "sigmoid" else 10 if entry.size <= SMALL else 1000
    if classes < 2:
        raise UsageError(f"A classifier needs at least two classes, not {classes}.")
    return describe_model(outline(_plan(model, height, width, channels, classes)).model, subject.name)


def _plan(model: ModelConfig, height: int, width: int, channels: int, classes: int) -> Plan:
    pixels = (127.5, 64.0)  # placeholder mean and std, which affect no shape
    return Plan(model, height, width, channels, classes, standard=pixels)


def _size(config: RunConfig, side: int, given: str | None) -> tuple[int, int, int]:
    picture = config.picture
    height = picture.height or picture.width or side
    channels = picture.channels or 3
    if given is None:
        return height, picture.width or height, channels
    match = re.fullmatch(r"(\d{1,4})x(\d{1,4})(?:x([13]))?", given.strip().lower())
    if match is None or not int(match[1]) or not int(match[2]):
        raise UsageError(f"--size {given} is not an image size: give height, width and channels, as in 224x224x3.")
    return int(match[1]), int(match[2]), int(match[3] or channels)


def draw(description: Description, path: str) -> None:
    """Draw a diagram of the network to `path`, which ends with ``.png`` or ``.svg``."""
    files.write(Path(path), diagram.architecture(description, diagram.format_of(path)))


def draw_schedule(subject: Subject, path: str, steps: int) -> None:
    """Plot the learning rates of all stages to `path`, with `steps` steps per epoch."""
    check(subject, path)
    stages = schedules.planned(subject.config, steps)
    schedule = subject.config.train.schedule
    title = f"{subject.name}: {schedule.name.replace('_', ' ')}"
    if schedule.name == "plateau":  # when it drops depends on training
        title += f", times {schedule.factor:g} whenever {schedule.monitor} plateaus"
    files.write(Path(path), schedules.rates(stages, steps, title, diagram.format_of(path)))


def check(subject: Subject, schedule: str | None = None, drawing: str | None = None) -> None:
    """Raise, before any work, if the figures could not be written."""
    for path in (schedule, drawing):
        if path is not None:
            diagram.format_of(path)
            if not Path(path).parent.is_dir():
                raise OutputError(f"{path} cannot be written: its folder does not exist. Choose another path.")
    if schedule is not None and not subject.trains:
        raise UsageError(f"{subject.name} is a model, which has no learning rate: use --schedule for recipes or runs.")
    if schedule is not None and not schedules.planned(subject.config, 1):
        raise UsageError(f"{subject.name} trains for 0 epochs: there is no learning rate to plot.")
