"""Shape and cost inference for the operations of an ONNX graph, without a runtime.

The rules are those of https://onnx.ai/onnx/operators/, version 17, for the operations and attributes that Sightline
writes; anything else is refused, as is whatever cannot be inferred.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sightline.errors import ModelError
from sightline.prediction.onnx_graph import (
    BFLOAT16,
    FLOAT,
    FLOAT16,
    INT8,
    INT32,
    INT64,
    UINT8,
    Node,
    OnnxGraph,
    TensorType,
    Weight,
)

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Inferred:
    """The `outputs` of an operation, its `cost` in multiply-adds of a dense product, and its `workspace` in bytes."""

    outputs: tuple[TensorType, ...]
    cost: float
    workspace: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """One node with the types of its inputs, and the values of those that are weights."""

    node: Node
    types: tuple[TensorType, ...]
    weights: tuple[Weight | None, ...]

    @property
    def first(self) -> Shape:
        """The shape of the first input."""
        return self.types[0].shape

    def refuse(self, reason: str) -> ModelError:
        """Return the error for this node."""
        return ModelError(f"its operation {self.node.name or self.node.op!r} ({self.node.op}) {reason}")

    def check(self, condition: bool, reason: str) -> None:  # noqa: FBT001  # reads as an assertion
        """Raise `ModelError` for `reason` unless `condition` holds."""
        if not condition:
            raise self.refuse(reason)

    def integer(self, name: str, default: int) -> int:
        """Return an integer attribute."""
        value = self.node.attributes.get(name, default)
        self.check(isinstance(value, int), f"has an attribute {name!r} that is not an integer")
        return int(value)  # type: ignore[arg-type]  # checked

    def integers(self, name: str, default: Sequence[int], least: int) -> Shape:
        """Return a list attribute of known length, each integer at least `least` and at most 65,536."""
        value = self.node.attributes.get(name, tuple(default))
        right = isinstance(value, tuple) and len(value) == len(default) and all(least <= n <= 1 << 16 for n in value)
        self.check(right, f"has the invalid attribute {name!r}: {value!r}")
        return value  # type: ignore[return-value]  # checked

    def axis(self, default: int | None = None, *, past_end: bool = False) -> int:
        """Return the attribute `axis`, counted from the front."""
        rank = len(self.first)
        axis = self.integer("axis", rank if default is None else default)
        axis += rank if axis < 0 else 0
        self.check(0 <= axis < rank + past_end, f"has an axis that its input of shape {list(self.first)} lacks")
        return axis

    def values(self, at: int) -> Shape:
        """Return the integers of an input that must be a weight, as shapes and paddings are."""
        weight = self.weights[at] if at < len(self.weights) else None
        if weight is None or weight.values is None or weight.type.kind != INT64 or len(weight.type.shape) != 1:
            raise self.refuse("depends on numbers that are not constants in the file, so its shape cannot be inferred")
        return weight.values


Rule = Callable[[Call], Inferred]


@dataclass(frozen=True, slots=True)
class Operation:
    """How one type of operation is checked: its rule, its attributes, and the number and types of its inputs."""

    rule: Rule
    attributes: Mapping[str, int | float | bytes | None] = field(default_factory=dict)
    inputs: tuple[int, int] = (1, 1)
    kinds: frozenset[int] = frozenset({FLOAT})


_ANY = frozenset({FLOAT, UINT8, INT8, INT32, INT64, FLOAT16, BFLOAT16})


def infer(graph: OnnxGraph, types: Mapping[str, TensorType], node: Node) -> Inferred:
    """Infer the outputs of one node, after checking that Sightline could have written it."""
    operation = OPERATIONS.get(node.op)
    names = tuple(name for name in node.inputs if name)
    call = Call(node, tuple(types[n] for n in names if n in types), tuple(graph.weights.get(n) for n in names))
    if operation is None:
        raise call.refuse("is not one that Sightline writes")
    call.check(len(call.types) == len(names), "reads a value that no earlier operation computes")
    call.check(operation.inputs[0] <= len(names) <= operation.inputs[1], f"has {len(names)} inputs")
    call.check("" not in node.inputs or node.op == "Clip", "omits an input")
    for name, value in node.attributes.items():
        call.check(name in operation.attributes, f"has the attribute {name!r}, which Sightline never writes")
        only = operation.attributes[name]
        call.check(only is None or value == only, f"has the attribute {name!r} = {value!r}, expected {only!r}")
    call.check(call.types[0].kind in operation.kinds, f"reads elements of type {call.types[0].kind}")
    inferred = operation.rule(call)
    fresh = len(set(node.outputs)) == len(node.outputs) == len(inferred.outputs) and not set(node.outputs) & set(types)
    call.check(fresh and "" not in node.outputs, "writes a value that exists already, or none")
    for output in inferred.outputs:
        call.check(all(1 <= n < 1 << 40 for n in output.shape), f"gives a value of shape {list(output.shape)}")
    return inferred


# ---- rules: elementwise ---------------------------------------------------------------------------------------------


def _made(call: Call, shape: Shape, cost: float, kind: int | None = None, workspace: int = 0) -> Inferred:
    """Return one output, with the type of the first input unless `kind` is given, at `cost` per element."""
    value = TensorType(call.types[0].kind if kind is None else kind, shape)
    return Inferred((value,), cost * value.elements, workspace)


def _each(cost: float) -> Rule:
    """Return the rule of an elementwise operation with one input."""
    return lambda call: _made(call, call.first, cost)


def _broadcast(cost: float) -> Rule:
    """Return the rule of an elementwise operation on several inputs, with broadcasting."""

    def rule(call: Call) -> Inferred:
        shape = call.first
        for other in call.types[1:]:
            shape = _stretched(call, shape, other.shape)
            call.check(other.kind == call.types[0].kind, "reads elements of two types")
        return _made(call, shape, cost)

    return rule


def _stretched(call: Call, one: Shape, other: Shape) -> Shape:
    rank = max(len(one), len(other))
    pairs = list(zip((1,) * (rank - len(one)) + one, (1,) * (rank - len(other)) + other, strict=True))
    call.check(all(a == b or 1 in (a, b) for a, b in pairs), f"reads the shapes {list(one)} and {list(other)}")
    return tuple(max(a, b) for a, b in pairs)


def _clip(call: Call) -> Inferred:
    call.check(
        all(t.shape in {(), (1,)} and t.kind == call.types[0].kind for t in call.types[1:]),
        "has limits that are not scalars",
    )
    return _made(call, call.first, 10)


def _cast(call: Call) -> Inferred:
    return _made(call, call.first, 10, FLOAT)


def _quantize(call: Call) -> Inferred:
    _check_scale(call, call.types[1:])
    call.check(len(call.types) == 3 and call.types[2].kind in {UINT8, INT8}, "gives integers of an unknown type")
    return _made(call, call.first, 10, call.types[2].kind)


def _dequantize(call: Call) -> Inferred:
    _check_scale(call, call.types[1:])
    call.check(len(call.types) == 3 and call.types[2].kind == call.types[0].kind, "has a zero point of another type")
    return _made(call, call.first, 10, FLOAT)


def _check_scale(call: Call, parameters: Sequence[TensorType]) -> None:
    shapes = {t.shape for t in parameters}
    call.check(len(shapes) == 1 and parameters[0].kind == FLOAT, "has a scale and a zero point that do not match")
    shape = shapes.pop()
    if shape not in {(), (1,)}:
        call.check(shape == (call.first[call.axis(1)],), "has scales that do not match its channels")


def _normalize(count: int, axis: int) -> Rule:
    """Return the rule of a normalization with `count` vectors as long as `axis` of the input."""

    def rule(call: Call) -> Inferred:
        call.check(len(call.first) >= 2, "reads a value without channels")
        expected = TensorType(FLOAT, (call.first[axis],))
        call.check(
            all(t == expected for t in call.types[1:]) and len(call.types) == count + 1,
            "has parameters of another size",
        )
        return _made(call, call.first, 30)

    return rule


def _softmax(call: Call) -> Inferred:
    call.axis(-1)
    return _made(call, call.first, 30)


# ---- rules: products ------------------------------------------------------------------------------------------------


def _conv(call: Call) -> Inferred:
    x, kernel = call.first, call.types[1].shape
    groups = call.integer("group", 1)
    call.check(len(x) == len(kernel) == 4, "has an input that is not a batch of images")
    fits = 1 <= groups <= 1 << 16 and x[1] == kernel[1] * groups and kernel[0] % groups == 0
    call.check(fits and call.integers("kernel_shape", kernel[2:], 1) == kernel[2:], "has a kernel that does not match")
    call.check(all(t.kind == FLOAT for t in call.types), "reads elements of two types")
    call.check(len(call.types) == 2 or call.types[2].shape == kernel[:1], "has a bias that does not match")
    shape = (x[0], kernel[0], *_window(call, x[2:], kernel[2:]))
    depth = math.prod(kernel[1:])
    unrolled = 4 * x[0] * depth * groups * math.prod(shape[2:]) // max(x[0], 1)
    return _made(call, shape, depth * (1 if depth >= 64 else 10), workspace=unrolled)


def _window(call: Call, size: Shape, window: Shape) -> Shape:
    """Return the output height and width of a window sliding over `size`."""
    strides, dilations = call.integers("strides", (1, 1), 1), call.integers("dilations", (1, 1), 1)
    pads = call.integers("pads", (0, 0, 0, 0), 0)
    reach = [(k - 1) * d + 1 for k, d in zip(window, dilations, strict=True)]
    out = tuple((size[i] + pads[i] + pads[i + 2] - reach[i]) // strides[i] + 1 for i in range(2))
    right = all(n >= 1 for n in out) and all(pads[i] < max(reach[i % 2], 2) for i in range(4))
    call.check(right, f"has a window that does not fit an image of {size[0]}x{size[1]}")
    return out


def _pool(call: Call) -> Inferred:
    call.check(len(call.first) == 4, "has an input that is not a batch of images")
    window = call.integers("kernel_shape", (0, 0), 1)
    shape = (*call.first[:2], *_window(call, call.first[2:], window))
    return _made(call, shape, 20.0 * math.prod(window))


def _pool_all(call: Call) -> Inferred:
    call.check(len(call.first) == 4, "has an input that is not a batch of images")
    return _made(call, (*call.first[:2], 1, 1), 10.0 * math.prod(call.first[2:]))


def _gemm(call: Call) -> Inferred:
    a, b = (t.shape for t in call.types[:2])
    call.check(len(a) == len(b) == 2 and a[1] == b[0], f"multiplies the shapes {list(a)} and {list(b)}")
    call.check(all(t.kind == FLOAT for t in call.types), "reads elements of two types")
    shape = (a[0], b[1])
    if len(call.types) == 3:
        call.check(_stretched(call, shape, call.types[2].shape) == shape, "has a bias that does not match")
    return _made(call, shape, max(a[1], 10))


def _matmul(call: Call) -> Inferred:
    a, b = (t.shape for t in call.types)
    right = len(a) >= 2 and len(b) >= 2 and a[-1] == b[-2] and call.types[1].kind == FLOAT
    call.check(right, f"multiplies the shapes {list(a)} and {list(b)}")
    return _made(call, (*_stretched(call, a[:-2], b[:-2]), a[-2], b[-1]), max(a[-1], 10))


# ---- rules: shapes --------------------------------------------------------------------------------------------------


def _concat(call: Call) -> Inferred:
    axis = call.axis()
    rest = {(t.kind, len(t.shape), t.shape[:axis], t.shape[axis + 1 :]) for t in call.types}
    call.check(len(rest) == 1, "concatenates values that do not match")
    return _made(call, (*call.first[:axis], sum(t.shape[axis] for t in call.types), *call.first[axis + 1 :]), 10)


def _flatten(call: Call) -> Inferred:
    axis = call.axis(1, past_end=True)
    return _made(call, (math.prod(call.first[:axis]), math.prod(call.first[axis:])), 1)


def _gather(call: Call) -> Inferred:
    axis = call.axis(0)
    size, indices = call.first[axis], call.values(1)
    call.check(all(-size <= i < size for i in indices), "takes rows that do not exist")
    return _made(call, (*call.first[:axis], len(indices), *call.first[axis + 1 :]), 10)


def _reshape(call: Call) -> Inferred:
    wanted = list(call.values(1))
    call.check(len(wanted) <= 8 and all(n >= -1 for n in wanted) and wanted.count(-1) <= 1, "has no valid shape")
    call.check(all(n != 0 or i < len(call.first) for i, n in enumerate(wanted)), "copies an axis that does not exist")
    shape = [call.first[i] if n == 0 else n for i, n in enumerate(wanted)]
    elements, known = math.prod(call.first), math.prod(n for n in shape if n != -1)
    call.check(elements % max(known, 1) == 0, f"reshapes {list(call.first)} to {wanted}")
    shape = [elements // max(known, 1) if n == -1 else n for n in shape]
    call.check(math.prod(shape) == elements, f"reshapes {list(call.first)} to {wanted}")
    return _made(call, tuple(shape), 1)


def _slice(call: Call) -> Inferred:
    starts, ends, axes = (call.values(i) for i in (1, 2, 3))
    steps = call.values(4) if len(call.types) > 4 else (1,) * len(axes)
    rank = len(call.first)
    call.check(len(starts) == len(ends) == len(axes) == len(steps) == len(set(axes)), "has limits that do not match")
    shape = list(call.first)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        call.check(0 <= axis < rank and step >= 1, "slices an axis that does not exist, or backwards")
        shape[axis] = len(range(*slice(start, end, step).indices(shape[axis])))
    return _made(call, tuple(shape), 10)


def _split(call: Call) -> Inferred:
    axis, sizes = call.axis(0), call.values(1)
    right = all(n >= 1 for n in sizes) and sum(sizes) == call.first[axis]
    call.check(right, f"splits {call.first[axis]} into {list(sizes)}")
    shapes = [(*call.first[:axis], n, *call.first[axis + 1 :]) for n in sizes]
    return Inferred(tuple(TensorType(call.types[0].kind, s) for s in shapes), 10.0 * math.prod(call.first))


def _transpose(call: Call) -> Inferred:
    order = call.node.attributes.get("perm")
    call.check(
        isinstance(order, tuple) and sorted(order) == list(range(len(call.first))), "has no permutation of its axes"
    )
    return _made(call, tuple(call.first[i] for i in order), 30)  # type: ignore[union-attr]  # checked


def _pad(call: Call) -> Inferred:
    pads, rank = call.values(1), len(call.first)
    call.check(len(pads) == 2 * rank and all(0 <= n <= 1 << 16 for n in pads), "has paddings that do not match")
    return _made(call, tuple(n + pads[i] + pads[i + rank] for i, n in enumerate(call.first)), 10)


_WINDOW = {"auto_pad": b"NOTSET", "kernel_shape": None, "strides": None, "pads": None}
_POOL = _WINDOW | {"ceil_mode": 0, "dilations": None}

OPERATIONS: Mapping[str, Operation] = {
    "Add": Operation(_broadcast(10), inputs=(2, 2)),
    "AveragePool": Operation(_pool, _POOL | {"count_include_pad": None}),
    "BatchNormalization": Operation(
        _normalize(4, 1), {"epsilon": None, "momentum": None, "training_mode": 0}, inputs=(5, 5)
    ),
    "Cast": Operation(_cast, {"to": FLOAT}, kinds=_ANY - {INT64}),
    "Clip": Operation(_clip, inputs=(1, 3)),
    "Concat": Operation(_concat, {"axis": None}, inputs=(1, 1000), kinds=_ANY),
    "Conv": Operation(_conv, _WINDOW | {"dilations": None, "group": None}, inputs=(2, 3)),
    "DequantizeLinear": Operation(
        _dequantize, {"axis": None}, inputs=(3, 3), kinds=frozenset({UINT8, INT8, INT32})
    ),
    "Div": Operation(_broadcast(20), inputs=(2, 2)),
    "Erf": Operation(_each(30)),
    "Flatten": Operation(_flatten, {"axis": None}, kinds=_ANY),
    "Gather": Operation(_gather, {"axis": None}, inputs=(2, 2), kinds=_ANY),
    "Gemm": Operation(
        _gemm, {"alpha": None, "beta": None, "transA": 0, "transB": 0}, inputs=(2, 3)
    ),
    "GlobalAveragePool": Operation(_pool_all),
    "GlobalMaxPool": Operation(_pool_all),
    "HardSigmoid": Operation(_each(30), {"alpha": None, "beta": None}),
    "HardSwish": Operation(_each(30)),
    "Identity": Operation(_each(10), kinds=_ANY),
    "LayerNormalization": Operation(
        _normalize(2, -1), {"axis": -1, "epsilon": None, "stash_type": 1}, inputs=(3, 3)
    ),
    "MatMul": Operation(_matmul, inputs=(2, 2)),
    "Max": Operation(_broadcast(10), inputs=(1, 100)),
    "MaxPool": Operation(_pool, _POOL | {"storage_order": 0}),
    "Mul": Operation(_broadcast(10), inputs=(2, 2)),
    "Pad": Operation(_pad, {"mode": b"constant"}, inputs=(2, 2), kinds=frozenset({FLOAT, UINT8, INT8})),
    "Pow": Operation(_broadcast(600), inputs=(2, 2)),
    "QuantizeLinear": Operation(_quantize, {"axis": None}, inputs=(3, 3)),
    "Relu": Operation(_each(10)),
    "Reshape": Operation(_reshape, {"allowzero": 0}, inputs=(2, 2), kinds=_ANY),
    "Sigmoid": Operation(_each(30)),
    "Slice": Operation(_slice, inputs=(4, 5), kinds=_ANY),
    "Softmax": Operation(_softmax, {"axis": None}),
    "Split": Operation(_split, {"axis": None}, inputs=(2, 2), kinds=_ANY),
    "Tanh": Operation(_each(30)),
    "Transpose": Operation(_transpose, {"perm": None}, kinds=_ANY),
}  # fmt: skip
