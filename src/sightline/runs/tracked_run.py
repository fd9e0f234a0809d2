"""The data that a run sends to trackers: its settings, epochs, final metrics with intervals, and files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sightline.callbacks import Callback, EpochRecord
from sightline.config import RunConfig, flatten_config
from sightline.errors import Interrupted
from sightline.evaluation.results import Metric, TaskResult
from sightline.runs.directory import RunDirectory
from sightline.tracking.tracker import Status, TrackedRun, TrackerList, make_tracker


@contextmanager
def open_trackers(config: RunConfig, callback: Callback) -> Iterator[TrackerList]:
    """Yield the trackers of the setting ``train.track``, not started yet, and finish them when the block ends."""
    trackers = TrackerList({name: make_tracker(name) for name in config.train.track}, callback.on_message)
    status: Status = "failed"
    try:
        yield trackers
        status = "complete"
    except (Interrupted, KeyboardInterrupt):
        status = "interrupted"
        raise
    finally:
        trackers.finish(status)


def start_trackers(trackers: TrackerList, run: RunDirectory, config: RunConfig, history: Sequence[EpochRecord]) -> None:
    """Start the trackers of a run that has the epochs of `history` already, and record their ids in ``run.json``."""
    stored: Any = run.info.get("tracked_ids")
    ids = stored if isinstance(stored, Mapping) else {}
    params = flatten_config(config)
    runs: dict[str, TrackedRun] = {
        name: TrackedRun(run.path, params, str(ids.get(name, "")), len(history)) for name in config.train.track
    }
    if new_ids := trackers.start(runs, history):
        run.update(tracked_ids={**ids, **new_ids})


def list_result_metrics(evaluations: Mapping[Any, TaskResult]) -> dict[str, float]:
    """Return the metrics of each split, as ``test/accuracy``, and the limits of their intervals, as ``..._low``."""
    values: dict[str, float] = {}
    for split, evaluation in evaluations.items():
        accuracy = Metric(evaluation.accuracy, evaluation.accuracy_interval)
        for name, metric in {"accuracy": accuracy, "loss": Metric(evaluation.loss), **evaluation.metrics}.items():
            if metric.value is None:
                continue
            values[f"{split}/{name}"] = metric.value
            if metric.interval is not None:
                values[f"{split}/{name}_low"], values[f"{split}/{name}_high"] = (
                    metric.interval.low,
                    metric.interval.high,
                )
    return values


def list_artifacts(run: RunDirectory) -> list[Path]:
    """Return the bundle and the report, as far as they exist."""
    return [path for path in (run.path / "bundle", run.path / "report.html") if path.exists()]
