"""`compare`: what several runs have in common is left out, what differs and what came of it stands side by side."""

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
ROUNDING = 1e-6  # an accuracy is a whole number of hits over a count, up to this


@dataclass(frozen=True, slots=True)
class Row:
    """One run: `part` names the part that `accuracy` is of; `settings` are those that differ between the runs.

    `leaked` counts the images of that part that are in an earlier split too.
    A run that was not completed has the validation figures of its best epoch, the seconds of its epochs, and None where
    it has nothing.
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
    """How the run called `name` did against the first run, `first`; `contest` is None, and `note` says why.

    `part` is the part of both that was judged; the images are those of one content and one class in both.
    """

    first: str
    name: str
    part: str | None
    contest: Contest | None
    note: str


def contests(rows: Sequence[Row]) -> tuple[Against, ...]:
    """Put each run but the first against the first, on the test pictures that both were judged on, else validation.

    The verdicts share a chance of 5% of one false one among all.
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
            return Against(first.name, other.name, part, None, f"no picture of their {part} parts is the same")
        pair = [np.array([right[key] for key in common]) for right in (a, b)]
        note = "" if len(common) == len(a) == len(b) else f"only {len(common)} pictures are in both {part} parts"
        return Against(first.name, other.name, part, paired.contest(pair[0], pair[1], tests=tests), note)
    return Against(first.name, other.name, None, None, "they were not both judged on one part: evaluate both first")


def _right(runs: tuple[Run, Run], part: str, found: tuple[Predictions, Predictions]) -> tuple[Right, Right]:
    """Return whether each image was classified rightly, by its content and true class, or by its path and class.

    The path counts where a run does not know the contents of its predictions. Of an image that is there twice, the
    first is compared with the first, the second with the second.
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
    """Read two runs or more, complete or not, and return a row for each, in the order given.

    Raises `UsageError` for fewer than two runs or one given twice, `ModelError` for what is no run.
    """
    folders = [Path(p) for p in paths]
    if len(folders) < 2:
        raise UsageError("A comparison needs two runs or more: name their folders, as in sightline compare RUN RUN.")
    places = [folder.resolve() for folder in folders]
    for i, place in enumerate(places):
        if place in places[:i]:
            raise UsageError(f"{folders[i]} is given twice: name each run once.")
    runs = [Run.open(folder) for folder in folders]
    configs = [run.config for run in runs]
    settings = _differing([settings_of(config) for config in configs])
    rows = zip(_names(folders), runs, configs, settings, strict=True)
    return tuple(_row(name, run, config, differing) for name, run, config, differing in rows)


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the folders' last names, or as much of their paths as tells them apart."""
    absolute = [folder.resolve().parts for folder in folders]
    length = 1
    while len({parts[-length:] for parts in absolute}) < len(absolute):
        length += 1
    return ["/".join(parts[-length:]) for parts in absolute]


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Return a configuration as one table of dotted keys; entries of lists of tables are numbered.

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
    """Return of each table the entries that are not equal in all, None where a table has none."""
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
    """Return the epoch whose weights the run kept; None if nothing was held out."""
    judged = [r for r in history if r.val_accuracy is not None]
    if not judged:
        return None
    return (min if monitor.endswith("loss") else max)(judged, key=lambda r: getattr(r, monitor))


def _count(run: Run) -> int:
    """Return how many images the run held out for validation."""
    return sum(row.split == "validation" for row in run.read_data() or ())


def _interval(accuracy: float | None, count: int | None) -> Interval | None:
    """Return the 95% interval; None where the accuracy is no share of `count` images."""
    if accuracy is None or not count:
        return None
    hits = accuracy * count
    return intervals.wilson(round(hits), count) if abs(hits - round(hits)) < ROUNDING * count else None
