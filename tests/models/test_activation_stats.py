"""Activation statistics of each layer: whether the initial weights let a model start to learn.

In a plain network, each layer scales the differences between images. If the initial weights are too small for their
fan-in, those differences vanish before the logits (Glorot and Bengio, 2010; He et al., 2015, arXiv:1502.01852,
section 2.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from networks import make_plan, random_images
from sightline import backend
from sightline.models.build import build_model


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


def test_by_hand() -> None:
    layers = backend.keras().layers
    inputs = backend.keras().Input((4, 4, 1), dtype="uint8")
    scaled = layers.Rescaling(1 / 255)(inputs)
    tripled = layers.Conv2D(1, 1, use_bias=False, kernel_initializer="ones", name="same")(scaled)
    tripled = layers.Rescaling(3.0)(tripled)
    outputs = layers.Conv2D(1, 1, use_bias=False, kernel_initializer="ones", name="tripled")(tripled)
    pixels = random_images(6, 4, 1)
    stats_by_layer = {s.layer: s for s in measure_activations(backend.keras().Model(inputs, outputs), pixels)}
    assert list(stats_by_layer) == ["pixels", "same", "tripled"]
    exact = pixels / 255
    assert stats_by_layer["pixels"].std == pytest.approx(exact.std(), rel=1e-5)
    assert stats_by_layer["same"].std_between_images == pytest.approx(exact.std(axis=0).mean(), rel=1e-5)
    assert stats_by_layer["tripled"].std_between_images == pytest.approx(
        3 * stats_by_layer["same"].std_between_images, rel=1e-5
    )


def test_identical_images_have_no_variation() -> None:
    network = build_model(make_plan("cifar10-deep"))
    pixels = np.repeat(random_images(1, 8), 3, axis=0)
    assert all(s.std_between_images < 1e-6 for s in measure_activations(network.model, pixels))
    assert measure_activations(network.model, pixels)[0].std > 0.1


def test_small_gaussian_weights_lose_the_signal_and_he_with_normalization_preserves_it() -> None:
    pixels = random_images(8, 32)
    gaussian_stats = measure_activations(
        build_model(make_plan("vgg16", side=32, initializer="gaussian", normalize="unit")).model, pixels
    )[-1]
    he_stats = measure_activations(build_model(make_plan("vgg16-bn", side=32)).model, pixels)[-1]
    assert gaussian_stats.layer == he_stats.layer == "predictions"
    assert gaussian_stats.std_between_images < 1e-8
    assert he_stats.std_between_images > 1e-2
