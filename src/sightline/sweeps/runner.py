"""`sweep`: take trials from the study's queue, train each as an ordinary run, and record the results."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from sightline import _io, jsonio
from sightline.api import training_process
from sightline.api.argument_types import check_types
from sightline.api.dataset import Dataset
from sightline.api.options import Settings, merge_settings
from sightline.api.ray_options import resolve_engine
from sightline.api.ray_training import RayTrainer, open_trainer, run_in_threads
from sightline.callbacks import Callback
from sightline.data.indexing import Sources
from sightline.data.sources.listing import SourceListing
from sightline.errors import (
    DataError,
    Interrupted,
    MissingExtraError,
    OutputError,
    SightlineError,
    UsageError,
    plural,
)
from sightline.progress import show_progress
from sightline.report import comparison_plots
from sightline.runs.directory import RunDirectory
from sightline.runs.paths import is_run
from sightline.sweeps import results
from sightline.sweeps import study as studies
from sightline.sweeps.parameters import CategoricalParameter
from sightline.sweeps.results import SweepResult
from sightline.sweeps.search_space import SearchSpace, load_space
from sightline.sweeps.trial import TrialCallback, format_values, read_metric
from sightline.training.result import TrainResult

RECORD_NAME = "sweep.json"  # in the sweep's folder; contains the name of the study and the settings of all trials
TABLE_NAME = "results.csv"


class _TrialFailed(Exception):
    """A trial failed because of its settings; the error is recorded."""


@check_types
def sweep(  # noqa: PLR0913  # one keyword argument for each option of the command
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
    engine: str = "local",
    num_workers: int | None = None,
    cpus_per_worker: int | None = None,
    ray_address: str | None = None,
    progress: bool = True,
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
        set: Settings of all trials, as in ``{"data.class_level": 2}``, except those that the search space varies.
        cache: Whether to keep decoded images on disk.
        engine: ``"ray"`` trains the trials on the workers of a Ray cluster; see [Sweeps](sweeps.md#on-a-ray-cluster).
        num_workers: The number of trials at a time on the Ray cluster; by default 1.
        cpus_per_worker: The number of CPUs that each trial reserves there, which is also its number of threads; by
            default 1. If the cluster has GPUs, each trial reserves one.
        ray_address: The address of the Ray cluster, ``HOST:PORT`` or ``auto``; by default a cluster on this machine
            alone.
        progress: Whether to show progress on standard error.
        callback: Receives the progress events in place of the display.

    Returns:
        The trials, the best first, by their validation metrics; the error of a failed trial is recorded with it.

    Raises:
        Interrupted: After Ctrl-C.
        UsageError: If `set` has a setting that the search space varies.
        SightlineError: If the search space, the storage or the folder cannot be used.
    """
    studies.import_optuna()
    search_space = load_space(space)
    ray_options = resolve_engine(
        engine, num_workers=num_workers, cpus_per_worker=cpus_per_worker, ray_address=ray_address
    )
    dataset = Dataset.wrap(data)
    settings = merge_settings(dataset.settings, {}, set, column, allow)
    search_space.check_settings(settings)
    search_space = search_space.with_monitor(settings)
    source_names = [str(s) for s in dataset.sources if not isinstance(s, SourceListing)]
    data_name = "+".join(Path(s).name or s for s in source_names) or "arrays"
    stem = _io.safe_stem(f"{search_space.name}-{data_name}", 60)
    folder = _io.output_path(out) if out is not None else Path("runs") / stem
    with ExitStack() as stack:
        display = stack.enter_context(show_progress(progress, callback))
        trainer = None
        if ray_options is not None:
            trainer = stack.enter_context(open_trainer(ray_options, dataset.sources, display))
        prepare_folder(folder, stem, settings)
        if storage is None:
            _refuse_linked_database(folder / "study.db")
        url = storage or f"sqlite:///{folder / 'study.db'}"
        stack.enter_context(studies.storage_errors(url))
        shared_state = SharedState()
        runners = [
            _SweepRunner(
                search_space, stack.enter_context(studies.open_study(search_space, stem, url)), dataset.sources, folder,
                cache, tuple(settings), display, shared_state, trainer,
            )
            for _ in range(1 if trainer is None else trainer.options.num_workers)
        ]  # fmt: skip
        studies.check_images(runners[0].study, url, search_space, dataset.sources, settings, display.on_progress)
        _io.write_atomic(folder / "space.toml", search_space.text.encode(), root=folder)  # the study has this space
        return runners[0].run(search_space.num_trials(trials), runners[1:])


