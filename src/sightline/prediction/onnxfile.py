"""The outside of an ONNX file: its metadata, its hash, what its nodes are; read without the `onnx` package.

A file is a protocol buffer: fields, each a number, a kind and a value
(https://protobuf.dev/programming-guides/encoding). Of its message ModelProto, field 7 is the graph and field 14 holds
the metadata; weights lie inside the graph.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

from sightline.errors import ModelError

_GRAPH, _METADATA = 7, 14  # of ModelProto
_NODE = 1  # of GraphProto
_OP_TYPE, _DOMAIN = 4, 7  # of NodeProto

OPERATIONS = frozenset(
    {
        "Add", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Conv", "DequantizeLinear", "Div",
        "Erf", "Flatten", "Gather", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish",
        "Identity", "LayerNormalization", "MatMul", "Max", "MaxPool", "Mul", "Pad", "Pow", "QuantizeLinear", "Relu",
        "Reshape", "Sigmoid", "Slice", "Softmax", "Split", "Tanh", "Transpose",
    }
)  # fmt: skip
"""What our own files are made of. Nothing else is loaded: no loops, no functions, no operations of other makers."""


def metadata(data: bytes) -> dict[str, str]:
    """Return the metadata of an ONNX file; raises `ModelError` if it is none, or ends too early."""
    found = {}
    for number, start, end in _fields(data, 0, len(data)):
        if number == _METADATA:
            entry = {n: data[a:b] for n, a, b in _fields(data, start, end)}
            found[_text(entry.get(1, b""))] = _text(entry.get(2, b""))
    return found


def with_metadata(data: bytes, values: Mapping[str, str]) -> bytes:
    """Return the file with `values` as its whole metadata; every other byte stays."""
    parts, last = [], 0
    for number, start, end in _fields(data, 0, len(data)):
        if number != _METADATA:
            parts.append(data[last:end])
        last = end
        del start
    for key, value in values.items():
        entry = _field(1, key.encode()) + _field(2, value.encode())
        parts.append(_field(_METADATA, entry))
    return b"".join(parts)


def graph_sha256(data: bytes) -> str:
    """Return the hash of the graph, weights included and metadata not."""
    start, end = _graph(data)
    return hashlib.sha256(memoryview(data)[start:end]).hexdigest()


def check_graph(data: bytes) -> None:
    """Raise `ModelError` if the graph holds an operation that is not ours, or keeps weights in other files."""
    start, end = _graph(data)
    for number, a, b in _fields(data, start, end):
        if number != _NODE:
            continue
        node = {n: data[x:y] for n, x, y in _fields(data, a, b) if n in {_OP_TYPE, _DOMAIN}}
        name, domain = _text(node.get(_OP_TYPE, b"")), _text(node.get(_DOMAIN, b""))
        if domain not in {"", "ai.onnx"} or name not in OPERATIONS:
            raise ModelError(f"the graph has the operation {name!r} of {domain or 'ONNX'}, which none of ours has")
    if b"\x0a\x08location\x12" in data:  # the first entry of a weight's "external data"
        raise ModelError("the graph keeps weights in other files, which none of ours does")


def _graph(data: bytes) -> tuple[int, int]:
    for number, start, end in _fields(data, 0, len(data)):
        if number == _GRAPH:
            return start, end
    raise ModelError("it holds no graph")


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (number, start, end) of the value of each field; numbers that are no messages are passed over."""
    while at < end:
        key, at = _varint(data, at, end)
        kind = key & 7
        if kind == 2:
            length, at = _varint(data, at, end)
        elif kind == 0:
            _, after = _varint(data, at, end)
            length = after - at
        elif kind in {1, 5}:
            length = 8 if kind == 1 else 4
        else:
            raise ModelError("it is no ONNX file")
        if length > end - at:
            raise ModelError("it ends too early")
        yield key >> 3, at, at + length
        at += length


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise ModelError("it ends too early" if at >= end else "it is no ONNX file")


def _field(number: int, value: bytes) -> bytes:
    return _number(number << 3 | 2) + _number(len(value)) + value


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise ModelError("it is no ONNX file") from error
