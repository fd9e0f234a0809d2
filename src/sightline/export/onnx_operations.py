"""Convert Keras layers and operations to ONNX nodes (opset 17).

Keras is channels-last, ONNX channels-first. A value keeps its layout until a layer needs the other one, so that a chain
of convolutions is transposed only once, at its start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sightline import backend
from sightline.errors import ModelError
from sightline.export.graph_builder import GraphBuilder, GraphValue, Layout

Emit = Callable[[GraphBuilder, Any, Any, str], GraphValue]
"""Called with the graph, the Keras operation, its arguments (values in place of tensors) and the output name."""

_EMITTERS: dict[str, Emit] = {}


def emit_operation(graph: GraphBuilder, operation: Any, arguments: Sequence[Any], name: str) -> GraphValue:
    """Add `operation` to the graph; raises `ModelError` if it is not supported."""
    kind = type(operation).__name__
    if kind not in _EMITTERS:
        raise ModelError(f"The layer {operation.name} ({kind}) cannot be exported to ONNX.")
    return _EMITTERS[kind](graph, operation, arguments, name)


def _register_emitter(*kinds: str) -> Callable[[Emit], Emit]:
    def register(function: Emit) -> Emit:
        _EMITTERS.update(dict.fromkeys(kinds, function))
        return function

    return register


def _to_array(variable: Any) -> Any:
    return backend.keras().ops.convert_to_numpy(variable).astype(np.float32)


def _make_value(
    value: GraphValue, name: str, shape: Sequence[int] | None = None, layout: Layout | None = None
) -> GraphValue:
    shape = value.shape if shape is None else tuple(shape)
    return GraphValue({(layout or value.layout) if len(shape) == 3 else "nhwc": name}, shape)


def _list_values(arguments: Any) -> list[Any]:
    return list(arguments[0]) if isinstance(arguments[0], list | tuple) else list(arguments)


# ---- identity and arithmetic -------------------------------------------------------------------------------------


@_register_emitter("Dropout", "SpatialDropout2D", "GaussianNoise")
def _emit_identity(_graph: GraphBuilder, _operation: Any, arguments: Any, _name: str) -> GraphValue:
    value: GraphValue = arguments[0]
    return value


@_register_emitter("Add", "Multiply")
def _emit_merge(graph: GraphBuilder, operation: Any, arguments: Any, name: str) -> GraphValue:
    """Add or multiply values and numbers; axes of size 1 are broadcast."""
    values = _list_values(arguments)
    largest = max((v for v in values if isinstance(v, GraphValue)), key=lambda v: math.prod(v.shape))
    names = [
        graph.get_name(v, largest.layout) if isinstance(v, GraphValue) else graph.add_scalar(f"{name}:number{i}", v)
        for i, v in enumerate(values)
    ]
    op = {"Add": "Add", "Multiply": "Mul"}[type(operation).__name__]
    output = names[0]
    for number, other in enumerate(names[1:], 1):
        output = graph.add_node(op, [output, other], name if number == len(names) - 1 else f"{name}:{number}")
    return _make_value(largest, output)


@_register_emitter("Power")
def _emit_power(graph: GraphBuilder, _operation: Any, arguments: Any, name: str) -> GraphValue:
    value, exponent = arguments[:2]
    inputs = [graph.get_name(value, value.layout), graph.add_scalar(f"{name}:exponent", exponent)]
    return _make_value(value, graph.add_node("Pow", inputs, name))


@_register_emitter("Rescaling")
def _emit_rescaling(graph: GraphBuilder, layer: Any, arguments: Any, name: str) -> GraphValue:
    """Compute x * scale + offset, where each is a number or one number per channel."""
    value: GraphValue = arguments[0]
    scale, offset = np.asarray(layer.scale, np.float32), np.asarray(layer.offset, np.float32)
    output = graph.get_name(value, value.layout)
    for op, what, number, neutral in (("Mul", "scale", scale, 1), ("Add", "offset", offset, 0)):
        if not np.all(number == neutral):
            constant = graph.add_weight(f"{name}:{what}", _align_channels(number, value))
            output = graph.add_node(op, [output, constant], f"{name}:{what}d" if what == "scale" else name)
    return _make_value(value, output)


def _align_channels(number: Any, value: GraphValue) -> Any:
    return number.reshape(-1, 1, 1) if number.ndim and value.layout == "nchw" and len(value.shape) == 3 else number


@_register_emitter("Flip")
def _emit_flip(graph: GraphBuilder, _operation: Any, arguments: Any, name: str) -> GraphValue:
    """Reverse the channels, the only axis that our models flip."""
    value: GraphValue = arguments[0]
    order = graph.add_weight(f"{name}:order", np.arange(value.shape[-1])[::-1].astype(np.int64))
    inputs = [graph.get_name(value, value.layout), order]
    return _make_value(
        value, graph.add_node("Gather", inputs, name, axis=1 if value.layout == "nchw" else len(value.shape))
    )


@_register_emitter("Concatenate")
def _emit_concatenate(graph: GraphBuilder, _layer: Any, arguments: Any, name: str) -> GraphValue:
    values = _list_values(arguments)
    layout = values[0].layout
    inputs = [graph.get_name(v, layout) for v in values]
    shape = (*values[0].shape[:-1], sum(v.shape[-1] for v in values))
    axis = 1 if layout == "nchw" else len(shape)
    return _make_value(values[0], graph.add_node("Concat", inputs, name, axis=axis), shape)


def emit_split(graph: GraphBuilder, value: GraphValue, count: int, name: str) -> list[GraphValue]:
    """Split the channels of `value` into equal parts."""
    names = [f"{name}:{number}" for number in range(count)]
    width = value.shape[-1] // count
    axis = 1 if value.layout == "nchw" else len(value.shape)
    sizes = graph.add_weight(f"{name}:sizes", np.full(count, width, np.int64))
    node = graph.helper.make_node("Split", [graph.get_name(value, value.layout), sizes], names, name=name, axis=axis)
    graph.nodes.append(node)
    return [_make_value(value, output_name, (*value.shape[:-1], width)) for output_name in names]


# ---- activations -------------------------------------------------------------------------------------------------


def emit_activation(graph: GraphBuilder, input_name: str, activation: str, name: str) -> str:
    """Add a Keras activation to the graph; `input_name` is the name of the input, `name` that of the output."""
    if activation == "linear":
        return input_name
    if activation in {"relu", "sigmoid", "tanh"}:
        return graph.add_node(activation.capitalize(), [input_name], name)
    if activation == "relu6":
        limits = [graph.add_scalar(f"{name}:low", 0), graph.add_scalar(f"{name}:high", 6)]
        return graph.add_node("Clip", [input_name, *limits], name)
    if activation == "silu":
        return graph.add_node("Mul", [input_name, graph.add_node("Sigmoid", [input_name], f"{name}:sigmoid")], name)
    if activation == "hard_silu":
        return graph.add_node("HardSwish", [input_name], name)
    if activation == "gelu":  # exact, with the error function
        scaled = graph.add_node("Div", [input_name, graph.add_scalar(f"{name}:root2", math.sqrt(2))], f"{name}:shrunk")
        erf = graph.add_node("Erf", [scaled], f"{name}:erf")
        erf = graph.add_node("Add", [erf, graph.add_scalar(f"{name}:one", 1)], f"{name}:raised")
        product = graph.add_node("Mul", [input_name, erf], f"{name}:whole")
        return graph.add_node("Mul", [product, graph.add_scalar(f"{name}:half", 0.5)], name)
    raise ModelError(f"{name}: the activation {activation!r} cannot be exported to ONNX.")


def _emit_layer_activation(graph: GraphBuilder, layer: Any, value: GraphValue, name: str) -> GraphValue:
    """Apply the built-in activation of a layer."""
    activation = layer.activation.__name__
    if activation == "linear":
        return value
    return _make_value(value, emit_activation(graph, value.names[value.layout], activation, f"{name}:{activation}"))


@_register_emitter("Activation")
def _emit_activation_layer(graph: GraphBuilder, layer: Any, arguments: Any, name: str) -> GraphValue:
    value: GraphValue = arguments[0]
    return _make_value(
        value, emit_activation(graph, graph.get_name(value, value.layout), layer.activation.__name__, name)
    )


@_register_emitter("ReLU")
def _emit_relu(graph: GraphBuilder, layer: Any, arguments: Any, name: str) -> GraphValue:
    value: GraphValue = arguments[0]
    if layer.negative_slope or layer.threshold or layer.max_value not in (None, 6):
        raise ModelError(f"{layer.name}: ReLU with a slope, a threshold or a maximum other than 6 is not supported.")
    activation = "relu6" if layer.max_value else "relu"
    return _make_value(value, emit_activation(graph, graph.get_name(value, value.layout), activation, name))


@_register_emitter("Softmax")
def _emit_softmax(graph: GraphBuilder, layer: Any, arguments: Any, name: str) -> GraphValue:
    value: GraphValue = arguments[0]
    return _make_value(value, graph.add_node("Softmax", [graph.get_name(value)], name, axis=layer.axis), layout="nhwc")


# ---- convolution and pooling -------------------------------------------------------------------------------------


def _compute_pads(layer: Any, size: Sequence[int], window: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Return TensorFlow's "same" padding, with the odd pixel at the end: top, left, bottom, right."""
    if layer.padding == "valid":
        return [0, 0, 0, 0]
    total = [max((math.ceil(n / step) - 1) * step + k - n, 0) for n, k, step in zip(size, window, strides, strict=True)]
    return [t // 2 for t in total] + [t - t // 2 for t in total]


def _compute_output_size(
    size: Sequence[int], pads: Sequence[int], window: Sequence[int], strides: Sequence[int]
) -> list[int]:
    return [(size[i] + pads[i] + pads[i + 2] - window[i]) // strides[i] + 1 for i in range(2)]


def _emit_convolution(
    graph: GraphBuilder, layer: Any, value: GraphValue, kernel: Any, bias: Any, name: str, groups: int = 1
) -> GraphValue:
    """Add a convolution; `kernel` is [out, in / groups, height, width]."""
    extent = [(k - 1) * d + 1 for k, d in zip(kernel.shape[2:], layer.dilation_rate, strict=True)]
    pads = _compute_pads(layer, value.shape[:2], extent, layer.strides)
    inputs = [graph.get_name(value, "nchw"), graph.add_weight(f"{name}:kernel", kernel)]
    if bias is not None:
        inputs.append(graph.add_weight(f"{name}:bias", _to_array(bias)))
    output = graph.add_node(
        "Conv", inputs, name,
        strides=list(layer.strides), pads=pads, dilations=list(layer.dilation_rate), group=groups,
        kernel_shape=list(kernel.shape[2:]),
    )  # fmt: skip
    shape = (*_compute_output_size(value.shape, pads, extent, layer.strides), kernel.shape[0])
    return _make_value(value, output, shape, "nchw")


@_register_emitter("Conv2D")
def _emit_conv2d(graph: GraphBuilder, layer: Any, arguments: Any, name: str) -> GraphValue:
    kernel = _to_array(layer.kernel).transpose(3, 2, 0, 1)
    value = _emit_convolution(
        graph, layer, arguments[0], kernel, layer.bias if layer.use_bias else None, name, layer.groups
    )
    return _emit_layer_activation(graph, layer, value, name)


def _reshape_depthwise_kernel(kernel: Any) -> Any:
    height, width, channels, depth_multiplier = kernel.shape
    return kernel.transpose(2, 3, 0, 1).reshape(channels * depth_multiplier, 1, height, width)


@_register_emitter("DepthwiseConv2D")
def _emit_depthwise(graph: GraphBuilder, layer: Any, arguments: Any, name: str) -> GraphValue:
    kernel = _reshape_depthwise_kernel(_to_array(layer.kernel))
    bias = layer.bias if layer.use_bias else None
    value = _emit_convolution(graph, layer, arguments[0], kernel, bias, name, arguments[0].shape[-1])
    return _emit_layer_activation(graph, layer, value, name)


@_register_emitter("SeparableConv2D")
def _emit_separable(graph: GraphBuilder, layer: Any, arguments: Any, name: str) -> GraphValue:
    """Add a depthwise convolution with the layer's strides and padding, then a 1x1 convolution."""
    kernel = _reshape_depthwise_kernel(_to_array(layer.depthwise_kernel))
    value = _emit_convolution(graph, layer, arguments[0], kernel, None, f"{name}:depthwise", arguments[0].shape[-1])
    pointwise = _to_array(layer.pointwise_kernel).transpose(3, 2, 0, 1)
    inputs = [value.names["nchw"], graph.add_weight(f"{name}:kernel", pointwise)]
    if layer.use_bias:
        inputs.append(graph.add_weight(f"{name}:bias", _to_array(layer.bias)))
    output = graph.add_node("Conv", inputs, name, kernel_shape=[1, 1])
    return _emit_layer_activation(
        graph, layer, _make_value(value, output, (*value.shape[:2], pointwise.shape[0])), name
    )


@_register_emitter("MaxPooling2D", "AveragePooling2D")
def _emit_pooling(graph: GraphBuilder, layer: Any, arguments: Any, name: str) -> GraphValue:
    """Add a pooling layer; averages exclude padding, as in TensorFlow."""
    value: GraphValue = arguments[0]
    pads = _compute_pads(layer, value.shape[:2], layer.pool_size, layer.strides)
    output = graph.add_node(
        type(layer).__name__.replace("Pooling2D", "Pool"), [graph.get_name(value, "nchw")], name,
        kernel_shape=list(layer.pool_size), strides=list(layer.strides), pads=pads,
    )  # fmt: skip
    return _make_value(
        value,
        output,
        (*_compute_output_size(value.shape, pads, layer.pool_size, layer.strides), value.shape[-1]),
        "nchw",
    )


@_register_emitter("GlobalAveragePooling2D", "GlobalMaxPooling2D")
def _emit_global_pooling(graph: GraphBuilder, layer: Any, arguments: Any, name: str) -> GraphValue:
    value: GraphValue = arguments[0]
    op = type(layer).__name__.replace("Pooling2D", "Pool")
    output = graph.add_node(op, [graph.get_name(value, "nchw")], f"{name}:maps")
    maps = _make_value(value, output, (1, 1, value.shape[-1]), "nchw")
    return maps if layer.keepdims else _emit_flatten(graph, layer, [maps], name)


@_register_emitter("ZeroPadding2D", "ZeroPadding1D")
def _emit_padding(graph: GraphBuilder, layer: Any, arguments: Any, name: str) -> GraphValue:
    """Pad feature maps, or for 1D pad [N, L, D] along L."""
    value: GraphValue = arguments[0]
    if type(layer).__name__ == "ZeroPadding1D":
        (before, after), inner = layer.padding, [0, 0]
        sizes = [0, before, 0, 0, after, 0]
        shape: tuple[int, ...] = (value.shape[0] + before + after, *value.shape[1:])
        layout: Layout = "nhwc"
    else:
        (top, bottom), inner = layer.padding[0], list(layer.padding[1])
        sizes = [0, 0, top, inner[0], 0, 0, bottom, inner[1]]
        shape = (value.shape[0] + top + bottom, value.shape[1] + sum(inner), value.shape[2])
        layout = "nchw"
    inputs = [graph.get_name(value, layout), graph.add_weight(f"{name}:sizes", np.array(sizes, np.int64))]
    return _make_value(value, graph.add_node("Pad", inputs, name), shape, layout)


@_register_emitter("Cropping2D")
def _emit_cropping(graph: GraphBuilder, layer: Any, arguments: Any, name: str) -> GraphValue:
    value: GraphValue = arguments[0]
    (top, bottom), (left, right) = layer.cropping
    height, width = value.shape[:2]
    ends = {"starts": [top, left], "ends": [height - bottom, width - right], "axes": [2, 3]}
    limits = [graph.add_weight(f"{name}:{what}", np.array(numbers, np.int64)) for what, numbers in ends.items()]
    shape = (height - top - bottom, width - left - right, value.shape[2])
    return _make_value(value, graph.add_node("Slice", [graph.get_name(value, "nchw"), *limits], name), shape, "nchw")


# ---- normalization, dense layers, shapes -------------------------------------------------------------------------


@_register_emitter("BatchNormalization")
def _emit_batch_norm(graph: GraphBuilder, layer: Any, arguments: Any, name: str) -> GraphValue:
    value: GraphValue = arguments[0]
    width = value.shape[-1]
    statistics = {
        "scale": _to_array(layer.gamma) if layer.scale else np.ones(width, np.float32),
        "offset": _to_array(layer.beta) if layer.center else np.zeros(width, np.float32),
        "mean": _to_array(layer.moving_mean),
        "variance": _to_array(layer.moving_variance),
    }
    inputs = [graph.add_weight(f"{name}:{what}", numbers) for what, numbers in statistics.items()]
    output = graph.add_node("BatchNormalization", [graph.get_name(value, "nchw"), *inputs], name, epsilon=layer.epsilon)
    return _make_value(value, output, layout="nchw")


@_register_emitter("LayerNormalization")
def _emit_layer_norm(graph: GraphBuilder, layer: Any, arguments: Any, name: str) -> GraphValue:
    """Normalize over the last axis, the only one that our models use."""
    value: GraphValue = arguments[0]
    inputs = [
        graph.add_weight(f"{name}:scale", _to_array(layer.gamma)),
        graph.add_weight(f"{name}:offset", _to_array(layer.beta)),
    ]
    output = graph.add_node(
        "LayerNormalization", [graph.get_name(value), *inputs], name, epsilon=layer.epsilon, axis=-1
    )
    return _make_value(value, output, layout="nhwc")


@_register_emitter("Dense")
def _emit_dense(graph: GraphBuilder, layer: Any, arguments: Any, name: str) -> GraphValue:
    value: GraphValue = arguments[0]
    kernel = _to_array(layer.kernel)
    shape = (*value.shape[:-1], kernel.shape[1])
    inputs = [graph.get_name(value), graph.add_weight(f"{name}:kernel", kernel)]
    if len(value.shape) == 1:
        bias = [graph.add_weight(f"{name}:bias", _to_array(layer.bias))] if layer.use_bias else []
        output = graph.add_node("Gemm", [*inputs, *bias], name)
    else:
        output = graph.add_node("MatMul", inputs, f"{name}:product" if layer.use_bias else name)
        if layer.use_bias:
            output = graph.add_node("Add", [output, graph.add_weight(f"{name}:bias", _to_array(layer.bias))], name)
    return _emit_layer_activation(graph, layer, _make_value(value, output, shape, "nhwc"), name)


@_register_emitter("EinsumDense")
def _emit_einsum(graph: GraphBuilder, layer: Any, arguments: Any, name: str) -> GraphValue:
    """Multiply each channel by its own number, the only einsum that our models use."""
    value: GraphValue = arguments[0]
    if layer.equation != "nhwc,c->nhwc":
        raise ModelError(f"{layer.name}: the einsum equation {layer.equation!r} cannot be exported to ONNX.")
    scale = graph.add_weight(f"{name}:scale", _align_channels(_to_array(layer.kernel), value))
    return _make_value(value, graph.add_node("Mul", [graph.get_name(value, value.layout), scale], name))


@_register_emitter("Flatten")
def _emit_flatten(graph: GraphBuilder, _layer: Any, arguments: Any, name: str) -> GraphValue:
    value: GraphValue = arguments[0]
    layout = value.layout if value.shape[:2] == (1, 1) else "nhwc"  # 1x1 maps have the same order in both layouts
    output = graph.add_node("Flatten", [graph.get_name(value, layout)], name, axis=1)
    return GraphValue({"nhwc": output}, (math.prod(value.shape),))


@_register_emitter("Reshape")
def _emit_reshape(graph: GraphBuilder, layer: Any, arguments: Any, name: str) -> GraphValue:
    value: GraphValue = arguments[0]
    shape = tuple(layer.compute_output_shape((None, *value.shape))[1:])
    is_1x1 = len(shape) == 3 and shape[:2] == (1, 1)
    target = (-1, shape[2], 1, 1) if is_1x1 else (-1, *shape)
    shape_input = graph.add_weight(f"{name}:shape", np.array(target, np.int64))
    output = graph.add_node("Reshape", [graph.get_name(value), shape_input], name)
    return _make_value(value, output, shape, "nchw" if is_1x1 else "nhwc")
