"""Activation statistics of each layer: whether the initial weights let a model start to learn.

In a plain network, each layer scales the differences between images. If the initial weights are too small for their
fan-in, those differences vanish before the logits (Glorot and Bengio, 2010; He et al., 2015, arXiv:1502.01852,
section 2.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend


@dataclass(frozen=True, slots=True)
class ActivationStats:
    """Standard deviations of a layer's output: `std` over all values, `std_between_images` over images, averaged."""

    layer: str
    std: float
    std_between_images: float


def measure_activations(model: Any, pixels: NDArray[np.uint8]) -> list[ActivationStats]:
    """Return the activation statistics of the input and of each layer with weights, for uint8 [N, H, W, C].

    Needs at least two images; the model runs in inference mode.
    """
    keras = backend.keras()
    layers = [layer for layer in model.layers if layer.weights]
    outputs = {layer.name: layer.output for layer in layers}
    activations = keras.Model(model.input, outputs).predict_on_batch(pixels)
    return [
        _compute_stats("pixels", pixels / np.float32(255)),
        *(_compute_stats(layer.name, activations[layer.name]) for layer in layers),
    ]


def _compute_stats(name: str, values: NDArray[Any]) -> ActivationStats:
    values64 = np.asarray(values, np.float64)
    return ActivationStats(name, float(values64.std()), float(values64.std(axis=0).mean()))
