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

from sightline.callbacks import EpochRecord
from sightline.config import ScheduleConfig
from sightline.training.schedules import build_schedule, compute_plateau_factor

CONFIGS = st.builds(
    ScheduleConfig,
    name=st.sampled_from(["constant", "linear", "cosine", "exponential", "step", "one_cycle", "cyclical", "plateau"]),
    warmup_fraction=st.floats(0, 1),
    factor=st.floats(0, 1),
    step_size=st.integers(1, 10_000),
    staircase=st.booleans(),
    min_lr_fraction=st.none() | st.floats(0, 1),
    rise_fraction=st.floats(0.01, 0.5),
)


@pytest.mark.parametrize(
    ("settings", "steps", "rates"),
    [
        ({}, 4, [0.8, 0.8, 0.8, 0.8]),
        ({"name": "cosine"}, 4, [0.8, 0.4 * (1 + math.sqrt(0.5)), 0.4, 0.4 * (1 - math.sqrt(0.5))]),
        ({"name": "cosine"}, 1, [0.8]),
        ({"name": "linear"}, 4, [0.8, 0.6, 0.4, 0.2]),
        ({"name": "linear", "warmup_fraction": 0.5, "min_lr_fraction": 0.5}, 4, [0.4, 0.8, 0.8, 0.6]),
        ({"name": "exponential", "factor": 0.25, "step_size": 2}, 5, [0.8, 0.4, 0.2, 0.1, 0.05]),
        (
            {"name": "exponential", "factor": 0.25, "step_size": 2, "staircase": True},
            6,
            [0.8, 0.8, 0.2, 0.2, 0.05, 0.05],
        ),
        ({"name": "step", "factor": 0.5, "step_size": 3}, 7, [0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.2]),
        ({"name": "step", "factor": 0.0, "step_size": 2}, 4, [0.8, 0.8, 0.0, 0.0]),
        ({"warmup_fraction": 0.5}, 8, [0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8, 0.8]),
        ({"warmup_fraction": 1.0}, 4, [0.2, 0.4, 0.6, 0.8]),
        ({"warmup_fraction": 0.1}, 4, [0.8, 0.8, 0.8, 0.8]),  # 0.4 steps round to 0
        (
            {"name": "cosine", "warmup_fraction": 0.5},
            8,
            [0.2, 0.4, 0.6, 0.8, 0.8, 0.4 * (1 + math.sqrt(0.5)), 0.4, None],
        ),
        (
            {"name": "step", "factor": 0.5, "step_size": 2, "warmup_fraction": 0.5},
            8,
            [0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.4, 0.4],
        ),
        ({"name": "cosine", "min_lr_fraction": 0.5}, 4, [0.8, None, 0.6, None]),
        ({"name": "cyclical", "step_size": 2, "min_lr_fraction": 0.5}, 7, [0.4, 0.6, 0.8, 0.6, 0.4, 0.6, 0.8]),
        ({"name": "cyclical", "step_size": 2}, 5, [0.08, 0.44, 0.8, 0.44, 0.08]),
        (
            {"name": "cyclical", "step_size": 1, "min_lr_fraction": 0.0, "warmup_fraction": 0.5},
            8,
            [0.2, 0.4, 0.6, 0.8, 0, 0.8, 0, 0.8],
        ),
        (
            {"name": "one_cycle", "rise_fraction": 0.4, "min_lr_fraction": 0.25},
            10,
            [0.2, 0.35, 0.5, 0.65, 0.8, 0.65, 0.5, 0.35, 0.2, 0.1],
        ),
        ({"name": "one_cycle", "rise_fraction": 0.5}, 4, [0.08, 0.44, 0.8, 0.44]),
        ({"name": "plateau", "warmup_fraction": 0.25}, 8, [0.4, 0.8, 0.8, 0.8]),
    ],
    ids=range(21),
)
def test_rates_by_hand(settings: dict[str, Any], steps: int, rates: list[float | None]) -> None:
    rate_at = build_schedule(ScheduleConfig(**settings), 0.8, steps)
    for step, rate in enumerate(rates):
        if rate is not None:
            assert rate_at(step) == pytest.approx(rate), step


