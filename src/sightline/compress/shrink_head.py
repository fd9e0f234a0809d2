"""Head shrinking: global pooling instead of flattening, because most weights of a classic network are in its head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from sightline import backend
from sightline.config import ModelConfig
from sightline.models import registry
from sightline.models.build import NORMALIZE_LAYER, ModelSpec, Network, build_model
from sightline.models.head import LOGITS
from sightline.models.pretrained import GRAY_LAYER
from sightline.tasks.protocol import find_task

SHRINK = 8  # factor by which a hidden layer is narrowed


def list_smaller_heads(config: ModelConfig) -> list[ModelConfig]:
    """Return configs with smaller heads, smallest first; empty if there is no flattening and no hidden layer."""
    entry = registry.get_entry(config.name)
    pooling = entry.head.pooling if config.pooling == "auto" else config.pooling
    hidden = entry.head.hidden if config.hidden_units is None else config.hidden_units
    if pooling != "flatten" and not hidden:
        return []
    target_pooling = "average" if pooling == "flatten" else pooling
    configs = [replace(config, pooling=target_pooling, hidden_units=())]
    if hidden:
        configs.append(replace(config, pooling=target_pooling, hidden_units=(max(min(hidden) // SHRINK, 8),)))
    return configs


def rebuild_with_head(model: Any, config: ModelConfig, seed: int) -> Network:
    """Return the network of `config` with the backbone weights of `model` and a new head.

    `model` must have been built by `models.build.build_model` with the same settings, except for pooling and hidden
    layers.
    """
    height, width, channels = model.input.shape[1:]
    classes = model.output[LOGITS].shape[-1]
    spec = ModelSpec(
        config, height, width, channels, classes, seed, pixel_stats=_read_pixel_stats(model),
        gray_to_color=any(layer.name == GRAY_LAYER for layer in model.layers),
        activation=find_task(config.task).activation,
    )  # fmt: skip
    network = build_model(spec)
    for name in network.backbone:
        backend.assign_all(network.model.get_layer(name).weights, model.get_layer(name).weights)
    return network


def _read_pixel_stats(model: Any) -> tuple[float, float] | None:
    """Return the mean and standard deviation of the pixels, from the layer that uses them for normalization."""
    layer = model.get_layer(NORMALIZE_LAYER)
    if np.ndim(layer.scale) or np.ndim(layer.offset):
        return None
    return -float(layer.offset) / float(layer.scale), 1 / float(layer.scale)
