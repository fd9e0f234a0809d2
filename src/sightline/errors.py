"""Every exception that Sightline raises on purpose.

    SightlineError              exit code   meaning
    |-- UsageError              2           a wrong option, setting or argument
    |   `-- ConfigError         2           an unknown key or a value out of range in a configuration
    |-- DataError               2           the pictures given cannot be used as they are
    |   |-- PictureError        2           one picture cannot be read (carries the reason)
    |   `-- MissingImagesError  2           images that a run was trained with are no longer as they were
    |-- ModelError              2           a model, its weights or a run cannot be built or loaded
    |-- OutputError             2           a place to write to is missing, in use or not writable
    |-- OutOfMemory             2           the memory is too small for what the settings ask for
    |-- ProcessError            2           a process that trained for this one ended without an outcome
    |-- HostError               2           one of several hosts that train together was lost
    |-- MissingExtraError       2           an optional package is not installed (names its install line)
    |-- DivergedError           1           training met a loss that is not a number
    `-- Interrupted             130         stopped by the user; what was done so far is kept

A message says what happened, where, what was expected and what to do next, in one or two sentences.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Iterable
from typing import Any


class SightlineError(Exception):
    """Base of all errors that are the user's to mend; the command line prints it without a traceback."""

    exit_code = 2

    def __reduce__(self) -> tuple[Any, ...]:  # so that errors reach another process whatever their classes take
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[SightlineError], args: tuple[Any, ...], state: dict[str, Any]) -> SightlineError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class UsageError(SightlineError):
    """A wrong option, setting or argument."""


class ConfigError(UsageError):
    """An unknown key, or a value of the wrong type or out of range, in a configuration."""


class DataError(SightlineError):
    """The pictures given cannot be used as they are."""


class PictureError(DataError):
    """One picture cannot be read; the message is the bare reason, without the path."""


class MissingImagesError(DataError):
    """Images that a run was trained, validated or tested with are missing or changed."""


class ModelError(SightlineError):
    """A model, its weights or a run cannot be built or loaded."""


class OutputError(SightlineError):
    """A place to write to is missing, in use or not writable."""


class OutOfMemory(SightlineError):
    """The memory of the machine or of its device is too small for what the settings ask for."""


class ProcessError(SightlineError):
    """A process that trained for this one ended without an outcome, as one does that is killed."""


class HostError(SightlineError):
    """One of several hosts that train together ended, or cannot be reached any more."""


class MissingExtraError(SightlineError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f'{purpose} needs the package {package!r}, which is not installed: pip install "sightline[{extra}]"'
        )
        self.package = package


class DivergedError(SightlineError):
    """Training met a loss that is not a number; `batch` holds the paths of the pictures of that step."""

    exit_code = 1

    def __init__(self, message: str, batch: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.batch = batch


class Interrupted(SightlineError):
    """Stopped by the user (Ctrl-C, SIGTERM or SIGHUP); what was done so far is kept."""

    exit_code = 130


def suggest(name: str, valid: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest valid name, else the list of valid names.

    >>> suggest("epoch", ["epochs", "seed"])
    " Did you mean 'epochs'?"
    >>> suggest("zzz", ["b", "a"])
    ' Valid names: a, b.'
    """
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1)
    return f" Did you mean {near[0]!r}?" if near else f" Valid names: {', '.join(names)}."


EXTRAS = {
    "ai_edge_litert": ("ai-edge-litert", "export"),
    "cleanlab": ("cleanlab", "labels"),
    "keras": ("keras", "train"),
    "matplotlib": ("matplotlib", "train"),
    "onnx": ("onnx", "train"),
    "openvino": ("openvino", "export"),
    "optuna": ("optuna", "sweep"),
    "sklearn": ("scikit-learn", "train"),
    "starlette": ("starlette", "serve"),
    "tensorboard": ("tensorboard", "train"),
    "tensorflow": ("tensorflow", "tensorflow"),
    "tomlkit": ("tomlkit", "train"),
    "uvicorn": ("uvicorn", "serve"),
}
"""Of each optional package, by the name that it is imported under: its name on PyPI, and the extra that brings it."""


def require(module: str, purpose: str) -> Any:
    """Import `module`, such as ``"sklearn.datasets"``, and return it.

    Raises `MissingExtraError`, whose message starts with `purpose`, if its package or one that it needs is missing.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        absent = (error.name or package).partition(".")[0]
        name, extra = EXTRAS[package]
        raise MissingExtraError(name if absent == package else absent, extra, purpose) from error


def check_installed(*packages: str, purpose: str) -> None:
    """Raise `MissingExtraError` if one of `packages` is not installed; imports none, so it costs nothing to ask first.

    >>> check_installed("optuna", purpose="A sweep")
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(*EXTRAS[package], purpose)


def plural(count: int, noun: str, many: str = "") -> str:
    """Return ``"1 image"``, ``"2 images"``, with thousands apart; `many` is the plural where an s does not make it.

    >>> plural(1, "image"), plural(1200, "image"), plural(2, "class", "classes")
    ('1 image', '1,200 images', '2 classes')
    """
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"
