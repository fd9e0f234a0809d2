"""A TensorFlow SavedModel as a `Predictor`, if it contains nothing but a network (`safety/saved_model.py`)."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline._keras import imports
from sightline.errors import ModelError, OutputError, first_line
from sightline.export.tensorflow import SAVED_MODEL
from sightline.inference.predictor import Outputs, PicklablePredictor, collect_outputs
from sightline.inference.safety.saved_model import check_saved_model
from sightline.preprocessing import PreprocessingSpec


class SavedModelPredictor(PicklablePredictor):
    """Predicts with an exported model, through its signature ``serving_default``."""

    def __init__(
        self, files: Mapping[str, bytes], classes: Sequence[str], preprocess: PreprocessingSpec, threads: int
    ) -> None:
        """`files` contains everything below ``saved_model/``; `threads` is ignored, as TensorFlow chooses.

        Raises `ModelError` for files that cannot be run.
        """
        del threads
        self.classes = tuple(classes)
        self.preprocess = preprocess
        self._files = {name: content for name, content in files.items() if name.startswith(f"{SAVED_MODEL}/")}
        _ = self._session  # raises errors early
        tf = imports.import_tensorflow("The format saved_model")
        self.device = "gpu" if tf.config.list_physical_devices("GPU") else "cpu"

    @cached_property
    def _session(self) -> tuple[Any, Any]:
        """The loaded module, which keeps the variables alive, and its signature."""
        tf = imports.import_tensorflow("The format saved_model")
        check_saved_model(self._files)
        try:
            with tempfile.TemporaryDirectory(prefix="sightline-") as folder:  # TensorFlow cannot load from memory
                self._write_files(Path(folder))
                module = tf.saved_model.load(str(Path(folder, SAVED_MODEL)))
            return module, module.signatures["serving_default"]
        except OutputError:
            raise
        except Exception as error:
            raise ModelError(f"TensorFlow cannot load it: {first_line(error)}") from error

    def _write_files(self, folder: Path) -> None:
        """Write the files below `folder`; raises `OutputError` if the disk is full."""
        try:
            for name, content in self._files.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        except OSError as error:
            raise OutputError(
                f"The temporary folder {folder} cannot be written: {error.strerror}. Free some space, or set TMPDIR to "
                "another folder."
            ) from error

    def outputs(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Return probabilities, logits and features for uint8 pixels [N, H, W, C]; raises `ModelError`."""
        tf = imports.import_tensorflow("The format saved_model")
        _, signature = self._session
        return collect_outputs(
            "TensorFlow",
            lambda: signature(pixels=tf.constant(np.ascontiguousarray(pixels))),
            len(pixels),
            len(self.classes),
        )
