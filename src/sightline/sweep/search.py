"""`sweep`: take trials from the study's queue, train each as an ordinary run, and record the results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sightline import files, intervals, jsonio
from sightline.data.index import Sources, as_list
from sightline.data.sources.listing import Listing
from sightline.errors import DataError, Interrupted, MissingExtraError, OutputError, SightlineError, UsageError, plural
from sightline.records import EpochRecord, TrainResult
from sightline.report import compare
from sightline.run import Run
from sightline.sweep import child, results
from sightline.sweep import study as studies
from sightline.sweep.parameters import Choices, Value, literal
from sightline.sweep.results import Sweep
from sightline.sweep.space import Space, read
from sightline.watch import Watcher

RECORD = "sweep.json"  # in the folder of the sweep: the name of the study, and the settings of all trials
TABLE = "results.csv"


class _Failed(Exception):
    """A trial failed because of its settings; the error is recorded."""


class _Pruned(Interrupted):
    """A trial was pruned."""


def sweep(
    sources: Sources,
    space: str | Path,
    *,
    out: Path | str | None = None,
    trials: int | None = None,
    storage: str | None = None,
    cache: bool = True,
    set: Sequence[str] = (),  # noqa: A002  # the option's own name
    watcher: Watcher | None = None,
) -> Sweep:
    """Train a run for each trial of a search space, each in its own process, and return the trials, best first.

    `sources`: see `workflow.train`. `space`: the file of a search space (see `sightline.sweep.space`) or the name of a
    built-in one. `out`: the folder, by default ``runs/<space>-<data>``, for the run directories, the results table and
    the figures. `trials`: total number of trials. `storage`: URL of the study's storage, which several machines can
    share; by default ``study.db`` in the folder. `set`: settings of all trials, such as ``data.class_level=2``. Calling
    it again with the same arguments continues an interrupted sweep.

    Raises `Interrupted` after Ctrl-C, and `SightlineError`s for an invalid space, storage or folder; the error of a
    single trial is recorded with it.
    """
    studies.optuna()
    given = read(space)
    named = [str(s) for s in as_list(sources) if not isinstance(s, Listing)]
    data = "+".join(Path(s).name or s for s in named) or "arrays"
    stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in f"{given.name}-{data}"[:60])
    folder = Path(out) if out is not None else Path("runs") / stem
    prepare(folder, given, stem, set)
    if storage is None and (folder / "study.db").is_symlink():
        raise OutputError(f"{folder / 'study.db'} is a link, and files are never written through links: remove it.")
    url = storage or f"sqlite:///{folder / 'study.db'}"
    with studies.naming_storage(url), studies.opened(given, stem, url) as study:
        return _Search(given, study, sources, folder, cache, tuple(set), watcher or Watcher()).go(given.count(trials))


def prepare(folder: Path, space: Space, name: str, settings: Sequence[str] = ()) -> None:
    """Create the folder of the study `name`, with `settings` for all its trials.

    Raises `OutputError` if it contains something else or cannot be written.
    """
    record = folder / RECORD
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file: choose a folder with --out.")
    if folder.exists() and any(folder.iterdir()) and not record.is_file():
        raise OutputError(f"{folder} is not empty and contains no sweep ({RECORD}): choose another folder with --out.")
    mine = _record(name, settings)
    if (folder / TABLE).is_file() and record.is_file() and (other := jsonio.read(record)) != jsonio.loads(mine):
        raise OutputError(
            f"{folder} contains the sweep {jsonio.dumps(other)[:200]}, not {mine.strip()}: choose another with --out."
        )
    files.write(folder / "space.toml", space.text.encode(), root=folder)
    files.write(record, mine.encode(), root=folder)


def _record(name: str, settings: Sequence[str]) -> str:
    kept = {"settings": list(settings)} if settings else {}
    return jsonio.dumps({"study": name, **kept}, ensure_ascii=True) + "\n"


@dataclass(frozen=True, slots=True)
class _Search:
    space: Space
    study: Any
    sources: Sources
    folder: Path
    cache: bool
    settings: tuple[str, ...]
    watcher: Watcher

    def go(self, count: int) -> Sweep:
        package = studies.optuna()
        seed = self.space.base().seed
        self._report_start(count)
        try:
            while True:
                studies.fill(self.study, self.space, count)
                waiting = self.study.get_trials(deepcopy=False, states=(package.trial.TrialState.WAITING,))
                if not any((studies.slot_of(trial) or count + 1) <= count for trial in waiting):
                    break
                try:
                    self.study.optimize(lambda trial: self._try(trial, seed, count), n_trials=1, catch=(_Failed,))
                except package.exceptions.UpdateFinishedTrialError:
                    self.watcher.say("Another machine took over this trial after missing heartbeats.")
                self._save()
        except (KeyboardInterrupt, Interrupted):
            studies.fill(self.study, self.space, count)
            found = self._save()
            done = sum(t.state not in {"waiting", "running"} for t in found.trials)
            raise Interrupted(
                f"Stopped after {done} of {plural(count, 'trial')}, which are saved in {self.folder}: "
                "run the same command to continue."
            ) from None
        return self._finish(self._save())

    def _report_start(self, count: int) -> None:
        done = sum(t.state in {"complete", "pruned", "failed"} for t in self._now().trials)
        kept = f", {done} of them already finished" if done else ""
        left_out = f" of the grid's {self.space.cells}" if self.space.cells not in {None, count} else ""
        self.watcher.say(f"{self.space.name}: {count}{left_out} trials{kept}, in {self.folder}")

    def _now(self) -> Sweep:
        return results.collect(self.study, self.space, str(self.folder))

    def _save(self) -> Sweep:
        found = self._now()
        files.write(self.folder / TABLE, results.as_csv(found, self.space))
        return found

    def _try(self, trial: Any, seed: int, count: int) -> float:
        """Run one trial and return its metric; raises `_Failed`, or Optuna's ``TrialPruned``."""
        slot = studies.slot_of(trial) or 0
        trial.set_user_attr("owner", f"{studies.HERE}:{os.getpid()}")
        if studies.is_duplicate(self.study, trial):
            raise _Failed
        self.study.sampler = studies.sampler(self.space, seed, slot)
        values = {p.name: studies.suggest(trial, p) for p in self.space.parameters}
        path = self.folder / f"trial-{slot:04}"
        files.refuse_links(self.folder, path)
        trial.set_user_attr("run", str(path))
        self.watcher.say(f"trial {slot} of {count}: {in_words(values)}")
        watching = _Watching(self.watcher, trial, self.space, slot)
        assignments = ["train.keep_state=false", *self.space.assignments(values)]  # few trials are ever extended
        assignments += [*self.settings, *([] if self.cache else ["data.cache=false"])]
        try:
            result = child.train(
                self.sources, recipe=self.space.head.recipe, config=self.space.config, set=assignments, out=path,
                force=(path / "run.json").is_file(), watcher=watching,
            )  # fmt: skip
            return self._keep(trial, result)
        except Interrupted:
            if not watching.verdict:
                raise
            Run.open(path).update(message=watching.verdict)
            self.watcher.say(f"trial {slot}: {watching.verdict}")
            trial.set_user_attr("facts", {"epochs": watching.epochs})
            raise studies.optuna().TrialPruned(watching.verdict) from None
        except SightlineError as error:
            if not path.exists():  # `train` cleans up if nothing was trained
                trial.set_user_attr("run", None)
            if isinstance(error, DataError | MissingExtraError | OutputError) and self._now().best is None:
                raise  # other trials would fail alike
            trial.set_user_attr("reason", str(error))
            self.watcher.say(f"trial {slot} failed: {error}")
            raise _Failed from error

    def _keep(self, trial: Any, result: TrainResult) -> float:
        part = result.validation
        if part is None:
            raise UsageError("There is no validation split to compare trials on: set split.validation above 0.")
        interval = intervals.wilson(round(part.accuracy * part.count), part.count)
        facts = {
            "accuracy": part.accuracy, "accuracy_interval": [interval.low, interval.high], "loss": part.loss,
            "parameters": result.parameters, "epochs": result.epochs, "seconds": result.seconds,
        }  # fmt: skip
        trial.set_user_attr("facts", facts)
        value = part.loss if self.space.minimize else part.accuracy
        self.watcher.say(f"trial {studies.slot_of(trial)}: {self.space.head.monitor} {value:.4f}")
        return value

    def _finish(self, found: Sweep) -> Sweep:
        found = replace(found, importance=results.importance(self.study, self.space))
        shown = [t for t in found.trials if t.value is not None]
        if shown:
            columns = {p.name: [t.settings[p.name] for t in shown] for p in self.space.parameters}
            logarithmic = {p.name for p in self.space.parameters if not isinstance(p, Choices) and p.log}
            png = compare.parallel(
                columns, [t.value or 0.0 for t in shown], found.monitor,
                logarithmic=logarithmic, minimize=self.space.minimize, title=found.study,
            )  # fmt: skip
            files.write(self.folder / "figures" / "parallel.png", png, root=self.folder)
        if found.importance is not None:
            png = compare.importance(found.importance, found.monitor)
            files.write(self.folder / "figures" / "importance.png", png, root=self.folder)
        elsewhere = sum(t.state == "running" for t in found.trials)
        if elsewhere:
            self.watcher.say(f"Still running elsewhere: {elsewhere} trials; run the same command later to see them.")
        return found


