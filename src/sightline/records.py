"""Frozen values that the stages hand to each other; no behaviour beyond small derived properties."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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

    `path` is what a person would recognise it by; `sha256` is over the encoded bytes (for arrays: over dtype, shape
    and pixels); `part` is the part that the source itself states, if any; `width` and `height` are as displayed.
    """

    path: str
    sha256: str
    label: str
    part: Part | None
    width: int
    height: int
    grey: bool = False
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reject:
    """One file that looked like a picture and cannot be used."""

    path: str
    reason: str
    label: str = ""


@dataclass(frozen=True, slots=True)
class Index:
    """What a data source holds, before any pixel is decoded.

    `read(i)` returns the encoded bytes of picture `i`, or its pixels (uint8 HWC) where the source is an array.
    `skipped` counts files that are no pictures (``Thumbs.db``, notes, hidden files).
    """

    name: str
    pictures: tuple[Picture, ...]
    rejects: tuple[Reject, ...]
    skipped: int
    read: Callable[[int], bytes | NDArray[np.uint8]] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Samples:
    """Labelled pixels of one part: picture ``i`` is ``pixels[rows[i]]``, its class index ``labels[i]``.

    `pixels` is uint8 [M, H, W, C] (usually memory-mapped), `rows` int64 [N], `labels` int32 [N]. Behind frozen layers,
    float32 features stand in the pixels' place.
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
class Interval:
    """A 95% confidence interval, both ends in the unit of its figure."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """Figures of one class; a figure that cannot be computed (nothing predicted, nothing there) is 0."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a classifier scored on labelled pictures.

    `confusion` is int64 [K, K], true classes in rows; `probabilities` float32 [N, K]; `labels` int32 [N].
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


@dataclass(frozen=True, slots=True)
class Candidate:
    """One class with its probability in [0, 1]."""

    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one picture, or the reason why there is none (`error`).

    `top` holds the most probable classes, best first; `label` and `probability` repeat the first of them.
    """

    path: str
    label: str | None = None
    probability: float | None = None
    top: tuple[Candidate, ...] = ()
    error: str | None = None


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
class TrainResult:
    """The outcome of one training run; its fields are those of ``train --json``."""

    run: str
    model: str
    parameters: int
    classes: tuple[str, ...]
    train: PartFigures
    validation: PartFigures | None
    test: PartFigures | None
    epochs: int
    seconds: float
    images_per_second: float
    weights_sha256: str
    recipe: str
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
