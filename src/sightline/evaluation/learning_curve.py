"""Learning curves: a metric against the number of labeled training images, and the estimated gain from more.

Linear heads are solved on growing, nested subsets of images, and evaluated on images that they were not trained on. If
the source defines no splits, every image is held out once, a tenth of them at a time. A power law is fitted to the
errors, which fall toward an asymptote (Cortes et al., 1994, NeurIPS 6; Hestness et al., 2017, arXiv:1712.00409);
intervals are those of the bootstrap over held-out images and repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import jsonio
from sightline.callbacks import Progress, no_progress
from sightline.data.types import Subset
from sightline.errors import DataError
from sightline.evaluation.bootstrap import find_percentiles
from sightline.evaluation.held_out import MIN_ERRORS, HeldOutResults, count_classes, measure_results
from sightline.evaluation.label_subsets import draw_partitions, list_sizes, list_strata
from sightline.intervals import Interval
from sightline.seeding import make_generator
from sightline.tasks.protocol import find_task

TASKS = ("single_label", "hierarchical", "ordinal", "multi_label")
BAND_POINTS = 80
MIN_FITTED = 3  # points that a law is fitted to: as many as it has parameters
CHECKED_FACTOR = 2.0  # the predictions are checked up to twice the labels
EXPONENTS = np.geomspace(0.1, 2.0, 40)
"""Exponents to choose from. Few curves are steeper or flatter, and short ones cannot distinguish much finer steps."""


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """The metric `value` of heads trained on some number of labeled images, in [0, 1], with its 95% interval."""

    labels: int
    value: float
    interval: Interval


@dataclass(frozen=True, slots=True)
class LabelGain:
    """What `more` labeled images would add to the metric, with its 95% interval.

    `labels` is the resulting total, `value` the metric with all of them.
    """

    more: int
    labels: int
    value: float
    gain: float
    interval: Interval


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """The law ``error = asymptote + scale * labels ** -exponent``."""

    asymptote: float
    scale: float
    exponent: float


@dataclass(frozen=True, slots=True)
class LearningCurve:
    """The points that were measured, and the gains that were predicted from them.

    The `metric` is "accuracy", or "mean_average_precision" for several labels per image; an error is one minus it.
    `errors` counts the misclassified or misranked ones of `held_out` images at the largest size, a mean over the
    repeats. `no_gain_reason` explains why no gain is predicted; there is then no `law` either. `fitted` is the curve of
    the law, float64 [L, 4]: numbers of labels, values of the metric, and the ends of their 95% intervals.
    """

    num_classes: int
    held_out: int
    errors: float
    points: tuple[CurvePoint, ...]
    gains: tuple[LabelGain, ...] = ()
    law: PowerLaw | None = None
    no_gain_reason: str | None = None
    fitted: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 4)), compare=False)
    metric: str = "accuracy"

    @property
    def labels(self) -> int:
        """The largest number of labeled training images that was measured."""
        return self.points[-1].labels

    def to_dict(self) -> dict[str, Any]:
        """Return the curve as JSON values, with the metric under its own name."""
        return {
            "metric": self.metric,
            "num_classes": self.num_classes,
            "held_out": self.held_out,
            "points": [{"labels": p.labels, self.metric: p.value, "interval": p.interval} for p in self.points],
            "power_law": jsonio.to_plain(self.law),
            "gains": [
                {"more": g.more, "labels": g.labels, self.metric: g.value, "gain": g.gain, "interval": g.interval}
                for g in self.gains
            ],
            "no_gain_reason": self.no_gain_reason,
        }  # fmt: skip


def measure_learning_curve(
    features: Subset,
    units: Sequence[str],
    held_out: NDArray[np.bool_] | None = None,
    *,
    task: str = "single_label",
    more: Sequence[int] = (),
    seed: int = 0,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> LearningCurve:
    """Return the learning curve of a linear head on `features`, float32 [N, F].

    Images of one unit, such as those of one patient, are trained on or held out together. `held_out` (bool [N]) are the
    images that are always held out; without it, each is held out once. `more` are the numbers of additional labels to
    predict the gain of; by default a quarter of the present number, and the same number again. `task` is one of
    `TASKS`. Raises `DataError` if there are too few images.
    """
    unit_numbers = np.unique(np.array(units), return_inverse=True)[1].astype(np.int64)
    several, num_classes = find_task(task).targets.allows_several, count_classes(features.labels)
    partitions = draw_partitions(
        list_strata(features.labels) if several else features.labels, unit_numbers, held_out, seed
    )
    largest = min(len(partition.pool) for partition in partitions)
    if not largest:
        raise DataError(
            "No image is left to train on, since all are in one group or in groups with held-out images: check "
            "split.group, or leave it out."
        )
    sizes = list_sizes(largest, num_classes)
    results = measure_results(find_task(task), features, unit_numbers, partitions, sizes, seed, threads, progress)
    return summarize(results, num_classes, more, seed)


def summarize(results: HeldOutResults, num_classes: int, more: Sequence[int], seed: int) -> LearningCurve:
    """Return the points, the power law and the gains, with intervals, of measured errors."""
    rates, resampled = results.compute_error_rates(), results.resample_rates(seed)
    points = tuple(
        CurvePoint(size, float(1 - rates[number]), results.estimate_interval(number, resampled[:, number]))
        for number, size in enumerate(results.sizes)
    )
    num_errors = results.count_errors()
    curve = LearningCurve(num_classes, results.count, num_errors, points, metric=results.metric)
    if num_errors < MIN_ERRORS:
        at_most = 100 * (1 - points[-1].interval.low)
        what = f"{more[0]:,} more labels" if len(more) == 1 else "more labels"
        return replace(
            curve,
            no_gain_reason=f"What {what} would bring cannot be predicted from {results.describe_errors()} on "
            f"{results.count:,} held-out images: that takes at least {MIN_ERRORS}. More labels can bring at most "
            f"{at_most:.1f} points",
        )
    return _predict_gains(curve, rates, resampled, more, seed)


def _predict_gains(
    curve: LearningCurve,
    rates: NDArray[np.float64],
    resampled: NDArray[np.float64],
    more: Sequence[int],
    seed: int,
) -> LearningCurve:
    """Return `curve` with the power law of its error `rates` [S], and the gains with the intervals of `resampled`."""
    present = curve.labels
    more = tuple(more) or tuple(dict.fromkeys((_round_down(present / 4), _round_down(present))))
    sizes = np.array([point.labels for point in curve.points], np.float64)
    smoothed = (rates * curve.held_out + 0.5) / (curve.held_out + 1)
    weights = 1 / (smoothed * (1 - smoothed))
    last = max(CHECKED_FACTOR * present, present + max(more))
    labels = np.array([present, *(present + count for count in more), *np.geomspace(sizes[0], last, BAND_POINTS)])
    laws = fit_power_laws(sizes, rates[None], weights)
    fitted = 1 - laws.predict_errors(labels)[0]
    values = 1 - _predict_resampled(sizes, resampled, weights, labels, seed)
    gains, splits = values - values[:, :1], 1 + len(more)
    return replace(
        curve,
        law=PowerLaw(float(laws.asymptote[0]), float(laws.scale[0]), float(laws.exponent[0])),
        gains=tuple(
            LabelGain(
                count, present + count, float(fitted[number]), float(fitted[number] - fitted[0]),
                _include(find_percentiles(gains[:, number]), float(fitted[number] - fitted[0])),
            )
            for number, count in enumerate(more, 1)
        ),
        fitted=np.column_stack([labels, fitted, *np.percentile(values, [2.5, 97.5], axis=0)])[splits:],
    )  # fmt: skip


def _predict_resampled(
    sizes: NDArray[np.float64],
    resampled: NDArray[np.float64],
    weights: NDArray[np.float64],
    labels: NDArray[np.float64],
    seed: int,
) -> NDArray[np.float64]:
    """Return the errors [R, L] at `labels` by the laws of resampled curves [R, S].

    Curves are not exactly power laws, so each law is fitted without a random number of the smallest sizes, at most half
    of them: a result that depends on this choice is uncertain.
    """
    most = min(len(sizes) - MIN_FITTED, len(sizes) // 2)
    omitted = make_generator(seed, "learning curve", "sizes").integers(0, most, len(resampled), endpoint=True)
    errors = np.empty((len(resampled), len(labels)))
    for number in range(most + 1):
        rows = omitted == number
        laws = fit_power_laws(sizes[number:], resampled[rows, number:], weights[number:])
        errors[rows] = laws.predict_errors(labels)
    return errors


def _include(interval: Interval, value: float) -> Interval:
    return Interval(min(interval.low, value), max(interval.high, value))


def _round_down(value: float) -> int:
    """Return a number of labels with two digits, as one would order it.

    >>> _round_down(189.9), _round_down(7.2)
    (180, 7)
    """
    step: int = 10 ** max(0, len(str(int(value))) - 2)
    return max(1, int(value) // step * step)


@dataclass(frozen=True, slots=True)
class PowerLaws:
    """The laws of B curves: `asymptote` and `scale` float64 [B], at least 0, and `exponent` float64 [B]."""

    asymptote: NDArray[np.float64]
    scale: NDArray[np.float64]
    exponent: NDArray[np.float64]

    def predict_errors(self, labels: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the errors [B, L] at numbers of labels [L], at most 1."""
        powers = labels[None, :] ** -self.exponent[:, None]
        return np.minimum(self.asymptote[:, None] + self.scale[:, None] * powers, 1.0)