class _Watching(Watcher):
    """Reports each epoch and stops the trial when the study's pruner decides to; `verdict` is the reason."""

    def __init__(self, inner: Watcher, trial: Any, space: Space, slot: int) -> None:
        self._inner, self._trial, self._space, self._slot = inner, trial, space, slot
        self.verdict, self.epochs = "", 0

    def progress(self, task: str, done: int, total: int) -> None:
        """Forward the progress of slow work."""
        self._inner.progress(task, done, total)

    def epoch(self, record: EpochRecord) -> None:
        """Report the monitored metric; raises `Interrupted` if the trial is pruned."""
        self.epochs = record.epoch
        value = getattr(record, self._space.monitored)
        if value is None:  # without a validation split, the trial fails at its end
            return
        monitor = self._space.head.monitor
        self._inner.say(f"trial {self._slot}, epoch {record.epoch}: loss {record.loss:.4f}, {monitor} {value:.4f}")
        self._trial.report(value, record.epoch)
        if self._trial.should_prune():
            self.verdict = (
                f"Pruned after epoch {record.epoch}: other trials had a better {monitor} than {value:.4f} by then."
            )
            raise _Pruned(self.verdict)


def in_words(values: dict[str, Value]) -> str:
    """Format the values of a trial on one line."""
    return ", ".join(f"{name}={value if isinstance(value, str) else literal(value)}" for name, value in values.items())
