"""The settings of evaluation: the positive class, and the targets of thresholds."""

from __future__ import annotations

from dataclasses import dataclass

from sightline.config.parse import setting


@dataclass(frozen=True, slots=True)
class EvaluationConfig:
    """How the model is evaluated, and which thresholds are fitted on the validation split when training ends."""

    positive_class: str = setting(
        "", "positive class of a binary problem; empty: by name (defect, positive, ...), else the second class"
    )
    target_precision: float | None = setting(
        None,
        "abstain below the confidence that reaches this precision on validation, like `evaluate --target-precision`; "
        "unset: never abstain",
        0,
        1,
    )
    coverage: float | None = setting(
        None, "coverage of conformal prediction sets, for one label per image; unset: none", 0, 1
    )
    target_recall: float | None = setting(
        None, "recall of each class, for several labels per image; unset: the highest F1", 0, 1
    )
    target_fnr: float | None = setting(
        None, "false-negative rate of conformal label sets, for several labels per image; unset: none", 0, 1
    )
    min_iou: float | None = setting(
        None, "for masks: minimum IoU of a mask that counts as correct for target_precision; unset: 0.5", 0, 1
    )
