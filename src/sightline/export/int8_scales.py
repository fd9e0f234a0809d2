"""Keep int8 models close to float on every processor, and fast: weight scales, bias correction, uint8 pixels.

**Scales.** x86 processors without VNNI multiply 8-bit values and add two neighboring products in 16 bits. Each weight
channel gets the finest scale at which no two neighbors can overflow, so that the outputs are the same on every
processor. On MobileNetV2 this costs a quarter of a bit on average, where 7-bit weights cost a whole one. Depthwise
convolutions accumulate in 32 bits and use all 8 bits.

**Biases.** Rounding the weights shifts the mean of each output by the weights' error times the mean of the layer's
input. This is subtracted from the bias (Nagel et al., 2019, arXiv:1906.04721, section 4.2).

**Pixels.** Normalized pixels are already uint8 with a scale and a zero point. If all channels have the same mean and
standard deviation, the first convolution reads the pixels directly, and its bias absorbs the error of rounding the zero
point.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline._keras import imports
from sightline.export.keras_to_onnx import import_onnx

Arrays = dict[str, NDArray[np.float32]]


def read_weights(model: Any) -> Arrays:
    """Return the weights of an ONNX model by name."""
    onnx = import_onnx()
    return {w.name: onnx.numpy_helper.to_array(w) for w in model.graph.initializer}


def get_int_attribute(node: Any, name: str, default: int) -> int:
    """Return an integer attribute of a node, or `default`."""
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _put_outputs_first(node: Any, kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the weights of a layer, outputs first: [O, I, kh, kw] or [O, I]."""
    return kernel if node.op_type == "Conv" or get_int_attribute(node, "transB", 0) else kernel.T


def compute_scales(model: Any, layers: Sequence[str]) -> Arrays:
    """Return the int8 scales for the weights of each of `layers`, by weight name: float32 [O], one per output."""
    weight_by_name = read_weights(model)
    scale_by_weight = {}
    for node in model.graph.node:
        if node.name in layers:
            kernel = _put_outputs_first(node, weight_by_name[node.input[1]])
            scale_by_weight[node.input[1]] = _compute_scale(
                kernel, depthwise=node.op_type == "Conv" and kernel.shape[1] == 1
            )
    return scale_by_weight


def make_overrides(model: Any, weight_scales: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the weight scales in the format of ONNX Runtime's ``TensorQuantOverrides``."""
    int8 = imports.import_onnx_runtime("onnxruntime.quantization").QuantType.QInt8
    override_by_weight: dict[str, list[dict[str, Any]]] = {}
    for node in model.graph.node:
        if len(node.input) > 1 and node.input[1] in weight_scales:
            axis = 0 if node.op_type == "Conv" or get_int_attribute(node, "transB", 0) else 1
            rows = [{"scale": scale, "zero_point": np.int8(0)} for scale in weight_scales[node.input[1]]]
            rows[0] |= {"quant_type": int8, "axis": axis}
            override_by_weight[node.input[1]] = rows
    return override_by_weight


def _compute_scale(kernel: NDArray[np.float32], *, depthwise: bool) -> NDArray[np.float32]:
    scale = np.abs(kernel).reshape(len(kernel), -1).max(1) / 127
    if not depthwise:
        for order in (range(kernel.ndim), (0, *range(2, kernel.ndim), 1)):  # [O, I, kh, kw] and [O, kh, kw, I]
            row = kernel.transpose(tuple(order)).reshape(len(kernel), -1)
            pairs = np.abs(row[:, 1:] + row[:, :-1]) * (row[:, 1:] * row[:, :-1] > 0)
            scale = np.maximum(scale, pairs.max(1, initial=0.0) / 127)  # 255 * 127 fits in 16 bits with both roundings
    positive_scale: NDArray[np.float32] = np.maximum(scale, np.finfo(np.float32).tiny).astype(np.float32)
    return positive_scale


def create_session(file: bytes, **options: Any) -> Any:
    """Create an ONNX Runtime session for a file on the CPU that logs nothing.

    `options` are attributes of ``onnxruntime.SessionOptions``.
    """
    onnxruntime = imports.import_onnx_runtime()
    session_options = onnxruntime.SessionOptions()
    for name, value in ({"log_severity_level": 4} | options).items():
        setattr(session_options, name, value)
    return onnxruntime.InferenceSession(file, session_options, providers=["CPUExecutionProvider"])


def measure_values(
    model: Any, operations: Collection[str], layers: Collection[str], images: Iterable[NDArray[np.uint8]]
) -> tuple[dict[str, tuple[float, float]], Arrays]:
    """Run `model` on uint8 `images` [n, H, W, C], a few at a time, and return the ranges and means of its values.

    These are the minimum and maximum of each float input and output of `operations`, by value name, and the channel
    means of the input of each convolution and dense layer in `layers`: float32 [I].
    """
    onnx = import_onnx()
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    graph, weights = probe.graph, {weight.name for weight in model.graph.initializer}
    known = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    del graph.output[:]
    names = [name for node in graph.node if node.op_type in operations for name in (*node.input, *node.output)]
    measured = [n for n in dict.fromkeys(names) if known.get(n) == onnx.TensorProto.FLOAT and n not in weights]
    sources = {n.input[0]: n.op_type for n in graph.node if n.name in layers and n.op_type in {"Conv", "Gemm"}}

    def add_output(operation: str, source: str, **attributes: int) -> str:
        name = f"{source}:{operation}"
        graph.node.append(onnx.helper.make_node(operation, [source], [name], **attributes))
        graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        return name

    outputs = [add_output(kind, name, keepdims=0) for name in measured for kind in ("ReduceMin", "ReduceMax")]
    pooled = {"Conv": "GlobalAveragePool", "Gemm": "Identity"}
    outputs += [add_output(pooled[kind], source) for source, kind in sources.items()]
    if not outputs:
        return {}, {}
    session = create_session(probe.SerializeToString())
    runs = [session.run(outputs, {"pixels": rows}) for rows in images]
    extremes = np.array([run[: 2 * len(measured)] for run in runs], np.float32).reshape(len(runs), -1, 2)
    lowest, highest = np.fmin.reduce(extremes[..., 0]), np.fmax.reduce(extremes[..., 1])  # both ignore NaN
    means = {
        source: np.concatenate([run[at].reshape(len(run[at]), -1) for run in runs]).mean(0)
        for at, source in enumerate(sources, 2 * len(measured))
    }
    return dict(zip(measured, zip(lowest, highest, strict=True), strict=True)), means


def correct_biases(
    model: Any, layers: Sequence[str], weight_scales: Mapping[str, Any], input_means: Mapping[str, Any]
) -> None:
    """Correct the biases of `layers` in place for the mean output shift from rounding weights to `weight_scales`."""
    weight_by_name = read_weights(model)
    for node in model.graph.node:
        if (
            node.name not in layers
            or node.input[0] not in input_means
            or len(node.input) < 3
            or node.input[2] not in weight_by_name
        ):
            continue
        kernel = _put_outputs_first(node, weight_by_name[node.input[1]])
        scale = weight_scales[node.input[1]].reshape(-1, *[1] * (kernel.ndim - 1))
        error = np.rint(kernel / scale).clip(-127, 127) * scale - kernel
        error = error.reshape(*kernel.shape[:2], -1).sum(2)  # [O, I]
        groups = get_int_attribute(node, "group", 1)
        grouped_error = error.reshape(groups, len(error) // groups, -1)
        shift = np.einsum("goi,gi->go", grouped_error, input_means[node.input[0]].reshape(groups, -1)).reshape(-1)
        _set_weight(model, node.input[2], weight_by_name[node.input[2]] - shift)


def _set_weight(model: Any, name: str, array: NDArray[Any]) -> None:
    onnx = import_onnx()
    weight = next(w for w in model.graph.initializer if w.name == name)
    weight.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float32), name))


