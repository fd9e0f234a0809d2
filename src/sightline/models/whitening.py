"""Whitening initialization: a first convolution whose outputs are uncorrelated and have unit variance."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline.records import Samples

PICTURES = 1000  # enough to estimate the covariance of 2x2 patches
FLOOR = 5e-4  # added to each variance, so that directions with little variance are not amplified (Jordan, 2024)


def begin(model: Any, name: str | None, train: Samples) -> None:
    """Initialize the layer `name` from training images spread evenly over the subset; None: do nothing."""
    if name is not None:
        some = np.linspace(0, len(train) - 1, min(len(train), PICTURES)).astype(np.int64)
        whiten(model, name, train.take(some))


def whiten(model: Any, name: str, pixels: NDArray[np.uint8]) -> None:
    """Set the filters of the convolution `name` to the whitened principal directions of its patches, and negatives.

    `pixels` are uint8 [N, H, W, C]. The layer must follow the normalization directly and have twice as many filters as
    a patch has values. Each direction is divided by the standard deviation along it; biases are zero. Coates and Ng,
    2012, Learning Feature Representations with K-Means, section 2.2; as a first layer: Page, 2019, How to Train Your
    ResNet, part 8.
    """
    keras = backend.keras()
    layer = model.get_layer(name)
    seen = np.asarray(keras.Model(model.input, layer.input).predict_on_batch(pixels), np.float64)
    height, width, channels = layer.kernel.shape[:3]
    patches = np.lib.stride_tricks.sliding_window_view(seen, (height, width), axis=(1, 2))  # [N, H', W', C, h, w]
    rows = np.moveaxis(patches, 3, -1).reshape(-1, height * width * channels)
    covariance = np.einsum("ni,nj->ij", rows, rows, optimize=False) / len(rows)  # one thread: bit-identical everywhere
    values, vectors = np.linalg.eigh(covariance)
    directions = (vectors / np.sqrt(values + FLOOR)).reshape(height, width, channels, -1)
    backend.assign(layer.kernel, np.concatenate([directions, -directions], axis=-1).astype(np.float32))
    backend.assign(layer.bias, np.zeros(layer.bias.shape, np.float32))
