"""Learning curves: accuracy against the number of training labels, and what more labels would bring.

Linear heads are solved on growing, nested subsets of images, and evaluated on images that they were not trained on. If
the source states no splits, every image is held out once, a tenth of them at a time. A power law is fitted to the
errors; intervals are those of the bootstrap over held-out images and repeats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import process
from sightline.callbacks import Progress, no_progress
from sightline.data.types import Subset
from sightline.errors import plural
from sightline.evaluation.label_subsets import Partition, draw_partitions, list_sizes
from sightline.evaluation.power_law import fit_power_laws
from sightline.intervals import Interval, wilson_interval
from sightline.seeding import make_generator
from sightline.tasks.protocol import find_task
from sightline.training import linear_head

MIN_ERRORS = 10  # misclassified images at the largest size; with fewer, no gain is predicted
TASK = "single_label"  # the only one whose errors are counted
RESAMPLES = 1000
CHUNK = 1_000_000  # weights in memory at once
BAND_POINTS = 80
MIN_FITTED = 3  # points that a law is fitted to: as many as it has parameters
CHECKED_FACTOR = 2.0  # the predictions are checked up to twice the labels


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """The accuracy with some number of training labels, in [0, 1], with its 95% interval."""

    labels: int
    accuracy: float
    interval: Interval


@dataclass(frozen=True, slots=True)
class LabelGain:
    """What `more` training labels would add to the accuracy, with its 95% interval; `labels` are those in all."""

    more: int
    labels: int
    accuracy: float
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

    `errors` counts the misclassified ones of `held_out` images at the largest size, a mean over the repeats.
    `no_gain_reason` says why no gain is predicted; there is then no `law` either. `fitted` is the curve of the law,
    float64 [L, 4]: numbers of labels, accuracies, and the ends of their 95% intervals.
    """

    num_classes: int
    held_out: int
    errors: float
    points: tuple[CurvePoint, ...]
    gains: tuple[LabelGain, ...] = ()
    law: PowerLaw | None = None
    no_gain_reason: str | None = None
    fitted: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 4)))

    @property
    def labels(self) -> int:
        """The largest number of training labels that was measured."""
        return self.points[-1].labels

    def to_dict(self) -> dict[str, Any]:
        """Return the curve as JSON values."""
        return {
            "num_classes": self.num_classes,
            "held_out": self.held_out,
            "points": [_point_to_dict(point) for point in self.points],
            "power_law": None if self.law is None else {
                "asymptote": self.law.asymptote, "scale": self.law.scale, "exponent": self.law.exponent,
            },
            "gains": [
                {"more": g.more, "labels": g.labels, "accuracy": g.accuracy, "gain": g.gain, "interval": g.interval}
                for g in self.gains
            ],
            "no_gain_reason": self.no_gain_reason,
        }  # fmt: skip


def _point_to_dict(point: CurvePoint) -> dict[str, Any]:
    return {"labels": point.labels, "accuracy": point.accuracy, "interval": point.interval}


@dataclass(frozen=True, slots=True)
class HeldOutErrors:
    """Which held-out images were misclassified: `wrong` bool [S, M], at each of S sizes, in M evaluations.

    Evaluation m is that of an image of the unit `units[m]` (int64) in the repeat `repeats[m]` (int64); `count` is the
    number of different images.
    """

    sizes: tuple[int, ...]
    wrong: NDArray[np.bool_]
    units: NDArray[np.int64]
    repeats: NDArray[np.int64]
    count: int


