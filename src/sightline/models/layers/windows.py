"""Layers with a window that slides over feature maps: convolutions and poolings.

The output size is o = (w - k + 2p) / s + 1, rounded down, for an input of w pixels, a window of k, padding of p pixels
at each end and a stride of s (Dumoulin and Visin, 2016, arXiv:1603.07285). "same" padding, which Keras defines on every
backend as in TensorFlow, gives o = w / s, rounded up, and may add one more pixel at the end than at the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from sightline.errors import ModelError
from sightline.models.layers.activations import apply_layer_activation
from sightline.models.layers.graph_builder import GraphBuilder, GraphValue, to_array
from sightline.models.layers.layer_type import ChannelFlow, LayerType, Shape, Window, format_sizes, register_layer


def compute_output_size(size: int, span: int, stride: int, padding: str) -> tuple[int, str]:
    """Return the number of window positions along a side of `size` pixels, and the formula as text.

    >>> compute_output_size(224, 3, 1, "same")
    (224, '(224 - 3 + 2·1) / 1 + 1 = 224')
    >>> compute_output_size(224, 3, 2, "same")
    (112, '(224 - 3 + 0 + 1) / 2 + 1 = 112')
    >>> compute_output_size(28, 3, 2, "valid")
    (13, '⌊(28 - 3 + 2·0) / 2⌋ + 1 = 13')
    """
    before, after = compute_pads(size, span, stride, padding)
    slack = size - span + before + after
    positions = slack // stride + 1
    padded = f"2·{before}" if before == after else f"{before} + {after}"
    quotient = f"({size} - {span} + {padded}) / {stride}"
    return positions, f"{f'⌊{quotient}⌋' if slack % stride else quotient} + 1 = {positions}"


def compute_pads(size: int, span: int, stride: int, padding: str) -> tuple[int, int]:
    """Return the padding at the start and end of a side; TensorFlow's "same" puts the odd pixel at the end."""
    total = max((-(-size // stride) - 1) * stride + span - size, 0) if padding == "same" else 0
    return total // 2, total - total // 2


def _pair(number: Any) -> tuple[int, int]:
    return (number, number) if isinstance(number, int) else tuple(number)


class _Windowed(LayerType):
    def get_window(self, layer: Any) -> Window:
        """Return the kernel or pooling window."""
        size = _pair(layer.kernel_size if hasattr(layer, "kernel_size") else layer.pool_size)
        dilation = _pair(getattr(layer, "dilation_rate", 1))
        span = (dilation[0] * (size[0] - 1) + 1, dilation[1] * (size[1] - 1) + 1)
        return Window(size, _pair(layer.strides), span, layer.padding)

    def format_output(self, layer: Any, inputs: Sequence[Shape], output: Shape) -> str:
        """Return the formula in the module's docstring."""
        window = self.get_window(layer)
        return format_sizes(
            [compute_output_size(inputs[0][i], window.span[i], window.strides[i], window.padding)[1] for i in (0, 1)]
        )

    def compute_placement(self, layer: Any, value: GraphValue) -> tuple[list[int], list[int]]:
        """Return the padding (top, left, bottom, right), and the output height and width."""
        window = self.get_window(layer)
        sides = list(zip(value.shape[:2], window.span, window.strides, strict=True))
        starts, ends = zip(*(compute_pads(*side, window.padding) for side in sides), strict=True)
        sizes = [compute_output_size(*side, window.padding)[0] for side in sides]
        return [*starts, *ends], sizes


class _Convolution(_Windowed):
    multiplies_at = "output"

    def add_convolution(
        self, graph: GraphBuilder, layer: Any, value: GraphValue, kernel: Any, bias: Any, name: str, groups: int
    ) -> GraphValue:
        """Add a convolution; `kernel` is [out, in / groups, height, width]."""
        pads, sizes = self.compute_placement(layer, value)
        inputs = [graph.get_name(value, "nchw"), graph.add_weight(f"{name}:kernel", kernel)]
        if bias is not None:
            inputs.append(graph.add_variable(f"{name}:bias", bias))
        output = graph.add_node(
            "Conv", inputs, name,
            strides=list(layer.strides), pads=pads, dilations=list(layer.dilation_rate), group=groups,
            kernel_shape=list(kernel.shape[2:]),
        )  # fmt: skip
        return graph.make_value(output, (*sizes, kernel.shape[0]), "nchw")


@register_layer("Conv2D")
class Conv2D(_Convolution):
    """A convolution, possibly grouped."""

    kind = "convolution"
    role = "convolution"
    channels = "make"
    axes: ClassVar = {"kernel": ("", "", "in", "out"), "bias": ("out",)}
    width = "filters"

    def get_channel_flow(self, layer: Any, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> ChannelFlow:
        """Return "mix" for a grouped convolution, whose channels cannot be removed one by one."""
        return super().get_channel_flow(layer, inputs, outputs) if layer.groups == 1 else "mix"

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> GraphValue:
        """Add a Conv."""
        kernel = to_array(layer.kernel).transpose(3, 2, 0, 1)
        bias = layer.bias if layer.use_bias else None
        value = self.add_convolution(graph, layer, arguments[0], kernel, bias, name, layer.groups)
        return apply_layer_activation(graph, layer, value, name)


def _reshape_depthwise_kernel(kernel: Any) -> Any:
    height, width, channels, depth_multiplier = kernel.shape
    return kernel.transpose(2, 3, 0, 1).reshape(channels * depth_multiplier, 1, height, width)


@register_layer("DepthwiseConv2D")
class DepthwiseConv2D(_Convolution):
    """A convolution of each channel by itself."""

    kind = "depthwise convolution"
    role = "depthwise"
    channels = "keep"
    axes: ClassVar = {"kernel": ("", "", "out", ""), "bias": ("out",)}

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> GraphValue:
        """Add a Conv with as many groups as channels."""
        kernel = _reshape_depthwise_kernel(to_array(layer.kernel))
        bias = layer.bias if layer.use_bias else None
        value = self.add_convolution(graph, layer, arguments[0], kernel, bias, name, arguments[0].shape[-1])
        return apply_layer_activation(graph, layer, value, name)


@register_layer("SeparableConv2D")
class SeparableConv2D(_Convolution):
    """A depthwise convolution with the layer's strides and padding, then a 1x1 convolution."""

    kind = "separable convolution"
    role = "separable"
    channels = "make"
    axes: ClassVar = {
        "depthwise_kernel": ("", "", "in", ""),
        "pointwise_kernel": ("", "", "in", "out"),
        "bias": ("out",),
    }
    width = "filters"

    def get_channel_flow(self, layer: Any, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> ChannelFlow:
        """Return "mix" if one channel becomes several depthwise channels."""
        return super().get_channel_flow(layer, inputs, outputs) if layer.depth_multiplier == 1 else "mix"

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> GraphValue:
        """Add two Conv."""
        kernel = _reshape_depthwise_kernel(to_array(layer.depthwise_kernel))
        channels = arguments[0].shape[-1]
        value = self.add_convolution(graph, layer, arguments[0], kernel, None, f"{name}:depthwise", channels)
        pointwise = to_array(layer.pointwise_kernel).transpose(3, 2, 0, 1)
        inputs = [value.names["nchw"], graph.add_weight(f"{name}:kernel", pointwise)]
        if layer.use_bias:
            inputs.append(graph.add_variable(f"{name}:bias", layer.bias))
        output = graph.add_node("Conv", inputs, name, kernel_shape=[1, 1])
        value = graph.derive(value, output, (*value.shape[:2], pointwise.shape[0]))
        return apply_layer_activation(graph, layer, value, name)


@register_layer("Conv2DTranspose")
class Conv2DTranspose(LayerType):
    """A transposed convolution, which enlarges feature maps by its strides."""

    kind = "transposed convolution"
    role = "convolution"
    channels = "make"
    axes: ClassVar = {"kernel": ("", "", "out", "in"), "bias": ("out",)}
    width = "filters"
    multiplies_at = "input"

    def get_window(self, layer: Any) -> Window:
        """Return the kernel; an output depends on the inputs below it that are `strides` apart."""
        span = [-(-((k - 1) * d + 1) // s) for k, d, s in zip(*self._get_sides(layer), strict=True)]
        return Window(_pair(layer.kernel_size), _pair(layer.strides), (span[0], span[1]), layer.padding, upsamples=True)

    def format_output(self, layer: Any, inputs: Sequence[Shape], output: Shape) -> str:
        """Return (w - 1) * s - 2p + k, where 2p is the number of pixels cut off at both ends (added if negative)."""
        formulas = []
        for i, (kernel, dilation, stride) in enumerate(zip(*self._get_sides(layer), strict=True)):
            reach = (kernel - 1) * dilation + 1
            cut = (inputs[0][i] - 1) * stride + reach - output[i]
            before = cut // 2
            pads = f"2·{before}" if cut == 2 * before else f"({before} + {cut - before})"
            formulas.append(
                f"({inputs[0][i]} - 1)·{stride}{f' - {pads}' if cut > 0 else ''} + {reach}"
                f"{f' + {-cut}' if cut < 0 else ''} = {output[i]}"
            )
        return format_sizes(formulas)

    @staticmethod
    def _get_sides(layer: Any) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        return _pair(layer.kernel_size), _pair(layer.dilation_rate), _pair(layer.strides)

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> GraphValue:
        """Add a ConvTranspose."""
        value: GraphValue = arguments[0]
        if layer.output_padding is not None or _pair(layer.dilation_rate) != (1, 1):
            raise ModelError(
                f"{layer.name}: a transposed convolution with output padding or dilation cannot be exported to ONNX."
            )
        kernel = to_array(layer.kernel).transpose(3, 2, 0, 1)
        inputs = [graph.get_name(value, "nchw"), graph.add_weight(f"{name}:kernel", kernel)]
        if layer.use_bias:
            inputs.append(graph.add_variable(f"{name}:bias", layer.bias))
        differences = [k - s for k, s in zip(layer.kernel_size, layer.strides, strict=True)]
        # pixels to cut off, with the odd pixel at the end
        surplus = [max(d, 0) if layer.padding == "same" else 0 for d in differences]
        output = graph.add_node(
            "ConvTranspose", inputs, name,
            strides=list(layer.strides), kernel_shape=list(layer.kernel_size),
            pads=[*(total // 2 for total in surplus), *(total - total // 2 for total in surplus)],
            output_padding=[max(-d, 0) for d in differences],
        )  # fmt: skip
        sizes = [
            n * s + (max(d, 0) if layer.padding == "valid" else 0)
            for n, s, d in zip(value.shape[:2], layer.strides, differences, strict=True)
        ]
        return apply_layer_activation(graph, layer, graph.make_value(output, (*sizes, kernel.shape[1]), "nchw"), name)


@register_layer("MaxPooling2D", "AveragePooling2D")
class Pooling(_Windowed):
    """The maximum or the mean of a window; means exclude padding, as in TensorFlow."""

    role = "pooling"
    channels = "keep"

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> GraphValue:
        """Add a MaxPool or an AveragePool."""
        value: GraphValue = arguments[0]
        pads, sizes = self.compute_placement(layer, value)
        output = graph.add_node(
            type(layer).__name__.replace("Pooling2D", "Pool"), [graph.get_name(value, "nchw")], name,
            kernel_shape=list(layer.pool_size), strides=list(layer.strides), pads=pads,
        )  # fmt: skip
        return graph.make_value(output, (*sizes, value.shape[-1]), "nchw")


@register_layer("GlobalAveragePooling2D", "GlobalMaxPooling2D")
class GlobalPooling(LayerType):
    """The mean or the maximum over a whole feature map."""

    role = "pooling"
    channels = "keep"
    covers_map = True

    def format_output(self, layer: Any, inputs: Sequence[Shape], output: Shape) -> str:
        """Return the number of positions that become one."""
        return f"{inputs[0][0]}·{inputs[0][1]} positions into 1"

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> GraphValue:
        """Add a GlobalAveragePool or a GlobalMaxPool, and a Flatten."""
        value: GraphValue = arguments[0]
        op, channels = type(layer).__name__.replace("Pooling2D", "Pool"), value.shape[-1]
        output = graph.add_node(op, [graph.get_name(value, "nchw")], f"{name}:maps")
        if layer.keepdims:
            return graph.make_value(output, (1, 1, channels), "nchw")
        return graph.make_value(graph.add_node("Flatten", [output], name, axis=1), (channels,))
