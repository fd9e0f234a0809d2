"""What a prediction returns: probabilities by class, the decision and the thresholds it was made with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from sightline import jsonio

Rate = Literal["sensitivity", "specificity"]
"""What a threshold of the positive one of two classes is chosen for."""


@dataclass(frozen=True, slots=True)
class ClassProbability:
    """One class with its probability in [0, 1]."""

    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When to abstain, fitted on the validation split and stored with the model; None for what was not requested.

    Attributes:
        count: The number of validation images.
        target_precision: The requested precision of the images that are classified.
        confidence: The smallest probability with which a class is predicted, to reach `target_precision`.
        selective_coverage: The fraction of the validation images that are classified then.
        coverage: The requested probability that a prediction set contains the true class.
        conformal_quantile: The largest nonconformity score of a class in a prediction set, to reach `coverage`.
        conformal: The nonconformity score: lac (Sadinle et al., 2019).
        ood: The out-of-distribution score: energy (Liu et al., 2020).
        ood_limit: The score above which an image is out of distribution.
        rate: Whether the threshold of the positive class was chosen for its sensitivity or its specificity.
        target_rate: The requested sensitivity or specificity.
        positive: The positive one of two classes.
        positive_threshold: The smallest probability with which `positive` is predicted. It excludes a confidence and
            prediction sets.
        labels: The smallest probability with which each class is predicted, where an image may have several.
        label_target: What `labels` were chosen for: the highest F1 of each class.
    """

    count: int
    target_precision: float | None = None
    confidence: float | None = None
    selective_coverage: float | None = None
    coverage: float | None = None
    conformal_quantile: float | None = None
    conformal: Literal["lac"] = "lac"
    ood: Literal["energy"] = "energy"
    ood_limit: float | None = None
    rate: Rate | None = None
    target_rate: float | None = None
    positive: str | None = None
    positive_threshold: float | None = None
    labels: Mapping[str, float] | None = None
    label_target: Literal["f1"] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values, those of several labels only if there are any."""
        values = asdict(self)
        return values if self.labels is not None else {k: v for k, v in values.items() if not k.startswith("label")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Thresholds:
        """Return what `to_dict` was called on; raises `ValueError` for unknown fields and invalid values."""
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown or "count" not in values:
            raise ValueError(f"unknown or missing fields {sorted(unknown) or ['count']}")
        labels = values.get("labels")
        if labels is not None and not (isinstance(labels, Mapping) and all(map(_is_fraction, labels.values()))):
            raise ValueError(f"labels cannot be {labels!r}")
        for name, value in values.items():
            if name == "labels":
                continue
            allowed = {
                "conformal": ("lac",),
                "ood": ("energy",),
                "rate": (None, "sensitivity", "specificity"),
                "label_target": (None, "f1"),
            }.get(name)
            kind = str if name == "positive" else int | float
            fits = value is None or (isinstance(value, kind) and not isinstance(value, bool))
            if (value not in allowed) if allowed else not fits:
                raise ValueError(f"{name} cannot be {value!r}")
        if len({values.get(name) is None for name in ("rate", "target_rate", "positive", "positive_threshold")}) > 1:
            raise ValueError("rate, target_rate, positive and positive_threshold must be given together")
        return cls(**values)


def _is_fraction(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


@dataclass(frozen=True, slots=True)
class ThresholdRequest:
    """The targets of thresholds, as `evaluation.selective`, `conformal` and `binary` fit them.

    `positive` is the positive class of two; "" chooses it by name, see `evaluation.binary.choose_positive_class`.
    """

    target_precision: float | None = None
    coverage: float | None = None
    conservative: bool = True
    positive: str = ""
    sensitivity: float | None = None
    specificity: float | None = None

    def __bool__(self) -> bool:
        """Whether thresholds are to be saved with the model."""
        return self.target_precision is not None or self.coverage is not None or self.saved_rate is not None

    @property
    def saved_rate(self) -> Rate | None:
        """The rate whose threshold is to be saved and used for predictions: the only requested target, or None."""
        if self.target_precision is not None or self.coverage is not None or len(self.rates) != 1:
            return None
        return next(iter(self.rates))

    @property
    def rates(self) -> dict[Rate, float]:
        """The requested targets of binary classification, by rate."""
        targets: dict[Rate, float | None] = {"sensitivity": self.sensitivity, "specificity": self.specificity}
        return {rate: target for rate, target in targets.items() if target is not None}


NO_THRESHOLDS = ThresholdRequest()


DecisionKind = Literal["class", "set", "abstain"]


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision for a prediction.

    Attributes:
        decision: ``"class"``, ``"set"`` or ``"abstain"``.
        set: The prediction set, the most probable class first; None without prediction sets.
        ood_score: The out-of-distribution score: higher is more unusual.
    """

    decision: DecisionKind
    set: tuple[str, ...] | None
    ood_score: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction for one image, or the reason why there is none.

    Attributes:
        path: The path of the image, or its position, as in ``"[0]"``, if it came without one.
        label: The predicted class: the most probable one, unless the threshold of a positive class decides.
        probability: Its probability, in [0, 1].
        top: The most probable classes with their probabilities, `label` first, the others in descending order.
        error: Why there is no prediction; None if there is one.
        decision: What the thresholds of the model decide: to return the class, to return a set of classes, or to
            abstain. None for a model without thresholds.
        labels: The predicted classes of a multi-label model, the most probable first; None for any other model. `label`
            has them as a manifest does, sorted and joined by ``;``, and `probability` is the smallest of theirs.
    """

    path: str
    label: str | None = None
    probability: float | None = None
    top: tuple[ClassProbability, ...] = ()
    error: str | None = None
    decision: Decision | None = None
    labels: tuple[str, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, those of the decision beside the others, as JSON values; of an error only its reason."""
        if self.error is not None:
            return {"path": self.path, "error": self.error}
        fields = jsonio.fields_to_dict(self, skip=["error", "decision", *(["labels"] if self.labels is None else [])])
        return fields if self.decision is None else fields | jsonio.fields_to_dict(self.decision)