def measure_learning_curve(
    features: Subset,
    units: Sequence[str],
    held_out: NDArray[np.bool_] | None = None,
    *,
    more: Sequence[int] = (),
    seed: int = 0,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> LearningCurve:
    """Return the learning curve of a linear head on `features`, float32 [N, F].

    Images of one unit, such as those of one patient, are trained on or held out together. `held_out` (bool [N]) are the
    images that are always held out; without it, each is once. `more` are the numbers of additional labels to predict
    the gain of; by default a quarter and all of the present ones. Raises `DataError` if there are too few images.
    """
    unit_numbers = np.unique(np.array(units), return_inverse=True)[1].astype(np.int64)
    num_classes = int(features.labels.max()) + 1
    partitions = draw_partitions(features.labels, unit_numbers, held_out, seed)
    sizes = list_sizes(min(len(partition.pool) for partition in partitions), num_classes)
    errors = measure_errors(features, unit_numbers, partitions, sizes, num_classes, seed, threads, progress)
    return summarize(errors, num_classes, more, seed)


def measure_errors(
    features: Subset,
    units: NDArray[np.int64],
    partitions: Sequence[Partition],
    sizes: Sequence[int],
    num_classes: int,
    seed: int,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> HeldOutErrors:
    """Solve a head for each repeat and size, and evaluate it on the images that the repeat holds out."""
    first_pool = np.sort(partitions[0].pool)
    jobs = [
        (number, size)
        for size in sorted(sizes, reverse=True)  # the longest first
        for number, partition in enumerate(partitions)
        if not (number and size == len(partition.pool) and np.array_equal(np.sort(partition.pool), first_pool))
    ]

    def run(job: tuple[int, int]) -> NDArray[np.bool_]:
        number, size = job
        partition = partitions[number]
        halves = make_generator(seed, "learning curve", "halves", number).permutation(int(units.max()) + 1) % 2 == 1
        train, test = features.select(partition.pool[:size]), features.select(partition.held_out)
        return _find_errors(train, test, halves[units[partition.held_out]], num_classes)

    results: dict[tuple[int, int], NDArray[np.bool_]] = {}
    with one_thread_each(), ThreadPoolExecutor(threads or process.count_cores()) as pool:
        try:
            for job, wrong_images in zip(jobs, pool.map(run, jobs), strict=True):
                results[job] = wrong_images
                progress("learning curve", len(results), len(jobs))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    wrong = [
        [results.get((number, size), results[0, size]) for number in range(len(partitions))] for size in sizes
    ]  # all images of the same pool: the same head
    held_out = np.concatenate([partition.held_out for partition in partitions])
    repeats = np.repeat(np.arange(len(partitions)), [len(partition.held_out) for partition in partitions])
    return HeldOutErrors(
        tuple(sizes), np.array([np.concatenate(row) for row in wrong]), units[held_out], repeats,
        len(np.unique(held_out)),
    )  # fmt: skip


def one_thread_each() -> Any:
    """Return a context in which a product of matrices takes one thread: small ones are slower in several."""
    import scipy.optimize  # noqa: F401  # its own libraries are limited only once they are loaded
    from threadpoolctl import threadpool_limits  # comes with scikit-learn, as SciPy does

    return threadpool_limits(1, user_api="blas")


def _find_errors(train: Subset, test: Subset, second_half: NDArray[np.bool_], num_classes: int) -> NDArray[np.bool_]:
    """Return which images of `test` are misclassified, by a head whose penalty the other half of them chose."""
    everything = np.ones(len(test), bool)
    halves = [~second_half, second_half] if 0 < second_half.sum() < len(second_half) else [everything, everything]
    best_losses, best_wrong = np.full(2, np.inf), [np.zeros(len(test), bool)] * 2
    since_best, task, features = 0, find_task(TASK), test.take(slice(None))
    for head in linear_head.iter_heads(task, train, num_classes):
        losses, _, correct = task.differentiate_loss(head.compute_logits(features).astype(np.float64), test.labels)
        since_best += 1
        for number, half in enumerate(halves):
            if (loss := float(losses[half].mean())) < best_losses[number]:
                best_losses[number], best_wrong[number] = loss, correct == 0
                since_best = 0
        if since_best == linear_head.PATIENCE:
            break
    return np.where(halves[0], best_wrong[1], best_wrong[0])


def summarize(errors: HeldOutErrors, num_classes: int, more: Sequence[int], seed: int) -> LearningCurve:
    """Return the points, the power law and the gains, with intervals, of measured errors."""
    rates = errors.wrong.mean(1)
    resampled = np.concatenate(list(_resample_rates(errors, seed)))
    points = tuple(
        CurvePoint(size, float(1 - rate), _widen(_percentiles(1 - resampled[:, number]), float(rate), errors.count))
        for number, (size, rate) in enumerate(zip(errors.sizes, rates, strict=True))
    )
    num_errors = float(rates[-1] * errors.count)
    curve = LearningCurve(num_classes, errors.count, num_errors, points)
    if num_errors < MIN_ERRORS:
        at_most = 100 * (1 - points[-1].interval.low)
        return replace(
            curve,
            no_gain_reason=f"with {plural(round(num_errors), 'error')} on {errors.count:,} held-out images there is no "
            f"curve to predict from, which takes {MIN_ERRORS}; more labels can bring at most {at_most:.1f} points",
        )
    return _predict_gains(curve, rates, resampled, more, seed)


def _resample_rates(errors: HeldOutErrors, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yield bootstrap resamples of the error rates, float64 [r, S]: of the units and of the repeats at once.

    Both are drawn, since a repeat stands for other training images as well (Owen, 2007, Ann. Appl. Stat. 1:386-411).
    """
    num_units, num_repeats = int(errors.units.max()) + 1, int(errors.repeats.max()) + 1
    present = np.unique(errors.units)
    rng = make_generator(seed, "learning curve", "bootstrap")
    step = max(1, CHUNK // len(errors.units))
    wrong = errors.wrong.T.astype(np.float64)
    for start in range(0, RESAMPLES, step):
        weights = np.empty((min(step, RESAMPLES - start), len(errors.units)))
        for row in weights:
            unit_weights = np.bincount(rng.choice(present, len(present)), minlength=num_units)
            repeat_weights = np.bincount(rng.integers(0, num_repeats, num_repeats), minlength=num_repeats)
            row[:] = unit_weights[errors.units] * repeat_weights[errors.repeats]
        yield (weights @ wrong) / np.maximum(weights.sum(1, keepdims=True), 1)


def _percentiles(values: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(low), float(high))


def _widen(interval: Interval, error_rate: float, count: int) -> Interval:
    """Return the interval of an accuracy, at least as wide as Wilson's for `count` images.

    Few errors vary too little when they are resampled; without any they do not vary at all.
    """
    wilson = wilson_interval(round((1 - error_rate) * count), count)
    return Interval(min(interval.low, wilson.low), max(interval.high, wilson.high))


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
    accuracies = 1 - _predict_resampled(sizes, resampled, weights, labels, seed)
    gains, splits = accuracies - accuracies[:, :1], 1 + len(more)
    return replace(
        curve,
        law=PowerLaw(float(laws.asymptote[0]), float(laws.scale[0]), float(laws.exponent[0])),
        gains=tuple(
            LabelGain(
                count, present + count, float(fitted[number]), float(fitted[number] - fitted[0]),
                _include(_percentiles(gains[:, number]), float(fitted[number] - fitted[0])),
            )
            for number, count in enumerate(more, 1)
        ),
        fitted=np.column_stack([labels, fitted, *np.percentile(accuracies, [2.5, 97.5], axis=0)])[splits:],
    )  # fmt: skip


def _predict_resampled(
    sizes: NDArray[np.float64],
    resampled: NDArray[np.float64],
    weights: NDArray[np.float64],
    labels: NDArray[np.float64],
    seed: int,
) -> NDArray[np.float64]:
    """Return the errors [R, L] at `labels` by the laws of resampled curves [R, S].

    Curves are not exactly power laws, so each law is fitted without a random number of the smallest sizes, at most
    half of them: what depends on that choice is uncertain.
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
