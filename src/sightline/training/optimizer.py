"""Build Keras optimizers and losses from their settings."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline.config import OptimizerConfig, TrainConfig
from sightline.models.kernels import quicken_adam


def optimizer(config: OptimizerConfig, learning_rate: float, average: float = 0.0) -> Any:
    """Return a new Keras optimizer; the schedule sets its learning rate before each step.

    It keeps an exponential moving average of the weights with decay `average`, unless that is 0. Weight decay is
    decoupled, as in Keras: each step subtracts ``learning_rate * weight_decay`` times the weight. FTRL starts from zero
    whatever the initial weights are, so it is not suited to deep networks, and its learning rate must not be zero.
    """
    keras = backend.keras()
    options: dict[str, Any] = {"learning_rate": learning_rate}
    if config.weight_decay or config.name in {"adamw", "muon"}:  # these two decay by default
        options["weight_decay"] = config.weight_decay
    if config.name == "muon":
        options["adam_weight_decay"] = config.weight_decay  # for the weights that Muon leaves to Adam
    if average:
        options |= {"use_ema": True, "ema_momentum": average}
    if config.clip_norm:
        options["global_clipnorm"] = config.clip_norm
    if config.name == "sgd":
        options |= {"momentum": config.momentum, "nesterov": config.nesterov}
    kinds = {"sgd": "SGD", "rmsprop": "RMSprop", "adamw": "AdamW"}
    made = getattr(keras.optimizers, kinds.get(config.name, config.name.capitalize()))(**options)
    if config.name in {"adam", "adamw"}:
        quicken_adam(made)
    return made


def loss(config: TrainConfig) -> Any:
    """Return the Keras loss of logits float32 [N, K] against soft labels float32 [N, K].

    Each loss is linear in the soft labels even if they do not sum to 1, so that they can include class weights. (Keras'
    own softmax cross-entropy is not: TensorFlow's kernel assumes a distribution, and its gradient is wrong otherwise.)
    Focal loss: Lin et al., 2017, arXiv:1708.02002, gamma 2, alpha 0.25.
    """
    keras = backend.keras()
    if config.loss == "focal":
        return keras.losses.CategoricalFocalCrossentropy(from_logits=True)
    function = {"cross_entropy": _cross_entropy, "binary": _binary}[config.loss]

    class OfShares(keras.losses.Loss):  # type: ignore[name-defined]  # Keras is imported lazily: no type for mypy
        def call(self, y_true: Any, y_pred: Any) -> Any:
            return function(y_true, y_pred)

    return OfShares(name=config.loss)


def _cross_entropy(shares: Any, logits: Any) -> Any:
    ops = backend.keras().ops
    return -ops.sum(shares * ops.log_softmax(logits, axis=-1), axis=-1)


def _binary(shares: Any, logits: Any) -> Any:
    """Return the binary cross-entropy of each softmax output, averaged over the classes."""
    keras = backend.keras()
    ops, least = keras.ops, keras.config.epsilon()
    p = ops.clip(ops.softmax(logits, axis=-1), least, 1 - least)
    others = ops.sum(shares, axis=-1, keepdims=True) - shares
    return -ops.mean(shares * ops.log(p) + others * ops.log(1 - p), axis=-1)


def label_shares(labels: NDArray[np.int32], classes: int, smoothing: float) -> NDArray[np.float32]:
    """Return one-hot labels with label smoothing: float32 [N, K], rows sum to 1.

    >>> [round(share, 3) for share in label_shares(np.array([1], np.int32), 2, 0.2)[0].tolist()]
    [0.1, 0.9]
    """
    shares = np.full((len(labels), classes), smoothing / classes, np.float32)
    shares[np.arange(len(labels)), labels] += 1 - smoothing
    return shares


def class_weights(labels: NDArray[np.int32], classes: int, mode: str) -> NDArray[np.float32] | None:
    """Return balanced class weights (float32 [K], mean over the images 1), or None for equal weights."""
    if mode == "none":
        return None
    counts = np.bincount(labels, minlength=classes)
    return (len(labels) / (classes * np.maximum(counts, 1))).astype(np.float32)
