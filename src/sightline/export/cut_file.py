"""Cut an ONNX file after layers whose outputs are known; the rest computes the final outputs from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sightline.export.keras_to_onnx import IR_VERSION, import_onnx
from sightline.models.layers.graph_builder import PERMUTATIONS


@dataclass(frozen=True, slots=True)
class Rest:
    """The rest of a file: `file` has one input, float32 features named `source`, and the outputs of the whole model."""

    file: bytes
    source: str


def cut_after(file: bytes, first: bytes) -> Rest | None:
    """Return the rest of the ONNX `file` after the layers of `first`; None if it does not begin with them.

    It begins with them if it has the same input, the same nodes in the same order and the same weights, and if later
    nodes read none of their values but the result. `first` is a file written by `keras_to_onnx.convert_layers`.
    """
    onnx = import_onnx()
    whole, known = onnx.load_model_from_string(file), onnx.load_model_from_string(first)
    *shared, result = known.graph.node
    source, transposes = result.input[0], []
    if shared and shared[-1].op_type == "Transpose" and shared[-1].output[0] == source:  # feature maps in Keras' layout
        inner = shared.pop().input[0]
        transposes = [onnx.helper.make_node("Transpose", [source], [inner], name=inner, perm=PERMUTATIONS["nchw"])]
    rest = [*transposes, *list(whole.graph.node)[len(shared) :]]
    weights = {weight.name: weight for weight in whole.graph.initializer}
    begins_alike = (
        list(whole.graph.node)[: len(shared)] == shared
        and list(whole.graph.input) == list(known.graph.input)
        and all(weights.get(weight.name) == weight for weight in known.graph.initializer)
    )
    available = {name for node in rest for name in node.output} | {source}
    inputs = {name for node in rest for name in node.input}
    if not begins_alike or not inputs <= available | weights.keys():
        return None
    features = onnx.helper.make_tensor_value_info(source, onnx.TensorProto.FLOAT, ["N", *_list_sides(known)])
    constants = [weight for name, weight in weights.items() if name in inputs]
    graph = onnx.helper.make_graph(rest, whole.graph.name, [features], list(whole.graph.output), constants)
    model = onnx.helper.make_model(graph, opset_imports=list(whole.opset_import), ir_version=IR_VERSION)
    return Rest(bytes(model.SerializeToString()), source)


def _list_sides(known: Any) -> list[int]:
    shape = known.graph.output[0].type.tensor_type.shape
    return [side.dim_value for side in shape.dim[1:]]
