"""Shape and cost inference for the operations of an ONNX graph, without a runtime.

The rules follow https://onnx.ai/onnx/operators/, version 17, for the operations and attributes that Sightline writes;
anything else is refused, and so are shapes that cannot be inferred. `OPERATION_RULES` is the only list of what a file
may contain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from sightline.inference.safety.onnx_operation import InferredOutputs, NodeCall, OperationRule, Rule, Shape
from sightline.inference.safety.onnx_types import FLOAT, INT8, INT32, INT64, SIZES, UINT8, Node, OnnxGraph, TensorType

_ANY = frozenset(SIZES)


def infer_outputs(graph: OnnxGraph, types: Mapping[str, TensorType], node: Node) -> InferredOutputs:
    """Infer the outputs of a node, after checking that Sightline could have written it."""
    operation = OPERATION_RULES.get(node.op)
    names = tuple(filter(None, node.inputs))
    call = NodeCall(node, tuple(types[n] for n in names if n in types), tuple(graph.weights.get(n) for n in names))
    if operation is None:
        raise call.make_error("is not one that Sightline writes")
    _check_inputs(call, operation)
    for name, value in node.attributes.items():
        call.check(name in operation.attributes, f"has the attribute {name!r}, which Sightline never writes")
        expected = operation.attributes[name]
        call.check(expected in {None, value}, f"has the attribute {name!r} = {value!r}, expected {expected!r}")
    inferred = operation.rule(call)
    is_new = len(set(node.outputs)) == len(node.outputs) == len(inferred.outputs) and not set(node.outputs) & set(types)
    call.check(is_new and "" not in node.outputs, "writes a value that exists already, or none")
    for output in inferred.outputs:
        call.check(all(1 <= n < 1 << 40 for n in output.shape), f"gives a value of shape {list(output.shape)}")
    return inferred


def _check_inputs(call: NodeCall, operation: OperationRule) -> None:
    names, (fewest, most) = call.node.inputs, operation.inputs
    count = len(call.weights)
    call.check(len(call.types) == count, "reads a value that no earlier operation computes")
    call.check(fewest <= count <= most, f"has {count} inputs")
    call.check("" not in names or call.node.op == "Clip", "omits an input")
    first, *others = (t.element_type for t in call.types)
    call.check(first in operation.element_types, f"reads elements of type {first}")
    call.check(operation.is_mixed or {*others} <= {first}, "reads elements of two types")


# ---- rules: elementwise ---------------------------------------------------------------------------------------------


def _single_output(
    call: NodeCall, shape: Shape, cost: float, element_type: int | None = None, workspace: int = 0
) -> InferredOutputs:
    """Return a single output at `cost` per element, with the type of the first input unless `element_type` is given."""
    value = TensorType(call.types[0].element_type if element_type is None else element_type, shape)
    return InferredOutputs((value,), cost * value.num_elements, workspace)


def _elementwise(cost: float) -> Rule:
    """Return the rule of an elementwise operation with one input."""
    return lambda call: _single_output(call, call.first_shape, cost)


def _broadcast(cost: float) -> Rule:
    """Return the rule of an elementwise operation on several inputs, with broadcasting."""

    def rule(call: NodeCall) -> InferredOutputs:
        shape = call.first_shape
        for other in call.types[1:]:
            shape = _broadcast_shapes(call, shape, other.shape)
        return _single_output(call, shape, cost)

    return rule


def _broadcast_shapes(call: NodeCall, first: Shape, second: Shape) -> Shape:
    rank = max(len(first), len(second))
    pairs = list(zip((1,) * (rank - len(first)) + first, (1,) * (rank - len(second)) + second, strict=True))
    call.check(all(a == b or 1 in (a, b) for a, b in pairs), f"reads the shapes {list(first)} and {list(second)}")
    return tuple(max(a, b) for a, b in pairs)


def _clip(call: NodeCall) -> InferredOutputs:
    call.check(all(t.shape in {(), (1,)} for t in call.types[1:]), "has limits that are not scalars")
    return _single_output(call, call.first_shape, 10)


def _cast(call: NodeCall) -> InferredOutputs:
    return _single_output(call, call.first_shape, 10, FLOAT)


def _quantize(call: NodeCall) -> InferredOutputs:
    integer = _read_zero_point(call)
    call.check(integer in {UINT8, INT8}, "gives integers of an unknown type")
    return _single_output(call, call.first_shape, 10, integer)


def _dequantize(call: NodeCall) -> InferredOutputs:
    call.check(_read_zero_point(call) == call.types[0].element_type, "has a zero point of another type")
    return _single_output(call, call.first_shape, 10, FLOAT)


def _read_zero_point(call: NodeCall) -> int:
    """Return the element type of the zero point, after checking the shapes of the scale and the zero point."""
    scale, zero_point = call.types[1:]
    is_pair = scale.element_type == FLOAT and scale.shape == zero_point.shape
    call.check(is_pair, "has a scale and a zero point that do not match")
    if scale.shape not in {(), (1,)}:
        call.check(scale.shape == (call.first_shape[call.get_axis(1)],), "has scales that do not match its channels")
    return zero_point.element_type


def _prelu(call: NodeCall) -> InferredOutputs:
    shape = _broadcast_shapes(call, call.first_shape, call.types[1].shape)
    call.check(shape == call.first_shape, "has slopes that do not match")
    return _single_output(call, shape, 10)


def _normalize(axis: int, axes: int = 2) -> Rule:
    """Return the rule of a normalization with a parameter for each place of `axis`, of an input with `axes` or more."""

    def rule(call: NodeCall) -> InferredOutputs:
        call.check(len(call.first_shape) >= axes, "reads a value without channels")
        size = call.first_shape[axis]
        call.check(all(t.shape == (size,) for t in call.types[1:]), "has parameters of another size")
        return _single_output(call, call.first_shape, 30)

    return rule


def _softmax(call: NodeCall) -> InferredOutputs:
    call.get_axis(-1)
    return _single_output(call, call.first_shape, 30)


# ---- rules: products ------------------------------------------------------------------------------------------------


def _conv(call: NodeCall) -> InferredOutputs:
    x, kernel = _read_kernel(call)
    groups = call.get_integer("group", 1)
    is_valid = 1 <= groups <= 1 << 16 and x[1] == kernel[1] * groups and kernel[0] % groups == 0
    call.check(is_valid, "has a kernel that does not match")
    _check_bias(call, kernel[0])
    shape = (x[0], kernel[0], *_infer_window(call, x[2:], kernel[2:]))
    depth = math.prod(kernel[1:])
    workspace_bytes = 4 * depth * groups * math.prod(shape[2:])
    return _single_output(call, shape, depth * (1 if depth >= 64 else 10), workspace=workspace_bytes)


def _conv_transpose(call: NodeCall) -> InferredOutputs:
    x, kernel = _read_kernel(call)
    call.check(x[1] == kernel[0], "has a kernel that does not match")
    _check_bias(call, kernel[1])
    strides, pads = call.get_integers("strides", (1, 1), 1), call.get_integers("pads", (0, 0, 0, 0), 0)
    extra = call.get_integers("output_padding", (0, 0), 0)
    is_valid = all(pads[i] < kernel[2 + i % 2] for i in range(4)) and all(extra[i] < strides[i] for i in range(2))
    call.check(is_valid, "has paddings that do not match")
    sides = [strides[i] * (x[2 + i] - 1) + kernel[2 + i] + extra[i] - pads[i] - pads[i + 2] for i in range(2)]
    products = math.prod(kernel[1:]) * math.prod(x[2:])  # for each input channel
    outputs = TensorType(FLOAT, (x[0], kernel[1], *sides))
    return InferredOutputs((outputs,), float(x[0] * x[1] * products) + 10.0 * outputs.num_elements, 4 * products)


def _read_kernel(call: NodeCall) -> tuple[Shape, Shape]:
    """Return the shapes of the images and of the kernel of a convolution."""
    x, kernel = call.first_shape, call.types[1].shape
    call.check(len(x) == len(kernel) == 4, "has an input that is not a batch of images")
    is_stated = call.get_integers("kernel_shape", kernel[2:], 1) == kernel[2:]
    call.check(is_stated, "has a kernel that does not match")
    return x, kernel


def _check_bias(call: NodeCall, channels: int) -> None:
    call.check(all(t.shape == (channels,) for t in call.types[2:]), "has a bias that does not match")


def _infer_window(call: NodeCall, size: Shape, window: Shape) -> Shape:
    """Return the output height and width of a window sliding over `size`."""
    strides, dilations = call.get_integers("strides", (1, 1), 1), call.get_integers("dilations", (1, 1), 1)
    pads = call.get_integers("pads", (0, 0, 0, 0), 0)
    reach = [(k - 1) * d + 1 for k, d in zip(window, dilations, strict=True)]
    out = tuple((size[i] + pads[i] + pads[i + 2] - reach[i]) // strides[i] + 1 for i in range(2))
    is_valid = all(n >= 1 for n in out) and all(pads[i] < max(reach[i % 2], 2) for i in range(4))
    call.check(is_valid, f"has a window that does not fit an image of {size[0]}x{size[1]}")
    return out


def _pool(call: NodeCall) -> InferredOutputs:
    call.check(len(call.first_shape) == 4, "has an input that is not a batch of images")
    window = call.get_integers("kernel_shape", (0, 0), 1)
    shape = (*call.first_shape[:2], *_infer_window(call, call.first_shape[2:], window))
    return _single_output(call, shape, 20.0 * math.prod(window))


def _pool_all(call: NodeCall) -> InferredOutputs:
    call.check(len(call.first_shape) == 4, "has an input that is not a batch of images")
    return _single_output(call, (*call.first_shape[:2], 1, 1), 10.0 * math.prod(call.first_shape[2:]))


def _gemm(call: NodeCall) -> InferredOutputs:
    a, b, *biases = (t.shape for t in call.types)
    call.check(len(a) == len(b) == 2 and a[1] == b[0], f"multiplies the shapes {list(a)} and {list(b)}")
    shape = (a[0], b[1])
    call.check(all(_broadcast_shapes(call, shape, c) == shape for c in biases), "has a bias that does not match")
    return _single_output(call, shape, max(a[1], 10))


def _matmul(call: NodeCall) -> InferredOutputs:
    a, b = (t.shape for t in call.types)
    is_valid = len(a) >= 2 and len(b) >= 2 and a[-1] == b[-2]
    call.check(is_valid, f"multiplies the shapes {list(a)} and {list(b)}")
    return _single_output(call, (*_broadcast_shapes(call, a[:-2], b[:-2]), a[-2], b[-1]), max(a[-1], 10))


# ---- rules: shapes --------------------------------------------------------------------------------------------------


def _resize_axis(shape: Shape, axis: int, size: int) -> Shape:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _concat(call: NodeCall) -> InferredOutputs:
    axis, shapes = call.get_axis(), [t.shape for t in call.types]
    rest = {(len(shape), _resize_axis(shape, axis, 0)) for shape in shapes}
    call.check(len(rest) == 1, "concatenates values that do not match")
    return _single_output(call, _resize_axis(shapes[0], axis, sum(shape[axis] for shape in shapes)), 10)


def _flatten(call: NodeCall) -> InferredOutputs:
    axis = call.get_axis(1, past_end=True)
    return _single_output(call, (math.prod(call.first_shape[:axis]), math.prod(call.first_shape[axis:])), 1)


def _gather(call: NodeCall) -> InferredOutputs:
    axis = call.get_axis(0)
    size, indices = call.first_shape[axis], call.get_constant(1)
    call.check(all(-size <= i < size for i in indices), "takes rows that do not exist")
    return _single_output(call, _resize_axis(call.first_shape, axis, len(indices)), 10)


def _reshape(call: NodeCall) -> InferredOutputs:
    before, requested = call.first_shape, call.get_constant(1)
    is_valid = len(requested) <= 8 and all(n >= -1 for n in requested) and requested.count(-1) <= 1
    call.check(is_valid and 0 not in requested[len(before) :], "has no valid shape")
    shape = [before[i] if n == 0 else n for i, n in enumerate(requested)]
    if -1 in shape:
        known = math.prod(n for n in shape if n != -1)
        shape[shape.index(-1)] = math.prod(before) // max(known, 1)
    call.check(math.prod(shape) == math.prod(before), f"reshapes {list(before)} to {list(requested)}")
    return _single_output(call, tuple(shape), 1)


def _slice(call: NodeCall) -> InferredOutputs:
    starts, ends, axes = (call.get_constant(i) for i in (1, 2, 3))
    steps = call.get_constant(4) if len(call.types) > 4 else (1,) * len(axes)
    call.check(len(starts) == len(ends) == len(axes) == len(steps) == len(set(axes)), "has limits that do not match")
    shape = call.first_shape
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        call.check(0 <= axis < len(shape) and step >= 1, "slices an axis that does not exist, or backwards")
        shape = _resize_axis(shape, axis, len(range(*slice(start, end, step).indices(shape[axis]))))
    return _single_output(call, shape, 10)


def _split(call: NodeCall) -> InferredOutputs:
    axis, sizes, shape = call.get_axis(0), call.get_constant(1), call.first_shape
    is_valid = all(n >= 1 for n in sizes) and sum(sizes) == shape[axis]
    call.check(is_valid, f"splits {shape[axis]} into {list(sizes)}")
    outputs = (TensorType(call.types[0].element_type, _resize_axis(shape, axis, n)) for n in sizes)
    return InferredOutputs(tuple(outputs), 10.0 * math.prod(shape))


def _transpose(call: NodeCall) -> InferredOutputs:
    rank = len(call.first_shape)
    order = call.get_integers("perm", (-1,) * rank, 0)
    call.check(sorted(order) == list(range(rank)), "has no permutation of its axes")
    return _single_output(call, tuple(call.first_shape[i] for i in order), 30)


def _pad(call: NodeCall) -> InferredOutputs:
    pads, rank = call.get_constant(1), len(call.first_shape)
    call.check(len(pads) == 2 * rank and all(0 <= n <= 1 << 16 for n in pads), "has paddings that do not match")
    return _single_output(call, tuple(n + pads[i] + pads[i + rank] for i, n in enumerate(call.first_shape)), 10)


_WINDOW = {"auto_pad": b"NOTSET", "kernel_shape": None, "strides": None, "pads": None}
_POOL = _WINDOW | {"ceil_mode": 0, "dilations": None}

OPERATION_RULES: Mapping[str, OperationRule] = {
    "Add": OperationRule(_broadcast(10), inputs=(2, 2)),
    "AveragePool": OperationRule(_pool, _POOL | {"count_include_pad": None}),
    "BatchNormalization": OperationRule(
        _normalize(1), {"epsilon": None, "momentum": None, "training_mode": 0}, inputs=(5, 5)
    ),
    "Cast": OperationRule(_cast, {"to": FLOAT}, element_types=_ANY - {INT64}),
    "Clip": OperationRule(_clip, inputs=(1, 3)),
    "Concat": OperationRule(_concat, {"axis": None}, inputs=(1, 1000), element_types=_ANY),
    "Conv": OperationRule(_conv, _WINDOW | {"dilations": None, "group": None}, inputs=(2, 3)),
    "ConvTranspose": OperationRule(_conv_transpose, _WINDOW | {"group": 1, "output_padding": None}, inputs=(2, 3)),
    "DequantizeLinear": OperationRule(
        _dequantize, {"axis": None}, inputs=(3, 3), element_types=frozenset({UINT8, INT8, INT32}), is_mixed=True
    ),
    "Div": OperationRule(_broadcast(20), inputs=(2, 2)),
    "Elu": OperationRule(_elementwise(30), {"alpha": None}),
    "Erf": OperationRule(_elementwise(30)),
    "Flatten": OperationRule(_flatten, {"axis": None}, element_types=_ANY),
    "Gather": OperationRule(_gather, {"axis": None}, inputs=(2, 2), element_types=_ANY, is_mixed=True),
    "Gemm": OperationRule(
        _gemm, {"alpha": None, "beta": None, "transA": 0, "transB": 0}, inputs=(2, 3)
    ),
    "GlobalAveragePool": OperationRule(_pool_all),
    "GlobalMaxPool": OperationRule(_pool_all),
    "HardSigmoid": OperationRule(_elementwise(30), {"alpha": None, "beta": None}),
    "HardSwish": OperationRule(_elementwise(30)),
    "Identity": OperationRule(_elementwise(10), element_types=_ANY),
    "InstanceNormalization": OperationRule(_normalize(1, axes=3), {"epsilon": None}, inputs=(3, 3)),
    "LayerNormalization": OperationRule(
        _normalize(-1), {"axis": -1, "epsilon": None, "stash_type": 1}, inputs=(3, 3)
    ),
    "LeakyRelu": OperationRule(_elementwise(10), {"alpha": None}),
    "Log": OperationRule(_elementwise(30)),
    "MatMul": OperationRule(_matmul, inputs=(2, 2)),
    "Max": OperationRule(_broadcast(10), inputs=(1, 100)),
    "MaxPool": OperationRule(_pool, _POOL | {"storage_order": 0}),
    "Mul": OperationRule(_broadcast(10), inputs=(2, 2)),
    "PRelu": OperationRule(_prelu, inputs=(2, 2)),
    "Pad": OperationRule(
        _pad, {"mode": b"constant"}, inputs=(2, 2), element_types=frozenset({FLOAT, UINT8, INT8}), is_mixed=True
    ),
    "Pow": OperationRule(_broadcast(600), inputs=(2, 2)),
    "QuantizeLinear": OperationRule(_quantize, {"axis": None}, inputs=(3, 3), is_mixed=True),
    "Relu": OperationRule(_elementwise(10)),
    "Reshape": OperationRule(_reshape, {"allowzero": 0}, inputs=(2, 2), element_types=_ANY, is_mixed=True),
    "Selu": OperationRule(_elementwise(30), {"alpha": None, "gamma": None}),
    "Sigmoid": OperationRule(_elementwise(30)),
    "Slice": OperationRule(_slice, inputs=(4, 5), element_types=_ANY, is_mixed=True),
    "Softmax": OperationRule(_softmax, {"axis": None}),
    "Softplus": OperationRule(_elementwise(30)),
    "Split": OperationRule(_split, {"axis": None}, inputs=(2, 2), element_types=_ANY, is_mixed=True),
    "Tanh": OperationRule(_elementwise(30)),
    "Transpose": OperationRule(_transpose, {"perm": None}, element_types=_ANY),
}  # fmt: skip
