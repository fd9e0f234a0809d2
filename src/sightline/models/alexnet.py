"""AlexNet (Krizhevsky, Sutskever and Hinton, 2012, ImageNet Classification with Deep Convolutional Networks)."""

from __future__ import annotations

from typing import Any

from sightline import backend


def alexnet(x: Any, groups: int) -> Any:
    """Apply AlexNet's five convolutions; with `groups=2`, conv2, conv4 and conv5 are grouped, as on two GPUs.

    With a 227x227x3 input and 1000 classes: 60,965,224 parameters with two groups, 62,378,344 with one. Pooling
    overlaps: 3x3 windows with stride 2.
    """
    layers = backend.keras().layers
    x = layers.Conv2D(96, 11, strides=4, activation="relu", name="conv1")(x)  # [N, 55, 55, 96] from 227
    x = local_response_norm(x, "norm1")
    x = layers.MaxPooling2D(3, 2, name="pool1")(x)
    x = _apply_grouped_conv(x, 256, 5, groups, "conv2")
    x = local_response_norm(x, "norm2")
    x = layers.MaxPooling2D(3, 2, name="pool2")(x)
    x = _apply_grouped_conv(x, 384, 3, 1, "conv3")
    x = _apply_grouped_conv(x, 384, 3, groups, "conv4")
    x = _apply_grouped_conv(x, 256, 3, groups, "conv5")
    return layers.MaxPooling2D(3, 2, name="pool5")(x)


def local_response_norm(x: Any, name: str) -> Any:
    """Apply local response normalization (section 3.3): x / (2 + 1e-4 * s) ** 0.75, same shape as `x` [N, H, W, C].

    s is the sum of squares over five neighboring channels. Keras has no such layer, so this uses stock layers: a saved
    model then loads in safe mode and can be exported.
    """
    keras = backend.keras()
    layers = keras.layers
    height, width, channels = x.shape[1:]
    squares = layers.Multiply(name=f"{name}_squares")([x, x])
    rows = layers.Reshape((height * width, channels, 1), name=f"{name}_rows")(squares)
    rows = layers.ZeroPadding2D((0, 2), name=f"{name}_pad")(rows)
    mean = layers.AveragePooling2D((1, 5), strides=1, name=f"{name}_mean")(rows)
    scale = layers.Rescaling(5e-4, 2.0, name=f"{name}_scale")(mean)
    scale = layers.Reshape((height, width, channels), name=f"{name}_maps")(scale)
    return layers.Multiply(name=name)([x, keras.ops.power(scale, -0.75)])


def _apply_grouped_conv(x: Any, width: int, size: int, groups: int, name: str) -> Any:
    """Convolve each group of channels separately.

    ``Conv2D(groups=2)`` would need XLA on a CPU: a training step of conv2 took 4.7 s; with two convolutions, 0.4 s.
    """
    keras = backend.keras()
    layers = keras.layers
    if groups == 1:
        return layers.Conv2D(width, size, padding="same", activation="relu", name=name)(x)
    outputs = [
        layers.Conv2D(width // groups, size, padding="same", activation="relu", name=f"{name}_{number}")(group)
        for number, group in enumerate(keras.ops.split(x, groups, axis=-1), 1)
    ]
    return layers.Concatenate(name=name)(outputs)
