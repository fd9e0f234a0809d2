"""Paired comparison of two classifiers on the same images: McNemar's exact test, and Tango's interval.

If images come in groups, or have scores instead of right or wrong, a sign-flip permutation test and a bootstrap are
used instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline import intervals
from sightline.evaluation.bootstrap import Resampling, count_groups, sum_by_group
from sightline.intervals import SIGNED, Interval
from sightline.seeding import make_generator

LEVEL = 0.05
MAX_ENUMERATED = 16  # differing groups for which all signs are tried; for more, a sample is drawn
SIGN_DRAWS = 9999
CHUNK = 1_000_000  # signs in memory at once
ROUNDING = 1e-9  # relative difference of sums of the same differences in another order


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """The second of two classifiers against the first, on the `count` images that both were evaluated on.

    `only_first_correct` and `only_second_correct` count the images that only one of them classified correctly.
    `difference` is the second accuracy minus the first; `verdict` is about the second: "better", "worse" or "no
    significant difference". If images come in groups, `groups` is their number, `p_value` is `group_p_value`, and the
    interval resamples groups; it is None where it would be of zero width, or for a single group.
    """

    count: int
    first_accuracy: float
    second_accuracy: float
    only_first_correct: int
    only_second_correct: int
    p_value: float
    difference: float
    difference_interval: Interval | None
    verdict: str
    groups: int | None


@dataclass(frozen=True, slots=True)
class ScoreDifference:
    """The mean score of the second of two models minus that of the first, on the same images.

    Its 95% `interval` and its `standard_error` come from a bootstrap of images, or of their groups; None where these do
    not determine one. `p_value` is `group_p_value`.
    """

    value: float
    standard_error: float | None
    interval: Interval | None
    p_value: float


def compare_scores(
    first: NDArray[np.float64], second: NDArray[np.float64], groups: NDArray[np.int64] | None
) -> ScoreDifference:
    """Compare two models by the scores of the same images, float64 [N] each, N above 0.

    `groups` int64 [N], from 0, number the groups of images that depend on each other.
    """
    gains, resampling = second - first, Resampling(groups=groups)
    means = resampling.resample_means(gains[:, None], "paired difference")[:, 0]
    value = float(gains.mean())
    interval = resampling.make_metric(value, means, len(gains), of=SIGNED).interval
    error = None if interval is None else resampling.estimate_error(means, len(gains))
    return ScoreDifference(
        value, error, interval, group_p_value(gains if groups is None else sum_by_group(gains, groups))
    )


def mcnemar_p_value(only_first_correct: int, only_second_correct: int) -> float:
    """Return the two-sided exact p-value under equally likely disagreements of both kinds (McNemar, 1947).

    >>> mcnemar_p_value(0, 5), mcnemar_p_value(3, 3)
    (0.0625, 1.0)
    """
    count = only_first_correct + only_second_correct
    return (
        min(1.0, 2 * intervals.binomial_cdf(min(only_first_correct, only_second_correct), count, 0.5)) if count else 1.0
    )


def group_p_value(differences: NDArray[np.float64]) -> float:
    """Return the two-sided p-value if the difference of each group, float64 [G], had either sign with probability 1/2.

    With one image in each group, it is McNemar's exact test. For more than 16 groups that differ, 9,999 draws are used.

    >>> group_p_value(np.array([1.0] * 5)), group_p_value(np.array([90.0, 4.0, 0.0]))
    (0.0625, 0.5)
    """
    nonzero = differences[differences != 0]
    count, observed = len(nonzero), abs(float(nonzero.sum())) * (1 - ROUNDING)
    if not count:
        return 1.0
    if count <= MAX_ENUMERATED:
        sums = _sum_signed(((np.arange(2**count)[:, None] >> np.arange(count)) & 1), nonzero)
        return float((sums >= observed).mean())
    rng, step = make_generator(0, "signs of groups"), max(1, CHUNK // count)
    sizes = (min(step, SIGN_DRAWS - start) for start in range(0, SIGN_DRAWS, step))
    sums = np.concatenate([_sum_signed(rng.integers(0, 2, (size, count)), nonzero) for size in sizes])
    return float((1 + (sums >= observed).sum()) / (1 + SIGN_DRAWS))


def _sum_signed(signs: NDArray[np.int64], differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the absolute sums [R] of `differences` [G], which are subtracted where `signs` [R, G] are 0."""
    sums: NDArray[np.float64] = np.abs((2 * signs - 1) @ differences)
    return sums


def compare_paired(
    first: NDArray[np.bool_], second: NDArray[np.bool_], *, tests: int = 1, groups: NDArray[np.int64] | None = None
) -> PairedComparison:
    """Compare two classifiers by which images they classified correctly, bool [N] each, in the same order.

    `tests` is the number of comparisons in the family: at most 5% for any false verdict among them (Bonferroni).
    `groups` int64 [N], from 0, number the groups of images that depend on each other.
    """
    count = len(first)
    only_first_correct, only_second_correct = int((first & ~second).sum()), int((~first & second).sum())
    if groups is None or not count:
        p = mcnemar_p_value(only_first_correct, only_second_correct)
        interval = (
            intervals.paired_difference_interval(only_first_correct, only_second_correct, count) if count else None
        )
    else:
        compared = compare_scores(first.astype(np.float64), second.astype(np.float64), groups)
        p, interval = compared.p_value, compared.interval
    first_accuracy, second_accuracy = (float(of.mean()) if count else 0.0 for of in (first, second))
    difference = (only_second_correct - only_first_correct) / max(count, 1)
    return PairedComparison(
        count, first_accuracy, second_accuracy, only_first_correct, only_second_correct, p, difference, interval,
        _name_verdict(p * tests, difference), count_groups(groups),
    )  # fmt: skip


def _name_verdict(p_value: float, difference: float) -> str:
    if p_value >= LEVEL:
        return "no significant difference"
    return "better" if difference > 0 else "worse"


DIGITS = 9  # decimals of an IoU, rounded so that equal ones compare equal


@dataclass(frozen=True, slots=True)
class MaskComparison:
    """The second of two models of masks against the first, on the `count` images that both were evaluated on.

    `first_iou` and `second_iou` are means over the images of the mean IoU of the classes that each has; `difference` is
    the second minus the first, and its interval resamples images, or groups of them; it is None where it would be of
    zero width. `p_value` is two-sided, for the hypothesis that the sign of the difference of each image, or of each of
    `groups`, is random. `verdict` is about the second: "better", "worse" or "no significant difference".
    """

    count: int
    first_iou: float
    second_iou: float
    p_value: float
    difference: float
    difference_interval: Interval | None
    verdict: str
    groups: int | None


def compare_masks(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    *,
    tests: int = 1,
    groups: NDArray[np.int64] | None = None,
) -> MaskComparison:
    """Compare two models by the mean IoU of each image, float64 [N] each in [0, 1], in the same order; N is not 0.

    `tests` and `groups` are as for `compare_paired`.
    """
    compared = compare_scores(first.round(DIGITS), second.round(DIGITS), groups)
    return MaskComparison(
        len(first), float(first.mean()), float(second.mean()), compared.p_value, compared.value, compared.interval,
        _name_verdict(compared.p_value * tests, compared.value), count_groups(groups),
    )  # fmt: skip
