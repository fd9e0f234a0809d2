"""The results of a sweep: its trials, their ranking, parameter importance and the results table."""

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
    """The user attributes of a trial."""

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
    """One trial: `state` is complete, pruned, failed, running or waiting; `reason` explains a failure.

    `value` is the monitored metric: of the run's final weights, or of the last epoch if the trial was pruned.
    `accuracy`, its 95% interval and `loss` are those of the validation split. Test metrics are omitted on purpose:
    selecting by them would invalidate the test.
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
    """The result of a sweep; `trials` are sorted best first, those without a value last.

    `importance` is the fraction of the variance between complete trials that each parameter explains, largest first;
    None if it cannot be estimated (one parameter, fewer than two trials, or no differences).
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
    """Return the current state of the study, without the importance, which takes seconds to compute."""
    trials = [_trial(slot, found) for slot, found in by_slot(study).items()]
    return Sweep(study.study_name, folder, space.head.monitor, tuple(ranked(trials, space)), None)


def _trial(slot: int, found: Any) -> Trial:
    attributes = {name: value for name, value in found.user_attrs.items() if name != "facts"}
    known: Any = jsonio.build(
        _Facts, {**attributes, **(found.user_attrs.get("facts") or {})}, f"The study's trial {slot}"
    )
    state = found.state.name.lower()
    settings = found.params or found.system_attrs.get("fixed_params", {})  # a waiting trial has only queued values
    value = found.value if state in {"complete", "pruned"} else None
    facts = {k: known.get(k) for k in ("run", "accuracy", "loss", "parameters", "epochs", "seconds", "reason")}
    interval = Interval(*known["accuracy_interval"]) if "accuracy_interval" in known else None
    state = {"fail": "failed"}.get(state, state)
    return Trial(slot, state, value, settings, accuracy_interval=interval, **facts)


def ranked(trials: list[Trial], space: Space) -> list[Trial]:
    """Sort trials best first: complete, pruned, then others; ties by loss."""
    sign = 1 if space.minimize else -1
    order = {"complete": 0, "pruned": 1, "failed": 2, "running": 3, "waiting": 4}

    def key(trial: Trial) -> tuple[float, ...]:
        value = float("inf") if trial.value is None else sign * trial.value
        return order[trial.state], value, float("inf") if trial.loss is None else trial.loss, trial.trial

    return sorted(trials, key=key)


def importance(study: Any, space: Space) -> dict[str, float] | None:
    """Return the fraction of the variance each parameter explains (fANOVA: Hutter et al., ICML 2014)."""
    package = optuna()
    done = study.get_trials(deepcopy=False, states=(package.trial.TrialState.COMPLETE,))
    if len(space.parameters) < 2 or len({t.value for t in done}) < 2:
        return None
    evaluator = package.importance.FanovaImportanceEvaluator(seed=FOREST_SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the random forest warns about few trials
        try:
            shares = package.importance.get_param_importances(study, evaluator=evaluator)
        except (RuntimeError, ValueError):  # there is no variance to explain
            return None
    return {name: float(share) for name, share in shares.items()}


def as_dict(found: Sweep) -> dict[str, Any]:
    """Return a sweep in the form of ``sweep --json``."""
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
    """Return the trials as CSV, best first, with a column per parameter.

    Text that a spreadsheet would interpret as a formula is prefixed with an apostrophe.
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
