"""OpenVINO's ``model.xml`` and ``model.bin`` as a `Predictor`."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline._keras import imports
from sightline.errors import ModelError
from sightline.export.openvino import MODEL_FILE, WEIGHTS_FILE
from sightline.inference.predictor import Outputs, PicklablePredictor
from sightline.preprocessing import PreprocessingSpec

OUTPUT_NAMES = ("probabilities", "logits", "features")


class OpenVinoPredictor(PicklablePredictor):
    """Predicts with an exported model, on the CPU, in float32 arithmetic unless the file is quantized."""

    def __init__(
        self, files: Mapping[str, bytes], classes: Sequence[str], preprocess: PreprocessingSpec, threads: int = 0
    ) -> None:
        """`files` contains ``model.xml`` and ``model.bin``; `threads` 0: OpenVINO decides.

        Raises `ModelError` for files that cannot be run.
        """
        self.classes = tuple(classes)
        self.preprocess = preprocess
        self._threads = threads
        self._graph, self._weights = files[MODEL_FILE], files[WEIGHTS_FILE]
        _ = self._session  # so that errors are raised here

    @cached_property
    def _session(self) -> tuple[Any, list[Any], threading.Lock]:
        openvino = imports.import_openvino()
        threads = {"INFERENCE_NUM_THREADS": self._threads} if self._threads else {}
        try:
            core = openvino.Core()
            model = core.read_model(self._graph, self._weights)
            compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", **threads})
            return compiled, [compiled.output(name) for name in OUTPUT_NAMES], threading.Lock()
        except Exception as error:
            raise ModelError(f"OpenVINO cannot load it: {str(error).strip().splitlines()[0]}") from error

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 [N, K] for uint8 pixels [N, H, W, C]."""
        return self.outputs(pixels).probabilities

    def outputs(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Return probabilities, logits and features for uint8 pixels [N, H, W, C]."""
        compiled, ports, lock = self._session
        with lock:  # all calls share one request
            raw_outputs = compiled(np.ascontiguousarray(pixels))
            return Outputs(*(np.array(raw_outputs[port], np.float32) for port in ports))
