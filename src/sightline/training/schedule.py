"""Learning rates as plain functions of the step and of the figures so far, so that they can be drawn and resumed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from sightline.config import ScheduleConfig
from sightline.records import EpochRecord


def schedule(config: ScheduleConfig, rate: float, steps: int) -> Callable[[int], float]:
    """Return the learning rate of each step (counted from 0) of a stage of `steps` steps, from the base `rate`.

    Warm-up climbs linearly over the first ``warmup`` share of the steps, then the shape takes the remaining ones:
    ``constant``, and ``plateau`` as long as `eased` leaves it so; ``step``: times ``factor`` every so many steps;
    ``exponential``: ``rate * factor ** (step / every)``, the exponent rounded down with ``staircase``; ``cosine`` down
    to the floor (Loshchilov and Hutter, 2016, arXiv:1608.03983); ``cyclical``: triangles between the floor and the
    rate (Smith, 2015, arXiv:1506.01186); ``one_cycle``: one triangle, then down to zero (Smith, 2018,
    arXiv:1803.09820; the momentum stays as it is).
    """
    warm = round(config.warmup * steps)
    rest = max(steps - warm, 1)

    def at(step: int) -> float:
        if step < warm:
            return rate * (step + 1) / warm
        return float(rate * _share(config, step - warm, rest))

    return at


def _share(config: ScheduleConfig, done: int, rest: int) -> float:
    """Return the share of the base rate after `done` of `rest` steps."""
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
    """Return the share of the rate at 0 (the foot) to 1 (the top) to 2 (the foot again)."""
    floor = 0.1 if config.floor is None else config.floor
    return floor + (1 - floor) * (1 - abs(1 - at))


def eased(config: ScheduleConfig, history: Sequence[EpochRecord]) -> float:
    """Return what the rate of the next epoch is multiplied by, after the epochs of the stage so far; for ``plateau``.

    The rate falls after ``patience`` stalled epochs in a row; the count then starts anew, after ``cooldown`` epochs.
    An epoch is stalled if its figure is not better than the best so far by more than ``min_delta`` (as Keras'
    `ReduceLROnPlateau` has it), or, with ``compare="previous"``, if it differs by no more from the one before. Without
    a validation part the training loss takes the figure's place.
    """
    if config.name != "plateau":
        return 1.0
    missing = any(getattr(record, config.monitor) is None for record in history)
    monitor = "loss" if missing else config.monitor
    sign = -1 if monitor.endswith("loss") else 1  # the greater, the better
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
