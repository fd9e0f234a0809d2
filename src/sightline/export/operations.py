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
from sightline.export.graph import Graph, Layout, Value

Emit = Callable[[Graph, Any, Any, str], Value]
"""Called with the graph, the Keras operation, its arguments (values in place of tensors) and the output name."""

_EMITTERS: dict[str, Emit] = {}


def emit(graph: Graph, operation: Any, arguments: Sequence[Any], name: str) -> Value:
    """Add `operation` to the graph; raises `ModelError` if it is not supported."""
    kind = type(operation).__name__
    if kind not in _EMITTERS:
        raise ModelError(f"The layer {operation.name} ({kind}) cannot be exported to ONNX.")
    return _EMITTERS[kind](graph, operation, arguments, name)


def _emits(*kinds: str) -> Callable[[Emit], Emit]:
    def register(function: Emit) -> Emit:
        _EMITTERS.update(dict.fromkeys(kinds, function))
        return function

    return register


def _array(variable: Any) -> Any:
    return backend.keras().ops.convert_to_numpy(variable).astype(np.float32)


def _like(value: Value, name: str, shape: Sequence[int] | None = None, layout: Layout | None = None) -> Value:
    shape = value.shape if shape is None else tuple(shape)
    return Value({(layout or value.layout) if len(shape) == 3 else "nhwc": name}, shape)


def _all(arguments: Any) -> list[Any]:
    return list(arguments[0]) if isinstance(arguments[0], list | tuple) else list(arguments)


# ---- identity and arithmetic -------------------------------------------------------------------------------------


@_emits("Dropout", "SpatialDropout2D", "GaussianNoise")
def _nothing(_graph: Graph, _operation: Any, arguments: Any, _name: str) -> Value:
    value: Value = arguments[0]
    return value


@_emits("Add", "Multiply")
def _merge(graph: Graph, operation: Any, arguments: Any, name: str) -> Value:
    """Add or multiply values and numbers; axes of size 1 are broadcast."""
    values = _all(arguments)
    largest = max((v for v in values if isinstance(v, Value)), key=lambda v: math.prod(v.shape))
    names = [
        graph.read(v, largest.layout) if isinstance(v, Value) else graph.scalar(f"{name}:number{i}", v)
        for i, v in enumerate(values)
    ]
    op = {"Add": "Add", "Multiply": "Mul"}[type(operation).__name__]
    found = names[0]
    for number, other in enumerate(names[1:], 1):
        found = graph.node(op, [found, other], name if number == len(names) - 1 else f"{name}:{number}")
    return _like(largest, found)


@_emits("Power")
def _power(graph: Graph, _operation: Any, arguments: Any, name: str) -> Value:
    value, exponent = arguments[:2]
    inputs = [graph.read(value, value.layout), graph.scalar(f"{name}:exponent", exponent)]
    return _like(value, graph.node("Pow", inputs, name))


@_emits("Rescaling")
def _rescaling(graph: Graph, layer: Any, arguments: Any, name: str) -> Value:
    """Compute x * scale + offset, where each is a number or one number per channel."""
    value: Value = arguments[0]
    scale, offset = np.asarray(layer.scale, np.float32), np.asarray(layer.offset, np.float32)
    found = graph.read(value, value.layout)
    for op, what, number, neutral in (("Mul", "scale", scale, 1), ("Add", "offset", offset, 0)):
        if not np.all(number == neutral):
            constant = graph.weight(f"{name}:{what}", _by_channel(number, value))
            found = graph.node(op, [found, constant], f"{name}:{what}d" if what == "scale" else name)
    return _like(value, found)


def _by_channel(number: Any, value: Value) -> Any:
    return number.reshape(-1, 1, 1) if number.ndim and value.layout == "nchw" and len(value.shape) == 3 else number


@_emits("Flip")
def _flip(graph: Graph, _operation: Any, arguments: Any, name: str) -> Value:
    """Reverse the channels, the only axis that our models flip."""
    value: Value = arguments[0]
    order = graph.weight(f"{name}:order", np.arange(value.shape[-1])[::-1].astype(np.int64))
    inputs = [graph.read(value, value.layout), order]
    return _like(value, graph.node("Gather", inputs, name, axis=1 if value.layout == "nchw" else len(value.shape)))


