"""The result of `explain`: the heat map of one image, its hottest region, and its faithfulness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sightline import jsonio

if TYPE_CHECKING:  # annotations only: the command line's help must not wait for NumPy
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class HeatRegion:
    """The hottest region of a heat map: a box in pixels of the original image as displayed, right and bottom exclusive.

    `heat_fraction` in [0, 1] is the fraction of the heat inside.
    """

    left: int
    top: int
    right: int
    bottom: int
    heat_fraction: float


@dataclass(frozen=True, slots=True)
class FaithfulnessCheck:
    """The faithfulness of a heat map: how much masking its hottest region lowers the class probability.

    `masked_fraction` is the masked fraction of the image, in [0, 1]. `drop` is the drop of the probability,
    `random_drop` the mean drop when the same shape is masked at `positions` random positions; `percentile` is the
    fraction of those with a smaller drop.
    """

    masked_fraction: float
    drop: float
    random_drop: float
    percentile: float
    positions: int


@dataclass(frozen=True, slots=True, eq=False, repr=False)  # no eq, since comparing arrays returns an array
class Explanation:
    """The evidence in one image for a class, or the reason why there is none.

    Attributes:
        path: The path of the image.
        method: The method that computed the heat map.
        label: The class.
        probability: Its probability, in [0, 1]; for masks, the mean over the pixels that are predicted as the class, or
            over all pixels if there are none.
        heat: float32 [H, W] in [0, 1], of the size of the model's input. Its maximum is 1, unless there is no
            evidence: then it is 0 everywhere, and `region` and `faithfulness` are None.
        region: The hottest region, a box in pixels of the image.
        faithfulness: How much masking the hottest part lowers the probability, compared with masking it elsewhere.
        figure: The path of the PNG file, if one was requested.
        error: Why there is no explanation; None if there is one.
        pixel_fraction: The fraction of the pixels of the image that are predicted as the explained class;
            None for a model that does not predict masks.
        pixel_region: Those pixels, bool [H, W], of the size of the model's input.
    """

    path: str
    method: str
    label: str | None = None
    probability: float | None = None
    heat: NDArray[np.float32] | None = None
    region: HeatRegion | None = None
    faithfulness: FaithfulnessCheck | None = None
    figure: str | None = None
    error: str | None = None
    pixel_fraction: float | None = None
    pixel_region: NDArray[np.bool_] | None = None

    def list_sentences(self) -> list[str]:
        """Return the hottest region and its faithfulness in words, which the figure and the command line share."""
        r, check, p = self.region, self.faithfulness, self.probability
        if self.pixel_fraction == 0:
            return ["no pixel of the image is predicted as this class"]
        if r is None or check is None or p is None:
            return ["nothing in the image supports this class"]
        means = (
            f"probabilities are means over the pixels that are predicted as this class: {self.pixel_fraction or 0:.1%}"
        )
        return [
            f"hottest region from ({r.left}, {r.top}) to ({r.right}, {r.bottom}), {r.heat_fraction:.0%} of the heat",
            (
                f"{p - check.drop:.3f} with the hottest {check.masked_fraction:.0%} masked, "
                f"{p - check.random_drop:.3f} on average with the same shape masked elsewhere"
            ),
            *([] if self.pixel_fraction is None else [means]),
        ]

    def __repr__(self) -> str:
        if self.error is not None:
            return f"Explanation({self.path!r}, {self.error})"
        r = self.region
        evidence = "no evidence" if r is None else f"hottest from ({r.left}, {r.top}) to ({r.right}, {r.bottom})"
        return f"Explanation({self.path!r}, {self.label} {self.probability:.3f} by {self.method}, {evidence})"

    def to_dict(self) -> dict[str, Any]:
        """Return all but the heat map as JSON values; `region` is [left, top, right, bottom] in pixels of the image."""
        if self.error is not None:
            return {"path": self.path, "method": self.method, "error": self.error}
        r = self.region
        return {
            "path": self.path,
            "label": self.label,
            "probability": self.probability,
            "method": self.method,
            "figure": self.figure,
            "region": None if r is None else [r.left, r.top, r.right, r.bottom],
            "heat_fraction": None if r is None else r.heat_fraction,
            "faithfulness": jsonio.to_plain(self.faithfulness),
            **({} if self.pixel_fraction is None else {"pixel_fraction": self.pixel_fraction}),
        }
