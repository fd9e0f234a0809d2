"""Data for the training page: the studio's images, a data set by name, or a run's images; users type no paths."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sightline.api.options import to_assignments
from sightline.config import ModelConfig, parse
from sightline.data.sources import named
from sightline.errors import SightlineError, UsageError
from sightline.runs.directory import RunDirectory
from sightline.runs.run_images import is_in_memory, resolve_sources
from sightline.runs.train_request import TrainRequest
from sightline.studio.corrections import Corrections

OF_RUN = "run:"  # prefix for choosing the images of a run by name


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Images as command-line arguments: sources, ``KEY=VALUE`` settings, and the file of their corrections."""

    sources: tuple[str, ...]
    settings: tuple[str, ...] = ()
    patch: Path | None = None


@dataclass(frozen=True, slots=True)
class OwnData:
    """The images of the studio, with the corrections made so far."""

    sources: tuple[str, ...]
    settings: tuple[str, ...]
    corrections: Corrections
    initial: Path | None = None

    @property
    def patch(self) -> Path | None:
        """The current patch file; None without corrections."""
        return self.corrections.path if self.corrections.path.exists() else self.initial


def list_named() -> list[str]:
    """Return the names of the data sets that can be chosen."""
    return ["beans", "digits", *named.KERAS_DATASETS, *named.SOURCES]


def describe_run_data(run: RunDirectory) -> str | None:
    """Return the names of the sources of a run, without folders; None if they cannot be trained on again."""
    try:
        if not run.has_config or is_in_memory(run):
            return None
        return ", ".join(Path(source).name or source for source in run.config.data.sources)
    except SightlineError:  # a damaged file
        return None


def read_run_data(run: RunDirectory) -> TrainingData:
    """Return the images of a run, with its splits and corrections; raise `DataError` if they cannot be read again."""
    sources = tuple(resolve_sources(run))
    return TrainingData(sources, (*list_data_settings(run), *set_task(run.config.model.task)), run.patch)


def find_data(choice: str, own: OwnData | None, folder: Path) -> TrainingData:
    """Return the chosen images: "" for the studio's, a name from `list_named`, or `OF_RUN` and the name of a run.

    Raises `UsageError` for any other text, `DataError` if the images of the run are gone.
    """
    if choice.startswith(OF_RUN):
        return read_run_data(RunDirectory(folder / choice.removeprefix(OF_RUN)))
    if choice in list_named():
        return TrainingData((choice,))
    if choice:
        raise UsageError(f"There are no images {choice[:200]!r} to choose: start a studio with them.")
    if own is None:
        raise UsageError("These images are in memory, where another process cannot read them: choose others.")
    return TrainingData(own.sources, own.settings, own.patch)


def set_task(task: str) -> tuple[str, ...]:
    """Return the setting of a task, if it is not the default."""
    return () if task in ("", ModelConfig().task) else (f"model.task={task}",)


def list_data_settings(run: RunDirectory) -> list[str]:
    """Return a run's settings for reading and splitting its images that differ from the defaults, as ``KEY=VALUE``."""
    request = run.info.get("request")
    config = run.config
    if request is not None:
        config = TrainRequest.from_dict(request, str(run.path / "run.json")).with_relative_paths(config)
    defaults = parse.flatten_config(type(config)())
    settings = {
        key: value
        for key, value in parse.flatten_config(config).items()
        if key.startswith(("data.", "split."))
        and key not in {"data.sources", "data.patch"}
        and value != defaults.get(key)
    }
    return to_assignments(settings | {"seed": config.seed})
