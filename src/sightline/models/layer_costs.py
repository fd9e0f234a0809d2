"""Cost and shape formulas of a single layer, as numbers and as text: output size, parameters, multiply-adds.

Output size is o = (w - k + 2p) / s + 1, rounded down, for an input of w pixels, a window of k, padding of p pixels at
each end and a stride of s (Dumoulin and Visin, 2016, arXiv:1603.07285). "same" padding, which Keras defines on every
backend as TensorFlow does, gives o = w / s rounded up, and may add one more pixel at the end than at the start.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LAYER_KINDS = {
    "Conv2D": "convolution",
    "DepthwiseConv2D": "depthwise convolution",
    "InputLayer": "input",
    "ReLU": "relu",
    "SeparableConv2D": "separable convolution",
}
CONVOLUTION_KINDS = ("convolution", "depthwise convolution", "separable convolution")
WINDOWED_KINDS = (*CONVOLUTION_KINDS, "average pooling", "max pooling")


@dataclass(frozen=True, slots=True)
class Window:
    """A sliding window, each field as (rows, columns); `span` is the size including the gaps of dilation."""

    size: tuple[int, int]
    strides: tuple[int, int]
    span: tuple[int, int]
    padding: str


def get_layer_kind(operation: Any) -> str:
    """Return the kind of a Keras layer or operation in words: ``max pooling`` for `MaxPooling2D`."""
    name = type(operation).__name__
    if name == "Activation":
        return str(operation.activation.__name__)
    if name in LAYER_KINDS:
        return LAYER_KINDS[name]
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", re.sub(r"[123]D$", "", name))
    return " ".join(words).lower()


def get_activation_name(operation: Any) -> str | None:
    """Return the name of a layer's built-in activation function; None if it has none or it is linear."""
    name = getattr(getattr(operation, "activation", None), "__name__", None)
    return None if name in (None, "linear") or type(operation).__name__ == "Activation" else str(name)


def get_window(operation: Any) -> Window | None:
    """Return the window of a convolution or pooling layer; None for everything else."""
    if get_layer_kind(operation) not in WINDOWED_KINDS:
        return None
    size = tuple(operation.kernel_size) if hasattr(operation, "kernel_size") else tuple(operation.pool_size)
    dilation = getattr(operation, "dilation_rate", (1, 1))
    dilation = (dilation, dilation) if isinstance(dilation, int) else tuple(dilation)
    span = tuple(d * (k - 1) + 1 for k, d in zip(size, dilation, strict=True))
    strides = operation.strides
    strides = (strides, strides) if isinstance(strides, int) else tuple(strides)
    return Window(size, strides, span, operation.padding)


def compute_output_size(size: int, span: int, stride: int, padding: str) -> tuple[int, str]:
    """Return the number of window positions along a side of `size` pixels, and the formula as text.

    >>> compute_output_size(224, 3, 1, "same")
    (224, '(224 - 3 + 2·1) / 1 + 1 = 224')
    >>> compute_output_size(224, 3, 2, "same")
    (112, '(224 - 3 + 0 + 1) / 2 + 1 = 112')
    >>> compute_output_size(28, 3, 2, "valid")
    (13, '⌊(28 - 3 + 2·0) / 2⌋ + 1 = 13')
    """
    before = after = 0
    if padding == "same":
        total_padding = max((-(-size // stride) - 1) * stride + span - size, 0)
        before, after = total_padding // 2, total_padding - total_padding // 2
    slack = size - span + before + after
    positions = slack // stride + 1
    padded = f"2·{before}" if before == after else f"{before} + {after}"
    quotient = f"({size} - {span} + {padded}) / {stride}"
    return positions, f"{f'⌊{quotient}⌋' if slack % stride else quotient} + 1 = {positions}"


def format_output_formula(operation: Any, inputs: Sequence[tuple[int, ...]], output: tuple[int, ...]) -> str:
    """Return the output size formula as text (shapes exclude N); "" where the size does not change."""
    name, first = get_layer_kind(operation), inputs[0] if inputs else ()
    window = get_window(operation)
    if window is not None:
        formulas = [compute_output_size(first[i], window.span[i], window.strides[i], window.padding)[1] for i in (0, 1)]
    elif name in ("zero padding", "cropping") and len(first) == 3:
        sign = "+" if name == "zero padding" else "-"
        ends = (getattr(operation, "padding", None) or operation.cropping)[:2]
        formulas = [f"{first[i]} {sign} {a} {sign} {b} = {output[i]}" for i, (a, b) in enumerate(ends)]
    elif name == "concatenate":
        return f"{' + '.join(str(shape[-1]) for shape in inputs)} = {output[-1]}"
    elif name == "flatten" and len(first) > 1:
        return f"{_format_product(first)} = {output[0]:,}"
    elif name.startswith("global") and len(first) == 3:
        return f"{first[0]}·{first[1]} positions into 1"
    else:
        return ""
    return formulas[0] if formulas[0] == formulas[1] else f"rows {formulas[0]}; columns {formulas[1]}"


def format_parameters_formula(operation: Any, weights: Sequence[Any]) -> str:
    """Return the parameter count of `weights` as text, such as ``3·3·3·192 + 192 = 5,376``; "" if there are none.

    A grouped convolution shows its input channels per group: ``5·5·(96/2)·256``.
    """
    shapes = [tuple(map(int, weight.shape)) for weight in weights]
    if not shapes:
        return ""
    total = f"{sum(map(math.prod, shapes)):,}"
    if len(set(shapes)) == 1 and len(shapes) > 1:
        return f"{len(shapes)}·{_format_product(shapes[0])} = {total}"
    terms = [_format_product(shape) for shape in shapes]
    groups = getattr(operation, "groups", 1)
    if get_layer_kind(operation) == "convolution" and groups > 1:
        rows, columns, each, out = shapes[0]
        terms[0] = f"{rows}·{columns}·({each * groups}/{groups})·{out}"
    text = " + ".join(terms)
    return text if text.replace(",", "") == total.replace(",", "") else f"{text} = {total}"


def count_multiply_adds(operation: Any, inputs: Sequence[tuple[int, ...]], output: tuple[int, ...]) -> int:
    """Return the multiply-adds of a convolution or dense layer for one image, without biases.

    Normalization, pooling and elementwise operations count as zero, as is usual.
    """
    name = get_layer_kind(operation)
    if name == "dense":
        return math.prod(output) * inputs[0][-1]
    if name not in CONVOLUTION_KINDS:
        return 0
    kernels: list[tuple[int, ...]] = [w.shape for w in operation.weights if "kernel" in w.name]  # two if separable
    return math.prod(output[:2]) * sum(math.prod(shape) for shape in kernels)


def _format_product(shape: Sequence[int]) -> str:
    return "·".join(map(str, shape)) or "1"
