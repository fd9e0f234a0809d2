"""The results of prediction: probabilities by class, the decision, and the thresholds behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Self

from sightline import jsonio
from sightline.inference.ood import FeatureSpace

if TYPE_CHECKING:  # a prediction needs no settings
    from sightline.config import EvaluationConfig

Rate = Literal["sensitivity", "specificity"]
"""The rate for which the threshold of the positive class of a binary model is chosen."""


Nonconformity = Literal["lac", "contiguous"]
"""The score behind conformal prediction sets; see `decisions.compute_nonconformity`."""


@dataclass(frozen=True, slots=True)
class ClassProbability:
    """One class with its probability.

    Attributes:
        label: The class.
        probability: Its probability, in [0, 1].
    """

    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When to abstain: limits fitted on the validation split and stored with the model; None if not requested.

    Attributes:
        count: The number of validation images.
        target_precision: The requested precision of the images that are classified.
        confidence: The smallest probability at which a class (of a hierarchical model, any class in the tree) is
            predicted, to reach `target_precision`.
        selective_coverage: The fraction of the validation images that are classified at `confidence`.
        coverage: The requested probability that a prediction set contains the true class.
        conformal_quantile: The largest nonconformity score of a class in a prediction set, to reach `coverage`.
        conformal: The nonconformity score: lac (Sadinle et al., 2019), or contiguous for ordered classes, which treats
            a class between two more probable ones as the less probable of the two, so that sets have no gaps.
        ood: The out-of-distribution score: distance (see `inference.ood`); or, if that could not be fitted, energy (Liu
            et al., 2020), or joint_energy (Wang et al., 2021) if an image may have several labels.
        ood_limit: The score above which an image is out of distribution.
        ood_space: What the distance is measured from.
        rate: Whether the threshold of the positive class was chosen for its sensitivity or its specificity.
        target_rate: The requested sensitivity or specificity.
        positive: The positive class of a binary model.
        positive_threshold: The smallest probability at which `positive` is predicted. It cannot be combined with a
            confidence or prediction sets.
        labels: The smallest probability at which each class is predicted, if an image may have several; None for a
            class that is never predicted.
        label_target: The target for which `labels` were chosen: the highest F1 of each class, `target_precision` or
            `target_recall`.
        absent: The largest probability at which each class is considered absent, to reach `target_precision`; None for
            a class that never is. Between the two thresholds of a class the model abstains.
        target_recall: The requested recall of each class.
        target_fnr: The requested false-negative rate of label sets.
        set_threshold: The smallest probability of a class in a label set, to reach `target_fnr`.
        min_iou: The smallest IoU at which a mask counts as correct for `target_precision` in segmentation.
        quality: The smallest expected IoU at which a mask is accepted, to reach `target_precision`; None if no mask is
            accepted.
    """

    count: int
    target_precision: float | None = None
    confidence: float | None = None
    selective_coverage: float | None = None
    coverage: float | None = None
    conformal_quantile: float | None = None
    conformal: Nonconformity = "lac"
    ood: Literal["distance", "energy", "joint_energy"] = "energy"
    ood_limit: float | None = None
    ood_space: FeatureSpace | None = None
    rate: Rate | None = None
    target_rate: float | None = None
    positive: str | None = None
    positive_threshold: float | None = None
    labels: Mapping[str, float | None] | None = None
    label_target: Literal["f1", "precision", "recall"] | None = None
    absent: Mapping[str, float | None] | None = None
    target_recall: float | None = None
    target_fnr: float | None = None
    set_threshold: float | None = None
    min_iou: float | None = None
    quality: float | None = None

    @property
    def abstains(self) -> bool:
        """Whether the model may abstain; a multi-label model needs a limit for images or for labels."""
        return self.decides or self.absent is not None

    @property
    def decides(self) -> bool:
        """Whether predictions have a `Decision`; in a multi-label model only with an out-of-distribution limit."""
        return self.labels is None or self.ood_limit is not None

    @property
    def set_fields(self) -> tuple[str, ...]:
        """The fields of a `Prediction` with class sets that these thresholds produce, besides `labels`."""
        limits = {"undecided": self.absent, "label_set": self.set_threshold}
        return tuple(name for name, limit in limits.items() if limit is not None)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values, as in reports: those for several labels and for masks only if they are set.

        The space of the distance, a hundred kilobytes, is left out.
        """
        absent = (set() if self.labels is not None else _OF_SEVERAL_LABELS) | (
            set() if self.min_iou is not None else _OF_MASKS
        )
        return {name: value for name, value in asdict(self).items() if name not in {*absent, "ood_space"}}

    def to_stored(self) -> dict[str, Any]:
        """Return the fields as JSON values, as stored with the model: `to_dict`, and the space of the distance."""
        space = self.ood_space
        stored = {} if space is None else {"ood_space": asdict(space) | {"variances": list(space.variances)}}
        return self.to_dict() | stored

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Thresholds:
        """Restore from `to_stored`; raises `ValueError` for unknown fields and invalid values."""
        thresholds = jsonio.convert(cls, values)
        for name in ("labels", "absent"):
            limits: Mapping[str, float | None] = getattr(thresholds, name) or {}
            if not all(limit is None or 0 <= limit <= 1 for limit in limits.values()):
                raise ValueError(f"{name} has a number that is not between 0 and 1")
        if len({values.get(name) is None for name in ("rate", "target_rate", "positive", "positive_threshold")}) > 1:
            raise ValueError("rate, target_rate, positive and positive_threshold must be given together")
        if (thresholds.ood == "distance") != (thresholds.ood_space is not None):
            raise ValueError("ood_space and the distance as the out-of-distribution score must be given together")
        if thresholds.ood_space is not None:
            thresholds.ood_space.check()
        return thresholds


_OF_SEVERAL_LABELS = {"labels", "label_target", "absent", "target_recall", "target_fnr", "set_threshold"}
_OF_MASKS = {"min_iou", "quality"}


@dataclass(frozen=True, slots=True)
class ThresholdRequest:
    """The targets of thresholds, which `evaluation.selective`, `conformal` and `binary` fit.

    `positive` is the positive class of a binary model; "" chooses it by name, see
    `evaluation.binary.choose_positive_class`. `recall` and `fnr`, a false-negative rate, are for several labels; see
    `evaluation.label_thresholds`. For masks, `target_precision` is the fraction of accepted masks with an IoU of at
    least `min_iou`, see `evaluation.mask_decisions`. With `reset`, the targets of earlier requests no longer apply.
    """

    target_precision: float | None = None
    coverage: float | None = None
    conservative: bool = True
    positive: str = ""
    sensitivity: float | None = None
    specificity: float | None = None
    recall: float | None = None
    fnr: float | None = None
    min_iou: float | None = None
    reset: bool = False

    @classmethod
    def from_config(cls, config: EvaluationConfig) -> Self:
        """Return the targets from the ``evaluation`` settings."""
        return cls(
            config.target_precision, config.coverage, positive=config.positive_class, recall=config.target_recall,
            fnr=config.target_fnr, min_iou=config.min_iou,
        )  # fmt: skip

    @classmethod
    def from_thresholds(cls, thresholds: Thresholds) -> Self:
        """Return the targets for which thresholds were chosen with confidence."""
        others = {"recall", "f1"}
        return cls(
            None if thresholds.label_target in others else thresholds.target_precision, thresholds.coverage,
            positive=thresholds.positive or "",
            sensitivity=thresholds.target_rate if thresholds.rate == "sensitivity" else None,
            specificity=thresholds.target_rate if thresholds.rate == "specificity" else None,
            recall=thresholds.target_recall if thresholds.label_target == "recall" else None,
            fnr=thresholds.target_fnr, min_iou=thresholds.min_iou,
        )  # fmt: skip

    def __bool__(self) -> bool:
        """Whether thresholds are to be saved with the model."""
        targets = (self.target_precision, self.coverage, self.saved_rate, self.recall, self.fnr)
        return self.reset or any(target is not None for target in targets)

    def to_dict(self) -> dict[str, Any]:
        """Return the targets that are set, by name."""
        values = asdict(self)
        del values["reset"]
        return {name: value for name, value in values.items() if value not in {None, "", True}}

    @property
    def saved_rate(self) -> Rate | None:
        """The rate whose threshold is saved and used for predictions if it is the only requested target, else None."""
        if self.target_precision is not None or self.coverage is not None or len(self.rates) != 1:
            return None
        return next(iter(self.rates))

    @property
    def rates(self) -> dict[Rate, float]:
        """The requested targets of binary classification, by rate."""
        targets: dict[Rate, float | None] = {"sensitivity": self.sensitivity, "specificity": self.specificity}
        return {rate: target for rate, target in targets.items() if target is not None}


NO_THRESHOLDS = ThresholdRequest()


DecisionKind = Literal["class", "ancestor", "set", "labels", "mask", "abstain"]


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision for a prediction.

    Attributes:
        decision: ``"class"``, ``"set"`` or ``"abstain"``; for a multi-label model ``"labels"``, or ``"abstain"`` for an
            image that is out of distribution; for a segmentation model ``"mask"`` or ``"abstain"``; for a hierarchical
            model ``"class"``, ``"ancestor"`` for a parent class, or ``"abstain"``.
        set: The prediction set, the most probable class first; None without prediction sets.
        ood_score: The out-of-distribution score: higher is more unusual. None for a mask.
        is_ood: Whether the model abstains because the score is above its limit, not because it is too uncertain.
    """

    decision: DecisionKind
    set: tuple[str, ...] | None
    ood_score: float | None
    is_ood: bool = False


