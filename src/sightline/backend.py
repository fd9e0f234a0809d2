"""The one place that chooses Keras' backend and imports Keras.

Everything else asks `keras()`; nothing imports Keras at module level, so that help, listings and prediction from a
bundle start at once.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from sightline.errors import MissingExtraError, UsageError, suggest

BACKENDS = ("tensorflow", "jax", "torch")
"""In order of preference on a CPU, by measurement (see docs/architecture.md)."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend and the reason why it was taken."""

    name: str
    why: str


def installed() -> tuple[str, ...]:
    """Return the backends that are installed, without importing them."""
    return tuple(b for b in BACKENDS if importlib.util.find_spec(b) is not None)


def choose(wanted: str = "auto") -> Choice:
    """Decide on a backend: the one imported already, the setting, ``KERAS_BACKEND``, else the first installed.

    Raises `MissingExtraError` if none, or not the wanted one, is installed.
    """
    here = installed()
    loaded = sys.modules.get("keras")
    if loaded is not None:
        name = str(loaded.backend.backend())
        if wanted not in {"auto", name}:
            raise UsageError(f"Keras runs on {name} already in this process; start a new one for {wanted}.")
        return Choice(name, "in use already")
    environment = os.environ.get("KERAS_BACKEND")
    if wanted != "auto":
        choice = Choice(wanted, "set by device.backend")
    elif environment:
        choice = Choice(environment, "set by KERAS_BACKEND")
    elif here:
        choice = Choice(here[0], "the fastest on a CPU of those installed" if len(here) > 1 else "the one installed")
    else:
        raise MissingExtraError("tensorflow-cpu", "train,tensorflow", "Training")
    if choice.name not in BACKENDS:
        raise UsageError(f"There is no backend {choice.name!r} ({choice.why}).{suggest(choice.name, BACKENDS)}")
    if choice.name not in here:
        raise MissingExtraError(choice.name, f"train,{choice.name}", f"The backend {choice.name} ({choice.why})")
    return choice


def keras(wanted: str = "auto") -> Any:
    """Import Keras on the chosen backend, quietly, and return the module."""
    loaded = sys.modules.get("keras")
    if loaded is not None and wanted == "auto":
        return loaded
    choice = choose(wanted)
    if importlib.util.find_spec("keras") is None:
        raise MissingExtraError("keras", "train", "Training")
    os.environ["KERAS_BACKEND"] = choice.name
    _keep_freed_memory()
    os.environ.setdefault(
        "TF_CPP_MIN_LOG_LEVEL", "3"
    )  # its start-up notes are about its own build, not the user's work
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the backend's own imports
        import keras as module
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it advises against tracing once for each stage
    return module


def _keep_freed_memory() -> None:
    """Let glibc hand freed blocks out again instead of returning them to the system, where the C library is glibc.

    By default every tensor above 32 MiB is mapped, zeroed by the kernel and unmapped again in each step: 15 of 39 ms of
    processor time for each picture in MobileNetV2 at 288 pixels; 1 of 31 ms so. The numbers are those of <malloc.h>.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_max, arena_max = -1, -4, -8
        mallopt(trim_threshold, 1 << 30)
        mallopt(mmap_max, 0)
        mallopt(arena_max, 1)


def set_threads(count: int) -> None:
    """Bound the threads of the arithmetic; only before the first computation. 0 leaves the backend's default."""
    if count and choose().name == "tensorflow":
        tf = tensorflow()
        try:
            tf.config.threading.set_intra_op_parallelism_threads(count)
            tf.config.threading.set_inter_op_parallelism_threads(min(count, 2))
        except RuntimeError:  # already running: a second run in one process keeps the first one's threads
            return
    elif count and choose().name == "torch":
        import torch

        torch.set_num_threads(count)


def tensorflow() -> ModuleType | Any:
    """Return TensorFlow; only where it is the backend."""
    keras()
    import tensorflow as tf

    return tf


def devices() -> tuple[str, ...]:
    """Return the devices that the chosen backend computes on, such as ``cpu:0`` or ``gpu:0``."""
    return tuple(keras().distribution.list_devices())


def keras_home() -> Path:
    """Return the folder in which Keras keeps data sets and weights: ``$KERAS_HOME`` or ``~/.keras``."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras").expanduser()
