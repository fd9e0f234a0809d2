"""What a sweep found: records of its trials, and the files and figures made of them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

from sightline import jsonio
from sightline.escaping import CsvWriter, spreadsheet_cell
from sightline.records import Interval
from sightline.sweep.parameters import Value
from sightline.sweep.space import Space
from sightline.sweep.study import by_slot, optuna

FOREST_SEED = 0


class _Facts(TypedDict, total=False):
    """What is kept with a trial."""

    run: str | None
    accuracy: float
    accuracy_interval: tuple[float, float]
    loss: float
    parameters: int
    epochs: int
    seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial: `state` is complete, pruned, failed, running or waiting, and `reason` says why where it failed.

    `value` is the monitored figure: of the run's kept weights, or of the last epoch where the trial was pruned.
    `accuracy`, its 95% interval and `loss` are the validation part's. The test part is left out on purpose: who
    chooses by it has no test any more.
    """

    trial: int
    state: str
    value: float | None
    settings: Mapping[str, Value]
    run: str | None = None
    accuracy: float | None = None
    accuracy_interval: Interval | None = None
    loss: float | None = None
    parameters: int | None = None
    epochs: int | None = None
    seconds: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Sweep:
    """The outcome of a sweep; `trials` are sorted best first, those without a figure last.

    `importance` holds the share of each parameter in the differences between complete trials, largest first; None
    where it cannot be told (one parameter, fewer than two trials, or no differences).
    """

    study: str
    folder: str
    monitor: str
    trials: tuple[Trial, ...]
    importance: Mapping[str, float] | None

    @property
    def best(self) -> Trial | None:
        """The best complete trial."""
        return next((t for t in self.trials if t.state == "complete"), None)


def collect(study: Any, space: Space, folder: str) -> Sweep:
    """Return what the study holds now, but for the importance, which takes seconds."""
    trials = [_trial(slot, found) for slot, found in by_slot(study).items()]
    return Sweep(study.study_name, folder, space.head.monitor, tuple(ranked(trials, space)), None)


def _trial(slot: int, found: Any) -> Trial:
    attributes = {name: value for name, value in found.user_attrs.items() if name != "facts"}
    known: Any = jsonio.build(
        _Facts, {**attributes, **(found.user_attrs.get("facts") or {})}, f"The study's trial {slot}"
    )
    state = found.state.name.lower()
    settings = found.params or found.system_attrs.get("fixed_params", {})  # those of a waiting one are only queued
    value = found.value if state in {"complete", "pruned"} else None
    facts = {k: known.get(k) for k in ("run", "accuracy", "loss", "parameters", "epochs", "seconds", "reason")}
    interval = Interval(*known["accuracy_interval"]) if "accuracy_interval" in known else None
    state = {"fail": "failed"}.get(state, state)
    return Trial(slot, state, value, settings, accuracy_interval=interval, **facts)


def ranked(trials: list[Trial], space: Space) -> list[Trial]:
    """Return trials best first: complete ones, then pruned ones, then others; of equal ones that of the least loss."""
    sign = 1 if space.minimize else -1
    order = {"complete": 0, "pruned": 1, "failed": 2, "running": 3, "waiting": 4}

    def key(trial: Trial) -> tuple[float, ...]:
        value = float("inf") if trial.value is None else sign * trial.value
        return order[trial.state], value, float("inf") if trial.loss is None else trial.loss, trial.trial

    return sorted(trials, key=key)


def importance(study: Any, space: Space) -> dict[str, float] | None:
    """Return each parameter's share of the variance between complete trials (fANOVA: Hutter et al., ICML 2014)."""
    package = optuna()
    done = study.get_trials(deepcopy=False, states=(package.trial.TrialState.COMPLETE,))
    if len(space.parameters) < 2 or len({t.value for t in done}) < 2:
        return None
    evaluator = package.importance.FanovaImportanceEvaluator(seed=FOREST_SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the forest, about few trials
        try:
            shares = package.importance.get_param_importances(study, evaluator=evaluator)
        except (RuntimeError, ValueError):  # its trees found no variance
            return None
    return {name: float(share) for name, share in shares.items()}


def as_dict(found: Sweep) -> dict[str, Any]:
    """Return a sweep as ``sweep --json`` prints it."""
    best = found.best
    return {
        "study": found.study,
        "directory": found.folder,
        "monitor": found.monitor,
        "best": None if best is None else _row(best),
        "trials": [_row(t) for t in found.trials],
        "importance": None if found.importance is None else dict(found.importance),
    }


def _row(trial: Trial) -> dict[str, Any]:
    interval = trial.accuracy_interval
    ends = None if interval is None else [interval.low, interval.high]
    return asdict(trial) | {"settings": dict(trial.settings), "accuracy_interval": ends}


def as_csv(found: Sweep, space: Space) -> bytes:
    """Return a line for each trial, best first, and a column for each parameter.

    Text that a spreadsheet would take for a formula gets an apostrophe.
    """
    text = io.StringIO()
    writer = CsvWriter(text)
    names = [p.name for p in space.parameters]
    facts = ("accuracy", "low", "high", "loss", "parameters", "epochs", "seconds", "run", "reason")
    writer.write_row(["trial", "state", found.monitor, *names, *facts])
    for trial in found.trials:
        row = _row(trial)
        row["low"], row["high"] = row["accuracy_interval"] or (None, None)
        values = [trial.trial, trial.state, trial.value, *(trial.settings.get(n) for n in names)]
        writer.write_row([spreadsheet_cell(value) for value in [*values, *(row[f] for f in facts)]])
    return jsonio.encoded(text.getvalue())
