"""How strong the signal is behind each layer: whether a network can start to learn from where it is.

In a plain network each layer multiplies the scale of what differs between pictures. Where weights are drawn too small
for their number of inputs, nothing of it reaches the logits (Glorot and Bengio, 2010; He et al., 2015,
arXiv:1502.01852, section 2.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend


@dataclass(frozen=True, slots=True)
class Signal:
    """Of one layer's output: `deviation` over all its values, `between` the mean deviation from picture to picture."""

    layer: str
    deviation: float
    between: float


def signals(model: Any, pixels: NDArray[np.uint8]) -> list[Signal]:
    """Return the signal behind each layer of a Keras model that has weights, and of the input, for uint8 [N, H, W, C].

    Two pictures at least; the model is run as it is, not training.
    """
    keras = backend.keras()
    layers = [layer for layer in model.layers if layer.weights]
    outputs = {layer.name: layer.output for layer in layers}
    found = keras.Model(model.input, outputs).predict_on_batch(pixels)
    return [
        _measure("pixels", pixels / np.float32(255)),
        *(_measure(layer.name, found[layer.name]) for layer in layers),
    ]


def _measure(name: str, values: NDArray[Any]) -> Signal:
    exact = np.asarray(values, np.float64)
    return Signal(name, float(exact.std()), float(exact.std(axis=0).mean()))
