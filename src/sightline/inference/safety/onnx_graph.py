"""Parse the graph of an ONNX file into plain values (inputs, weights, nodes), without the `onnx` package.

Protocol buffers are ambiguous (a repeated field may be merged, unknown fields are skipped), so two readers may see
different graphs in one file. Anything that could be read in two ways is therefore refused here.
Field numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from sightline.errors import ModelError
from sightline.inference.safety import onnx_file
from sightline.inference.safety.onnx_types import (
    FLOAT,
    INT32,
    INT64,
    SIZES,
    Attribute,
    Node,
    OnnxGraph,
    TensorType,
    Weight,
)

OPSET = 17
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VALUES = 64  # limit for integer weights that are read: shapes, paddings and sizes are short
_MAX_AXES = 8


def parse_graph(data: bytes) -> OnnxGraph:
    """Parse the graph of an ONNX file; raises `ModelError` for anything that Sightline does not write."""
    onnx_file.check_graph(data)
    model = _Message(data, 0, len(data), repeated={8, 14})
    opsets = [(op.text(1), op.integer(2)) for op in model.messages(8)]
    if [version for domain, version in opsets if domain in {"", "ai.onnx"}] != [OPSET] or len(opsets) != 1:
        raise ModelError(f"it uses the operator sets {opsets}, expected {OPSET} of ONNX alone")
    graph = next(model.messages(7, repeated={1, 5, 11, 12}))
    weights: dict[str, Weight] = {}
    for message in graph.messages(5, repeated={1, 4, 5, 7}):
        name = message.text(8)
        if not name or name in weights:
            raise ModelError(f"it has two weights named {name!r}, or one without a name")
        weights[name] = _read_weight(message, name)
    nodes = tuple(_read_node(message) for message in graph.messages(1, repeated={1, 2, 5}))
    return OnnxGraph(_read_value_types(graph, 11), _read_value_types(graph, 12), weights, nodes)


class _Message:
    """A message of a protocol buffer: the offsets of the value of each field, by field number."""

    def __init__(self, data: bytes, start: int, end: int, *, repeated: set[int] | frozenset[int] = frozenset()) -> None:
        self.data = data
        self.offsets: dict[int, list[tuple[int, int, int]]] = {}
        for number, kind, a, b in onnx_file.iterate_fields(data, start, end):
            self.offsets.setdefault(number, []).append((kind, a, b))
        for number, places in self.offsets.items():
            if len(places) > 1 and number not in repeated:
                raise ModelError(f"it has the field {number} of a message twice")

    def _iterate_values(self, number: int, kinds: set[int]) -> Iterator[tuple[int, int, int]]:
        for kind, a, b in self.offsets.get(number, ()):
            if kind not in kinds:
                raise ModelError(f"the field {number} of a message has another wire type than in ONNX")
            yield kind, a, b

    def messages(self, number: int, *, repeated: set[int] | frozenset[int] = frozenset()) -> Iterator[_Message]:
        for _, a, b in self._iterate_values(number, {_BYTES}):
            yield _Message(self.data, a, b, repeated=repeated)

    def texts(self, number: int) -> tuple[str, ...]:
        return tuple(onnx_file.decode_text(self.data[a:b]) for _, a, b in self._iterate_values(number, {_BYTES}))

    def text(self, number: int) -> str:
        return next(iter(self.texts(number)), "")

    def raw(self, number: int) -> tuple[int, int] | None:
        return next(((a, b) for _, a, b in self._iterate_values(number, {_BYTES})), None)

    def integers(self, number: int, max_length: int | None = None) -> tuple[int, ...]:
        """Return signed integers, packed or not."""
        values: list[int] = []
        for _, a, b in self._iterate_values(number, {_VARINT, _BYTES}):  # a single value is a run of length one
            offset = a
            while offset < b:
                value, offset = onnx_file.read_varint(self.data, offset, b)
                value &= (1 << 64) - 1
                values.append(value - (1 << 64) if value >> 63 else value)
                if max_length is not None and len(values) > max_length:
                    raise ModelError(
                        f"it has a list of more than {max_length} numbers, longer than any that Sightline writes"
                    )
        return tuple(values)

    def integer(self, number: int) -> int:
        return next(iter(self.integers(number, 1)), 0)


def _read_value_types(graph: _Message, number: int) -> dict[str, TensorType]:
    """Return the graph's inputs or outputs."""
    values: dict[str, TensorType] = {}
    for message in graph.messages(number):
        kind = next(message.messages(2), None)
        tensor = None if kind is None else next(kind.messages(1), None)
        shape = None if tensor is None else next(tensor.messages(2, repeated={1}), None)
        name = message.text(1)
        if kind is None or tensor is None or shape is None or set(kind.offsets) != {1} or name in values:
            raise ModelError(f"its input or output {name!r} does not state a tensor with a shape, or does so twice")
        axes = tuple(axis.integer(1) if 1 in axis.offsets else -1 for axis in shape.messages(1))
        values[name] = _check_type(TensorType(tensor.integer(1), axes), name, min_size=-1)
    return values


