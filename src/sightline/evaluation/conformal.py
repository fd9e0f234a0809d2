"""Split-conformal prediction sets: sets of classes that hold the truth with a stated chance, whatever the model.

The chance is over validation and new pictures alike, drawn from one source (Vovk et al., 2005; Lei et al., 2018). The
default score is "aps": where "lac" has the smallest sets on average, its sets may be empty, and hard classes pay.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline import intervals
from sightline.errors import DataError, UsageError
from sightline.prediction.decide import conformity, sets
from sightline.records import Interval

EVERY = 2.0  # above every score: the set holds all classes


@dataclass(frozen=True, slots=True)
class Coverage:
    """How sets did on `count` pictures: the share that held the truth, with its interval, and their mean size."""

    wanted: float
    covered: float
    interval: Interval
    size: float
    single: float
    count: int


def fit(probabilities: NDArray[np.float32], labels: NDArray[np.int32], coverage: float) -> float:
    """Return the score up to which classes are in the set: the ceil((N + 1) coverage)-th smallest of true classes.

    2, which takes in all classes, where N pictures are too few for the coverage. Raises `UsageError` for a coverage
    outside 0 to 1, `DataError` for no pictures.
    """
    if not 0 < coverage < 1:
        raise UsageError(f"The coverage must lie between 0 and 1, such as 0.9; got {coverage}.")
    if not len(labels):
        raise DataError("There are no validation pictures to fit prediction sets on: keep some for validation.")
    scores = np.sort(conformity(probabilities)[np.arange(len(labels)), labels])
    rank = math.ceil((len(labels) + 1) * coverage - 1e-9)
    return float(scores[rank - 1]) if rank <= len(labels) else EVERY


def judge(probabilities: NDArray[np.float32], labels: NDArray[np.int32], quantile: float, coverage: float) -> Coverage:
    """Return how the sets do on other pictures."""
    held = sets(probabilities, quantile)
    hits, count = int(held[np.arange(len(labels)), labels].sum()), len(labels)
    sizes = held.sum(1)
    size, single = (float(v.mean()) if count else 0.0 for v in (sizes, sizes == 1))
    return Coverage(coverage, hits / max(count, 1), intervals.wilson(hits, count), size, single, count)
