"""Distribute ``train.epochs`` over the stages of a recipe."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sightline.config.tree import MOST_EPOCHS, TrainConfig
from sightline.errors import plural


def share(train: Any, fixed: Collection[int] = ()) -> None:
    """Scale the epochs of the stages in the table [train], in place, so that they sum to its ``epochs``.

    `fixed` holds the indices of stages that keep their epochs. Stages without epochs are skipped too: each of them
    trains for ``train.epochs``. Proportions are preserved up to rounding, but every stage that had epochs keeps at
    least one. Values of the wrong type are left for validation to report.

    >>> table = {"epochs": 7, "stages": [{"epochs": 12}, {"epochs": 2}]}
    >>> share(table)
    >>> table["stages"]
    [{'epochs': 6}, {'epochs': 1}]
    """
    if not isinstance(train, dict) or not isinstance(train.get("stages"), list):
        return
    stages: list[Any] = train["stages"]
    total: Any = train.get("epochs")
    stated = {at: stage["epochs"] for at, stage in enumerate(stages) if isinstance(stage, dict) and "epochs" in stage}
    if not _whole(total) or not all(map(_whole, stated.values())):
        return
    left = max(total - sum(epochs for at, epochs in stated.items() if at in fixed), 0)
    free = {at: epochs for at, epochs in stated.items() if at not in fixed and epochs}
    if not free:
        return
    exact = {at: left * epochs / sum(free.values()) for at, epochs in free.items()}
    found = dict.fromkeys(free, min(total, 1))  # a total of 0 trains nothing
    for _ in range(left - sum(found.values())):
        found[max(found, key=lambda at: exact[at] - found[at])] += 1
    for at, epochs in found.items():
        stages[at]["epochs"] = epochs


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_EPOCHS


def describe(train: TrainConfig) -> str:
    """Describe how many epochs each stage has.

    >>> from sightline.config import StageConfig
    >>> describe(TrainConfig(stages=(StageConfig("head", epochs=5), StageConfig("fine-tune", epochs=1))))
    '6 epochs: head 5, fine-tune 1'
    """
    each = [(stage.name, train.epochs if stage.epochs is None else stage.epochs) for stage in train.stages]
    return f"{plural(sum(n for _, n in each), 'epoch')}: {', '.join(f'{name} {n}' for name, n in each)}"
