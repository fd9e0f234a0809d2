"""Fit and evaluate the detection of out-of-distribution (OOD) images; the scores are those of `inference.ood`.

The distance and its limit are fitted on the validation images: neither training images nor OOD images are needed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sightline import metrics
from sightline.inference.ood import FeatureSpace, compute_scores, scale_to_unit_length
from sightline.inference.predictor import ModelOutputs
from sightline.inference.results import Thresholds
from sightline.seeding import make_generator

LIMIT_QUANTILE = 0.99  # fraction of the validation images below the limit
LIMIT_DEVIATIONS = 2.326  # standard deviations above the mean that this fraction of a normal distribution is below
QUANTILE_IMAGES = 300  # with fewer, the largest distances decide a quantile, which one odd image can double
MIN_IMAGES = 40  # with fewer, the limit is exceeded too often or never
MAX_IMAGES = 500  # more change the directions little
MAX_DIRECTIONS, IMAGES_PER_DIRECTION = 32, 8
FOLDS, MIN_GROUPS = 10, 5
BINS, SHOWN_QUANTILE = 30, 0.99  # of the histogram; larger scores are in its last bin
NEGLIGIBLE = 1e-6  # smallest variance of a direction, as a fraction of the largest
NO_DISTANCE_NOTE = f"The distance in feature space needs {MIN_IMAGES} validation images whose features can be computed."


@dataclass(frozen=True, slots=True)
class ScoreHistogram:
    """The fractions of the `evaluated` and of the out-of-distribution (`ood`) images with a score in each bin.

    `edges` are one more than the bins. Scores beyond the last edge count in the last bin.
    """

    edges: tuple[float, ...]
    evaluated: tuple[float, ...]
    ood: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class OODResult:
    """AUROC of both scores for `ood_count` out-of-distribution images against `count` in-distribution ones.

    `flagged_fraction` of the out-of-distribution images are above the model's limit, and `false_alarm_rate` of the
    others; `histogram` shows the scores. All three are None without a limit.
    """

    name: str
    energy_auroc: float
    distance_auroc: float | None
    count: int
    ood_count: int
    flagged_fraction: float | None
    false_alarm_rate: float | None
    note: str = ""
    histogram: ScoreHistogram | None = None


def fit_detection(
    thresholds: Thresholds, held_out: ModelOutputs, energy: Literal["energy", "joint_energy"]
) -> Thresholds:
    """Return `thresholds` with the score and the limit for OOD images, fitted on validation images.

    The score is the distance, or the `energy` if the images or their features do not determine a distance.
    """
    outputs = held_out.outputs
    space, distances = fit_space(outputs.features), measure_held_out(outputs.features, held_out.groups)
    if space is not None and distances is not None:
        return replace(thresholds, ood="distance", ood_limit=fit_distance_limit(distances), ood_space=space)
    by_energy = replace(thresholds, ood=energy, ood_space=None)
    return replace(by_energy, ood_limit=fit_limit(compute_scores(by_energy, outputs.logits, outputs.features)))


def fit_space(features: NDArray[np.float32]) -> FeatureSpace | None:
    """Return the space of the validation images' features [N, F]; None if they do not determine it."""
    return _fit_directions(features, np.arange(len(features))) if len(features) >= MIN_IMAGES else None


def measure_held_out(features: NDArray[np.float32], groups: NDArray[np.int64] | None) -> NDArray[np.float64] | None:
    """Return the distance of each validation image from the others, float64 [N]; None if they do not determine it.

    Each tenth of the images, or of their `groups` [N], is measured from the rest: an image is too near to itself and to
    its copies, which have the same features.
    """
    if groups is None:
        first: dict[bytes, int] = {}
        groups = np.array([first.setdefault(row.tobytes(), i) for i, row in enumerate(features)], np.int64)
    units = np.unique(groups, return_inverse=True)[1]
    if len(features) < MIN_IMAGES or units.max() + 1 < MIN_GROUPS:
        return None
    folds = make_generator(0, "ood folds").permutation(int(units.max()) + 1)[units] % FOLDS
    distances = np.empty(len(features))
    for fold in np.unique(folds):
        space = _fit_directions(features, np.flatnonzero(folds != fold))
        if space is None:
            return None
        distances[folds == fold] = space.measure(features[folds == fold])
    return distances


