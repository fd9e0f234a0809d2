"""A recipe, a model or a run taken apart: its arithmetic, its drawing, its learning rates."""

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
    """What a name stands for: settings, and a run where it is one. `trains` tells whether it says how to train."""

    name: str
    config: RunConfig
    run: Path | None = None
    trains: bool = True


def find(name: str, assignments: Sequence[str] = ()) -> Subject:
    """Return the recipe, the model or the run called `name`; where several are, the first of these.

    `assignments` are ``KEY=VALUE`` settings laid on it. Raises `UsageError` with the nearest name.
    """
    path = Path(name)
    if name in recipes.names():
        config = resolve(recipes.load(name), assignments=assignments)
        if name == "auto" and config.model.name == "auto":
            raise UsageError(
                "The recipe auto chooses its network when it sees the pictures: describe quick, transfer or a model."
            )
        return Subject(name, config)
    if name in registry.ENTRIES:
        return Subject(name, resolve({"model": {"name": name}}, assignments=assignments), trains=False)
    if path.is_dir():
        if assignments:
            raise UsageError(f"{name} is a run, whose settings are fixed: leave --set out, or describe its recipe.")
        return Subject(path.resolve().name, Run.open(path).config, path)
    known = [*recipes.names(), *registry.ENTRIES]
    raise UsageError(f"There is no recipe, model or run {name!r}.{suggest(name, known)}")


def describe(subject: Subject, *, size: str | None = None, classes: int | None = None) -> Description:
    """Return the arithmetic of a network; nothing is trained, and no weights are read but a run's.

    `size` is ``HxWxC`` or ``HxW``; default: the recipe's, else the model's own, in colour. `classes`: default 2 for one
    sigmoid, else 10 for networks made for small pictures, 1,000 for the others. A run has both already.
    """
    if subject.run is not None:
        if size is not None or classes is not None:
            raise UsageError(
                f"{subject.name} is a run, which has its size and classes: leave --size and --classes out."
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
        raise UsageError(f"A classifier has at least two classes, not {classes}.")
    return describe_model(outline(_plan(model, height, width, channels, classes)).model, subject.name)


def _plan(model: ModelConfig, height: int, width: int, channels: int, classes: int) -> Plan:
    pixels = (127.5, 64.0)  # mean and deviation, which the data decides and no shape depends on
    return Plan(model, height, width, channels, classes, standard=pixels)


def _size(config: RunConfig, side: int, given: str | None) -> tuple[int, int, int]:
    picture = config.picture
    height = picture.height or picture.width or side
    channels = picture.channels or 3
    if given is None:
        return height, picture.width or height, channels
    match = re.fullmatch(r"(\d{1,4})x(\d{1,4})(?:x([13]))?", given.strip().lower())
    if match is None or not int(match[1]) or not int(match[2]):
        raise UsageError(
            f"--size {given} is no size of pictures: give rows, columns and 1 or 3 channels, as in 224x224x3."
        )
    return int(match[1]), int(match[2]), int(match[3] or channels)


def draw(description: Description, path: str) -> None:
    """Draw a network into `path`, whose suffix is ``.png`` or ``.svg``."""
    files.write(Path(path), diagram.architecture(description, diagram.format_of(path)))


def draw_schedule(subject: Subject, path: str, steps: int) -> None:
    """Draw the learning rates of all stages into `path`, for data of `steps` steps to an epoch."""
    check(subject, path)
    stages = schedules.planned(subject.config, steps)
    schedule = subject.config.train.schedule
    title = f"{subject.name}: {schedule.name.replace('_', ' ')}"
    if schedule.name == "plateau":  # when it falls, only training tells
        title += f", times {schedule.factor:g} whenever {schedule.monitor} stalls"
    files.write(Path(path), schedules.rates(stages, steps, title, diagram.format_of(path)))


def check(subject: Subject, schedule: str | None = None, drawing: str | None = None) -> None:
    """Raise, before any work, what would stop the drawings."""
    for path in (schedule, drawing):
        if path is not None:
            diagram.format_of(path)
            if not Path(path).parent.is_dir():
                raise OutputError(f"{path} cannot be written: there is no such folder. Name another place.")
    if schedule is not None and not subject.trains:
        raise UsageError(f"{subject.name} is a model, which has no learning rate: give --schedule a recipe or a run.")
    if schedule is not None and not schedules.planned(subject.config, 1):
        raise UsageError(f"{subject.name} trains for no epoch: there is no learning rate to draw.")
