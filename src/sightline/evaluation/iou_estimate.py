"""IoU of predicted masks without true ones, estimated from their quality, the IoU implied by the pixel probabilities.

Quality ranks masks, but is biased as much as the probabilities are. An isotonic regression on validation images maps
quality to IoU (Barlow et al., "Statistical inference under order restrictions", 1972); its mean over the new masks is
the estimate. A second estimate is the difference of qualities: the IoU falls as much as the mean quality, as accuracy
does with mean confidence (Guillory et al., ICCV 2021).

Both assume that quality relates to IoU as on validation images. Nothing in the images shows
whether that holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline.errors import plural
from sightline.evaluation.accuracy_estimate import MIN_IMAGES, list_caveats, resample_estimates
from sightline.evaluation.drift import Drift
from sightline.evaluation.results import Metric

MAX_UNFAMILIAR = 0.1  # fraction of the new masks with a quality below that of any validation image
MAX_QUANTILES = 1000  # quantiles that represent all new qualities


@dataclass(frozen=True, slots=True)
class IouEstimate:
    """The estimated mean IoU of the masks of `count` images: for each image, the mean over its own classes.

    Attributes:
        count: The number of images.
        iou: Estimated from the IoU of validation images of the same quality, with its 95% interval.
        by_difference: Estimated from the difference of mean qualities, with its 95% interval.
        validation_iou: The mean IoU of the validation images of the sample.
        caveats: The reasons not to trust the estimate, one sentence each; empty if there are none.
    """

    count: int
    iou: Metric
    by_difference: Metric
    validation_iou: float
    caveats: tuple[str, ...]


def estimate_mean_iou(
    quality: NDArray[np.float64], ious: NDArray[np.float64], new: NDArray[np.float64], drift: Drift | None = None,
    groups: NDArray[np.int64] | None = None,
) -> IouEstimate:  # fmt: skip
    """Estimate the mean IoU of masks of the quality `new` [T] from `quality` [N] and `ious` [N] of validation images.

    The intervals are those of 1,000 bootstrap resamples of both, of whole `groups` [N] of validation images if
    there are any. An alarm in `drift` becomes a caveat.
    """
    size = min(len(new), MAX_QUANTILES)
    quantiles = np.quantile(new, (np.arange(size) + 0.5) / size)

    def estimate(rows: NDArray[np.int64], rng: np.random.Generator | None) -> tuple[float, float]:
        return _estimate(quality[rows], ious[rows], quantiles, len(new), rng)

    by_regression, by_difference = resample_estimates(estimate, len(ious), groups, "IoU estimate")
    particular, unfamiliar = [], float((new < quality.min()).mean())
    if len(quality) < MIN_IMAGES:
        particular.append(f"it rests on {plural(len(quality), 'validation image')}, which is too few")
    if unfamiliar > MAX_UNFAMILIAR:
        particular.append(f"{unfamiliar:.0%} of the masks have a lower quality than that of any validation image")
    caveats = list_caveats(drift, particular, len(new), by_regression, by_difference, "qualities")
    return IouEstimate(len(new), by_regression, by_difference, float(ious.mean()), caveats)


def _estimate(
    quality: NDArray[np.float64],
    ious: NDArray[np.float64],
    quantiles: NDArray[np.float64],
    count: int,
    rng: np.random.Generator | None,
) -> tuple[float, float]:
    """Return both estimates for `count` masks; with `rng`, for a resample of them, by the central limit theorem."""
    levels, level, sizes = np.unique(quality, return_inverse=True, return_counts=True)
    fitted = np.interp(quantiles, levels, fit_increasing(np.bincount(level, ious) / sizes, sizes))
    errors = (0.0, 0.0)
    if rng is not None:
        first, second = (float(rng.normal() * values.std() / np.sqrt(count)) for values in (fitted, quantiles))
        errors = first, second
    by_difference = float(ious.mean()) + float(quantiles.mean()) + errors[1] - float(quality.mean())
    return float(np.clip(fitted.mean() + errors[0], 0, 1)), float(np.clip(by_difference, 0, 1))


def fit_increasing(values: NDArray[np.float64], weights: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the isotonic regression of `values` [N]: the nearest sequence that never falls, by pooling violators.

    `weights` [N] are the numbers of observations behind each value. `sightline watch` runs where neither SciPy nor
    scikit-learn is installed. The time grows with the length of the sequence; `label_estimate` has a few bins of many
    resamples, and fits them all at once.
    """
    sums, sizes, lengths = list[float](), list[int](), list[int]()
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        total, size, length = value * weight, weight, 1
        while sums and sums[-1] * size >= total * sizes[-1]:  # the mean of the previous block is not smaller
            total, size, length = total + sums.pop(), size + sizes.pop(), length + lengths.pop()
        sums.append(total)
        sizes.append(size)
        lengths.append(length)
    return np.repeat(np.array(sums) / sizes, lengths)
