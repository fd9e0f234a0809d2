"""Label a pool of images step by step: which to label next, and the accuracy of a head on the labels so far.

A third of the pool, drawn at random, is set aside for the audit, whose images are labeled in a random order. The others
are chosen by uncertainty and diversity (`badge`). The head is trained on all labels, and its accuracy is measured on
the images of the audit, each classified by a head that was trained without it (ten-fold cross-validation among them).

The choice must not depend on the audit's labels, so a second head, trained without them, chooses. Otherwise no image
near an audit image would be chosen, and the audit image would be classified by a head that has seen nothing of its
neighborhood: on synthetic features, accuracy appeared 1 to 3 points too low, and the intervals missed it.

With several labels per image, each class has its own logistic regression, and the measure is the per-image F1, by which
the task also scores images elsewhere (`tasks.multi_label`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import process
from sightline.errors import DataError
from sightline.evaluation.badge import MAX_CANDIDATES, choose_images
from sightline.evaluation.covariance import iter_blocks, measure_covariance
from sightline.evaluation.held_out import HeldOutErrors
from sightline.evaluation.label_subsets import list_sizes
from sightline.evaluation.learning_curve import LabelGain, summarize
from sightline.evaluation.multi_label_metrics import compute_example_f1
from sightline.intervals import Interval, anytime_interval, bounded_mean_interval, exact_interval
from sightline.metrics import sigmoid, softmax
from sightline.seeding import make_generator

UNLABELED, EXCLUDED = -1, -2
"""Labels of images that are still to be labeled, and of images that are not in the pool, such as dropped ones."""

AUDIT_FRACTION = 1 / 3  # fraction of the pool that is set aside, and of the images to label next
MIN_AUDITED = 10  # labeled images of the audit; with fewer, no accuracy is reported
FOLDS = 10
REPEATS = 4  # random orders of the labels for the learning curve
DIMENSIONS = 256  # dimensions of the features that the heads are trained on
PENALTY = 0.3  # between the best values on cats_vs_dogs (0.1) and flowers5 (0.3 to 1)
MAX_ITERATIONS = 100
MAX_LOGITS = 1 << 23  # logits of all heads that are solved at once: 100 MB, with the arrays that this takes


@dataclass(frozen=True, slots=True)
class AuditedAccuracy:
    """The accuracy of a head on images like those of the pool: `hits` of `count` images of the audit.

    `interval` is valid with 95% probability at any one time; `anytime_interval` at all times at once, so that it may
    decide when labeling stops (assuming that the head stays the same).
    """

    hits: int
    count: int

    @property
    def value(self) -> float:
        """The fraction of the images that are classified correctly."""
        return self.hits / self.count

    @property
    def interval(self) -> Interval:
        """The exact 95% interval (Clopper and Pearson, 1934)."""
        return exact_interval(self.hits, self.count)

    @property
    def anytime_interval(self) -> Interval:
        """The 95% interval that is valid at all times at once (Robbins, 1970)."""
        return anytime_interval(self.hits, self.count)


@dataclass(frozen=True, slots=True)
class AuditedF1:
    """The mean F1 of the classes of an image, for images like those of the pool, from its `scores` in the audit.

    `interval` and `anytime_interval` are as in `AuditedAccuracy`.
    """

    scores: tuple[float, ...]

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self.scores)

    @property
    def value(self) -> float:
        """The mean of the scores."""
        return sum(self.scores) / self.count

    @property
    def interval(self) -> Interval:
        """The 95% interval of the mean of scores between 0 and 1 (Waudby-Smith and Ramdas, 2024)."""
        return bounded_mean_interval(self.scores)

    @property
    def anytime_interval(self) -> Interval:
        """The 95% interval that is valid at all times at once (Robbins, 1970)."""
        return anytime_interval(sum(self.scores), self.count)


def project_features(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return features float32 [N, F] scaled and rotated to their D <= 256 principal axes: float32 [N, D].

    The axes are not scaled, so the penalty of a head means the same for them as for all features. Features that are
    mapped from a file are read in blocks, so they may be larger than memory.
    """
    from sightline.training import linear_head  # imported here, since a report does not build networks

    covariance = measure_covariance(features)
    mean, scale = covariance.mean.astype(np.float32), linear_head.find_scale(np.sqrt(covariance.matrix.diagonal()))
    if len(features) <= features.shape[1]:
        axes = np.linalg.svd((features - mean) / scale, full_matrices=False)[2][:DIMENSIONS].T
    else:
        axes = np.linalg.eigh(covariance.matrix / np.outer(scale, scale))[1][:, ::-1][:, :DIMENSIONS]
    scaled_axes = (axes / scale[:, None]).astype(np.float32)
    projected = np.empty((len(features), axes.shape[1]), np.float32)
    for block, rows in iter_blocks(features):
        projected[block] = (rows - mean) @ scaled_axes
    return projected


