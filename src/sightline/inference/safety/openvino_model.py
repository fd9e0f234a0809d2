"""Checks of an OpenVINO model: of its XML before parsing, and of its operations and sizes before compilation.

OpenVINO reads the XML without entities and checks that weights are within their file, but does not limit the memory
and time of a graph.
"""

from __future__ import annotations

import math
from typing import Any
from xml.parsers import expat

from sightline.errors import ModelError
from sightline.inference.safety.limits import Step, check_operation_count, check_steps
from sightline.nesting import MAX_DEPTH

MAX_XML_BYTES = 64 << 20
# operations with a different name in the XML
_LAYER_TYPES = {"Const": "Constant", "ReLU": "Relu", "SoftMax": "Softmax", "PReLU": "PRelu"}
ALLOWED_OPERATIONS = frozenset(
    {
        "Add", "AvgPool", "BatchNormInference", "Broadcast", "Clamp", "Concat", "Constant", "Convert", "Convolution",
        "ConvolutionBackpropData", "Divide", "Elu", "Erf", "Exp", "FakeQuantize", "Gather", "Gelu", "GroupConvolution",
        "HSigmoid", "HSwish", "HardSigmoid", "Log", "LogSoftmax", "MVN", "MatMul", "MaxPool", "Maximum", "Minimum",
        "Mish", "Multiply", "Negative", "PRelu", "Pad", "Parameter", "Power", "ReduceMax", "ReduceMean", "ReduceProd",
        "ReduceSum", "Relu", "Reshape", "Result", "Selu", "ShapeOf", "Sigmoid", "Slice", "SoftPlus", "Softmax",
        "Split", "Sqrt", "SquaredDifference", "Squeeze", "StridedSlice", "Subtract", "Swish", "Tanh", "Transpose",
        "Unsqueeze", "VariadicSplit",
    }
)  # fmt: skip
"""The operations that OpenVINO creates from Sightline's ONNX files, including int8: no loops or branches."""
_SUBGRAPHS = frozenset({"body", "then_body", "else_body", "port_map"})


def check_xml(xml: bytes) -> None:
    """Raise `ModelError` for XML with a document type, deep nesting, subgraphs or operations that are not allowed."""
    if len(xml) > MAX_XML_BYTES:
        raise ModelError(f"its model.xml has more than {MAX_XML_BYTES >> 20} MiB")
    depth = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise ModelError("its model.xml is nested too deeply")
        if name in _SUBGRAPHS:
            raise ModelError("its model.xml has a subgraph, which Sightline never writes")
        if name == "layer":
            layer_type = attributes.get("type", "")
            _check_operation(_LAYER_TYPES.get(layer_type, layer_type))

    def end(_name: str) -> None:
        nonlocal depth
        depth -= 1

    def refuse_document_type(*_: Any) -> None:
        raise ModelError("its model.xml has a document type, which Sightline never writes")

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.StartDoctypeDeclHandler = refuse_document_type
    try:
        parser.Parse(xml, True)  # noqa: FBT003  # expat takes no keywords
    except expat.ExpatError as error:
        raise ModelError(f"its model.xml is damaged: {error}") from error


def check_model(model: Any, shape: tuple[int, int, int], batch: int) -> None:
    """Raise `ModelError` unless a model accepts uint8 pixels [N, *shape] and meets the limits for 1 and `batch` images.

    `model` is an ``openvino.Model``, which is not modified.
    """
    operations = model.get_ordered_ops()
    check_operation_count(len(operations))
    for operation in operations:
        _check_operation(operation.get_type_name())
    inputs = [(str(i.get_element_type().get_type_name()), str(i.get_partial_shape())) for i in model.inputs]
    expected = [("u8", f"[?,{','.join(map(str, shape))}]")]
    if inputs != expected:
        raise ModelError(f"its input is {inputs}, but its preprocessing gives {expected}")
    for size in sorted({1, batch}):
        resized = model.clone()
        resized.reshape([size, *shape])
        _check_values(resized.get_ordered_ops(), size)


def _check_operation(name: str) -> None:
    if name not in ALLOWED_OPERATIONS:
        raise ModelError(f"its graph has the operation {name!r}, which Sightline does not run")


def _check_values(operations: list[Any], batch: int) -> None:
    if dynamic := [node for node in operations if any(o.get_partial_shape().is_dynamic for o in node.outputs())]:
        raise ModelError(f"the size of its operation {dynamic[0].get_friendly_name()!r} cannot be worked out")
    sizes = {node.get_name(): _output_bytes(node) for node in operations}

    def list_outputs(kind: str) -> dict[str, int]:
        return {k: v for node in operations if node.get_type_name() == kind for k, v in sizes[node.get_name()].items()}

    nodes = [node for node in operations if node.get_type_name() not in {"Parameter", "Constant", "Result"}]
    last_use = {name: position for position, node in enumerate(nodes) for name in _input_names(node)}
    last_use |= {
        name: len(nodes) for node in operations if node.get_type_name() == "Result" for name in _input_names(node)
    }
    steps = (Step(node.get_friendly_name(), _input_names(node), sizes[node.get_name()], _cost(node)) for node in nodes)
    check_steps(steps, list_outputs("Parameter"), list_outputs("Constant"), last_use, batch)


def _output_bytes(node: Any) -> dict[str, int]:
    return {
        f"{node.get_name()}:{i}": math.prod(output.get_shape()) * max(1, output.get_element_type().size)
        for i, output in enumerate(node.outputs())
    }


def _input_names(node: Any) -> tuple[str, ...]:
    sources = [port.get_source_output() for port in node.inputs()]
    return tuple(f"{source.get_node().get_name()}:{source.get_index()}" for source in sources)


def _cost(node: Any) -> float:
    """Return the multiply-adds of an operation; elementwise operations count 10 per value read or written."""
    kind = node.get_type_name()
    cost: float = math.prod(node.output(0).get_shape())
    if kind in {"Convolution", "GroupConvolution"}:  # weights [O, I, h, w], or [G, O, I, h, w]
        cost *= math.prod(list(node.input(1).get_shape())[1 if kind == "Convolution" else 2 :])
    elif kind == "ConvolutionBackpropData":  # weights [I, O, h, w], multiplied at each input position
        cost = math.prod(node.input(0).get_shape()) * math.prod(list(node.input(1).get_shape())[1:])
    elif kind == "MatMul":
        shape = list(node.input(0).get_shape())
        cost *= shape[-2 if node.get_attributes()["transpose_a"] and len(shape) > 1 else -1]
    elif kind in {"MaxPool", "AvgPool"}:
        cost *= math.prod(node.get_attributes()["kernel"])
    else:
        cost = 10 * sum(math.prod(port.get_shape()) for port in (*node.inputs(), *node.outputs()))
    return cost
