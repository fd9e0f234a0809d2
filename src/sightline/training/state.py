"""The state of training, its conversion to and from checkpoints, and when checkpoints are written."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from sightline import jsonio
from sightline.callbacks import EpochRecord
from sightline.config import TrainConfig
from sightline.errors import ModelError
from sightline.models.build import Network
from sightline.training import checkpoints
from sightline.training.checkpoints import Arrays, Checkpoint, VariableArrays

SAVE_INTERVAL_RATIO = 50  # automatic checkpoints are this multiple of the saving time apart: 2% overhead


@dataclass(slots=True)
class TrainingState:
    """The position in the stages, the running sums of the current epoch, the completed epochs and the best epoch.

    `stage`, `epoch` and `step` count completed stages, epochs of the stage and steps of the epoch. In the current
    epoch, `num_images` images had a summed loss of `loss_sum` and `num_correct` correct predictions in `seconds`.
    `stage_start` is the number of epochs before the stage. `refit` are the variables with a solved head that was fitted
    to the validation images too. No random state is stored: our streams derive from seed and epoch by name, and the
    streams of Keras' random layers are variables of the model.
    """

    stage: int = 0
    epoch: int = 0
    step: int = 0
    num_images: int = 0
    loss_sum: float = 0.0
    num_correct: float = 0.0
    seconds: float = 0.0
    stage_start: int = 0
    since_best: int = 0
    history: list[EpochRecord] = field(default_factory=list)
    best: EpochRecord | None = None
    best_arrays: Arrays = field(default_factory=dict)
    best_logits: NDArray[np.float32] | None = None
    refit: Arrays = field(default_factory=dict)

    @property
    def epoch_number(self) -> int:
        """The number of the current epoch, 1-based and counted over all stages."""
        return len(self.history) + 1

    @property
    def at_stage_start(self) -> bool:
        """Whether the stage has not run any step yet."""
        return not (self.epoch or self.step)

    def add(self, count: int, loss: float, accuracy: float) -> None:
        """Add a completed step: `count` images with this mean loss and accuracy."""
        self.step += 1
        self.num_images, self.loss_sum, self.num_correct = (
            self.num_images + count,
            self.loss_sum + loss * count,
            self.num_correct + accuracy * count,
        )

    def end_epoch(self, record: EpochRecord) -> None:
        """Record a completed epoch."""
        self.history.append(record)
        self.epoch += 1
        self._begin_epoch()

    def end_stage(self) -> None:
        """Record a completed stage, whether it ran all epochs or stopped early."""
        self.stage, self.epoch, self.stage_start, self.since_best = self.stage + 1, 0, len(self.history), 0
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.step, self.num_images, self.loss_sum, self.num_correct, self.seconds = 0, 0, 0.0, 0.0, 0.0


class SavedState(TypedDict):
    """The JSON state of a checkpoint: the counters of `TrainingState`, the epochs, and the number of the best epoch."""

    stage: int
    epoch: int
    step: int
    num_images: int
    loss_sum: float
    num_correct: float
    seconds: float
    stage_start: int
    since_best: int
    history: list[EpochRecord]
    best: int | None
    serial: int


def load_latest(folder: Path, on_message: Callable[[str], None] = lambda _: None) -> Checkpoint | None:
    """Return the newest valid checkpoint in `folder`; None if there is none."""
    return checkpoints.load_latest(folder, on_message, check_state)


def check_state(candidate: Checkpoint, where: str) -> None:
    """Raise `ModelError`, whose message starts with `where`, unless `pack_state` could have produced the state."""
    facts = jsonio.build(SavedState, candidate.state, where)
    counts = {name: value for name, value in facts.items() if isinstance(value, int | float)}
    num_epochs = len(facts["history"])
    invalid = [name for name, value in counts.items() if value < 0 and name not in {"loss_sum", "best"}]
    invalid += [name for name in ("epoch", "stage_start") if counts[name] > num_epochs]
    invalid += ["num_images"] if counts["num_images"] < counts["step"] else []
    invalid += ["best"] if facts["best"] is not None and not 1 <= facts["best"] <= num_epochs else []
    if invalid:
        raise ModelError(
            f"{where} cannot be read: its {invalid[0]} is {counts[invalid[0]]}, after {num_epochs} epochs."
        )


_COUNTERS = tuple(name for name in SavedState.__annotations__ if name not in {"history", "best", "serial"})


def pack_state(state: TrainingState, network: Network, optimizer: Any | None) -> Checkpoint:
    """Return a checkpoint of the training state; `optimizer` is None between stages, as each stage creates its own.

    The best weights are stored only where they differ from the current ones. Variables are read when the checkpoint is
    written, so write it before the next step.
    """
    named = checkpoints.name_variables(network.model)
    current = VariableArrays(named)
    arrays: dict[str, Any] = {f"model/{name}": variable for name, variable in named.items()}
    for name, array in state.best_arrays.items():
        if not np.array_equal(array, current[name]):
            arrays[f"best/{name}"] = array
    if optimizer is not None:
        variables = checkpoints.name_variables(optimizer)
        arrays |= {f"optimizer/{name}": variable for name, variable in variables.items()}
    arrays |= {f"refit/{name}": array for name, array in state.refit.items()}
    if state.best_logits is not None:
        arrays["best_logits"] = state.best_logits
    facts: dict[str, Any] = {name: getattr(state, name) for name in _COUNTERS}
    facts["history"] = [asdict(record) for record in state.history]
    facts["best"] = state.best.epoch if state.best else None
    return Checkpoint(VariableArrays(arrays), facts)


def unpack_state(saved: Checkpoint, network: Network) -> tuple[TrainingState, Arrays]:
    """Restore the model's weights from a checkpoint; return the state and the optimizer's arrays.

    The arrays are empty at the start of a stage. Raises `ModelError` if the checkpoint is from another model.
    """
    model_arrays = _select_prefix("model/", saved.arrays)
    checkpoints.restore_variables(network.model, model_arrays)
    state = TrainingState(**{name: saved.state[name] for name in _COUNTERS})
    state.history = list(read_history(saved))
    state.refit = _select_prefix("refit/", saved.arrays)
    best_epoch = saved.state["best"]
    if best_epoch is not None:
        state.best = state.history[best_epoch - 1]
        state.best_arrays = model_arrays | _select_prefix("best/", saved.arrays)
        state.best_logits = saved.arrays.get("best_logits")
    return state, _select_prefix("optimizer/", saved.arrays)


def read_history(saved: Checkpoint | None) -> tuple[EpochRecord, ...]:
    """Return the epochs completed at a checkpoint."""
    return jsonio.build(tuple[EpochRecord, ...], saved.state["history"], "The checkpoint") if saved else ()


def _select_prefix(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


class CheckpointManager:
    """Writes checkpoints to `folder` (None writes none) as often as configured, within 2% of the training time.

    `serial` is the number of the checkpoint that training was resumed from, else 0.
    """

    def __init__(self, folder: Path | None, config: TrainConfig, serial: int) -> None:
        self._folder, self._config, self._serial = folder, config, serial
        self._saved_at = time.monotonic()
        self._save_seconds = 0.0
        self._steps_since_save = 0
        self._is_current = bool(serial)

    def after_step(self, make_checkpoint: Callable[[], Checkpoint]) -> None:
        """Save the checkpoint from `make_checkpoint` after a step, if one is due."""
        if self._folder is None:
            return
        self._is_current = False
        self._steps_since_save += 1
        step_interval, minutes = self._config.checkpoint_steps, self._config.checkpoint_minutes
        elapsed = time.monotonic() - self._saved_at
        if (step_interval and self._steps_since_save >= step_interval) or (
            minutes and elapsed >= max(60 * minutes, SAVE_INTERVAL_RATIO * self._save_seconds)
        ):
            self.save(make_checkpoint())

    def after_epoch(self, make_checkpoint: Callable[[], Checkpoint]) -> None:
        """Save the checkpoint from `make_checkpoint` after an epoch, if one is due."""
        if self._folder is not None and time.monotonic() - self._saved_at >= SAVE_INTERVAL_RATIO * self._save_seconds:
            self.save(make_checkpoint())
        else:
            self._is_current = False

    def after_all(self, make_checkpoint: Callable[[], Checkpoint]) -> None:
        """Save the checkpoint from `make_checkpoint` after the last stage if ``train.keep_last_checkpoint`` is on."""
        if self._folder is not None and self._config.keep_last_checkpoint and not self._is_current:
            self.save(make_checkpoint())

    def save(self, to_save: Checkpoint) -> None:
        """Write a checkpoint unconditionally."""
        if self._folder is None:
            return
        started = time.monotonic()
        self._serial += 1
        to_save.state["serial"] = self._serial
        checkpoints.write_checkpoint(self._folder, self._serial, to_save, self._config.max_checkpoints)
        self._saved_at, self._steps_since_save = time.monotonic(), 0
        self._save_seconds = self._saved_at - started
        self._is_current = True