def test_the_intended_schedule_of_tutorial_b() -> None:
    config = ScheduleConfig(name="exponential", factor=0.92, step_size=30, staircase=True)
    rate_at = build_schedule(config, 1e-4, 600)
    assert [rate_at(s) for s in (0, 29, 30, 59, 60, 599)] == pytest.approx(
        [1e-4, 1e-4, 9.2e-5, 9.2e-5, 8.464e-5, 1e-4 * 0.92**19]
    )


def test_schedules_match_keras() -> None:
    from sightline import backend

    schedules = backend.keras().optimizers.schedules
    cosine = schedules.CosineDecay(0.3, 50)
    floored = schedules.CosineDecay(0.3, 50, alpha=0.2)
    smooth = schedules.ExponentialDecay(0.3, 7, 0.5)
    stairs = schedules.ExponentialDecay(0.3, 7, 0.5, staircase=True)
    for keras_schedule, overrides in [
        (cosine, {"name": "cosine"}),
        (floored, {"name": "cosine", "min_lr_fraction": 0.2}),
        (smooth, {"name": "exponential", "factor": 0.5, "step_size": 7}),
        (stairs, {"name": "exponential", "factor": 0.5, "step_size": 7, "staircase": True}),
    ]:
        rate_at = build_schedule(ScheduleConfig(**overrides), 0.3, 50)  # type: ignore[arg-type]
        assert [rate_at(s) for s in range(50)] == pytest.approx(
            [float(keras_schedule(s)) for s in range(50)], rel=1e-5, abs=1e-7
        )


@given(CONFIGS, st.floats(0, 1e6), st.integers(0, 5000), st.data())
def test_rate_is_never_negative_and_never_above_the_base(
    config: ScheduleConfig, rate: float, steps: int, data: st.DataObject
) -> None:
    rate_at = build_schedule(config, rate, steps)
    step = data.draw(st.integers(0, steps + 100))  # a resumed stage may ask for a step beyond the end
    assert 0 <= rate_at(step) <= rate * (1 + 1e-9)
    assert rate_at(0) >= 0
    assert math.isfinite(rate_at(max(steps - 1, 0)))


def test_one_cycle_without_a_decay_is_zero_beyond_its_end() -> None:
    rate_at = build_schedule(ScheduleConfig("one_cycle", rise_fraction=0.5), 1.0, 10)
    assert rate_at(10) == pytest.approx(0.1)
    assert rate_at(11) == 0


@given(CONFIGS, st.integers(1, 500))
def test_rate_warms_up_then_decays(config: ScheduleConfig, steps: int) -> None:
    rates = [build_schedule(config, 1.0, steps)(s) for s in range(steps)]
    warmup_steps = round(config.warmup_fraction * steps)
    assert rates[:warmup_steps] == sorted(rates[:warmup_steps])
    assert warmup_steps == 0 or rates[warmup_steps - 1] == 1.0
    assert warmup_steps == 0 or rates[0] == pytest.approx(1 / warmup_steps)
    if config.name not in {"one_cycle", "cyclical"}:
        assert rates[warmup_steps:] == sorted(rates[warmup_steps:], reverse=True)
        assert warmup_steps == steps or rates[warmup_steps] == 1.0


@given(st.floats(0.01, 0.5), st.floats(0, 1), st.integers(10, 2000))
def test_one_cycle_climbs_once_falls_once_and_ends_near_zero(rise: float, floor: float, steps: int) -> None:
    """Piecewise linear through (0, floor), (rise, 1), (2 rise, floor) and (1, 0), by NumPy."""
    rate_at = build_schedule(ScheduleConfig(name="one_cycle", rise_fraction=rise, min_lr_fraction=floor), 1.0, steps)
    expected = np.interp(np.arange(steps) / steps, [0, rise, 2 * rise, 1 + 1e-12], [floor, 1, floor, 0])
    assert [rate_at(s) for s in range(steps)] == pytest.approx(expected.tolist(), abs=1e-6)


@given(st.integers(1, 50), st.floats(0, 1), st.integers(0, 400))
def test_cyclical_is_the_papers_formula(every: int, floor: float, step: int) -> None:
    cycle = math.floor(1 + step / (2 * every))  # Smith, 2015, section 3.1
    x = abs(step / every - 2 * cycle + 1)
    expected = floor + (1 - floor) * max(0, 1 - x)
    rate_at = build_schedule(ScheduleConfig(name="cyclical", step_size=every, min_lr_fraction=floor), 1.0, 401)
    assert rate_at(step) == pytest.approx(expected, abs=1e-9)