@dataclass(frozen=True, slots=True, repr=False)
class Prediction:
    """The prediction for one image, or the reason why there is none.

    Attributes:
        path: The path of the image, or its position, as in ``"[0]"``, if it came without one.
        label: The predicted class: the most probable one, unless the threshold of a positive class decides.
        probability: Its probability, in [0, 1].
        top: The most probable classes with their probabilities, `label` first, the others in descending order.
        error: Why there is no prediction; None if there is one.
        decision: The decision of the model's thresholds: to return the class, to return a set of classes, or to
            abstain. None for a model without thresholds.
        labels: The predicted classes of a multi-label model, the most probable first; None for any other model. `label`
            contains them sorted and joined by ``;``, as in a manifest, and `probability` is the smallest of theirs.
        undecided: The classes about which a multi-label model with a target precision abstains, the most probable
            first; None without one.
        label_set: The label set of a multi-label model with a target false-negative rate, the most probable class
            first; None without one.
        quality: The expected IoU of the predicted mask with the true one, in [0, 1]; None for any other model.
        node: The path of the class in the tree that a hierarchical model predicts: `label`, or any parent class; None
            if it abstains, and for any other model.
        node_probability: The probability of `node`, the sum of the probabilities of the classes below it.
        levels: The classes on the path to `label`, from the top, with their probabilities; None for any other model.
        expected_grade: The mean of an ordinal model's grades, each weighted by its probability. Grades named by
            consecutive numbers count as these numbers, others as their positions from 0. None for any other model.
    """

    path: str
    label: str | None = None
    probability: float | None = None
    top: tuple[ClassProbability, ...] = ()
    error: str | None = None
    decision: Decision | None = None
    labels: tuple[str, ...] | None = None
    undecided: tuple[str, ...] | None = None
    label_set: tuple[str, ...] | None = None
    quality: float | None = None
    node: str | None = None
    node_probability: float | None = None
    levels: tuple[ClassProbability, ...] | None = None
    expected_grade: float | None = None

    def __repr__(self) -> str:
        values = ((each.name, getattr(self, each.name)) for each in fields(self))
        return f"Prediction({', '.join(f'{name}={value!r}' for name, value in values if value is not None)})"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and those of the decision as one JSON object; for an error, only its reason."""
        if self.error is not None:
            return {"path": self.path, "error": self.error}
        optional = ("labels", "undecided", "label_set", "quality", "expected_grade")
        absent = [name for name in optional if getattr(self, name) is None]
        absent += ["node", "node_probability", "levels"] if self.levels is None else []
        values = jsonio.fields_to_dict(self, skip=["error", "decision", *absent])
        return values if self.decision is None else values | jsonio.fields_to_dict(self.decision)
