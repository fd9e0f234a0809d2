"""AlexNet's own layers compute what the paper defines."""

from __future__ import annotations

import numpy as np
import pytest

from networks import make_plan
from sightline import backend
from sightline.models.alexnet import alexnet, local_response_norm
from sightline.models.build import build_model


def test_response_normalization_is_the_papers_formula() -> None:
    keras = backend.keras()
    inputs = keras.Input((3, 4, 9))
    model = keras.Model(inputs, local_response_norm(inputs, "norm"))
    x = np.random.default_rng(0).normal(0, 200, (2, 3, 4, 9)).astype(np.float32)
    expected = np.empty_like(x)
    for i in range(9):
        near = x[..., max(0, i - 2) : min(9, i + 3)].astype(np.float64)
        expected[..., i] = x[..., i] / (2 + 1e-4 * (near**2).sum(-1)) ** 0.75
    np.testing.assert_allclose(np.asarray(model(x)), expected, rtol=2e-5)
    assert np.abs(expected).max() < 0.3 * np.abs(x).max(), "normalization must change the values"


@pytest.mark.parametrize("layer", ["conv2", "conv4", "conv5"])
def test_group_sees_only_its_half(layer: str) -> None:
    keras = backend.keras()
    inputs = keras.Input((67, 67, 3))
    whole = keras.Model(inputs, alexnet(inputs, groups=2))
    first, second = (whole.get_layer(f"{layer}_{n}") for n in (1, 2))
    before = first.input.shape[-1]
    assert second.input.shape[-1] == before
    both = keras.layers.Conv2D(2 * first.filters, first.kernel_size, padding="same", activation="relu", groups=2)
    x = np.random.default_rng(0).normal(size=(1, 7, 7, 2 * before)).astype(np.float32)
    both.build(x.shape)
    both.kernel.assign(np.concatenate([np.asarray(first.kernel), np.asarray(second.kernel)], -1))
    ours = [layer(x[..., n * before : (n + 1) * before]) for n, layer in enumerate((first, second))]
    np.testing.assert_allclose(np.concatenate(ours, -1), np.asarray(both(x)), atol=1e-4)


def test_feature_map_sizes_match_the_paper() -> None:
    keras = backend.keras()
    inputs = keras.Input((227, 227, 3))
    model = keras.Model(inputs, alexnet(inputs, groups=2))
    shapes = {name: model.get_layer(name).output.shape[1:] for name in ("conv1", "pool1", "conv2", "pool2", "pool5")}
    assert shapes == {
        "conv1": (55, 55, 96),
        "pool1": (27, 27, 96),
        "conv2": (27, 27, 256),
        "pool2": (13, 13, 256),
        "pool5": (6, 6, 256),
    }


def test_one_group_can_be_configured() -> None:
    names = [layer.name for layer in build_model(make_plan("alexnet", groups=1)).model.layers]
    assert "conv2_1" not in names
    assert "conv2" in names
