"""Where training stands: all that changes while it runs, to a checkpoint and back, and when one is written."""

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

DEAR = 50  # a checkpoint that was not asked for waits until this many times its own duration has passed: 2%


@dataclass(slots=True)
class State:
    """The position in the plan, the sums of the epoch under way, the epochs done, and the best of them.

    `stage`, `epoch` and `step` count what is done: stages, epochs of the stage, steps of the epoch. `seen` pictures of
    the epoch had the summed loss `total` and `hits` right answers in `seconds`. `begun` epochs lie before the stage.
    There are no other streams of chance to keep: our own derive from the seed and the epoch by name, and those of
    Keras' random layers are variables of the network.
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
        """The number of the epoch under way, from 1 on over all stages."""
        return len(self.history) + 1

    @property
    def untouched(self) -> bool:
        """Whether the stage has not taken a step yet."""
        return not (self.epoch or self.step)

    def add(self, count: int, loss: float, accuracy: float) -> None:
        """Count a step over `count` pictures with these means."""
        self.step += 1
        self.seen, self.total, self.hits = self.seen + count, self.total + loss * count, self.hits + accuracy * count

    def end_epoch(self, record: EpochRecord) -> None:
        """Count an epoch."""
        self.history.append(record)
        self.epoch += 1
        self._begin_epoch()

    def end_stage(self) -> None:
        """Count a stage, whether all its epochs ran or it was stopped early."""
        self.stage, self.epoch, self.begun, self.since_best = self.stage + 1, 0, len(self.history), 0
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.step, self.seen, self.total, self.hits, self.seconds = 0, 0, 0.0, 0.0, 0.0


class Facts(TypedDict):
    """What the state of a checkpoint holds: the counts of `State`, the epochs, and the number of the best one."""

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
    """Return the newest checkpoint in `folder` that is whole; None where there is none."""
    return checkpoint.latest(folder, say, check)


def check(saved: Checkpoint, where: str) -> None:
    """Raise `ModelError`, which begins with `where`, unless the state of a checkpoint can have been left by `pack`."""
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
    """Return everything that training goes on from; `optimizer` is None where the next stage will make a new one.

    Of the best weights only those are kept that differ from the present ones.
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
    """Set the network's weights from a checkpoint; return the state and the optimizer's arrays.

    These are empty at the beginning of a stage. Raises `ModelError` if the checkpoint is that of another network.
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
    """Return the epochs that were done at a checkpoint."""
    return jsonio.build(tuple[EpochRecord, ...], found.state["history"], "The checkpoint") if found else ()


def _below(prefix: str, arrays: Arrays) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


class Saver:
    """Writes checkpoints into `folder` (none where it is None), as often as the settings say and 2% of the time allows.

    `serial` is the number of the last checkpoint written before, if training was resumed from one.
    """

    def __init__(self, folder: Path | None, config: TrainConfig, serial: int = 0) -> None:
        self._folder, self._config, self._serial = folder, config, serial
        self._saved = time.monotonic()
        self._cost = 0.0
        self._steps = 0
        self._saved_all = bool(serial)

    def after_step(self, make: Callable[[], Checkpoint]) -> None:
        """Save what `make` returns if it is time to, a step being done."""
        if self._folder is None:
            return
        self._saved_all = False
        self._steps += 1
        every, minutes = self._config.checkpoint_steps, self._config.checkpoint_minutes
        passed = time.monotonic() - self._saved
        if (every and self._steps >= every) or (minutes and passed >= max(60 * minutes, DEAR * self._cost)):
            self.save(make())

    def after_epoch(self, make: Callable[[], Checkpoint]) -> None:
        """Save what `make` returns if it is time to, an epoch being done."""
        if self._folder is not None and time.monotonic() - self._saved >= DEAR * self._cost:
            self.save(make())
        else:
            self._saved_all = False

    def after_all(self, make: Callable[[], Checkpoint]) -> None:
        """Save what `make` returns, all stages being done, so that they can be extended; not if that was asked away."""
        if self._folder is not None and self._config.keep_state and not self._saved_all:
            self.save(make())

    def save(self, found: Checkpoint) -> None:
        """Write a checkpoint now."""
        if self._folder is None:
            return
        begun = time.monotonic()
        self._serial += 1
        found.state["serial"] = self._serial
        checkpoint.write(self._folder, self._serial, found, self._config.checkpoint_keep)
        self._saved, self._steps = time.monotonic(), 0
        self._cost = self._saved - begun
        self._saved_all = True
