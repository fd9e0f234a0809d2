"""Exponential moving average (EMA) of the weights, kept by Keras' optimizer, for validation and the final model.

Averaging of weights: Polyak and Juditsky, 1992. Keras' `SwapEMAWeights` swaps by adding and subtracting on TensorFlow,
which changes the last bits: a run interrupted during validation and resumed would end with different weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sightline import backend
from sightline._keras import training_steps

WINDOWS_PER_STAGE = 10  # the average covers at most this fraction (1 / WINDOWS_PER_STAGE) of the steps of a stage


def limit_decay(decay: float, steps: int) -> float:
    """Return the EMA decay for a stage of `steps` steps: `decay`, or less for a short stage; 0 means no EMA.

    An average over all steps of a stage includes the untrained weights: 48 steps on 960 images of 64x64 in batches of
    256 with a decay of 0.98 reached a validation accuracy of 0.29 instead of 0.93.

    >>> limit_decay(0.98, 2000), round(limit_decay(0.98, 48), 3), limit_decay(0.98, 9)
    (0.98, 0.792, 0.0)
    """
    return min(decay, max(0.0, 1 - WINDOWS_PER_STAGE / max(steps, 1)))


@contextmanager
def swap_in_ema(training_model: Any) -> Iterator[None]:
    """Swap the EMA into a compiled `training_model` within the context, if its optimizer keeps one.

    Batch normalization statistics are not averaged.
    """
    pairs = training_steps.pair_weights_with_ema(training_model.optimizer)
    to_numpy = backend.keras().ops.convert_to_numpy
    saved_weights = [to_numpy(weight).copy() for weight, _ in pairs]
    apply_ema(training_model)
    try:
        yield
    finally:
        for (weight, _), array in zip(pairs, saved_weights, strict=True):
            backend.assign(weight, array)


def apply_ema(training_model: Any) -> None:
    """Replace the weights with their EMA, if the optimizer keeps one."""
    for weight, ema in training_steps.pair_weights_with_ema(training_model.optimizer):
        backend.assign(weight, ema)
