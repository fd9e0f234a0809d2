"""Convert Keras models to ONNX: uint8 pixels [N, H, W, C] in; probabilities, logits and features out, for any N.

The graph is converted layer by layer instead of being traced by a backend: the file does not depend on the backend,
conversion takes a tenth of the time (MobileNetV2: benchmarks/README.md), and nodes keep the names of their layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline._keras import graphs
from sightline.errors import require
from sightline.models.head import OUTPUTS
from sightline.models.layers import get_layer_type
from sightline.models.layers.graph_builder import GraphBuilder, GraphValue

OPSET = 17
IR_VERSION = 8  # the version that belongs to opset 17, so that old readers accept the file


def convert_model(model: Any) -> bytes:
    """Convert a Keras model with one input and the outputs of `models.build.Network` to an ONNX file.

    Weights are float32. Raises `ModelError` for an unsupported layer, `MissingExtraError` without `onnx`.
    """
    return _build_file(model, {name: model.output[name] for name in OUTPUTS})


def convert_layers(model: Any) -> bytes:
    """Convert a part of a model with one input and one output to an ONNX file.

    The input, uint8 or float32, is named ``pixels``, the output ``out``.
    """
    return _build_file(model, {"out": model.output})


def _build_file(model: Any, outputs: Mapping[str, Any]) -> bytes:
    pixels = model.inputs[0]
    file = OnnxFile.start(pixels.shape[1:], is_uint8=pixels.dtype == "uint8")
    value_by_tensor: dict[int, GraphValue] = {id(pixels): file.pixels}
    nodes = [node for node in graphs.list_nodes(model) if not node.is_input]
    calls = Counter(id(node.operation) for node in nodes)
    for node in nodes:
        _convert_node(file.graph, node, value_by_tensor, shared=calls[id(node.operation)] > 1)
    return file.finish({name: value_by_tensor[id(tensor)] for name, tensor in outputs.items()})


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """An ONNX file under construction: its `graph`, and the value of its input as float."""

    graph: GraphBuilder
    pixels: GraphValue
    is_uint8: bool

    @classmethod
    def start(cls, shape: Sequence[int], *, is_uint8: bool) -> OnnxFile:
        """Return a file without layers; its input ``pixels`` [N, ...] is for images of `shape`, uint8 or float32."""
        onnx = import_onnx()
        graph = GraphBuilder(onnx.helper)
        name = graph.add_node("Cast", ["pixels"], "pixels:float", to=onnx.TensorProto.FLOAT) if is_uint8 else "pixels"
        return cls(graph, graph.make_value(name, shape), is_uint8)

    def finish(self, outputs: Mapping[str, GraphValue]) -> bytes:
        """Return the content of the file with these outputs; this removes the weights from the graph."""
        onnx, graph, results = import_onnx(), self.graph, []
        for name, value in outputs.items():
            graph.add_node("Identity", [graph.get_name(value)], name)
            results.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", *value.shape]))
        element_type = onnx.TensorProto.UINT8 if self.is_uint8 else onnx.TensorProto.FLOAT
        input_info = onnx.helper.make_tensor_value_info("pixels", element_type, ["N", *self.pixels.shape])
        graph_proto = onnx.helper.make_graph(graph.nodes, "network", [input_info], results)
        model_proto = onnx.helper.make_model(
            graph_proto,
            opset_imports=[onnx.helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="sightline",
        )
        for name in list(graph.weights):  # one at a time, so that memory never contains them more than twice
            model_proto.graph.initializer.append(onnx.numpy_helper.from_array(graph.weights.pop(name), name))
        file = bytes(model_proto.SerializeToString())
        del model_proto
        onnx.checker.check_model(file)
        return file


def import_onnx() -> Any:
    """Import and return the package `onnx`; raises `MissingExtraError` if it is not installed."""
    for submodule in ("checker", "helper", "numpy_helper", "shape_inference"):
        require(f"onnx.{submodule}", "Writing an ONNX file")
    return require("onnx", "Writing an ONNX file")


def _convert_node(graph: GraphBuilder, node: Any, value_by_tensor: dict[int, GraphValue], *, shared: bool) -> None:
    """Convert one node; calls of a `shared` operation are named after their outputs instead."""
    operation = node.operation
    arguments = backend.keras().tree.map_structure(lambda x: value_by_tensor.get(id(x), x), graphs.get_arguments(node))
    name = node.outputs[0].name if shared else operation.name
    name = f"{name}:value" if name in OUTPUTS else name
    converted = get_layer_type(operation).convert(graph, operation, arguments, name)
    values = converted if isinstance(converted, list) else [converted]
    value_by_tensor.update({id(tensor): value for tensor, value in zip(node.outputs, values, strict=True)})


def cast_weights(data: bytes, precision: str) -> bytes:
    """Return an ONNX file with its larger weights stored as float16 or bfloat16; it still computes in float32.

    The file is about half the size. The speed does not change, since a runtime casts the weights once, on loading.
    bfloat16 leaves depthwise kernels in float32: each of their outputs sums few products, so that rounding errors do
    not average out. They are 5% of the weights of MobileNetV2 0.35 and caused two thirds of its error. float16 leaves
    weights in float32 that would become infinite, as variances of batch normalization may.
    """
    onnx = import_onnx()
    element_type = {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16}[precision]
    model_proto = onnx.load_model_from_string(data)
    initializers, casts = [], []
    for weight in model_proto.graph.initializer:
        array = onnx.numpy_helper.to_array(weight)
        if not _is_narrowed(array, precision):
            initializers.append(weight)
            continue
        narrow_tensor = onnx.helper.make_tensor(
            f"{weight.name}:{precision}", element_type, weight.dims, _to_bytes(array, precision), raw=True
        )
        initializers.append(narrow_tensor)
        casts.append(onnx.helper.make_node("Cast", [narrow_tensor.name], [weight.name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model_proto.graph.node]
    del model_proto.graph.initializer[:], model_proto.graph.node[:]
    model_proto.graph.initializer.extend(initializers)
    model_proto.graph.node.extend(nodes)
    return bytes(model_proto.SerializeToString())


def _is_narrowed(array: NDArray[Any], precision: str) -> bool:
    """Return whether `cast_weights` stores a weight in `precision`."""
    if array.dtype != np.float32 or array.size < 256:
        return False
    if precision == "float16":
        return bool(np.abs(array).max() <= np.finfo(np.float16).max)
    is_depthwise = array.ndim == 4 and array.shape[1] == 1  # [outputs, inputs of each, height, width]
    return not is_depthwise


def _to_bytes(array: Any, precision: str) -> bytes:
    if precision == "float16":
        return bytes(array.astype("<f2").tobytes())
    bits = np.ascontiguousarray(array, "<f4").view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # round to nearest, ties to even
    return bytes(rounded.astype("<u2").tobytes())
