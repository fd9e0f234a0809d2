"""Frozen values that the stages hand to each other; no behaviour beyond small derived properties."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:  # annotations only: the command line's help must not wait for NumPy
    import numpy as np
    from numpy.typing import NDArray

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = get_args(Part)

Progress = Callable[[str, int, int], None]
"""Called as ``progress(task, done, total)`` from any thread, at most a few times a second."""


def no_progress(task: str, done: int, total: int) -> None:
    """Do nothing: the default wherever a `Progress` is accepted."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One readable picture of a data source.

    `path` is what a person would recognise it by; `sha256` is over the encoded bytes (of arrays: dtype, shape, pixels);
    `part` is what the source states, if any; `width` and `height` are as displayed. `deep`: over 8 bits per sample.
    """

    path: str
    sha256: str
    label: str
    part: Part | None
    width: int
    height: int
    grey: bool = False
    extra: Mapping[str, str] = field(default_factory=dict)
    deep: bool = False
    stated_range: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Reject:
    """One file that looked like a picture and cannot be used."""

    path: str
    reason: str
    label: str = ""


@dataclass(frozen=True, slots=True)
class Remark:
    """What was noticed while a source was listed: the `kind` of finding that it becomes, where, and why."""

    kind: str
    path: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Index:
    """What a data source holds, before any pixel is decoded.

    `read(i)` returns the encoded bytes of picture `i`, or its pixels (uint8 HWC) where the source is an array.
    `skipped` counts files that are no pictures (``Thumbs.db``, notes, hidden files); `others` names them. `empty` names
    the class folders without pictures or rejects. `remarks`: how the source was read, what was left out.
    """

    name: str
    pictures: tuple[Picture, ...]
    rejects: tuple[Reject, ...]
    skipped: int
    read: Callable[[int], bytes | NDArray[np.uint8]] = field(repr=False, compare=False)
    others: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    remarks: tuple[Remark, ...] = ()

    def at(self, positions: Sequence[int]) -> Index:
        """Return the index with the images at `positions` alone, in that order."""
        read, at = self.read, tuple(positions)
        return replace(self, pictures=tuple(self.pictures[i] for i in at), read=lambda i: read(at[i]))


@dataclass(frozen=True, slots=True)
class Samples:
    """Labelled pixels of one part: picture ``i`` is ``pixels[rows[i]]``, its class index ``labels[i]``.

    `pixels` is uint8 [M, H, W, C] (mapped) or, behind frozen layers, float32 features; `rows` int64, `labels` int32.
    """

    pixels: NDArray[Any]
    rows: NDArray[np.int64]
    labels: NDArray[np.int32]
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, positions: NDArray[np.int64] | slice) -> NDArray[Any]:
        """Return the pixels at `positions` of this part: [n, H, W, C], a copy."""
        return self.pixels[self.rows[positions]]

    def first(self, count: int) -> Samples:
        """Return the first `count` pictures."""
        return Samples(self.pixels, self.rows[:count], self.labels[:count], self.paths[:count])

    def at(self, positions: NDArray[np.int64]) -> Samples:
        """Return the pictures at `positions`, in that order."""
        paths = tuple(self.paths[i] for i in positions)
        return Samples(self.pixels, self.rows[positions], self.labels[positions], paths)


@dataclass(frozen=True, slots=True)
class Missing:
    """Images of a run's own split, `total` in all, that are not as they were: `changed` are there, the others gone."""

    images: tuple[str, ...]
    changed: int
    total: int


@dataclass(frozen=True, slots=True)
class Overlap:
    """Images from elsewhere that the model was trained or validated on, as paths: the same files, and near duplicates.

    They are part of the evaluation if `included`, else left out. `identical` is None where the model does not know its
    training images, `near` where no near duplicates were looked for.
    """

    identical: tuple[str, ...] | None
    near: tuple[str, ...] | None
    included: bool

    @property
    def count(self) -> int:
        """How many images that is, as far as it is known."""
        return len(self.identical or ()) + len(self.near or ())


