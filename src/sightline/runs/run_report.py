"""The values in a run's report, read only from the run's files, without its model or images."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from sightline import jsonio
from sightline.callbacks import EpochRecord
from sightline.config import RunConfig
from sightline.data.checks.leakage import Leak
from sightline.data.label_patch import PatchEntry
from sightline.data.types import Split
from sightline.errors import ModelError
from sightline.inference.results import Thresholds
from sightline.models.describe import ModelDescription
from sightline.preprocessing import PreprocessingSpec
from sightline.runs import report_images
from sightline.runs.directory import RunDirectory
from sightline.runs.metrics_info import read_metrics
from sightline.runs.report_images import Images, ReportImage

T = TypeVar("T")
ENVIRONMENT = ("backend", "devices", "threads", "processor", "platform", "versions")  # keys of run.json


@dataclass(frozen=True, slots=True)
class UnreadFile:
    """A file missing from the report: its name in the run, and why it cannot be read; "" if it does not exist."""

    name: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RunReport:
    """The values of a run's report; values that a run does not have, or that are `unread`, are None or empty.

    `result`, `recipe_choice`, `findings` and `environment` are those of ``run.json``, `metrics` the content of
    ``eval/<split>/metrics.json`` for the test split, else for validation. `thresholds` are those that predictions use;
    `metrics` may have been computed with others. `label_issues` are None before they are searched for. `commands`
    repeat the training, the evaluation and the report.
    """

    run: str
    config: RunConfig
    config_text: str
    result: Mapping[str, Any]
    recipe_choice: Mapping[str, Any] | None
    findings: tuple[Mapping[str, Any], ...]
    environment: Mapping[str, Any]
    commands: tuple[str, ...]
    history: tuple[EpochRecord, ...]
    metrics: Mapping[str, Any] | None
    thresholds: Thresholds | None
    leaks: tuple[Leak, ...]
    label_issues: tuple[PatchEntry, ...] | None
    network: ModelDescription | None
    preprocess: PreprocessingSpec | None
    images: Images
    unread: tuple[UnreadFile, ...]

    @property
    def has_new_thresholds(self) -> bool:
        """Whether the thresholds of the model changed after `metrics` were computed."""
        return (
            self.metrics is not None and (self.thresholds and self.thresholds.to_dict()) != self.metrics["thresholds"]
        )


class _Reader:
    """Reads files of a run, and collects those that are damaged, links, or missing from a run that must have them."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self.unread: list[UnreadFile] = []

    def read(self, name: str, read: Callable[[], T], default: T, *, optional: bool = False) -> T:
        path = self._run.path / name
        if any(place.is_symlink() for place in (path, *path.parents[: name.count("/")])):
            self.unread.append(UnreadFile(name, "links are not followed"))
            return default
        if not optional and not path.exists():
            self.unread.append(UnreadFile(name))
            return default
        try:
            return read()
        except ModelError as error:
            self.unread.append(UnreadFile(name, str(error)))
            return default

    def read_metrics(self, result: Mapping[str, Any]) -> Mapping[str, Any] | None:
        split = find_reported_split(result)
        if split is None:
            return None
        name = f"eval/{split}/metrics.json"
        return self.read(name, lambda: read_metrics(self._run.path / name), None)

    def read_images(self) -> Images:
        folder, none = report_images.FOLDER, dict[ReportImage, bytes]()
        images: Images = self.read(
            f"{folder}/{report_images.INDEX}", lambda: report_images.read_images(self._run), none
        )
        self.unread += [UnreadFile(f"{folder}/{image.file}") for image, content in images.items() if not content]
        return images


def find_reported_split(result: Mapping[str, Any] | Mapping[Split, Any] | None) -> Split | None:
    """Return the split of the report: test, else validation; None if neither was evaluated."""
    splits: tuple[Split, ...] = ("test", "validation")
    return next((split for split in splits if (result or {}).get(split) is not None), None)


def read_report(run: RunDirectory) -> RunReport:
    """Read the report of a run that has a result.

    Raises `ModelError` if its result, and `ConfigError` if its configuration cannot be read. Any other file that cannot
    be read is `unread`.
    """
    info, reader = run.info, _Reader(run)
    result = run.get_result(info)
    return RunReport(
        run=str(run.path),
        config=run.config,
        config_text=run.config_text,
        result=result,
        recipe_choice=info.get("recipe_choice"),
        findings=tuple(info.get("findings", ())),
        environment={key: info[key] for key in ENVIRONMENT if key in info},
        commands=_list_commands(run, info),
        history=reader.read("history.jsonl", run.read_history, ()),
        metrics=reader.read_metrics(result),
        thresholds=reader.read("thresholds.json", run.read_thresholds, None, optional=True),
        leaks=reader.read("leakage.jsonl", run.read_leaks, ()),
        label_issues=reader.read("label_issues.jsonl", run.read_label_issues, None, optional=True),
        network=reader.read("network.json", lambda: _read_network(run), None),
        preprocess=reader.read("model.json", lambda: run.read_model_spec()[1], None),
        images=reader.read_images(),
        unread=tuple(reader.unread),
    )


def write_network(run: RunDirectory, network: ModelDescription) -> None:
    """Save the layers of the network and their cost."""
    run.write_file("network.json", jsonio.encode_text(jsonio.dumps(network.to_dict(), indent=2) + "\n"))


def _read_network(run: RunDirectory) -> ModelDescription:
    path = run.path / "network.json"
    return ModelDescription.from_dict(jsonio.read_object(path), str(path))


def _list_commands(run: RunDirectory, info: Mapping[str, Any]) -> tuple[str, ...]:
    command = info.get("command", [])
    path = shlex.quote(str(run.path))
    return (
        *([shlex.join(["sightline", *command[1:]])] if command[1:2] == ["train"] else []),
        *(f"sightline resume {path} --epochs {entry['to']}" for entry in info.get("extensions", [])),
        f"sightline evaluate {path}",
        f"sightline report {path}",
    )
