"""Features that are computed before the network exists: the same bits, and only where they are those of the network."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from networks import make_plan, random_images
from sightline.callbacks import no_progress
from sightline.config import DataConfig, DeviceConfig, RunConfig, SplitConfig, StageConfig, TrainConfig
from sightline.data.types import Subset
from sightline.inference import frozen_layers
from sightline.models import pretrained
from sightline.models.build import Network, build_model
from sightline.models.registry import ENTRIES
from sightline.training import stage_features
from sightline.training.early_features import EarlyFeatures, computing_early

pytestmark = pytest.mark.usefixtures("no_thread_left")

LITE0, SIDE = ENTRIES["efficientnet-lite0"], 64
PIXELS = random_images(60, SIDE)
HEAD = StageConfig("head", unfreeze=0, solver="logistic")
CONFIG = RunConfig(
    device=DeviceConfig(feature_runtime="onnxruntime", threads=2),
    train=TrainConfig(stages=(HEAD,)),
    data=DataConfig(cache=False),
)


def make_subset(start: int, stop: int, pixels: NDArray[np.uint8] = PIXELS) -> Subset:
    rows = np.random.default_rng(0).permutation(60)[start:stop]
    count = stop - start
    return Subset(pixels, rows, (np.arange(count) % 2).astype(np.int32), tuple(map(str, rows)))


TRAIN, VALIDATION = make_subset(0, 45), make_subset(45, 58)


def find_weights() -> Path:
    path = pretrained.find_cached_file(LITE0, None, SIDE)
    assert path is not None, "the extra train brings them"
    return path


def build_pretrained(side: int = SIDE) -> Network:
    return build_model(make_plan(LITE0.name, side=side, options={"weights": find_weights()}))


def extract(
    network: Network, early: EarlyFeatures | None, config: RunConfig = CONFIG, validation: Subset = VALIDATION
) -> Any:
    group = config.train.stages
    return stage_features.extract_features(network, group, TRAIN, validation, config, no_progress, early=early)


@pytest.mark.slow_with("onnxruntime-five images in both", "onnxruntime-apart")
@pytest.mark.parametrize("validation", [VALIDATION, make_subset(40, 58)], ids=["apart", "five images in both"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "onnxruntime-int8"])
def test_they_are_those_that_training_would_compute(
    runtime: Any, validation: Subset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen_layers, "MIN_INT8_IMAGES", 1)
    config = dataclasses.replace(CONFIG, device=DeviceConfig(feature_runtime=runtime, threads=2))
    network = build_pretrained()
    expected = extract(network, None, config, validation)
    with computing_early(config, LITE0, find_weights(), TRAIN, validation) as early:
        monkeypatch.setattr(stage_features, "_iterate_features", lambda *_: pytest.fail("they are computed again"))
        features = extract(network, early, config, validation)
    for name in ("train", "validation"):
        subset, other = getattr(features, name), getattr(expected, name)
        np.testing.assert_array_equal(subset.take(slice(None)), other.take(slice(None)))
        np.testing.assert_array_equal(subset.labels, other.labels)


def test_only_training_images_are_computed_in_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_layers, "MIN_INT8_IMAGES", len(TRAIN))
    config = dataclasses.replace(CONFIG, device=DeviceConfig(feature_runtime="onnxruntime-int8", threads=2))
    network = build_pretrained()
    exact, features = extract(network, None), extract(network, None, config)
    np.testing.assert_array_equal(features.validation.take(slice(None)), exact.validation.take(slice(None)))
    difference = features.train.take(slice(None)) - exact.train.take(slice(None))
    assert 0 < np.sqrt(np.mean(difference**2)) < frozen_layers.INT8_TOLERANCE * exact.train.pixels.std()
    assert not np.array_equal(features.train.pixels, exact.train.pixels)
    monkeypatch.setattr(frozen_layers, "MIN_INT8_IMAGES", len(TRAIN) + 1)
    np.testing.assert_array_equal(extract(network, None, config).train.pixels, exact.train.pixels)


def test_those_of_training_images_are_kept_until_they_were_taken() -> None:
    calls: list[str] = []
    prepare = lambda: calls.append("meanwhile")  # noqa: E731  # one line
    with computing_early(CONFIG, LITE0, find_weights(), TRAIN, VALIDATION, meanwhile=prepare) as early:
        assert early is not None
        assert not calls
        extract(build_pretrained(), early)
        assert calls == ["meanwhile"]
        assert early.find(TRAIN) is None
        assert early.find(VALIDATION) is not None
        assert early.find(VALIDATION) is not None, "a second time"


@pytest.mark.slow
def test_those_of_another_network_are_not_used() -> None:
    network = build_pretrained()
    kernel = network.model.get_layer("stem").kernel
    kernel.assign(2 * kernel)  # as in a run that continues from other weights
    with computing_early(CONFIG, LITE0, find_weights(), TRAIN, VALIDATION) as early:
        assert early is not None
        features = extract(network, early)
    np.testing.assert_array_equal(features.train.take(slice(None)), extract(network, None).train.take(slice(None)))


def test_those_of_other_images_are_not_used() -> None:
    with computing_early(CONFIG, LITE0, find_weights(), TRAIN, VALIDATION) as early:
        assert early is not None
        layers = early._exact
        assert early.has(layers, TRAIN)
        assert not early.has(layers, make_subset(0, 45, PIXELS.copy()))
        assert not early.has(layers, make_subset(50, 60)), "two of these rows are in neither split"
        assert not early.has(dataclasses.replace(layers, cache_key=(b"another",)), TRAIN)


def test_an_error_ends_the_threads() -> None:
    with pytest.raises(KeyboardInterrupt), computing_early(CONFIG, LITE0, find_weights(), TRAIN, VALIDATION):
        raise KeyboardInterrupt


def replace_train(**changes: Any) -> RunConfig:
    return dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, **changes))


@pytest.mark.parametrize(
    "config",
    [
        replace_train(stages=()),
        replace_train(stages=(StageConfig("all"),)),
        dataclasses.replace(CONFIG, device=DeviceConfig(feature_runtime="keras")),
        dataclasses.replace(CONFIG, split=SplitConfig(folds=3)),
    ],
)
def test_where_training_needs_others_none_are_computed(config: RunConfig) -> None:
    with computing_early(config, LITE0, find_weights(), TRAIN, VALIDATION) as early:
        assert early is None


def test_other_networks_and_random_weights_have_none(tmp_path: Path) -> None:
    with computing_early(CONFIG, LITE0, None, TRAIN, VALIDATION) as early:
        assert early is None
    with computing_early(CONFIG, ENTRIES["mobilenetv2"], tmp_path / "none.h5", TRAIN, VALIDATION) as early:
        assert early is None
    with computing_early(CONFIG, LITE0, tmp_path / "missing.pth", TRAIN, VALIDATION) as early:
        assert early is None, "the network reports it"


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "onnxruntime-int8"])
def test_features_that_are_kept_are_not_computed_again(
    runtime: Any, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen_layers, "MIN_INT8_IMAGES", 1)
    device = DeviceConfig(feature_runtime=runtime, threads=2)
    config = dataclasses.replace(CONFIG, data=DataConfig(cache=True), device=device)
    for is_kept in (False, True):
        with computing_early(config, LITE0, find_weights(), TRAIN, VALIDATION) as early:
            assert (early is None) == is_kept
            extract(build_pretrained(), early, config)
    assert list(own_cache.iterdir())
