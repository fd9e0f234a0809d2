"""The results of a sweep: its trials, their ranking, parameter importance and the results table."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from sightline import jsonio
from sightline.api.record_list import build_frame, format_html_table, format_text_table
from sightline.errors import ModelError
from sightline.escaping import CsvWriter
from sightline.intervals import Interval
from sightline.sweeps.parameters import Value
from sightline.sweeps.search_space import SearchSpace
from sightline.sweeps.study import import_optuna, trials_by_slot

FOREST_SEED = 0


class _TrialAttributes(TypedDict, total=False):
    """The user attributes of a trial."""

    run: str | None
    accuracy: float
    interval: tuple[float, float]
    loss: float
    parameters: int
    epochs: int
    seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class TrialResult:
    """One trial: `state` is complete, pruned, failed, running or waiting; `reason` explains a failure.

    `value` is the monitored metric of the run's final weights, with its 95% `interval` if it has one, or of the last
    epoch if the trial was pruned. `accuracy` and `loss` are for the validation split. Test metrics are omitted on
    purpose: selecting by them would invalidate the test.
    """

    trial: int
    state: str
    value: float | None
    settings: Mapping[str, Value]
    interval: Interval | None = None
    run: str | None = None
    accuracy: float | None = None
    loss: float | None = None
    parameters: int | None = None
    epochs: int | None = None
    seconds: float | None = None
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return jsonio.fields_to_dict(self)


@dataclass(frozen=True, slots=True, repr=False)
class SweepResult:
    """The result of a sweep, shown in a notebook as a table of the trials.

    Attributes:
        study: The name of the study.
        directory: The folder of the sweep.
        monitor: The validation metric that ranks the trials.
        trials: The trials, best first, trials without a value last.
        importance: The fraction of the variance between complete trials that each parameter explains, largest first;
            None if it cannot be estimated (one parameter, fewer than two trials, or no differences).
    """

    study: str
    directory: str
    monitor: str
    trials: tuple[TrialResult, ...]
    importance: Mapping[str, float] | None

    def to_frame(self) -> Any:
        """Return a pandas DataFrame with a row per trial; raise `MissingExtraError` without pandas."""
        return build_frame([_trial_row(trial) for trial in self.trials])

    def __repr__(self) -> str:
        return f"{self.study}: {self.directory}\n{format_text_table([_trial_row(trial) for trial in self.trials])}"

    def _repr_html_(self) -> str:
        return format_html_table([_trial_row(trial) for trial in self.trials], title=f"{self.study}: {self.directory}")

    @property
    def best(self) -> TrialResult | None:
        """The best complete trial."""
        return next((t for t in self.trials if t.state == "complete"), None)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the best trial as JSON values."""
        return jsonio.fields_to_dict(self) | {"best": jsonio.to_plain(self.best)}

    def to_table(self) -> tuple[list[str], list[list[Any]]]:
        """Return the columns and rows of ``results.csv``: the trials, with a column per parameter."""
        parameters = list(dict.fromkeys(name for trial in self.trials for name in trial.settings))
        measured = ("accuracy", "loss", "parameters", "epochs", "seconds", "run", "reason")
        rows = [
            [
                trial.trial, trial.state, trial.value, *(trial.interval or (None, None)),
                *map(trial.settings.get, parameters), *(getattr(trial, name) for name in measured),
            ]
            for trial in self.trials
        ]  # fmt: skip
        return ["trial", "state", self.monitor, "low", "high", *parameters, *measured], rows


def _trial_row(trial: TrialResult) -> dict[str, Any]:
    return {
        "trial": trial.trial, "state": trial.state, "value": trial.value, **trial.settings, "accuracy": trial.accuracy,
        "loss": trial.loss, "epochs": trial.epochs, "seconds": trial.seconds, "run": trial.run,
    }  # fmt: skip


def collect_results(study: Any, space: SearchSpace, folder: str) -> SweepResult:
    """Return the current state of the study, without the importances, which take seconds to compute."""
    trials = [_build_trial(slot, optuna_trial) for slot, optuna_trial in trials_by_slot(study).items()]
    for trial in trials:
        missing = [p.name for p in space.parameters if p.name not in trial.settings]
        if trial.value is not None and missing:
            raise ModelError(f"The study's trial {trial.trial} has no value of {missing[0]}: choose another folder.")
    return SweepResult(study.study_name, folder, space.monitor, tuple(rank_trials(trials, space)), None)


def _build_trial(slot: int, optuna_trial: Any) -> TrialResult:
    where = f"The study's trial {slot}"
    attributes = {name: value for name, value in optuna_trial.user_attrs.items() if name != "facts"}
    facts = jsonio.build(dict[str, Any], optuna_trial.user_attrs.get("facts") or {}, f"{where}, facts")
    stored: Any = jsonio.build(_TrialAttributes, {**attributes, **facts}, where)
    state = optuna_trial.state.name.lower()
    settings = optuna_trial.params or jsonio.build(  # a waiting trial has only queued values
        dict[str, Any], optuna_trial.system_attrs.get("fixed_params", {}), f"{where}, queued values"
    )
    finished_value = optuna_trial.value if state in {"complete", "pruned"} else None
    value = None if finished_value is None else jsonio.build(float, finished_value, f"{where}, value")
    metrics = {k: stored.get(k) for k in ("run", "accuracy", "loss", "parameters", "epochs", "seconds", "reason")}
    interval = Interval(*stored["interval"]) if "interval" in stored else None
    state = {"fail": "failed"}.get(state, state)
    return TrialResult(slot, state, value, settings, interval, **metrics)


def rank_trials(trials: list[TrialResult], space: SearchSpace) -> list[TrialResult]:
    """Sort trials, best first: complete, pruned, then others; break ties by loss."""
    sign = 1 if space.minimize else -1
    order = {"complete": 0, "pruned": 1, "failed": 2, "running": 3, "waiting": 4}

    def key(trial: TrialResult) -> tuple[float, ...]:
        value = float("inf") if trial.value is None else sign * trial.value
        return order[trial.state], value, float("inf") if trial.loss is None else trial.loss, trial.trial

    return sorted(trials, key=key)


def parameter_importance(study: Any, space: SearchSpace) -> dict[str, float] | None:
    """Return the fraction of the variance that each parameter explains (fANOVA: Hutter et al., ICML 2014)."""
    package = import_optuna()
    done = study.get_trials(deepcopy=False, states=(package.trial.TrialState.COMPLETE,))
    if len(space.parameters) < 2 or len({t.value for t in done}) < 2:
        return None
    evaluator = package.importance.FanovaImportanceEvaluator(seed=FOREST_SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the random forest warns about few trials
        try:
            importances = package.importance.get_param_importances(study, evaluator=evaluator)
        except (RuntimeError, ValueError):  # there is no variance to explain
            return None
    return {name: float(value) for name, value in importances.items()}


def sweep_to_csv(result: SweepResult) -> bytes:
    """Return the trials as CSV, best first, with a column per parameter.

    Cells are formatted by `jsonio.to_cell`, as in the output of ``sightline sweep --format csv``.
    """
    text = io.StringIO()
    writer = CsvWriter(text)
    columns, rows = result.to_table()
    writer.write_rows([jsonio.to_cell(value) for value in row] for row in (columns, *rows))
    return jsonio.encode_text(text.getvalue())