def draw_audit_order(keys: Sequence[str]) -> NDArray[np.int64]:
    """Return the positions of the images of the audit, in the order in which they are to be labeled.

    It depends only on `keys`, the hashes of the images, so it is the same after a restart, and new images do not change
    the order of the others.
    """
    draws = [int(hashlib.sha256(f"0 audit {key}".encode()).hexdigest()[:12], 16) / 16**12 for key in keys]
    chosen = [i for i, draw in enumerate(draws) if draw < AUDIT_FRACTION]
    return np.array(sorted(chosen, key=draws.__getitem__), np.int64)


def list_targets(labels: NDArray[np.int64], sets: NDArray[np.uint8] | None) -> NDArray[Any]:
    """Return the targets of heads: the classes int64 [n], or with `sets` the classes of each image, uint8 [n, K]."""
    return labels if sets is None else sets[labels]


def score_images(
    features: NDArray[np.float32], weights: NDArray[np.float64], targets: NDArray[Any]
) -> NDArray[np.float64]:
    """Return 1 for each image that a head with weights [D + 1, K] classifies correctly, else 0: float64 [n].

    With several classes per image, each is predicted at a probability of at least one half, and the score is their F1.
    """
    if targets.ndim == 1:
        hits: NDArray[np.bool_] = predict_probabilities(features, weights).argmax(1) == targets
        return hits.astype(np.float64)
    predicted = predict_probabilities(features, weights, several=True) >= 0.5
    return compute_example_f1(predicted, targets.astype(bool))


