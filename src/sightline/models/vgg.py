"""VGG (Simonyan and Zisserman, 2014): 3x3 convolutions with stride 1, 2x2 max pooling with stride 2."""

from __future__ import annotations

from typing import Any

from sightline import backend


def vgg16(x: Any) -> Any:
    """The 13 convolutions of VGG16, in five blocks; layer names as `keras.applications` has them."""
    return _blocks(x, ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)))


def _blocks(x: Any, blocks: tuple[tuple[int, int], ...]) -> Any:
    layers = backend.keras().layers
    for number, (width, depth) in enumerate(blocks, 1):
        for i in range(1, depth + 1):
            name = f"block{number}_conv{i}"
            x = layers.Conv2D(width, 3, padding="same", activation="relu", name=name)(x)
        x = layers.MaxPooling2D(name=f"block{number}_pool")(x)
    return x
