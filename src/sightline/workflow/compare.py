"""`compare`: show the settings that differ between runs, side by side with their results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sightline import intervals
from sightline.config import RunConfig, to_dict
from sightline.errors import UsageError
from sightline.evaluation import paired
from sightline.evaluation.paired import Contest
from sightline.records import EpochRecord, Interval, Predictions
from sightline.run import Run

Right = dict[tuple[str, str, int], bool]
ROUNDING = 1e-6  # tolerance for an accuracy to be a whole number of hits over a count


@dataclass(frozen=True, slots=True)
class Row:
    """One run: `accuracy` and `loss` are those of split `part`; `settings` are those that differ between the runs.

    `leaked` counts the images of that split that are also in an earlier split. An incomplete run has the validation
    metrics of its best epoch, the seconds of its epochs, and None for what it lacks.
    """

    name: str
    run: str
    status: str
    settings: dict[str, Any]
    model: str
    parameters: int | None
    part: str | None
    accuracy: float | None
    accuracy_interval: Interval | None
    loss: float | None
    epochs: int
    seconds: float
    history: tuple[EpochRecord, ...]
    leaked: int = 0


@dataclass(frozen=True, slots=True)
class Against:
    """Paired comparison of the run `name` with the first run, `first`; if `contest` is None, `note` says why.

    `part` is the split that both were evaluated on; images are paired by content and class.
    """

    first: str
    name: str
    part: str | None
    contest: Contest | None
    note: str


def contests(rows: Sequence[Row]) -> tuple[Against, ...]:
    """Compare each run with the first one, on the test images that both were evaluated on, else on validation images.

    The family-wise error rate of all comparisons is 5%.
    """
    first, *others = rows
    return tuple(_against(first, other, len(others)) for other in others)


def _against(first: Row, other: Row, tests: int) -> Against:
    runs = Run(Path(first.run)), Run(Path(other.run))
    for part in ("test", "validation"):
        one, two = (run.read_predictions(part) for run in runs)
        if one is None or two is None:
            continue
        a, b = _right(runs, part, (one, two))
        common = [key for key in a if key in b]
        if not common:
            return Against(first.name, other.name, part, None, f"their {part} splits have no image in common")
        pair = [np.array([right[key] for key in common]) for right in (a, b)]
        note = "" if len(common) == len(a) == len(b) else f"only {len(common)} images are in both {part} splits"
        return Against(first.name, other.name, part, paired.contest(pair[0], pair[1], tests=tests), note)
    return Against(first.name, other.name, None, None, "they were not evaluated on the same split: evaluate both first")


def _right(runs: tuple[Run, Run], part: str, found: tuple[Predictions, Predictions]) -> tuple[Right, Right]:
    """Return whether each image was classified correctly, keyed by content hash and true class, or by path and class.

    Paths are used if a run has no content hashes for its predictions. Repeated images are paired in order.
    """
    contents = [_contents(run, part, one) for run, one in zip(runs, found, strict=True)]
    known = all(names is not None for names in contents)
    first, second = (
        _numbered(names if known and names is not None else one.paths, one)
        for names, one in zip(contents, found, strict=True)
    )
    return first, second


def _contents(run: Run, part: str, found: Predictions) -> list[str] | None:
    rows = [row for row in run.read_data() or () if row.split == part]
    truth = [found.classes[i] for i in found.labels]
    return [row.sha256 for row in rows] if [row.label for row in rows] == truth else None


def _numbered(names: Sequence[str], found: Predictions) -> Right:
    right = (found.probabilities.argmax(1) == found.labels).tolist()
    seen: Counter[tuple[str, str]] = Counter()
    answers: Right = {}
    for name, label, hit in zip(names, found.labels, right, strict=True):
        key = name, found.classes[label]
        answers[*key, seen[key]] = hit
        seen[key] += 1
    return answers


def compare(paths: Sequence[str | Path]) -> tuple[Row, ...]:
    """Read two or more runs, complete or not, and return a row for each, in the given order.

    Raises `UsageError` for fewer than two runs or duplicates, `ModelError` for a path that is not a run.
    """
    folders = [Path(p) for p in paths]
    if len(folders) < 2:
        raise UsageError("A comparison needs two or more runs: give their folders, as in sightline compare RUN RUN.")
    places = [folder.resolve() for folder in folders]
    for i, place in enumerate(places):
        if place in places[:i]:
            raise UsageError(f"{folders[i]} is given twice: give each run once.")
    runs = [Run.open(folder) for folder in folders]
    configs = [run.config for run in runs]
    settings = _differing([settings_of(config) for config in configs])
    rows = zip(_names(folders), runs, configs, settings, strict=True)
    return tuple(_row(name, run, config, differing) for name, run, config, differing in rows)


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the shortest path suffixes that distinguish the folders."""
    absolute = [folder.resolve().parts for folder in folders]
    length = 1
    while len({parts[-length:] for parts in absolute}) < len(absolute):
        length += 1
    return ["/".join(parts[-length:]) for parts in absolute]


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Flatten a configuration to dotted keys; entries of lists of tables are numbered.

    >>> settings_of(RunConfig())["train.optimizer.name"]
    'adam'
    """
    found: dict[str, Any] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{path}.{key}" if path else key)
        elif isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
            for number, inner in enumerate(value):
                walk(inner, f"{path}.{number}")
        else:
            found[path] = value

    walk(to_dict(config), "")
    return found


def _differing(tables: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries of each table that differ between tables, with None for missing ones."""
    keys = dict.fromkeys(key for table in tables for key in table)
    differ = [key for key in keys if any(table.get(key) != tables[0].get(key) for table in tables)]
    return [{key: table.get(key) for key in differ} for table in tables]


def _row(name: str, run: Run, config: RunConfig, settings: dict[str, Any]) -> Row:
    info, history = run.info, run.read_history()
    result = info.get("result") or {}
    part = next((p for p in ("test", "validation") if result.get(p)), None)
    figures = result[part] if part else {}
    accuracy, loss, count = (figures.get(key) for key in ("accuracy", "loss", "count"))
    if not result and (best := _best(history, config.train.early_stop.monitor)) is not None:
        part, accuracy, loss, count = "validation", best.val_accuracy, best.val_loss, _count(run)
    return Row(
        name=name,
        run=str(run.path),
        status=str(info.get("status")),
        settings=settings,
        model=config.model.name,
        parameters=result.get("parameters"),
        part=part,
        accuracy=accuracy,
        accuracy_interval=_interval(accuracy, count),
        loss=loss,
        epochs=len(history),
        seconds=result.get("seconds", sum(r.seconds for r in history)),
        history=history,
        leaked=((result.get("leaked") or {}).get(part) or {}).get("count", 0),
    )


def _best(history: Sequence[EpochRecord], monitor: str) -> EpochRecord | None:
    """Return the epoch whose weights the run kept; None without validation images."""
    judged = [r for r in history if r.val_accuracy is not None]
    if not judged:
        return None
    return (min if monitor.endswith("loss") else max)(judged, key=lambda r: getattr(r, monitor))


def _count(run: Run) -> int:
    """Return the number of validation images of the run."""
    return sum(row.split == "validation" for row in run.read_data() or ())


def _interval(accuracy: float | None, count: int | None) -> Interval | None:
    """Return the 95% interval; None if `accuracy` is not a fraction of `count` images."""
    if accuracy is None or not count:
        return None
    hits = accuracy * count
    return intervals.wilson(round(hits), count) if abs(hits - round(hits)) < ROUNDING * count else None
