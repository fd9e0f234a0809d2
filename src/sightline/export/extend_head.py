"""Append a class to the last layer of an ONNX file; every other byte of its weights stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.errors import ModelError
from sightline.export.keras_to_onnx import import_onnx
from sightline.models.head import DENSE_LAYER, FEATURES, LOGITS, PROBABILITIES, TEMPERATURE_LAYER

_KERNEL, _BIAS, _SCALE = f"{DENSE_LAYER}:kernel", f"{DENSE_LAYER}:bias", f"{TEMPERATURE_LAYER}:scale"


@dataclass(frozen=True, slots=True)
class Head:
    """The last layer of a file: logits = (features @ `kernel` + `bias`) * `scale`.

    `kernel` is float32 [F, K], `bias` float32 [K], `scale` one divided by the temperature.
    """

    kernel: NDArray[np.float32]
    bias: NDArray[np.float32]
    scale: float

    def compute_logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits float32 [N, K] of features float32 [N, F]."""
        logits: NDArray[np.float32] = (features @ self.kernel + self.bias) * np.float32(self.scale)
        return logits

    def append(self, kernel: NDArray[np.float32], bias: float) -> Head:
        """Return a head with one more class, whose logit is features @ `kernel` + `bias`, the temperature included."""
        column = (kernel / self.scale).astype(np.float32)[:, None]
        return Head(
            np.concatenate([self.kernel, column], axis=1),
            np.append(self.bias, np.float32(bias / self.scale)),
            self.scale,
        )


def read_head(graph: bytes) -> Head:
    """Return the last layer of a float32 file.

    Raises `ModelError` if it is not a dense layer with an output for each class, and `MissingExtraError` without
    `onnx`.
    """
    return _read_head(import_onnx().load_model_from_string(graph))


def _read_head(model: Any) -> Head:
    numpy_helper = import_onnx().numpy_helper
    graph = model.graph
    weights = {w.name: w for w in graph.initializer if w.name in {_KERNEL, _BIAS, _SCALE}}
    producers = {node.output[0]: node for node in graph.node}
    dense: Any = producers.get(DENSE_LAYER)
    classes = next(o.type.tensor_type.shape.dim[1].dim_value for o in graph.output if o.name == LOGITS)
    is_dense = dense is not None and dense.op_type == "Gemm" and list(dense.input[1:]) == [_KERNEL, _BIAS]
    source = producers[FEATURES].input[0]
    if not is_dense or dense.input[0] != source or {_KERNEL, _BIAS} - {*weights}:
        raise ModelError(
            "its last layer is not one dense layer on its features, in float32: train it with model.head=softmax, and "
            "give the float32 model"
        )
    arrays = {name: numpy_helper.to_array(weight) for name, weight in weights.items()}
    if arrays[_BIAS].shape != (classes,) or arrays[_KERNEL].shape[1:] != (classes,):
        raise ModelError(
            "its last layer has one output for two classes (model.head=sigmoid), to which no third can be added: train "
            "it with model.head=softmax"
        )
    return Head(arrays[_KERNEL], arrays[_BIAS], float(arrays.get(_SCALE, 1.0)))


def replace_head(graph: bytes, head: Head) -> bytes:
    """Return the file with the weights of `head`, which has one class more or as many; raises as `read_head` does."""
    onnx = import_onnx()
    model = onnx.load_model_from_string(graph)
    _read_head(model)
    for weight in model.graph.initializer:
        values = {_KERNEL: head.kernel, _BIAS: head.bias}.get(weight.name)
        if values is not None:
            weight.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values), weight.name))
    for output in model.graph.output:
        if output.name in {LOGITS, PROBABILITIES}:
            output.type.tensor_type.shape.dim[1].dim_value = len(head.bias)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
