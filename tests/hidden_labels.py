"""The check of a learning curve: hide labels, predict the gain from them, and measure the actual gain."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from sightline.data.types import Subset
from sightline.evaluation.learning_curve import measure_learning_curve
from sightline.tasks.protocol import find_task
from sightline.training.linear_head import fit_linear_head

DRAWS = 4  # random training sets to measure the gain with


def make_subset(values: NDArray[np.float32], labels: NDArray[Any]) -> Subset:
    """Return features as a subset whose images are all different."""
    return Subset(values, np.arange(len(values)), labels, tuple(map(str, range(len(values)))))


def check_coverage(features: Subset, visible: int, seed: int, task: str = "single_label") -> bool | None:
    """Return whether the interval predicted from `visible` images contains the gain from as many labels again.

    None if nothing is predicted. The actual gain is measured on the remaining images, as the mean over several random
    training sets.
    """
    rng = np.random.default_rng(seed)
    half = features.select(rng.permutation(len(features))[:visible])
    more = visible * 9 // 10  # as many as in training, which holds out a tenth
    curve = measure_learning_curve(half, half.paths, seed=seed, more=[more], task=task)
    if not curve.gains:
        return None
    gains = []
    for _ in range(DRAWS):
        order = rng.permutation(len(features))
        sizes = (curve.labels, curve.labels + more)
        test = features.select(order[sizes[1] :])
        few, many = (_measure_head(features.select(order[:size]), test, curve.num_classes, task) for size in sizes)
        gains.append(many - few)
    low, high = curve.gains[0].interval
    print(f"+{100 * np.mean(gains):.2f} points, predicted {100 * low:.2f} to {100 * high:.2f}")  # noqa: T201  # with -s
    return bool(low <= np.mean(gains) <= high)


def _measure_head(train: Subset, test: Subset, num_classes: int, task: str) -> float:
    """Return the accuracy of a head, or the mean average precision for several labels per image.

    A tenth of the images is used to choose the penalty, the others to measure.
    """
    tuning, others = test.head(len(test) // 10), test.select(np.arange(len(test) // 10, len(test)))
    head = fit_linear_head(find_task(task), train, tuning, num_classes)
    logits = head.compute_scores(others.take(slice(None)))
    if others.labels.ndim == 2:
        return float(average_precision_score(others.labels, logits, average="macro"))
    return float((logits.argmax(1) == others.labels).mean())
