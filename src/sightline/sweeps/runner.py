"""`sweep`: take trials from the study's queue, train each as an ordinary run, and record the results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sightline import _io, intervals, jsonio
from sightline.api import training_process
from sightline.api.dataset import Dataset
from sightline.api.options import Settings, data_assignments, to_assignments
from sightline.callbacks import Callback, EpochRecord
from sightline.data.indexing import Sources
from sightline.data.sources.listing import SourceListing
from sightline.errors import DataError, Interrupted, MissingExtraError, OutputError, SightlineError, UsageError, plural
from sightline.progress import show_progress
from sightline.report import comparison_plots
from sightline.runs.directory import RunDirectory
from sightline.sweeps import results
from sightline.sweeps import study as studies
from sightline.sweeps.parameters import CategoricalParameter, Value, format_toml
from sightline.sweeps.results import SweepResult
from sightline.sweeps.search_space import SearchSpace, load_space
from sightline.training.result import TrainResult

RECORD_NAME = "sweep.json"  # in the folder of the sweep: the name of the study, and the settings of all trials
TABLE_NAME = "results.csv"


class _TrialFailed(Exception):
    """A trial failed because of its settings; the error is recorded."""


class _TrialPruned(Interrupted):
    """A trial was pruned."""


def sweep(  # noqa: PLR0913  # keyword arguments, each the option of the command
    data: Dataset | Sources,
    space: str | Path,
    *,
    out: Path | str | None = None,
    trials: int | None = None,
    storage: str | None = None,
    column: Settings | None = None,
    allow: Sequence[str] = (),
    set: Settings = (),  # noqa: A002  # the option's own name
    cache: bool = True,
    progress: bool | None = None,
    callback: Callback | None = None,
) -> SweepResult:
    """Search hyperparameters: train a run for each trial of a search space, each in its own process.

    Args:
        data: A [`Dataset`][sightline.Dataset], or paths and names of data sets.
        space: A TOML file with the search space, or the name of a built-in one; see [Sweeps](sweeps.md).
        out: The folder of the runs, the table of results and the figures; by default ``runs/<space>-<data>``. The
            same call continues an interrupted sweep there.
        trials: The total number of trials; by default that of the search space.
        storage: The URL of the study's database, or ``journal:FILE``, which several machines can share; by default
            ``study.db`` in the folder.
        column: The columns of a table, as in ``{"label": "breed"}``.
        allow: Kinds of data errors to accept.
        set: Settings of all trials, as in ``{"data.class_level": 2}``.
        cache: Whether to keep decoded images on disk.
        progress: Whether to show progress on standard error; None shows it in a terminal and in a notebook.
        callback: Receives the progress events in place of the display.

    Returns:
        The trials, the best first, by their validation metrics; the error of a failed trial is recorded with it.

    Raises:
        Interrupted: After Ctrl-C.
        SightlineError: If the search space, the storage or the folder cannot be used.
    """
    studies.import_optuna()
    search_space = load_space(space)
    dataset = Dataset.wrap(data, column=column, set=data_assignments(None, allow))
    settings = [*to_assignments(set), *dataset.settings]
    source_names = [str(s) for s in dataset.sources if not isinstance(s, SourceListing)]
    data_name = "+".join(Path(s).name or s for s in source_names) or "arrays"
    stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in f"{search_space.name}-{data_name}"[:60])
    folder = Path(out) if out is not None else Path("runs") / stem
    prepare_folder(folder, search_space, stem, settings)
    if storage is None and (folder / "study.db").is_symlink():
        raise OutputError(f"{folder / 'study.db'} is a link, and files are never written through links: remove it.")
    url = storage or f"sqlite:///{folder / 'study.db'}"
    with (
        studies.storage_errors(url),
        studies.open_study(search_space, stem, url) as study,
        show_progress(progress, callback) as display,
    ):
        runner = _SweepRunner(search_space, study, dataset.sources, folder, cache, tuple(settings), display)
        return runner.run(search_space.num_trials(trials))


def prepare_folder(folder: Path, space: SearchSpace, name: str, settings: Sequence[str] = ()) -> None:
    """Create the folder of the study `name`, with `settings` for all its trials.

    Raises `OutputError` if it contains something else or cannot be written.
    """
    record_path = folder / RECORD_NAME
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file: choose a folder with --out.")
    if folder.exists() and any(folder.iterdir()) and not record_path.is_file():
        raise OutputError(
            f"{folder} is not empty and contains no sweep ({RECORD_NAME}): choose another folder with --out."
        )
    new_record = _format_record(name, settings)
    if (
        (folder / TABLE_NAME).is_file()
        and record_path.is_file()
        and (existing_record := jsonio.read_object(record_path)) != jsonio.loads(new_record)
    ):
        raise OutputError(
            f"{folder} contains the sweep {jsonio.dumps(existing_record)[:200]}, not "
            f"{new_record.strip()}: choose another with --out."
        )
    _io.write_atomic(folder / "space.toml", space.text.encode(), root=folder)
    _io.write_atomic(record_path, new_record.encode(), root=folder)


def _format_record(name: str, settings: Sequence[str]) -> str:
    settings_entry = {"settings": list(settings)} if settings else {}
    return jsonio.dumps({"study": name, **settings_entry}, ensure_ascii=True) + "\n"


@dataclass(frozen=True, slots=True)
class _SweepRunner:
    space: SearchSpace
    study: Any
    sources: Sources
    folder: Path
    cache: bool
    settings: tuple[str, ...]
    callback: Callback

    def run(self, count: int) -> SweepResult:
        package = studies.import_optuna()
        seed = self.space.trial_config().seed
        self._report_start(count)
        try:
            while True:
                studies.fill_queue(self.study, self.space, count)
                waiting = self.study.get_trials(deepcopy=False, states=(package.trial.TrialState.WAITING,))
                if not any((studies.trial_slot(trial) or count + 1) <= count for trial in waiting):
                    break
                try:
                    self.study.optimize(
                        lambda trial: self._run_trial(trial, seed, count), n_trials=1, catch=(_TrialFailed,)
                    )
                except package.exceptions.UpdateFinishedTrialError:
                    self.callback.on_message("Another machine took over this trial after missing heartbeats.")
                self._save()
        except (KeyboardInterrupt, Interrupted):
            studies.fill_queue(self.study, self.space, count)
            partial_results = self._save()
            finished = sum(t.state not in {"waiting", "running"} for t in partial_results.trials)
            raise Interrupted(
                f"Stopped after {finished} of {plural(count, 'trial')}, which are saved in {self.folder}: "
                "run the same command to continue."
            ) from None
        return self._finish(self._save())

    def _report_start(self, count: int) -> None:
        finished = sum(t.state in {"complete", "pruned", "failed"} for t in self._current_results().trials)
        finished_note = f", {finished} of them already finished" if finished else ""
        grid_note = f" of the grid's {self.space.grid_size}" if self.space.grid_size not in {None, count} else ""
        self.callback.on_message(f"{self.space.name}: {count}{grid_note} trials{finished_note}, in {self.folder}")

    def _current_results(self) -> SweepResult:
        return results.collect_results(self.study, self.space, str(self.folder))

    def _save(self) -> SweepResult:
        current = self._current_results()
        _io.write_atomic(self.folder / TABLE_NAME, results.sweep_to_csv(current))
        return current

    def _run_trial(self, trial: Any, seed: int, count: int) -> float:
        """Run one trial and return its metric; raises `_TrialFailed`, or Optuna's ``TrialPruned``."""
        slot = studies.trial_slot(trial) or 0
        trial.set_user_attr("owner", f"{studies.HOST_NAME}:{os.getpid()}")
        if studies.is_duplicate(self.study, trial):
            raise _TrialFailed
        self.study.sampler = studies.build_sampler(self.space, seed, slot)
        values = {p.name: studies.suggest_value(trial, p) for p in self.space.parameters}
        path = self.folder / f"trial-{slot:04}"
        _io.refuse_links(self.folder, path)
        trial.set_user_attr("run", str(path))
        self.callback.on_message(f"trial {slot} of {count}: {format_values(values)}")
        trial_callback = _TrialCallback(self.callback, trial, self.space, slot)
        assignments = [
            "train.keep_last_checkpoint=false",
            *self.space.trial_assignments(values),
        ]  # few trials are ever extended
        assignments += [*self.settings, *([] if self.cache else ["data.cache=false"])]
        try:
            result = training_process.train_in_subprocess(
                self.sources, recipe=self.space.options.recipe, config=self.space.config, set=assignments, out=path,
                force=(path / "run.json").is_file(), callback=trial_callback,
            )  # fmt: skip
            return self._record_result(trial, result)
        except Interrupted:
            if not trial_callback.verdict:
                raise
            RunDirectory.open(path).update(message=trial_callback.verdict)
            self.callback.on_message(f"trial {slot}: {trial_callback.verdict}")
            trial.set_user_attr("facts", {"epochs": trial_callback.epochs})
            raise studies.import_optuna().TrialPruned(trial_callback.verdict) from None
        except SightlineError as error:
            if not path.exists():  # `train` cleans up if nothing was trained
                trial.set_user_attr("run", None)
            if isinstance(error, DataError | MissingExtraError | OutputError) and self._current_results().best is None:
                raise  # other trials would fail alike
            trial.set_user_attr("reason", str(error))
            self.callback.on_message(f"trial {slot} failed: {error}")
            raise _TrialFailed from error

    def _record_result(self, trial: Any, result: TrainResult) -> float:
        metrics = result.validation
        if metrics is None:
            raise UsageError("There is no validation split to compare trials on: set split.validation above 0.")
        interval = intervals.wilson_interval(round(metrics.accuracy * metrics.count), metrics.count)
        stored = {
            "accuracy": metrics.accuracy, "accuracy_interval": [interval.low, interval.high], "loss": metrics.loss,
            "parameters": result.parameters, "epochs": result.epochs, "seconds": result.seconds,
        }  # fmt: skip
        trial.set_user_attr("facts", stored)
        value = metrics.loss if self.space.minimize else metrics.accuracy
        self.callback.on_message(f"trial {studies.trial_slot(trial)}: {self.space.options.monitor} {value:.4f}")
        return value

    def _finish(self, result: SweepResult) -> SweepResult:
        result = replace(result, importance=results.parameter_importance(self.study, self.space))
        finished_trials = [t for t in result.trials if t.value is not None]
        if finished_trials:
            columns = {p.name: [t.settings[p.name] for t in finished_trials] for p in self.space.parameters}
            logarithmic = {p.name for p in self.space.parameters if not isinstance(p, CategoricalParameter) and p.log}
            png = comparison_plots.plot_parallel(
                columns, [t.value or 0.0 for t in finished_trials], result.monitor,
                logarithmic=logarithmic, minimize=self.space.minimize, title=result.study,
            )  # fmt: skip
            _io.write_atomic(self.folder / "figures" / "parallel.png", png, root=self.folder)
        if result.importance is not None:
            png = comparison_plots.plot_importance(result.importance, result.monitor)
            _io.write_atomic(self.folder / "figures" / "importance.png", png, root=self.folder)
        running_elsewhere = sum(t.state == "running" for t in result.trials)
        if running_elsewhere:
            self.callback.on_message(
                f"Still running elsewhere: {running_elsewhere} trials; run the same command later to see them."
            )
        return result