@_emits("Concatenate")
def _concatenate(graph: Graph, _layer: Any, arguments: Any, name: str) -> Value:
    values = _all(arguments)
    layout = values[0].layout
    inputs = [graph.read(v, layout) for v in values]
    shape = (*values[0].shape[:-1], sum(v.shape[-1] for v in values))
    axis = 1 if layout == "nchw" else len(shape)
    return _like(values[0], graph.node("Concat", inputs, name, axis=axis), shape)


def split(graph: Graph, value: Value, parts: int, name: str) -> list[Value]:
    """Split the channels of `value` into equal parts."""
    names = [f"{name}:{number}" for number in range(parts)]
    width = value.shape[-1] // parts
    axis = 1 if value.layout == "nchw" else len(value.shape)
    sizes = graph.weight(f"{name}:sizes", np.full(parts, width, np.int64))
    node = graph.helper.make_node("Split", [graph.read(value, value.layout), sizes], names, name=name, axis=axis)
    graph.nodes.append(node)
    return [_like(value, each, (*value.shape[:-1], width)) for each in names]


# ---- activations -------------------------------------------------------------------------------------------------


def activate(graph: Graph, found: str, activation: str, name: str) -> str:
    """Add a Keras activation to the graph; `found` is the name of the input, `name` that of the output."""
    if activation == "linear":
        return found
    if activation in {"relu", "sigmoid", "tanh"}:
        return graph.node(activation.capitalize(), [found], name)
    if activation == "relu6":
        limits = [graph.scalar(f"{name}:low", 0), graph.scalar(f"{name}:high", 6)]
        return graph.node("Clip", [found, *limits], name)
    if activation == "silu":
        return graph.node("Mul", [found, graph.node("Sigmoid", [found], f"{name}:sigmoid")], name)
    if activation == "hard_silu":
        return graph.node("HardSwish", [found], name)
    if activation == "gelu":  # exact, with the error function
        shrunk = graph.node("Div", [found, graph.scalar(f"{name}:root2", math.sqrt(2))], f"{name}:shrunk")
        raised = graph.node("Erf", [shrunk], f"{name}:erf")
        raised = graph.node("Add", [raised, graph.scalar(f"{name}:one", 1)], f"{name}:raised")
        whole = graph.node("Mul", [found, raised], f"{name}:whole")
        return graph.node("Mul", [whole, graph.scalar(f"{name}:half", 0.5)], name)
    raise ModelError(f"{name}: the activation {activation!r} cannot be exported to ONNX.")


def _finish(graph: Graph, layer: Any, value: Value, name: str) -> Value:
    """Apply the built-in activation of a layer."""
    activation = layer.activation.__name__
    if activation == "linear":
        return value
    return _like(value, activate(graph, value.names[value.layout], activation, f"{name}:{activation}"))


@_emits("Activation")
def _activation(graph: Graph, layer: Any, arguments: Any, name: str) -> Value:
    value: Value = arguments[0]
    return _like(value, activate(graph, graph.read(value, value.layout), layer.activation.__name__, name))


@_emits("ReLU")
def _relu(graph: Graph, layer: Any, arguments: Any, name: str) -> Value:
    value: Value = arguments[0]
    if layer.negative_slope or layer.threshold or layer.max_value not in (None, 6):
        raise ModelError(f"{layer.name}: ReLU with a slope, a threshold or a maximum other than 6 is not supported.")
    activation = "relu6" if layer.max_value else "relu"
    return _like(value, activate(graph, graph.read(value, value.layout), activation, name))


@_emits("Softmax")
def _softmax(graph: Graph, layer: Any, arguments: Any, name: str) -> Value:
    value: Value = arguments[0]
    return _like(value, graph.node("Softmax", [graph.read(value)], name, axis=layer.axis), layout="nhwc")


# ---- convolution and pooling -------------------------------------------------------------------------------------