@dataclass(frozen=True, slots=True)
class Labelled:
    """Images to evaluate on: `samples`, their `pictures` (in the same order), unreadable ones in `rejects`.

    `split` names the run's own split that they are; None for images from elsewhere, of which `overlap` tells. `missing`
    are those of the split that are not there; `added` is how many came to the run's sources since, which are in no
    split. `leaked` names, by content, those that are in an earlier split too, as "identical" or "near".
    """

    samples: Samples
    pictures: tuple[Picture, ...]
    rejects: tuple[Reject, ...]
    split: Part | None = None
    missing: Missing | None = None
    added: int = 0
    overlap: Overlap | None = None
    leaked: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95% confidence interval, both ends in the unit of its figure."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """Metrics of one class of `support` images, with Wilson's 95% intervals.

    None where a metric is not defined: precision where the class was never predicted, recall and F1 where there is no
    image of it, so that it is not tested.
    """

    label: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int
    precision_interval: Interval | None = None
    recall_interval: Interval | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric with its 95% interval; either is None where it cannot be computed, and `note` says why.

    A mean over classes is over `classes` of them: those that the images hold.
    """

    value: float | None
    interval: Interval | None = None
    note: str = ""
    classes: int | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a classifier scored on labelled pictures.

    `confusion` is int64 [K, K], true classes in rows; `probabilities` float32 [N, K]; `labels` int32 [N]. `figures`
    holds all others by name, such as ``macro_f1`` and ``auroc``; see `sightline.evaluation.scores`. `leaked` and what
    follows say what the images have to do with those of the run, see `Labelled`.
    """

    classes: tuple[str, ...]
    accuracy: float
    accuracy_interval: Interval
    loss: float
    count: int
    per_class: tuple[ClassFigures, ...]
    confusion: NDArray[np.int64]
    rejects: tuple[Reject, ...]
    paths: tuple[str, ...]
    labels: NDArray[np.int32]
    probabilities: NDArray[np.float32]
    seconds: float
    figures: Mapping[str, Figure] = field(default_factory=dict)
    leaked: Leaked | None = None
    missing: Missing | None = None
    added: int = 0
    overlap: Overlap | None = None

    @property
    def untested(self) -> tuple[str, ...]:
        """The classes of which no image was evaluated: nothing is known about them."""
        return tuple(c.label for c in self.per_class if not c.support)


@dataclass(frozen=True, slots=True)
class Leaked:
    """Evaluated images that are in an earlier split too: how many as the same file, how many as near duplicates.

    `without` is the evaluation of the others, None where there are none.
    """

    identical: int
    near: int
    paths: tuple[str, ...]
    without: Evaluation | None


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a model said of labelled pictures: `labels` int32 [N], `probabilities` float32 [N, K] of `classes`."""

    paths: tuple[str, ...]
    labels: NDArray[np.int32]
    probabilities: NDArray[np.float32]
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One class with its probability in [0, 1]."""

    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When to answer, fitted on the validation part and stored beside the model; None for what was not asked for.

    `confidence`: answer where the greatest probability is at least this; it kept `target_precision` on `count`
    validation pictures, of which it answered `share_answered`. `quantile`: a class is in the set where its score
    (`conformal`) is at most this, so that the set holds the truth with a chance of `coverage`.
    `ood_limit`: a picture whose `ood` score ("energy") is above this is like none of the training pictures.
    """

    count: int
    target_precision: float | None = None
    confidence: float | None = None
    share_answered: float | None = None
    coverage: float | None = None
    quantile: float | None = None
    conformal: Literal["lac"] = "lac"
    ood: Literal["energy"] = "energy"
    ood_limit: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Thresholds:
        """Return what `to_dict` gave; raises `ValueError` for unknown fields and for what is no number."""
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown or "count" not in values:
            raise ValueError(f"unknown or missing fields {sorted(unknown) or ['count']}")
        for name, value in values.items():
            words = {"conformal": ("lac",), "ood": ("energy",)}.get(name)
            number = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
            if (value not in words) if words else not number:
                raise ValueError(f"{name} cannot be {value!r}")
        return cls(**values)


Choice = Literal["class", "set", "abstain"]


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with an answer: trust the class, hand on a set of classes, or say nothing."""

    decision: Choice
    set: tuple[str, ...] | None
    ood_score: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one picture, or the reason why there is none (`error`).

    `top` holds the most probable classes, best first; `label` and `probability` repeat the first of them. `decision` is
    None unless the model has `Thresholds`.
    """

    path: str
    label: str | None = None
    probability: float | None = None
    top: tuple[Candidate, ...] = ()
    error: str | None = None
    decision: Decision | None = None


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One line of ``history.jsonl``; `loss` and `accuracy` are running means while the weights change."""

    epoch: int
    stage: str
    loss: float
    accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    learning_rate: float
    seconds: float
    images_per_second: float


@dataclass(frozen=True, slots=True)
class PartFigures:
    """Accuracy and mean cross-entropy of one part."""

    accuracy: float
    loss: float
    count: int


@dataclass(frozen=True, slots=True)
class TrainingMetrics:
    """Accuracy and loss of the training split in the best epoch, None where there was no epoch, and its images."""

    accuracy: float | None
    loss: float | None
    count: int

    @classmethod
    def of(cls, best: EpochRecord | None, count: int) -> TrainingMetrics:
        """Return those of the epoch whose weights were kept."""
        return cls(None, None, count) if best is None else cls(best.accuracy, best.loss, count)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The outcome of one training run; its fields are those of ``train --json``.

    `bundle` is the path of the bundle, None where none was written: `bundle_reason` then says why.
    """

    run: str
    model: str
    parameters: int
    classes: tuple[str, ...]
    train: TrainingMetrics
    validation: PartFigures | None
    test: PartFigures | None
    epochs: int
    seconds: float
    images_per_second: float
    weights_sha256: str
    recipe: str
    notes: tuple[str, ...] = ()
    bundle: str | None = None
    bundle_reason: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
