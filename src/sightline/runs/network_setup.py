"""Build the network to train from a resolved configuration and its data, and extract the model to save."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sightline import backend
from sightline.callbacks import Callback
from sightline.config import RunConfig
from sightline.data.dataset import DecodedDataset
from sightline.data.types import Index
from sightline.distributed.devices import Distribution
from sightline.models import build, registry, whitening
from sightline.models.build import ModelSpec, Network
from sightline.runs import autoconfig
from sightline.training import precision


def build_model_spec(config: RunConfig, data: DecodedDataset, start: Path | None) -> ModelSpec:
    """Return the specification of the network; `start` is the file with its initial weights, None for random ones."""
    height, width, channels = data.pixels.shape[1:]
    entry = registry.get_entry(config.model.name)
    mean_and_std = None
    if "standardize" in (config.model.normalize, entry.normalize):
        mean_and_std = _mean_and_deviation(data)
    return ModelSpec(
        config.model, height, width, channels, len(data.classes), config.seed,
        config.train.precision, config.train.l2, mean_and_std, start,
    )  # fmt: skip


def _mean_and_deviation(data: DecodedDataset) -> tuple[float, float]:
    """Return the mean and standard deviation over all training pixels (0 to 255), without copying them."""
    samples = data.subset("train")
    pixel_sum = squares = count = 0
    for start in range(0, len(samples), 256):
        histogram = np.bincount(samples.take(slice(start, start + 256)).ravel(), minlength=256)
        values = np.arange(256)
        pixel_sum += int((histogram * values).sum())
        squares += int((histogram * values**2).sum())
        count += int(histogram.sum())
    mean = pixel_sum / count
    return mean, float(np.sqrt(squares / count - mean**2))


def build_network(spec: ModelSpec, data: DecodedDataset) -> Network:
    """Build the network; initialize a whitening first layer, if it has one, from the training images."""
    network = build.build_model(spec)
    if spec.weights is None:
        layer, train = registry.get_entry(spec.config.name).whitening_layer, data.subset("train")
        whitening.init_whitening(network.model, layer, len(train), train.take)
    return network


def resolve_precision(config: RunConfig, index: Index, callback: Callback) -> RunConfig:
    """Return `config` with `auto` precision resolved by a benchmark, whose result is reported."""
    if config.train.precision != "auto":
        return config
    preprocess, classes = autoconfig.build_preprocess(config), len({p.label for p in index.images})
    spec = ModelSpec(
        config.model, preprocess.height, preprocess.width, preprocess.channels, classes, pixel_stats=(127.5, 64.0)
    )
    choice = precision.choose_precision(spec, config, len(index.images))
    callback.on_message(f"precision {choice.precision}: {choice.reason}")
    return replace(config, train=replace(config.train, precision=choice.precision))


def to_single_device_model(network: Network, spec: ModelSpec, distribution: Distribution) -> Any:
    """Return the network as a float32 model on one device: itself, or a copy if it trained differently."""
    if spec.precision == "float32" and distribution.keras_distribution is None:
        return network.model
    copy = build.build_model(replace(spec, precision="float32", l2=0.0)).model
    backend.assign_all(copy.weights, network.model.get_weights())
    return copy