# Plateau


def make_records(values: Sequence[float | None], name: str = "val_accuracy") -> list[EpochRecord]:
    settings: dict[str, Any] = {"loss": 1.0, "accuracy": 0.5, "val_loss": None, "val_accuracy": None}
    return [
        EpochRecord(epoch, "stage", **(settings | {name: value}), learning_rate=0.1, seconds=1.0, images_per_second=1.0)
        for epoch, value in enumerate(values, 1)
    ]


def compute_factors(config: ScheduleConfig, values: Sequence[float | None], name: str = "val_accuracy") -> list[float]:
    """Return the factor for each epoch, including one after the last."""
    records = make_records(values, name)
    return [compute_plateau_factor(config, records[:n]) for n in range(len(records) + 1)]


def test_the_rule_of_script_1_divides_after_five_epochs_equal_to_the_one_before() -> None:
    config = ScheduleConfig(name="plateau", monitor="val_accuracy", compare="previous", patience=5, factor=0.1)
    stuck = compute_factors(config, [0.5] * 12)
    assert stuck == pytest.approx([1] * 6 + [0.1] * 5 + [0.01] * 2)
    falling = [0.9 - 0.01 * i for i in range(20)]  # always worse, never equal: no plateau by this rule
    assert compute_factors(config, falling) == [1] * 21
    interrupted = [0.5] * 5 + [0.6] + [0.5] * 5
    assert compute_factors(config, interrupted) == [1] * 12, "five in a row"


def test_the_rule_of_script_2_divides_after_five_epochs_not_above_the_best() -> None:
    config = ScheduleConfig(name="plateau", monitor="val_accuracy", compare="best", patience=5, factor=0.1)
    assert compute_factors(config, [0.5] * 12) == pytest.approx([1] * 6 + [0.1] * 5 + [0.01] * 2)
    falling = [0.9 - 0.01 * i for i in range(12)]
    assert compute_factors(config, falling) == pytest.approx([1] * 6 + [0.1] * 5 + [0.01] * 2)
    assert compute_factors(config, [0.5, 0.4, 0.4, 0.4, 0.4, 0.51, 0.4, 0.4]) == [1] * 9
    assert compute_factors(config, [0.5 + 0.01 * i for i in range(9)]) == [1] * 10


# Sums of powers of two, so that differences equal to min_delta are exact in floating point.
METRIC_VALUES = st.lists(st.sampled_from([0.125, 0.25, 0.375, 0.390625, 0.5, 0.625]), max_size=25)


@given(
    METRIC_VALUES,
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
        min_lr_fraction=floor,
    )  # fmt: skip
    keras_callback = keras.callbacks.ReduceLROnPlateau(
        monitor, 0.5, patience, mode="min" if monitor.endswith("loss") else "max", min_delta=min_delta,
        cooldown=cooldown, min_lr=floor,
    )  # fmt: skip
    optimizer = keras.optimizers.SGD(1.0)
    keras_callback.set_model(SimpleNamespace(optimizer=optimizer))
    keras_callback.on_train_begin()
    expected = [1.0]
    for epoch, value in enumerate(values):
        keras_callback.on_epoch_end(epoch, {monitor: value})
        expected.append(float(keras.ops.convert_to_numpy(optimizer.learning_rate)))
    assert compute_factors(config, values, monitor) == pytest.approx(expected)


def test_without_validation_the_training_loss_is_monitored() -> None:
    config = ScheduleConfig(name="plateau", monitor="val_loss", patience=2, factor=0.5)
    assert compute_factors(config, [3.0, 2.0, 2.0, 2.0, 2.0, 2.0], "loss") == [1, 1, 1, 1, 0.5, 0.5, 0.25]


def test_other_schedules_know_no_plateau() -> None:
    for name in ("constant", "linear", "step", "exponential", "cosine", "one_cycle", "cyclical"):
        assert compute_factors(ScheduleConfig(name=name, patience=1), [0.5] * 5) == [1] * 6
