"""Run a predictor on labeled images and compute an `Evaluation`."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sightline import intervals, metrics
from sightline.data.loader import batches
from sightline.evaluation import scores
from sightline.prediction.base import Predictor, filled, suitable_batch_size
from sightline.records import Evaluation, Progress, Reject, Samples, no_progress


def evaluate(
    predictor: Predictor,
    samples: Samples,
    *,
    rejects: Sequence[Reject] = (),
    batch_size: int | None = None,
    progress: Progress = no_progress,
) -> Evaluation:
    """Evaluate `predictor` on `samples`, whose labels are indices into `predictor.classes`."""
    started = time.perf_counter()
    found: list[NDArray[np.float32]] = []
    rows = batch_size or suitable_batch_size(predictor.preprocess)
    done, size = 0, min(rows, len(samples))
    for taken in batches(samples, rows):
        found.append(filled(predictor.probabilities, taken.pixels, size))
        done += len(taken.labels)
        progress("evaluating", done, len(samples))
    probabilities = np.concatenate(found) if found else np.zeros((0, len(predictor.classes)), np.float32)
    seconds = time.perf_counter() - started
    return figures(predictor.classes, probabilities, samples, rejects=rejects, seconds=seconds)


def figures(
    classes: tuple[str, ...],
    probabilities: NDArray[np.float32],
    samples: Samples,
    *,
    rejects: Sequence[Reject] = (),
    seconds: float = 0.0,
) -> Evaluation:
    """Compute the metrics of `probabilities` float32 [N, K] against the labels of `samples`.

    Raises `DataError` for invalid probabilities, see `scores.check`.
    """
    scores.check(probabilities, samples.paths)
    answers = probabilities.argmax(1)
    confusion = metrics.confusion_matrix(samples.labels, answers, len(classes))
    hits, count = int(np.trace(confusion)), len(samples)
    return Evaluation(
        classes=classes,
        accuracy=hits / count if count else 0.0,
        accuracy_interval=intervals.wilson(hits, count),
        loss=metrics.cross_entropy(probabilities, samples.labels),
        count=count,
        per_class=scores.per_class(confusion, classes),
        confusion=confusion,
        rejects=tuple(rejects),
        paths=samples.paths,
        labels=samples.labels,
        probabilities=probabilities,
        seconds=seconds,
        figures=scores.scores(probabilities, samples.labels),
    )
