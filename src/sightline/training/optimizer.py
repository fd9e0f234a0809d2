"""Keras' optimizers and losses from their settings."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline.config import OptimizerConfig, TrainConfig


def optimizer(config: OptimizerConfig, learning_rate: float) -> Any:
    """Return a new Keras optimizer; its rate is set before each step by the schedule."""
    keras = backend.keras()
    options: dict[str, Any] = {"learning_rate": learning_rate}
    if config.weight_decay or config.name in {"adamw", "muon"}:  # these two decay by default
        options["weight_decay"] = config.weight_decay
    if config.name == "muon":
        options["adam_weight_decay"] = config.weight_decay  # of the weights that it leaves to Adam
    if config.clip_norm:
        options["global_clipnorm"] = config.clip_norm
    if config.name == "sgd":
        options |= {"momentum": config.momentum, "nesterov": config.nesterov}
    kinds = {"sgd": "SGD", "rmsprop": "RMSprop", "adamw": "AdamW"}
    return getattr(keras.optimizers, kinds.get(config.name, config.name.capitalize()))(**options)


def loss(config: TrainConfig) -> Any:
    """Return the Keras loss of logits float32 [N, K] against label shares float32 [N, K]."""
    keras = backend.keras()
    if config.loss == "focal":
        return keras.losses.CategoricalFocalCrossentropy(from_logits=True)
    return keras.losses.CategoricalCrossentropy(from_logits=True)


def label_shares(labels: NDArray[np.int32], classes: int, smoothing: float) -> NDArray[np.float32]:
    """Return one-hot labels with `smoothing` spread evenly over all classes: float32 [N, K], rows sum to 1.

    >>> [round(share, 3) for share in label_shares(np.array([1], np.int32), 2, 0.2)[0].tolist()]
    [0.1, 0.9]
    """
    shares = np.full((len(labels), classes), smoothing / classes, np.float32)
    shares[np.arange(len(labels)), labels] += 1 - smoothing
    return shares


def class_weights(labels: NDArray[np.int32], classes: int, mode: str) -> NDArray[np.float32] | None:
    """Return a weight for each class (float32 [K], weighted mean over the pictures 1), or None for equal weights."""
    if mode == "none":
        return None
    counts = np.bincount(labels, minlength=classes)
    return (len(labels) / (classes * np.maximum(counts, 1))).astype(np.float32)
