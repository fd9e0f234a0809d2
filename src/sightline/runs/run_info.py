"""The schema of ``run.json``, so that an untrusted or damaged file is rejected when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from sightline import jsonio
from sightline.evaluation.results import ClassMetrics
from sightline.intervals import Interval
from sightline.training.result import SplitMetrics, TimeRecord, TrainingMetrics


class LeakageCounts(TypedDict, total=False):
    """How many images of a split are also in an earlier split."""

    count: int
    identical: int
    near_duplicates: int


class TimeInfo(TypedDict):
    """The time limit of a run and the time that it took, in seconds, and what more time would probably bring."""

    limit: float
    seconds: float
    outlook: str


class ResultInfo(TypedDict, total=False):
    """The result of a complete run, as printed by ``train --format json``."""

    run: str
    bundle: str | None
    no_bundle_reason: str | None
    recipe: str
    model: str
    parameters: int
    classes: list[str]
    train: TrainingMetrics | None
    validation: SplitMetrics | None
    test: SplitMetrics | None
    epochs: int
    seconds: float
    images_per_second: float
    weights_sha256: str
    notes: list[str]
    best_epoch: int | None
    unreadable: int
    skipped: int
    leaked: Mapping[str, LeakageCounts | None] | None
    untested_classes: Mapping[str, list[str]]
    lowest_recall: Mapping[str, ClassMetrics | None]
    metrics: Mapping[str, Mapping[str, float | None]]
    metric_intervals: Mapping[str, Mapping[str, Interval | None]]
    time: TimeInfo


ExtensionInfo = TypedDict("ExtensionInfo", {"from": int, "to": int, "stage_epochs_before": int, "stage_epochs": int})
"""One entry of ``extensions``, see `runs.extension`."""


class FindingInfo(TypedDict):
    """A finding of the checks before training."""

    kind: str
    severity: str
    count: int
    advice: str


class RecipeChoiceInfo(TypedDict):
    """The recipe that ``auto`` chose, why, and the other settings that it set; see `steps.RecipeChoice`."""

    recipe: str
    reason: str
    settings: Mapping[str, Any]


class RunInfo(TypedDict, total=False):
    """The content of ``run.json``; `request` is what `TrainRequest.to_dict` returns."""

    schema: Any
    status: str
    message: str
    batch: list[str]
    no_bundle_reason: str
    request: Mapping[str, Any]
    resumed: int
    extensions: list[ExtensionInfo]
    time: TimeRecord
    result: ResultInfo
    findings: list[FindingInfo]
    recipe_choice: RecipeChoiceInfo | None
    command: list[str]
    seed: int
    backend: str
    devices: list[str]
    threads: int
    processor: str
    platform: str
    versions: Mapping[str, str]


def read_run_info(path: Path) -> dict[str, Any]:
    """Read and validate a ``run.json``; raises `ModelError`, naming the file."""
    values = jsonio.read_object(path)
    jsonio.build(RunInfo, values, str(path))
    return values
