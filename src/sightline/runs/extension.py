"""Extend a complete run to more epochs, from its last checkpoint.

An extension is recorded in ``run.json`` in one atomic step, as an entry {from, to, stage_epochs_before, stage_epochs}
of the list ``extensions``. The settings are derived from the last entry whenever the run is opened, so the process may
be killed at any time. Until the first new epoch is complete, the previous result stays in place and the extension can
be withdrawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from sightline import _io
from sightline.callbacks import Callback
from sightline.config import RunConfig, ScheduleConfig, resolve_config, to_dict
from sightline.config.stage_epochs import count_epochs
from sightline.errors import ConfigError, ModelError, UsageError, plural
from sightline.escaping import quote_path
from sightline.runs.directory import RunDirectory
from sightline.training import checkpoints, state
from sightline.training.checkpoints import Checkpoint
from sightline.training.early_stopping import find_obstacle

LARGE_CHECKPOINT_BYTES = 1 << 30  # checkpoint size in bytes above which the user is warned


def begin_extension(run: RunDirectory, epochs: int, callback: Callback) -> None:
    """Extend a complete run, whose lock is held, to `epochs` in total; an extension already in progress is unchanged.

    Raises `UsageError` if the run is incomplete, has more epochs already, or left its last stage out because of its
    validation images, and `ModelError` without a checkpoint.
    """
    info = run.info
    previous = info.get("extensions", [])
    completed = len(run.read_history())
    if info.get("status") != "complete":
        if previous and previous[-1]["to"] == epochs:
            return
        raise UsageError(
            f"{run.path} is {info.get('status')}, and only a complete run can be extended: finish it with "
            f"`sightline resume {quote_path(run.path)}`, then give --epochs."
        )
    if epochs == completed:
        return
    if epochs < completed:
        raise UsageError(f"{run.path} has already trained for {completed} epochs: give --epochs a larger number.")
    config = run.config
    if config.split.folds:
        raise UsageError(
            f"The epochs of {run.path} are those that its folds found to be best: to change them, train it again with "
            f"--epochs {epochs} and --force."
        )
    last_checkpoint = state.load_latest(run.checkpoints, callback.on_message)
    if last_checkpoint is None or len(last_checkpoint.state["history"]) != completed:
        raise ModelError(
            f"{run.path} cannot be extended: its last checkpoint is not in {run.checkpoints} (it was removed, or "
            "train.keep_last_checkpoint was false). Retrain with more --epochs."
        )
    name, count = _last_stage(config)
    _check_obstacle(run, last_checkpoint, name)
    trained = last_checkpoint.state["epoch"]
    stage_total = trained + epochs - completed
    entry = {"from": completed, "to": epochs, "stage_epochs_before": count, "stage_epochs": stage_total}
    run.update(status="running", extensions=[*previous, entry])
    callback.on_message(
        f"{run.path} continues from epoch {completed} to {epochs}: the stage {name!r} has run for "
        f"{plural(trained, 'epoch')} and now runs for {stage_total}"
        f"{_schedule_note(config.train.schedule) if trained else ''}"
    )


def apply_extension(run: RunDirectory) -> None:
    """Update the settings of a run from its last extension, if there is one."""
    if extensions := run.info.get("extensions"):
        _set_epochs(run, extensions[-1]["stage_epochs"])


def withdraw_extension(run: RunDirectory) -> None:
    """Undo an extension that failed before its first epoch was complete; the run is complete again."""
    info = run.info
    if not info.get("extensions") or len(run.read_history()) != info["extensions"][-1]["from"]:
        return
    *previous, entry = info["extensions"]
    _set_epochs(run, entry["stage_epochs_before"])
    run.update(drop=("message", "extensions"), status="complete", **({"extensions": previous} if previous else {}))


def _set_epochs(run: RunDirectory, epochs: int) -> None:
    """Set the epochs of the last stage."""
    config = run.config
    train = config.train
    if train.stages:
        new_train = replace(train, stages=(*train.stages[:-1], replace(train.stages[-1], epochs=epochs)))
    else:
        new_train = replace(train, epochs=epochs)
    if new_train == train:
        return
    new_config = replace(config, train=new_train)
    try:
        resolve_config(to_dict(new_config))
    except ConfigError as error:
        raise ConfigError(f"{run.path / 'run.json'} cannot be read: {error}") from error
    run.write_config(new_config)


def reset_patience(saved: Checkpoint | None, info: Mapping[str, Any]) -> Checkpoint | None:
    """Return the checkpoint that an extension starts from, with the patience of early stopping reset."""
    if saved is None or not info.get("extensions") or len(saved.state["history"]) != info["extensions"][-1]["from"]:
        return saved
    return Checkpoint(saved.arrays, saved.state | {"since_best": 0})


@contextmanager
def name_checkpoints_in_errors(run: RunDirectory) -> Iterator[None]:
    """Name the folder in the error for a checkpoint of another network or other data."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{run.checkpoints} cannot be used: {error} Retrain with --force.") from error


def clean_checkpoints(run: RunDirectory, *, keep: bool, callback: Callback) -> None:
    """Delete the checkpoints of a complete run, except for the last one if `keep`."""
    if not keep:
        _io.remove(run.checkpoints)
        return
    size = checkpoints.prune_checkpoints(run.checkpoints)
    if size > LARGE_CHECKPOINT_BYTES:
        callback.on_message(
            f"{run.checkpoints} takes {size / 2**30:.1f} GiB, for `sightline resume {quote_path(run.path)} --epochs "
            "N`: remove it if you will not extend the run (train.keep_last_checkpoint=false keeps no checkpoint)"
        )


def _last_stage(config: RunConfig) -> tuple[str, int]:
    if not config.train.stages:
        return "training", config.train.epochs
    stage = config.train.stages[-1]
    if stage.is_solved:
        raise UsageError(
            f"The last stage, {stage.name!r}, is solved in one epoch: there are none to add. To train further, start a "
            "new run with a fine-tuning stage, such as that of --effort balanced."
        )
    return stage.name, count_epochs(config.train, stage)


def _check_obstacle(run: RunDirectory, last: Checkpoint, stage: str) -> None:
    """Raise `UsageError` if the last `stage` was left out, and would be again; `last` is the last checkpoint."""
    if last.state["epoch"] or last.state["step"] or last.state["best"] is None:
        return
    best = state.read_history(last)[last.state["best"] - 1]
    num_images = sum(image.split == "validation" for image in run.read_data() or ())
    if (obstacle := find_obstacle(best, run.config, num_images)) is not None:
        raise UsageError(
            f"{run.path} cannot be extended: its stage {stage!r} was left out, as {obstacle.reason}. To train it "
            f"anyway, use `sightline train` again, with --force and {obstacle.setting}."
        )


def _schedule_note(schedule: ScheduleConfig) -> str:
    if schedule.name in {"linear", "cosine", "one_cycle"} or schedule.warmup_fraction:
        return f"; the {schedule.name} schedule is recomputed for all of them"
    return ""
