"""Compute an `EvaluationResult` from the probabilities of labeled images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from sightline import intervals, metrics
from sightline.data.types import Subset, UnreadableImage
from sightline.evaluation import bootstrap, scoring
from sightline.evaluation.bootstrap import Resampling
from sightline.evaluation.results import EvaluationResult, Metric
from sightline.intervals import Interval

NO_GROUPS: Mapping[str, str] = MappingProxyType({})


def compute_evaluation(
    classes: tuple[str, ...],
    probabilities: NDArray[np.float32],
    samples: Subset,
    *,
    unreadable: Sequence[UnreadableImage] = (),
    seconds: float = 0.0,
    group_by_path: Mapping[str, str] = NO_GROUPS,
) -> EvaluationResult:
    """Compute the metrics of `probabilities` float32 [N, K] against the labels of `samples`.

    `group_by_path` names the group of each image: with any, intervals resample groups, since the images of one depend
    on each other. Raises `DataError` for invalid probabilities, see `scoring.check_probabilities`.
    """
    scoring.check_probabilities(probabilities, samples.paths)
    predictions = probabilities.argmax(1)
    confusion = metrics.confusion_matrix(samples.labels, predictions, len(classes))
    correct_count, count = int(np.trace(confusion)), len(samples)
    resampling = Resampling(groups=bootstrap.number_groups(samples.paths, group_by_path))
    num_groups = bootstrap.count_groups(resampling.groups)
    all_metrics = scoring.compute_metrics(probabilities, samples.labels, resampling)
    per_class = scoring.compute_class_metrics(confusion, classes)
    if num_groups is not None:
        per_class = scoring.add_group_intervals(per_class, predictions, samples.labels, resampling)
    return EvaluationResult(
        classes=classes,
        accuracy=correct_count / count if count else 0.0,
        accuracy_interval=find_accuracy_interval(all_metrics["top_1"], count if num_groups is None else num_groups),
        loss=metrics.cross_entropy(probabilities, samples.labels),
        count=count,
        per_class=per_class,
        confusion=confusion,
        unreadable=tuple(unreadable),
        paths=samples.paths,
        labels=samples.labels,
        probabilities=probabilities,
        seconds=seconds,
        metrics=all_metrics,
        groups=num_groups,
    )


def find_accuracy_interval(accuracy: Metric, count: int) -> Interval:
    """Return the interval of an accuracy; Wilson's as of one image for each of `count` groups if resampling gave none.

    All images of a perfect classifier are right in every resample.
    """
    return accuracy.interval or intervals.wilson_interval(round((accuracy.value or 0.0) * count), count)
