"""The weights' moving average (Polyak and Juditsky, 1992), which Keras' optimizer keeps: judged, and kept at the end.

Keras' own `SwapEMAWeights` swaps on TensorFlow by adding and subtracting, which changes last bits: a run interrupted
while it judges, and resumed, would end with other weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sightline import backend

SPAN = 10  # the average reaches back over this part of a stage's steps at most


def share(asked: float, steps: int) -> float:
    """Return how much of the average stays in each of `steps` steps, `asked` or less; 0: no average.

    An average over as many steps as there are is that of a network that has learned nothing yet: 960 pictures of 64x64
    in batches of 256, 48 steps and 0.98, ended at a validation accuracy of 0.29 in place of 0.93.

    >>> share(0.98, 2000), round(share(0.98, 48), 3), share(0.98, 9)
    (0.98, 0.792, 0.0)
    """
    return min(asked, max(0.0, 1 - SPAN / max(steps, 1)))


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
            backend.assign(weight, array)


def settle(learner: Any) -> None:
    """Let the average take the place of the weights, where there is one."""
    for weight, average in _pairs(learner):
        backend.assign(weight, average)


def _pairs(learner: Any) -> list[tuple[Any, Any]]:
    """Return each weight that learns with its average."""
    optimizer = getattr(learner.optimizer, "inner_optimizer", learner.optimizer)  # the scaler of float16 wraps it
    if not optimizer.use_ema:
        return []
    weights, averages = optimizer._trainable_variables, optimizer._model_variables_moving_average  # noqa: SLF001
    return list(zip(weights, averages, strict=True))
