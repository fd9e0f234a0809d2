"""Metrics of grades: how far the predicted grade is from the true one, each with its 95% interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from sightline.data.types import Subset, UnreadableImage
from sightline.evaluation import bootstrap
from sightline.evaluation.results import EvaluationResult, Metric
from sightline.evaluation.scoring import NO_GROUPS, compute_evaluation, explain_errors
from sightline.inference.decisions import compute_expected_grades
from sightline.intervals import SIGNED, Range

QWK, MAE, WITHIN_ONE = "quadratic_weighted_kappa", "mean_absolute_error", "within_one_grade"


@dataclass(frozen=True, slots=True, repr=False)
class OrdinalResult(EvaluationResult):
    """The metrics of a classifier of grades, whose `classes` are in order: the usual ones, and those of distances."""

    headlines = (QWK, MAE)

    @property
    def expected_grades(self) -> NDArray[np.float64]:
        """The expected grade of each image, float64 [N]."""
        return compute_expected_grades(self.probabilities, self.classes)


def compute_ordinal_evaluation(
    classes: tuple[str, ...],
    probabilities: NDArray[np.float32],
    samples: Subset,
    *,
    unreadable: Sequence[UnreadableImage] = (),
    group_by_path: Mapping[str, str] = NO_GROUPS,
) -> OrdinalResult:
    """Compute the metrics of `probabilities` float32 [N, K] of grades, see `scoring.compute_evaluation`.

    If `group_by_path` names the group of each image, intervals resample whole groups.
    """
    evaluation = compute_evaluation(classes, probabilities, samples, unreadable=unreadable, group_by_path=group_by_path)
    groups = bootstrap.number_groups(samples.paths, group_by_path)
    grades = compute_ordinal_metrics(samples.labels, probabilities.argmax(1), len(classes), groups)
    result = OrdinalResult(**{f.name: getattr(evaluation, f.name) for f in fields(evaluation)})
    return replace(result, metrics=grades | dict(evaluation.metrics))


def compute_ordinal_metrics(
    labels: NDArray[np.int32], predictions: NDArray[np.int64], grades: int, groups: NDArray[np.int64] | None = None
) -> dict[str, Metric]:
    """Return quadratic weighted kappa, mean absolute error and the fraction within one grade, by name.

    `labels` and `predictions` [N] are positions in the order of `grades`, and distances count positions. With `groups`
    [N], from 0, intervals account for the dependence of images within a group.
    """
    count = len(labels)
    if not count:
        return {name: Metric(None, note="there are no images") for name in (QWK, MAE, WITHIN_ONE)}
    terms = list_distance_terms(labels, predictions)
    resampling = bootstrap.Resampling(groups=groups)
    values, resampled = terms.mean(0), resampling.resample_means(terms, "grades")
    kappa = float(compute_kappa(values))
    return {
        QWK: resampling.make_metric(
            kappa, compute_kappa(resampled), count, note=explain_errors(predictions, labels), of=SIGNED
        )
        if np.isfinite(kappa)
        else Metric(None, note="all images and predictions have the same grade"),
        MAE: resampling.make_metric(float(values[0]), resampled[:, 0], count, of=Range(0, grades - 1)),
        WITHIN_ONE: resampling.estimate_fraction(terms[:, 1] > 0),
    }


@dataclass(frozen=True, slots=True)
class GradeComparison:
    """The quadratic weighted kappa and the mean absolute error of the second of two classifiers minus the first's.

    Both have the 95% interval of a paired bootstrap: images, or their groups, are resampled with both predictions.
    """

    kappa_difference: Metric
    error_difference: Metric


def compare_grades(
    labels: NDArray[np.int32],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    grades: int,
    groups: NDArray[np.int64] | None,
) -> GradeComparison:
    """Compare the predictions [N] of two classifiers among `grades`, for the same images, N at least 1, or `groups`."""
    resampling = bootstrap.Resampling(groups=groups)
    terms = np.concatenate([list_distance_terms(labels, predicted) for predicted in (first, second)], 1)
    means = np.concatenate([terms.mean(0)[None], resampling.resample_means(terms, "grade differences")])
    kappas = compute_kappa(means[:, 6:]) - compute_kappa(means[:, :6])
    errors = means[:, 6] - means[:, 0]
    return GradeComparison(
        resampling.make_metric(float(kappas[0]), kappas[1:], len(labels), of=Range(-2, 2))
        if np.isfinite(kappas[0])
        else Metric(None, note="all images and predictions have the same grade"),
        resampling.make_metric(float(errors[0]), errors[1:], len(labels), of=Range(1 - grades, grades - 1)),
    )


def list_distance_terms(labels: NDArray[np.int32], predictions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return float64 [N, 6], whose means determine all metrics of true grades y and predicted ones z.

    The columns are the distance of y and z, whether it is at most 1, its square, y² + z², y and z.
    """
    true, predicted = labels.astype(np.float64), predictions.astype(np.float64)
    distance = np.abs(true - predicted)
    return np.stack([distance, distance <= 1, distance**2, true**2 + predicted**2, true, predicted], 1)


def compute_kappa(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return quadratic weighted kappa from the means [..., 6] of `list_distance_terms`; NaN if it is not defined.

    Cohen, 1968, doi:10.1037/h0026256: one minus the mean squared distance, divided by that of the same true and
    predicted grades if they were independent.
    """
    by_chance = means[..., 3] - 2 * means[..., 4] * means[..., 5]
    with np.errstate(invalid="ignore", divide="ignore"):
        kappa: NDArray[np.float64] = np.where(by_chance > 1e-12, 1 - means[..., 2] / by_chance, np.nan)
    return kappa
