"""The state of training, its conversion to and from checkpoints, and when checkpoints are written."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from sightline import jsonio
from sightline.config import TrainConfig
from sightline.errors import ModelError
from sightline.models.build import Network
from sightline.records import EpochRecord
from sightline.training import checkpoint
from sightline.training.checkpoint import Arrays, Checkpoint

DEAR = 50  # an automatic checkpoint waits for this multiple of the time that saving takes: 2% overhead


@dataclass(slots=True)
class State:
    """The position in the stages, the running sums of the current epoch, the completed epochs and the best of them.

    `stage`, `epoch` and `step` count completed stages, epochs of the stage and steps of the epoch. In the current
    epoch, `seen` images had a summed loss of `total` and `hits` correct predictions in `seconds`. `begun` is the number
    of epochs before the stage. No random state is stored: our streams derive from seed and epoch by name, and those of
    Keras' random layers are variables of the model.
    """

    stage: int = 0
    epoch: int = 0
    step: int = 0
    seen: int = 0
    total: float = 0.0
    hits: float = 0.0
    seconds: float = 0.0
    begun: int = 0
    since_best: int = 0
    history: list[EpochRecord] = field(default_factory=list)
    best: EpochRecord | None = None
    best_arrays: Arrays = field(default_factory=dict)
    best_logits: NDArray[np.float32] | None = None

    @property
    def number(self) -> int:
        """The number of the current epoch, 1-based and counted over all stages."""
        return len(self.history) + 1

    @property
    def untouched(self) -> bool:
        """Whether the stage has not run a step yet."""
        return not (self.epoch or self.step)

    def add(self, count: int, loss: float, accuracy: float) -> None:
        """Add a completed step: `count` images with this mean loss and accuracy."""
        self.step += 1
        self.seen, self.total, self.hits = self.seen + count, self.total + loss * count, self.hits + accuracy * count

    def end_epoch(self, record: EpochRecord) -> None:
        """Record a completed epoch."""
        self.history.append(record)
        self.epoch += 1
        self._begin_epoch()

    def end_stage(self) -> None:
        """Record a completed stage, whether it ran all epochs or stopped early."""
        self.stage, self.epoch, self.begun, self.since_best = self.stage + 1, 0, len(self.history), 0
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.step, self.seen, self.total, self.hits, self.seconds = 0, 0, 0.0, 0.0, 0.0


class Facts(TypedDict):
    """The JSON state of a checkpoint: the counters of `State`, the epochs, and the number of the best one."""

    stage: int
    epoch: int
    step: int
    seen: int
    total: float
    hits: float
    seconds: float
    begun: int
    since_best: int
    history: list[EpochRecord]
    best: int | None
    serial: int


def latest(folder: Path, say: Callable[[str], None] | None = None) -> Checkpoint | None:
    """Return the newest valid checkpoint in `folder`; None if there is none."""
    return checkpoint.latest(folder, say, check)


def check(saved: Checkpoint, where: str) -> None:
    """Raise `ModelError`, whose message starts with `where`, unless the state is one that `pack` can produce."""
    facts = jsonio.build(Facts, saved.state, where)
    counts = {name: value for name, value in facts.items() if isinstance(value, int | float)}
    done = len(facts["history"])
    wrong = [name for name, value in counts.items() if value < 0 and name not in {"total", "best"}]
    wrong += [name for name in ("epoch", "begun") if counts[name] > done]
    wrong += ["seen"] if counts["seen"] < counts["step"] else []
    wrong += ["best"] if facts["best"] is not None and not 1 <= facts["best"] <= done else []
    if wrong:
        raise ModelError(f"{where} cannot be read: its {wrong[0]} is {counts[wrong[0]]}, after {done} epochs.")


_PLAIN = ("stage", "epoch", "step", "seen", "total", "hits", "seconds", "begun", "since_best")


def pack(state: State, network: Network, optimizer: Any | None) -> Checkpoint:
    """Return a checkpoint of the training state; `optimizer` is None between stages, when the next one creates its own.

    The best weights are stored only where they differ from the current ones.
    """
    present = checkpoint.variables(network.model)
    arrays = {f"model/{name}": array for name, array in present.items()}
    for name, array in state.best_arrays.items():
        if not np.array_equal(array, present[name]):
            arrays[f"best/{name}"] = array
    if optimizer is not None:
        arrays |= {f"optimizer/{name}": array for name, array in checkpoint.variables(optimizer).items()}
    if state.best_logits is not None:
        arrays["best_logits"] = state.best_logits
    facts: dict[str, Any] = {name: getattr(state, name) for name in _PLAIN}
    facts["history"] = [asdict(record) for record in state.history]
    facts["best"] = state.best.epoch if state.best else None
    return Checkpoint(arrays, facts)


def unpack(found: Checkpoint, network: Network) -> tuple[State, Arrays]:
    """Restore the model's weights from a checkpoint; return the state and the optimizer's arrays.

    The arrays are empty at the start of a stage. Raises `ModelError` if the checkpoint is from another model.
    """
    model = _below("model/", found.arrays)
    checkpoint.restore(network.model, model)
    state = State(**{name: found.state[name] for name in _PLAIN})
    state.history = list(records(found))
    number = found.state["best"]
    if number is not None:
        state.best = state.history[number - 1]
        state.best_arrays = model | _below("best/", found.arrays)
        state.best_logits = found.arrays.get("best_logits")
    return state, _below("optimizer/", found.arrays)


def records(found: Checkpoint | None) -> tuple[EpochRecord, ...]:
    """Return the epochs completed at a checkpoint."""
    return jsonio.build(tuple[EpochRecord, ...], found.state["history"], "The checkpoint") if found else ()


def _below(prefix: str, arrays: Arrays) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


class Saver:
    """Writes checkpoints to `folder` (None: none) as often as configured, within 2% of the training time.

    `serial` is the number of the checkpoint that training was resumed from, else 0.
    """

    def __init__(self, folder: Path | None, config: TrainConfig, serial: int = 0) -> None:
        self._folder, self._config, self._serial = folder, config, serial
        self._saved = time.monotonic()
        self._cost = 0.0
        self._steps = 0
        self._saved_all = bool(serial)

    def after_step(self, make: Callable[[], Checkpoint]) -> None:
        """Save the checkpoint from `make` after a step, if one is due."""
        if self._folder is None:
            return
        self._saved_all = False
        self._steps += 1
        every, minutes = self._config.checkpoint_steps, self._config.checkpoint_minutes
        passed = time.monotonic() - self._saved
        if (every and self._steps >= every) or (minutes and passed >= max(60 * minutes, DEAR * self._cost)):
            self.save(make())

    def after_epoch(self, make: Callable[[], Checkpoint]) -> None:
        """Save the checkpoint from `make` after an epoch, if one is due."""
        if self._folder is not None and time.monotonic() - self._saved >= DEAR * self._cost:
            self.save(make())
        else:
            self._saved_all = False

    def after_all(self, make: Callable[[], Checkpoint]) -> None:
        """Save the checkpoint from `make` after the last stage, unless ``train.keep_state`` is off."""
        if self._folder is not None and self._config.keep_state and not self._saved_all:
            self.save(make())

    def save(self, found: Checkpoint) -> None:
        """Write a checkpoint unconditionally."""
        if self._folder is None:
            return
        begun = time.monotonic()
        self._serial += 1
        found.state["serial"] = self._serial
        checkpoint.write(self._folder, self._serial, found, self._config.checkpoint_keep)
        self._saved, self._steps = time.monotonic(), 0
        self._cost = self._saved - begun
        self._saved_all = True
