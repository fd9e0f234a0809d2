"""Distribute ``train.epochs`` over the stages of a recipe."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sightline.config.schema import MAX_EPOCHS, StageConfig, TrainConfig
from sightline.errors import plural


def scale_stage_epochs(train: Any, fixed: Collection[int], unsolved: Collection[int]) -> None:
    """Scale the epochs of the stages in the table [train], in place, so that they sum to its ``epochs``.

    `fixed` contains the indices of stages that keep their epochs. Stages without epochs are also skipped: each of them
    trains for ``train.epochs``. Proportions are preserved up to rounding, but every stage that had epochs keeps at
    least one. A solved stage takes one epoch, as does a stage with solver ``auto`` unless it is in `unsolved`, the
    indices of stages that cannot be solved. Values of the wrong type are left for validation to report.

    >>> table = {"epochs": 7, "stages": [{"epochs": 12}, {"epochs": 2}]}
    >>> scale_stage_epochs(table, (), ())
    >>> table["stages"]
    [{'epochs': 6}, {'epochs': 1}]
    """
    if not isinstance(train, dict) or not isinstance(train.get("stages"), list):
        return
    stages: list[Any] = train["stages"]
    total: Any = train.get("epochs")
    solvers = {at: stage.get("solver", "gradient") for at, stage in enumerate(stages) if isinstance(stage, dict)}
    solved = {at for at, solver in solvers.items() if solver != "gradient" and (solver != "auto" or at not in unsolved)}
    own_epochs = dict.fromkeys(solved, 1) | {
        at: stage["epochs"]
        for at, stage in enumerate(stages)
        if isinstance(stage, dict) and "epochs" in stage and at not in solved
    }
    if not _is_epoch_count(total) or not all(map(_is_epoch_count, own_epochs.values())):
        return
    for at in solved.difference(fixed):
        if "epochs" in stages[at]:
            stages[at]["epochs"] = 1
    fixed = {*fixed, *solved}
    remaining = max(total - sum(epochs for at, epochs in own_epochs.items() if at in fixed), 0)
    scalable = {at: epochs for at, epochs in own_epochs.items() if at not in fixed and epochs}
    if not scalable:
        return
    ideal = {at: remaining * epochs / sum(scalable.values()) for at, epochs in scalable.items()}
    scaled = dict.fromkeys(scalable, 1)
    for _ in range(remaining - sum(scaled.values())):
        scaled[max(scaled, key=lambda at: ideal[at] - scaled[at])] += 1
    for at, epochs in scaled.items():
        stages[at]["epochs"] = epochs


def _is_epoch_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_EPOCHS


def count_epochs(train: TrainConfig, stage: StageConfig) -> int:
    """Return the number of epochs of a stage: one if it is solved, else as configured."""
    if stage.is_solved:
        return 1
    return train.epochs if stage.epochs is None else stage.epochs


def describe_epochs(train: TrainConfig) -> str:
    """Describe how many epochs each stage has.

    >>> from sightline.config import StageConfig
    >>> describe_epochs(TrainConfig(stages=(StageConfig("head", epochs=5), StageConfig("fine-tune", epochs=1))))
    '6 epochs: head 5, fine-tune 1'
    """
    stage_epochs = [(stage.name, count_epochs(train, stage)) for stage in train.stages]
    return f"{plural(sum(n for _, n in stage_epochs), 'epoch')}: {', '.join(f'{name} {n}' for name, n in stage_epochs)}"
