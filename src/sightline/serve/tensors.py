"""The tensors of the Open Inference Protocol, as JSON and as binary data; both directions are pure functions.

Binary data is little-endian, row by row, without padding; each element of a BYTES tensor follows its length, 4 bytes.
Source: KServe's Open Inference Protocol and Triton's binary tensor data extension.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

BYTES = "BYTES"
_DTYPES = {"BOOL": "?", "UINT8": "|u1", "FP32": "<f4", "FP64": "<f8"}
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Tensor:
    """An output: `data` is an array of a numeric `datatype`, or for BYTES a list of strings, row by row."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: NDArray[Any] | Sequence[str]

    @classmethod
    def from_array(cls, name: str, datatype: str, array: NDArray[Any]) -> Tensor:
        """Return a tensor of ``BOOL``, ``UINT8``, ``FP32`` or ``FP64``."""
        return cls(name, datatype, array.shape, array)

    def describe(self) -> dict[str, Any]:
        """Return the fields that JSON and binary outputs share."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}

    def to_json(self) -> list[Any]:
        """Return the elements, row by row."""
        if isinstance(self.data, np.ndarray):
            flat: list[Any] = self.data.ravel().tolist()
            return flat
        return list(self.data)

    def to_binary(self) -> bytes:
        """Return the elements as binary data."""
        if isinstance(self.data, np.ndarray):
            return np.ascontiguousarray(self.data, _DTYPES[self.datatype]).tobytes()
        texts = [text.encode(errors="surrogateescape") for text in self.data]
        return b"".join(chain.from_iterable((_LENGTH.pack(len(text)), text) for text in texts))


def read_shape(spec: Mapping[str, Any], expected: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of an input; raise `ValueError` unless it matches `expected`, where -1 is any number above 0."""
    shape = spec.get("shape")
    is_valid = isinstance(shape, list) and len(shape) == len(expected)
    if not is_valid or any(
        type(size) is not int or size < 1 or limit not in {-1, size}
        for size, limit in zip(shape or (), expected, strict=True)
    ):
        raise ValueError(f"its shape is {_shorten(shape)}, expected {list(expected)}, where -1 is any number above 0")
    return tuple(shape or ())


def read_json_pixels(data: Any, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return UINT8 JSON `data`, flat or nested, as an array of `shape`; raise `ValueError` if it does not fit."""
    flat = _flatten(data, shape)
    if set(map(type, flat)) - {int}:
        raise ValueError("its data has elements that are not integers")
    if len(flat) != math.prod(shape):
        raise ValueError(f"its data has {len(flat)} elements, but its shape has {math.prod(shape)}")
    try:
        return np.frombuffer(bytes(flat), np.uint8).reshape(shape)
    except ValueError:
        raise ValueError("its data has integers outside 0 to 255") from None


def read_binary_pixels(data: memoryview, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return binary UINT8 `data` as an array of `shape`; raise `ValueError` if it does not fit."""
    if len(data) != math.prod(shape):
        raise ValueError(f"its binary data has {len(data)} bytes, but its shape has {math.prod(shape)} elements")
    return np.frombuffer(data, np.uint8).reshape(shape)


def read_json_files(data: Any, count: int) -> list[bytes]:
    """Return the files in `count` JSON strings, each a base64-encoded image; raise `ValueError` for anything else."""
    if not isinstance(data, list) or len(data) != count or not all(isinstance(text, str) for text in data):
        raise ValueError("its data is not as many strings as its shape has elements, each the base64 of an image file")
    return [decode_base64(text, f"element {number} of its data") for number, text in enumerate(data)]


def read_binary_files(data: memoryview, count: int) -> list[bytes]:
    """Return the `count` elements of BYTES data, each preceded by its length; raise `ValueError` for anything else."""
    files, start = [], 0
    for number in range(count):
        if start + _LENGTH.size > len(data):
            raise ValueError(f"its binary data ends before the length of element {number} of {count}")
        (length,) = _LENGTH.unpack_from(data, start)
        start += _LENGTH.size
        if start + length > len(data):
            raise ValueError(f"element {number} of its binary data is cut off: it should have {length} bytes")
        files.append(bytes(data[start : start + length]))
        start += length
    if start != len(data):
        raise ValueError(f"its binary data has {len(data) - start} bytes after the last of {count} elements")
    return files


def decode_base64(text: str, where: str) -> bytes:
    """Decode base64 `text`, with or without a prefix ``data:image/png;base64,``; raise `ValueError` if invalid."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(
            f"{where} is not base64: expected its standard alphabet and padding, without line breaks"
        ) from None


def _flatten(data: Any, shape: tuple[int, ...]) -> list[Any]:
    """Flatten lists that are nested according to `shape`, or less deeply; raise `ValueError` for others."""
    if not isinstance(data, list):
        raise ValueError("its data is not a list")  # noqa: TRY004  # a client's error, not a caller's
    elements: list[Any] = data
    for level in range(1, len(shape)):
        kinds = set(map(type, elements))
        if list not in kinds:
            break
        if kinds != {list}:
            raise ValueError("its data mixes lists and numbers")
        if len(elements) != math.prod(shape[:level]) or len(set(map(len, elements))) > 1:
            raise ValueError(f"its data is nested in a shape other than {list(shape)}")
        elements = list(chain.from_iterable(elements))
    return elements


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."
