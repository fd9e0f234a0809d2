"""The weights' moving average (Polyak and Juditsky, 1992), which Keras' optimizer keeps: judged, and kept at the end.

Keras' own `SwapEMAWeights` swaps on TensorFlow by adding and subtracting, which changes last bits: a run interrupted
while it judges, and resumed, would end with other weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sightline import backend


@contextmanager
def averaged(learner: Any) -> Iterator[None]:
    """Let a compiled `learner` hold the average of its weights while the block runs, where its optimizer keeps one.

    Statistics of batch normalisation stay those of the steps themselves.
    """
    pairs = _pairs(learner)
    to_numpy = backend.keras().ops.convert_to_numpy
    kept = [to_numpy(weight).copy() for weight, _ in pairs]
    settle(learner)
    try:
        yield
    finally:
        for (weight, _), array in zip(pairs, kept, strict=True):
            weight.assign(array)


def settle(learner: Any) -> None:
    """Let the average take the place of the weights, where there is one."""
    for weight, average in _pairs(learner):
        weight.assign(average)


def _pairs(learner: Any) -> list[tuple[Any, Any]]:
    """Return each weight that learns with its average."""
    optimizer = getattr(learner.optimizer, "inner_optimizer", learner.optimizer)  # the scaler of float16 wraps it
    if not optimizer.use_ema:
        return []
    weights, averages = optimizer._trainable_variables, optimizer._model_variables_moving_average  # noqa: SLF001
    return list(zip(weights, averages, strict=True))