@dataclass(frozen=True, slots=True)
class PixelNormalization:
    """Pixel normalization as (pixel - zero) * scale + rest; only the convolution `layer` reads its output `value`.

    `nodes` are the names of the normalization nodes; the last one transposes to channels first.
    """

    value: str
    layer: str
    scale: float
    zero: int
    remainder: float
    nodes: tuple[str, ...]

    def fold_remainder(self, model: Any) -> None:
        """Add the contribution of `remainder` to the bias of the convolution, in place."""
        weight_by_name = read_weights(model)
        node = next(n for n in model.graph.node if n.name == self.layer)
        kernel_sums = weight_by_name[node.input[1]].reshape(len(weight_by_name[node.input[1]]), -1).sum(1)
        _set_weight(model, node.input[2], weight_by_name[node.input[2]] + self.remainder * kernel_sums)

    def connect_pixels(self, model: Any) -> None:
        """Replace the quantized `value` with the pixels in a quantized model, in place."""
        nodes = list(model.graph.node)
        transpose_node = next(n for n in nodes if n.name == self.nodes[-1])
        quantize_node = next(n for n in nodes if n.op_type == "QuantizeLinear" and n.input[0] == self.value)
        transpose_node.input[0], transpose_node.output[0] = "pixels", quantize_node.output[0]
        remaining = [n for n in nodes if n.name not in self.nodes and n is not quantize_node]
        remaining.insert(0, transpose_node)
        del model.graph.node[:]
        model.graph.node.extend(remaining)


def find_pixel_normalization(model: Any) -> PixelNormalization | None:
    """Return the pixel normalization of `model`; None if its first convolution cannot read pixels directly."""
    weight_by_name = read_weights(model)
    value, scale, offset, names = "pixels", 1.0, 0.0, []
    while True:
        readers = [n for n in model.graph.node if value in n.input]
        if len(readers) != 1 or readers[0].op_type not in {"Cast", "Mul", "Add", "Transpose", "Conv"}:
            return None
        node = readers[0]
        if node.op_type == "Conv":
            break
        if node.op_type in {"Mul", "Add"}:
            number = weight_by_name.get(next(i for i in node.input if i != value))
            if number is None or number.size != 1:
                return None
            factor = float(number.reshape(()))
            scale, offset = (scale * factor, offset * factor) if node.op_type == "Mul" else (scale, offset + factor)
        names.append(node.name)
        value = node.output[0]
    zero = round(-offset / scale) if scale > 0 else -1
    ends_in_transpose = names and next(n for n in model.graph.node if n.name == names[-1]).op_type == "Transpose"
    if not ends_in_transpose or not 0 <= zero <= 255 or len(node.input) < 3 or node.input[2] not in weight_by_name:
        return None
    return PixelNormalization(value, node.name, scale, zero, offset + scale * zero, tuple(names))
