"""An operation of an ONNX graph for shape rules: inputs, attributes, shapes, and messages that name it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sightline.errors import ModelError
from sightline.inference.safety.onnx_types import FLOAT, INT64, Node, TensorType, Weight

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class InferredOutputs:
    """The `outputs` of an operation, its `cost` in multiply-adds of a dense product, and its `workspace` in bytes."""

    outputs: tuple[TensorType, ...]
    cost: float
    workspace: int = 0


@dataclass(frozen=True, slots=True)
class NodeCall:
    """A node with the types of its inputs, and the values of inputs that are weights."""

    node: Node
    types: tuple[TensorType, ...]
    weights: tuple[Weight | None, ...]

    @property
    def first_shape(self) -> Shape:
        """The shape of the first input."""
        return self.types[0].shape

    def make_error(self, reason: str) -> ModelError:
        """Return the error for this node."""
        return ModelError(f"its operation {self.node.name or self.node.op!r} ({self.node.op}) {reason}")

    def check(self, condition: bool, reason: str) -> None:  # noqa: FBT001  # reads as an assertion
        """Raise `ModelError` for `reason` unless `condition` is true."""
        if not condition:
            raise self.make_error(reason)

    def get_integer(self, name: str, default: int) -> int:
        """Return an integer attribute."""
        value = self.node.attributes.get(name, default)
        self.check(isinstance(value, int), f"has an attribute {name!r} that is not an integer")
        return int(value)  # type: ignore[arg-type]  # checked

    def get_integers(self, name: str, default: Sequence[int], minimum: int) -> Shape:
        """Return a list attribute of known length, each integer at least `minimum` and at most 65,536."""
        value = self.node.attributes.get(name, tuple(default))
        is_valid = (
            isinstance(value, tuple) and len(value) == len(default) and all(minimum <= n <= 1 << 16 for n in value)
        )
        self.check(is_valid, f"has the invalid attribute {name!r}: {value!r}")
        return value  # type: ignore[return-value]  # checked

    def get_axis(self, default: int | None = None, *, past_end: bool = False) -> int:
        """Return the attribute ``axis``, counted from the front."""
        rank = len(self.first_shape)
        axis = self.get_integer("axis", rank if default is None else default)
        axis += rank if axis < 0 else 0
        self.check(0 <= axis < rank + past_end, f"has an axis that its input of shape {list(self.first_shape)} lacks")
        return axis

    def get_constant(self, index: int) -> Shape:
        """Return the integers of an input that must be a weight, such as a shape or paddings."""
        weight = self.weights[index] if index < len(self.weights) else None
        if weight is None or weight.values is None or weight.type.element_type != INT64 or len(weight.type.shape) != 1:
            raise self.make_error(
                "depends on numbers that are not constants in the file, so its shape cannot be inferred"
            )
        return weight.values


Rule = Callable[[NodeCall], InferredOutputs]


@dataclass(frozen=True, slots=True)
class OperationRule:
    """How a type of operation is checked: its rule, its attributes, and the number and types of its inputs.

    `element_types` are those of the first input; the others have the same type unless `is_mixed`.
    """

    rule: Rule
    attributes: Mapping[str, int | float | bytes | None] = field(default_factory=dict)
    inputs: tuple[int, int] = (1, 1)
    element_types: frozenset[int] = frozenset({FLOAT})
    is_mixed: bool = False
