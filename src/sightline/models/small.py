"""Small convolutional networks from well-known tutorials, for images of 28 to 64 pixels."""

from __future__ import annotations

from typing import Any

from sightline import backend
from sightline.models.entry import WHITENING_LAYER


def cifar10_simple(x: Any) -> Any:
    """Apply conv 32, pool, dropout 0.25; 4,200,842 parameters with its 512-unit head at 32x32x3 and 10 classes."""
    layers = backend.keras().layers
    x = _conv(x, 32, "conv1")
    x = layers.MaxPooling2D(name="pool1")(x)
    return layers.Dropout(0.25, name="drop1")(x)


def cifar10_deep(x: Any) -> Any:
    """Apply conv 32, 32, pool, conv 64, 64 (valid), pool; 1,676,842 parameters with its head at 32x32x3, 10 classes."""
    layers = backend.keras().layers
    x = _conv(x, 32, "conv1")
    x = _conv(x, 32, "conv2")
    x = layers.MaxPooling2D(name="pool1")(x)
    x = layers.Dropout(0.25, name="drop1")(x)
    x = _conv(x, 64, "conv3")
    x = _conv(x, 64, "conv4", padding="valid")
    x = layers.MaxPooling2D(name="pool2")(x)
    return layers.Dropout(0.25, name="drop2")(x)


def fashion_cnn(x: Any) -> Any:
    """Apply three blocks of two convolutions (32, 64, 128); 435,306 parameters with its head at 28x28x1, 10 classes."""
    layers = backend.keras().layers
    for block, width in enumerate((32, 64, 128), 1):
        x = _conv(x, width, f"conv{block}a")
        x = _conv(x, width, f"conv{block}b")
        x = layers.MaxPooling2D(name=f"pool{block}")(x)
    return x


def fast_small(x: Any, alpha: float) -> Any:
    """Apply a whitening 2x2 convolution and three blocks of two batch-normalized ones; 570,946 parameters, 10 classes.

    Based on the networks of the CIFAR-10 speed records (Jordan, 2024, arXiv:2404.00498), with ReLU and the last two
    blocks half as wide, so that two CPU cores train it in minutes. The first layer, with eight filters per input
    channel, is meant to be initialized with the principal directions of the training images' patches and their
    negatives (`initializers.whiten_layer`). `alpha` scales the width of the other layers.
    """
    return _whitened_blocks(x, (64, 128, 128), alpha, scale=True)


def airbench(x: Any, alpha: float) -> Any:
    """Apply the network of the CIFAR-10 speed record airbench94, with ReLU in place of GELU; 1,973,954 parameters.

    It is `fast_small` with the last two blocks twice as wide, and batch normalization without scale (Jordan, 2024,
    arXiv:2404.00498). GELU would take half of a step on a CPU, where TensorFlow has no kernel for it.
    """
    return _whitened_blocks(x, (64, 256, 256), alpha, scale=False)


def _whitened_blocks(x: Any, widths: tuple[int, ...], alpha: float, *, scale: bool) -> Any:
    layers = backend.keras().layers
    x = layers.Conv2D(8 * x.shape[-1], 2, activation="relu", name=WHITENING_LAYER)(x)
    for block, base_width in enumerate(widths, 1):
        width = max(round(alpha * base_width), 1)
        for half in "ab":
            x = layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"conv{block}{half}")(x)
            if half == "a":
                x = layers.MaxPooling2D(name=f"pool{block}")(x)
            x = layers.BatchNormalization(momentum=0.6, scale=scale, name=f"conv{block}{half}_bn")(x)
            x = layers.Activation("relu", name=f"conv{block}{half}_relu")(x)
    return x


def fcn(x: Any) -> Any:
    """Apply four blocks of a convolution (32, 64, 128, 128) and a pooling; a decoder turns the maps into masks."""
    layers = backend.keras().layers
    for block, width in enumerate((32, 64, 128, 128), 1):
        x = _conv(x, width, f"conv{block}")
        x = layers.MaxPooling2D(padding="same", name=f"pool{block}")(x)  # a decoder can undo it at any size
    return _conv(x, 128, "conv5")


def _conv(x: Any, width: int, name: str, padding: str = "same") -> Any:
    return backend.keras().layers.Conv2D(width, 3, padding=padding, activation="relu", name=name)(x)
