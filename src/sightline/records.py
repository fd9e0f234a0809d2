"""Frozen dataclasses that the stages pass to each other, without behavior beyond small derived properties."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:  # annotations only: --help must not import NumPy
    import numpy as np
    from numpy.typing import NDArray

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = get_args(Part)

Progress = Callable[[str, int, int], None]
"""Called as ``progress(task, done, total)`` from any thread, at most a few times a second."""


def no_progress(task: str, done: int, total: int) -> None:
    """Do nothing; the default wherever a `Progress` is accepted."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One readable image of a data source.

    `path` identifies it for people; `sha256` is over the encoded bytes (of arrays: dtype, shape, pixels); `part` is the
    split that the source states, if any; `width` and `height` are as displayed; `deep`: more than 8 bits per sample.
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
    """A file that looks like an image but cannot be used."""

    path: str
    reason: str
    label: str = ""


@dataclass(frozen=True, slots=True)
class Remark:
    """Something noticed while listing a source: the `kind` of finding that it becomes, the path, and the reason."""

    kind: str
    path: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Index:
    """The contents of a data source, before any pixel is decoded.

    `read(i)` returns the encoded bytes of image `i`, or its pixels (uint8 HWC) if the source is an array. `skipped`
    counts files that are not images (``Thumbs.db``, notes, hidden files); `others` names them. `empty` names the class
    folders without images or rejects. `remarks` say how the source was read and what was left out.
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
        """Return the index of only the images at `positions`, in that order."""
        read, at = self.read, tuple(positions)
        return replace(self, pictures=tuple(self.pictures[i] for i in at), read=lambda i: read(at[i]))


@dataclass(frozen=True, slots=True)
class Samples:
    """Labeled pixels of one split: image ``i`` is ``pixels[rows[i]]``, its class index ``labels[i]``.

    `pixels` is uint8 [M, H, W, C] (memory-mapped), or float32 features computed by frozen layers; `rows` is int64,
    `labels` int32.
    """

    pixels: NDArray[Any]
    rows: NDArray[np.int64]
    labels: NDArray[np.int32]
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, positions: NDArray[np.int64] | slice) -> NDArray[Any]:
        """Return a copy of the pixels at `positions`: [n, H, W, C]."""
        return self.pixels[self.rows[positions]]

    def first(self, count: int) -> Samples:
        """Return the first `count` images."""
        return Samples(self.pixels, self.rows[:count], self.labels[:count], self.paths[:count])

    def at(self, positions: NDArray[np.int64]) -> Samples:
        """Return the images at `positions`, in that order."""
        paths = tuple(self.paths[i] for i in positions)
        return Samples(self.pixels, self.rows[positions], self.labels[positions], paths)


@dataclass(frozen=True, slots=True)
class Missing:
    """Images that no longer match the run, of the `total` in a split: `changed` were modified, the others are gone."""

    images: tuple[str, ...]
    changed: int
    total: int


@dataclass(frozen=True, slots=True)
class Overlap:
    """Evaluation images from other sources that the model was trained or validated on, as paths.

    `identical` are the same files, `near` near duplicates. They are part of the evaluation if `included`, else left
    out. `identical` is None if the model does not know its training images, `near` if none were searched.
    """

    identical: tuple[str, ...] | None
    near: tuple[str, ...] | None
    included: bool

    @property
    def count(self) -> int:
        """The number of these images, as far as it is known."""
        return len(self.identical or ()) + len(self.near or ())


@dataclass(frozen=True, slots=True)
class Labelled:
    """Images to evaluate on: `samples`, their `pictures` (in the same order), and the unreadable ones in `rejects`.

    `split` is the run's own split that they form, or None for images from other sources, whose overlap with the
    training images is `overlap`. `missing` are images of the split that are gone; `added` counts images that were added
    to the run's sources later and are in no split. `leaked` maps the hash of each image that is also in an earlier
    split to "identical" or "near".
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
    """A 95% confidence interval, in the unit of its metric."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """Metrics of one class of `support` images, with Wilson's 95% intervals.

    None if a metric is undefined: precision if the class was never predicted, recall and F1 if no image of it was
    evaluated.
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
    """One metric with its 95% interval; either is None if it cannot be computed, and `note` says why.

    `classes` is the number of classes that a mean over classes includes: those with evaluated images.
    """

    value: float | None
    interval: Interval | None = None
    note: str = ""
    classes: int | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The metrics of a classifier on labeled images.

    `confusion` is int64 [K, K], true classes in rows; `probabilities` float32 [N, K]; `labels` int32 [N]. `figures`
    holds all other metrics by name, such as ``macro_f1`` and ``auroc``; see `sightline.evaluation.scores`. `leaked` and
    the fields after it relate the images to those of the run, see `Labelled`.
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
        """The classes without any evaluated image."""
        return tuple(c.label for c in self.per_class if not c.support)


