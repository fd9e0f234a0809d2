"""The description of a type of Keras layer or operation, and the registry of all types.

Export, descriptions, diagrams and pruning look layers up here by class name, and have no other source.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from sightline.errors import ModelError
from sightline.models.layers.graph_builder import GraphBuilder, GraphValue
from sightline.plugins import Registry

Shape = tuple[int, ...]  # without N
Role = Literal[
    "", "input", "convolution", "depthwise", "separable", "dense", "pooling", "normalization", "activation", "dropout",
    "softmax", "merge",
]  # fmt: skip
ChannelFlow = Literal["make", "keep", "repeat", "tie", "join", "split", "mix"]
Axis = Literal["", "in", "out"]


@dataclass(frozen=True, slots=True)
class Window:
    """A sliding window, each field as (rows, columns); `span` is the size including the gaps of dilation.

    If `upsamples`, the output has `strides` times as many positions as the input, and `span` is the number of input
    positions that an output position depends on.
    """

    size: tuple[int, int]
    strides: tuple[int, int]
    span: tuple[int, int]
    padding: str
    upsamples: bool = False


class LayerType:
    """A type of layer; a subclass overrides what differs from an unknown layer.

    An unknown layer is trained and described by its shapes; it costs nothing, its channels are never pruned, and it
    cannot be exported. A layer without weights that keeps the shape of its input needs only `channels` and `convert`.
    """

    kind: ClassVar[str] = ""
    """Its name in descriptions, by default the words of the class name."""
    role: ClassVar[Role] = ""
    """How a diagram shows it: as a box, or as a strip on the previous box; "" is not shown."""
    channels: ClassVar[ChannelFlow] = "mix"
    """How channels flow through it, which decides what can be pruned.

    "make": each output channel depends on all input channels; "keep": on the same input channel; "repeat": the same,
    several times over; "tie": on the same channel of each input; "join": inputs are concatenated; "split": equal parts
    of the input; "mix": anything else, whose channels are never removed.
    """
    axes: ClassVar[Mapping[str, tuple[Axis, ...]]] = {}
    """For each weight, the axes that run over input channels and over output channels."""
    width: ClassVar[str] = ""
    """The name of the argument that sets the number of output channels of a layer that makes channels."""
    multiplies_at: ClassVar[Literal["", "input", "output"]] = ""
    """The positions where the weights named ``...kernel`` are multiplied; "" for a layer without such products."""
    covers_map: ClassVar[bool] = False
    """Whether a single output position depends on all positions of a feature map."""
    rearranges: ClassVar[bool] = False
    """Whether neighbors in its output need not be neighbors in the image."""

    def get_kind(self, layer: Any) -> str:
        """Return the name of `layer` in descriptions: ``max pooling`` for `MaxPooling2D`."""
        words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", re.sub(r"[123]D", "", type(layer).__name__))
        return self.kind or " ".join(words).lower()

    def get_role(self, layer: Any) -> Role:
        """Return how a diagram shows `layer`."""
        return self.role

    def get_activation(self, layer: Any) -> str | None:
        """Return the name of the activation function built into `layer`; None if it has none or it is linear."""
        name = _get_function_name(layer)
        return None if name == "linear" else name

    def get_window(self, layer: Any) -> Window | None:
        """Return the window that slides over the input; None if there is none."""
        return None

    def format_output(self, layer: Any, inputs: Sequence[Shape], output: Shape) -> str:
        """Return the formula of the output size as text; "" if the size does not change."""
        return ""

    def count_multiply_adds(self, layer: Any, inputs: Sequence[Shape], output: Shape) -> int:
        """Return the multiply-adds of the kernels for one image, without biases.

        Normalization, pooling and elementwise operations count as zero, as is usual.
        """
        kernels: list[Shape] = [weight.shape for weight in getattr(layer, "weights", ()) if is_kernel(weight)]
        return self.count_positions(inputs[0] if inputs else (), output) * sum(map(math.prod, kernels))

    def count_positions(self, first: Sequence[int | None], output: Sequence[int | None]) -> int:
        """Return the number of positions where a kernel is multiplied, for shapes of the first input and the output.

        An unknown side counts as 1.
        """
        if not self.multiplies_at:
            return 0
        shape = first if self.multiplies_at == "input" else output
        return math.prod(side or 1 for side in shape[:-1])

    def get_channel_flow(self, layer: Any, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> ChannelFlow:
        """Return how channels flow through `layer` between tensors of these shapes; a built-in softmax mixes them."""
        return "mix" if _get_function_name(layer) == "softmax" else self.channels

    def get_axes(self, weight: Any) -> tuple[Axis, ...] | None:
        """Return what each axis of a weight runs over: input channels, output channels or neither; None if unknown."""
        return self.axes.get(weight.name)

    def set_channels(self, config: MutableMapping[str, Any], count: int, old_count: int) -> None:
        """Change the `config` of a layer to keep `count` of its `old_count` output channels."""
        if self.width:
            config[self.width] = count

    def convert(
        self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str
    ) -> GraphValue | list[GraphValue]:
        """Add `layer` to an ONNX graph (operator set 17) and return its output or outputs.

        `arguments` are the arguments of its call, with values of the graph instead of tensors; `name` is the name of
        the output. Weights are written with their current values. Raises `ModelError` for unsupported options.
        """
        raise ModelError(
            f"The layer {layer.name} ({type(layer).__name__}) cannot be exported to ONNX: use another layer, or "
            "register its type with sightline.register_layer."
        )


LAYER_TYPES: Registry[LayerType] = Registry("layer", noun="layer type")
UNKNOWN = LayerType()
L = TypeVar("L", bound=type[LayerType])


def register_layer(*names: str) -> Callable[[L], L]:
    """Register the decorated subclass of `LayerType` for Keras layers or operations.

    It defines how they are exported, described and pruned. See [Extending](extending.md).

    Args:
        *names: The class names of the layers or operations.

    Returns:
        A decorator, which returns the class unchanged.

    Raises:
        UsageError: If one of the names is already registered.
    """
    for each in names:
        LAYER_TYPES.check_name(each)

    def register(layer_type: L) -> L:
        LAYER_TYPES.check_subclass(layer_type, LayerType)
        for name in names:
            LAYER_TYPES.add(name, layer_type())
        return layer_type

    return register


def get_layer_type(layer: Any) -> LayerType:
    """Return the description of the type of a Keras layer or operation."""
    return LAYER_TYPES.get(type(layer).__name__, UNKNOWN)


def _get_function_name(layer: Any) -> str | None:
    return getattr(getattr(layer, "activation", None), "__name__", None)


def is_kernel(weight: Any) -> bool:
    """Return whether a weight is a matrix or a filter bank, not a scale per channel."""
    return weight.name.endswith("kernel") and len(weight.shape) > 1


def list_values(arguments: Sequence[Any]) -> list[Any]:
    """Return the inputs of a merging layer, whose argument is a list, or of an operation, which has two arguments."""
    return list(arguments[0]) if isinstance(arguments[0], list | tuple) else list(arguments)


def format_sizes(formulas: Sequence[str]) -> str:
    """Return the formulas for rows and columns as one text."""
    rows, columns = formulas
    return rows if rows == columns else f"rows {rows}; columns {columns}"
