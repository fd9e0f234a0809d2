"""Layers that change shapes: flattening, padding, cropping, transposing, upsampling."""

from __future__ import annotations

import math
from collections.abc import MutableMapping, Sequence
from typing import Any

import numpy as np

from sightline import backend
from sightline.errors import ModelError
from sightline.models.layers.graph_builder import GraphBuilder, GraphValue
from sightline.models.layers.layer_type import ChannelFlow, LayerType, Shape, Window, format_sizes, register_layer


@register_layer("Flatten")
class Flatten(LayerType):
    """All values of an image in one row."""

    channels = "repeat"

    def format_output(self, layer: Any, inputs: Sequence[Shape], output: Shape) -> str:
        """Return the product of the sides."""
        return f"{'·'.join(map(str, inputs[0]))} = {output[0]:,}" if len(inputs[0]) > 1 else ""

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> GraphValue:
        """Add a Flatten."""
        value: GraphValue = arguments[0]
        layout = value.layout if value.shape[:2] == (1, 1) else "nhwc"  # 1x1 maps have the same order in both layouts
        output = graph.add_node("Flatten", [graph.get_name(value, layout)], name, axis=1)
        return graph.make_value(output, (math.prod(value.shape),))


@register_layer("Reshape")
class Reshape(LayerType):
    """The same values in another shape."""

    rearranges = True

    def get_channel_flow(self, layer: Any, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> ChannelFlow:
        """Return "keep" between a vector and 1x1 maps of as many channels."""
        return "keep" if math.prod(inputs[0]) == inputs[0][-1] == outputs[0][-1] else "mix"

    def set_channels(self, config: MutableMapping[str, Any], count: int, old_count: int) -> None:
        """Change the last side of the target if it is the number of channels."""
        *sides, last = config["target_shape"]
        config["target_shape"] = (*sides, count if last == old_count else last)

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> GraphValue:
        """Add a Reshape."""
        value: GraphValue = arguments[0]
        shape = tuple(layer.compute_output_shape((None, *value.shape))[1:])
        is_1x1 = len(shape) == 3 and shape[:2] == (1, 1)
        target = (-1, shape[2], 1, 1) if is_1x1 else (-1, *shape)
        shape_input = graph.add_weight(f"{name}:shape", np.array(target, np.int64))
        output = graph.add_node("Reshape", [graph.get_name(value), shape_input], name)
        return graph.make_value(output, shape, "nchw" if is_1x1 else "nhwc")


@register_layer("Permute")
class Permute(LayerType):
    """The axes in another order."""

    rearranges = True

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> GraphValue:
        """Add a Transpose."""
        value: GraphValue = arguments[0]
        output = graph.add_node("Transpose", [graph.get_name(value)], name, perm=[0, *layer.dims])
        return graph.make_value(output, tuple(value.shape[axis - 1] for axis in layer.dims))


class _Border(LayerType):
    channels = "keep"
    sign = ""
    border = ""  # attribute of the layer with the number of pixels at the start and end of each axis

    def format_output(self, layer: Any, inputs: Sequence[Shape], output: Shape) -> str:
        """Return the sum or the difference of the sides and the border."""
        if len(inputs[0]) != 3:
            return ""
        border = enumerate(getattr(layer, self.border))
        return format_sizes([f"{inputs[0][i]} {self.sign} {a} {self.sign} {b} = {output[i]}" for i, (a, b) in border])


@register_layer("ZeroPadding2D")
class ZeroPadding2D(_Border):
    """Feature maps with a border of zeros."""

    sign = "+"
    border = "padding"

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> GraphValue:
        """Add a Pad."""
        value: GraphValue = arguments[0]
        (top, bottom), (left, right) = layer.padding
        sizes = graph.add_weight(f"{name}:sizes", np.array([0, 0, top, left, 0, 0, bottom, right], np.int64))
        shape = (value.shape[0] + top + bottom, value.shape[1] + left + right, value.shape[2])
        return graph.make_value(graph.add_node("Pad", [graph.get_name(value, "nchw"), sizes], name), shape, "nchw")


@register_layer("ZeroPadding1D")
class ZeroPadding1D(LayerType):
    """A sequence [L, D] with zeros at its ends."""

    kind = "zero padding"

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> GraphValue:
        """Add a Pad."""
        value: GraphValue = arguments[0]
        before, after = layer.padding
        sizes = graph.add_weight(f"{name}:sizes", np.array([0, before, 0, 0, after, 0], np.int64))
        shape = (value.shape[0] + before + after, *value.shape[1:])
        return graph.make_value(graph.add_node("Pad", [graph.get_name(value), sizes], name), shape)


@register_layer("Cropping2D")
class Cropping2D(_Border):
    """Feature maps without their border."""

    sign = "-"
    border = "cropping"

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> GraphValue:
        """Add a Slice."""
        value: GraphValue = arguments[0]
        (top, bottom), (left, right) = layer.cropping
        height, width = value.shape[:2]
        ends = {"starts": [top, left], "ends": [height - bottom, width - right], "axes": [2, 3]}
        limits = [graph.add_weight(f"{name}:{what}", np.array(numbers, np.int64)) for what, numbers in ends.items()]
        shape = (height - top - bottom, width - left - right, value.shape[2])
        output = graph.add_node("Slice", [graph.get_name(value, "nchw"), *limits], name)
        return graph.make_value(output, shape, "nchw")


@register_layer("UpSampling2D")
class UpSampling2D(LayerType):
    """Feature maps enlarged by whole factors; every interpolation of Keras is a product with a matrix for each axis."""

    kind = "upsampling"
    channels = "keep"

    def get_window(self, layer: Any) -> Window:
        """Return the window of input values that an output value is interpolated from."""
        reach = {"nearest": 1, "bilinear": 2, "bicubic": 4}.get(layer.interpolation, 6)
        return Window((reach, reach), tuple(layer.size), (reach, reach), layer.interpolation, upsamples=True)

    def format_output(self, layer: Any, inputs: Sequence[Shape], output: Shape) -> str:
        """Return the products of the sides and the factors."""
        return format_sizes([f"{inputs[0][i]}·{factor} = {output[i]}" for i, factor in enumerate(layer.size)])

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> GraphValue:
        """Add a MatMul for each axis."""
        value: GraphValue = arguments[0]
        if getattr(layer, "data_format", "channels_last") != "channels_last":
            raise ModelError(f"{layer.name}: upsampling of channels-first maps cannot be exported to ONNX.")
        output = graph.get_name(value, "nchw")
        for axis in (1, 0):
            matrix = graph.add_weight(f"{name}:matrix{axis}", _read_matrix(layer, value.shape[axis], axis))
            output = graph.add_node("MatMul", [output, matrix], f"{name}:product{axis}")  # along the last axis
            output = graph.add_node("Transpose", [output], f"{name}:{axis}" if axis else name, perm=[0, 1, 3, 2])
        shape = (value.shape[0] * layer.size[0], value.shape[1] * layer.size[1], value.shape[2])
        return graph.make_value(output, shape, "nchw")


def _read_matrix(layer: Any, size: int, axis: int) -> Any:
    """Return the result of a layer for unit vectors along an axis: float32 [size, size * factor]."""
    keras = backend.keras()
    units = np.eye(size, dtype=np.float32).reshape((size, size, 1, 1) if axis == 0 else (size, 1, size, 1))
    factors = (layer.size[0], 1) if axis == 0 else (1, layer.size[1])
    enlarge = keras.layers.UpSampling2D(factors, interpolation=layer.interpolation, data_format="channels_last")
    return keras.ops.convert_to_numpy(enlarge(units)).reshape(size, -1).astype(np.float32)
