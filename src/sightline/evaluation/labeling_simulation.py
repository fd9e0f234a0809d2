"""Simulated labeling of images with known labels: the estimates that it would have shown, and the true values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline.evaluation.active_learning import (
    AUDIT_FRACTION,
    UNLABELED,
    ActiveLearner,
    AuditedAccuracy,
    AuditedF1,
    list_targets,
    score_images,
)  # fmt: skip
from sightline.evaluation.learning_curve import LabelGain
from sightline.seeding import make_generator

BATCH = 12  # labels after which the head is trained again


@dataclass(frozen=True, slots=True)
class SimulatedLook:
    """The estimates after `labels` labels, and the true values.

    `true_accuracy` is that of the head on the images that it was not trained on and that were not chosen: those outside
    the pool and the unlabeled ones of the audit. `accuracy` and `gain` are the estimates; None if there are none. With
    several labels per image, the mean F1 of the classes of an image takes the place of the accuracy.
    """

    labels: int
    true_accuracy: float
    accuracy: AuditedAccuracy | AuditedF1 | None = None
    gain: LabelGain | None = None


def simulate_labeling(
    features: NDArray[np.float32],
    labels: NDArray[np.int64] | NDArray[np.uint8],
    *,
    budget: int,
    looks: Sequence[int] = (),
    more: int = 0,
    at_random: bool = False,
    seed: int = 0,
) -> list[SimulatedLook]:
    """Label up to `budget` images of a random pool, batch by batch, and return the true accuracy after each.

    The true accuracy is measured on the half of the images that are not in the pool, and on unlabeled audit images.

    Args:
        features: The features of all images, as `active_learning.project_features` returns them.
        labels: Their classes, int64 [N], of which labeling sees only the ones that it requests; or 1 for each class
            that an image has, else 0: uint8 [N, K].
        budget: The number of labels.
        looks: The numbers of labels at which the accuracy is also estimated; rounded up to a whole batch.
        more: The number of further labels for which the gain is predicted at these looks; 0 for none.
        at_random: Label in a random order instead.
        seed: Draws the pool, the audit and the random order.
    """
    rng = make_generator(seed, "simulated labeling")
    order = rng.permutation(len(labels))
    pool, outside = np.split(order, [round(len(order) / 2)])
    audit = np.arange(round(AUDIT_FRACTION * len(pool)))  # the pool is in a random order
    numbers, sets, num_classes = _number_labels(labels)
    learner = ActiveLearner(features[pool], audit, seed)
    known, truth, remaining = np.full(len(pool), UNLABELED), numbers[pool], sorted(looks)
    results = []
    for count in range(BATCH, min(budget, len(pool)) + 1, BATCH):
        chosen = np.arange(count - BATCH, count) if at_random else np.array(learner.choose_next(known, BATCH))
        known[chosen] = truth[chosen]
        measure = bool(remaining) and count >= remaining[0]
        learner.refit(known, num_classes, sets, measure=measure)
        if learner.head is None:
            continue
        unseen = np.concatenate([outside, pool[audit[known[audit] == UNLABELED]]])
        scores = score_images(features[unseen], learner.head, list_targets(numbers[unseen], sets))
        gain = learner.predict_gain(known, num_classes, more, sets) if measure and more else None
        results.append(SimulatedLook(count, float(scores.mean()), learner.accuracy, gain))
        remaining = [look for look in remaining if look > count]
    return results


def _number_labels(
    labels: NDArray[np.int64] | NDArray[np.uint8],
) -> tuple[NDArray[np.int64], NDArray[np.uint8] | None, int]:
    """Return labels as `ActiveLearner` takes them, the sets of classes that they number, and the number of classes."""
    if labels.ndim == 1:
        return labels.astype(np.int64), None, int(labels.max()) + 1
    sets, numbers = np.unique(labels, axis=0, return_inverse=True)
    return numbers.reshape(-1).astype(np.int64), sets.astype(np.uint8), labels.shape[1]
