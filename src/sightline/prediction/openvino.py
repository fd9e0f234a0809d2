"""OpenVINO's ``model.xml`` and ``model.bin`` as a `Predictor`."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import runtimes
from sightline.errors import ModelError
from sightline.export.openvino import NAME, WEIGHTS
from sightline.prediction.base import Outputs, Portable
from sightline.preprocess import Preprocess

NAMES = ("probabilities", "logits", "features")


class OpenVinoPredictor(Portable):
    """Predicts with an exported model, on the CPU, in float32 arithmetic unless the file is quantized."""

    def __init__(
        self, files: Mapping[str, bytes], classes: Sequence[str], preprocess: Preprocess, threads: int = 0
    ) -> None:
        """`files` contains ``model.xml`` and ``model.bin``; `threads` 0: OpenVINO decides.

        Raises `ModelError` for files that cannot be run.
        """
        self.classes = tuple(classes)
        self.preprocess = preprocess
        self._threads = threads
        self._graph, self._weights = files[NAME], files[WEIGHTS]
        _ = self._session  # so that errors are raised here

    @cached_property
    def _session(self) -> tuple[Any, list[Any], threading.Lock]:
        openvino = runtimes.openvino()
        threads = {"INFERENCE_NUM_THREADS": self._threads} if self._threads else {}
        try:
            core = openvino.Core()
            model = core.read_model(self._graph, self._weights)
            compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", **threads})
            return compiled, [compiled.output(name) for name in NAMES], threading.Lock()
        except Exception as error:
            raise ModelError(f"OpenVINO cannot load it: {str(error).strip().splitlines()[0]}") from error

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 [N, K] for uint8 pixels [N, H, W, C]."""
        return self.outputs(pixels).probabilities

    def outputs(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Return probabilities, logits and features for uint8 pixels [N, H, W, C]."""
        compiled, places, lock = self._session
        with lock:  # all calls share one request
            answer = compiled(np.ascontiguousarray(pixels))
            return Outputs(*(np.array(answer[place], np.float32) for place in places))
