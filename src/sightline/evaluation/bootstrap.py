"""Bootstrap: metrics of images, or of groups of them, resampled with replacement (Efron, 1979)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from sightline import intervals
from sightline.evaluation.grouped_proportions import TAIL, estimate_grouped_proportions, find_grouped_ends
from sightline.evaluation.results import Metric
from sightline.intervals import ALPHA, RATE, Z95, Interval, Range
from sightline.seeding import make_generator

RESAMPLES = 2000
MIN_PER_CELL = 8  # images per cell; below, drawing images one by one is faster than a binomial draw for each cell
MIN_RESAMPLES = 200  # with fewer, the ends of a 95% interval depend on a handful of resamples
BUDGET = 20_000_000  # images drawn in total, about a second
ROUNDING = 1e-9  # allowed difference between equal values
CHUNK = 100_000  # numbers in memory at once, so that they fit the processor's cache
MIN_UNITS = 5  # images or groups for an interval; those of fewer span a factor of a hundred, or nearly all values
ONE_GROUP_NOTE = "no interval: all images are in one group"
MIN_CLASS_IMAGES = 10  # with fewer in most classes, resamples of a mean over classes vary too little
NARROW_NOTE = f"interval too narrow: most classes have fewer than {MIN_CLASS_IMAGES} images"


def count_resamples(count: int, work: int = 1) -> int:
    """Return the affordable number of resamples of `count` images with `work` steps each; 0 if that is below 200.

    >>> count_resamples(10_000), count_resamples(10_000, 10), count_resamples(10_000, 1000)
    (2000, 200, 0)
    """
    affordable = min(RESAMPLES, BUDGET // max(count * work, 1))
    return affordable if affordable >= MIN_RESAMPLES else 0


def find_percentiles(values: NDArray[np.float64], units: int | None = None) -> Interval:
    """Return the 2.5th and 97.5th percentile of resampled values [R].

    For few `units`, images or groups, they are those further out that make an interval of a mean as wide as Student's t
    (Hesterberg, 2015, Am. Stat. 69:371-386, section 3.4).
    """
    tail = (
        TAIL if units is None else NormalDist().cdf(-intervals.t_quantile(units - 1) * math.sqrt(units / (units - 1)))
    )
    low, high = np.percentile(values, [100 * tail, 100 * (1 - tail)])
    return Interval(float(low), float(high))


def find_error_ends(value: float, resampled: NDArray[np.float64], noise: NDArray[np.float64]) -> Interval:
    """Return the interval of an expected calibration error from its resampled values [R] and their `noise` [R].

    The error is a sum of absolute gaps, to which noise adds, so the percentiles of resamples exclude 0 even for a
    calibrated model. The noise is the summed absolute difference between the gaps of a resample and those of all
    images. By the triangle inequality, the true error is below the measured one by at most the noise of the measured
    gaps: the lower end lies its 97.5th percentile below. The upper end is the percentile, on the safe side.
    """
    high = max(find_percentiles(resampled).high, value)
    return Interval(max(0.0, value - float(np.percentile(noise, 97.5))), high)


def percentile_interval(values: NDArray[np.float64]) -> Interval | None:
    """Return the 2.5th and 97.5th percentile of resampled values; None if too few are finite."""
    finite = values[np.isfinite(values)]
    if len(finite) < max(MIN_RESAMPLES, len(values) // 2):
        return None
    return find_percentiles(finite)


def mean_over_classes(per_class_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the classes [classes, ..., R] that are in a resample; the others are NaN."""
    good = np.isfinite(per_class_values)
    with np.errstate(invalid="ignore"):
        mean: NDArray[np.float64] = np.where(good, per_class_values, 0).sum(0) / good.sum(0)
    return mean


def choose_rarer(has_class: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which images [N] have the class, or, if most images have it, which do not."""
    return has_class if 2 * np.count_nonzero(has_class) <= len(has_class) else ~has_class


def explain_width(supports: NDArray[np.integer]) -> str:
    """Return that the interval of a mean over classes is too narrow, from the images of each class [K]; or ""."""
    present = supports[supports > 0]
    return NARROW_NOTE if 2 * np.count_nonzero(present < MIN_CLASS_IMAGES) > len(present) else ""


def number_groups(paths: Sequence[str], group_by_path: Mapping[str, str]) -> NDArray[np.int64] | None:
    """Return the number of the group of each image, int64 [N] from 0; None if there are no groups.

    An image whose group is not known is its own group.
    """
    if not group_by_path:
        return None
    names = [group_by_path.get(path, path) for path in paths]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def choose_groups(
    groups: NDArray[np.int64] | None, rows: NDArray[np.int64] | NDArray[np.bool_]
) -> NDArray[np.int64] | None:
    """Return the groups of the images at `rows`, numbered from 0 without a gap; None without `groups` [N]."""
    return None if groups is None else np.unique(groups[rows], return_inverse=True)[1].astype(np.int64)


def count_groups(groups: NDArray[np.int64] | None) -> int | None:
    """Return the number of `groups` [N], numbered from 0; None if images are independent."""
    return None if groups is None else int(groups.max(initial=-1)) + 1


def list_members(groups: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the positions of the images of each of the `groups` [N], numbered from 0."""
    return np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])


