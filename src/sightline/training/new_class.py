"""Fit one more row of a linear head from a few images of a new class; the other logits stay unchanged.

With the other logits fixed, the cross-entropy over all classes is the loss of a logistic regression of the new class
against the rest, with minus the log-sum-exp of the other logits as offset. The problem is convex with one weight per
feature, so a fit takes a fraction of a second, and the penalty can be chosen by leaving images out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline import process
from sightline.data.types import Subset
from sightline.metrics import sigmoid
from sightline.tasks.protocol import LossGradient
from sightline.training.linear_head import iter_heads

PENALTIES = (3.0, 1.0, 0.3, 0.1, 0.03)  # as in `linear_head`; weaker penalties trust a few images too much
MAX_FOLDS = 10  # up to this number of images of the new class, each is left out in turn


@dataclass(frozen=True, slots=True)
class NewClassFit:
    """The row of the new class: its logit is features @ `kernel` + `bias`, with `kernel` float32 [F].

    `is_recalled` bool [n] is whether each image of the new class is classified correctly by a row fitted without it, in
    one of `folds` folds, with the same `penalty`.
    """

    kernel: NDArray[np.float32]
    bias: float
    penalty: float
    folds: int
    is_recalled: NDArray[np.bool_]


def fit_new_class(
    new_features: NDArray[np.float32],
    new_logits: NDArray[np.float32],
    features: NDArray[np.float32],
    logits: NDArray[np.float32],
) -> NewClassFit:
    """Return the row for n >= 2 images of the new class, given N >= 2 images of the K other classes.

    Features are float32 [n, F] and [N, F], logits of the other classes float32 [n, K] and [N, K]. The new class has the
    mean weight of the others, whatever their numbers of images. The penalty is the one of `PENALTIES` with the lowest
    cross-entropy on left-out images, in `MAX_FOLDS` folds or one for each image of the new class.
    """
    x, z = np.concatenate([new_features, features]), np.concatenate([new_logits, logits]).astype(np.float64)
    largest, is_new = z.max(1), np.arange(len(x)) < len(new_features)
    labels = np.stack([is_new, np.logaddexp.reduce(z, axis=1)], 1)
    samples = Subset(x, np.arange(len(x)), labels, ("",) * len(x))
    loss, num_classes, folds = _OffsetLoss(), z.shape[1], min(len(new_features), MAX_FOLDS)
    positions = np.concatenate([np.arange(len(new_features)), np.arange(len(features))])
    scores = np.empty((len(x), len(PENALTIES)))  # for each image, from the rows fitted without it
    with process.one_blas_thread(), np.errstate(invalid="ignore"):  # OpenBLAS sets the invalid flag without any NaN
        for fold in range(folds):
            left_out = positions % folds == fold
            weights = weigh_images(is_new, num_classes, ~left_out)
            for number, head in enumerate(iter_heads(loss, samples, 1, weights, penalties=PENALTIES)):
                scores[left_out, number] = head.compute_scores(x[left_out])[:, 0]
        losses = loss.differentiate_loss(scores, labels).losses
        weights = weigh_images(is_new, num_classes, np.ones(len(x), bool))
        best = int(np.argmin(weights[:, 0] @ losses))
        *_, head = iter_heads(loss, samples, 1, weights, penalties=PENALTIES[: best + 1])
    is_recalled = (scores[:, best] > largest)[is_new]
    return NewClassFit(head.kernel[:, 0], float(head.bias[0]), head.penalty, folds, is_recalled)


def weigh_images(is_new: NDArray[np.bool_], num_classes: int, included: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return image weights, float32 [N, 1]: 0 if not `included`; the new class has the mean weight of the others."""
    counts = np.where(is_new, max(1, int((is_new & included).sum())), max(1, int((~is_new & included).sum())))
    weights = np.where(is_new, 1, num_classes) / counts / (num_classes + 1) * included
    return weights[:, None].astype(np.float32)


class _OffsetLoss:
    """The loss of logits [n, M] of the new class; labels [n, 2] are 1 for its images (else 0) and minus the offset."""

    def count_units(self, num_classes: int) -> int:
        return num_classes

    def differentiate_loss(self, scores: NDArray[np.float64], labels: NDArray[np.float64]) -> LossGradient:
        is_new, margins = labels[:, :1], scores - labels[:, 1:]
        losses = np.logaddexp(0, np.where(is_new == 1, -margins, margins))
        residuals = sigmoid(margins) - is_new
        return LossGradient(losses, residuals, ((margins > 0) == is_new)[:, 0].astype(np.float64))
