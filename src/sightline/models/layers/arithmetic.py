"""Dense layers, layers that merge several inputs, and arithmetic of `keras.ops`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from sightline.errors import ModelError
from sightline.models.layers.activations import apply_layer_activation
from sightline.models.layers.graph_builder import GraphBuilder, GraphValue, to_array
from sightline.models.layers.layer_type import ChannelFlow, LayerType, Shape, list_values, register_layer


@register_layer("InputLayer")
class Input(LayerType):
    """The input of the network."""

    kind = "input"
    role = "input"


@register_layer("Dense")
class Dense(LayerType):
    """A product with a matrix, applied at each position if the input has several."""

    role = "dense"
    channels = "make"
    axes: ClassVar = {"kernel": ("in", "out"), "bias": ("out",)}
    width = "units"
    multiplies_at = "output"
    covers_map = True

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> GraphValue:
        """Add a Gemm, or a MatMul and an Add."""
        value: GraphValue = arguments[0]
        kernel = to_array(layer.kernel)
        inputs = [graph.get_name(value), graph.add_weight(f"{name}:kernel", kernel)]
        if len(value.shape) == 1:
            bias = [graph.add_variable(f"{name}:bias", layer.bias)] if layer.use_bias else []
            output = graph.add_node("Gemm", [*inputs, *bias], name)
        else:
            output = graph.add_node("MatMul", inputs, f"{name}:product" if layer.use_bias else name)
            if layer.use_bias:
                output = graph.add_node("Add", [output, graph.add_variable(f"{name}:bias", layer.bias)], name)
        shape = (*value.shape[:-1], kernel.shape[1])
        return apply_layer_activation(graph, layer, graph.derive(value, output, shape, "nhwc"), name)


@register_layer("Add", "Multiply", "Maximum")
class Merge(LayerType):
    """The sum, the product or the maximum of several values or numbers; axes of size 1 are broadcast."""

    role = "merge"
    channels = "tie"

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> GraphValue:
        """Add an Add, a Mul or a Max for each input after the first."""
        op = {"Add": "Add", "Multiply": "Mul", "Maximum": "Max"}[type(layer).__name__]
        return _merge(graph, op, list_values(arguments), name)


def _merge(graph: GraphBuilder, op: str, values: Sequence[Any], name: str) -> GraphValue:
    largest = max((v for v in values if isinstance(v, GraphValue)), key=lambda v: math.prod(v.shape))
    names = [
        graph.get_name(v, largest.layout) if isinstance(v, GraphValue) else graph.add_scalar(f"{name}:number{i}", v)
        for i, v in enumerate(values)
    ]
    output = names[0]
    for number, other in enumerate(names[1:], 1):
        output = graph.add_node(op, [output, other], name if number == len(names) - 1 else f"{name}:{number}")
    return graph.derive(largest, output)


@register_layer("Average")
class Average(LayerType):
    """The mean of several values."""

    role = "merge"
    channels = "tie"

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> GraphValue:
        """Add the sum and a Mul."""
        values = list_values(arguments)
        total = _merge(graph, "Add", values, f"{name}:sum")
        return graph.apply("Mul", total, name, graph.add_scalar(f"{name}:share", 1 / len(values)))


@register_layer("Subtract")
class Subtract(LayerType):
    """The difference of two values."""

    role = "merge"
    channels = "tie"

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> GraphValue:
        """Add the negative of the second value."""
        first, second = list_values(arguments)
        if isinstance(second, GraphValue):
            second = graph.apply("Mul", second, f"{name}:negative", graph.add_scalar(f"{name}:minus", -1))
        else:
            second = -second
        return _merge(graph, "Add", [first, second], name)


@register_layer("Power")
class Power(LayerType):
    """x to a constant power."""

    channels = "keep"

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> GraphValue:
        """Add a Pow."""
        return graph.apply("Pow", arguments[0], name, graph.add_scalar(f"{name}:exponent", arguments[1]))


@register_layer("Concatenate")
class Concatenate(LayerType):
    """Several values concatenated, usually along the channels."""

    role = "merge"

    def get_channel_flow(self, layer: Any, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> ChannelFlow:
        """Return "join" if the axis is the channels."""
        return "join" if layer.axis in (-1, len(outputs[0])) else "mix"

    def format_output(self, layer: Any, inputs: Sequence[Shape], output: Shape) -> str:
        """Return the sum of the channels."""
        return f"{' + '.join(str(shape[-1]) for shape in inputs)} = {output[-1]}"

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> GraphValue:
        """Add a Concat."""
        values = list_values(arguments)
        if layer.axis not in (-1, len(values[0].shape)):
            raise ModelError(f"{layer.name}: concatenation along the axis {layer.axis} cannot be exported to ONNX.")
        layout = values[0].layout
        inputs = [graph.get_name(v, layout) for v in values]
        shape = (*values[0].shape[:-1], sum(v.shape[-1] for v in values))
        axis = 1 if layout == "nchw" else len(shape)
        return graph.derive(values[0], graph.add_node("Concat", inputs, name, axis=axis), shape)


@register_layer("Split")
class Split(LayerType):
    """Equal parts of the channels."""

    def get_channel_flow(self, layer: Any, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> ChannelFlow:
        """Return "split" for equal parts of the channels."""
        are_equal = all(shape == outputs[0] for shape in outputs)
        return "split" if are_equal and outputs[0][-1] * len(outputs) == inputs[0][-1] else "mix"

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> list[GraphValue]:
        """Add a Split."""
        value: GraphValue = arguments[0]
        count = layer.indices_or_sections
        if not isinstance(count, int) or layer.axis not in (-1, len(value.shape)):
            raise ModelError(
                f"{layer.name}: a split at {count!r} along the axis {layer.axis} cannot be exported to ONNX, only one "
                "of the last axis into a number of equal parts."
            )
        names = [f"{name}:{number}" for number in range(count)]
        width = value.shape[-1] // count
        axis = 1 if value.layout == "nchw" else len(value.shape)
        sizes = graph.add_weight(f"{name}:sizes", np.full(count, width, np.int64))
        inputs = [graph.get_name(value, value.layout), sizes]
        graph.nodes.append(graph.helper.make_node("Split", inputs, names, name=name, axis=axis))
        return [graph.derive(value, output, (*value.shape[:-1], width)) for output in names]


@register_layer("Flip")
class Flip(LayerType):
    """The channels in reverse."""

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> GraphValue:
        """Add a Gather."""
        value: GraphValue = arguments[0]
        if layer.axis not in (-1, len(value.shape)):
            raise ModelError(
                f"{layer.name}: a flip along the axis {layer.axis} cannot be exported to ONNX, only one of the last "
                "axis."
            )
        order = graph.add_weight(f"{name}:order", np.arange(value.shape[-1])[::-1].astype(np.int64))
        return graph.apply("Gather", value, name, order, axis=1 if value.layout == "nchw" else len(value.shape))
