"""EfficientNet-Lite (Liu, 2020), the EfficientNet (Tan and Le, 2019, arXiv:1905.11946) for integer arithmetic.

It has no squeeze-and-excitation, and ReLU6 in place of swish. Wider and deeper variants keep the stem, the depth of the
first and the last stage, and the head of Lite0. https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from sightline import backend

EPSILON = 1e-3  # of batch normalization
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


def lite0(x: Any) -> Any:
    """Apply EfficientNet-Lite0: 16 inverted residual blocks, 1280 channels; 3,371,008 trainable parameters."""
    return _efficientnet_lite(x, width_factor=1.0, depth_factor=1.0)


def lite1(x: Any) -> Any:
    """Apply EfficientNet-Lite1: Lite0 1.1 times as deep."""
    return _efficientnet_lite(x, width_factor=1.0, depth_factor=1.1)


def lite2(x: Any) -> Any:
    """Apply EfficientNet-Lite2: Lite0 1.1 times as wide and 1.2 times as deep."""
    return _efficientnet_lite(x, width_factor=1.1, depth_factor=1.2)


def _efficientnet_lite(x: Any, width_factor: float, depth_factor: float) -> Any:
    x = _conv(x, STEM_WIDTH, 3, 2, "stem")
    for number, stage in enumerate(_STAGES, 1):
        at_end = number in (1, len(_STAGES))
        width = _round_width(stage.width * width_factor)
        for block in range(1, 1 + (stage.blocks if at_end else math.ceil(stage.blocks * depth_factor))):
            stride = stage.stride if block == 1 else 1
            x = _inverted_residual(x, stage.kernel, stride, stage.expansion, width, f"stage{number}_block{block}")
    return _conv(x, HEAD_WIDTH, 1, 1, "top")


def _round_width(width: float) -> int:
    """Return the multiple of 8 nearest to `width`, or the next one where that is more than a tenth less."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded


def _inverted_residual(x: Any, kernel: int, stride: int, expansion: int, width: int, name: str) -> Any:
    """Apply a 1x1 expansion, a depthwise convolution, a linear 1x1 projection, and the shortcut where shapes agree."""
    layers = backend.keras().layers
    shortcut = x
    if expansion != 1:
        x = _conv(x, expansion * x.shape[-1], 1, 1, f"{name}_expand")
    x = layers.DepthwiseConv2D(
        kernel, strides=stride, padding="same", use_bias=False, name=f"{name}_depthwise"
    )(x)  # fmt: skip
    x = _normalize(x, f"{name}_depthwise")
    x = layers.ReLU(6.0, name=f"{name}_depthwise_relu")(x)
    x = layers.Conv2D(width, 1, use_bias=False, name=f"{name}_project")(x)
    x = _normalize(x, f"{name}_project")
    return layers.Add(name=f"{name}_add")([shortcut, x]) if x.shape == shortcut.shape else x


def _conv(x: Any, width: int, kernel: int, stride: int, name: str) -> Any:
    layers = backend.keras().layers
    x = layers.Conv2D(width, kernel, strides=stride, padding="same", use_bias=False, name=name)(x)
    return layers.ReLU(6.0, name=f"{name}_relu")(_normalize(x, name))


def _normalize(x: Any, name: str) -> Any:
    return backend.keras().layers.BatchNormalization(epsilon=EPSILON, name=f"{name}_bn")(x)
