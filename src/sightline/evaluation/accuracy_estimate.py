"""Accuracy on unlabeled images, estimated from the model's confidence.

Average thresholded confidence: the threshold is set so that as many validation images fall below it as the model gets
wrong, and new images below it count as errors (Garg et al., "Leveraging unlabeled data to predict out-of-distribution
performance", ICLR 2022). Difference of confidences: the accuracy falls as much as the mean confidence (Guillory et al.,
"Predicting with confidence on unseen distributions", ICCV 2021).

Both assume that confidence relates to errors as on validation images. Every method needs such an assumption (Garg et
al., section 3), and nothing in the images shows whether it holds: a model can be confident and wrong on classes or
cameras that it has not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline.errors import plural
from sightline.evaluation.bootstrap import Resampling, draw_rows, list_members
from sightline.evaluation.drift import Drift
from sightline.evaluation.results import Metric
from sightline.seeding import make_generator

RESAMPLES = 1000
MIN_IMAGES = 50
MIN_ERRORS = 10  # minimum number of errors on validation images
LARGE_GAP = 0.05  # gap between the two estimates that becomes a caveat
DRIFTED = "the input has drifted, and on unfamiliar images the model may be confident and wrong: label some of them"


@dataclass(frozen=True, slots=True)
class AccuracyEstimate:
    """The estimated accuracy on `count` images without labels.

    Attributes:
        count: The number of images.
        accuracy: By average thresholded confidence (Garg et al., 2022), with its 95% interval.
        by_difference: By the difference of mean confidences (Guillory et al., 2021), with its 95% interval.
        validation_accuracy: The accuracy on the validation images of the sample.
        caveats: The reasons not to trust the estimate, one sentence each; empty if there are none.
    """

    count: int
    accuracy: Metric
    by_difference: Metric
    validation_accuracy: float
    caveats: tuple[str, ...]


def estimate_accuracy(
    confidences: NDArray[np.float32], correct: NDArray[np.bool_], new: NDArray[np.float32], drift: Drift | None = None,
    groups: NDArray[np.int64] | None = None,
) -> AccuracyEstimate:  # fmt: skip
    """Estimate the accuracy on images with the confidences `new` [T] from those of validation images [N].

    `correct` bool [N] marks the validation images that are classified correctly. The intervals are those of 1,000
    bootstrap resamples of both, of whole `groups` [N] of validation images if there are any. An alarm in `drift`
    becomes a caveat.
    """
    ordered = np.sort(new.astype(np.float64))

    def estimate(rows: NDArray[np.int64], rng: np.random.Generator | None) -> tuple[float, float]:
        return _estimate(confidences[rows].astype(np.float64), correct[rows], ordered, rng)

    by_threshold, by_difference = resample_estimates(estimate, len(correct), groups, "accuracy estimate")
    errors = int((~correct).sum())
    particular = []
    if errors < MIN_ERRORS:
        particular.append(f"it rests on {plural(errors, 'error')} among the validation images, which is too few")
    caveats = list_caveats(drift, particular, len(new), by_threshold, by_difference, "confidences")
    return AccuracyEstimate(len(new), by_threshold, by_difference, float(correct.mean()), caveats)


def resample_estimates(
    estimate: Callable[[NDArray[np.int64], np.random.Generator | None], tuple[float, float]],
    count: int,
    groups: NDArray[np.int64] | None,
    name: str,
) -> tuple[Metric, Metric]:
    """Return two estimates, with the intervals of `RESAMPLES` resamples of `count` validation images.

    `estimate` returns both for the validation images at some rows; with a generator, for a resample of the new images
    as well.
    """
    rng, members = make_generator(0, name), None if groups is None else list_members(groups)
    values = estimate(np.arange(count), None)
    resampled = np.array([estimate(draw_rows(rng, count, members), rng) for _ in range(RESAMPLES)])
    resampling = Resampling(groups=groups)
    first, second = (resampling.make_metric(v, row, count) for v, row in zip(values, resampled.T, strict=True))
    return first, second


def _estimate(
    confidences: NDArray[np.float64],
    correct: NDArray[np.bool_],
    ordered: NDArray[np.float64],
    rng: np.random.Generator | None,
) -> tuple[float, float]:
    """Return both estimates; with `rng`, for a resample of the sorted new confidences `ordered`."""
    errors = int((~correct).sum())
    threshold = np.sort(confidences)[min(errors, len(confidences) - 1)]
    below, tied = (np.count_nonzero(of) for of in (confidences < threshold, confidences == threshold))
    start, end = (np.searchsorted(ordered, threshold, side) for side in ("left", "right"))
    wrong = start + (end - start) * (errors - below) / tied  # tied images are wrong as often as on validation
    fraction = min(max(1 - wrong / len(ordered), 0.0), 1.0)
    mean, error = float(ordered.mean()), 0.0
    if rng is not None:  # resampling N values gives a binomial count, and a normal mean by the central limit theorem
        fraction = rng.binomial(len(ordered), fraction) / len(ordered)
        error = float(rng.normal()) * float(ordered.std()) / np.sqrt(len(ordered))
    difference = float(correct.mean()) + mean + error - float(confidences.mean())
    return float(fraction), float(np.clip(difference, 0, 1))


def list_caveats(
    drift: Drift | None, particular: Sequence[str], count: int, estimate: Metric, by_difference: Metric, values: str
) -> tuple[str, ...]:
    """Return the reasons not to trust an estimate for `count` images, among them those `particular` to it.

    It is compared with the estimate by the difference of some `values`.
    """
    caveats = [] if drift is None or drift.alarm is None else [DRIFTED]
    caveats += particular
    if count < MIN_IMAGES:
        caveats.append(f"it covers only {plural(count, 'image')}")
    first, second = estimate.value, by_difference.value
    if first is not None and second is not None and abs(first - second) > LARGE_GAP:
        caveats.append(f"another estimate, by the difference of {values}, is {second:.3f}")
    return tuple(caveats)