def fit_power_laws(labels: NDArray[np.float64], errors: NDArray[np.float64], weights: NDArray[np.float64]) -> PowerLaws:
    """Return the weighted least-squares fits to B curves: `errors` [B, S] at `labels` [S], with `weights` [S].

    For each exponent, the best asymptote and scale that are not negative have a closed form.

    >>> labels = np.array([25.0, 50, 100, 200])
    >>> law = fit_power_laws(labels, (0.02 + 0.9 * labels**-0.5)[None], np.ones(4))
    >>> float(law.predict_errors(np.array([400.0]))[0, 0].round(3))
    0.065
    """
    weights = weights / weights.sum()
    basis = labels[None, :] ** -EXPONENTS[:, None]  # [C, S]
    mean_basis, mean_errors = basis @ weights, errors @ weights  # [C], [B]
    covariance = (errors * weights) @ basis.T - mean_errors[:, None] * mean_basis  # [B, C]
    variance = basis**2 @ weights - mean_basis**2
    scale = np.maximum(covariance / variance, 0)
    asymptote = mean_errors[:, None] - scale * mean_basis
    through_zero = np.maximum((errors * weights) @ basis.T / (basis**2 @ weights), 0)  # the scale without an asymptote
    scale = np.where(asymptote < 0, through_zero, scale)
    asymptote = np.maximum(asymptote, 0)
    residuals = errors[:, None, :] - asymptote[:, :, None] - scale[:, :, None] * basis  # [B, C, S]
    best = (residuals**2 @ weights).argmin(1)
    rows = np.arange(len(errors))
    return PowerLaws(asymptote[rows, best], scale[rows, best], EXPONENTS[best])
