"""Extend a complete run to more epochs, from its last checkpoint.

An extension is recorded in ``run.json`` in one atomic step, as an entry {from, to, stage_epochs_before, stage_epochs}
of the list ``extended``. The settings are derived from the last entry whenever the run is opened, so the process may be
killed at any time. Until the first new epoch is complete, the previous result stays in place and the extension can be
withdrawn.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from sightline.config import RunConfig, ScheduleConfig, resolve, to_dict
from sightline.errors import ConfigError, ModelError, UsageError, plural
from sightline.run import Run
from sightline.training import checkpoint, state
from sightline.training.checkpoint import Checkpoint
from sightline.watch import Watcher

LARGE = 1 << 30  # checkpoint size in bytes above which the user is told


def begin(run: Run, epochs: int, watcher: Watcher) -> None:
    """Extend a complete run, whose lock is held, to `epochs` in total; an extension already in progress is unchanged.

    Raises `UsageError` if the run is incomplete or has more epochs already, `ModelError` without a checkpoint.
    """
    info = run.info
    before = info.get("extended", [])
    done = len(run.read_history())
    if info.get("status") != "complete":
        if before and before[-1]["to"] == epochs:
            return
        raise UsageError(
            f"{run.path} is {info.get('status')}, and only a complete run can be extended: finish it with "
            f"`sightline resume {run.path}`, then give --epochs."
        )
    if epochs == done:
        return
    if epochs < done:
        raise UsageError(f"{run.path} has already trained for {done} epochs: give --epochs a larger number.")
    saved = state.latest(run.checkpoints, watcher.say)
    if saved is None or len(saved.state["history"]) != done:
        raise ModelError(
            f"{run.path} cannot be extended: its last checkpoint is not in {run.checkpoints} (it was removed, "
            "train.keep_state was false, or an older version trained it). Retrain with more --epochs."
        )
    name, count = _last(run.config)
    total = saved.state["epoch"] + epochs - done
    entry = {"from": done, "to": epochs, "stage_epochs_before": count, "stage_epochs": total}
    run.update(status="running", extended=[*before, entry])
    watcher.say(
        f"{run.path} continues from epoch {done} to {epochs}: the stage {name!r} had {plural(count, 'epoch')} "
        f"and now has {total}"
        f"{_about(run.config.train.schedule)}"
    )


def apply(run: Run) -> None:
    """Update the settings of a run from its last extension, if there is one."""
    if extended := run.info.get("extended"):
        _set_epochs(run, extended[-1]["stage_epochs"])


def withdraw(run: Run) -> None:
    """Undo an extension that failed before its first epoch was complete; the run is complete again."""
    info = run.info
    if not info.get("extended") or len(run.read_history()) != info["extended"][-1]["from"]:
        return
    *before, entry = info["extended"]
    _set_epochs(run, entry["stage_epochs_before"])
    run.update(drop=("message", "extended"), status="complete", **({"extended": before} if before else {}))


def _set_epochs(run: Run, epochs: int) -> None:
    """Set the epochs of the last stage."""
    config = run.config
    train = config.train
    if train.stages:
        wanted = replace(train, stages=(*train.stages[:-1], replace(train.stages[-1], epochs=epochs)))
    else:
        wanted = replace(train, epochs=epochs)
    if wanted == train:
        return
    settled = replace(config, train=wanted)
    try:
        resolve(to_dict(settled))
    except ConfigError as error:
        raise ConfigError(f"{run.path / 'run.json'} cannot be read: {error}") from error
    run.write_config(settled)


def reopened(saved: Checkpoint | None, info: Mapping[str, Any]) -> Checkpoint | None:
    """Return the checkpoint that an extension starts from, with the patience of early stopping reset."""
    if saved is None or not info.get("extended") or len(saved.state["history"]) != info["extended"][-1]["from"]:
        return saved
    return Checkpoint(saved.arrays, saved.state | {"since_best": 0})


@contextmanager
def naming(run: Run) -> Iterator[None]:
    """Name the folder in the error for a checkpoint of another network or other data."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{run.checkpoints} cannot be used: {error} Retrain with --force.") from error


def conclude(run: Run, *, keep: bool, watcher: Watcher) -> None:
    """Delete the checkpoints of a complete run, except for the last one if `keep`."""
    if not keep:
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        return
    size = checkpoint.keep_newest(run.checkpoints)
    if size > LARGE:
        watcher.say(
            f"{run.checkpoints} takes {size / 2**30:.1f} GiB, for `sightline resume {run.path} --epochs N`: remove it "
            "if you will not extend the run (train.keep_state=false keeps no checkpoint)"
        )


def _last(config: RunConfig) -> tuple[str, int]:
    if not config.train.stages:
        return "training", config.train.epochs
    stage = config.train.stages[-1]
    return stage.name, config.train.epochs if stage.epochs is None else stage.epochs


def _about(schedule: ScheduleConfig) -> str:
    if schedule.name in {"cosine", "one_cycle"} or schedule.warmup:
        return f"; the {schedule.name} schedule is recomputed for all of them"
    return ""
