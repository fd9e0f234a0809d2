"""Build the network to train from a resolved configuration and its data, and extract the model to save."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sightline import backend
from sightline.config import RunConfig
from sightline.data.dataset import Dataset
from sightline.models import build, registry, whitening
from sightline.models.build import Network, Plan
from sightline.records import Index
from sightline.training import precision
from sightline.training.devices import Spread
from sightline.watch import Watcher
from sightline.workflow import choose


def plan(config: RunConfig, data: Dataset, start: Path | None) -> Plan:
    """Return the specification of the network; `start` is the file with its initial weights, None for random ones."""
    height, width, channels = data.pixels.shape[1:]
    entry = registry.find(config.model.name)
    standard = None
    if "standardize" in (config.model.normalize, entry.normalize):
        standard = _mean_and_deviation(data)
    return Plan(
        config.model, height, width, channels, len(data.classes), config.seed,
        config.train.precision, config.train.l2, standard, start,
    )  # fmt: skip


def _mean_and_deviation(data: Dataset) -> tuple[float, float]:
    """Return the mean and standard deviation over all training pixels (0 to 255), without copying them."""
    samples = data.part("train")
    total = squares = count = 0
    for start in range(0, len(samples), 256):
        histogram = np.bincount(samples.take(slice(start, start + 256)).ravel(), minlength=256)
        values = np.arange(256)
        total += int((histogram * values).sum())
        squares += int((histogram * values**2).sum())
        count += int(histogram.sum())
    mean = total / count
    return mean, float(np.sqrt(squares / count - mean**2))


def built(made: Plan, data: Dataset) -> Network:
    """Build the network; initialize a whitening first layer, if it has one, from the training images."""
    network = build.build(made)
    if made.weights is None:
        whitening.begin(network.model, registry.find(made.config.name).whitened, data.part("train"))
    return network


def precise(config: RunConfig, index: Index, watcher: Watcher) -> RunConfig:
    """Return `config` with `auto` precision resolved by a benchmark, whose result is reported."""
    if config.train.precision != "auto":
        return config
    size, classes = choose.preprocess(config), len({p.label for p in index.pictures})
    made = Plan(config.model, size.height, size.width, size.channels, classes, standard=(127.5, 64.0))
    found = precision.decide(made, config, len(index.pictures))
    watcher.say(f"precision {found.precision}: {found.why}")
    return replace(config, train=replace(config.train, precision=found.precision))


def alone(network: Network, made: Plan, spread: Spread) -> Any:
    """Return the network as a float32 model on one device: itself, or a copy if it trained differently."""
    if made.precision == "float32" and spread.made is None:
        return network.model
    copy = build.build(replace(made, precision="float32", l2=0.0)).model
    backend.assign_all(copy.weights, network.model.get_weights())
    return copy
