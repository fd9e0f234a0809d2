"""The parts of an ONNX graph as declared in the file, and the types of its values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

FLOAT, UINT8, INT8, INT32, INT64, FLOAT16, BFLOAT16 = 1, 2, 3, 6, 7, 10, 16
SIZES: Mapping[int, int] = {FLOAT: 4, UINT8: 1, INT8: 1, INT32: 4, INT64: 8, FLOAT16: 2, BFLOAT16: 2}
"""Bytes per element of each type that Sightline writes."""

Attribute = int | float | bytes | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorType:
    """The element type (as numbered by ONNX) and the shape of a value; an unknown batch size is -1."""

    element_type: int
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """The size in bytes."""
        return self.num_elements * SIZES[self.element_type]


@dataclass(frozen=True, slots=True)
class Weight:
    """A constant of the graph; `values` are set only for short integer lists, which shapes may depend on.

    `place` is the start and end of its little-endian elements in the file, if they are stored as plain bytes.
    """

    type: TensorType
    values: tuple[int, ...] | None
    place: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """An operation; the name of an omitted input is ""."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """A graph as stated in the file; `inputs` and `outputs` by name."""

    inputs: Mapping[str, TensorType]
    outputs: Mapping[str, TensorType]
    weights: Mapping[str, Weight]
    nodes: tuple[Node, ...]
