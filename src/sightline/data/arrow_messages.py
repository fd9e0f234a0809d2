"""What the messages of an Arrow file declare before anything is decompressed: kinds, rows, and uncompressed sizes.

pyarrow decompresses a whole record batch, to the size that each of its buffers declares. This module reads those sizes
from the metadata of the message, a FlatBuffers table, and from the first 8 bytes of each compressed buffer.
Source: https://arrow.apache.org/docs/format/Columnar.html, format/Message.fbs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sightline.errors import require

DICTIONARY, RECORD_BATCH = 2, 3
_HEADER_KIND, _HEADER = 1, 2  # field numbers in a message
_DICTIONARY_DATA = 1
_ROWS, _BUFFERS, _COMPRESSION = 0, 2, 3
_BUFFER = struct.Struct("<qq")  # offset in the body, length
_UNCOMPRESSED = -1  # stated size of a buffer that is not compressed


@dataclass(frozen=True, slots=True)
class ArrowMessage:
    """A dictionary or a record batch: its `rows`, and if it is compressed, the size of its buffers in memory."""

    message: Any
    is_batch: bool
    rows: int
    uncompressed_bytes: int | None


def read_messages(source: Any, purpose: str) -> tuple[Any, list[ArrowMessage]]:
    """Return the schema message of the stream in a pyarrow file, and the messages after it.

    Raises ValueError for damaged metadata, and whatever pyarrow raises.
    """
    reader = require("pyarrow", purpose).ipc.MessageReader.open_stream(source)
    schema = reader.read_next_message()
    return schema, [_describe(message) for message in _iterate(reader)]


def _iterate(reader: Any) -> Iterator[Any]:
    while True:
        try:
            yield reader.read_next_message()
        except StopIteration:
            return


def _describe(message: Any) -> ArrowMessage:
    try:
        root = _Table.from_root(memoryview(message.metadata))
        kind = root.read("<B", _HEADER_KIND)
        if kind not in {DICTIONARY, RECORD_BATCH}:
            raise ValueError(f"it has a message of kind {kind}")
        batch = root.follow(_HEADER)
        if kind == DICTIONARY:
            batch = batch.follow(_DICTIONARY_DATA)
        size = _sum_sizes(batch, memoryview(message.body)) if batch.has(_COMPRESSION) else None
        return ArrowMessage(message, kind == RECORD_BATCH, batch.read("<q", _ROWS), size)
    except struct.error as error:
        raise ValueError(f"its metadata are damaged: {error}") from error


def _sum_sizes(batch: _Table, body: memoryview) -> int:
    """Return the number of bytes that the buffers of a compressed batch take in memory."""
    total = 0
    for start, length in batch.iterate(_BUFFERS, _BUFFER):
        if not 0 <= start <= start + length <= len(body):
            raise ValueError("it has a buffer outside its message")
        if length:
            (size,) = struct.unpack_from("<q", body, start)
            if size < _UNCOMPRESSED:
                raise ValueError("it states a negative number of bytes")
            total += length if size == _UNCOMPRESSED else size
    return total


@dataclass(frozen=True, slots=True)
class _Table:
    """A FlatBuffers table; raises struct.error if an offset points outside the data."""

    data: memoryview
    position: int

    @classmethod
    def from_root(cls, data: memoryview) -> _Table:
        return cls(data, _unpack("<I", data, 0))

    def _find(self, field: int) -> int:
        """Return the position of a field, 0 if it is absent."""
        vtable = self.position - _unpack("<i", self.data, self.position)
        if 4 + 2 * field >= _unpack("<H", self.data, vtable):
            return 0
        offset = _unpack("<H", self.data, vtable + 4 + 2 * field)
        return self.position + offset if offset else 0

    def has(self, field: int) -> bool:
        return self._find(field) != 0

    def read(self, form: str, field: int) -> int:
        """Return a number, 0 if it is absent."""
        position = self._find(field)
        return _unpack(form, self.data, position) if position else 0

    def follow(self, field: int) -> _Table:
        """Return the table that a field refers to."""
        position = self._find(field)
        if not position:
            raise ValueError("its metadata lack a table")
        return _Table(self.data, position + _unpack("<I", self.data, position))

    def iterate(self, field: int, form: struct.Struct) -> Iterator[tuple[int, ...]]:
        """Yield the elements of a vector of structures."""
        position = self._find(field)
        if position:
            start = position + _unpack("<I", self.data, position)
            for i in range(_unpack("<I", self.data, start)):
                yield form.unpack_from(self.data, _check(start + 4 + i * form.size))


def _unpack(form: str, data: memoryview, position: int) -> int:
    number: int = struct.unpack_from(form, data, _check(position))[0]
    return number


def _check(position: int) -> int:
    if position < 0:  # would count from the end
        raise struct.error("an offset before the data")
    return position
