"""Linear heads evaluated on held-out images: the errors at each number of training images, and bootstrap resamples.

The error is the fraction of misclassified images for single-label data, and one minus the mean average precision for
multi-label data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sightline import metrics, process
from sightline.callbacks import Progress
from sightline.data.types import Subset
from sightline.errors import plural
from sightline.evaluation.bootstrap import find_percentiles, mean_over_classes, sum_by_group
from sightline.evaluation.grouped_proportions import estimate_grouped_proportions
from sightline.evaluation.label_subsets import Partition
from sightline.intervals import RATE, Interval, scaled_interval, wilson_interval
from sightline.seeding import make_generator
from sightline.tasks.protocol import Task
from sightline.training import linear_head

MIN_ERRORS = 10  # errors at the largest size; with fewer, no gain is predicted
RESAMPLES, MIN_RESAMPLES = 1000, 200
CHUNK = 1_000_000  # weights in memory at once
RANKING_BUDGET = 100_000_000  # scores ranked in all resamples together


@dataclass(frozen=True, slots=True)
class HeldOutErrors:
    """Which held-out images were misclassified: `wrong` bool [S, M], at each of S sizes, in M evaluations.

    `wrong` may also contain errors between 0 and 1, float64 [S, M].

    Evaluation m is of an image of the unit `units[m]` (int64) in the repeat `repeats[m]` (int64); `count` is the number
    of different images.
    """

    sizes: tuple[int, ...]
    wrong: NDArray[np.bool_ | np.float64]
    units: NDArray[np.int64]
    repeats: NDArray[np.int64]
    count: int
    metric: ClassVar[str] = "accuracy"

    def compute_error_rates(self) -> NDArray[np.float64]:
        """Return the fraction of misclassified images at each size, float64 [S]."""
        rates: NDArray[np.float64] = self.wrong.mean(1)
        return rates

    def count_errors(self) -> float:
        """Return the number of misclassified images at the largest size, a mean over the repeats."""
        return float(self.compute_error_rates()[-1] * self.count)

    def describe_errors(self) -> str:
        """Return the number of errors in words."""
        return plural(round(self.count_errors()), "error")

    def resample_rates(self, seed: int) -> NDArray[np.float64]:
        """Return resampled fractions of misclassified images, float64 [R, S]."""
        wrong = self.wrong.T.astype(np.float64)
        weights = draw_weights(self.units, self.repeats, RESAMPLES, seed)
        return np.concatenate([(w @ wrong) / np.maximum(w.sum(1, keepdims=True), 1) for w in weights])

    def estimate_interval(self, number: int, resampled: NDArray[np.float64]) -> Interval:
        """Return the percentiles, at least as wide as Wilson's interval, or as `grouped_proportions` for groups.

        A few errors vary too little when they are resampled; without errors, nothing varies.
        """
        right = 1 - self.wrong[number].astype(np.float64)
        if len(np.unique(self.units)) == self.count:
            return _widen(1 - resampled, wilson_interval(round(float(right.mean()) * self.count), self.count))
        per_image = len(right) / self.count  # evaluations, since several repeats may hold an image out
        hits, counts = (sum_by_group(of[:, None] / per_image, self.units) for of in (right, np.ones(len(right))))
        (interval,) = estimate_grouped_proportions(hits, counts)
        return _widen(1 - resampled, interval or Interval(0.0, 1.0))


@dataclass(frozen=True, slots=True)
class HeldOutRankings:
    """How held-out images were ranked by K classes: `scores` float32 [S, M, K], at each of S sizes, in M evaluations.

    `labels` bool [M, K] are their classes; `units`, `repeats` and `count` are those of `HeldOutErrors`. Evaluations
    with the same number in `pools` (int64 [M], from 0) are ranked together: all of them, if each image is held out
    once, else those of a repeat.
    """

    sizes: tuple[int, ...]
    scores: NDArray[np.float32]
    labels: NDArray[np.bool_]
    units: NDArray[np.int64]
    repeats: NDArray[np.int64]
    pools: NDArray[np.int64]
    count: int
    metric: ClassVar[str] = "mean_average_precision"

    def compute_error_rates(self) -> NDArray[np.float64]:
        """Return one minus the mean over the classes of the average precision at each size, float64 [S]."""
        rates: NDArray[np.float64] = self._rank(np.ones((1, len(self.units))))[0]
        return rates

    def _rank(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the error rates [R, S] if evaluations count `weights` [R, M] times."""
        precisions = np.zeros((len(weights), len(self.sizes)))
        total = np.zeros((len(weights), 1))
        for pool in range(int(self.pools.max()) + 1):
            rows = np.flatnonzero(self.pools == pool)
            in_pool = weights[:, rows]
            labels = self.labels[rows]
            usable = np.flatnonzero(((in_pool @ labels) > 0).any(1))  # the other resamples have no image with a class
            for column, scores in enumerate(self.scores[:, rows].astype(np.float64)):
                pairs = zip(scores.T, labels.T, strict=True)
                classes = np.array([metrics.auroc_and_ap(x, y, in_pool[usable])[1] for x, y in pairs])
                precisions[usable, column] += mean_over_classes(classes) * in_pool[usable].sum(1)
            total[usable, 0] += in_pool[usable].sum(1)
        rates: NDArray[np.float64] = 1 - precisions / np.where(total > 0, total, np.nan)
        return rates

    def count_errors(self) -> float:
        """Return how many images are misranked at the largest size, summed over the classes, a mean over the pools.

        For a class, they are the images without it that outrank one with it, or the images with it that are outranked,
        whichever are fewer.
        """
        scores, num_pools, errors = self.scores[-1], int(self.pools.max()) + 1, 0
        for pool in range(num_pools):
            rows = self.pools == pool
            for s, has_class in zip(scores[rows].T, self.labels[rows].T, strict=True):
                if has_class.any() and not has_class.all():
                    with_class, without = s[has_class], s[~has_class]
                    errors += min(int((without >= with_class.min()).sum()), int((with_class <= without.max()).sum()))
        return errors / num_pools

    def describe_errors(self) -> str:
        """Return the number of errors in words."""
        return plural(round(self.count_errors()), "misranked label")

    def resample_rates(self, seed: int) -> NDArray[np.float64]:
        """Return resampled error rates, float64 [R, S]; fewer resamples of many images, since ranking takes long."""
        number = int(np.clip(RANKING_BUDGET // self.scores.size, MIN_RESAMPLES, RESAMPLES))
        rates = np.concatenate([self._rank(w) for w in draw_weights(self.units, self.repeats, number, seed)])
        # In the other resamples, units and repeats do not overlap, so no image has a class.
        finite: NDArray[np.float64] = rates[np.isfinite(rates).all(1)]
        return finite

    def estimate_interval(self, number: int, resampled: NDArray[np.float64]) -> Interval:
        """Return `scaled_interval`; with few errors, at least as wide as Wilson's interval.

        Percentiles miss the true value too often if few groups determine it, and of a single group nothing is known. A
        mean over classes averages a proportion of the images of each class. Wilson's interval for it assumes the
        number of images that gives the variance of this mean: the harmonic mean of the numbers per class, times the
        number of classes. For images in groups, the numbers per class are fractions of Kish's effective number of
        groups.
        """
        value = 1 - float(self.compute_error_rates()[number])
        num_units = len(np.unique(self.units))
        if num_units == 1:
            return Interval(0.0, 1.0)
        if self.count_errors() >= MIN_ERRORS and value < 1:
            error = float(resampled.std()) * math.sqrt(num_units / (num_units - 1))
            return scaled_interval(value, error, num_units, RATE)
        sizes = np.bincount(self.units).astype(np.float64)
        supports = self.labels.sum(0) / len(self.labels) * (sizes.sum() ** 2 / (sizes**2).sum())
        supports = supports[supports > 0]
        effective = max(1, round(len(supports) ** 2 / float((1 / supports).sum())))
        return _widen(1 - resampled, wilson_interval(round(value * effective), effective))


HeldOutResults = HeldOutErrors | HeldOutRankings
"""The errors of heads of several sizes on held-out images."""


def _widen(resampled: NDArray[np.float64], other: Interval) -> Interval:
    """Return the percentiles of a resampled proportion, at least as wide as its `other` interval."""
    interval = find_percentiles(resampled)
    return Interval(min(interval.low, other.low), max(interval.high, other.high))


def draw_weights(
    units: NDArray[np.int64], repeats: NDArray[np.int64], number: int, seed: int
) -> Iterator[NDArray[np.float64]]:
    """Yield `number` resamples of M evaluations in batches, as the counts of each: float64 [r, M].

    Units and repeats are both drawn, since a repeat also represents other training images (Owen, 2007, Ann. Appl. Stat.
    1:386-411).
    """
    num_units, num_repeats = int(units.max()) + 1, int(repeats.max()) + 1
    present = np.unique(units)
    rng = make_generator(seed, "learning curve", "bootstrap")
    step = max(1, CHUNK // len(units))
    for start in range(0, number, step):
        weights = np.empty((min(step, number - start), len(units)))
        for row in weights:
            unit_weights = np.bincount(rng.choice(present, len(present)), minlength=num_units)
            repeat_weights = np.bincount(rng.integers(0, num_repeats, num_repeats), minlength=num_repeats)
            row[:] = unit_weights[units] * repeat_weights[repeats]
        yield weights


def count_classes(labels: NDArray[Any]) -> int:
    """Return the number of classes of labels int32 [N], or of several for each image, uint8 [N, K]."""
    return labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1


def measure_results(
    task: Task,
    features: Subset,
    units: NDArray[np.int64],
    partitions: Sequence[Partition],
    sizes: Sequence[int],
    seed: int,
    threads: int | None,
    progress: Progress,
) -> HeldOutResults:
    """Solve a head for each repeat and size, and evaluate it on the images that the repeat holds out."""
    first_pool = np.sort(partitions[0].pool)
    jobs = [
        (number, size)
        for size in sorted(sizes, reverse=True)  # the longest first
        for number, partition in enumerate(partitions)
        if not (number and size == len(partition.pool) and np.array_equal(np.sort(partition.pool), first_pool))
    ]
    several, num_classes = task.targets.allows_several, count_classes(features.labels)

    def run(job: tuple[int, int]) -> NDArray[Any]:
        number, size = job
        partition = partitions[number]
        halves = make_generator(seed, "learning curve", "halves", number).permutation(int(units.max()) + 1) % 2 == 1
        train, test = features.select(partition.pool[:size]), features.select(partition.held_out)
        logits = _compute_logits(task, train, test, halves[units[partition.held_out]], num_classes)
        return logits if several else logits.argmax(1) != test.labels

    results: dict[tuple[int, int], NDArray[Any]] = {}
    with process.one_blas_thread(), ThreadPoolExecutor(threads or process.count_cores()) as pool:
        for job, result in zip(jobs, pool.map(run, jobs), strict=True):
            results[job] = result
            progress("fitting classifiers", len(results), len(jobs))
    values = np.array([
        np.concatenate([results.get((number, size), results[0, size]) for number in range(len(partitions))])
        for size in sizes
    ])  # fmt: skip  # training on all images of the same pool gives the same head
    held_out = np.concatenate([partition.held_out for partition in partitions])
    repeats = np.repeat(np.arange(len(partitions)), [len(partition.held_out) for partition in partitions])
    count = len(np.unique(held_out))
    if not several:
        return HeldOutErrors(tuple(sizes), values, units[held_out], repeats, count)
    pools = np.zeros_like(repeats) if count == len(held_out) else repeats
    return HeldOutRankings(
        tuple(sizes), values, features.labels[held_out].astype(bool), units[held_out], repeats, pools, count
    )


def _compute_logits(
    task: Task, train: Subset, test: Subset, second_half: NDArray[np.bool_], num_classes: int
) -> NDArray[np.float32]:
    """Return the logits [N, K] of the images of `test`; the penalty for each half is chosen on the other half."""
    everything = np.ones(len(test), bool)
    halves = [~second_half, second_half] if 0 < second_half.sum() < len(second_half) else [everything, everything]
    best_losses, best_logits = np.full(2, np.inf), [np.zeros((len(test), num_classes), np.float32)] * 2
    since_best, features = 0, test.take(slice(None))
    for head in linear_head.iter_heads(task, train, num_classes):
        scores = head.compute_scores(features)
        logits = task.link_scores(scores)
        losses = task.differentiate_loss(scores.astype(np.float64), test.labels).losses
        since_best += 1
        for number, half in enumerate(halves):
            if (loss := float(losses[half].mean())) < best_losses[number]:
                best_losses[number], best_logits[number] = loss, logits
                since_best = 0
        if since_best == linear_head.PATIENCE:
            break
    return np.where(halves[0][:, None], best_logits[1], best_logits[0])
