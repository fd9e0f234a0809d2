"""Weight initialization follows `model.init`: standard deviations, biases, and signal propagation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from networks import outputs, pictures, plan
from sightline import backend
from sightline.models.build import build
from sightline.models.describe import weights_sha256


def value(model: Any, layer: str, name: str = "kernel") -> NDArray[np.float32]:
    return np.asarray(backend.keras().ops.convert_to_numpy(getattr(model.get_layer(layer), name)))


def test_gaussian_is_normal_with_a_hundredth_and_no_bias() -> None:
    model = build(plan("vgg16", init="gaussian")).model
    kernel = value(model, "block5_conv2").ravel()
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
def test_spread_follows_the_number_of_inputs(init: str, layer: str, deviation: float) -> None:
    kernel = value(build(plan("cifar10-deep", side=12, init=init)).model, layer)
    assert kernel.std() == pytest.approx(deviation, rel=0.03)


def test_depthwise_filter_sees_one_channel() -> None:
    model = build(plan("mobilenetv2", init="he")).model
    kernel = np.concatenate([value(model, f"block_{n}_depthwise").ravel() for n in (10, 11, 12, 13, 14, 15)])
    assert kernel.std() == pytest.approx(math.sqrt(2 / 9), rel=0.03)
    assert (value(model, "bn_Conv1", "gamma") == 1).all(), "normalization must not change"


def test_alexnet_starts_as_in_the_paper() -> None:
    model = build(plan("alexnet")).model
    assert value(model, "conv3").std() == pytest.approx(0.01, rel=0.01)
    biases = {v.path.split("/")[0]: np.asarray(v) for v in model.weights if v.path.endswith("bias")}
    ones = {"conv2_1", "conv2_2", "conv4_1", "conv4_2", "conv5_1", "conv5_2", "fc1"}
    assert {name for name, bias in biases.items() if (bias == 1).all()} == ones
    assert {name for name, bias in biases.items() if (bias == 0).all()} == set(biases) - ones
    asked = build(plan("alexnet", init="gaussian")).model
    assert not any(np.asarray(v).any() for v in asked.weights if v.path.endswith("bias"))


@pytest.mark.parametrize("init", ["gaussian", "he", "glorot"])
def test_seed_alone_decides(init: str) -> None:
    first = weights_sha256(build(plan("fashion-cnn", init=init)).model)
    backend.keras().utils.set_random_seed(99)
    assert weights_sha256(build(plan("fashion-cnn", init=init)).model) == first
    assert weights_sha256(build(plan("fashion-cnn", init=init, seed=1)).model) != first
    model = build(plan("fashion-cnn", init=init)).model
    one, two = value(model, "conv2b"), value(model, "conv3b")
    assert not np.array_equal(one.ravel()[:99] / one.std(), two.ravel()[:99] / two.std()), "one stream per weight"


def test_gaussian_vgg16_loses_its_signal_and_he_keeps_it() -> None:
    pixels = pictures(2, 32)
    faded = outputs(build(plan("vgg16", init="gaussian", pooling="average", hidden=())).model, pixels)["features"]
    kept = outputs(build(plan("vgg16", init="he", pooling="average", hidden=())).model, pixels)["features"]
    # Each layer scales the signal by about 0.01 * sqrt(fan_in / 2), less at the borders: 1e-7 in total.
    assert faded.std() < 1e-4 * kept.std()
    assert kept.std() > 1