class _TrialCallback(Callback):
    """Reports each epoch and stops the trial when the study's pruner decides to; `verdict` is the reason."""

    def __init__(self, inner: Callback, trial: Any, space: SearchSpace, slot: int) -> None:
        self._inner, self._trial, self._space, self._slot = inner, trial, space, slot
        self.verdict, self.epochs = "", 0

    def on_progress(self, task: str, done: int, total: int) -> None:
        """Forward the progress of slow work."""
        self._inner.on_progress(task, done, total)

    def on_epoch_end(self, record: EpochRecord) -> None:
        """Report the monitored metric; raises `Interrupted` if the trial is pruned."""
        self.epochs = record.epoch
        value = getattr(record, self._space.monitored_field)
        if value is None:  # without a validation split, the trial fails at its end
            return
        monitor = self._space.options.monitor
        self._inner.on_message(
            f"trial {self._slot}, epoch {record.epoch}: loss {record.loss:.4f}, {monitor} {value:.4f}"
        )
        self._trial.report(value, record.epoch)
        if self._trial.should_prune():
            self.verdict = (
                f"Pruned after epoch {record.epoch}: other trials had a better {monitor} than {value:.4f} by then."
            )
            raise _TrialPruned(self.verdict)


def format_values(values: dict[str, Value]) -> str:
    """Format the values of a trial on one line."""
    return ", ".join(
        f"{name}={value if isinstance(value, str) else format_toml(value)}" for name, value in values.items()
    )
