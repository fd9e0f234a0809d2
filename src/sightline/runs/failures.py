"""Failed and interrupted runs: what is recorded, what is cleaned up, and what the user sees."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline import backend
from sightline.errors import (
    DataError,
    DivergedError,
    InsufficientMemoryError,
    Interrupted,
    MissingExtraError,
    ModelError,
    OutputError,
    UsageError,
)
from sightline.escaping import quote_path
from sightline.runs.directory import RunDirectory
from sightline.runs.folds import get_fold_path
from sightline.runs.paths import is_run

if TYPE_CHECKING:  # annotations only: a report must not import training code
    from sightline.training.time_budget import TimeBudget

INPUT_ERRORS = (DataError, MissingExtraError, ModelError, UsageError)  # errors in the input; nothing was trained yet


@contextmanager
def record_failure(run: RunDirectory, *, new: bool, budget: TimeBudget | None = None) -> Iterator[None]:
    """Record in `run` why the block failed, if it did, and raise the error with a message for the user.

    The time so far is recorded in its `budget`. A `new` run is removed if the input is invalid and nothing was trained
    yet.
    """
    try:
        yield
    except BaseException as caught:
        error = _translate_error(caught, run)
        if new and isinstance(error, INPUT_ERRORS) and not _has_trained(run):
            shutil.rmtree(run.path, ignore_errors=True)
        else:
            with suppress(OutputError):  # a full disk may be the very error being raised
                _record(run, error, budget)
        if error is caught:
            raise
        raise error from None if isinstance(error, Interrupted) else caught


def _has_trained(run: RunDirectory) -> bool:
    return run.has_model or run.checkpoints.exists() or is_run(get_fold_path(run, 0))


def record_interruption(run: RunDirectory, budget: TimeBudget | None) -> str:
    """Record the interruption in `run`, and its time in `budget`, and return the message for the user."""
    stopped = Interrupted(f"Stopped. `sightline resume {quote_path(run.path)}` continues from there.")
    with suppress(OutputError):
        _record(run, stopped, budget)
    return str(stopped)


def _record(run: RunDirectory, error: BaseException, budget: TimeBudget | None) -> None:
    run.update(**_failure_info(error))
    if budget is not None:
        budget.save()


def explain_incomplete(run: RunDirectory) -> str:
    """Return why a run is incomplete and what to do about it, as the end of a sentence."""
    if run.is_locked:
        return "it is still training; wait until it finishes"
    status = run.info.get("status")
    return f"its training did not finish (status {status!r}); `sightline resume {quote_path(run.path)}` continues it"


def require_bundle(run: RunDirectory, purpose: str) -> Path:
    """Return the folder of the bundle; raises `ModelError` naming the `purpose`, such as "to upload", without one."""
    folder = run.bundle
    if folder is None:
        raise ModelError(f"The run {run.path} has no bundle {purpose}: {_explain_missing_bundle(run)}.")
    return folder


def _explain_missing_bundle(run: RunDirectory) -> str:
    """Return why a run has no bundle, and what to do, as the end of a sentence."""
    info = run.info
    if info.get("status") != "complete":
        return explain_incomplete(run)
    export = f"`sightline export {quote_path(run.path)}`"
    if "no_bundle_reason" in info:
        return f"{info['no_bundle_reason']}; {export} with a larger --tolerance writes a file"
    return f"its folder {run.path / 'bundle'} was removed; {export} writes a new file"


def _failure_info(error: BaseException) -> dict[str, Any]:
    if isinstance(error, Interrupted):
        return {"status": "interrupted", "message": str(error)}
    failure: dict[str, Any] = {"status": "failed", "message": f"{type(error).__name__}: {error}"}
    if isinstance(error, DivergedError):
        failure["batch"] = list(error.batch)
    return failure


def _translate_error(error: BaseException, run: RunDirectory) -> BaseException:
    resume_hint = f"`sightline resume {quote_path(run.path)}` continues from there."
    if isinstance(error, KeyboardInterrupt):
        return Interrupted(f"Stopped. {resume_hint}")
    if type(error) is Interrupted and str(run.path) not in str(error):
        return Interrupted(f"{error} {resume_hint}")
    if isinstance(error, OutputError):
        return OutputError(f"{error} Then `sightline resume {quote_path(run.path)}` continues the run.")
    config = run.config if run.has_config else None
    if backend.is_out_of_memory(error):
        batch_hint = f", now {config.train.batch_size}" if config else ""
        height_hint = f", now {config.input.height}" if config else ""
        return InsufficientMemoryError(
            f"Out of memory with these settings: retrain with --force and a lower "
            f"train.batch_size{batch_hint}, or input.height{height_hint} ({_first_line(error)})."
        )
    if config and config.device.deterministic and backend.is_nondeterminism_error(error):
        return UsageError(
            f"This network uses an operation that is not deterministic on this device ({_first_line(error)}): "
            "train on a CPU (device.gpus=[]), or without --deterministic."
        )
    return error


def _first_line(error: BaseException) -> str:
    text = str(error).strip().split("\n", maxsplit=1)[0]
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__
