"""`train_run`: from labeled images to a complete run directory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from sightline import _io, backend
from sightline._keras.process_state import restore_torch_settings
from sightline.api import folds
from sightline.api.loading import load
from sightline.api.model_evaluation import evaluate_model
from sightline.api.report_writer import load_packages, write_first_report
from sightline.callbacks import Callback
from sightline.data.indexing import Sources
from sightline.data.types import Split
from sightline.distributed.cluster import ClusterSpec
from sightline.errors import UsageError
from sightline.inference.results import ThresholdRequest
from sightline.runs import existing_run, host_session, time_limit
from sightline.runs.directory import RunDirectory
from sightline.runs.facts import THIS_MACHINE
from sightline.runs.failures import record_failure
from sightline.runs.paths import check_writable, is_run, next_path
from sightline.runs.pipeline import Job, run_pipeline
from sightline.runs.resolve import RunInputs, resolve_request
from sightline.runs.train_request import TrainRequest
from sightline.training import interrupt
from sightline.training.result import SplitMetrics, TrainResult


@restore_torch_settings()
def train_run(  # noqa: PLR0913  # one keyword argument per option of the command
    sources: Sources,
    *,
    recipe: str = "auto",
    config: Path | str | None = None,
    set: Sequence[str] = (),  # noqa: A002  # the name of the option
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    out: Path | str | None = None,
    force: bool = False,
    hosts: ClusterSpec | None = None,
    callback: Callback | None = None,
) -> TrainResult:
    """Train a classifier on labeled images and write a complete run directory.

    `sources`: see `sightline.data.indexing.build_index`. The options are those of `sightline.train`, with `set` as a
    list of ``KEY=VALUE`` assignments. `hosts`: the processes that train together, each of which calls this with the
    same arguments; only host 0 writes, and the results of the others have training metrics only.

    Raises `SightlineError`s; if raised before the first step, nothing is left behind.
    """
    start_time = time.perf_counter()
    callback = callback or Callback()
    shortcuts = {"train.epochs": epochs, "train.batch_size": batch_size, "seed": seed}
    assignments = [*(f"{key}={value}" for key, value in shortcuts.items() if value is not None), *set]
    request = host_session.with_jax_backend(TrainRequest.create(sources, recipe, config, assignments), hosts)
    requested = request.merge_layers()  # fail on invalid settings before reading any image
    if hosts is not None and requested.train.time_limit:
        raise UsageError("A time limit works only on a single host: leave out --time-limit, or --hosts.")
    folds.check_settings(requested, has_hosts=hosts is not None)
    requested_device = requested.device
    backend.tune_malloc(requested_device.backend)  # before the first thread
    run_path = _io.output_path(out) if out is not None else None
    inputs: RunInputs | None = None
    with interrupt.raise_on_sigterm(), host_session.open_session(hosts, requested_device, callback) as session:
        if session.team.rank:
            return host_session.train_follower(session, sources, start_time)
        if run_path is not None and is_run(run_path) and not force:
            run = RunDirectory.open(run_path)
            with run.lock():
                inputs = resolve_request(request, sources, callback)
                existing_run.check_same_run(run, inputs)
            return _reevaluate(run, inputs, callback)  # raises if the run is being trained
        if run_path is not None:
            check_writable(run_path, force=force)
        if run_path is None or is_run(run_path):
            inputs = resolve_request(request, sources, callback)
            THIS_MACHINE.find_initial_weights(inputs.config)  # an old run is removed only once the new one can start
            run_path = run_path or next_path(Path("runs"), f"{inputs.config.recipe}-{_io.safe_stem(inputs.index.name)}")
        with ExitStack() as stack:
            with interrupt.catch_stop_signals() as stop:  # so that the new run records the stop
                run = stack.enter_context(RunDirectory.create(run_path, force=force, request=request.to_dict()))
                budget = time_limit.open_budget(run, requested, start_time)
            stack.enter_context(record_failure(run, new=True, budget=budget))
            stop.check("before the images were read")
            job = Job(run, callback, start_time, session, budget)
            inputs = inputs or resolve_request(request, sources, callback)
            folds.train_folds(job, inputs, request, sources)
            return run_pipeline(job, inputs, write_first_report, load_packages)


def _reevaluate(run: RunDirectory, inputs: RunInputs, callback: Callback) -> TrainResult:
    """Evaluate a complete run with the same settings and images again, on its test split (else validation)."""
    callback.on_message(f"{run.path} is already complete with these settings: nothing to train, evaluating it again")
    result = existing_run.load_result(run)
    split: Split = "validation" if result.test is None else "test"
    classifier = load(run.path)
    evaluation = evaluate_model(
        classifier,
        classifier.labeled_images(progress=callback.on_progress, index=inputs.index),
        split=split,
        threshold_request=ThresholdRequest(positive=inputs.config.evaluation.positive_class),
        progress=callback.on_progress,
    ).evaluation
    metrics = SplitMetrics(evaluation.accuracy, evaluation.loss, evaluation.count, evaluation.accuracy_interval)
    return replace(result, test=metrics) if split == "test" else replace(result, validation=metrics)
