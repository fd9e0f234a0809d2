"""Build Keras optimizers and losses from their settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline._keras.fused_kernels import use_fused_adam
from sightline._keras.muon import make_muon
from sightline.config import OptimizerConfig, TrainConfig
from sightline.models.entry import WHITENING_LAYER
from sightline.models.head import DENSE_LAYER


def build_optimizer(config: OptimizerConfig, learning_rate: float, ema_decay: float = 0.0) -> Any:
    """Return a new Keras optimizer; the schedule sets its learning rate before each step.

    It keeps an exponential moving average of the weights with decay `ema_decay`, unless that is 0. Weight decay is
    decoupled, as in Keras: each step subtracts ``learning_rate * weight_decay`` times the weight. FTRL starts from zero
    whatever the initial weights are, so it is not suited to deep networks, and its learning rate must not be zero.
    """
    keras = backend.keras()
    options: dict[str, Any] = {"learning_rate": learning_rate}
    if config.weight_decay or config.name in {"adamw", "muon"}:  # these two decay by default
        options["weight_decay"] = config.weight_decay
    if ema_decay:
        options |= {"use_ema": True, "ema_momentum": ema_decay}
    if config.clip_norm:
        options["global_clipnorm"] = config.clip_norm
    if config.name in {"sgd", "muon"}:
        options |= {"momentum": config.momentum, "nesterov": config.nesterov}
    if config.name == "muon":
        options["adam_weight_decay"] = config.weight_decay  # for the weights that AdamW updates
        return make_muon(DENSE_LAYER, WHITENING_LAYER, _compute_sgd_ratios(config), **options)
    class_names = {"sgd": "SGD", "rmsprop": "RMSprop", "adamw": "AdamW"}
    keras_optimizer = getattr(keras.optimizers, class_names.get(config.name, config.name.capitalize()))(**options)
    if config.name in {"adam", "adamw"}:
        use_fused_adam(keras_optimizer)
    return keras_optimizer


def _compute_sgd_ratios(config: OptimizerConfig) -> dict[str, float]:
    """Return the learning rates of SGD used alongside Muon, as multiples of Muon's."""
    if not config.learning_rate:
        return {}
    rates = {"head": config.head_learning_rate, "other": config.bias_learning_rate}
    return {kind: rate / config.learning_rate for kind, rate in rates.items() if rate is not None}


def build_loss(config: TrainConfig) -> Any:
    """Return the Keras loss of logits float32 [N, K] against soft labels float32 [N, K].

    Each loss is linear in the soft labels even if they do not sum to 1, so that they can include class weights. (Keras'
    own softmax cross-entropy is not: TensorFlow's kernel assumes a distribution, and otherwise computes a wrong
    gradient.) Focal loss: Lin et al., 2017, arXiv:1708.02002, gamma 2, alpha 0.25. The asymmetric loss is for several
    labels; see `tasks.multi_label`.
    """
    if config.loss == "focal":
        return backend.keras().losses.CategoricalFocalCrossentropy(from_logits=True)
    return make_loss({"cross_entropy": _cross_entropy, "binary": _binary_cross_entropy}[config.loss], config.loss)


def make_loss(function: Callable[[Any, Any], Any], name: str) -> Any:
    """Return a Keras loss for a function that returns the loss of each row of targets [N, T] and logits [N, K]."""
    keras = backend.keras()

    class RowLoss(keras.losses.Loss):  # type: ignore[name-defined]  # Keras is imported lazily: no type for mypy
        def call(self, y_true: Any, y_pred: Any) -> Any:
            return function(y_true, y_pred)

    return RowLoss(name=name)


def _cross_entropy(soft_labels: Any, logits: Any) -> Any:
    ops = backend.keras().ops
    return -ops.sum(soft_labels * ops.log_softmax(logits, axis=-1), axis=-1)


def _binary_cross_entropy(soft_labels: Any, logits: Any) -> Any:
    """Return the binary cross-entropy of each softmax output, averaged over the classes."""
    keras = backend.keras()
    ops, epsilon = keras.ops, keras.config.epsilon()
    p = ops.clip(ops.softmax(logits, axis=-1), epsilon, 1 - epsilon)
    complements = ops.sum(soft_labels, axis=-1, keepdims=True) - soft_labels
    return -ops.mean(soft_labels * ops.log(p) + complements * ops.log(1 - p), axis=-1)


def smooth_labels(labels: NDArray[np.int32], classes: int, smoothing: float) -> NDArray[np.float32]:
    """Return one-hot labels with label smoothing: float32 [N, K], rows sum to 1.

    >>> [round(target, 3) for target in smooth_labels(np.array([1], np.int32), 2, 0.2)[0].tolist()]
    [0.1, 0.9]
    """
    soft_labels = np.full((len(labels), classes), smoothing / classes, np.float32)
    soft_labels[np.arange(len(labels)), labels] += 1 - smoothing
    return soft_labels


def compute_class_weights(labels: NDArray[np.int32], classes: int, mode: str) -> NDArray[np.float32] | None:
    """Return balanced class weights (float32 [K], mean over the images 1), or None for equal weights.

    They equal scikit-learn's for the classes of the `labels`. A class without images counts as if it had one.
    """
    if mode == "none" or not len(labels):
        return None
    counts = np.bincount(labels, minlength=classes)
    return (len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))).astype(np.float32)
