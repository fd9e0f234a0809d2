"""The training loop: stages, epochs and steps; best weights and checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sightline.callbacks import Callback, EpochRecord, Progress
from sightline.config import RunConfig, StageConfig
from sightline.config.stage_epochs import count_epochs
from sightline.data.masks import VOID
from sightline.data.types import Subset
from sightline.distributed import cluster
from sightline.errors import DivergedError, Interrupted, ModelError, plural
from sightline.models.build import Network
from sightline.tasks.protocol import Objective, Task, find_task
from sightline.training import checkpoints, linear_head
from sightline.training.checkpoints import Checkpoint
from sightline.training.divergence import LossLimit
from sightline.training.early_features import EarlyFeatures
from sightline.training.early_stopping import find_obstacle, is_better, is_last_epoch
from sightline.training.ema import apply_ema, swap_in_ema
from sightline.training.interrupt import StopRequest, catch_stop_signals
from sightline.training.schedules import compute_plateau_factor
from sightline.training.stage_run import StagePreparer, StageRun, iterate_validation, predict_validation, set_epochs
from sightline.training.state import CheckpointManager, TrainingState, pack_state, unpack_state
from sightline.training.time_budget import StageDeadline, TimeBudget, measure_epoch


@dataclass(frozen=True, slots=True)
class FitResult:
    """The result of `fit`; the model has the weights of the best epoch, or of the last one if so configured.

    `validation_logits` are the logits of the final weights, float32 [N, K]; None if they were not computed. If
    `is_refit`, the head was then fitted to the validation images too, and they are the logits from before that.
    """

    history: tuple[EpochRecord, ...]
    best: EpochRecord | None
    images_per_second: float
    validation_logits: NDArray[np.float32] | None
    is_refit: bool = False


def fit(  # noqa: PLR0913  # keyword arguments
    network: Network,
    train: Subset,
    validation: Subset,
    config: RunConfig,
    callback: Callback,
    *,
    objective: Objective | None = None,
    checkpoint_dir: Path | None = None,
    resume_from: Checkpoint | None = None,
    budget: TimeBudget | None = None,
    early: EarlyFeatures | None = None,
) -> FitResult:
    """Train `network` in place on `train`; evaluate it on `validation` (which may be empty) after every epoch.

    Stages that train on pixels minimize `objective`, by default the loss of the labels. Checkpoints are written to
    `checkpoint_dir` as configured in ``[train]``. `resume_from` is the checkpoint to resume from; the final weights
    match those of an uninterrupted run bit for bit. `budget` limits the epochs to the available time. The features in
    `early` are not computed again. Raises `Interrupted` after Ctrl-C or SIGTERM (a checkpoint is written first) and
    `DivergedError` at the first loss that is NaN or above `divergence.LossLimit`; in both cases the model then has the
    best weights so far, if there are any.
    """
    limit = LossLimit.from_network(network)
    state, optimizer_arrays = unpack_state(resume_from, network) if resume_from else (TrainingState(), {})
    checkpoint_manager = CheckpointManager(
        checkpoint_dir, config.train, resume_from.state["serial"] if resume_from else 0
    )
    stage_configs = config.train.stages or (StageConfig("training"),)
    stage_preparer = StagePreparer(network, train, validation, config, stage_configs, objective, limit, early)
    with catch_stop_signals(cluster.make_any_host()) as stop:
        try:
            for number in range(state.stage, len(stage_configs)):
                last = number == len(stage_configs) - 1
                progress = _make_stoppable_progress(callback, stop)
                prepare = partial(stage_preparer.prepare_stage, number, progress, callback)
                try:
                    stage_run = _prepare_stage(
                        prepare, stage_configs[number], number, state, config, len(validation), callback, budget
                    )
                except Interrupted:
                    if state.stage and state.at_stage_start:  # otherwise the existing checkpoint has at least as much
                        checkpoint_manager.save(pack_state(state, network, None))
                    raise
                if stage_run is None:
                    checkpoint_manager.save(pack_state(state, network, None))  # to be able to extend the run
                    state.end_stage()
                    continue
                if optimizer_arrays:
                    checkpoints.restore_variables(stage_run.training_model.optimizer, optimizer_arrays)
                    optimizer_arrays = {}
                with closing(stage_run.runner):
                    _run_stage(stage_run, state, callback, stop, checkpoint_manager, budget, last=last)
        except (Interrupted, DivergedError):
            if state.best_arrays:
                checkpoints.restore_variables(network.model, state.best_arrays)
            raise
    logits, is_refit = None, False
    if config.train.early_stopping.restore_best_weights and state.best_arrays:
        is_solved = state.best is not None and state.best.penalty is not None
        logits, is_refit = state.best_logits, bool(state.refit) and is_solved
        checkpoints.restore_variables(network.model, state.best_arrays | (state.refit if is_refit else {}))
    seconds = sum(r.seconds for r in state.history)
    num_images = sum(r.seconds * r.images_per_second for r in state.history)
    return FitResult(tuple(state.history), state.best, num_images / seconds if seconds else 0.0, logits, is_refit)


def _prepare_stage(
    prepare: Callable[..., StageRun],
    stage: StageConfig,
    number: int,
    state: TrainingState,
    config: RunConfig,
    num_validation_images: int,
    callback: Callback,
    budget: TimeBudget | None,
) -> StageRun | None:
    """Prepare a stage with the epochs that fit into the `budget`; return None if it is left out.

    Solved stages are not limited, and neither is the first epoch of a run: without it, there is no model.
    """
    if state.history and is_last_epoch(config, state.history[-1]):
        return None
    if state.at_stage_start and (obstacle := find_obstacle(state.best, config, num_validation_images)):
        callback.on_message(f"{stage.name}: left out, as {obstacle.reason}; {obstacle.setting} trains it anyway")
        return None
    configured = count_epochs(config.train, stage)
    if budget is None or stage.is_solved or not configured:
        return prepare()
    plan = budget.find_plan(number)
    prepared: list[StageRun] = []
    limit_views = partial(budget.limit_views, number)

    def measure() -> tuple[float, float, int]:
        prepared.append(prepare(limit_views=limit_views))
        return *measure_epoch(prepared[0], state.epoch_number), prepared[0].views

    if plan is None:
        plan = budget.plan_stage(number, configured, measure, required=int(state.best is None))
        callback.on_message(budget.describe(plan, stage.name))
    if not plan.epochs:
        return None
    if prepared and prepared[0].views != plan.views:  # fewer views than measured
        prepared.pop().runner.close()
    stage_run = prepared[0] if prepared else prepare(limit_views=limit_views)
    return stage_run if plan.epochs == configured else set_epochs(stage_run, plan.epochs)


def _make_stoppable_progress(callback: Callback, stop: StopRequest) -> Progress:
    def progress(task: str, done: int, total: int) -> None:
        callback.on_progress(task, done, total)
        stop.check(f"while computing the {task}, {done} of {total}")

    return progress


def _run_stage(
    stage_run: StageRun,
    state: TrainingState,
    callback: Callback,
    stop: StopRequest,
    checkpoint_manager: CheckpointManager,
    budget: TimeBudget | None,
    *,
    last: bool,
) -> None:
    """Run the rest of a stage; the `last` one writes a checkpoint so that the run can be extended."""

    def make_checkpoint() -> Checkpoint:
        stage_run.runner.catch_up()
        return pack_state(state, stage_run.network, stage_run.training_model.optimizer)

    deadline = StageDeadline(budget, state.stage, lambda: checkpoint_manager.save(make_checkpoint()))
    steps = stage_run.steps
    callback.on_stage_begin(stage_run.stage.name, stage_run.epochs, steps)
    model, logits_model = stage_run.network.model, stage_run.logits_model
    frozen_arrays = checkpoints.copy_variables(model, logits_model, outside=True)  # not per epoch: it takes 0.1 s
    early_stop = stage_run.config.train.early_stopping
    if state.step > steps:
        raise ModelError(f"The checkpoint is from different data: it is at step {state.step} of an epoch of {steps}.")
    while _has_next_epoch(stage_run, state, deadline):
        plateau_factor = compute_plateau_factor(stage_run.config.train.schedule, state.history[state.stage_start :])
        try:
            record, logits = _run_epoch(
                stage_run, state, plateau_factor, callback, stop, deadline,
                lambda: checkpoint_manager.after_step(make_checkpoint),
            )  # fmt: skip
        except Interrupted:
            checkpoint_manager.save(make_checkpoint())
            raise
        state.end_epoch(record)
        if is_last_epoch(stage_run.config, record) or is_better(
            record, state.best, early_stop.monitor, early_stop.min_delta
        ):
            state.best, state.since_best = record, 0
            with swap_in_ema(stage_run.training_model):
                state.best_arrays = frozen_arrays | checkpoints.copy_variables(model, logits_model)
            state.best_logits = logits
        else:
            state.since_best += 1
        callback.on_epoch_end(record)
        checkpoint_manager.after_epoch(make_checkpoint)
    if stop.is_due:
        checkpoint_manager.save(make_checkpoint())
        stop.check(f"after epoch {len(state.history)}")
    if (
        state.best
        and early_stop.patience
        and state.since_best >= early_stop.patience
        and state.epoch < stage_run.epochs
    ):
        epochs = plural(state.since_best, "more epoch")
        callback.on_message(
            f"{stage_run.stage.name}: stopped early, as epoch {state.best.epoch} is still the best after {epochs}"
        )
    if last:
        checkpoint_manager.after_all(make_checkpoint)
    apply_ema(stage_run.training_model)
    state.end_stage()


def _has_next_epoch(stage_run: StageRun, state: TrainingState, deadline: StageDeadline) -> bool:
    """Return whether the stage continues: always with an epoch that has begun, and with the first epoch of a run."""
    patience = stage_run.config.train.early_stopping.patience
    if state.history and is_last_epoch(stage_run.config, state.history[-1]):
        return False
    if state.epoch >= stage_run.epochs or (patience and state.since_best >= patience):
        return False
    return state.best is None or bool(state.step) or deadline.has_time_for_epoch()


def _run_epoch(
    stage_run: StageRun,
    state: TrainingState,
    plateau_factor: float,
    callback: Callback,
    stop: StopRequest,
    deadline: StageDeadline,
    after_step: Callable[[], None],
) -> tuple[EpochRecord, NDArray[np.float32] | None]:
    """Run the remaining steps of an epoch, or the solver of its stage, then validate."""
    number = state.epoch_number
    rate = penalty = None
    if stage_run.stage.is_solved:
        penalty = _solve_head(stage_run, state, callback, stop)
    else:
        _run_steps(stage_run, state, plateau_factor, callback, stop, deadline, after_step)
        rate = plateau_factor * stage_run.rate_at(state.epoch * stage_run.steps + state.step - 1)
    val_loss = val_accuracy = val_mean_iou = val_calibrated_loss = logits = None
    task = find_task(stage_run.config.model.task)
    if _can_validate(task, stage_run.validation):

        def check_stop(_task: str, done: int, total: int) -> None:
            if done < total:
                stop.check(f"while validating epoch {number}")

        with swap_in_ema(stage_run.training_model):
            if task.targets.are_masks:  # logits per pixel are too large to keep
                score = task.score_batches(iterate_validation(stage_run, check_stop))
            else:
                logits = predict_validation(stage_run, check_stop)
                score = task.score(logits, stage_run.validation.labels)
        calibrated = None
        is_monitored = stage_run.config.train.early_stopping.monitor == "val_calibrated_loss"
        if is_monitored and logits is not None and math.isfinite(score.loss):
            calibrated = task.compute_calibrated_loss(logits, stage_run.validation.labels)
        values = np.array([*score, calibrated], np.float64)  # None becomes NaN
        shared = cluster.broadcast_array(values).tolist()  # the same on every host
        val_loss, val_accuracy = shared[:2]
        val_mean_iou, val_calibrated_loss = (None if math.isnan(value) else value for value in shared[2:])
        if stage_run.limit.is_exceeded(val_loss):  # the last step diverged, which no later training batch shows
            paths = () if stage_run.stage.is_solved else _get_paths(stage_run, number, state.step - 1)
            raise stage_run.limit.make_error(val_loss, f"the end of epoch {number}, on validation", rate, paths)
    metric_values = (state.loss_sum / state.num_images, state.num_correct / state.num_images, val_loss, val_accuracy)
    costs = (rate, state.seconds, state.num_images / state.seconds)
    record = EpochRecord(
        number, stage_run.stage.name, *metric_values, *costs, penalty, val_mean_iou, val_calibrated_loss
    )
    return record, logits


def _can_validate(task: Task, validation: Subset) -> bool:
    """Return whether there are images to validate on; with masks, at least one pixel must have a class."""
    return any((mask != VOID).any() for mask in validation.labels) if task.targets.are_masks else len(validation) > 0


def _solve_head(stage_run: StageRun, state: TrainingState, callback: Callback, stop: StopRequest) -> float:
    """Solve the head and return its penalty.

    In cross-validation, the held-out images of a fold are predicted by a head that, once the penalty is chosen, is
    fitted to the validation images too, as the final model is.
    """
    started, count, number = time.perf_counter(), len(stage_run.train), state.epoch_number

    def check_stop() -> None:
        stop.check(f"while solving the head in epoch {number}")

    images = (stage_run.network.model, stage_run.train, stage_run.validation, stage_run.config, check_stop)
    with linear_head.limit_threads(stage_run.train):
        head = linear_head.train_head(*images, stage_run.stage.penalty)
        if stage_run.config.split.fold is not None and len(stage_run.validation):
            state.refit = linear_head.refit_head(*images, head.penalty)
    state.add(count, head.loss, head.accuracy)
    state.seconds = time.perf_counter() - started
    callback.on_step_end(number, stage_run.steps, head.loss, head.accuracy, count / state.seconds)
    return head.penalty


def _run_steps(
    stage_run: StageRun,
    state: TrainingState,
    plateau_factor: float,
    callback: Callback,
    stop: StopRequest,
    deadline: StageDeadline,
    after_step: Callable[[], None],
) -> None:
    """Run the remaining steps of an epoch; all but the first only before the `deadline`."""
    number, steps, runner = state.epoch_number, stage_run.steps, stage_run.runner
    rates = np.array([plateau_factor * stage_run.rate_at(state.epoch * steps + step) for step in range(steps)])
    started = time.perf_counter() - state.seconds

    def record(loss: float, accuracy: float) -> None:
        step = state.step
        if stage_run.limit.is_exceeded(loss):
            where, rate = f"step {step + 1} of epoch {number}", float(rates[step])
            raise stage_run.limit.make_error(loss, where, rate, _get_paths(stage_run, number, step))
        state.add(stage_run.inputs.count_real(step), loss, accuracy)
        state.seconds = time.perf_counter() - started
        callback.on_step_end(
            number,
            step + 1,
            state.loss_sum / state.num_images,
            state.num_correct / state.num_images,
            state.num_images / state.seconds,
        )

    try:
        runner.begin_epoch(number, state.step, rates, record, has_next=state.epoch + 1 < stage_run.epochs)
        for step in range(state.step, steps):
            if step and deadline.is_over():
                callback.on_message(f"the time limit ended epoch {number} after {step} of {plural(steps, 'step')}")
                break
            stop.check(f"in epoch {number}, before step {step + 1} of {steps}")
            runner.run_step()
            after_step()
        runner.catch_up()
    except Interrupted:
        runner.catch_up()  # so that the checkpoint includes every started step
        raise
    finally:
        runner.end_epoch()


def _get_paths(stage_run: StageRun, epoch: int, step: int) -> tuple[str, ...]:
    """Return the paths of the images in a step."""
    rows = stage_run.inputs.order_rows(epoch)[step][: stage_run.inputs.count_real(step)]
    return tuple(stage_run.train.paths[int(i)] for i in rows)
