"""Learning rates as plain functions of the step, so that they can be drawn, tested and resumed."""

from __future__ import annotations

import math
from collections.abc import Callable

from sightline.config import ScheduleConfig


def schedule(config: ScheduleConfig, rate: float, steps: int) -> Callable[[int], float]:
    """Return the learning rate of each step (counted from 0) of a stage of `steps` steps, from the base `rate`.

    Warm-up climbs linearly over the first ``warmup`` share of the steps, then the shape takes the remaining ones:
    ``constant``; ``cosine`` down to zero (Loshchilov and Hutter, 2016, arXiv:1608.03983); ``exponential``:
    ``rate * factor ** (step / every)``, the exponent rounded down with ``staircase``; ``step``: always in jumps.
    """
    warm = round(config.warmup * steps)
    rest = max(steps - warm, 1)

    def at(step: int) -> float:
        if step < warm:
            return rate * (step + 1) / warm
        done = step - warm
        if config.name == "cosine":
            return rate * 0.5 * (1 + math.cos(math.pi * min(done / rest, 1.0)))
        if config.name == "constant":
            return rate
        exponent = done / config.every
        if config.staircase or config.name == "step":
            exponent = done // config.every
        return float(rate * config.factor**exponent)

    return at
