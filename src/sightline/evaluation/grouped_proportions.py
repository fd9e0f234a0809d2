"""Confidence intervals of proportions of images that come in groups, such as those of one patient or one sequence.

Images of one group depend on each other, so they carry less information than independent ones. The method is that of
Korn and Graubard (1998, Survey Methodology 24:193-201), in use for the health statistics of the United States (Parker
et al., 2017, Vital Health Stat. 2(175)): the exact interval of Clopper and Pearson for an effective number of images,

- computed from the variance between groups: p (1 - p) / v, with the linearized variance v of the ratio of two sums over
  groups, times (z / t)² for the few groups that v is estimated from, and at most the number of images,
- or, if every image is a hit or none is, so that v is 0, computed as if all images of a group were copies
  of one: Kish's effective number of groups, the squared number of images divided by the sum of the squared numbers of
  each group (Kish, 1965, Survey Sampling). With G groups of one size and no error, the lower end is 0.025^(1/G), near
  1 - 3.7 / G: the rule of three (Hanley and Lippman-Hand, 1983, JAMA 249:1743-1745) for 97.5% and groups.

In the second case, a percentile bootstrap of groups has an interval of zero width, and it undercovers with few groups
(75% to 90% with 3 to 10 of them, for a stated 95%).
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from sightline.errors import require
from sightline.intervals import Interval

TAIL = 0.025  # probability that either end of a 95% interval is wrong
DIGITS = 10  # digits of an end; later ones may differ between versions of SciPy


def find_grouped_ends(
    hits: NDArray[np.floating], counts: NDArray[np.floating], tail: float = TAIL
) -> NDArray[np.float64]:
    """Return the lower and upper end of the interval of M proportions, float64 [2, M].

    Args:
        hits: The number of images of each of G groups that are hits, [G, M].
        counts: The number of images of each group that could be hits, [G, M].
        tail: The probability that the proportion is below the lower end, and that it is above the upper one.

    Returns:
        Both ends in [0, 1]; NaN where fewer than two groups have an image that counts.
    """
    special = require("scipy.special", "An interval of images in groups")
    hits, counts = hits.astype(np.float64), counts.astype(np.float64)
    ends = np.full((2, hits.shape[1]), np.nan)
    groups, total = (counts > 0).sum(0), counts.sum(0)
    chosen = np.flatnonzero(groups > 1)
    hits, counts, groups, total = hits[:, chosen], counts[:, chosen], groups[chosen], total[chosen]
    p = hits.sum(0) / total
    uniform = (p == 0) | (p == 1)
    variance = ((hits - p * counts) ** 2).sum(0) * groups / (groups - 1) / total**2
    size = np.divide(p * (1 - p), variance, out=total.copy(), where=variance > 0)
    size = np.minimum(size * (NormalDist().inv_cdf(1 - tail) / special.stdtrit(groups - 1, 1 - tail)) ** 2, total)
    size = np.where(uniform, total**2 / (counts**2).sum(0), size)
    ends[0, chosen] = np.where(p > 0, special.betaincinv(p * size, (1 - p) * size + 1, tail), 0)
    ends[1, chosen] = np.where(p < 1, special.betaincinv(p * size + 1, (1 - p) * size, 1 - tail), 1)
    return ends.round(DIGITS)


def estimate_grouped_proportions(
    hits: NDArray[np.floating], counts: NDArray[np.floating], tail: float = TAIL
) -> list[Interval | None]:
    """Return the intervals of M proportions from `find_grouped_ends`; None where an end is NaN."""
    low, high = find_grouped_ends(hits, counts, tail).tolist()
    return [None if math.isnan(a) else Interval(a, b) for a, b in zip(low, high, strict=True)]
