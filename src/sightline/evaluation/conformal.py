"""Split-conformal prediction sets: sets that contain the true class with a given probability, for any model.

The probability is over validation and new images drawn from the same source (Vovk et al., 2005; Lei et al., 2018). The
score is "lac" (least ambiguous sets), which has the smallest sets on average.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline.errors import DataError, UsageError
from sightline.evaluation.bootstrap import EACH_IMAGE, Resampling
from sightline.inference.decisions import compute_nonconformity, make_prediction_sets
from sightline.inference.results import Nonconformity
from sightline.intervals import Interval

ALL_CLASSES = 2.0  # above every score: the set contains all classes


@dataclass(frozen=True, slots=True)
class SetCoverage:
    """Prediction sets on `count` images: the fraction that contains the true class, its interval, and the mean size.

    The interval is [0, 1] if all images are of one group. `fitted`: they are those that the sets were fitted on.
    """

    target: float
    coverage: float
    interval: Interval
    mean_size: float
    singleton_fraction: float
    count: int
    fitted: bool = False


def fit_quantile(
    probabilities: NDArray[np.float32], labels: NDArray[np.int32], coverage: float, score: Nonconformity = "lac"
) -> float:
    """Return the score up to which classes are in the set: the ceil((N + 1) coverage)-th smallest of true classes.

    `probabilities` are float32 [N, K], `labels` int32 [N]. It is 2, so that the set has all classes, if N images are
    too few for the coverage. Raises `UsageError` for a coverage outside (0, 1) and `DataError` if there are no images.
    """
    if not 0 < coverage < 1:
        raise UsageError(f"The coverage must be between 0 and 1, e.g. 0.9; got {coverage}.")
    if not len(labels):
        raise DataError("There are no validation images to fit prediction sets on: use a validation split.")
    scores = np.sort(compute_nonconformity(probabilities, score)[np.arange(len(labels)), labels])
    rank = math.ceil((len(labels) + 1) * coverage - 1e-9)
    return float(scores[rank - 1]) if rank <= len(labels) else ALL_CLASSES


def evaluate_sets(
    probabilities: NDArray[np.float32],
    labels: NDArray[np.int32],
    quantile: float,
    coverage: float,
    score: Nonconformity = "lac",
    resampling: Resampling = EACH_IMAGE,
) -> SetCoverage:
    """Return coverage and size of the sets on images that were not used to fit them.

    `probabilities` are float32 [N, K], `labels` int32 [N]; `quantile` is that of `fit_quantile`.
    """
    in_set = make_prediction_sets(probabilities, quantile, score)
    hits, count = in_set[np.arange(len(labels)), labels], len(labels)
    (interval,) = resampling.estimate_proportions(hits[:, None], np.ones((count, 1), bool))
    sizes = in_set.sum(1)
    size, single = (float(v.mean()) if count else 0.0 for v in (sizes, sizes == 1))
    return SetCoverage(coverage, int(hits.sum()) / max(count, 1), interval or Interval(0.0, 1.0), size, single, count)
