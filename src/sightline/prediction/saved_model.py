"""A TensorFlow SavedModel as a `Predictor`. Such a folder holds a program: load only your own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sightline.errors import ModelError, require
from sightline.export.tensorflow import SAVED_MODEL
from sightline.prediction.base import Outputs
from sightline.preprocess import Preprocess


class SavedModelPredictor:
    """Predicts with the ``saved_model/`` of a folder, through its signature ``serving_default``."""

    def __init__(self, folder: Path, classes: Sequence[str], preprocess: Preprocess, threads: int = 0) -> None:
        """`threads` is TensorFlow's own affair. Raises `ModelError` for a folder that cannot be run."""
        del threads
        self.classes = tuple(classes)
        self.preprocess = preprocess
        tf = require("tensorflow", "The format saved_model")
        try:
            self._module = tf.saved_model.load(str(folder / SAVED_MODEL))  # holds the variables that the call needs
            self._call = self._module.signatures["serving_default"]
            self._tensor = tf.constant
        except Exception as error:
            raise ModelError(f"TensorFlow cannot load it: {str(error).strip().splitlines()[0]}") from error

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 [N, K] for uint8 pixels [N, H, W, C]."""
        return self.outputs(pixels).probabilities

    def outputs(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Return probabilities, logits and features for uint8 pixels [N, H, W, C]."""
        found = self._call(pixels=self._tensor(np.ascontiguousarray(pixels)))
        return Outputs(*(np.array(found[name], np.float32) for name in ("probabilities", "logits", "features")))
