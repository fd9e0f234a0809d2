"""LiteRT's ``model.tflite`` as a `Predictor`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sightline import process
from sightline.errors import ModelError, require
from sightline.export.tensorflow import LITERT
from sightline.prediction.base import Outputs
from sightline.preprocess import Preprocess


class LiteRtPredictor:
    """Predicts with the file of a folder, on the CPU."""

    def __init__(self, folder: Path, classes: Sequence[str], preprocess: Preprocess, threads: int = 0) -> None:
        """`threads` 0: one for each core. Raises `ModelError` for a file that cannot be run."""
        self.classes = tuple(classes)
        self.preprocess = preprocess
        litert = require("ai_edge_litert.interpreter", "The format litert")
        try:
            interpreter = litert.Interpreter(str(folder / LITERT), num_threads=threads or process.cores())
            self._run = interpreter.get_signature_runner()
        except Exception as error:
            raise ModelError(f"LiteRT cannot load it: {str(error).strip().splitlines()[0]}") from error

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 [N, K] for uint8 pixels [N, H, W, C]."""
        return self.outputs(pixels).probabilities

    def outputs(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Return probabilities, logits and features for uint8 pixels [N, H, W, C]."""
        found = self._run(pixels=np.ascontiguousarray(pixels))
        return Outputs(*(np.array(found[name], np.float32) for name in ("probabilities", "logits", "features")))
