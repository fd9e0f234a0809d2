"""Learning rates by hand, and the bounds that hold for every shape."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.config import ScheduleConfig
from sightline.training.schedule import schedule

CONFIGS = st.builds(
    ScheduleConfig,
    name=st.sampled_from(["constant", "cosine", "exponential", "step"]),
    warmup=st.floats(0, 1),
    factor=st.floats(0, 1),
    every=st.integers(1, 10_000),
    staircase=st.booleans(),
)


@pytest.mark.parametrize(
    ("settings", "steps", "rates"),
    [
        ({}, 4, [0.8, 0.8, 0.8, 0.8]),
        ({"name": "cosine"}, 4, [0.8, 0.4 * (1 + math.sqrt(0.5)), 0.4, 0.4 * (1 - math.sqrt(0.5))]),
        ({"name": "cosine"}, 1, [0.8]),
        ({"name": "exponential", "factor": 0.25, "every": 2}, 5, [0.8, 0.4, 0.2, 0.1, 0.05]),
        (
            {"name": "exponential", "factor": 0.25, "every": 2, "staircase": True},
            6,
            [0.8, 0.8, 0.2, 0.2, 0.05, 0.05],
        ),
        ({"name": "step", "factor": 0.5, "every": 3}, 7, [0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.2]),
        ({"name": "step", "factor": 0.0, "every": 2}, 4, [0.8, 0.8, 0.0, 0.0]),
        ({"warmup": 0.5}, 8, [0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8, 0.8]),
        ({"warmup": 1.0}, 4, [0.2, 0.4, 0.6, 0.8]),
        ({"warmup": 0.1}, 4, [0.8, 0.8, 0.8, 0.8]),  # 0.4 of a step is none
        ({"name": "cosine", "warmup": 0.5}, 8, [0.2, 0.4, 0.6, 0.8, 0.8, 0.4 * (1 + math.sqrt(0.5)), 0.4, None]),
        ({"name": "step", "factor": 0.5, "every": 2, "warmup": 0.5}, 8, [0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.4, 0.4]),
    ],
    ids=range(12),
)
def test_rates_by_hand(settings: dict[str, Any], steps: int, rates: list[float | None]) -> None:
    at = schedule(ScheduleConfig(**settings), 0.8, steps)
    for step, rate in enumerate(rates):
        if rate is not None:
            assert at(step) == pytest.approx(rate), step


def test_the_schedule_that_tutorial_b_meant() -> None:
    config = ScheduleConfig(name="exponential", factor=0.92, every=30, staircase=True)
    at = schedule(config, 1e-4, 600)
    assert [at(s) for s in (0, 29, 30, 59, 60, 599)] == pytest.approx(
        [1e-4, 1e-4, 9.2e-5, 9.2e-5, 8.464e-5, 1e-4 * 0.92**19]
    )


def test_schedules_are_those_of_keras() -> None:
    from sightline import backend

    schedules = backend.keras().optimizers.schedules
    cosine = schedules.CosineDecay(0.3, 50)
    smooth = schedules.ExponentialDecay(0.3, 7, 0.5)
    stairs = schedules.ExponentialDecay(0.3, 7, 0.5, staircase=True)
    for theirs, settings in [
        (cosine, {"name": "cosine"}),
        (smooth, {"name": "exponential", "factor": 0.5, "every": 7}),
        (stairs, {"name": "exponential", "factor": 0.5, "every": 7, "staircase": True}),
    ]:
        at = schedule(ScheduleConfig(**settings), 0.3, 50)  # type: ignore[arg-type]
        assert [at(s) for s in range(50)] == pytest.approx([float(theirs(s)) for s in range(50)], rel=1e-5, abs=1e-7)


@given(CONFIGS, st.floats(0, 1e6), st.integers(0, 5000), st.data())
def test_rate_is_never_negative_and_never_above_the_base(
    config: ScheduleConfig, rate: float, steps: int, data: st.DataObject
) -> None:
    at = schedule(config, rate, steps)
    step = data.draw(st.integers(0, steps + 100))  # a resumed stage may ask for one too many
    assert 0 <= at(step) <= rate * (1 + 1e-9)
    assert at(0) >= 0
    assert math.isfinite(at(max(steps - 1, 0)))


@given(CONFIGS, st.integers(1, 500))
def test_rate_climbs_then_falls(config: ScheduleConfig, steps: int) -> None:
    rates = [schedule(config, 1.0, steps)(s) for s in range(steps)]
    warm = round(config.warmup * steps)
    assert rates[:warm] == sorted(rates[:warm])
    assert rates[warm:] == sorted(rates[warm:], reverse=True)
    assert warm == 0 or rates[warm - 1] == 1.0
    assert warm == 0 or rates[0] == pytest.approx(1 / warm)
    assert warm == steps or rates[warm] == 1.0
