"""Checks of a TensorFlow SavedModel before TensorFlow loads it.

A SavedModel is a program: its functions may read and write files or call Python, and some run when it is loaded. So
every function that loading or predicting can reach may contain only operations that compute with arrays, and its
objects must be variables, functions and plain containers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from sightline.errors import ModelError

MODEL_FILE = "saved_model/saved_model.pb"
_FILE = re.compile(r"saved_model/(saved_model\.pb|fingerprint\.pb|variables/variables\.(index|data-\d{5}-of-\d{5}))")
MAX_MODEL_BYTES = 64 << 20  # limit without the weights, which are in separate files
ALLOWED_OPERATIONS = frozenset(
    {
        "Abs", "AddN", "AddV2", "All", "Any", "AvgPool", "BatchMatMulV2", "BatchMatMulV3", "BatchToSpaceND",
        "BiasAdd", "BroadcastArgs", "BroadcastTo", "Cast", "Ceil", "ClipByValue", "ConcatV2", "Const", "Conv2D",
        "Conv2DBackpropInput", "Cumsum", "DepthwiseConv2dNative", "DivNoNan", "Einsum", "Elu", "EnsureShape", "Equal",
        "Erf", "Erfc", "Exp", "ExpandDims", "Expm1", "Fill", "Floor", "FloorDiv", "FloorMod", "FusedBatchNormV3",
        "GatherV2", "Greater", "GreaterEqual", "Identity", "IdentityN", "Inv", "InvertPermutation", "LRN",
        "LeakyRelu", "Less", "LessEqual", "Log", "Log1p", "LogSoftmax", "LogicalAnd", "LogicalNot", "LogicalOr",
        "MatMul", "Max", "MaxPool", "Maximum", "Mean", "Min", "Minimum", "MirrorPad", "Mul", "Neg", "NoOp",
        "NotEqual", "OneHot", "OnesLike", "Pack", "Pad", "PadV2", "PartitionedCall", "PlaceholderWithDefault", "Pow",
        "Prod", "Range", "Rank", "ReadVariableOp", "RealDiv", "Reciprocal", "Relu", "Relu6", "Reshape",
        "ResizeBicubic", "ResizeBilinear", "ResizeNearestNeighbor", "ReverseV2", "Roll", "Round", "Rsqrt", "Select",
        "SelectV2", "Selu", "Shape", "Sigmoid", "Sign", "Size", "Slice", "Softmax", "Softplus", "Softsign",
        "SpaceToBatchND", "Split", "SplitV", "Sqrt", "Square", "SquaredDifference", "Squeeze",
        "StatefulPartitionedCall", "StopGradient", "StridedSlice", "Sub", "Sum", "Tanh", "Tile", "Transpose",
        "Unpack", "ZerosLike",
    }
)  # fmt: skip
"""TensorFlow operations that compute with arrays, read variables or call functions."""
_OBJECT_KINDS = frozenset(
    {"user_object", "function", "variable", "bare_concrete_function", "constant", "captured_tensor"}
)
_CONTAINERS = frozenset(
    {
        "_generic_user_object",
        "trackable_list_wrapper",
        "trackable_dict_wrapper",
        "trackable_tuple_wrapper",
        "signature_map",
    }
)


def check_saved_model(files: Mapping[str, bytes]) -> None:
    """Raise `ModelError` unless ``saved_model.pb`` contains nothing but a network; `files` maps names to contents."""
    from tensorflow.core.protobuf import saved_model_pb2

    if foreign := sorted(name for name in files if not _FILE.fullmatch(name)):
        raise ModelError(f"it contains {foreign[0]!r}, which Sightline never writes")
    if MODEL_FILE not in files:
        raise ModelError(f"{MODEL_FILE} is missing")
    if len(files[MODEL_FILE]) > MAX_MODEL_BYTES:
        raise ModelError(f"{MODEL_FILE} has more than {MAX_MODEL_BYTES >> 20} MiB")
    try:
        graphs = saved_model_pb2.SavedModel.FromString(files[MODEL_FILE]).meta_graphs
    except Exception as error:  # protobuf's types are not importable here
        raise ModelError(f"{MODEL_FILE} is damaged: {error}") from error
    if len(graphs) != 1 or not graphs[0].object_graph_def.nodes:  # TensorFlow would load it as version 1
        raise ModelError(f"{MODEL_FILE} has {len(graphs)} graphs, or no objects: Sightline writes one, with objects")
    objects, library = graphs[0].object_graph_def, graphs[0].graph_def.library
    for node in objects.nodes:
        _check_object(node)
    functions = {function.signature.name: function for function in library.function}
    if len(functions) < len(library.function):
        raise ModelError(f"{MODEL_FILE} has two functions of the same name")
    _check_functions(functions, set(_named_functions(objects)))


def _check_object(node: Any) -> None:
    kind = node.WhichOneof("kind")
    is_container = kind != "user_object" or node.user_object.identifier in _CONTAINERS
    if kind not in _OBJECT_KINDS or node.registered_name or not is_container:
        name = node.registered_name or (node.user_object.identifier if kind == "user_object" else kind)
        raise ModelError(f"{MODEL_FILE} has the object {name!r}, which Sightline never writes")


def _named_functions(objects: Any) -> Iterator[str]:
    """Yield the functions that objects refer to; loading runs some of them."""
    yield from objects.concrete_functions
    for node in objects.nodes:
        yield from node.function.concrete_functions
        if node.bare_concrete_function.concrete_function_name:
            yield node.bare_concrete_function.concrete_function_name


def _check_functions(functions: Mapping[str, Any], pending: set[str]) -> None:
    """Check the functions in `pending`, and all that they call."""
    checked = set()
    while pending:
        name = pending.pop()
        checked.add(name)
        if name not in functions:
            raise ModelError(f"{MODEL_FILE} lacks the function {name!r}")
        for node in functions[name].node_def:
            if node.op not in ALLOWED_OPERATIONS:
                raise ModelError(f"its graph has the operation {node.op!r}, which Sightline does not run")
            for attribute in node.attr.values():
                called = [attribute.func, *attribute.list.func]
                pending |= {function.name for function in called if function.name} - checked
