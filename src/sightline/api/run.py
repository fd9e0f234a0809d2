"""`Run`: a training run and everything that it wrote; `train` creates one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline import _io
from sightline.api import ray_training, training
from sightline.api.argument_types import check_method_types, check_types
from sightline.api.classifier import Classifier
from sightline.api.dataset import Dataset
from sightline.api.loading import load
from sightline.api.options import Settings, merge_settings, parse_devices, parse_track
from sightline.api.ray_options import resolve_engine
from sightline.api.record_list import RecordList, format_html_table, omit_empty_columns
from sightline.api.resuming import resume_run
from sightline.callbacks import Callback, EpochRecord
from sightline.config import RunConfig
from sightline.data.indexing import Sources
from sightline.data.types import OUT_OF_FOLD
from sightline.distributed.cluster import resolve_cluster
from sightline.errors import ModelError, UsageError, plural
from sightline.progress import show_progress
from sightline.runs import existing_run
from sightline.runs.directory import RunDirectory
from sightline.runs.failures import explain_incomplete
from sightline.runs.paths import is_run
from sightline.runs.steps import RecipeChoice
from sightline.training.result import SplitMetrics, TrainResult

if TYPE_CHECKING:
    from sightline.api.comparison import RunComparison

REPORT_HEIGHT = 800  # height of a report in a notebook, in pixels
MAX_PAGE_BYTES = 64 << 20


@check_types
def train(
    data: Dataset | Sources,
    *,
    recipe: str = "auto",
    effort: str | None = None,
    time_limit: str | None = None,
    folds: int | None = None,
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
    track: str | Sequence[str] | None = None,
    hosts: int | str | None = None,
    coordinator: str | None = None,
    rank: int | None = None,
    engine: str = "local",
    num_workers: int | None = None,
    cpus_per_worker: int | None = None,
    ray_address: str | None = None,
    force: bool = False,
    progress: bool = True,
    callback: Callback | None = None,
) -> Run:
    """Train a classifier on labeled images, evaluate it, and write a run directory with its report and its bundle.

    The options are those of `sightline train`, by the same names.

    Args:
        data: A [`Dataset`][sightline.Dataset], or paths and names of data sets.
        recipe: The name of a recipe; ``auto`` chooses one that suits the images.
        effort: How much training time to spend on accuracy, with a transfer recipe: ``"fast"`` trains only the head;
            ``"balanced"``, the default, also trains the last layers, on augmented views of images; ``"best"`` trains
            more layers on more views.
        time_limit: The total time that the training may take, such as ``"10m"``, ``"90s"`` or ``"1h30m"``. Epochs that
            do not fit are left out, and the result says what more time would probably bring.
        folds: The number of folds of a cross-validation: each image is predicted by a model that was not trained on its
            fold, which gives metrics over all images. The final model is then trained on all of them.
        out: The run directory, by default ``runs/<recipe>-<data>-<n>``. It must be empty or not exist, unless `force`
            is true or it is a complete run with the same settings, which is then evaluated again.
        config: A TOML file of settings that override the recipe's.
        set: Settings that override both, as in ``{"train.optimizer.name": "adamw"}`` or
            ``["train.optimizer.name=adamw"]``. The [reference](reference.md) lists them all.
        model: The network; [`describe`][sightline.describe] shows one.
        weights: Its initial weights: none, imagenet, auto, or the path of a file.
        epochs: The total number of epochs, divided among the stages of the recipe.
        batch_size: The number of images in a batch.
        learning_rate: The learning rate of the optimizer; stages with their own keep it.
        seed: The seed of all random numbers.
        patch: A file of data fixes to apply, as written by [`Dataset.check`][sightline.Dataset.check].
        column: The columns of a table, as in ``{"label": "breed"}``.
        allow: Kinds of data errors to accept, such as ``"split-leakage"``.
        cache: Whether to keep decoded images on disk for the next training.
        deterministic: Whether to fail on nondeterministic operations.
        devices: The number of devices of this host to train on, or ``all``; by default 1.
        track: Where else to write the settings, metrics and files of the run: ``"tensorboard"`` (the default, in the
            run), ``"mlflow"`` or ``"wandb"``, or several of them, or ``[]``; see [Tracking](tracking.md).
        hosts: The number of processes that train together, or ``auto``. Each calls `train` with the same arguments but
            its own `rank`, and only rank 0 writes the run; see [Scaling](scaling.md).
        coordinator: The address and port at which rank 0 waits for the others.
        rank: The rank of this process, from 0.
        engine: ``"ray"`` trains on the workers of a Ray cluster, in place of `hosts`; see
            [Scaling](scaling.md#training-on-a-ray-cluster).
        num_workers: The number of workers that train together on the Ray cluster; by default 1.
        cpus_per_worker: The number of CPUs that each worker reserves there; by default 1. If the cluster has GPUs, each
            also reserves `devices` of them.
        ray_address: The address of the Ray cluster, ``HOST:PORT`` or ``auto``; by default a cluster on this machine
            alone.
        force: Whether to replace the run at `out`.
        progress: Whether to show progress on standard error: a bar, or a line for each epoch if standard error is a
            file.
        callback: Receives the progress events in place of the display.

    Returns:
        The complete run.

    Raises:
        SightlineError: If the images, the settings or the machine do not allow the training. If it is raised before
            the first step, nothing is left behind.
        DivergedError: If the loss becomes NaN or infinite.
        Interrupted: After Ctrl-C; [`Run.resume`][sightline.Run.resume] continues.

    Example:
        ```python
        run = sl.train("photos/", recipe="quick", epochs=2, seed=1, out="runs/a")
        print(run.test)
        ```
    """
    shortcuts = {
        "train.effort": effort,
        "train.time_limit": time_limit,
        "split.folds": folds,
        "model.name": model,
        "model.weights": None if weights is None else str(weights),
        "train.optimizer.learning_rate": learning_rate,
        "device.num_devices": parse_devices(devices),
        "train.track": parse_track(track),
        "data.patch": None if patch is None else str(patch),
        "data.cache": None if cache else False,
        "device.deterministic": deterministic or None,
    }
    dataset = Dataset.wrap(data)
    assignments = merge_settings(dataset.settings, shortcuts, set, column, allow)
    ray_options = resolve_engine(
        engine, num_workers=num_workers, cpus_per_worker=cpus_per_worker, ray_address=ray_address,
        devices=parse_devices(devices), others={"--hosts": hosts, "--coordinator": coordinator, "--rank": rank},
    )  # fmt: skip
    arguments: dict[str, Any] = {
        "sources": dataset.sources, "recipe": recipe, "config": config, "set": assignments, "epochs": epochs,
        "batch_size": batch_size, "seed": seed, "out": out, "force": force,
    }  # fmt: skip
    with show_progress(progress, callback) as display:
        if ray_options is not None:
            result = ray_training.train_on_cluster(arguments, ray_options, display)
        else:
            cluster = resolve_cluster(None if hosts is None else str(hosts), coordinator, rank, os.environ)
            result = training.train_run(**arguments, hosts=cluster, callback=display)
    return Run(Path(result.run), result=result, data=dataset)  # "" on a host that has no run directory


@check_method_types
class Run:
    """A training run and everything that it wrote; in a notebook it shows its report.

    [`train`][sightline.train] returns one, and ``Run(path)`` opens an earlier one, complete or not. `status`, `config`
    and `history` read their files each time, so they follow a training that another process runs.

    Attributes:
        path: The run directory.

    Example:
        ```python
        run = sl.Run("runs/a")
        print(run.status, len(run.history))
        ```
    """

    def __init__(self, path: str | Path, *, result: TrainResult | None = None, data: Dataset | None = None) -> None:
        """Open the run directory of an earlier training.

        Args:
            path: The run directory.
            result: The result of the training, if it is known already.
            data: What it was trained on; needed only if that is in memory.

        Raises:
            ModelError: If `path` is not a run.
        """
        self.path = _io.expand_home(path)
        self._result, self._data = result, data
        if result is None:
            RunDirectory.open(self.path)

    @property
    def directory(self) -> RunDirectory:
        """The files of the run; raises `ModelError` if it is no longer at `path`."""
        return RunDirectory.open(self.path)

    @property
    def status(self) -> str:
        """The state of the training: complete, running, interrupted or failed."""
        return str(self.directory.info.get("status"))

    @property
    def config(self) -> RunConfig:
        """All settings as they were resolved: nothing is left at auto."""
        return self.directory.config

    @property
    def recipe_choice(self) -> RecipeChoice | None:
        """The recipe that ``auto`` chose, and why; None if a recipe was named."""
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
        """The losses, accuracies and learning rates of the epochs so far; `to_frame` makes a DataFrame of them."""
        return RecordList(self.directory.read_history(), asdict)

    @property
    def result(self) -> TrainResult:
        """The outcome of the training, as ``train --format json`` prints it.

        Raises:
            ModelError: If the run is not complete.
        """
        if self._result is None:
            run = self.directory
            if self.status != "complete":
                raise ModelError(f"The run {self.path} has no result yet: {explain_incomplete(run)}.")
            self._result = existing_run.load_result(run)
        return self._result

    @property
    def validation(self) -> SplitMetrics | None:
        """The accuracy and loss on the validation split; None without one. Raises `ModelError` like `result`."""
        return self.result.validation

    @property
    def test(self) -> SplitMetrics | None:
        """The accuracy and loss on the test split; None without one. Raises `ModelError` like `result`."""
        return self.result.test

    def resume(
        self,
        data: Dataset | Sources | None = None,
        *,
        epochs: int | None = None,
        hosts: int | str | None = None,
        coordinator: str | None = None,
        rank: int | None = None,
        engine: str = "local",
        num_workers: int | None = None,
        cpus_per_worker: int | None = None,
        ray_address: str | None = None,
        progress: bool = True,
        callback: Callback | None = None,
    ) -> Run:
        """Continue an interrupted run, or train a complete one further.

        The weights equal those of an uninterrupted run, bit for bit.

        Args:
            data: The images of the run, if they have moved or are in memory.
            epochs: The new total number of epochs, to train a complete run further.
            hosts: The number of processes that train together; see [`train`][sightline.train].
            coordinator: The address and port at which rank 0 waits for the others.
            rank: The rank of this process, from 0.
            engine: ``"ray"`` trains on the workers of a Ray cluster, in place of `hosts`.
            num_workers: The number of workers, by default the number of hosts that the run was started with.
            cpus_per_worker: The number of CPUs that each worker reserves; by default 1.
            ray_address: The address of the Ray cluster; by default a cluster on this machine alone.
            progress: Whether to show progress on standard error.
            callback: Receives the progress events in place of the display.

        Returns:
            The complete run.

        Raises:
            ModelError: If the run cannot be continued.
            UsageError: If an option does not fit the run.
            DataError: If its images have changed.
        """
        dataset = self._in_memory_data if data is None else Dataset.wrap(data)
        with show_progress(progress, callback) as display:
            result = resume_run(
                self.path, None if dataset is None else dataset.sources, epochs=epochs, hosts=hosts,
                coordinator=coordinator, rank=rank, engine=engine, num_workers=num_workers,
                cpus_per_worker=cpus_per_worker, ray_address=ray_address, callback=display,
            )  # fmt: skip
        return Run(self.path, result=result, data=self._data if dataset is None else dataset)

    @property
    def _in_memory_data(self) -> Dataset | None:
        return self._data if self._data is not None and self._data.is_in_memory else None

    def report(self) -> Path:
        """Write the report of a complete run again, from the files of the run; the images and the model are not read.

        Returns:
            The path of the report, one self-contained HTML page.

        Raises:
            ModelError: If the run is not complete.
        """
        from sightline.api.report_writer import rebuild_report

        return rebuild_report(self.path)

    def compare(self, *runs: Run | str | Path, figure: str | Path | None = None) -> RunComparison:
        """Compare this run with others: settings, accuracies with intervals, and which run is right on which images.

        Args:
            *runs: The other runs, or their paths.
            figure: A PNG file to write, with the curves of all runs.

        Returns:
            A row for each run, and a paired comparison of each with this one (exact McNemar test, or a
                permutation test of groups).

        Raises:
            UsageError: If a run is given twice, or there is only one.
            ModelError: If a path is not a run.
        """
        from sightline.api.comparison import compare

        paths: list[Any] = [self.path, *(run.path if isinstance(run, Run) else run for run in runs)]
        for path in paths:
            if not isinstance(path, str | Path):
                raise UsageError(f"compare takes runs or their paths, not {path!r}.")
        return compare(paths, figure=figure)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self._describe()})"

    def _describe(self) -> str:
        if self._result is None and not is_run(self.path):
            return "moved or deleted"
        if self._result is None and self.status != "complete":
            return f"{self.status} after {plural(len(self.history), 'epoch')}"
        result = self.result
        held_out = OUT_OF_FOLD if "folds" in result.details else "validation"
        name, metrics = ("test", result.test) if result.test is not None else (held_out, result.validation)
        accuracy = f"{metrics.describe_accuracy()} on {metrics.count:,} {name} images" if metrics else "not evaluated"
        bundle = "" if result.bundle is not None else ", no bundle"
        return f"{result.model}, {accuracy}, {plural(result.epochs, 'epoch')}{bundle}"

    def _read_page(self) -> str:
        """Return the text of ``report.html``, "" if it is missing, a pipe or not written by Sightline."""
        with suppress(OSError):
            return _io.read_regular(self.path / "report.html", MAX_PAGE_BYTES).decode(errors="replace")
        return ""

    def _repr_html_(self) -> str:
        page = self._read_page() if is_run(self.path) and self.status == "complete" else ""
        if not page:
            rows = [asdict(epoch) for epoch in self.history] if is_run(self.path) else []
            return format_html_table(omit_empty_columns(rows), title=repr(self))
        html = escape(page, quote=True)
        frame = f'<iframe srcdoc="{html}" width="100%" height="{REPORT_HEIGHT}" sandbox></iframe>'
        return f"{frame}<p>{escape(repr(self))}</p>"
