"""The steps of a run: resolve, prepare, fit, finalize, complete.

Each step takes the values of earlier steps, writes its result into the run directory, and returns it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from sightline import jsonio, process
from sightline.callbacks import Callback, CallbackList, EpochRecord
from sightline.data.checks import leakage
from sightline.data.checks.finding import Finding
from sightline.data.dataset import DecodedDataset
from sightline.data.types import SPLITS, Split, describe_unreadable
from sightline.errors import DivergedError, Interrupted, plural
from sightline.escaping import quote_path
from sightline.evaluation.results import EvaluationResult, TaskResult
from sightline.models.describe import count_parameters
from sightline.runs import (
    environment,
    extension,
    folds,
    host_session,
    network_setup,
    preflight,
    time_limit,
    tracked_run,
)
from sightline.runs.directory import RunDirectory
from sightline.runs.facts import Machine
from sightline.runs.failures import record_interruption
from sightline.runs.finalize import FinalModel, finalize
from sightline.runs.host_session import HostSession
from sightline.runs.network_setup import PreparedRun
from sightline.runs.resolve import RunInputs, complete_settings
from sightline.runs.run_images import check_unchanged
from sightline.tracking.tracker import TrackerList
from sightline.training import interrupt
from sightline.training.early_features import EarlyFeatures
from sightline.training.loop import FitResult
from sightline.training.result import SplitMetrics, TrainingMetrics, TrainResult
from sightline.training.state import load_latest, read_history
from sightline.training.time_budget import TimeBudget


@dataclass(frozen=True, slots=True)
class Job:
    """A training in progress: its run directory, locked by this process, its callback, hosts, and time limit if any."""

    run: RunDirectory
    callback: Callback
    start_time: float = field(default_factory=time.perf_counter)
    session: HostSession = field(default_factory=HostSession)
    budget: TimeBudget | None = None

    def save_time(self) -> None:
        """Record the time so far if it is limited; a process that is killed loses only the time after that."""
        if self.budget is not None:
            self.budget.save()


@dataclass(frozen=True, slots=True)
class FittedNetwork:
    """The trained network as a float32 Keras model on one device, and what training returned."""

    model: object
    result: FitResult


WriteReport = Callable[[RunDirectory, FinalModel], object]
"""Draws the figures and writes the report of a run, from its files and the evaluation of its final model."""


def run_pipeline(
    job: Job, inputs: RunInputs, write_report: WriteReport, prepare_report: Callable[[], None] = lambda: None
) -> TrainResult:
    """Train the run of `job` from its last checkpoint, if there is one, to its report; returns its result.

    `write_report` is called at the end, before the run is complete: reports are rendered in a higher layer.
    `prepare_report` imports the packages for it, while features are computed early.
    """
    resolved = resolve(job, inputs)
    config = time_limit.keep_planned_views(job.run, folds.apply_choices(job.run, resolved.config))
    prepared = prepare(job, replace(resolved, config=config))
    job.save_time()
    process.trim_memory()  # frees the memory of decoding
    with (
        interrupt.exit_on_sigterm(lambda: record_interruption(job.run, job.budget)),
        tracked_run.open_trackers(prepared.config, job.callback) as trackers,
        compute_early(job, prepared, prepare_report) as early,
    ):
        fitted = fit(job, prepared, trackers, early)
        job.save_time()
        process.trim_memory()  # frees the memory of the optimizer and the activations
        final = finalize(job.run, prepared, fitted.model, fitted.result, job.callback, early)
        result = complete(job, prepared, fitted, final, trackers, write_report)
    return result if job.budget is None else time_limit.update_time(result, job.budget)


def resolve(job: Job, inputs: RunInputs) -> RunInputs:
    """Complete the settings and record them, unless the run has recorded its own; share them with the other hosts."""
    run, session = job.run, job.session
    if not run.has_config:
        inputs = complete_settings(inputs, job.callback, Machine(session.team.count))
        config = inputs.config
        run.update(
            seed=config.seed,
            findings=[_finding_to_dict(finding) for finding in inputs.findings],
            recipe_choice=None if inputs.choice is None else asdict(inputs.choice),
            **environment.describe_environment(),
        )
        run.write_patch(config.data.patch)
        run.write_config(config)
    host_session.check_host_count(session.team, inputs.config)
    session.send_settings(inputs.config, run.info["request"], run.patch)
    return inputs


def _finding_to_dict(finding: Finding) -> dict[str, object]:
    return {key: getattr(finding, key) for key in ("kind", "severity", "count", "advice")}


def prepare(job: Job, inputs: RunInputs) -> PreparedRun:
    """Decode and split the images, look for leakage between the splits, and specify the network."""
    run, callback = job.run, job.callback
    for note in environment.describe_little_memory():
        callback.on_message(note)
    prepared = network_setup.prepare_inputs(inputs, callback.on_progress)
    config, data = prepared.config, prepared.data
    check_unchanged(run, data)
    small_images = leakage.make_small_images(
        data.pixels, data.rows, [image.sha256 for image in data.images], config.device.threads
    )
    leaks = leakage.find_leaks(data, None if small_images is None else small_images.find_groups())
    for note in [
        *_describe_data(data),
        *folds.mention_folds(data.images, config),
        *preflight.describe_leakage(leaks, data, config),
    ]:
        callback.on_message(note)
    run.write_data(data)
    run.write_leakage(leaks, small_images and small_images.select(leakage.training_contents(data)))
    return prepared


def _describe_data(data: DecodedDataset) -> list[str]:
    counts = data.counts()
    split_counts = ", ".join(f"{counts[split]:,} {split}" for split in SPLITS)
    groups = f" ({plural(len(set(data.groups)), 'group')})" if data.groups else ""
    notes = [f"{data.name}: {plural(len(data.classes), 'class', 'classes')}, {split_counts}{groups}"]
    if data.unreadable:
        notes.append(f"{describe_unreadable(data.unreadable)} (all are in data.jsonl)")
    if data.skipped:
        notes.append(f"{plural(data.skipped, 'file')} skipped: not {'an image' if data.skipped == 1 else 'images'}")
    return [*notes, *data.notes]


def compute_early(
    job: Job, prepared: PreparedRun, meanwhile: Callable[[], None]
) -> AbstractContextManager[EarlyFeatures | None]:
    """Return a context in which features are computed, while the network of a new run on a single host is built.

    Training calls `meanwhile` before it waits for them. With a time limit, nothing is computed early, since durations
    are measured then.
    """
    is_new = next(job.run.checkpoints.glob("*"), None) is None
    if is_new and job.session.team.count == 1 and not prepared.config.train.time_limit:
        return network_setup.computing_early(prepared, meanwhile)
    return nullcontext()


def fit(job: Job, prepared: PreparedRun, trackers: TrackerList, early: EarlyFeatures | None = None) -> FittedNetwork:
    """Train the network from the last checkpoint, if there is one; features in `early` are not computed again.

    Raises `Interrupted` or `DivergedError` after saving the best weights so far.
    """
    run, session = job.run, job.session
    checkpoint = extension.reset_patience(load_latest(run.checkpoints, job.callback.on_message), run.info)
    history = list(read_history(checkpoint))
    run.write_history(history)
    if checkpoint:
        step = checkpoint.state["step"]
        rest = f" and {plural(step, 'step')} of the next" if step else ""
        job.callback.on_message(f"resuming after {plural(len(history), 'epoch')}{rest}")

    def record_epoch(record: EpochRecord) -> None:
        history.append(record)
        run.write_history(history)
        trackers.log_epoch(record)

    tracked_run.start_trackers(trackers, run, prepared.config, history)
    session.check_same_data(prepared.data, prepared.spec.weights)
    checkpoint = session.broadcast_checkpoint(checkpoint)
    network = network_setup.build_distributed_network(prepared)
    callback = CallbackList(job.callback, record_epoch)
    if (budget := job.budget) is not None:
        budget.measure_finishing = partial(time_limit.measure_finishing, network, prepared)
    try:
        with extension.name_checkpoints_in_errors(run), session.disconnecting():
            result = network_setup.fit_network(network, prepared, callback, checkpoint, run.checkpoints, budget, early)
    except (Interrupted, DivergedError) as error:
        if history:
            run.write_model(network.to_single_device_model(), prepared.data.classes, prepared.preprocess)
        if isinstance(error, DivergedError):
            raise
        raise Interrupted(
            f"{error} The last checkpoint and the best weights are saved: "
            f"`sightline resume {quote_path(run.path)}` continues from there."
        ) from None
    return FittedNetwork(network.to_single_device_model(), result)


def complete(
    job: Job,
    prepared: PreparedRun,
    fitted: FittedNetwork,
    final: FinalModel,
    trackers: TrackerList,
    write_report: WriteReport,
) -> TrainResult:
    """Record the result, write the report, and mark the run as complete."""
    run = job.run
    result = _build_result(job, prepared, fitted, final)
    run.update(result=result.to_dict())
    write_report(run, final)
    trackers.log_result(
        tracked_run.list_result_metrics(final.evaluations), result.epochs, tracked_run.list_artifacts(run)
    )
    run.update(status="complete")
    extension.clean_checkpoints(run, keep=prepared.config.train.keep_last_checkpoint, callback=job.callback)
    return result


def _list_headlines(evaluations: Mapping[Split, TaskResult]) -> dict[str, Any]:
    """Return the metrics that a run reports first, and their intervals, by split; empty for the accuracy alone."""
    headlines = {
        split: {name: value.metrics[name] for name in value.headlines}
        for split, value in evaluations.items()
        if value.headlines
    }
    if not headlines:
        return {}
    return {
        "metrics": {split: {name: m.value for name, m in values.items()} for split, values in headlines.items()},
        "metric_intervals": {
            split: {name: m.interval for name, m in values.items()} for split, values in headlines.items()
        },
    }


def _build_result(job: Job, prepared: PreparedRun, fitted: FittedNetwork, final: FinalModel) -> TrainResult:
    data, evaluations, best_epoch = prepared.data, final.evaluations, fitted.result.best

    def split_metrics(split: Split) -> SplitMetrics | None:
        if (value := evaluations.get(split)) is None:
            return None
        return SplitMetrics(value.accuracy, value.loss, value.count, value.accuracy_interval)

    budget, history = job.budget, fitted.result.history
    time_info = {"time": time_limit.describe_time(budget, prepared.config, history, best_epoch)} if budget else {}
    return TrainResult(
        run=str(job.run.path),
        model=prepared.config.model.name,
        parameters=count_parameters(fitted.model),
        classes=data.classes,
        train=TrainingMetrics.from_epoch(best_epoch, data.counts()["train"]),
        validation=split_metrics("validation"),
        test=split_metrics("test"),
        epochs=len(fitted.result.history),
        seconds=time.perf_counter() - job.start_time,
        images_per_second=fitted.result.images_per_second,
        weights_sha256=final.weights_sha256,
        recipe=prepared.config.recipe,
        notes=data.notes,
        bundle=None if final.no_bundle_reason else str(job.run.path / "bundle"),
        no_bundle_reason=final.no_bundle_reason,
        details={
            **({"folds": prepared.config.split.folds} if folds.is_folded(prepared.config) else {}),
            **({"refit": True} if fitted.result.is_refit else {}),
            **({"resumed": True} if job.run.info.get("resumed") else {}),
            "best_epoch": best_epoch.epoch if best_epoch else None,
            "temperature": final.temperature,
            "unreadable": len(data.unreadable),
            "skipped": data.skipped,
            "cache_hit": data.cache_hit,
            "leaked": {split: value.summarize().get("leaked") for split, value in evaluations.items()},
            "untested_classes": {split: list(value.untested_classes) for split, value in evaluations.items()},
            "lowest_recall": {
                split: jsonio.to_plain(value.lowest_recall)
                for split, value in evaluations.items()
                if isinstance(value, EvaluationResult)
            },
            **time_info,
            **_list_headlines(evaluations),
        },
    )
