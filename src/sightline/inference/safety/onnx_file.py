"""Metadata, hash and allowed operations of an ONNX file, without the `onnx` package.

A file is a protocol buffer: fields, each with a number, a wire type and a value
(https://protobuf.dev/programming-guides/encoding). In its message ModelProto, field 7 is the graph, weights included,
and field 14 the metadata.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

from sightline.errors import ModelError
from sightline.inference.safety.onnx_shapes import OPERATION_RULES

_GRAPH, _METADATA = 7, 14  # fields of ModelProto
_MODEL_FIELDS = frozenset({1, 2, 3, 4, 5, 6, _GRAPH, 8, _METADATA})  # no functions, no training
_NODE, _WEIGHT, _OUTPUT = 1, 5, 12  # fields of GraphProto
_GRAPH_FIELDS = frozenset({_NODE, 2, _WEIGHT, 10, 11, 12, 13, 14, 16})  # no sparse weights
_OP_TYPE, _ATTRIBUTE, _DOMAIN = 4, 5, 7  # fields of NodeProto
_TENSOR, _TENSORS = 5, 10  # fields of AttributeProto
_SUBGRAPHS = frozenset({6, 11, 22, 23})  # and sparse tensors
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # fields of TensorProto; the location is 0 without external data
_BYTES = 2  # wire type of length-delimited fields: text, messages, packed numbers

ALLOWED_OPERATIONS = frozenset(OPERATION_RULES)
"""The operations that Sightline writes, each with a rule; no loops, functions or custom operations are loaded.

The list is closed: the layer types that other packages register must be written with these operations.
"""


def read_metadata(data: bytes) -> dict[str, str]:
    """Return the metadata of an ONNX file; raises `ModelError` if it is not one or is truncated."""
    entries = {}
    for number, kind, start, end in iterate_fields(data, 0, len(data)):
        if number == _METADATA and kind == _BYTES:
            entry = {n: data[a:b] for n, k, a, b in iterate_fields(data, start, end) if k == _BYTES}
            entries[decode_text(entry.get(1, b""))] = decode_text(entry.get(2, b""))
    return entries


def replace_metadata(data: bytes, values: Mapping[str, str]) -> bytes:
    """Return the file with its metadata replaced by `values`; every other byte stays unchanged."""
    chunks, last = [], 0
    for number, _, _, end in iterate_fields(data, 0, len(data)):
        if number != _METADATA:
            chunks.append(data[last:end])
        last = end
    for key, value in values.items():
        entry = _encode_field(1, key.encode()) + _encode_field(2, value.encode())
        chunks.append(_encode_field(_METADATA, entry))
    return b"".join(chunks)


def add_output(data: bytes, name: str) -> bytes:
    """Return the file with the value `name` of its graph as an additional output, for a session of our own."""
    output = _encode_field(_OUTPUT, _encode_field(1, name.encode()))
    chunks, last = [], 0
    for number, _, start, end in iterate_fields(data, 0, len(data)):
        chunks.append(_encode_field(_GRAPH, data[start:end] + output) if number == _GRAPH else data[last:end])
        last = end
    return b"".join(chunks)


def hash_graph(data: bytes) -> str:
    """Return the sha256 of the graph, with weights and without metadata."""
    start, end = _find_graph(data)
    return hashlib.sha256(memoryview(data)[start:end]).hexdigest()


def check_graph(data: bytes) -> None:
    """Raise `ModelError` if the file has an operation outside `ALLOWED_OPERATIONS`, or weights in other files.

    Protocol buffer readers skip unknown fields and merge repeated ones, so the same bytes can mean different things to
    two readers. Here every field must be one that Sightline writes, with the right wire type.
    """
    for number, _, _, _ in iterate_fields(data, 0, len(data)):
        if number not in _MODEL_FIELDS:
            raise ModelError(f"it has the field {number} of an ONNX file, which Sightline never writes")
    for number, kind, start, end in iterate_fields(data, *_find_graph(data)):
        if number not in _GRAPH_FIELDS or kind != _BYTES:
            raise ModelError(f"its graph has the field {number}, which Sightline never writes")
        if number == _NODE:
            _check_node(data, start, end)
        elif number == _WEIGHT:
            _check_tensor(data, start, end)


def _check_node(data: bytes, start: int, end: int) -> None:
    name = domain = ""
    for number, kind, a, b in iterate_fields(data, start, end):
        if kind != _BYTES:
            raise ModelError("it is not an ONNX file")
        if number == _OP_TYPE:
            name = decode_text(data[a:b])
        elif number == _DOMAIN:
            domain = decode_text(data[a:b])
        elif number == _ATTRIBUTE:
            _check_attribute(data, a, b)
    if domain not in {"", "ai.onnx"} or name not in ALLOWED_OPERATIONS:
        raise ModelError(
            f"the graph has the operation {name!r} of {domain or 'ONNX'}, which is not one that Sightline loads"
        )


def _check_attribute(data: bytes, start: int, end: int) -> None:
    for number, kind, a, b in iterate_fields(data, start, end):
        if number in _SUBGRAPHS:
            raise ModelError("an operation has a subgraph, which Sightline never writes")
        if number in {_TENSOR, _TENSORS} and kind == _BYTES:
            _check_tensor(data, a, b)


def _check_tensor(data: bytes, start: int, end: int) -> None:
    for number, _, a, b in iterate_fields(data, start, end):
        if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and data[a:b] != b"\0"):
            raise ModelError("the graph has weights in other files, which Sightline never writes")


def _find_graph(data: bytes) -> tuple[int, int]:
    """Return the start and end of the graph; there must be exactly one, as a runtime would merge two."""
    graphs = [(kind, start, end) for number, kind, start, end in iterate_fields(data, 0, len(data)) if number == _GRAPH]
    if len(graphs) != 1 or graphs[0][0] != _BYTES:
        raise ModelError(f"it contains {len(graphs) or 'no'} graph{'s' if len(graphs) > 1 else ''}, expected one")
    return graphs[0][1:]


def iterate_fields(data: bytes, offset: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield the number and wire type of each field, and the start and end of its value."""
    while offset < end:
        key, offset = read_varint(data, offset, end)
        wire_type = key & 7
        if wire_type == _BYTES:
            length, offset = read_varint(data, offset, end)
        elif wire_type == 0:
            _, after = read_varint(data, offset, end)
            length = after - offset
        elif wire_type in {1, 5}:
            length = 8 if wire_type == 1 else 4
        else:
            raise ModelError("it is not an ONNX file")
        if key >> 32:  # other readers would drop the high bits, and read another number
            raise ModelError("it is not an ONNX file")
        if length > end - offset:
            raise ModelError("it is truncated")
        yield key >> 3, wire_type, offset, offset + length
        offset += length


def read_varint(data: bytes, offset: int, end: int) -> tuple[int, int]:
    """Return the variable-length integer at `offset`, and its end."""
    value = shift = 0
    while offset < end and shift < 64:
        byte = data[offset]
        offset += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, offset
        shift += 7
    raise ModelError("it is truncated" if offset >= end else "it is not an ONNX file")


def _encode_field(number: int, value: bytes) -> bytes:
    return _encode_varint(number << 3 | 2) + _encode_varint(len(value)) + value


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def decode_text(value: bytes) -> str:
    """Return bytes as UTF-8 text."""
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise ModelError("it is not an ONNX file") from error
