"""Compute an `EvaluationResult` from the probabilities of labeled images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sightline import intervals, metrics
from sightline.data.types import Subset, UnreadableImage
from sightline.evaluation import scoring
from sightline.evaluation.results import EvaluationResult


def compute_evaluation(
    classes: tuple[str, ...],
    probabilities: NDArray[np.float32],
    samples: Subset,
    *,
    unreadable: Sequence[UnreadableImage] = (),
    seconds: float = 0.0,
) -> EvaluationResult:
    """Compute the metrics of `probabilities` float32 [N, K] against the labels of `samples`.

    Raises `DataError` for invalid probabilities, see `scoring.check_probabilities`.
    """
    scoring.check_probabilities(probabilities, samples.paths)
    predictions = probabilities.argmax(1)
    confusion = metrics.confusion_matrix(samples.labels, predictions, len(classes))
    correct_count, count = int(np.trace(confusion)), len(samples)
    return EvaluationResult(
        classes=classes,
        accuracy=correct_count / count if count else 0.0,
        accuracy_interval=intervals.wilson_interval(correct_count, count),
        loss=metrics.cross_entropy(probabilities, samples.labels),
        count=count,
        per_class=scoring.compute_class_metrics(confusion, classes),
        confusion=confusion,
        unreadable=tuple(unreadable),
        paths=samples.paths,
        labels=samples.labels,
        probabilities=probabilities,
        seconds=seconds,
        metrics=scoring.compute_metrics(probabilities, samples.labels),
    )