def draw_rows(rng: np.random.Generator, count: int, members: Sequence[NDArray[np.int64]] | None) -> NDArray[np.int64]:
    """Return a resample of `count` images as their positions; with the `members` of groups, whole groups are drawn."""
    if members is None:
        return rng.integers(0, count, count)
    return np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])


def sum_by_group(values: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the sum of the rows [N, ...] of each of G groups, float64 [G, ...]."""
    columns, count = values.reshape(len(values), math.prod(values.shape[1:])).T, count_groups(groups) or 0
    sums = np.zeros((count, len(columns)))
    for k, column in enumerate(columns):
        sums[:, k] = np.bincount(groups, column, count)
    return sums.reshape(count, *values.shape[1:])


@dataclass(frozen=True, slots=True)
class Resampling:
    """How images are resampled with `seed`: independently, or in whole `groups` int64 [N], numbered from 0."""

    seed: int = 0
    groups: NDArray[np.int64] | None = None

    def count_units(self, count: int, having: NDArray[np.bool_] | None = None) -> int:
        """Return how many units are resampled: `count` images, or their groups; only those `having` [N] something."""
        if having is None:
            return count if self.groups is None else count_groups(self.groups) or 0
        return len(np.unique(np.flatnonzero(having) if self.groups is None else self.groups[having]))

    def explain_absence(self, count: int, having: NDArray[np.bool_] | None = None) -> str:
        """Return why `count` images, or those of a class, determine no interval; empty if they do."""
        if count_groups(self.groups) == 1:
            return ONE_GROUP_NOTE
        if self.count_units(count, having) >= MIN_UNITS:
            return ""
        unit = "images" if self.groups is None else "groups"
        return f"no interval: fewer than {MIN_UNITS} {unit}" + ("" if having is None else " of a class")

    def draw_weights(self, count: int, number: int, name: str) -> Iterator[NDArray[np.float64]]:
        """Yield `number` resamples of `count` images in batches, as the counts of each image: float64 [r, count]."""
        step = max(1, CHUNK // max(count, 1))
        rng = make_generator(self.seed, "bootstrap", name)
        size = self.count_units(count)
        for start in range(0, number, step):
            rows = np.empty((min(step, number - start), count))
            for row in rows:
                weights = np.bincount(rng.integers(0, size, size, np.int32), minlength=size)
                row[:] = weights if self.groups is None else weights[self.groups]
            yield rows

    def _draw_affordable(self, count: int, name: str) -> Iterator[NDArray[np.float64]]:
        return self.draw_weights(count, count_resamples(count) or MIN_RESAMPLES, name)

    def resample_means(self, values: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        """Return the means [R, M] of resampled rows of `values` [N, M]."""
        batches = self._draw_affordable(len(values), name)
        return np.concatenate([w @ values / w.sum(1, keepdims=True) for w in batches])

    def resample_sums(self, values: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        """Return the sums [R, M] of resampled rows of `values` [N, M]."""
        if self.groups is not None:
            return Resampling(self.seed).resample_sums(sum_by_group(values, self.groups), name)
        return np.concatenate([w @ values for w in self._draw_affordable(len(values), name)])

    def resample_counts(self, cells: NDArray[np.int64], size: int, name: str) -> NDArray[np.int64]:
        """Return the counts of `size` cells in each resample, int64 [R, size]; `cells` [N] is that of each image.

        Resampling independent images amounts to drawing from a multinomial.
        """
        count = len(cells)
        if self.groups is None and size * MIN_PER_CELL < count:
            number, fractions = count_resamples(count) or MIN_RESAMPLES, np.bincount(cells, minlength=size) / count
            return make_generator(self.seed, "bootstrap", name).multinomial(count, fractions, number)
        ordered = np.sort(cells) if self.groups is None else cells
        batches = self._draw_affordable(count, name)
        return np.concatenate([[np.bincount(ordered, row, size) for row in rows] for rows in batches]).astype(np.int64)

    def draw_rows(self, count: int, number: int, name: str) -> Iterator[NDArray[np.int64]]:
        """Yield `number` resamples of `count` images as their positions."""
        rng = make_generator(self.seed, "bootstrap", name)
        if self.groups is None:
            yield from rng.integers(0, count, (number, count))
            return
        members = list_members(self.groups)
        for _ in range(number):
            yield draw_rows(rng, count, members)

    def estimate_error(self, resampled: NDArray[np.float64], count: int) -> float:
        """Return the standard error of a metric of `count` images from its resampled values [R]."""
        units = self.count_units(count)
        return float(resampled.std()) * math.sqrt(units / (units - 1))

    def make_metric(
        self,
        value: float,
        resampled: NDArray[np.float64],
        count: int,
        classes: int | None = None,
        note: str = "",
        *,
        of: Range | None = RATE,
        having: NDArray[np.bool_] | None = None,
        noise: NDArray[np.float64] | None = None,
    ) -> Metric:
        """Return a metric of `count` images with the interval of its resampled values [R], or why it has none.

        The interval is `scaled_interval` for the range `of` the metric and the standard deviation of the resampled
        values: their percentiles miss the true value too often if a few errors or groups determine it. Percentiles are
        used for a metric at an end of its range, and for one whose range is not known. If only some images determine
        the metric, such as those of the rarer of two classes, these are the ones `having` it, [N]. For an expected
        calibration error, with the `noise` of `resampled`, the interval is that of `find_error_ends`. `note` is the
        remark on an interval.

        A perfect model is perfect in every resample: an interval of zero width would claim more than the images show.
        Where each class has two or three images, resamples lack so many of them that a mean over classes is lower in
        nearly all resamples: an interval that excludes the value would be wrong.
        """
        if reason := self.explain_absence(count, having):
            return Metric(value, None, reason, classes)
        finite = resampled[np.isfinite(resampled)]
        if len(finite) and finite.max() - finite.min() <= ROUNDING:
            return Metric(value, None, "no interval: the same value in every resample", classes)
        interval = percentile_interval(resampled)
        if interval and interval.high - interval.low <= ROUNDING:
            return Metric(value, None, "no interval: the same value in nearly every resample", classes)
        if interval and noise is not None:
            interval = find_error_ends(value, finite, noise)
        if interval and not interval.low - ROUNDING <= value <= interval.high + ROUNDING:
            return Metric(value, None, "no interval: too few images for a bootstrap", classes)
        if interval and of is not None and noise is None and of.low < value < of.high:
            interval = intervals.scaled_interval(
                value, self.estimate_error(finite, count), self.count_units(count, having), of
            )
        elif interval and noise is None:
            interval = find_percentiles(finite, self.count_units(count))
        return Metric(value, interval, note if interval else "no interval: too few images of each class", classes)

    def estimate_proportions(
        self, hits: NDArray[np.bool_], among: NDArray[np.bool_], tail: float = TAIL
    ) -> list[Interval | None]:
        """Return the interval of each proportion of `hits` in `among`, both [N, M]; None if it has none.

        Intervals are Wilson's if images are independent, else those of `grouped_proportions`; images of a single group
        have none. `tail` is the probability that either end is wrong.
        """
        hits = hits & among
        if self.groups is None:
            pairs = zip(hits.sum(0).tolist(), among.sum(0).tolist(), strict=True)
            z = Z95 if tail == TAIL else NormalDist().inv_cdf(1 - tail)  # inv_cdf rounds the last digit
            return [intervals.wilson_interval(number, count, z) if count else None for number, count in pairs]
        sums = [sum_by_group(of.astype(np.float64), self.groups) for of in (hits, among)]
        return estimate_grouped_proportions(sums[0], sums[1], tail)

    def bound_proportion(self, hits: NDArray[np.bool_], among: NDArray[np.bool_]) -> float | None:
        """Return the one-sided 95% lower bound of the proportion of `hits` in `among`, both [N]; None if it has none.

        The bound is exact if images are independent.
        """
        hits = hits & among
        if self.groups is None:
            return intervals.lower_bound(int(hits.sum()), int(among.sum())) if among.any() else None
        sums = [sum_by_group(of[:, None].astype(np.float64), self.groups) for of in (hits, among)]
        bound = float(find_grouped_ends(sums[0], sums[1], ALPHA)[0, 0])
        return bound if np.isfinite(bound) else None

    def estimate_fraction(self, hits: NDArray[np.bool_]) -> Metric:
        """Return the fraction of images that are `hits` [N], with the interval of `estimate_proportions`."""
        (interval,) = self.estimate_proportions(hits[:, None], np.ones((len(hits), 1), bool))
        return Metric(int(hits.sum()) / len(hits), interval, "" if interval else ONE_GROUP_NOTE)


EACH_IMAGE = Resampling()