def prepare_folder(folder: Path, name: str, settings: Sequence[str] = ()) -> None:
    """Create the folder of the study `name`, with `settings` for all its trials.

    Raises `OutputError` if it contains something else or cannot be written.
    """
    _io.refuse_links_in_run(folder)
    record_path = folder / RECORD_NAME
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file: choose a folder with --out.")
    if folder.exists() and _io.holds_files(folder) and not record_path.is_file():
        raise OutputError(
            f"{folder} is not empty and contains no sweep ({RECORD_NAME}): choose another folder with --out."
        )
    new_record = {"study": name, **({"settings": list(settings)} if settings else {})}
    if (
        (folder / TABLE_NAME).is_file()
        and record_path.is_file()
        and (existing_record := jsonio.read_object(record_path)) != new_record
    ):
        raise OutputError(
            f"{folder} contains the sweep {_describe_record(existing_record)}, not "
            f"{_describe_record(new_record)}: choose another folder with --out."
        )
    content = jsonio.dumps(new_record, ensure_ascii=True) + "\n"
    _io.write_atomic(record_path, content.encode(), root=folder)  # written first: marks the folder as a sweep's


def _refuse_linked_database(path: Path) -> None:
    """Raise `OutputError` if an SQLite database, or a file that SQLite writes beside it, is a link."""
    for suffix in ("", "-journal", "-wal", "-shm"):
        file = path.with_name(path.name + suffix)
        if file.is_symlink():
            raise OutputError(f"{file} is a link, and files are never written through links: remove it.")


def _describe_record(record: Mapping[str, Any]) -> str:
    settings = jsonio.dumps(record.get("settings", [])).strip("[]")
    return (str(record.get("study")) + f" with {settings}" * bool(settings))[:200]


@dataclass(slots=True)
class SharedState:
    """State shared by the runners of one process: their running trials, and a lock for the study and the table.

    `failures` contains the first trial that failed for each reason.
    """

    own_trials: set[int] = field(default_factory=set)
    failures: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True, slots=True)
