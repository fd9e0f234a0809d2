"""The time limit of a run: its budget, its record, and the probable gain from more time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from sightline import jsonio
from sightline.callbacks import EpochRecord
from sightline.config import RunConfig, StageConfig
from sightline.config.durations import format_duration, parse_duration
from sightline.errors import plural
from sightline.inference import runner
from sightline.runs import finalize
from sightline.runs.directory import RunDirectory
from sightline.runs.network_setup import DistributedNetwork, PreparedRun
from sightline.training.early_stopping import PERFECTIBLE
from sightline.training.result import StagePlan, TimeRecord, TrainResult
from sightline.training.time_budget import TimeBudget

MORE_SECONDS = 600.0  # "another ten minutes"
TRIAL_IMAGES = 64  # images that the exported file is timed on
RESERVE = 1.2  # the estimated time to finish is multiplied by this
PAGE_SECONDS = 6.0  # metrics, heat maps, figures and report of a small run, on two idle cores
PAGE_EXPORTS = 20.0  # the same as a multiple of the time of the export, since a busy machine slows both


def open_budget(run: RunDirectory, config: RunConfig, start_time: float) -> TimeBudget | None:
    """Return the budget of a run, None without a limit; `start_time` of this session is from `time.perf_counter`.

    An extension of a complete run (``resume --epochs``) is not limited.
    """
    info, limit = run.info, config.train.time_limit
    if not limit or info.get("extensions"):
        return None
    return TimeBudget(
        parse_duration(limit),
        _read_record(run, info),
        lambda record: run.update(time=asdict(record)),
        time.monotonic() - (time.perf_counter() - start_time),
    )


def keep_planned_views(run: RunDirectory, config: RunConfig) -> RunConfig:
    """Return the settings of an extension: its stages train on as many views of each image as before."""
    info = run.info
    if not info.get("extensions") or "time" not in info:
        return config
    plans = _read_record(run, info).stages

    def keep(number: int, stage: StageConfig) -> StageConfig:
        plan = plans.get(str(number))
        return stage if plan is None or not plan.epochs else replace(stage, views=plan.views)

    stages = tuple(keep(number, stage) for number, stage in enumerate(config.train.stages))
    return replace(config, train=replace(config.train, stages=stages))


def _read_record(run: RunDirectory, info: Mapping[str, Any]) -> TimeRecord:
    return jsonio.build(TimeRecord, info.get("time", {}), f"{run.path / 'run.json'}: the time")


def measure_finishing(network: DistributedNetwork, prepared: PreparedRun) -> float:
    """Return the estimated seconds from the end of training to the end of the run.

    The model is exported as at the end of a run, and the exported file is timed on some images.
    """
    started = time.perf_counter()
    model, data = network.to_single_device_model(), prepared.data
    _, predictor = finalize.export_onnx(model, data.classes, prepared.preprocess, prepared.config.device.threads)
    export_seconds = time.perf_counter() - started
    counts = data.counts()
    count = counts["validation"] + counts["test"]
    images = data.subset("validation" if counts["validation"] else "train").head(TRIAL_IMAGES)
    runner.predict_probabilities(predictor, images.head(1))  # the first call also allocates memory
    started = time.perf_counter()
    runner.predict_probabilities(predictor, images)
    evaluation_seconds = (time.perf_counter() - started) / max(len(images), 1) * count
    return RESERVE * (export_seconds + evaluation_seconds + max(PAGE_SECONDS, PAGE_EXPORTS * export_seconds))


def describe_time(
    budget: TimeBudget, config: RunConfig, history: Sequence[EpochRecord], best: EpochRecord | None
) -> dict[str, Any]:
    """Return what a run reports on its time limit: the limit and the time so far in seconds, and the outlook."""
    return {
        "limit": budget.limit,
        "seconds": budget.elapsed,
        "outlook": describe_outlook(budget.record, config, history, best),
    }


def update_time(result: TrainResult, budget: TimeBudget) -> TrainResult:
    """Return the result of a run at its end: its time includes the report, which could only state an earlier time."""
    time_info = {**result.details["time"], "seconds": budget.elapsed}
    return replace(result, details={**result.details, "time": time_info})


def describe_outlook(
    record: TimeRecord, config: RunConfig, history: Sequence[EpochRecord], best: EpochRecord | None
) -> str:
    """Return in a sentence or two what another ten minutes would probably bring, based on the epochs of the run."""
    if best is not None and best.val_accuracy == 1 and config.train.early_stopping.monitor in PERFECTIBLE:
        return "Another ten minutes would bring little: every validation image is classified correctly."
    stages = config.train.stages or (StageConfig("training"),)
    for number, plan in sorted(record.stages.items()):
        name = stages[int(number)].name
        count = sum(epoch.stage == name for epoch in history)
        is_cut_off = record.stopped and history[-1].stage == name
        if count == plan.configured or (0 < count < plan.epochs and not is_cut_off):  # early stopping ended it
            continue
        if plan.seconds is not None and plan.seconds > MORE_SECONDS:
            return (
                f"{plural(count, 'epoch')} of {plan.configured} of the stage {name} ran, and another ten minutes would "
                f"not be enough for one more: it takes about {format_duration(plan.seconds)}."
            )
        if not count:
            return _describe_unreached(name, plan)
        fitting = 1 if plan.seconds is None else min(int(MORE_SECONDS // plan.seconds), plan.configured - count)
        return _describe_trend(config, history, best, f"{plural(fitting, 'more epoch')} of {name}")
    ending = "The limit ended the last epoch early" if record.stopped else "All epochs ran"
    if len(history) < 2:
        advice = "; --effort balanced would fine-tune the network" if config.train.effort == "fast" else ""
        if history and history[-1].stage != stages[-1].name:  # see `find_obstacle`
            advice = f"; the stage {stages[-1].name} was left out because there are too few validation images"
        return f"{ending}{advice}. What more time would bring is unknown: one epoch shows no trend."
    return _describe_trend(config, history, best, "", ending)


def _describe_unreached(name: str, plan: StagePlan) -> str:
    epochs = plural(plan.configured, "epoch")
    if plan.seconds is None:
        return (
            f"The stage {name} was not reached. Another ten minutes would start it; how many of its {epochs} "
            "would fit, and what they would bring, is unknown, because none has run."
        )
    fitting = min(int(MORE_SECONDS // plan.seconds), plan.configured)
    return (
        f"The stage {name} was not reached. Another ten minutes would allow {fitting} of its {epochs}; what they would "
        "bring is unknown, because none has run."
    )


def _describe_trend(
    config: RunConfig, history: Sequence[EpochRecord], best: EpochRecord | None, epochs: str, ending: str = ""
) -> str:
    """Return whether the monitored metric was still improving.

    `epochs` describes the epochs that were left out, "" if all began, and `ending` how they ended.
    """
    monitor = config.train.early_stopping.monitor
    metric = monitor if monitor.startswith("val_") else "val_accuracy"
    values = [getattr(epoch, metric) for epoch in history]
    if best is None or any(value is None for value in values):
        return "What another ten minutes would bring is unknown: there is no validation split to measure it on."
    since = len(history) - best.epoch
    if since:
        last = "the last epoch" if since == 1 else f"the last {since} epochs"
        return f"Another ten minutes would probably bring little: {last} did not improve on epoch {best.epoch}."
    if len(history) < 2:
        return f"Another ten minutes would allow {epochs}. What they would bring is unknown: one epoch shows no trend."
    name = {"val_accuracy": "accuracy", "val_loss": "loss", "val_mean_iou": "mean IoU"}.get(
        metric, "loss after calibration"
    )
    earlier = min(values[:-1]) if metric.endswith("loss") else max(values[:-1])
    trend = f"the validation {name} was still improving, from {earlier:.4f} to {values[-1]:.4f} in the last epoch"
    if epochs:
        return f"Another ten minutes would allow {epochs} and probably help, though how much is unknown: {trend}."
    option = "--effort best or more --epochs" if config.train.effort == "balanced" else "more --epochs"
    return f"{ending}, and {trend}: {option} would probably help, though how much is unknown."
