"""Append a class to an ONNX file: to its last layer or, for multi-label models, by votes.

All other weights stay byte for byte, and so do the outputs for the other classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.errors import ModelError
from sightline.export.keras_to_onnx import import_onnx
from sightline.models.head import DENSE_LAYER, FEATURES, LOGITS, PROBABILITIES, TEMPERATURE_LAYER

SHORTEST = 1e-12  # lower limit on the length that features are divided by, for features of 0
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
        """Return a head with one more class, whose logit is features @ `kernel` + `bias`, including the temperature."""
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
    """Return the file with the weights of `head`, for as many classes or one more; raises as `read_head` does."""
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


@dataclass(frozen=True, slots=True)
class Votes:
    """The votes of R reference images on a label, weighted by their similarity to an image.

    With features f divided by their length, reference r has the weight exp(f @ `rows[r]` / `temperature` +
    `biases[r]`). The probability p of the label is the share of the total weight where `is_present` is true, and the
    logit is log(p / (1 - p)), with both shares clipped to at least `least`. `rows` are float32 [R, F] of length 1,
    `biases` float32 [R], `is_present` bool [R].
    """

    rows: NDArray[np.float32]
    biases: NDArray[np.float32]
    is_present: NDArray[np.bool_]
    temperature: float
    least: float


def append_label(graph: bytes, votes: Votes) -> bytes:
    """Return the file with an additional label at the end; raises `MissingExtraError` without `onnx`."""
    onnx = import_onnx()
    model = onnx.load_model_from_string(graph)
    outputs = {output.name: output.type.tensor_type.shape.dim[1] for output in model.graph.output}
    count = outputs[LOGITS].dim_value
    earlier = {name: f"{name}_of_{count}" for name in (LOGITS, PROBABILITIES)}
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [earlier.get(name, name) for name in names]
    prefix = f"label_{count + 1}"
    kernel = votes.rows.T / np.float32(votes.temperature)
    sides = np.stack([votes.is_present, ~votes.is_present], 1)
    weights = {
        "ones": np.ones((len(kernel), 1)), "half": np.array(0.5), "shortest": np.array(SHORTEST), "kernel": kernel,
        "biases": votes.biases, "sides": sides, "least": np.array(votes.least), "difference": np.array([[1.0], [-1.0]]),
    }  # fmt: skip
    for name, array in weights.items():
        values = np.ascontiguousarray(array, np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, f"{prefix}:{name}"))

    def add(operation: str, inputs: list[str], output: str, **attributes: int) -> str:
        names = [name if name in {FEATURES, *earlier.values()} else f"{prefix}:{name}" for name in inputs]
        target = output if output in earlier else f"{prefix}:{output}"
        model.graph.node.append(onnx.helper.make_node(operation, names, [target], name=f"{prefix}:{operation}:{output}",
                                                      **attributes))  # fmt: skip
        return output

    add("Mul", [FEATURES, FEATURES], "squares")
    add("MatMul", ["squares", "ones"], "squared_length")
    add("Pow", ["squared_length", "half"], "length")
    add("Max", ["length", "shortest"], "divisor")
    add("Div", [FEATURES, "divisor"], "direction")
    add("Gemm", ["direction", "kernel", "biases"], "similarities")
    add("Softmax", ["similarities"], "votes", axis=1)
    add("MatMul", ["votes", "sides"], "fractions")
    add("Max", ["fractions", "least"], "limited")
    add("Log", ["limited"], "logarithms")
    add("MatMul", ["logarithms", "difference"], "logit")
    add("Sigmoid", ["logit"], "probability")
    add("Concat", [earlier[LOGITS], "logit"], LOGITS, axis=1)
    add("Concat", [earlier[PROBABILITIES], "probability"], PROBABILITIES, axis=1)
    for name in earlier:
        outputs[name].dim_value = count + 1
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
