"""Append a label to an ONNX file of a model with several labels, by votes; what it computes for the others stays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline.export.keras_to_onnx import import_onnx
from sightline.models.head import FEATURES, LOGITS, PROBABILITIES

SHORTEST = 1e-12  # the length by which features are divided that are 0


@dataclass(frozen=True, slots=True)
class Votes:
    """The votes of R reference images for a label, by the similarity of an image to each of them.

    With features f divided by their length, reference r has the weight exp(f @ `rows[r]` / `temperature` +
    `biases[r]`). The probability p of the label is the fraction of the weights that those have for which `is_present`
    is true, and its logit log(p / (1 - p)), in which neither of the two fractions is below `least`. `rows` are float32
    [R, F] of length 1, `biases` float32 [R], `is_present` bool [R].
    """

    rows: NDArray[np.float32]
    biases: NDArray[np.float32]
    is_present: NDArray[np.bool_]
    temperature: float
    least: float


def append_label(graph: bytes, votes: Votes) -> bytes:
    """Return the file with one more label, the last one; raises `MissingExtraError` without `onnx`."""
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
