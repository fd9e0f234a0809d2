"""Builder for an ONNX graph: values with their layouts, nodes and weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sightline import backend

Layout = Literal["nhwc", "nchw"]  # for 4-D values; all others are "nhwc"
PERMUTATIONS: dict[Layout, list[int]] = {"nchw": [0, 3, 1, 2], "nhwc": [0, 2, 3, 1]}
"""For each layout, the permutation of axes from the other layout."""


@dataclass(frozen=True, slots=True)
class GraphValue:
    """A value of the graph: its name in each layout requested so far, and its Keras `shape` without the batch."""

    names: dict[Layout, str]
    shape: tuple[int, ...]

    @property
    def layout(self) -> Layout:
        """The layout in which the value was created."""
        return next(iter(self.names))


@dataclass(slots=True)
class GraphBuilder:
    """Nodes and weights in order; `helper` is ``onnx.helper``, which creates the protocol buffers."""

    helper: Any
    nodes: list[Any] = field(default_factory=list)
    weights: dict[str, NDArray[Any]] = field(default_factory=dict)

    def make_value(self, name: str, shape: Sequence[int], layout: Layout = "nhwc") -> GraphValue:
        """Return the value named `name`; `layout` only matters for values that are 4-D including the batch."""
        return GraphValue({layout if len(shape) == 3 else "nhwc": name}, tuple(shape))

    def add_node(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add a node with one output, and return their common name."""
        self.nodes.append(self.helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def add_weight(self, name: str, array: Any) -> str:
        """Add a constant and return its name."""
        self.weights[name] = np.ascontiguousarray(array)
        return name

    def add_scalar(self, name: str, number: float) -> str:
        """Add a float32 constant and return its name."""
        return self.add_weight(name, np.float32(number))

    def add_variable(self, name: str, variable: Any) -> str:
        """Add the value of a Keras variable as a float32 constant and return its name."""
        return self.add_weight(name, to_array(variable))

    def align_channels(self, array: NDArray[Any], value: GraphValue) -> NDArray[Any]:
        """Reshape an array that broadcasts over `value` [H, W, C] in Keras for the layout in which `value` was created.

        It is [C], or has as many axes as `value`.
        """
        if value.layout == "nhwc" or array.ndim == 0:
            return array
        return array.reshape(-1, 1, 1) if array.ndim == 1 else array.transpose(2, 0, 1)

    def apply(self, op: str, value: GraphValue, name: str, *inputs: str, **attributes: Any) -> GraphValue:
        """Add a node that keeps the shape of `value` and the layout in which it was created, with more `inputs`."""
        names = [self.get_name(value, value.layout), *inputs]
        return self.derive(value, self.add_node(op, names, name, **attributes))

    def derive(
        self, value: GraphValue, name: str, shape: Sequence[int] | None = None, layout: Layout | None = None
    ) -> GraphValue:
        """Return the value `name`, by default with the shape and layout of `value`."""
        return self.make_value(name, value.shape if shape is None else shape, layout or value.layout)

    def get_name(self, value: GraphValue, layout: Layout = "nhwc") -> str:
        """Return the name of `value` in `layout`; adds a transpose when it is first needed."""
        if len(value.shape) != 3:
            return value.names["nhwc"]
        if layout not in value.names:
            name = f"{value.names[value.layout]}:{layout}"
            value.names[layout] = self.add_node(
                "Transpose", [value.names[value.layout]], name, perm=PERMUTATIONS[layout]
            )
        return value.names[layout]


def to_array(variable: Any) -> NDArray[np.float32]:
    """Return the value of a Keras variable, or an array, as float32."""
    if isinstance(variable, np.ndarray):
        return variable.astype(np.float32)
    array: NDArray[np.float32] = backend.keras().ops.convert_to_numpy(variable).astype(np.float32)
    return array
