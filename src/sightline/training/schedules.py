"""Learning rate schedules as pure functions of the step and the metrics so far, to be plotted and resumed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from sightline.callbacks import EpochRecord
from sightline.config import ScheduleConfig


def build_schedule(config: ScheduleConfig, rate: float, steps: int) -> Callable[[int], float]:
    """Return a function from the step (0-based) to the learning rate, for a stage of `steps` steps and a base `rate`.

    The rate warms up linearly over the first ``warmup_fraction`` of the steps; the schedule applies to the rest. The
    minimum of the schedule is ``min_lr_fraction`` of the rate.

    - ``constant``; ``plateau``: constant except for the factor of `compute_plateau_factor`.
    - ``step``: multiplied by ``factor`` every ``step_size`` steps.
    - ``exponential``: ``rate * factor ** (step / step_size)``, the exponent rounded down with ``staircase``.
    - ``linear``, ``cosine``: decay to the minimum (cosine: Loshchilov and Hutter, 2016, arXiv:1608.03983).
    - ``cyclical``: triangles between the minimum and the rate (Smith, 2015, arXiv:1506.01186).
    - ``one_cycle``: one such triangle, then decay to zero (Smith, 2018, arXiv:1803.09820, with constant momentum).
    """
    warmup_steps = round(config.warmup_fraction * steps)
    decay_steps = max(steps - warmup_steps, 1)

    def rate_at(step: int) -> float:
        if step < warmup_steps:
            return rate * (step + 1) / warmup_steps
        return float(rate * _compute_fraction(config, step - warmup_steps, decay_steps))

    return rate_at


def _compute_fraction(config: ScheduleConfig, step: int, decay_steps: int) -> float:
    """Return the fraction of the base rate after `step` of `decay_steps` steps."""
    match config.name:
        case "step" | "exponential":
            staircase = config.staircase or config.name == "step"
            return float(config.factor ** (step // config.step_size if staircase else step / config.step_size))
        case "linear" | "cosine":
            floor, done = config.min_lr_fraction or 0.0, min(step / decay_steps, 1.0)
            return floor + (1 - floor) * (1 - done if config.name == "linear" else 0.5 * (1 + math.cos(math.pi * done)))
        case "cyclical":
            return _triangle_fraction(config, step % (2 * config.step_size) / config.step_size)
        case "one_cycle":
            cycle_end = 2 * config.rise_fraction * decay_steps
            if step <= cycle_end:
                return _triangle_fraction(config, 2 * step / cycle_end)
            remaining = 0.0 if step >= decay_steps else (decay_steps - step) / (decay_steps - cycle_end)
            return _triangle_fraction(config, 0) * remaining
    return 1.0


def _triangle_fraction(config: ScheduleConfig, position: float) -> float:
    """Return the fraction of the rate for `position` in [0, 2]: the floor at 0 and 2, the full rate at 1."""
    floor = 0.1 if config.min_lr_fraction is None else config.min_lr_fraction
    return floor + (1 - floor) * (1 - abs(1 - position))


def compute_plateau_factor(config: ScheduleConfig, history: Sequence[EpochRecord]) -> float:
    """Return the ``plateau`` factor for the next epoch's rate, from the `history` of the stage; 1 for other schedules.

    The rate drops after ``patience`` stalled epochs in a row; counting restarts after ``cooldown`` epochs. An epoch is
    stalled if its metric does not improve on the best so far by more than ``min_delta`` (as in Keras'
    `ReduceLROnPlateau`) or, with ``compare="previous"``, if it differs from the previous epoch's by no more than
    ``min_delta``. Without a validation split, the training loss is monitored.
    """
    if config.name != "plateau":
        return 1.0
    missing = any(getattr(record, config.monitor) is None for record in history)
    monitor = "loss" if missing else config.monitor
    sign = -1 if monitor.endswith("loss") else 1  # higher is better
    factor, best, previous, stalled, cooldown = 1.0, -math.inf, math.nan, 0, 0
    for record in history:
        value = sign * getattr(record, monitor)
        better = value > best + config.min_delta
        progressed = better if config.compare == "best" else not abs(value - previous) <= config.min_delta
        best, previous = value if better else best, value
        cooldown -= cooldown > 0
        stalled = 0 if progressed or cooldown else stalled + 1
        if stalled >= config.patience:
            factor, stalled, cooldown = factor * config.factor, 0, config.cooldown
    return max(factor, config.min_lr_fraction or 0.0)
