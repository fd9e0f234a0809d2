"""The small convolutional networks of the classic tutorials, for pictures of 28 to 64 pixels."""

from __future__ import annotations

from typing import Any

from sightline import backend


def cifar10_simple(x: Any) -> Any:
    """Conv 32, pool, dropout 0.25; 4,200,842 parameters with its dense 512 head at 32x32x3 and 10 classes."""
    layers = backend.keras().layers
    x = _conv(x, 32, "conv1")
    x = layers.MaxPooling2D(name="pool1")(x)
    return layers.Dropout(0.25, name="drop1")(x)


def cifar10_deep(x: Any) -> Any:
    """Conv 32, 32, pool, conv 64, 64 (valid), pool; 1,676,842 parameters with its head at 32x32x3 and 10 classes."""
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
    """Three blocks of two convolutions, 32, 64, 128 wide; 435,306 parameters with its head at 28x28x1, 10 classes."""
    layers = backend.keras().layers
    for block, width in enumerate((32, 64, 128), 1):
        x = _conv(x, width, f"conv{block}a")
        x = _conv(x, width, f"conv{block}b")
        x = layers.MaxPooling2D(name=f"pool{block}")(x)
    return x


def _conv(x: Any, width: int, name: str, padding: str = "same") -> Any:
    return backend.keras().layers.Conv2D(width, 3, padding=padding, activation="relu", name=name)(x)