def _check_type(value: TensorType, name: str, min_size: int = 0) -> TensorType:
    if value.element_type not in SIZES:
        raise ModelError(f"{name!r} has elements of type {value.element_type}, which Sightline never writes")
    if len(value.shape) > _MAX_AXES or any(not min_size <= n < 1 << 40 for n in value.shape):
        raise ModelError(f"{name!r} has the shape {list(value.shape)[: _MAX_AXES + 1]}, which is invalid")
    return value


def _read_weight(message: _Message, name: str) -> Weight:
    """Return a constant, verifying that its data matches its shape."""
    value = _check_type(TensorType(message.integer(2), message.integers(1, _MAX_AXES)), name)
    offsets = {number: message.offsets[number] for number in (4, 5, 7, 9) if number in message.offsets}
    if len(offsets) != 1 or value.num_elements < 1 or set(message.offsets) - {1, 2, 4, 5, 7, 8, 9, 12, 14}:
        raise ModelError(f"the weight {name!r} has no data, or more than one copy of it")
    values = None
    raw = message.raw(9)
    if raw:
        length = raw[1] - raw[0]
        count, rest = divmod(length, SIZES[value.element_type])
        if not rest and value.element_type in {INT32, INT64} and value.num_elements == count <= _MAX_VALUES:
            values = struct.unpack_from(f"<{count}{'i' if value.element_type == INT32 else 'q'}", message.data, raw[0])
    elif 4 in offsets:
        count, rest = divmod(sum(b - a for _, a, b in message._iterate_values(4, {_BYTES, _FIXED32})), 4)  # noqa: SLF001  # same module
        rest += value.element_type != FLOAT
    else:
        number = next(iter(offsets))
        values = message.integers(number, 1 << 20)
        count, rest = (
            len(values),
            (value.element_type in {FLOAT, INT64}) if number == 5 else value.element_type != INT64,
        )
    if rest or count != value.num_elements:
        raise ModelError(f"the weight {name!r} has the shape {list(value.shape)} and data of another size")
    return Weight(value, values if value.element_type in {INT32, INT64} else None, raw)


def _read_node(message: _Message) -> Node:
    attributes: dict[str, Attribute] = {}
    for attribute in message.messages(5, repeated={8}):
        name = attribute.text(1)
        if name in attributes:
            raise ModelError(f"an operation has its attribute {name!r} twice")
        attributes[name] = _read_attribute(attribute, name)
    op = message.text(4)
    return Node(op, message.text(3), message.texts(1), message.texts(2), attributes)


def _read_attribute(message: _Message, name: str) -> Attribute:
    """Return the value of the attribute's type; a zero may be omitted."""
    kind, present_fields = message.integer(20), set(message.offsets) - {1, 13, 20}
    number = {1: 2, 2: 3, 3: 4, 7: 8}.get(kind)  # float, integer, text, integers
    if number is None or not present_fields <= {number}:
        raise ModelError(f"an operation has the attribute {name!r} of a type that Sightline never writes")
    if kind == 2:
        return message.integer(number)
    if kind == 7:
        return message.integers(number, _MAX_VALUES)
    if kind == 3:
        place = message.raw(number)
        return b"" if place is None else message.data[place[0] : place[1]]
    offsets = message.offsets.get(number)
    if offsets is None:
        return 0.0
    if offsets[0][0] != _FIXED32:
        raise ModelError(f"the attribute {name!r} of an operation is not a float")
    return float(struct.unpack_from("<f", message.data, offsets[0][1])[0])