def _pads(layer: Any, size: Sequence[int], window: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Return TensorFlow's "same" padding, with the odd pixel at the end: top, left, bottom, right."""
    if layer.padding == "valid":
        return [0, 0, 0, 0]
    total = [max((math.ceil(n / step) - 1) * step + k - n, 0) for n, k, step in zip(size, window, strides, strict=True)]
    return [t // 2 for t in total] + [t - t // 2 for t in total]


def _out(size: Sequence[int], pads: Sequence[int], window: Sequence[int], strides: Sequence[int]) -> list[int]:
    return [(size[i] + pads[i] + pads[i + 2] - window[i]) // strides[i] + 1 for i in range(2)]


def _convolve(graph: Graph, layer: Any, value: Value, kernel: Any, bias: Any, name: str, groups: int = 1) -> Value:
    """Add a convolution; `kernel` is [out, in / groups, height, width]."""
    reach = [(k - 1) * d + 1 for k, d in zip(kernel.shape[2:], layer.dilation_rate, strict=True)]
    pads = _pads(layer, value.shape[:2], reach, layer.strides)
    inputs = [graph.read(value, "nchw"), graph.weight(f"{name}:kernel", kernel)]
    if bias is not None:
        inputs.append(graph.weight(f"{name}:bias", _array(bias)))
    found = graph.node(
        "Conv", inputs, name,
        strides=list(layer.strides), pads=pads, dilations=list(layer.dilation_rate), group=groups,
        kernel_shape=list(kernel.shape[2:]),
    )  # fmt: skip
    shape = (*_out(value.shape, pads, reach, layer.strides), kernel.shape[0])
    return _like(value, found, shape, "nchw")


@_emits("Conv2D")
def _conv(graph: Graph, layer: Any, arguments: Any, name: str) -> Value:
    kernel = _array(layer.kernel).transpose(3, 2, 0, 1)
    value = _convolve(graph, layer, arguments[0], kernel, layer.bias if layer.use_bias else None, name, layer.groups)
    return _finish(graph, layer, value, name)


def _depthwise_kernel(kernel: Any) -> Any:
    height, width, channels, each = kernel.shape
    return kernel.transpose(2, 3, 0, 1).reshape(channels * each, 1, height, width)


@_emits("DepthwiseConv2D")
def _depthwise(graph: Graph, layer: Any, arguments: Any, name: str) -> Value:
    kernel = _depthwise_kernel(_array(layer.kernel))
    bias = layer.bias if layer.use_bias else None
    value = _convolve(graph, layer, arguments[0], kernel, bias, name, arguments[0].shape[-1])
    return _finish(graph, layer, value, name)


@_emits("SeparableConv2D")
def _separable(graph: Graph, layer: Any, arguments: Any, name: str) -> Value:
    """Add a depthwise convolution with the layer's strides and padding, then a 1x1 convolution."""
    kernel = _depthwise_kernel(_array(layer.depthwise_kernel))
    value = _convolve(graph, layer, arguments[0], kernel, None, f"{name}:depthwise", arguments[0].shape[-1])
    point = _array(layer.pointwise_kernel).transpose(3, 2, 0, 1)
    inputs = [value.names["nchw"], graph.weight(f"{name}:kernel", point)]
    if layer.use_bias:
        inputs.append(graph.weight(f"{name}:bias", _array(layer.bias)))
    found = graph.node("Conv", inputs, name, kernel_shape=[1, 1])
    return _finish(graph, layer, _like(value, found, (*value.shape[:2], point.shape[0])), name)


@_emits("MaxPooling2D", "AveragePooling2D")
def _pool(graph: Graph, layer: Any, arguments: Any, name: str) -> Value:
    """Add a pooling layer; averages exclude padding, as in TensorFlow."""
    value: Value = arguments[0]
    pads = _pads(layer, value.shape[:2], layer.pool_size, layer.strides)
    found = graph.node(
        type(layer).__name__.replace("Pooling2D", "Pool"), [graph.read(value, "nchw")], name,
        kernel_shape=list(layer.pool_size), strides=list(layer.strides), pads=pads,
    )  # fmt: skip
    return _like(value, found, (*_out(value.shape, pads, layer.pool_size, layer.strides), value.shape[-1]), "nchw")


@_emits("GlobalAveragePooling2D", "GlobalMaxPooling2D")
def _pool_all(graph: Graph, layer: Any, arguments: Any, name: str) -> Value:
    value: Value = arguments[0]
    op = type(layer).__name__.replace("Pooling2D", "Pool")
    found = graph.node(op, [graph.read(value, "nchw")], f"{name}:maps")
    maps = _like(value, found, (1, 1, value.shape[-1]), "nchw")
    return maps if layer.keepdims else _flatten(graph, layer, [maps], name)


@_emits("ZeroPadding2D", "ZeroPadding1D")
def _pad(graph: Graph, layer: Any, arguments: Any, name: str) -> Value:
    """Pad feature maps, or for 1D pad [N, L, D] along L."""
    value: Value = arguments[0]
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
    inputs = [graph.read(value, layout), graph.weight(f"{name}:sizes", np.array(sizes, np.int64))]
    return _like(value, graph.node("Pad", inputs, name), shape, layout)


@_emits("Cropping2D")
def _crop(graph: Graph, layer: Any, arguments: Any, name: str) -> Value:
    value: Value = arguments[0]
    (top, bottom), (left, right) = layer.cropping
    height, width = value.shape[:2]
    ends = {"starts": [top, left], "ends": [height - bottom, width - right], "axes": [2, 3]}
    limits = [graph.weight(f"{name}:{what}", np.array(numbers, np.int64)) for what, numbers in ends.items()]
    shape = (height - top - bottom, width - left - right, value.shape[2])
    return _like(value, graph.node("Slice", [graph.read(value, "nchw"), *limits], name), shape, "nchw")


# ---- normalization, dense layers, shapes -------------------------------------------------------------------------


@_emits("BatchNormalization")
def _batch_norm(graph: Graph, layer: Any, arguments: Any, name: str) -> Value:
    value: Value = arguments[0]
    width = value.shape[-1]
    figures = {
        "scale": _array(layer.gamma) if layer.scale else np.ones(width, np.float32),
        "offset": _array(layer.beta) if layer.center else np.zeros(width, np.float32),
        "mean": _array(layer.moving_mean),
        "variance": _array(layer.moving_variance),
    }
    inputs = [graph.weight(f"{name}:{what}", numbers) for what, numbers in figures.items()]
    found = graph.node("BatchNormalization", [graph.read(value, "nchw"), *inputs], name, epsilon=layer.epsilon)
    return _like(value, found, layout="nchw")


@_emits("LayerNormalization")
def _layer_norm(graph: Graph, layer: Any, arguments: Any, name: str) -> Value:
    """Normalize over the last axis, the only one that our models use."""
    value: Value = arguments[0]
    inputs = [graph.weight(f"{name}:scale", _array(layer.gamma)), graph.weight(f"{name}:offset", _array(layer.beta))]
    found = graph.node("LayerNormalization", [graph.read(value), *inputs], name, epsilon=layer.epsilon, axis=-1)
    return _like(value, found, layout="nhwc")


@_emits("Dense")
def _dense(graph: Graph, layer: Any, arguments: Any, name: str) -> Value:
    value: Value = arguments[0]
    kernel = _array(layer.kernel)
    shape = (*value.shape[:-1], kernel.shape[1])
    inputs = [graph.read(value), graph.weight(f"{name}:kernel", kernel)]
    if len(value.shape) == 1:
        bias = [graph.weight(f"{name}:bias", _array(layer.bias))] if layer.use_bias else []
        found = graph.node("Gemm", [*inputs, *bias], name)
    else:
        found = graph.node("MatMul", inputs, f"{name}:product" if layer.use_bias else name)
        if layer.use_bias:
            found = graph.node("Add", [found, graph.weight(f"{name}:bias", _array(layer.bias))], name)
    return _finish(graph, layer, _like(value, found, shape, "nhwc"), name)


@_emits("EinsumDense")
def _einsum(graph: Graph, layer: Any, arguments: Any, name: str) -> Value:
    """Multiply each channel by its own number, the only einsum that our models use."""
    value: Value = arguments[0]
    if layer.equation != "nhwc,c->nhwc":
        raise ModelError(f"{layer.name}: the einsum equation {layer.equation!r} cannot be exported to ONNX.")
    scale = graph.weight(f"{name}:scale", _by_channel(_array(layer.kernel), value))
    return _like(value, graph.node("Mul", [graph.read(value, value.layout), scale], name))


@_emits("Flatten")
def _flatten(graph: Graph, _layer: Any, arguments: Any, name: str) -> Value:
    value: Value = arguments[0]
    plain = value.layout if value.shape[:2] == (1, 1) else "nhwc"  # 1x1 maps have the same order in both layouts
    found = graph.node("Flatten", [graph.read(value, plain)], name, axis=1)
    return Value({"nhwc": found}, (math.prod(value.shape),))


@_emits("Reshape")
def _reshape(graph: Graph, layer: Any, arguments: Any, name: str) -> Value:
    value: Value = arguments[0]
    shape = tuple(layer.compute_output_shape((None, *value.shape))[1:])
    single = len(shape) == 3 and shape[:2] == (1, 1)
    target = (-1, shape[2], 1, 1) if single else (-1, *shape)
    wanted = graph.weight(f"{name}:shape", np.array(target, np.int64))
    found = graph.node("Reshape", [graph.read(value), wanted], name)
    return _like(value, found, shape, "nchw" if single else "nhwc")
