"""SqueezeNet 1.1 (Iandola et al., 2016, arXiv:1602.07360; version 1.1 from its authors' repository)."""

from __future__ import annotations

from typing import Any

from sightline import backend


def squeezenet(x: Any) -> Any:
    """Apply a convolution and eight fire modules; 722,496 parameters, in the order of the published weights.

    The paper ends in a 1x1 convolution with K filters and average pooling. Our head pools first and then applies a
    dense layer with K units: the same number of parameters, but no ReLU, so that logits can be negative.
    """
    layers = backend.keras().layers
    x = layers.Conv2D(64, 3, strides=2, activation="relu", name="conv1")(x)
    x = layers.MaxPooling2D(3, 2, name="pool1")(x)
    for number in (2, 3):
        x = _apply_fire_module(x, 16, 64, f"fire{number}")
    x = layers.MaxPooling2D(3, 2, name="pool3")(x)
    for number in (4, 5):
        x = _apply_fire_module(x, 32, 128, f"fire{number}")
    x = layers.MaxPooling2D(3, 2, name="pool5")(x)
    for number in (6, 7):
        x = _apply_fire_module(x, 48, 192, f"fire{number}")
    for number in (8, 9):
        x = _apply_fire_module(x, 64, 256, f"fire{number}")
    return x


def _apply_fire_module(x: Any, squeeze: int, expand: int, name: str) -> Any:
    """Squeeze to few channels with 1x1, then expand with parallel 1x1 and 3x3 convolutions."""
    layers = backend.keras().layers
    x = layers.Conv2D(squeeze, 1, activation="relu", name=f"{name}_squeeze1x1")(x)
    expand_1x1 = layers.Conv2D(expand, 1, activation="relu", name=f"{name}_expand1x1")(x)
    expand_3x3 = layers.Conv2D(expand, 3, padding="same", activation="relu", name=f"{name}_expand3x3")(x)
    return layers.Concatenate(name=f"{name}_concat")([expand_1x1, expand_3x3])