def _fit_directions(features: NDArray[np.float32], positions: NDArray[np.intp]) -> FeatureSpace | None:
    """Return the space of the images at `positions`, with directions for an eighth of the images, at most 32."""
    count = len(features)
    if len(positions) > MAX_IMAGES:
        positions = make_generator(0, "ood space").permutation(positions)[:MAX_IMAGES]
    features = features[positions]
    if not features.size or not np.isfinite(features).all():
        return None
    rows = scale_to_unit_length(features)
    mean = rows.mean(0)
    variances, vectors = _find_main_directions(rows - mean)
    varying = int((variances > NEGLIGIBLE * variances[0]).sum())
    chosen = min(MAX_DIRECTIONS, count // IMAGES_PER_DIRECTION, varying - 1)
    if chosen < 1:
        return None
    rest = float(variances[chosen:].sum() / (features.shape[1] - chosen))
    return FeatureSpace.from_arrays(np.vstack([mean, vectors[:chosen]]), variances[:chosen], rest)


def fit_distance_limit(distances: NDArray[np.float64]) -> float | None:
    """Return the limit of distances float64 [N]: of few, the 99% quantile of a log-normal distribution."""
    if len(distances) >= QUANTILE_IMAGES:
        return fit_limit(distances)
    logs = np.log(np.maximum(distances, np.finfo(np.float64).tiny))
    return float(np.exp(logs.mean() + LIMIT_DEVIATIONS * logs.std(ddof=1) * np.sqrt(1 + 1 / len(logs))))


def _find_main_directions(rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the variances along the principal directions of centered rows [n, F], falling, and these directions.

    They are those of the smaller of the two matrices of products, which is faster than decomposing the rows.
    """
    count, size = rows.shape
    products = rows @ rows.T if count < size else rows.T @ rows
    values, vectors = np.linalg.eigh(products)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1].T
    if count < size:
        vectors = vectors @ rows / np.sqrt(np.maximum(values, np.finfo(np.float64).tiny))[:, None]
    return values / count, vectors


def fit_limit(scores: NDArray[np.float64]) -> float | None:
    """Return the 99% quantile of scores float64 [N], rounded up to one of them; None if there are none."""
    if not len(scores):
        return None
    return float(np.sort(scores)[min(len(scores), int(np.ceil((len(scores) + 1) * LIMIT_QUANTILE))) - 1])


def make_histogram(
    evaluated: NDArray[np.float64], ood_scores: NDArray[np.float64], limit: float
) -> ScoreHistogram | None:
    """Return the histogram of scores float64 [N] and [M], which shows the `limit`; None if they are all the same."""
    scores = np.concatenate([evaluated, ood_scores])
    scores = scores[np.isfinite(scores)]
    if not len(scores):
        return None
    low, high = min(scores.min(), limit), max(np.quantile(scores, SHOWN_QUANTILE), limit)
    if low >= high:
        return None
    edges = np.linspace(low, high, BINS + 1)
    counts = [np.histogram(np.minimum(values, high), edges)[0] / len(values) for values in (evaluated, ood_scores)]
    return ScoreHistogram(*(tuple(values.tolist()) for values in (edges, *counts)))


def ood_auroc(in_distribution: NDArray[np.float64], out_of_distribution: NDArray[np.float64]) -> float:
    """Return the AUROC of a score, float64 [N] and [M], that should be higher for out-of-distribution images."""
    return metrics.auroc(
        np.concatenate([in_distribution, out_of_distribution]),
        np.arange(len(in_distribution) + len(out_of_distribution)) >= len(in_distribution),
    )
