"""VGG (Simonyan and Zisserman, 2014): 3x3 convolutions with stride 1, 2x2 max pooling with stride 2."""

from __future__ import annotations

from typing import Any

from sightline import backend

WIDTHS = (64, 128, 256, 512, 512)


def vgg16(x: Any) -> Any:
    """Apply the 13 convolutions of VGG16 in five blocks; layer names as in `keras.applications`."""
    return _blocks(x, (2, 2, 3, 3, 3))


def vgg19(x: Any) -> Any:
    """Apply the 16 convolutions of VGG19 in five blocks; layer names as in `keras.applications`."""
    return _blocks(x, (2, 2, 4, 4, 4))


def vgg16_bn(x: Any) -> Any:
    """Apply VGG16 with batch normalization (Ioffe and Szegedy, 2015) between each convolution and its ReLU."""
    return _blocks(x, (2, 2, 3, 3, 3), normalized=True)


def _blocks(x: Any, depths: tuple[int, ...], *, normalized: bool = False) -> Any:
    layers = backend.keras().layers
    for number, (width, depth) in enumerate(zip(WIDTHS, depths, strict=True), 1):
        for i in range(1, depth + 1):
            name = f"block{number}_conv{i}"
            if normalized:  # the normalization's offset replaces the bias
                x = layers.Conv2D(width, 3, padding="same", use_bias=False, name=name)(x)
                x = layers.BatchNormalization(name=f"{name}_bn")(x)
                x = layers.Activation("relu", name=f"{name}_relu")(x)
            else:
                x = layers.Conv2D(width, 3, padding="same", activation="relu", name=name)(x)
        x = layers.MaxPooling2D(name=f"block{number}_pool")(x)
    return x
