"""Learning rates computed by hand, and bounds that hold for every schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.config import ScheduleConfig
from sightline.records import EpochRecord
from sightline.training.schedule import eased, schedule

CONFIGS = st.builds(
    ScheduleConfig,
    name=st.sampled_from(["constant", "cosine", "exponential", "step", "one_cycle", "cyclical", "plateau"]),
    warmup=st.floats(0, 1),
    factor=st.floats(0, 1),
    every=st.integers(1, 10_000),
    staircase=st.booleans(),
    floor=st.none() | st.floats(0, 1),
    rise=st.floats(0.01, 0.5),
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
        ({"warmup": 0.1}, 4, [0.8, 0.8, 0.8, 0.8]),  # 0.4 steps round to 0
        ({"name": "cosine", "warmup": 0.5}, 8, [0.2, 0.4, 0.6, 0.8, 0.8, 0.4 * (1 + math.sqrt(0.5)), 0.4, None]),
        ({"name": "step", "factor": 0.5, "every": 2, "warmup": 0.5}, 8, [0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.4, 0.4]),
        ({"name": "cosine", "floor": 0.5}, 4, [0.8, None, 0.6, None]),
        ({"name": "cyclical", "every": 2, "floor": 0.5}, 7, [0.4, 0.6, 0.8, 0.6, 0.4, 0.6, 0.8]),
        ({"name": "cyclical", "every": 2}, 5, [0.08, 0.44, 0.8, 0.44, 0.08]),
        ({"name": "cyclical", "every": 1, "floor": 0.0, "warmup": 0.5}, 8, [0.2, 0.4, 0.6, 0.8, 0, 0.8, 0, 0.8]),
        (
            {"name": "one_cycle", "rise": 0.4, "floor": 0.25},
            10,
            [0.2, 0.35, 0.5, 0.65, 0.8, 0.65, 0.5, 0.35, 0.2, 0.1],
        ),
        ({"name": "one_cycle", "rise": 0.5}, 4, [0.08, 0.44, 0.8, 0.44]),
        ({"name": "plateau", "warmup": 0.25}, 8, [0.4, 0.8, 0.8, 0.8]),
    ],
    ids=range(19),
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
    floored = schedules.CosineDecay(0.3, 50, alpha=0.2)
    smooth = schedules.ExponentialDecay(0.3, 7, 0.5)
    stairs = schedules.ExponentialDecay(0.3, 7, 0.5, staircase=True)
    for theirs, changed in [
        (cosine, {"name": "cosine"}),
        (floored, {"name": "cosine", "floor": 0.2}),
        (smooth, {"name": "exponential", "factor": 0.5, "every": 7}),
        (stairs, {"name": "exponential", "factor": 0.5, "every": 7, "staircase": True}),
    ]:
        at = schedule(ScheduleConfig(**changed), 0.3, 50)  # type: ignore[arg-type]
        assert [at(s) for s in range(50)] == pytest.approx([float(theirs(s)) for s in range(50)], rel=1e-5, abs=1e-7)


@given(CONFIGS, st.floats(0, 1e6), st.integers(0, 5000), st.data())
def test_rate_is_never_negative_and_never_above_the_base(
    config: ScheduleConfig, rate: float, steps: int, data: st.DataObject
) -> None:
    at = schedule(config, rate, steps)
    step = data.draw(st.integers(0, steps + 100))  # a resumed stage may ask for a step beyond the end
    assert 0 <= at(step) <= rate * (1 + 1e-9)
    assert at(0) >= 0
    assert math.isfinite(at(max(steps - 1, 0)))


@given(CONFIGS, st.integers(1, 500))
def test_rate_climbs_then_falls(config: ScheduleConfig, steps: int) -> None:
    rates = [schedule(config, 1.0, steps)(s) for s in range(steps)]
    warm = round(config.warmup * steps)
    assert rates[:warm] == sorted(rates[:warm])
    assert warm == 0 or rates[warm - 1] == 1.0
    assert warm == 0 or rates[0] == pytest.approx(1 / warm)
    if config.name not in {"one_cycle", "cyclical"}:
        assert rates[warm:] == sorted(rates[warm:], reverse=True)
        assert warm == steps or rates[warm] == 1.0


@given(st.floats(0.01, 0.5), st.floats(0, 1), st.integers(10, 2000))
def test_one_cycle_climbs_once_falls_once_and_ends_near_zero(rise: float, floor: float, steps: int) -> None:
    """Piecewise linear through (0, floor), (rise, 1), (2 rise, floor) and (1, 0), by NumPy."""
    at = schedule(ScheduleConfig(name="one_cycle", rise=rise, floor=floor), 1.0, steps)
    expected = np.interp(np.arange(steps) / steps, [0, rise, 2 * rise, 1 + 1e-12], [floor, 1, floor, 0])
    assert [at(s) for s in range(steps)] == pytest.approx(expected.tolist(), abs=1e-6)


@given(st.integers(1, 50), st.floats(0, 1), st.integers(0, 400))
def test_cyclical_is_the_papers_formula(every: int, floor: float, step: int) -> None:
    cycle = math.floor(1 + step / (2 * every))  # Smith, 2015, section 3.1
    x = abs(step / every - 2 * cycle + 1)
    expected = floor + (1 - floor) * max(0, 1 - x)
    at = schedule(ScheduleConfig(name="cyclical", every=every, floor=floor), 1.0, 401)
    assert at(step) == pytest.approx(expected, abs=1e-9)


# Plateau


def history(values: Sequence[float | None], name: str = "val_accuracy") -> list[EpochRecord]:
    settings: dict[str, Any] = {"loss": 1.0, "accuracy": 0.5, "val_loss": None, "val_accuracy": None}
    return [
        EpochRecord(epoch, "stage", **(settings | {name: value}), learning_rate=0.1, seconds=1.0, images_per_second=1.0)
        for epoch, value in enumerate(values, 1)
    ]


def rates(config: ScheduleConfig, values: Sequence[float | None], name: str = "val_accuracy") -> list[float]:
    """Return the factor for each epoch, including one after the last."""
    records = history(values, name)
    return [eased(config, records[:n]) for n in range(len(records) + 1)]


def test_the_rule_of_script_1_divides_after_five_epochs_equal_to_the_one_before() -> None:
    config = ScheduleConfig(name="plateau", monitor="val_accuracy", compare="previous", patience=5, factor=0.1)
    stuck = rates(config, [0.5] * 12)
    assert stuck == pytest.approx([1] * 6 + [0.1] * 5 + [0.01] * 2)
    falling = [0.9 - 0.01 * i for i in range(20)]  # always worse, never equal: no plateau by this rule
    assert rates(config, falling) == [1] * 21
    interrupted = [0.5] * 5 + [0.6] + [0.5] * 5
    assert rates(config, interrupted) == [1] * 12, "five in a row"


def test_the_rule_of_script_2_divides_after_five_epochs_not_above_the_best() -> None:
    config = ScheduleConfig(name="plateau", monitor="val_accuracy", compare="best", patience=5, factor=0.1)
    assert rates(config, [0.5] * 12) == pytest.approx([1] * 6 + [0.1] * 5 + [0.01] * 2)
    falling = [0.9 - 0.01 * i for i in range(12)]
    assert rates(config, falling) == pytest.approx([1] * 6 + [0.1] * 5 + [0.01] * 2)
    assert rates(config, [0.5, 0.4, 0.4, 0.4, 0.4, 0.51, 0.4, 0.4]) == [1] * 9
    assert rates(config, [0.5 + 0.01 * i for i in range(9)]) == [1] * 10


# Sums of powers of two, so that differences equal to min_delta are exact in floating point.
FIGURES = st.lists(st.sampled_from([0.125, 0.25, 0.375, 0.390625, 0.5, 0.625]), max_size=25)


@given(
    FIGURES,
    st.sampled_from(["val_loss", "val_accuracy", "loss", "accuracy"]),
    st.integers(1, 4),
    st.integers(0, 3),
    st.sampled_from([0.0, 0.015625, 0.125]),
    st.sampled_from([0.0, 0.05]),
)
@settings(max_examples=60, deadline=None)
def test_compared_with_the_best_it_is_keras_callback(
    values: list[float], monitor: Any, patience: int, cooldown: int, min_delta: float, floor: float
) -> None:
    from sightline import backend

    keras = backend.keras()
    config = ScheduleConfig(
        name="plateau", monitor=monitor, patience=patience, cooldown=cooldown, min_delta=min_delta, factor=0.5,
        floor=floor,
    )  # fmt: skip
    theirs = keras.callbacks.ReduceLROnPlateau(
        monitor, 0.5, patience, mode="min" if monitor.endswith("loss") else "max", min_delta=min_delta,
        cooldown=cooldown, min_lr=floor,
    )  # fmt: skip
    optimizer = keras.optimizers.SGD(1.0)
    theirs.set_model(SimpleNamespace(optimizer=optimizer))
    theirs.on_train_begin()
    expected = [1.0]
    for epoch, value in enumerate(values):
        theirs.on_epoch_end(epoch, {monitor: value})
        expected.append(float(keras.ops.convert_to_numpy(optimizer.learning_rate)))
    assert rates(config, values, monitor) == pytest.approx(expected)


def test_without_validation_the_training_loss_is_watched() -> None:
    config = ScheduleConfig(name="plateau", monitor="val_loss", patience=2, factor=0.5)
    assert rates(config, [3.0, 2.0, 2.0, 2.0, 2.0, 2.0], "loss") == [1, 1, 1, 1, 0.5, 0.5, 0.25]


def test_other_schedules_know_no_plateau() -> None:
    for name in ("constant", "step", "exponential", "cosine", "one_cycle", "cyclical"):
        assert rates(ScheduleConfig(name=name, patience=1), [0.5] * 5) == [1] * 6
