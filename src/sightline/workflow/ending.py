"""Failed and interrupted runs: what is recorded, what is cleaned up, and what the user is told."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sightline import backend
from sightline.errors import (
    DataError,
    DivergedError,
    Interrupted,
    MissingExtraError,
    ModelError,
    OutOfMemory,
    OutputError,
    UsageError,
)
from sightline.run import Run

INPUT = (DataError, MissingExtraError, ModelError, UsageError)  # errors in the input; nothing was trained yet


@contextmanager
def marked(run: Run, *, new: bool) -> Iterator[None]:
    """Record in `run` why the block failed, if it did, and raise the error with a message for the user.

    A `new` run is removed if the input is invalid and nothing was trained yet.
    """
    try:
        yield
    except BaseException as caught:
        error = _in_words(caught, run)
        if new and isinstance(error, INPUT) and not (run.has_model or run.checkpoints.exists()):
            shutil.rmtree(run.path, ignore_errors=True)
        else:
            with suppress(OutputError):  # the disk may be full, which is then the error being raised
                run.update(**_facts(error))
        if error is caught:
            raise
        raise error from None if isinstance(error, Interrupted) else caught


def leave(run: Run) -> str:
    """Record in `run` that it was interrupted, and return the message for the user."""
    stopped = Interrupted(f"Stopped. `sightline resume {run.path}` continues from there.")
    with suppress(OutputError):
        run.update(**_facts(stopped))
    return str(stopped)


def unfinished(run: Run) -> str:
    """Return why a run is incomplete and what to do about it, as the end of a sentence."""
    if run.is_held:
        return "it is still training; wait until it finishes"
    status = run.info.get("status")
    return f"its training did not finish (status {status!r}); `sightline resume {run.path}` continues it"


def no_bundle(run: Run) -> str:
    """Return why a run has no bundle, and what to do, as the end of a sentence."""
    info = run.info
    if info.get("status") != "complete":
        return unfinished(run)
    if "no_bundle" in info:
        return f"{info['no_bundle']}; `sightline export {run.path}` with a larger --tolerance writes a file"
    return f"its folder {run.path / 'bundle'} was removed; `sightline export {run.path}` writes a new file"


def _facts(error: BaseException) -> dict[str, Any]:
    if isinstance(error, Interrupted):
        return {"status": "interrupted", "message": str(error)}
    facts: dict[str, Any] = {"status": "failed", "message": f"{type(error).__name__}: {error}"}
    if isinstance(error, DivergedError):
        facts["batch"] = list(error.batch)
    return facts


def _in_words(error: BaseException, run: Run) -> BaseException:
    further = f"`sightline resume {run.path}` continues from there."
    if isinstance(error, KeyboardInterrupt):
        return Interrupted(f"Stopped. {further}")
    if type(error) is Interrupted and str(run.path) not in str(error):
        return Interrupted(f"{error} {further}")
    if isinstance(error, OutputError):
        return OutputError(f"{error} Then `sightline resume {run.path}` continues the run.")
    if backend.ran_out_of_memory(error):
        settings = run.config if run.has_config else None
        now = f", now {settings.train.batch_size}" if settings else ""
        height = f", now {settings.picture.height}" if settings else ""
        return OutOfMemory(
            f"Out of memory with these settings: retrain with --force and a lower "
            f"train.batch_size{now}, or picture.height{height} ({_first_line(error)})."
        )
    if run.has_config and run.config.device.deterministic and backend.cannot_repeat(error):
        return UsageError(
            f"This network uses an operation that is not deterministic on this device ({_first_line(error)}): "
            "train on a CPU (device.gpus=[]), or without --deterministic."
        )
    return error


def _first_line(error: BaseException) -> str:
    text = str(error).strip().split("\n", maxsplit=1)[0]
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__
