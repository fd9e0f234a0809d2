"""Activation statistics of each layer."""

from __future__ import annotations

import numpy as np
import pytest

from networks import pictures, plan
from sightline import backend
from sightline.models.build import build
from sightline.models.signal import signals


def test_by_hand() -> None:
    layers = backend.keras().layers
    inputs = backend.keras().Input((4, 4, 1), dtype="uint8")
    scaled = layers.Rescaling(1 / 255)(inputs)
    tripled = layers.Conv2D(1, 1, use_bias=False, kernel_initializer="ones", name="same")(scaled)
    tripled = layers.Rescaling(3.0)(tripled)
    outputs = layers.Conv2D(1, 1, use_bias=False, kernel_initializer="ones", name="tripled")(tripled)
    pixels = pictures(6, 4, 1)
    found = {s.layer: s for s in signals(backend.keras().Model(inputs, outputs), pixels)}
    assert list(found) == ["pixels", "same", "tripled"]
    exact = pixels / 255
    assert found["pixels"].deviation == pytest.approx(exact.std(), rel=1e-5)
    assert found["same"].between == pytest.approx(exact.std(axis=0).mean(), rel=1e-5)
    assert found["tripled"].between == pytest.approx(3 * found["same"].between, rel=1e-5)


def test_equal_pictures_have_no_signal_between_them() -> None:
    network = build(plan("cifar10-deep"))
    pixels = np.repeat(pictures(1, 8), 3, axis=0)
    assert all(s.between < 1e-6 for s in signals(network.model, pixels))
    assert signals(network.model, pixels)[0].deviation > 0.1


def test_small_gaussian_weights_lose_the_signal_and_he_with_normalisation_keeps_it() -> None:
    pixels = pictures(8, 32)
    lost = signals(build(plan("vgg16", side=32, init="gaussian", normalize="unit")).model, pixels)[-1]
    kept = signals(build(plan("vgg16-bn", side=32)).model, pixels)[-1]
    assert lost.layer == kept.layer == "predictions"
    assert lost.between < 1e-8
    assert kept.between > 1e-2
