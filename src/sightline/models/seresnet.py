"""SE-ResNet-18: residual blocks (He et al., 2015, arXiv:1512.03385) with squeeze-and-excitation (Hu et al., 2017)."""

from __future__ import annotations

from typing import Any

from sightline import backend

REDUCTION = 16  # in the squeeze-and-excitation bottleneck, as in the paper, arXiv:1709.01507


def se_resnet18(x: Any) -> Any:
    """Apply eight blocks of two 3x3 convolutions; 11,265,592 trainable parameters without the head."""
    layers = backend.keras().layers
    x = layers.ZeroPadding2D(3, name="stem_pad")(x)
    x = _conv(x, 64, 7, 2, "stem", padding="valid")
    x = layers.Activation("relu", name="stem_relu")(x)
    x = layers.ZeroPadding2D(1, name="stem_pool_pad")(x)  # zero padding is harmless after the ReLU
    x = layers.MaxPooling2D(3, 2, name="stem_pool")(x)
    for stage, width in enumerate((64, 128, 256, 512), 1):
        for block in (1, 2):
            x = _block(x, width, 2 if stage > 1 and block == 1 else 1, f"stage{stage}_block{block}")
    return x


def _block(x: Any, width: int, stride: int, name: str) -> Any:
    layers = backend.keras().layers
    shortcut = x
    if stride != 1 or x.shape[-1] != width:
        shortcut = _conv(x, width, 1, stride, f"{name}_shortcut")
    x = _conv(x, width, 3, stride, f"{name}_conv1")
    x = layers.Activation("relu", name=f"{name}_relu1")(x)
    x = _conv(x, width, 3, 1, f"{name}_conv2")
    x = _squeeze_excite(x, name)
    x = layers.Add(name=f"{name}_add")([shortcut, x])
    return layers.Activation("relu", name=f"{name}_relu2")(x)


def _squeeze_excite(x: Any, name: str) -> Any:
    """Scale each channel by a weight in (0, 1) that two dense layers compute from the channel means."""
    layers = backend.keras().layers
    width = x.shape[-1]
    weight = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(x)  # [N, 1, 1, C]
    weight = layers.Dense(width // REDUCTION, activation="relu", name=f"{name}_reduce")(weight)
    weight = layers.Dense(width, activation="sigmoid", name=f"{name}_excite")(weight)
    return layers.Multiply(name=f"{name}_scale")([x, weight])


def _conv(x: Any, width: int, size: int, stride: int, name: str, padding: str = "same") -> Any:
    layers = backend.keras().layers
    x = layers.Conv2D(width, size, strides=stride, padding=padding, use_bias=False, name=name)(x)
    return layers.BatchNormalization(name=f"{name}_bn")(x)
