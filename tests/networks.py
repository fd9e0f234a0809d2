"""Networks of the registry, small enough for tests."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sightline.config import ModelConfig
from sightline.data.types import Subset
from sightline.models import registry
from sightline.models.build import ModelSpec, Network, build_model

NAMES = tuple(registry.ENTRIES)
SLOW = {  # take seconds, or have the same blocks as a faster network
    "densenet121",
    "efficientnetb0",
    "efficientnetv2b0",
    "efficientnet-lite0",
    "efficientnet-lite1",
    "efficientnet-lite2",
    "convnext-tiny",
    "inceptionv3",
    "mobilenet",
    "mobilenetv3-large",
    "mobilenetv3-small",
    "nasnetmobile",
    "resnet50",
    "se-resnet",
    "vgg16-bn",
    "vgg19",
    "xception",
}
RUNS = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in NAMES]  # to build and run
LARGE = {"nasnetmobile", "efficientnet-lite1", "efficientnet-lite2", "mobilenetv3-large", "vgg19"}
GRAPHS = [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in NAMES]  # only to build
SMALL_SETTINGS: dict[str, dict[str, Any]] = {
    "alexnet": {"hidden_units": (16,)},
    "vgg16": {"hidden_units": (16,)},
    "vgg19": {"hidden_units": (16,)},
    "mobilenet": {"alpha": 0.25},
    "mobilenetv2": {"alpha": 0.35},
    "mobilenetv3-small": {"alpha": 0.75},
    "mobilenetv3-large": {"alpha": 0.75},
}
STATISTICS = (120.0, 60.0)  # for networks that normalize by the statistics of the training pixels


def make_plan(
    name: str,
    *,
    side: int | None = None,
    channels: int = 3,
    classes: int = 2,
    seed: int = 0,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> ModelSpec:
    """Return a plan for the smallest images that the network accepts; `settings` are for ``[model]``."""
    side = side or registry.ENTRIES[name].min_input_size
    config = ModelConfig(name=name, **(SMALL_SETTINGS.get(name, {}) | settings))
    return ModelSpec(config, side, side, channels, classes, seed, pixel_stats=STATISTICS, **(options or {}))


@cache
def build_network(name: str) -> Network:
    """Return the network called `name`; do not modify it."""
    return build_model(make_plan(name, classes=3))


def make_subset(count: int, seed: int = 0, side: int = 8) -> Subset:
    """Return random images of three classes in turn."""
    labels = (np.arange(count) % 3).astype(np.int32)
    pixels = random_images(count, side, seed=seed)
    return Subset(pixels, np.arange(count), labels, tuple(f"{i}.png" for i in range(count)))


def random_images(count: int, side: int, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, channels), np.uint8)


def compute_outputs(model: Any, pixels: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
    """Call the model in inference mode without compiling it; return every output as an array."""
    from sightline import backend

    to_numpy = backend.keras().ops.convert_to_numpy
    return {name: to_numpy(value) for name, value in model(pixels, training=False).items()}
