"""Export a Keras model to TensorFlow's formats with Keras' own exporter: a SavedModel folder or a LiteRT file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from sightline import backend
from sightline._keras.process_state import silence_logging
from sightline.errors import UsageError

SAVED_MODEL, LITERT = "saved_model", "model.tflite"


def export_saved_model(model: Any, folder: Path) -> None:
    """Write `model` as ``saved_model/`` in `folder`; raises `UsageError` unless TensorFlow is the backend."""
    _export(model, folder / SAVED_MODEL, "tf_saved_model")


def export_litert(model: Any, folder: Path) -> None:
    """Write `model` as ``model.tflite`` in `folder`; raises `UsageError` unless TensorFlow is the backend."""
    _export(model, folder / LITERT, "litert")


def check_backend(format_name: str) -> None:
    """Raise `UsageError` unless the backend is or will be TensorFlow; imports nothing."""
    if (name := backend.name()) != "tensorflow":
        raise UsageError(
            f"The format {format_name} needs the backend TensorFlow, not {name}: set KERAS_BACKEND=tensorflow."
        )


def _export(model: Any, path: Path, kind: str) -> None:
    check_backend(path.name)
    with silence_logging("", "absl", "tensorflow"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow's warnings about its own converter
        model.export(str(path), format=kind, verbose=False)
