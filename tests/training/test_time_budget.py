"""A time limit decides how many epochs run, before a stage begins; the tests set the clock."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from networks import make_plan, make_subset
from sightline.callbacks import Callback
from sightline.config import (
    AugmentConfig,
    EarlyStoppingConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    StageConfig,
    TrainConfig,
)
from sightline.config.durations import format_duration, parse_duration
from sightline.errors import ConfigError, Interrupted
from sightline.models.build import Network, build_model
from sightline.models.describe import weights_sha256
from sightline.training import stage_features, stage_run, state, time_budget
from sightline.training.loop import FitResult, fit
from sightline.training.result import StagePlan, TimeRecord
from sightline.training.steps import HostRunner
from sightline.training.time_budget import TimeBudget

STEPS = 4  # in an epoch
FINISHING = 3.0  # seconds


TRAIN, VALIDATION = make_subset(8 * STEPS), make_subset(9, 1)
CONFIG = RunConfig(
    augment=AugmentConfig(horizontal_flip=True),
    train=TrainConfig(
        epochs=10, batch_size=8, checkpoint_minutes=0, optimizer=OptimizerConfig("adam", 1e-3), ema_decay=0.9,
        schedule=ScheduleConfig("cosine"), early_stopping=EarlyStoppingConfig(monitor="loss"),
    ),
)  # fmt: skip
TWO_STAGES = replace(
    CONFIG,
    augment=AugmentConfig(),
    train=replace(
        CONFIG.train,
        stages=(StageConfig("head", unfreeze=0, solver="logistic"), StageConfig("all", unfreeze=-1, epochs=10)),
    ),
)


class Clock:
    """A fake clock: each training step takes `step_seconds`, everything else no time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.step_seconds, self.num_steps = 100.0, 1.0, 0
        clock = SimpleNamespace(monotonic=lambda: self.now, perf_counter=lambda: self.now)
        monkeypatch.setattr(time_budget, "time", clock)
        run = HostRunner._run

        def run_step(runner: HostRunner, pixels: Any) -> tuple[float, float]:
            self.num_steps += 1
            self.now += self.step_seconds
            return run(runner, pixels)

        monkeypatch.setattr(HostRunner, "_run", run_step)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Journal:
    """What a run has recorded of its time; `budget` begins a session."""

    def __init__(self) -> None:
        self.record = TimeRecord()

    def budget(self, limit: float, start: float) -> TimeBudget:
        budget = TimeBudget(limit, copy.deepcopy(self.record), self._save, start)
        budget.measure_finishing = lambda: FINISHING
        return budget

    def _save(self, record: TimeRecord) -> None:
        self.record = copy.deepcopy(record)


def build_network() -> Network:
    return build_model(make_plan("cifar10-simple", side=8, classes=3, hidden_units=()))


def train(config: RunConfig, budget: TimeBudget | None, **options: Any) -> tuple[Network, FitResult]:
    network = build_network()
    return network, fit(
        network, TRAIN, VALIDATION, config, options.pop("callback", Callback()), budget=budget, **options
    )


@pytest.mark.parametrize(
    ("elapsed", "words"),
    [(20, "fit into"), (30, "begins, but does not fit into"), (45, "begins, but does not fit into")],
)
def test_a_required_epoch_is_not_said_to_fit_if_it_does_not(clock: Clock, elapsed: int, words: str) -> None:
    budget = Journal().budget(40, clock.now - elapsed)
    budget.record.finishing = FINISHING
    assert f"1 of 1 epoch {words} the time limit: " in budget.describe(StagePlan(1, 1, 12.0, 1.0, 1), "training")


def test_the_epochs_that_fit_have_a_whole_schedule(clock: Clock) -> None:
    journal = Journal()
    network, result = train(CONFIG, journal.budget(30, clock.now))
    # of 30 s, 5% are kept in reserve, 3 are for finishing and 4 went into timing steps: 21.5 s for epochs of 4
    assert len(result.history) == 5
    assert journal.record.stages["0"].epochs == 5
    assert (clock.num_steps, journal.record.stopped) == (4 + 5 * STEPS, False)
    shortened = replace(CONFIG, train=replace(CONFIG.train, epochs=5))
    expected, of_five = train(shortened, None)
    assert weights_sha256(network.model) == weights_sha256(expected.model), "timing steps changes nothing"
    assert [epoch.learning_rate for epoch in result.history] == [epoch.learning_rate for epoch in of_five.history]


