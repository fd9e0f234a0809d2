"""EfficientNet-Lite (Liu, 2020), an EfficientNet (Tan and Le, 2019, arXiv:1905.11946) for integer arithmetic.

It has no squeeze-and-excitation, and ReLU6 instead of swish. Wider and deeper variants keep Lite0's stem, head, and
depth of the first and last stages.
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from sightline import backend

EPSILON = 1e-3  # for batch normalization
STEM_WIDTH, HEAD_WIDTH = 32, 1280


class _Stage(NamedTuple):
    kernel: int
    blocks: int
    stride: int
    expansion: int
    width: int


_STAGES = (
    _Stage(3, 1, 1, 1, 16),
    _Stage(3, 2, 2, 6, 24),
    _Stage(5, 2, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(5, 3, 1, 6, 112),
    _Stage(5, 4, 2, 6, 192),
    _Stage(3, 1, 1, 6, 320),
)


def lite0(x: Any, layers: Any = None) -> Any:
    """Apply EfficientNet-Lite0: 16 inverted residual blocks, 1280 channels; 3,371,008 trainable parameters.

    `layers` are `keras.layers`, or a replacement with the same calls (`export.packaged_layers`).
    """
    return _EfficientNetLite(layers).apply(x, width_factor=1.0, depth_factor=1.0)


def lite1(x: Any, layers: Any = None) -> Any:
    """Apply EfficientNet-Lite1: Lite0 1.1 times as deep."""
    return _EfficientNetLite(layers).apply(x, width_factor=1.0, depth_factor=1.1)


def lite2(x: Any, layers: Any = None) -> Any:
    """Apply EfficientNet-Lite2: Lite0 1.1 times as wide and 1.2 times as deep."""
    return _EfficientNetLite(layers).apply(x, width_factor=1.1, depth_factor=1.2)


def _round_width(width: float) -> int:
    """Return the multiple of 8 nearest to `width`, or the next larger one if it is more than 10% below `width`."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded


class _EfficientNetLite:
    def __init__(self, layers: Any) -> None:
        self._layers = backend.keras().layers if layers is None else layers

    def apply(self, x: Any, width_factor: float, depth_factor: float) -> Any:
        x = self._conv(x, STEM_WIDTH, 3, 2, "stem")
        for number, stage in enumerate(_STAGES, 1):
            at_end = number in (1, len(_STAGES))
            width = _round_width(stage.width * width_factor)
            for block in range(1, 1 + (stage.blocks if at_end else math.ceil(stage.blocks * depth_factor))):
                stride = stage.stride if block == 1 else 1
                name = f"stage{number}_block{block}"
                x = self._inverted_residual(x, stage.kernel, stride, stage.expansion, width, name)
        return self._conv(x, HEAD_WIDTH, 1, 1, "top")

    def _inverted_residual(self, x: Any, kernel: int, stride: int, expansion: int, width: int, name: str) -> Any:
        """Apply a 1x1 expansion, a depthwise convolution, a linear 1x1 projection, and a shortcut if shapes match."""
        layers, shortcut = self._layers, x
        if expansion != 1:
            x = self._conv(x, expansion * x.shape[-1], 1, 1, f"{name}_expand")
        x = layers.DepthwiseConv2D(
            kernel, strides=stride, padding="same", use_bias=False, name=f"{name}_depthwise"
        )(x)  # fmt: skip
        x = self._normalize(x, f"{name}_depthwise")
        x = layers.ReLU(6.0, name=f"{name}_depthwise_relu")(x)
        x = layers.Conv2D(width, 1, use_bias=False, name=f"{name}_project")(x)
        x = self._normalize(x, f"{name}_project")
        return layers.Add(name=f"{name}_add")([shortcut, x]) if x.shape == shortcut.shape else x

    def _conv(self, x: Any, width: int, kernel: int, stride: int, name: str) -> Any:
        x = self._layers.Conv2D(width, kernel, strides=stride, padding="same", use_bias=False, name=name)(x)
        return self._layers.ReLU(6.0, name=f"{name}_relu")(self._normalize(x, name))

    def _normalize(self, x: Any, name: str) -> Any:
        return self._layers.BatchNormalization(epsilon=EPSILON, name=f"{name}_bn")(x)
