"""Convert Keras models to ONNX: uint8 pixels [N, H, W, C] in; probabilities, logits and features out, for any N.

The graph is converted layer by layer, not traced by a backend: the file does not depend on the backend, conversion
takes a tenth of the time (MobileNetV2: benchmarks/README.md), and nodes keep the names of their layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from sightline import backend
from sightline.errors import require
from sightline.export import operations
from sightline.export.graph import Graph, Value

OUTPUTS = ("probabilities", "logits", "features")
OPSET = 17
IR_VERSION = 8  # the version of opset 17, so that old readers accept the file


def convert(model: Any) -> bytes:
    """Convert a Keras model with one input and the outputs of `models.build.Network` to an ONNX file.

    Weights are float32. Raises `ModelError` for an unsupported layer, `MissingExtraError` without `onnx`.
    """
    return _file(model, {name: model.output[name] for name in OUTPUTS})


def convert_layers(model: Any) -> bytes:
    """Convert a part of a model with one input and one output to an ONNX file.

    The input, uint8 or float32, is named ``pixels``, the output ``out``.
    """
    return _file(model, {"out": model.output})


def _file(model: Any, outputs: Mapping[str, Any]) -> bytes:
    onnx = package()
    graph = Graph(onnx.helper)
    pixels = model.inputs[0]
    whole = pixels.dtype == "uint8"
    start = graph.node("Cast", ["pixels"], "pixels:float", to=onnx.TensorProto.FLOAT) if whole else "pixels"
    known: dict[int, Value] = {id(pixels): graph.value(start, pixels.shape[1:])}
    nodes = _nodes(model)
    calls = Counter(id(node.operation) for node in nodes)
    for node in nodes:
        _write(graph, node, known, shared=calls[id(node.operation)] > 1)
    results = []
    for name, tensor in outputs.items():
        value = known[id(tensor)]
        graph.node("Identity", [graph.read(value)], name)
        results.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", *value.shape]))
    kind = onnx.TensorProto.UINT8 if whole else onnx.TensorProto.FLOAT
    given = onnx.helper.make_tensor_value_info("pixels", kind, ["N", *pixels.shape[1:]])
    weights = [onnx.numpy_helper.from_array(array, name) for name, array in graph.weights.items()]
    made = onnx.helper.make_graph(graph.nodes, "network", [given], results, weights)
    file = onnx.helper.make_model(
        made, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="sightline"
    )
    onnx.checker.check_model(file)
    return bytes(file.SerializeToString())


def package() -> Any:
    """Import and return the package `onnx`; raises `MissingExtraError` if it is not installed."""
    for part in ("checker", "helper", "numpy_helper", "shape_inference"):
        require(f"onnx.{part}", "Writing an ONNX file")
    return require("onnx", "Writing an ONNX file")


def _nodes(model: Any) -> list[Any]:
    """Return the nodes (calls of layers and operations) in topological order, without inputs."""
    by_depth = model._nodes_by_depth  # noqa: SLF001  # Keras has no public traversal of the nodes of a graph
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth] if not node.is_input]


def _write(graph: Graph, node: Any, known: dict[int, Value], *, shared: bool) -> None:
    """Convert one node; calls of a `shared` operation are named after their outputs instead."""
    operation = node.operation
    arguments = backend.keras().tree.map_structure(lambda x: known.get(id(x), x), node.arguments.args)
    name = node.outputs[0].name if shared else operation.name
    name = f"{name}:value" if name in OUTPUTS else name
    if type(operation).__name__ == "Split":
        parts = operations.split(graph, arguments[0], len(node.outputs), name)
        known.update({id(tensor): part for tensor, part in zip(node.outputs, parts, strict=True)})
    else:
        known[id(node.outputs[0])] = operations.emit(graph, operation, arguments, name)


def narrowed(data: bytes, precision: str) -> bytes:
    """Return an ONNX file with its larger weights stored as float16 or bfloat16; it still computes in float32.

    The file is about half the size. The speed does not change, since a runtime casts the weights once, on loading.
    bfloat16 leaves depthwise kernels in float32: each of their outputs sums few products, so that rounding errors do
    not average out. They are 5% of the weights of MobileNetV2 0.35 and caused two thirds of its error.
    """
    onnx = package()
    kind = {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16}[precision]
    file = onnx.load_model_from_string(data)
    kept, casts = [], []
    for weight in file.graph.initializer:
        depthwise = len(weight.dims) == 4 and weight.dims[1] == 1  # [outputs, inputs of each, height, width]
        coarse = depthwise and precision == "bfloat16"
        if weight.data_type != onnx.TensorProto.FLOAT or np.prod(weight.dims) < 256 or coarse:
            kept.append(weight)
            continue
        array = onnx.numpy_helper.to_array(weight)
        small = onnx.helper.make_tensor(
            f"{weight.name}:{precision}", kind, weight.dims, _bits(array, precision), raw=True
        )
        kept.append(small)
        casts.append(onnx.helper.make_node("Cast", [small.name], [weight.name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *file.graph.node]
    del file.graph.initializer[:], file.graph.node[:]
    file.graph.initializer.extend(kept)
    file.graph.node.extend(nodes)
    return bytes(file.SerializeToString())


def _bits(array: Any, precision: str) -> bytes:
    if precision == "float16":
        return bytes(array.astype("<f2").tobytes())
    whole = np.ascontiguousarray(array, "<f4").view(np.uint32).astype(np.uint64)
    rounded = (whole + 0x7FFF + ((whole >> 16) & 1)) >> 16  # round to nearest, ties to even
    return bytes(rounded.astype("<u2").tobytes())
