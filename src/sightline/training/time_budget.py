"""A limit on the time of a run: how many epochs fit, and when to stop.

Time decides only the number of epochs and of views per image. The decision is made once per stage, before its first
step, from steps that are timed and undone, so the learning-rate schedule spans the epochs that will run. It is
recorded, so a resumed run has the same schedule. If steps become slower, the stage ends early, and the partially
trained epoch is validated.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sightline.config.durations import format_duration
from sightline.errors import plural
from sightline.training import checkpoints
from sightline.training.result import StagePlan, TimeRecord
from sightline.training.stage_run import StageRun, predict_validation

PLANNED_FRACTION = 0.95  # share of the limit to plan for, so that steps may become a little slower
LAST_FRACTION = 1.05  # multiple of the limit at which training ends at the latest
TRIAL_STEPS, TRIAL_SECONDS = 3, 1.0  # at least so many steps and seconds are timed, after a first step that compiles
RECORD_SECONDS = 10.0  # interval for recording the elapsed time within an epoch


class TimeBudget:
    """The time limit of a run in seconds, its `record`, and the start of this session on the monotonic clock.

    `save` is called with the record whenever it changes. `measure_finishing`, which is set once there is a network,
    returns the estimated time in seconds to finish the run after training.
    """

    def __init__(
        self, limit: float, record: TimeRecord, save: Callable[[TimeRecord], None], session_start: float
    ) -> None:
        self.limit, self.record = limit, record
        self.measure_finishing: Callable[[], float] = lambda: 0.0
        self._save = save
        self._started = session_start - record.elapsed
        self._saved_at = 0.0

    @property
    def elapsed(self) -> float:
        """The seconds since the run was started, excluding the time between its sessions."""
        return time.monotonic() - self._started

    def save(self) -> None:
        """Record the elapsed time and all decisions."""
        self.record.elapsed, self._saved_at = self.elapsed, time.monotonic()
        self._save(self.record)

    def find_plan(self, number: int) -> StagePlan | None:
        """Return the plan for stage `number`; None before `plan_stage`."""
        return self.record.stages.get(str(number))

    def limit_views(
        self, number: int, configured: int, measure_view: Callable[[], float], cached: Callable[[], int] = lambda: 1
    ) -> int:
        """Return how many of the `configured` views of each image to use in stage `number`.

        Their features may take at most a quarter of the remaining time; `measure_view` returns the seconds per view,
        and `cached` the number of views whose features take no time. A stage that is already planned keeps its views.
        """
        if (plan := self.find_plan(number)) is not None:
            return plan.views
        self._estimate_finishing()
        if (num_cached := cached()) >= configured:
            return configured
        fitting = 1 + int(max(self._find_available(PLANNED_FRACTION), 0) / 4 / measure_view())
        return min(configured, max(fitting, num_cached))

    def plan_stage(
        self, number: int, configured: int, measure_epoch: Callable[[], tuple[float, float, int]], *, required: int
    ) -> StagePlan:
        """Plan and record how many of the `configured` epochs of stage `number` fit, at least `required`.

        `measure_epoch` returns the seconds of an epoch's steps and of its validation, and the number of views of each
        image; it is not called if no time is left for an epoch. Views are reduced before epochs are left out.
        """
        record, epochs, seconds, validation, views = self.record, required, None, 0.0, 1
        self._estimate_finishing()
        if required or self._find_available(PLANNED_FRACTION) > 0:
            training, validation, measured_views = measure_epoch()
            available = max(self._find_available(PLANNED_FRACTION), 0)
            costs = {n: training * n / measured_views + validation for n in range(1, measured_views + 1)}
            views = max((n for n, cost in costs.items() if configured * cost <= available), default=1)
            seconds = costs[views]
            epochs = max(required, math.floor(available / seconds))
        plan = StagePlan(configured, min(configured, epochs), seconds, validation, views)
        record.stages[str(number)] = plan
        self.save()
        return plan

    def describe(self, plan: StagePlan, name: str) -> str:
        """Return the plan of the stage `name` as a sentence."""
        views = f", on {plan.views} views of each image," if plan.views > 1 else ""
        rate = "" if plan.seconds is None else f"an epoch takes about {format_duration(plan.seconds)}, "
        is_beyond = plan.epochs * (plan.seconds or 0) > self._find_available(1)
        fit = "begins, but does not fit into the time limit" if plan.epochs and is_beyond else "fit into the time limit"
        return (
            f"{name}: {plan.epochs} of {plural(plan.configured, 'epoch')}{views} {fit}: "
            f"{format_duration(self.elapsed)} of {format_duration(self.limit)} have passed, {rate}"
            f"finishing about {format_duration(self.record.finishing)}"
        )

    def has_time_for(self, seconds: float) -> bool:
        """Return whether work of this many seconds leaves enough time to finish; always False after a stop."""
        if time.monotonic() - self._saved_at >= RECORD_SECONDS:
            self.save()
        return not self.record.stopped and seconds <= self._find_available(LAST_FRACTION)

    def stop(self) -> None:
        """Record that training ends early."""
        self.record.stopped = True
        self.save()

    def _estimate_finishing(self) -> None:
        self.record.finishing = self.record.finishing or self.measure_finishing()

    def _find_available(self, fraction: float) -> float:
        return fraction * self.limit - self.elapsed - self.record.finishing


@dataclass(frozen=True, slots=True)
class StageDeadline:
    """The deadline of stage `number`; without a `budget` there is none.

    `save_checkpoint` is called before training is recorded as stopped, so that a resumed run does not repeat it.
    """

    budget: TimeBudget | None
    number: int
    save_checkpoint: Callable[[], None]

    def has_time_for_epoch(self) -> bool:
        """Return whether there is time for at least half of another epoch; if not, record that training stopped."""
        plan = self._plan
        return not self._stop_without(plan.seconds / 2 if plan is not None and plan.seconds else 0.0)

    def is_over(self) -> bool:
        """Return whether the time is only enough to validate and finish; if so, record that training stopped."""
        plan = self._plan
        return self._stop_without(plan.validation if plan is not None else 0.0)

    @property
    def _plan(self) -> StagePlan | None:
        return None if self.budget is None else self.budget.find_plan(self.number)

    def _stop_without(self, seconds: float) -> bool:
        if self.budget is None or self.budget.has_time_for(seconds):
            return False
        if not self.budget.record.stopped:
            self.save_checkpoint()
            self.budget.stop()
        return True


def measure_epoch(stage_run: StageRun, epoch: int) -> tuple[float, float]:
    """Estimate the seconds of an epoch's steps and of its validation, from a few steps whose effect is undone."""
    optimizer, model = stage_run.training_model.optimizer, stage_run.network.model
    saved = checkpoints.copy_variables(model), checkpoints.copy_variables(optimizer)
    try:
        step_seconds = _time_steps(stage_run, epoch)
    finally:
        checkpoints.restore_variables(model, saved[0])
        checkpoints.restore_variables(optimizer, saved[1])
    return step_seconds * stage_run.steps, _time_validation(stage_run)


