"""A complete run that goes on to more epochs, from the state of training that it kept.

What is asked for is written into ``run.json`` in one step, ``extended``: a list of {from, to, stage_epochs_before,
stage_epochs}. The settings follow from its last entry, whenever the run is opened again; so it may be killed at any
moment. Until the first new epoch is done, the run's outcome stays in place and the extension can be withdrawn.
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

LARGE = 1 << 30  # bytes of a kept state that are worth a word


def begin(run: Run, epochs: int, watcher: Watcher) -> None:
    """Let a complete run, which is held, go on to `epochs` in all; one that is on its way there already stays as it is.

    Raises `UsageError` where it is not complete or has that many epochs, `ModelError` where its state was not kept.
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
        raise UsageError(f"{run.path} has trained for {done} epochs already: give --epochs more than that.")
    saved = state.latest(run.checkpoints, watcher.say)
    if saved is None or len(saved.state["history"]) != done:
        raise ModelError(
            f"{run.path} cannot be extended: the state of its training is not in {run.checkpoints} (it was removed, "
            "train.keep_state was false, or an older version trained it). Train anew with more --epochs."
        )
    name, count = _last(run.config)
    total = saved.state["epoch"] + epochs - done
    entry = {"from": done, "to": epochs, "stage_epochs_before": count, "stage_epochs": total}
    run.update(status="running", extended=[*before, entry])
    watcher.say(
        f"{run.path} goes on from epoch {done} to {epochs}: the stage {name!r} had {plural(count, 'epoch')} "
        f"and has {total} now"
        f"{_about(run.config.train.schedule)}"
    )


def apply(run: Run) -> None:
    """Let the settings of a run say what its last extension, if there is one, made of them."""
    if extended := run.info.get("extended"):
        _set_epochs(run, extended[-1]["stage_epochs"])


def withdraw(run: Run) -> None:
    """Undo an extension that failed before its first epoch was done: the run is complete, as it was."""
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
    """Return a checkpoint as an extension goes on from it: early stopping counts anew where the run had ended."""
    if saved is None or not info.get("extended") or len(saved.state["history"]) != info["extended"][-1]["from"]:
        return saved
    return Checkpoint(saved.arrays, saved.state | {"since_best": 0})


@contextmanager
def naming(run: Run) -> Iterator[None]:
    """Name the folder of the checkpoints where one of them is of another network or of other data."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{run.checkpoints} cannot be used: {error} Train anew with --force.") from error


def conclude(run: Run, *, keep: bool, watcher: Watcher) -> None:
    """Keep of a complete run's state of training the last checkpoint, or nothing."""
    if not keep:
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        return
    size = checkpoint.keep_newest(run.checkpoints)
    if size > LARGE:
        watcher.say(
            f"{run.checkpoints} keeps {size / 2**30:.1f} GiB, for `sightline resume {run.path} --epochs N`: remove it "
            "if there will be none (train.keep_state=false keeps nothing)"
        )


def _last(config: RunConfig) -> tuple[str, int]:
    if not config.train.stages:
        return "training", config.train.epochs
    stage = config.train.stages[-1]
    return stage.name, config.train.epochs if stage.epochs is None else stage.epochs


def _about(schedule: ScheduleConfig) -> str:
    if schedule.name in {"cosine", "one_cycle"} or schedule.warmup:
        return f"; the {schedule.name} schedule is restated over all of them"
    return ""
