"""The first convolution whitens the patches of the given images."""

from __future__ import annotations

import numpy as np
import pytest

from networks import make_plan, random_images
from sightline import backend
from sightline.models.build import build_model
from sightline.models.initializers import whiten_layer


@pytest.mark.parametrize("channels", [1, 3])
def test_outputs_are_uncorrelated_with_unit_variance(channels: int) -> None:
    network = build_model(make_plan("fast-small", channels=channels, side=16))
    pixels = random_images(60, 16, channels=channels, seed=3)
    smooth = ((pixels[:, :-1].astype(int) + pixels[:, 1:]) // 2).astype(np.uint8)  # correlated neighbors
    smooth = np.concatenate([smooth, smooth[:, -1:]], 1)
    keras = backend.keras()
    layer = network.model.get_layer("whiten")
    whiten_layer(network.model, "whiten", smooth)
    layer_inputs = keras.Model(network.model.input, layer.input).predict_on_batch(smooth)
    linear = keras.ops.convert_to_numpy(keras.ops.conv(layer_inputs, layer.kernel, padding="valid"))
    half = linear.shape[-1] // 2
    assert half == 4 * channels
    np.testing.assert_allclose(linear[..., :half], -linear[..., half:], atol=1e-4)
    rows = linear[..., :half].reshape(-1, half).astype(np.float64)
    np.testing.assert_allclose(rows.T @ rows / len(rows), np.eye(half), atol=0.02)
