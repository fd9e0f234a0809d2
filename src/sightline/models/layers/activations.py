"""Activation functions, as separate layers and built into other layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from sightline.errors import ModelError
from sightline.models.layers.graph_builder import GraphBuilder, GraphValue, to_array
from sightline.models.layers.layer_type import Axis, LayerType, Role, register_layer

Activate = Callable[[GraphBuilder, GraphValue, str], GraphValue]


def _apply(op: str, **attributes: Any) -> Activate:
    return lambda graph, value, name: graph.apply(op, value, name, **attributes)


def _clip(low: float, high: float | None) -> Activate:
    def activate(graph: GraphBuilder, value: GraphValue, name: str) -> GraphValue:
        limits = [graph.add_scalar(f"{name}:low", low)] + (
            [graph.add_scalar(f"{name}:high", high)] if high is not None else []
        )
        return graph.apply("Clip", value, name, *limits)

    return activate


def _silu(graph: GraphBuilder, value: GraphValue, name: str) -> GraphValue:
    factor = graph.apply("Sigmoid", value, f"{name}:sigmoid")
    return graph.apply("Mul", value, name, factor.names[factor.layout])


def _gelu(graph: GraphBuilder, value: GraphValue, name: str) -> GraphValue:
    """Add the exact function, computed with the error function."""
    scaled = graph.apply("Div", value, f"{name}:shrunk", graph.add_scalar(f"{name}:root2", math.sqrt(2)))
    erf = graph.apply("Erf", scaled, f"{name}:erf")
    erf = graph.apply("Add", erf, f"{name}:raised", graph.add_scalar(f"{name}:one", 1))
    product = graph.apply("Mul", value, f"{name}:whole", erf.names[erf.layout])
    return graph.apply("Mul", product, name, graph.add_scalar(f"{name}:half", 0.5))


def _mish(graph: GraphBuilder, value: GraphValue, name: str) -> GraphValue:
    gate = graph.apply("Tanh", graph.apply("Softplus", value, f"{name}:softplus"), f"{name}:tanh")
    return graph.apply("Mul", value, name, gate.names[gate.layout])


ACTIVATIONS: dict[str, Activate] = {
    "elu": _apply("Elu"),
    "gelu": _gelu,
    "hard_sigmoid": _apply("HardSigmoid", alpha=1 / 6, beta=0.5),
    "hard_silu": _apply("HardSwish"),
    "leaky_relu": _apply("LeakyRelu", alpha=0.2),
    "linear": lambda _graph, value, _name: value,
    "mish": _mish,
    "relu": _apply("Relu"),
    "relu6": _clip(0, 6),
    "selu": _apply("Selu"),
    "sigmoid": _apply("Sigmoid"),
    "silu": _silu,
    "softplus": _apply("Softplus"),
    "tanh": _apply("Tanh"),
}
"""Keras' activation functions by name, with their default options."""


def apply_activation(graph: GraphBuilder, value: GraphValue, activation: str, name: str) -> GraphValue:
    """Add a Keras activation to the graph; raises `ModelError` if it is not one of `ACTIVATIONS`."""
    if activation == "softmax":
        return _apply_softmax(graph, value, -1, name)
    if activation not in ACTIVATIONS:
        raise ModelError(f"{name}: the activation {activation!r} cannot be exported to ONNX.")
    return ACTIVATIONS[activation](graph, value, name)


def apply_layer_activation(graph: GraphBuilder, layer: Any, value: GraphValue, name: str) -> GraphValue:
    """Apply the activation that is built into a layer."""
    activation = layer.activation.__name__
    return apply_activation(graph, value, activation, f"{name}:{activation}")


def _apply_softmax(graph: GraphBuilder, value: GraphValue, axis: int, name: str) -> GraphValue:
    return graph.derive(value, graph.add_node("Softmax", [graph.get_name(value)], name, axis=axis), layout="nhwc")


class _Elementwise(LayerType):
    role = "activation"
    channels = "keep"


@register_layer("Activation")
class Activation(_Elementwise):
    """A layer that applies a function by name."""

    def get_kind(self, layer: Any) -> str:
        """Return the name of the function."""
        return str(layer.activation.__name__)

    def get_role(self, layer: Any) -> Role:
        """Return the role of the function; the identity is not shown."""
        roles: dict[str, Role] = {"linear": "", "softmax": "softmax"}
        return roles.get(self.get_kind(layer), "activation")

    def get_activation(self, layer: Any) -> None:
        """Return None: the function is the layer itself, not built into it."""

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> GraphValue:
        """Add the function."""
        return apply_activation(graph, arguments[0], layer.activation.__name__, name)


@register_layer("Softmax")
class Softmax(LayerType):
    """Softmax over one axis, the channels by default."""

    role = "softmax"

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> GraphValue:
        """Add a Softmax."""
        if not isinstance(layer.axis, int):
            raise ModelError(f"{layer.name}: a softmax over several axes cannot be exported to ONNX.")
        return _apply_softmax(graph, arguments[0], layer.axis, name)


@register_layer("ReLU")
class ReLU(_Elementwise):
    """max(x, 0), with an optional maximum or slope."""

    kind = "relu"

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> GraphValue:
        """Add a Relu, a Clip or a LeakyRelu."""
        slope, limit = float(layer.negative_slope or 0), layer.max_value
        if layer.threshold or (slope and limit is not None):
            raise ModelError(
                f"{layer.name}: ReLU with a threshold, or with a slope and a maximum, cannot be exported to ONNX."
            )
        if slope:
            return graph.apply("LeakyRelu", arguments[0], name, alpha=slope)
        return (_apply("Relu") if limit is None else _clip(0, float(limit)))(graph, arguments[0], name)


@register_layer("LeakyReLU")
class LeakyReLU(_Elementwise):
    """x if x > 0, else a small multiple of x."""

    kind = "leaky relu"

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> GraphValue:
        """Add a LeakyRelu."""
        return graph.apply("LeakyRelu", arguments[0], name, alpha=float(layer.negative_slope))


@register_layer("ELU")
class ELU(_Elementwise):
    """x if x > 0, else alpha * (exp(x) - 1)."""

    kind = "elu"

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> GraphValue:
        """Add an Elu."""
        return graph.apply("Elu", arguments[0], name, alpha=float(layer.alpha))


@register_layer("PReLU")
class PReLU(_Elementwise):
    """x if x > 0, else a learned multiple of x."""

    kind = "prelu"

    def get_axes(self, weight: Any) -> tuple[Axis, ...] | None:
        """Return the axes of the slopes, the last of which runs over channels unless they are shared."""
        shape, shared = tuple(weight.shape), list[Axis]([""])
        return (*shared * (len(shape) - 1), "out") if shape[-1] > 1 else None

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> GraphValue:
        """Add a PRelu."""
        value: GraphValue = arguments[0]
        slopes = graph.align_channels(to_array(layer.alpha), value)
        return graph.apply("PRelu", value, name, graph.add_weight(f"{name}:slopes", slopes))


_OPERATIONS = {"Relu": "relu", "Relu6": "relu6", "Sigmoid": "sigmoid", "Silu": "silu", "Tanh": "tanh"}


@register_layer(*_OPERATIONS)
class ActivationOperation(_Elementwise):
    """A function of `keras.ops`."""

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> GraphValue:
        """Add the function."""
        return apply_activation(graph, arguments[0], _OPERATIONS[type(layer).__name__], name)