def _time_steps(stage_run: StageRun, epoch: int) -> float:
    """Return the mean time of a step, not counting the first one, which compiles."""
    runner, rates = stage_run.runner, np.full(stage_run.steps, stage_run.rate_at(0))
    compiled_at, finished_at, count = 0.0, 0.0, -1

    def record(_loss: float, _accuracy: float) -> None:
        nonlocal compiled_at, finished_at, count
        count, finished_at = count + 1, time.perf_counter()
        compiled_at = compiled_at if count else finished_at

    while count < TRIAL_STEPS or (finished_at - compiled_at < TRIAL_SECONDS and count < stage_run.steps):
        try:
            runner.begin_epoch(epoch, 0, rates, record, has_next=False)
            for _ in range(stage_run.steps):
                runner.run_step()
                if count >= TRIAL_STEPS and finished_at - compiled_at >= TRIAL_SECONDS:
                    break
            runner.catch_up()
        finally:
            runner.end_epoch()
    return (finished_at - compiled_at) / count


def _time_validation(stage_run: StageRun) -> float:
    """Estimate the time of validation from one batch."""
    if not len(stage_run.validation):
        return 0.0
    count = min(len(stage_run.validation), stage_run.validation_batch_size)
    predict_validation(stage_run, count=count)  # compiles
    started = time.perf_counter()
    predict_validation(stage_run, count=count)
    return (time.perf_counter() - started) * len(stage_run.validation) / count