@dataclass(frozen=True, slots=True)
class Leaked:
    """Evaluated images that are also in an earlier split: how many as the same file, how many as near duplicates.

    `without` is the evaluation on the remaining images, None if there are none.
    """

    identical: int
    near: int
    paths: tuple[str, ...]
    without: Evaluation | None


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predictions for labeled images: `labels` int32 [N], `probabilities` float32 [N, K] of `classes`."""

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
    """When to abstain, fitted on the validation split and stored with the model; None for what was not requested.

    `confidence`: predict a class if its probability is at least this; it reached `target_precision` on `count`
    validation images, with a coverage of `share_answered`. `quantile`: a class is in the prediction set if its
    nonconformity score (`conformal`) is at most this, so that the set contains the true class with probability
    `coverage`. `ood_limit`: an image whose `ood` score ("energy") is above this is out of distribution.
    `positive_threshold`: of two classes, predict `positive` if its probability is at least this, for a `rate` of
    `target_rate`; it excludes a confidence and prediction sets.
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
    rate: Literal["sensitivity", "specificity"] | None = None
    target_rate: float | None = None
    positive: str | None = None
    positive_threshold: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Thresholds:
        """Return what `to_dict` was called on; raises `ValueError` for unknown fields and invalid values."""
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown or "count" not in values:
            raise ValueError(f"unknown or missing fields {sorted(unknown) or ['count']}")
        for name, value in values.items():
            words = {"conformal": ("lac",), "ood": ("energy",), "rate": (None, "sensitivity", "specificity")}.get(name)
            kind = str if name == "positive" else int | float
            fits = value is None or (isinstance(value, kind) and not isinstance(value, bool))
            if (value not in words) if words else not fits:
                raise ValueError(f"{name} cannot be {value!r}")
        if len({values.get(name) is None for name in ("rate", "target_rate", "positive", "positive_threshold")}) > 1:
            raise ValueError("rate, target_rate, positive and positive_threshold must be given together")
        return cls(**values)


Choice = Literal["class", "set", "abstain"]


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision for a prediction: return the class, return a set of classes, or abstain."""

    decision: Choice
    set: tuple[str, ...] | None
    ood_score: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction for one image, or the reason why there is none (`error`).

    `top` holds the most probable classes in descending order, but first the class that a `positive_threshold` decides
    for; `label` and `probability` repeat the first. `decision` is None unless the model has `Thresholds`.
    """

    path: str
    label: str | None = None
    probability: float | None = None
    top: tuple[Candidate, ...] = ()
    error: str | None = None
    decision: Decision | None = None


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One line of ``history.jsonl``; `loss` and `accuracy` are running means over the training steps of the epoch."""

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
    """Accuracy and mean cross-entropy on one split."""

    accuracy: float
    loss: float
    count: int


@dataclass(frozen=True, slots=True)
class TrainingMetrics:
    """Accuracy and loss on the training split in the best epoch (None without an epoch), and its number of images."""

    accuracy: float | None
    loss: float | None
    count: int

    @classmethod
    def of(cls, best: EpochRecord | None, count: int) -> TrainingMetrics:
        """Return the metrics of the `best` epoch, whose weights were kept."""
        return cls(None, None, count) if best is None else cls(best.accuracy, best.loss, count)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The result of one training run; its fields are those of ``train --json``.

    `bundle` is the path of the bundle, or None if none was written; `bundle_reason` then says why.
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
