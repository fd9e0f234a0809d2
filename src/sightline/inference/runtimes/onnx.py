"""An ONNX file as a `Predictor`, through ONNX Runtime: the runtime of bundles."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import process
from sightline._keras import imports
from sightline.errors import ModelError, first_line, plural
from sightline.inference.predictor import Outputs, PicklablePredictor
from sightline.inference.safety import onnx_file
from sightline.models.head import OUTPUTS, PROBABILITIES
from sightline.preprocessing import PreprocessingSpec


def create_session(model: bytes, threads: int = 0) -> Any:
    """Create an ONNX Runtime session of a file on the CPU; `threads` 0: one for each core.

    Raises `ModelError` for a file that cannot be run.
    """
    onnxruntime = imports.import_onnx_runtime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or process.count_cores()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(f"ONNX Runtime cannot load it: {first_line(error)}") from error


class OnnxPredictor(PicklablePredictor):
    """Predicts with the bytes of an ONNX file whose input is uint8 pixels [N, H, W, C]."""

    def __init__(self, model: bytes, classes: Sequence[str], preprocess: PreprocessingSpec, threads: int = 0) -> None:
        """`threads` 0: one for each core. Raises `ModelError` for a file that cannot be run or does not match."""
        self.classes = tuple(classes)
        self.preprocess = preprocess
        self._threads = threads
        self._model = model  # shares the bytes of the session, so it takes no memory
        _ = self._session  # so that errors are raised here

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        onnx_file.check_graph(self._model)  # as when loading the file

    @cached_property
    def _session(self) -> Any:
        runtime_session = create_session(self._model, self._threads)
        self._check_signature(runtime_session)
        return runtime_session

    def _check_signature(self, runtime_session: Any) -> None:
        preprocess = self.preprocess
        inputs = [(i.name, i.type, i.shape[1:]) for i in runtime_session.get_inputs()]
        expected = [("pixels", "tensor(uint8)", [preprocess.height, preprocess.width, preprocess.channels])]
        outputs = {o.name: o.shape for o in runtime_session.get_outputs()}
        batch = next((i.shape[0] for i in runtime_session.get_inputs() if i.shape), None)
        if inputs != expected:
            raise ModelError(f"its input is {inputs}, but its preprocessing gives {expected}")
        if set(outputs) != set(OUTPUTS) or outputs[PROBABILITIES][1:] not in (
            [len(self.classes)], [preprocess.height, preprocess.width, len(self.classes)]
        ):  # fmt: skip
            raise ModelError(f"its outputs are {outputs}, which do not match its {len(self.classes)} classes")
        if isinstance(batch, int):
            raise ModelError(f"it takes a fixed batch of {plural(batch, 'image')}, not a batch of any size")

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 [N, K] for uint8 pixels [N, H, W, C]; raises `ModelError` if the graph fails on them."""
        result: NDArray[np.float32] = self._run([PROBABILITIES], pixels)[0]
        return result

    def outputs(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Return probabilities, logits and features for uint8 pixels [N, H, W, C]."""
        return Outputs(*self._run(OUTPUTS, pixels))

    def _run(self, names: Sequence[str], pixels: NDArray[np.uint8]) -> list[Any]:
        try:
            return list(self._session.run(list(names), {"pixels": np.ascontiguousarray(pixels)}))
        except Exception as error:  # any of a dozen types from C++
            raise ModelError(
                f"ONNX Runtime cannot run the model on {plural(len(pixels), 'image')}: {first_line(error)}"
            ) from error
