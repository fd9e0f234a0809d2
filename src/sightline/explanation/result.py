"""What `explain` returns: the heat over one image, where it is hottest, and whether it shows what decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # annotations only: the command line's help must not wait for NumPy
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Region:
    """Where a heat map is hottest: a box in the picture's own pixels, as displayed, right and bottom exclusive.

    `share` in [0, 1] is how much of the picture's heat lies inside.
    """

    left: int
    top: int
    right: int
    bottom: int
    share: float


@dataclass(frozen=True, slots=True)
class HeatCheck:
    """Whether a heat map shows what the classifier goes by: what hiding its hottest part does to the class.

    `hidden` is the share of the picture that was hidden, in [0, 1]; `fall` is how far the probability fell, and
    `random_fall` how far on average when the same shape was hidden in `places` other places; `beaten` is the share of
    those that made it fall less.
    """

    hidden: float
    fall: float
    random_fall: float
    beaten: float
    places: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """Which parts of one picture speak for class `label`, or the reason why there is no answer (`error`).

    `heat` is float32 [height, width] in [0, 1], as large as the pixels that the model sees; its greatest value is 1,
    unless nothing speaks for the class: then it is 0 everywhere, and `region` and `check` are None. `figure` is the
    path of the PNG file, where one was asked for.
    """

    path: str
    method: str
    label: str | None = None
    probability: float | None = None
    heat: NDArray[np.float32] | None = None
    region: Region | None = None
    check: HeatCheck | None = None
    figure: str | None = None
    error: str | None = None
