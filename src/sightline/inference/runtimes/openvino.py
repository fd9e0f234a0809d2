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
from sightline.inference.predictor import Outputs, PicklablePredictor, collect_outputs
from sightline.inference.runner import choose_batch_size
from sightline.inference.safety.openvino_model import check_model, check_xml
from sightline.models.head import OUTPUTS
from sightline.preprocessing import PreprocessingSpec


class OpenVinoPredictor(PicklablePredictor):
    """Predicts with an exported model, on the CPU, in float32 arithmetic unless the file is quantized."""

    def __init__(
        self, files: Mapping[str, bytes], classes: Sequence[str], preprocess: PreprocessingSpec, threads: int
    ) -> None:
        """`files` contains ``model.xml`` and ``model.bin``; `threads` 0 lets OpenVINO choose.

        Raises `ModelError` for files that cannot be run, or that need too much memory or time.
        """
        self.classes = tuple(classes)
        self.preprocess = preprocess
        self._threads = threads
        self._graph, self._weights = files[MODEL_FILE], files[WEIGHTS_FILE]
        _ = self._session  # raises errors early

    @cached_property
    def _session(self) -> tuple[Any, dict[str, Any], threading.Lock]:
        openvino = imports.import_openvino()
        check_xml(self._graph)
        thread_count = {"INFERENCE_NUM_THREADS": self._threads} if self._threads else {}
        try:
            core = openvino.Core()
            model = core.read_model(self._graph, self._weights)
            check_model(model, self.preprocess.shape, choose_batch_size(self.preprocess.shape))
            compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", **thread_count})
            return compiled, {name: compiled.output(name) for name in OUTPUTS}, threading.Lock()
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"OpenVINO cannot load it: {_explain(error)}") from error

    def outputs(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Return probabilities, logits and features for uint8 pixels [N, H, W, C]; raises `ModelError`."""
        compiled, ports, lock = self._session

        def run() -> dict[str, Any]:
            raw_outputs = compiled(np.ascontiguousarray(pixels))
            return {name: raw_outputs[port] for name, port in ports.items()}

        with lock:  # all calls share one request
            return collect_outputs("OpenVINO", run, len(pixels), len(self.classes))


def _explain(error: Exception) -> str:
    """Return the first line of an OpenVINO message that is not a location in its source."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.startswith("Exception from ")), type(error).__name__)
