"""Whitening initialization: a first convolution whose outputs are uncorrelated and have unit variance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend

MAX_IMAGES = 1000  # enough to estimate the covariance of 2x2 patches
# Added to each variance, so that directions with little variance are not amplified (Jordan, 2024).
VARIANCE_FLOOR = 5e-4


def init_whitening(
    model: Any, name: str | None, count: int, take: Callable[[NDArray[np.int64]], NDArray[np.uint8]]
) -> None:
    """Initialize the layer `name` from training images spread evenly over all `count`; None: do nothing.

    `take` returns the images uint8 [N, H, W, C] at int64 positions [N].
    """
    if name is not None:
        positions = np.linspace(0, count - 1, min(count, MAX_IMAGES)).astype(np.int64)
        whiten_layer(model, name, take(positions))


def whiten_layer(model: Any, name: str, pixels: NDArray[np.uint8]) -> None:
    """Set the filters of the convolution `name` to the whitened principal directions of its patches, and negatives.

    `pixels` are uint8 [N, H, W, C]. The layer must follow the normalization directly and have twice as many filters as
    a patch has values. Each direction is divided by the standard deviation along it; biases are zero. Coates and Ng,
    2012, Learning Feature Representations with K-Means, section 2.2; as a first layer: Page, 2019, How to Train Your
    ResNet, part 8.
    """
    keras = backend.keras()
    layer = model.get_layer(name)
    inputs = np.asarray(keras.Model(model.input, layer.input).predict_on_batch(pixels), np.float64)
    height, width, channels = layer.kernel.shape[:3]
    patches = np.lib.stride_tricks.sliding_window_view(inputs, (height, width), axis=(1, 2))  # [N, H', W', C, h, w]
    rows = np.moveaxis(patches, 3, -1).reshape(-1, height * width * channels)
    covariance = np.einsum("ni,nj->ij", rows, rows, optimize=False) / len(rows)  # one thread: bit-identical everywhere
    values, vectors = np.linalg.eigh(covariance)
    directions = (vectors / np.sqrt(values + VARIANCE_FLOOR)).reshape(height, width, channels, -1)
    backend.assign(layer.kernel, np.concatenate([directions, -directions], axis=-1).astype(np.float32))
    backend.assign(layer.bias, np.zeros(layer.bias.shape, np.float32))