class _SweepRunner:
    """Runs the trials of a study one by one, in child processes or, with `trainer`, on a Ray cluster."""

    space: SearchSpace
    study: Any
    sources: Sources
    folder: Path
    cache: bool
    settings: tuple[str, ...]
    callback: Callback
    shared_state: SharedState
    trainer: RayTrainer | None

    def run(self, count: int, others: Sequence[_SweepRunner] = ()) -> SweepResult:
        """Run all trials and return their results; on a cluster, `others` run at the same time."""
        self._report_start(count)
        try:
            if self.trainer is None:
                self.run_trials(count)
            else:
                run_in_threads([partial(runner.run_trials, count) for runner in (self, *others)], self.trainer.stop)
        except (KeyboardInterrupt, Interrupted):
            studies.fill_queue(self.study, self.space, count)
            partial_results = self._save()
            finished = sum(t.state not in {"waiting", "running"} for t in partial_results.trials)
            raise Interrupted(
                f"Stopped after {finished} of {plural(count, 'trial')}, which are saved in {self.folder}: "
                "run the same command to continue."
            ) from None
        return self._finish(self._save())

    def run_trials(self, count: int) -> None:
        """Run waiting trials until none is left."""
        seed = self.space.trial_config(assignments=self.settings).seed
        while self._run_next_trial(seed, count):
            with self.shared_state.lock:
                self._save()

    def _run_next_trial(self, seed: int, count: int) -> bool:
        """Run a waiting trial, and return whether there was one. Runners take trials one at a time."""
        package, own_trials = studies.import_optuna(), self.shared_state.own_trials
        number: int | None = None
        with ExitStack() as turn:
            turn.enter_context(self.shared_state.lock)
            studies.fill_queue(self.study, self.space, count, own_trials)
            waiting = self.study.get_trials(deepcopy=False, states=(package.trial.TrialState.WAITING,))
            if not any((studies.trial_slot(trial) or count + 1) <= count for trial in waiting):
                return False

            def run_trial(trial: Any) -> float:
                nonlocal number
                number = trial.number
                own_trials.add(trial.number)
                turn.close()
                return self._run_trial(trial, seed, count)

            try:
                self.study.optimize(run_trial, n_trials=1, catch=(_TrialFailed,))
            except package.exceptions.UpdateFinishedTrialError:
                self.callback.on_message("Another machine took over this trial after missing heartbeats.")
            finally:
                own_trials.discard(-1 if number is None else number)
        return True

    def _report_start(self, count: int) -> None:
        finished = sum(t.state in {"complete", "pruned", "failed"} for t in self._current_results().trials)
        finished_note = f", {finished} of them already finished" if finished else ""
        size = self.space.grid_size
        planned = plural(count, "trial") if size in {None, count} else f"{count} of the grid's {size} trials"
        self.callback.on_message(f"{self.space.name}: {planned}{finished_note}, in {self.folder}")

    def _current_results(self) -> SweepResult:
        return results.collect_results(self.study, self.space, str(self.folder))

    def _save(self) -> SweepResult:
        current = self._current_results()
        _io.write_atomic(self.folder / TABLE_NAME, results.sweep_to_csv(current))
        return current

    def _run_trial(self, trial: Any, seed: int, count: int) -> float:
        """Run one trial and return its metric; raise `_TrialFailed` or Optuna's ``TrialPruned``."""
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
        trial_callback = TrialCallback(self.callback, trial, self.space, slot, is_alone=self.trainer is None)
        assignments = ["train.keep_last_checkpoint=false"]  # trials are rarely trained further
        assignments += self.space.trial_assignments(values)
        if self.trainer is not None:
            assignments.insert(0, f"device.threads={self.trainer.options.cpus_per_worker}")
        assignments += [*self.settings, *([] if self.cache else ["data.cache=false"])]
        train = training_process.train_in_subprocess if self.trainer is None else self.trainer.train
        try:
            result = train(
                self.sources, recipe=self.space.options.recipe, config=self.space.config, set=assignments, out=path,
                force=is_run(path), callback=trial_callback,
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
            if not path.exists():  # `train` removes the folder if nothing was trained
                trial.set_user_attr("run", None)
            if isinstance(error, DataError | MissingExtraError | OutputError) and self._current_results().best is None:
                raise  # other trials would fail in the same way
            trial.set_user_attr("reason", str(error))
            first = self.shared_state.failures.setdefault(str(error), slot)
            reason = f": {error}" if first == slot else f" for the same reason as trial {first}"
            self.callback.on_message(f"trial {slot} failed{reason}")
            raise _TrialFailed from error

    def _record_result(self, trial: Any, result: TrainResult) -> float:
        metrics = result.validation
        if metrics is None:
            raise UsageError("There is no validation split to compare trials on: set split.validation above 0.")
        value, interval, note = read_metric(result, self.space)
        stored = {
            "accuracy": metrics.accuracy, "loss": metrics.loss, "parameters": result.parameters,
            "epochs": result.epochs, "seconds": result.seconds,
        }  # fmt: skip
        trial.set_user_attr("facts", stored | ({} if interval is None else {"interval": list(interval)}))
        if value is None or not math.isfinite(value):
            reason = note or "it is not a finite number"
            raise UsageError(f"{self.space.monitor} cannot be computed ({reason}): set monitor to another metric.")
        self.callback.on_message(f"trial {studies.trial_slot(trial)}: {self.space.monitor} {value:.4f}")
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
                f"{plural(running_elsewhere, 'trial')} still running elsewhere: run the same command again later."
            )
        return result
