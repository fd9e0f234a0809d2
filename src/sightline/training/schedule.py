"""Learning rate schedules as pure functions of the step and the metrics so far, so they can be plotted and resumed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from sightline.config import ScheduleConfig
from sightline.records import EpochRecord


def schedule(config: ScheduleConfig, rate: float, steps: int) -> Callable[[int], float]:
    """Return a function from the step (0-based) to the learning rate, for a stage of `steps` steps and a base `rate`.

    The rate warms up linearly over the first ``warmup`` fraction of the steps; the schedule applies to the rest:
    ``constant``; ``plateau``, constant except for the factor from `eased`; ``step``: multiplied by ``factor`` every
    ``every`` steps; ``exponential``: ``rate * factor ** (step / every)``, the exponent rounded down with ``staircase``;
    ``cosine``: decay to the floor (Loshchilov and Hutter, 2016, arXiv:1608.03983); ``cyclical``: triangles between the
    floor and the rate (Smith, 2015, arXiv:1506.01186); ``one_cycle``: one triangle, then decay to zero (Smith, 2018,
    arXiv:1803.09820, with constant momentum).
    """
    warm = round(config.warmup * steps)
    rest = max(steps - warm, 1)

    def at(step: int) -> float:
        if step < warm:
            return rate * (step + 1) / warm
        return float(rate * _share(config, step - warm, rest))

    return at


def _share(config: ScheduleConfig, done: int, rest: int) -> float:
    """Return the fraction of the base rate after `done` of `rest` steps."""
    match config.name:
        case "step" | "exponential":
            jumps = config.staircase or config.name == "step"
            return float(config.factor ** (done // config.every if jumps else done / config.every))
        case "cosine":
            floor = config.floor or 0.0
            return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(done / rest, 1.0)))
        case "cyclical":
            return _triangle(config, done % (2 * config.every) / config.every)
        case "one_cycle":
            foot = 2 * config.rise * rest
            if done <= foot:
                return _triangle(config, 2 * done / foot)
            return _triangle(config, 0) * max(rest - done, 0) / (rest - foot)
    return 1.0


def _triangle(config: ScheduleConfig, at: float) -> float:
    """Return the fraction of the rate for `at` in [0, 2]: the floor at 0 and 2, the full rate at 1."""
    floor = 0.1 if config.floor is None else config.floor
    return floor + (1 - floor) * (1 - abs(1 - at))


def eased(config: ScheduleConfig, history: Sequence[EpochRecord]) -> float:
    """Return the ``plateau`` factor for the next epoch's rate, from the `history` of the stage; 1 for other schedules.

    The rate drops after ``patience`` stalled epochs in a row; counting restarts after ``cooldown`` epochs. An epoch is
    stalled if its metric does not improve on the best so far by more than ``min_delta`` (as in Keras'
    `ReduceLROnPlateau`) or, with ``compare="previous"``, if it differs from that of the previous epoch by no more than
    that. Without a validation split, the training loss is monitored.
    """
    if config.name != "plateau":
        return 1.0
    missing = any(getattr(record, config.monitor) is None for record in history)
    monitor = "loss" if missing else config.monitor
    sign = -1 if monitor.endswith("loss") else 1  # higher is better
    factor, best, before, stalled, resting = 1.0, -math.inf, math.nan, 0, 0
    for record in history:
        figure = sign * getattr(record, monitor)
        better = figure > best + config.min_delta
        moved = better if config.compare == "best" else not abs(figure - before) <= config.min_delta
        best, before = figure if better else best, figure
        resting -= resting > 0
        stalled = 0 if moved or resting else stalled + 1
        if stalled >= config.patience:
            factor, stalled, resting = factor * config.factor, 0, config.cooldown
    return max(factor, config.floor or 0.0)
