"""Micro F1 and accuracy of a multi-label model, estimated without labels from its probabilities.

A predicted label is right with about its probability, but probabilities may be too high or too low. Isotonic
regressions on validation images estimate how often a label of a given probability is correct (Zadrozny and Elkan,
"Transforming classifier scores into accurate multiclass probability estimates", KDD 2002), one for the predicted labels
and one for the others, so that the estimate for the validation images themselves is their micro F1. The expected right,
wrong and missed labels of the new images give the estimate. A second estimate is the difference of the F1
implied by the probabilities: F1 falls as much, as accuracy does with mean confidence (Guillory et al., ICCV 2021).

Both assume that probabilities relate to labels as on validation images. Nothing in the images shows whether this
holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline.errors import plural
from sightline.evaluation.accuracy_estimate import MIN_ERRORS, MIN_IMAGES, RESAMPLES, list_caveats
from sightline.evaluation.bootstrap import Resampling
from sightline.evaluation.drift import Drift
from sightline.evaluation.results import Metric
from sightline.seeding import make_generator

MAX_BINS = 30  # bins for the probabilities of predicted labels, and for the others
MIN_PER_BIN = 10  # decisions on validation images per bin
NEARLY_NOTHING = 1e-9  # decisions added to each bin


@dataclass(frozen=True, slots=True)
class LabelEstimate:
    """The estimated quality of the predictions for `count` images with several labels each.

    Attributes:
        count: The number of images.
        micro_f1: Estimated from how often validation images have labels of such probabilities, with its 95% interval.
        by_difference: Estimated from the difference of the values expected from the probabilities, with its 95%
            interval.
        label_accuracy: The fraction of correct decisions, one for each image and class, with its 95% interval.
        validation_micro_f1: The micro F1 on the validation images of the sample.
        caveats: The reasons not to trust the estimate, one sentence each; empty if there are none.
    """

    count: int
    micro_f1: Metric
    by_difference: Metric
    label_accuracy: Metric
    validation_micro_f1: float
    caveats: tuple[str, ...]


def estimate_micro_f1(
    probabilities: NDArray[np.float32],
    labels: NDArray[np.bool_],
    new: NDArray[np.float32],
    thresholds: NDArray[np.float64],
    drift: Drift | None = None,
    groups: NDArray[np.int64] | None = None,
) -> LabelEstimate:
    """Estimate the micro F1 of images with the probabilities `new` [T, K], each class predicted from `thresholds` [K].

    `probabilities` [N, K] and `labels` [N, K] are those of validation images. The intervals are those of the values on
    these T images, from 1,000 bootstrap resamples of the validation images, or of whole `groups` [N] of them.
    The regressions are fitted again to each, and the randomness of the labels of T images is added. An alarm in `drift`
    becomes a caveat.
    """
    bins = _Bins.choose(probabilities, probabilities >= thresholds)
    totals = bins.count(probabilities, thresholds)
    hits = bins.count(probabilities, thresholds, labels)
    promises, promised = _sum_promises(probabilities, thresholds), _sum_promises(new, thresholds).mean(0)
    mean = bins.count(new, thresholds).mean(0)
    classes = probabilities.shape[1]

    rates = bins.fit_rates(hits.sum(0), totals.sum(0))
    spread = _measure_spread(bins, hits, totals, rates, mean) / np.sqrt(len(new))
    rng = make_generator(0, "label estimate")
    actual = _compute_f1(bins.sum_sides(hits.mean(0)), bins.sum_sides(totals.mean(0))[0])
    values = (
        *_estimate(bins, rates, mean, classes), _compare_promises(actual, promises.mean(0), promised)
    )  # fmt: skip
    weights = _draw_weights(rng, len(labels), groups)
    some_hits, some_totals = weights @ hits, weights @ totals
    noise = rng.standard_normal((RESAMPLES, 2)) @ spread.T
    some_f1 = _compute_f1(bins.sum_sides(some_hits), bins.sum_sides(some_totals)[:, 0])
    resampled = (
        *_estimate(bins, bins.fit_rates(some_hits, some_totals), mean, classes, noise),
        _compare_promises(some_f1, weights @ promises, promised),
    )
    micro_f1, accuracy, by_difference = (
        Resampling(groups=groups).make_metric(float(value), some, len(labels))
        for value, some in zip(values, resampled, strict=True)
    )
    particular, errors = [], int(((probabilities >= thresholds) != labels).sum())
    if len(labels) < MIN_IMAGES:
        particular.append(f"it rests on {plural(len(labels), 'validation image')}, which is too few")
    if errors < MIN_ERRORS:
        particular.append(f"it rests on {plural(errors, 'wrong decision')} on validation images, which is too few")
    caveats = list_caveats(drift, particular, len(new), micro_f1, by_difference, "probabilities")
    return LabelEstimate(len(new), micro_f1, by_difference, accuracy, float(actual), caveats)


def _draw_weights(rng: np.random.Generator, count: int, groups: NDArray[np.int64] | None) -> NDArray[np.float64]:
    """Return the weight of each image in each resample, of images or of `groups` [count]: [R, count], rows sum to 1."""
    number = count if groups is None else int(groups.max()) + 1
    counts = rng.multinomial(number, np.full(number, 1 / number), RESAMPLES)
    if groups is not None:
        counts = counts[:, groups]
    weights: NDArray[np.float64] = counts / counts.sum(1, keepdims=True)
    return weights


@dataclass(frozen=True, slots=True)
class _Bins:
    """Bins of decisions by their probability: `predicted` ones of predicted labels, and then those of the others."""

    edges: tuple[NDArray[np.float64], NDArray[np.float64]]

    @classmethod
    def choose(cls, probabilities: NDArray[np.float32], predicted: NDArray[np.bool_]) -> _Bins:
        def find_edges(values: NDArray[np.float32]) -> NDArray[np.float64]:
            count = min(MAX_BINS, len(values) // MIN_PER_BIN)
            return np.unique(np.quantile(values, np.arange(1, count) / count)) if count > 1 else np.zeros(0)

        return cls((find_edges(probabilities[predicted]), find_edges(probabilities[~predicted])))

    @property
    def predicted(self) -> int:
        return len(self.edges[0]) + 1

    @property
    def size(self) -> int:
        return self.predicted + len(self.edges[1]) + 1

    def count(
        self,
        probabilities: NDArray[np.float32],
        thresholds: NDArray[np.float64],
        chosen: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float64]:
        """Return the number of decisions of each image in each bin, [N, size]; with `chosen`, only of these."""
        above, below = (np.searchsorted(edges, probabilities, "right") for edges in self.edges)
        numbers = np.where(probabilities >= thresholds, above, self.predicted + below)
        cells = numbers + self.size * np.arange(len(numbers))[:, None]
        counts = np.bincount(cells.ravel() if chosen is None else cells[chosen], minlength=len(numbers) * self.size)
        return counts.reshape(-1, self.size).astype(np.float64)

    def sum_sides(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sums over the bins of predicted labels and over the others, [..., 2] of [..., size]."""
        return np.stack([values[..., : self.predicted].sum(-1), values[..., self.predicted :].sum(-1)], -1)

    def fit_rates(self, hits: NDArray[np.float64], totals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the fraction of decisions in each bin whose label is present; it grows with the probability.

        All arrays are [..., size].
        """
        sides = slice(None, self.predicted), slice(self.predicted, None)
        return np.concatenate([_fit_isotonic(hits[..., side], totals[..., side]) for side in sides], -1)


def _fit_isotonic(hits: NDArray[np.float64], totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the isotonic regression of ``hits / totals``, both [..., B], by the max-min formula (Barlow et al., 1972).

    Many resamples are fitted at once; bins without decisions count next to nothing.
    """
    rate = hits.sum(-1, keepdims=True) / np.maximum(totals.sum(-1, keepdims=True), NEARLY_NOTHING)
    sums = np.stack([hits + NEARLY_NOTHING * rate, totals + NEARLY_NOTHING])
    before = np.concatenate([np.zeros_like(sums[..., :1]), sums.cumsum(-1)], -1)
    above, below = before[..., None, 1:] - before[..., :-1, None]  # [..., first bin, last bin]
    size = hits.shape[-1]
    ordered = np.triu(np.ones((size, size), bool))
    means = np.divide(above, below, out=np.full(above.shape, np.inf), where=ordered)
    lowest = np.minimum.accumulate(means[..., ::-1], -1)[..., ::-1]
    fitted: NDArray[np.float64] = np.where(ordered, lowest, -np.inf).max(-2)
    return fitted


def _measure_spread(
    bins: _Bins, hits: NDArray[np.float64], totals: NDArray[np.float64], rates: NDArray[np.float64],
    mean: NDArray[np.float64],
) -> NDArray[np.float64]:  # fmt: skip
    """Return a root, [2, 2], of the covariance of the right and the missed labels of one new image around their means.

    It is the covariance of validation images, whose labels depend on each other, scaled up to the uncertainty of the
    new images.
    """
    residuals = bins.sum_sides(hits - totals * rates)
    variance = rates * (1 - rates)
    of_new, of_validation = bins.sum_sides(mean * variance), bins.sum_sides(totals.mean(0) * variance)
    scale = np.sqrt(np.divide(of_new, of_validation, out=np.ones(2), where=of_validation > 0))
    eigenvalues, vectors = np.linalg.eigh(residuals.T @ residuals / len(residuals))
    root: NDArray[np.float64] = scale[:, None] * vectors * np.sqrt(np.maximum(eigenvalues, 0))
    return root


def _estimate(
    bins: _Bins,
    rates: NDArray[np.float64],
    mean: NDArray[np.float64],
    classes: int,
    noise: NDArray[np.float64] | float = 0.0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the micro F1 and the accuracy, [...], of images with `mean` decisions in each bin and `rates` [..., size].

    `noise` [..., 2] is added to the expected number of right and of missed labels of an image.
    """
    decisions = bins.sum_sides(mean)
    present = np.clip(bins.sum_sides(mean * rates) + noise, 0, decisions)
    accuracy = 1 - (decisions[0] - present[..., 0] + present[..., 1]) / classes
    return _compute_f1(present, decisions[0]), accuracy


def _compute_f1(present: NDArray[np.float64], predicted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the micro F1, [...], of `predicted` labels, given how many of them and of others are true, [..., 2]."""
    total = np.asarray(predicted + present.sum(-1))
    f1: NDArray[np.float64] = np.divide(2 * present[..., 0], total, out=np.zeros(total.shape), where=total > 0)
    return f1


def _sum_promises(probabilities: NDArray[np.float32], thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return, for each image, the summed probabilities of predicted labels and of others, and the number predicted.

    float64 [N, 3].
    """
    p, predicted = probabilities.astype(np.float64), probabilities >= thresholds
    return np.stack([(p * predicted).sum(1), (p * ~predicted).sum(1), predicted.sum(1).astype(np.float64)], 1)


def _compare_promises(
    f1: NDArray[np.float64], old: NDArray[np.float64], new: NDArray[np.float64]
) -> NDArray[np.float64]:
    promised = _compute_f1(new[:2], new[2]) - _compute_f1(old[..., :2], old[..., 2])
    return np.clip(f1 + promised, 0, 1)
