"""Weight initialization follows `model.initializer`: standard deviations, biases, and signal propagation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from networks import compute_outputs, make_plan, random_images
from sightline import backend
from sightline.models.build import build_model
from sightline.models.describe import weights_sha256


def get_weights(model: Any, layer: str, name: str = "kernel") -> NDArray[np.float32]:
    return np.asarray(backend.keras().ops.convert_to_numpy(getattr(model.get_layer(layer), name)))


def test_gaussian_is_normal_with_a_hundredth_and_no_bias() -> None:
    model = build_model(make_plan("vgg16", initializer="gaussian")).model
    kernel = get_weights(model, "block5_conv2").ravel()
    assert kernel.mean() == pytest.approx(0, abs=4 * 0.01 / math.sqrt(kernel.size))
    assert kernel.std() == pytest.approx(0.01, rel=4 / math.sqrt(2 * kernel.size))
    assert stats.kstest(kernel[:5000] / 0.01, "norm").pvalue > 0.001
    biases = [np.asarray(v) for v in model.weights if v.path.endswith("bias")]
    assert len(biases) == 15
    assert not any(bias.any() for bias in biases)


@pytest.mark.parametrize(
    ("init", "layer", "deviation"),
    [
        ("he", "conv4", math.sqrt(2 / (9 * 64))),
        ("glorot", "conv4", math.sqrt(2 / (9 * 64 + 9 * 64))),
        ("he", "fc1", math.sqrt(2 / 256)),
        ("glorot", "fc1", math.sqrt(2 / (256 + 512))),
    ],
)
def test_standard_deviation_follows_fan_in(init: str, layer: str, deviation: float) -> None:
    kernel = get_weights(build_model(make_plan("cifar10-deep", side=12, initializer=init)).model, layer)
    assert kernel.std() == pytest.approx(deviation, rel=0.03)


def test_depthwise_filter_sees_one_channel() -> None:
    model = build_model(make_plan("mobilenetv2", initializer="he")).model
    kernel = np.concatenate([get_weights(model, f"block_{n}_depthwise").ravel() for n in (10, 11, 12, 13, 14, 15)])
    assert kernel.std() == pytest.approx(math.sqrt(2 / 9), rel=0.03)
    assert (get_weights(model, "bn_Conv1", "gamma") == 1).all(), "normalization must not change"


def test_alexnet_starts_as_in_the_paper() -> None:
    model = build_model(make_plan("alexnet")).model
    assert get_weights(model, "conv3").std() == pytest.approx(0.01, rel=0.01)
    biases = {v.path.split("/")[0]: np.asarray(v) for v in model.weights if v.path.endswith("bias")}
    ones = {"conv2_1", "conv2_2", "conv4_1", "conv4_2", "conv5_1", "conv5_2", "fc1"}
    assert {name for name, bias in biases.items() if (bias == 1).all()} == ones
    assert {name for name, bias in biases.items() if (bias == 0).all()} == set(biases) - ones
    gaussian_model = build_model(make_plan("alexnet", initializer="gaussian")).model
    assert not any(np.asarray(v).any() for v in gaussian_model.weights if v.path.endswith("bias"))


def test_identity_passes_channels_on_and_starts_near_zero() -> None:
    model = build_model(make_plan("airbench")).model
    for layer, inputs in (("conv1a", 24), ("conv1b", 64), ("conv2a", 64)):
        kernel = get_weights(model, layer)
        identity, rest = kernel[..., :inputs], kernel[..., inputs:]
        np.testing.assert_array_equal(identity[1, 1], np.eye(inputs))
        assert np.count_nonzero(identity) == inputs
        if rest.size:
            assert rest.std() == pytest.approx(1 / math.sqrt(3 * 9 * inputs), rel=0.03)
    assert get_weights(model, "predictions").std() == pytest.approx(1 / 256, rel=0.05)
    assert weights_sha256(build_model(make_plan("airbench")).model) == weights_sha256(model)


@pytest.mark.parametrize("init", ["gaussian", "he", "glorot"])
def test_weights_depend_only_on_the_seed(init: str) -> None:
    first = weights_sha256(build_model(make_plan("fashion-cnn", initializer=init)).model)
    backend.keras().utils.set_random_seed(99)
    assert weights_sha256(build_model(make_plan("fashion-cnn", initializer=init)).model) == first
    assert weights_sha256(build_model(make_plan("fashion-cnn", initializer=init, seed=1)).model) != first
    model = build_model(make_plan("fashion-cnn", initializer=init)).model
    one, two = get_weights(model, "conv2b"), get_weights(model, "conv3b")
    assert not np.array_equal(one.ravel()[:99] / one.std(), two.ravel()[:99] / two.std()), "one stream per weight"


def test_gaussian_vgg16_loses_its_signal_and_he_preserves_it() -> None:
    pixels = random_images(2, 32)
    gaussian_features = compute_outputs(
        build_model(make_plan("vgg16", initializer="gaussian", pooling="average", hidden_units=())).model, pixels
    )["features"]
    he_features = compute_outputs(
        build_model(make_plan("vgg16", initializer="he", pooling="average", hidden_units=())).model, pixels
    )["features"]
    # Each layer scales the signal by about 0.01 * sqrt(fan_in / 2), less at the borders: 1e-7 in total.
    assert gaussian_features.std() < 1e-4 * he_features.std()
    assert he_features.std() > 1
