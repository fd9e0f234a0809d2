"""`Run`: a training and everything that it wrote; `train` makes one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from sightline.api import resuming, training
from sightline.api.classifier import Classifier
from sightline.api.dataset import Dataset
from sightline.api.loading import load
from sightline.api.options import Settings, data_assignments, to_assignments
from sightline.api.record_list import RecordList, format_html_table
from sightline.callbacks import Callback, EpochRecord
from sightline.config import RunConfig
from sightline.data.indexing import Sources
from sightline.distributed.cluster import resolve_cluster
from sightline.errors import plural
from sightline.progress import show_progress
from sightline.runs import existing_run
from sightline.runs.directory import RunDirectory
from sightline.runs.steps import RecipeChoice
from sightline.training.result import SplitMetrics, TrainResult

if TYPE_CHECKING:
    from sightline.api.comparison import RunComparison

REPORT_HEIGHT = 800  # pixels of a report in a notebook


def train(
    data: Dataset | Sources,
    *,
    recipe: str = "auto",
    out: str | Path | None = None,
    config: str | Path | None = None,
    set: Settings = (),
    model: str | None = None,
    weights: str | Path | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    seed: int | None = None,
    patch: str | Path | None = None,
    column: Settings | None = None,
    allow: Sequence[str] = (),
    cache: bool = True,
    deterministic: bool = False,
    devices: int | str | None = None,
    hosts: int | str | None = None,
    coordinator: str | None = None,
    rank: int | None = None,
    force: bool = False,
    progress: bool | None = None,
    callback: Callback | None = None,
) -> Run:
    """Train a classifier on labeled images, evaluate it and write a run directory with its report and its bundle.

    The options are those of `sightline train`. `data` is a `Dataset`, or paths and names of data sets. `recipe` is the
    name of a recipe; ``auto`` chooses one that suits the images. `config` is a TOML file of settings that override it.
    `set` overrides both, as in ``{"train.optimizer.name": "adamw"}`` or ``["train.optimizer.name=adamw"]``; every
    setting is in docs/reference.md. The other options are shortcuts of settings: the network `model`, its initial
    `weights` (none, imagenet, auto or a file), the total number of `epochs`, `batch_size`, `learning_rate`, `seed`, the
    `patch` of data fixes to apply, kinds of data errors to `allow`, whether to `cache` decoded images, and whether to
    fail on nondeterministic operations (`deterministic`). `column` names the columns of a table of images.

    `out` is the run directory, by default ``runs/<recipe>-<data>-<n>``. It must not exist or be a run: with `force`
    that run is replaced, else it must be complete with the same settings, and is only evaluated again.

    `devices` is the number of devices of this host to train on, or ``all``. `hosts`, `coordinator` and `rank` are for
    processes that train together: each calls this with the same arguments but its own rank, and only that of rank 0
    writes the run; see docs/scaling.md.

    Progress is shown on standard error, in a terminal and in a notebook: a bar, or a line for each epoch. `progress`
    False silences it, and True shows it everywhere. A `callback` receives all events in its place.

    Raises `SightlineError`s; if one is raised before the first step, nothing is left behind.
    """
    shortcuts = {
        "model.name": model,
        "model.weights": None if weights is None else str(weights),
        "train.optimizer.learning_rate": learning_rate,
        "device.num_devices": 0 if devices == "all" else devices,
        "data.patch": None if patch is None else str(patch),
        "data.cache": None if cache else False,
        "device.deterministic": deterministic or None,
    }
    dataset = Dataset.wrap(data)
    assignments = [
        *dataset.settings,
        *to_assignments({key: value for key, value in shortcuts.items() if value is not None}),
        *to_assignments(set),
        *data_assignments(column, allow),
    ]
    cluster = resolve_cluster(None if hosts is None else str(hosts), coordinator, rank, os.environ)
    with show_progress(progress, callback) as display:
        result = training.train(
            dataset.sources, recipe=recipe, config=config, set=assignments, epochs=epochs, batch_size=batch_size,
            seed=seed, out=out, force=force, hosts=cluster, callback=display,
        )  # fmt: skip
    return Run(result.run, result=result, data=dataset)


class Run:
    """A training and everything that it wrote; in a notebook it shows its report.

    `Run(path)` opens the run directory of an earlier training, complete or not.
    """

    def __init__(self, path: str | Path, *, result: TrainResult | None = None, data: Dataset | None = None) -> None:
        """Open the run at `path`; `data` is what it was trained on, needed again if that is in memory.

        Raises `ModelError` if `path` is not a run.
        """
        self.path = Path(path)
        self._result, self._data = result, data
        if result is None:
            RunDirectory.open(self.path)

    @property
    def directory(self) -> RunDirectory:
        """The files of the run."""
        return RunDirectory(self.path)

    @property
    def status(self) -> str:
        """One of complete, running, interrupted and failed."""
        return str(self.directory.info.get("status"))

    @property
    def config(self) -> RunConfig:
        """All settings, as they were resolved."""
        return self.directory.config

    @property
    def recipe_choice(self) -> RecipeChoice | None:
        """The recipe that ``auto`` chose, and why; None if another recipe was asked for."""
        choice = self.directory.info.get("recipe_choice")
        return None if choice is None else RecipeChoice(**choice)

    @cached_property
    def classifier(self) -> Classifier:
        """The trained model; that of the best epoch so far if the run is not complete."""
        classifier = load(self.path)
        classifier.trained_on = self._in_memory_data
        return classifier

    @property
    def history(self) -> RecordList[EpochRecord]:
        """The losses, accuracies and learning rate of each epoch so far."""
        return RecordList(self.directory.read_history(), asdict)

    @property
    def result(self) -> TrainResult:
        """The outcome, as printed by ``train --format json``; raises `ModelError` for a run that is not complete."""
        if self._result is None:
            run = self.directory
            self._result = existing_run.load_result(run, run.result)
        return self._result

    @property
    def validation(self) -> SplitMetrics | None:
        """Accuracy and loss on the validation split; None without one."""
        return self.result.validation

    @property
    def test(self) -> SplitMetrics | None:
        """Accuracy and loss on the test split; None without one."""
        return self.result.test

    def resume(
        self,
        data: Dataset | Sources | None = None,
        *,
        epochs: int | None = None,
        hosts: int | str | None = None,
        coordinator: str | None = None,
        rank: int | None = None,
        progress: bool | None = None,
        callback: Callback | None = None,
    ) -> Run:
        """Continue an interrupted run to the weights of an uninterrupted one, bit for bit; return the run.

        With `epochs`, a complete run is trained further, to this total number of epochs. `data` are the same images if
        they have moved, or are in memory. For the other options, see `train`. Raises `ModelError` or `UsageError` for a
        run that cannot be continued, and `DataError` if its images have changed.
        """
        dataset = self._in_memory_data if data is None else Dataset.wrap(data)
        cluster = resolve_cluster(None if hosts is None else str(hosts), coordinator, rank, os.environ)
        with show_progress(progress, callback) as display:
            result = resuming.resume(
                self.path, None if dataset is None else dataset.sources, epochs=epochs, hosts=cluster, callback=display
            )
        return Run(self.path, result=result, data=dataset or self._data)

    @property
    def _in_memory_data(self) -> Dataset | None:
        return self._data if self._data is not None and self._data.is_in_memory else None

    def report(self) -> Path:
        """Write the report of a complete run again from its files, one self-contained HTML page; return its path."""
        from sightline.api.reporting import rebuild_report

        return rebuild_report(self.path)

    def compare(self, *runs: Run | str | Path, figure: str | Path | None = None) -> RunComparison:
        """Compare this run with others: settings that differ, accuracy with its interval, and who is right where.

        `figure` is a PNG file to write, with the curves of all runs. Raises `UsageError` for a run that is given twice.
        """
        from sightline.api.comparison import compare

        return compare([self.path, *(run.path if isinstance(run, Run) else run for run in runs)], figure=figure)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self._describe()})"

    def _describe(self) -> str:
        if self._result is None and self.status != "complete":
            return f"{self.status} after {plural(len(self.history), 'epoch')}"
        result = self.result
        name, metrics = ("test", result.test) if result.test is not None else ("validation", result.validation)
        accuracy = f"accuracy {metrics.accuracy:.4f} on {metrics.count:,} {name} images" if metrics else "not evaluated"
        bundle = "" if result.bundle is not None else ", no bundle"
        return f"{result.model}, {accuracy}, {plural(result.epochs, 'epoch')}{bundle}"

    def _repr_html_(self) -> str:
        page = self.path / "report.html"
        if not page.is_file() or self.status != "complete":
            return format_html_table([asdict(epoch) for epoch in self.history], title=repr(self))
        html = escape(page.read_text(encoding="utf-8"), quote=True)
        frame = f'<iframe srcdoc="{html}" width="100%" height="{REPORT_HEIGHT}" sandbox="allow-scripts"></iframe>'
        return f"{frame}<p>{escape(repr(self))}</p>"
