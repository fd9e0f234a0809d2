"""OpenVINO's ``model.xml`` as a `Predictor`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sightline import runtimes
from sightline.errors import ModelError
from sightline.export.openvino import NAME
from sightline.prediction.base import Outputs
from sightline.preprocess import Preprocess

NAMES = ("probabilities", "logits", "features")


class OpenVinoPredictor:
    """Predicts with the files of a folder, on the CPU, in float32 arithmetic where the file leaves the choice."""

    def __init__(self, folder: Path, classes: Sequence[str], preprocess: Preprocess, threads: int = 0) -> None:
        """`threads` 0: as OpenVINO thinks best. Raises `ModelError` for files that cannot be run."""
        self.classes = tuple(classes)
        self.preprocess = preprocess
        openvino = runtimes.openvino()
        settings = {"INFERENCE_PRECISION_HINT": "f32"} | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
        try:
            core = openvino.Core()
            model = core.read_model(folder / NAME)
            self.manifest = str(model.get_rt_info("sightline").astype(str)) if model.has_rt_info("sightline") else ""
            self._compiled = core.compile_model(model, "CPU", settings)
            self._places = [self._compiled.output(name) for name in NAMES]
        except Exception as error:
            raise ModelError(f"OpenVINO cannot load it: {str(error).strip().splitlines()[0]}") from error

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 [N, K] for uint8 pixels [N, H, W, C]."""
        return self.outputs(pixels).probabilities

    def outputs(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Return probabilities, logits and features for uint8 pixels [N, H, W, C]."""
        found = self._compiled(np.ascontiguousarray(pixels))
        return Outputs(*(np.array(found[place], np.float32) for place in self._places))