def test_enough_time_changes_nothing(clock: Clock) -> None:
    config = replace(CONFIG, train=replace(CONFIG.train, epochs=2))
    limited, _ = train(config, Journal().budget(1000, clock.now))
    assert weights_sha256(limited.model) == weights_sha256(train(config, None)[0].model)


def test_a_shorter_stage_is_compiled_again_only_for_another_average(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[int] = []
    plain = stage_run._compile_stage

    def count(*arguments: Any) -> Any:
        compiled.append(arguments[-1])
        return plain(*arguments)

    monkeypatch.setattr(stage_run, "_compile_stage", count)
    config = replace(CONFIG, train=replace(CONFIG.train, ema_decay=0.0))
    network, result = train(config, Journal().budget(30, clock.now))
    assert (len(result.history), compiled) == (5, [10 * STEPS])
    expected, _ = train(replace(config, train=replace(config.train, epochs=5)), None)
    assert weights_sha256(network.model) == weights_sha256(expected.model)
    train(CONFIG, Journal().budget(30, clock.now))
    assert compiled[2:] == [10 * STEPS, 5 * STEPS]


@pytest.mark.slow_with("1.6-4", "1.1-5")
@pytest.mark.parametrize(("slower", "epochs"), [(1.1, 5), (1.6, 4), (4.0, 2)])
def test_slower_steps_end_training_in_time(slower: float, epochs: int, clock: Clock, tmp_path: Path) -> None:
    journal = Journal()
    budget = journal.budget(30, clock.now)
    start = clock.now

    class Slower(Callback):
        def on_stage_begin(self, name: str, epochs: int, steps: int) -> None:
            clock.step_seconds = slower

    _, result = train(CONFIG, budget, callback=Slower(), checkpoint_dir=tmp_path)
    assert len(result.history) == epochs
    assert journal.record.stopped == (slower > 1.1)
    assert clock.now - start + FINISHING <= 1.1 * 30 + slower, "at most 10% more, and the step that was under way"
    assert result.best is not None


def test_the_first_epoch_ends_early_too_and_leaves_a_model(clock: Clock, tmp_path: Path) -> None:
    messages: list[str] = []

    class Messages(Callback):
        def on_message(self, text: str) -> None:
            messages.append(text)

    journal = Journal()
    _, result = train(CONFIG, journal.budget(6, clock.now), callback=Messages(), checkpoint_dir=tmp_path)
    assert messages[-1] == f"the time limit ended epoch 1 after 1 of {STEPS} steps"
    assert len(result.history) == 1, "without one epoch, there is no model"
    assert clock.num_steps == 4 + 1
    assert result.history[0].learning_rate == CONFIG.train.optimizer.learning_rate, "that of the step that ran"
    assert journal.record.stopped


def test_a_stage_without_time_is_left_out_and_a_solved_one_is_not(clock: Clock, tmp_path: Path) -> None:
    journal = Journal()
    messages: list[str] = []

    class Messages(Callback):
        def on_message(self, text: str) -> None:
            messages.append(text)

    budget = journal.budget(2, clock.now)
    _, result = train(TWO_STAGES, budget, callback=Messages(), checkpoint_dir=tmp_path)
    assert [epoch.stage for epoch in result.history] == ["head"]
    assert (clock.num_steps, journal.record.stages["1"].epochs) == (0, 0)
    assert messages == ["all: 0 of 10 epochs fit into the time limit: 0s of 2s have passed, finishing about 3s"]
    saved = state.load_latest(tmp_path)
    assert saved is not None
    assert (saved.state["stage"], len(saved.state["history"])) == (1, 1), "from which the run can be extended"


@pytest.mark.slow_with("3-4-3", "20-1-12")
@pytest.mark.parametrize(("configured", "views", "epochs"), [(3, 4, 3), (6, 2, 6), (20, 1, 12)])
def test_there_are_as_many_views_as_there_is_time_for(
    configured: int, views: int, epochs: int, clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of 60 s, 5% are kept in reserve and 3 s are for finishing: three more views of 4 s fit into a quarter of 54 s.

    Timing steps takes 4 s. In the remaining 50 s, an epoch takes 4 s for each view, and views are reduced before epochs
    are left out.
    """
    monkeypatch.setattr(stage_features, "time_view", lambda *_: 4.0)
    stage = StageConfig("views", unfreeze=0, views=8, epochs=configured)
    config = replace(CONFIG, train=replace(CONFIG.train, stages=(stage,), checkpoint_steps=1))
    journal = Journal()

    class Interrupting(Callback):
        def on_step_end(self, epoch: int, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
            if step == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, journal.budget(60, clock.now), callback=Interrupting(), checkpoint_dir=tmp_path)
    plan = journal.record.stages["0"]
    assert (plan.views, plan.epochs, plan.seconds) == (views, epochs, views * STEPS)
    monkeypatch.setattr(stage_features, "time_view", lambda *_: pytest.fail("a plan is kept"))
    resumed, result = train(
        config, journal.budget(60, clock.now), checkpoint_dir=tmp_path, resume_from=state.load_latest(tmp_path)
    )
    assert len(result.history) == epochs
    assert clock.num_steps == 4 + 3 + epochs * views * STEPS - 2, "timed, interrupted, resumed after step 2"
    same = replace(config.train, stages=(replace(stage, views=views, epochs=epochs),))
    expected, _ = train(replace(config, train=same), None)
    assert weights_sha256(resumed.model) == weights_sha256(expected.model)


def test_views_take_a_quarter_of_the_time_unless_they_are_planned_or_in_the_cache(clock: Clock) -> None:
    journal = Journal()
    journal.record.stages["0"] = StagePlan(10, 5, 4.0, 0.0, 4)
    budget = journal.budget(30, clock.now)
    assert budget.limit_views(0, 6, lambda: pytest.fail("a plan is kept")) == 4
    assert budget.limit_views(1, 4, lambda: 3.0) == 3, "those of 3 s in a quarter of 25.5 s"
    assert budget.limit_views(1, 9, lambda: 3.0, lambda: 5) == 5, "the cache has the features of five"
    assert budget.limit_views(1, 9, lambda: 3.0, lambda: 2) == 3
    assert budget.limit_views(1, 9, lambda: pytest.fail("nothing is computed"), lambda: 9) == 9
    budget.record.stages["1"] = StagePlan(10, 5, 4.0, 0.0, 2)
    assert budget.limit_views(1, 9, lambda: pytest.fail("a plan is kept"), lambda: 9) == 2


@pytest.mark.slow
def test_views_in_the_cache_take_no_time(clock: Clock, monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    """A time limit reduces the views, unless an earlier run has computed the features of all of them."""
    stage = StageConfig("views", unfreeze=0, views=6, epochs=2)
    config = replace(CONFIG, train=replace(CONFIG.train, stages=(stage,)))
    monkeypatch.setattr(stage_features, "time_view", lambda *_: 30.0)
    for _ in range(2):
        journal = Journal()
        train(config, journal.budget(200, clock.now))
        assert journal.record.stages["0"].views == 2, "one more view of 30 s fits into a quarter of 187 s"
    train(config, None)
    journal = Journal()
    train(config, journal.budget(200, clock.now))
    assert journal.record.stages["0"].views == 6


@pytest.mark.slow_with("17")
@pytest.mark.parametrize("at_step", [6, 17])
def test_a_resumed_run_keeps_its_plan_and_the_time_of_its_sessions(at_step: int, clock: Clock, tmp_path: Path) -> None:
    expected, _ = train(CONFIG, Journal().budget(30, clock.now))
    journal, seen = Journal(), 0
    config = replace(CONFIG, train=replace(CONFIG.train, checkpoint_steps=1))

    class Interrupting(Callback):
        def on_step_end(self, epoch: int, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
            nonlocal seen
            seen += 1
            if seen == at_step:
                raise Interrupted("Stopped.")

    budget = journal.budget(30, clock.now)
    with pytest.raises(Interrupted):
        train(config, budget, callback=Interrupting(), checkpoint_dir=tmp_path)
    budget.save()
    clock.now += 1000  # between the sessions
    resumed, result = train(
        config, journal.budget(30, clock.now), checkpoint_dir=tmp_path, resume_from=state.load_latest(tmp_path)
    )
    assert len(result.history) == 5
    assert weights_sha256(resumed.model) == weights_sha256(expected.model)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("0.5h", 1800), (" 2m5s ", 125)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "10", "soon", "10m5", "-5m", "0s", "5m1h", "m", "1d", "1e3s"])
def test_other_text_is_not_a_duration(text: str) -> None:
    with pytest.raises(
        ConfigError, match=r"^train\.time_limit cannot be .*: expected a duration such as 90s, 10m or 1h30m\.$"
    ):
        parse_duration(text)
