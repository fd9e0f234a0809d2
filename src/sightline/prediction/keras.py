"""A Keras model as a `Predictor`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline.errors import ModelError
from sightline.prediction.base import Outputs
from sightline.preprocess import Preprocess


class KerasPredictor:
    """Predicts with a Keras model that maps uint8 pixels to a dict with ``probabilities``."""

    def __init__(self, model: Any, classes: Sequence[str], preprocess: Preprocess) -> None:
        self.model = model
        self.classes = tuple(classes)
        self.preprocess = preprocess

    @classmethod
    def load(cls, path: Path, classes: Sequence[str], preprocess: Preprocess) -> KerasPredictor:
        """Load a ``.keras`` file in safe mode; raises `ModelError` if it cannot be loaded or does not fit `classes`."""
        keras = backend.keras()
        try:
            model = keras.saving.load_model(path, compile=False, safe_mode=True)
            units = model.output["probabilities"].shape[-1]
        except Exception as error:
            raise ModelError(f"The model {path} cannot be loaded: {_first_line(error)}") from error
        if units != len(classes):
            raise ModelError(f"The model {path} has {units} outputs for {len(classes)} classes: it is not this run's.")
        return cls(model, classes, preprocess)

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 [N, K] for uint8 pixels [N, H, W, C]."""
        return self.outputs(pixels).probabilities

    def outputs(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Return probabilities, logits and features for uint8 pixels [N, H, W, C]."""
        found = self.model.predict_on_batch(pixels)
        names = ("probabilities", "logits", "features")
        return Outputs(*(np.asarray(found[name], np.float32) for name in names))


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