class ActiveLearner:
    """Trains a head on the labels of a pool, measures it, and chooses the images to label next.

    Labels are int64 [N]: the position of the class, or `UNLABELED`, or `EXCLUDED`. If an image may have several
    classes, they are rows of `sets`, uint8 [S, K], in which 1 marks the classes of a set.
    """

    def __init__(self, features: NDArray[np.float32], audit_order: NDArray[np.int64], seed: int = 0) -> None:
        """Initialize with the features from `project_features`, and the order from `draw_audit_order`."""
        self._features, self._order, self._seed = features, audit_order, seed
        self._in_audit = np.zeros(len(features), bool)
        self._in_audit[audit_order] = True
        self._weights: NDArray[np.float64] | None = None  # [D + 1, 2 (+ FOLDS), K]: `chooser`, `head`, one per fold
        self._can_choose = self._several = False
        self.accuracy: AuditedAccuracy | AuditedF1 | None = None

    @property
    def head(self) -> NDArray[np.float64] | None:
        """The weights [D + 1, K] of the head; None before there are two different labels."""
        return None if self._weights is None else self._weights[:, 1]

    @property
    def chooser(self) -> NDArray[np.float64] | None:
        """The weights [D + 1, K] of the head trained without labels of the audit; None until there are others."""
        return self._weights[:, 0] if self._weights is not None and self._can_choose else None

    def list_audited(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the labeled images of the audit before the first unlabeled one: a random sample of the pool.

        Images that somebody labeled out of order are not part of it yet: the reason for choosing them may bias it.
        """
        states = labels[self._order]
        first = int(np.argmax(np.append(states == UNLABELED, True)))
        return self._order[:first][states[:first] >= 0]

    def refit(
        self, labels: NDArray[np.int64], num_classes: int, sets: NDArray[np.uint8] | None = None, *,
        measure: bool = True,
    ) -> None:  # fmt: skip
        """Train the head on all labels, and `measure` its accuracy, or its F1."""
        labeled, self._several = np.flatnonzero(labels >= 0), sets is not None
        if len(np.unique(labels[labeled])) < 2:
            self._weights = self.accuracy = None
            return
        audited = self.list_audited(labels)
        folds = self._assign_folds(audited)
        others = ~self._in_audit[labeled]
        without_fold = [folds[labeled] != fold for fold in range(FOLDS if measure else 0)]
        used = np.stack([others, np.ones(len(labeled), bool), *without_fold])
        self._can_choose = len(np.unique(labels[labeled[others]])) >= 2
        start = self._weights
        if start is not None and start.shape[1:] != (len(used), num_classes):
            start = None
        features, targets = self._features[labeled], list_targets(labels[labeled], sets)
        groups = [slice(0, 1), slice(1, None)]  # apart, or labels of the audit would affect the chooser
        with process.one_blas_thread():
            heads = [
                fit_heads(features, targets, used[group], num_classes, None if start is None else start[:, group])
                for group in groups
            ]
        self._weights = np.concatenate(heads, axis=1)
        self.accuracy = None
        if measure and len(audited) >= MIN_AUDITED:
            scores = self._score(audited, labels, sets, folds, self._weights[:, 2:])
            exact = AuditedAccuracy(int(scores.sum()), len(audited))
            self.accuracy = AuditedF1(tuple(scores.tolist())) if self._several else exact

    def _assign_folds(self, audited: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the fold int64 [N] of each audited image, and -1 for others."""
        folds = np.full(len(self._features), -1)
        folds[audited] = np.arange(len(audited)) % FOLDS
        return folds

    def _score(
        self, audited: NDArray[np.int64], labels: NDArray[np.int64], sets: NDArray[np.uint8] | None,
        folds: NDArray[np.int64], weights: NDArray[np.float64],
    ) -> NDArray[np.float64]:  # fmt: skip
        """Return `score_images` for each image by the head without its fold; `weights` are [D + 1, FOLDS, K]."""
        scores = np.zeros(len(audited))
        for fold in range(FOLDS):
            rows = folds[audited] == fold
            of_fold = audited[rows]
            scores[rows] = score_images(self._features[of_fold], weights[:, fold], list_targets(labels[of_fold], sets))
        return scores

    def choose_next(self, labels: NDArray[np.int64], count: int) -> list[int]:
        """Return up to `count` images to label next; every third is the next one of the audit.

        Before there is a head to choose the others, they are chosen at random.
        """
        chooser, unlabeled = self.chooser, labels == UNLABELED
        audit = self._order[unlabeled[self._order]]
        candidates = np.flatnonzero(unlabeled & ~self._in_audit)
        audit = audit[: max(round(count * AUDIT_FRACTION), count - len(candidates))]
        count -= len(audit)
        candidates = make_generator(self._seed, "candidates").permutation(candidates)[:MAX_CANDIDATES]
        chosen = candidates[:count]
        if chooser is not None:
            features, several = self._features[candidates], self._several
            probabilities = predict_probabilities(features, chooser, several=several)
            chosen = candidates[choose_images(features, probabilities, count, several=several)]
        places = np.concatenate([np.arange(len(audit)) / AUDIT_FRACTION, np.arange(len(chosen)) * 1.5 + 0.75])
        return [int(i) for i in np.concatenate([audit, chosen])[np.argsort(places, kind="stable")]]

    def predict_gain(
        self, labels: NDArray[np.int64], num_classes: int, more: int, sets: NDArray[np.uint8] | None = None
    ) -> LabelGain | None:
        """Return the gain from `more` labels, by the power law of heads on random subsets of the labels.

        None if there are too few labels, or too few errors among the images of the audit.
        """
        audited, labeled = self.list_audited(labels), np.flatnonzero(labels >= 0)
        try:
            sizes = list_sizes(len(labeled), num_classes)
        except DataError:
            return None
        if len(audited) < MIN_AUDITED:
            return None
        folds = self._assign_folds(audited)
        wrong = np.empty((len(sizes), REPEATS, len(audited)))
        for repeat in range(REPEATS):
            order = make_generator(self._seed, "label gain", repeat).permutation(labeled)
            for number, size in enumerate(sizes):
                subset = order[:size]
                used = np.stack([folds[subset] != fold for fold in range(FOLDS)])
                with process.one_blas_thread():
                    targets = list_targets(labels[subset], sets)
                    weights = fit_heads(self._features[subset], targets, used, num_classes)
                wrong[number, repeat] = 1 - self._score(audited, labels, sets, folds, weights)
        units = np.tile(np.arange(len(audited)), REPEATS)
        repeats = np.repeat(np.arange(REPEATS), len(audited))
        errors = HeldOutErrors(sizes, wrong.reshape(len(sizes), -1), units, repeats, len(audited))
        gains = summarize(errors, num_classes, (more,), self._seed).gains
        return gains[0] if gains else None


def fit_heads(
    features: NDArray[np.float32],
    targets: NDArray[Any],
    used: NDArray[np.bool_],
    num_classes: int,
    start: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Return the weights [D + 1, M, K] of M logistic regressions; number m is trained on the images ``used[m]``.

    `features` are float32 [n, D], `used` bool [M, n]; `targets` are the class of each image, int64 [n], or 1 for each
    class that it has, else 0: uint8 [n, K]. All are solved at once, by products of matrices, from the weights `start`.
    The last row is the bias, which has no penalty.
    """
    from scipy.optimize import minimize  # comes with scikit-learn

    group = max(1, MAX_LOGITS // (len(features) * num_classes))
    if len(used) > group:  # heads do not depend on each other
        starts = [None if start is None else start[:, i : i + group] for i in range(0, len(used), group)]
        parts = [fit_heads(features, targets, used[i * group :][:group], num_classes, s) for i, s in enumerate(starts)]
        return np.concatenate(parts, axis=1)
    count, heads = len(features), len(used)
    x = np.hstack([features, np.ones((count, 1), np.float32)])
    weights = (used / np.maximum(used.sum(1, keepdims=True), 1)).T.astype(np.float32)  # [n, M]
    shape = (x.shape[1], heads, num_classes)
    differentiate = _differentiate_softmax if targets.ndim == 1 else _differentiate_logistic

    def evaluate(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        matrix = theta.reshape(shape[0], -1)
        losses, residuals = differentiate((x @ matrix.astype(np.float32)).reshape(count, heads, num_classes), targets)
        loss = float((weights * losses).sum(dtype=np.float64))
        residuals *= weights[..., None]
        gradient = (x.T @ residuals.reshape(count, -1)).astype(np.float64)
        gradient[:-1] += PENALTY * matrix[:-1]
        return loss + PENALTY / 2 * float(np.square(matrix[:-1]).sum()), gradient.ravel()

    theta = np.zeros(shape) if start is None else start
    options = {"maxiter": MAX_ITERATIONS, "ftol": 1e-6, "gtol": 1e-4}
    return np.asarray(minimize(evaluate, theta.ravel(), method="L-BFGS-B", jac=True, options=options).x).reshape(shape)


def _differentiate_softmax(
    logits: NDArray[np.float32], classes: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the cross-entropy [n, M] of `logits` [n, M, K], and its gradient, computed in place of the logits."""
    rows = np.arange(len(classes))
    logits -= logits.max(2, keepdims=True)
    residuals = np.exp(logits)
    sums = residuals.sum(2)
    losses = np.log(sums) - logits[rows, :, classes]
    residuals /= sums[..., None]
    residuals[rows, :, classes] -= 1
    return losses, residuals


def _differentiate_logistic(
    logits: NDArray[np.float32], has_class: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the binary cross-entropy summed over the classes, [n, M], and its gradient for `logits` [n, M, K]."""
    truth = has_class[:, None].astype(np.float32)
    small = np.exp(-np.abs(logits))
    losses = (np.maximum(logits, 0) - truth * logits + np.log1p(small)).sum(2)
    return losses, np.where(logits >= 0, np.float32(1), small) / (1 + small) - truth


def predict_probabilities(
    features: NDArray[np.float32], weights: NDArray[np.float64], *, several: bool = False
) -> NDArray[np.float32]:
    """Return the probabilities float32 [N, K] of a head with weights [D + 1, K]; `several`: of independent classes."""
    weights32 = weights.astype(np.float32)
    logits = features @ weights32[:-1] + weights32[-1]
    return sigmoid(logits) if several else softmax(logits)
