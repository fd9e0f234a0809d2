"""Label issues, found by confident learning on out-of-fold predictions from the network's features.

A strongly regularized logistic regression is cross-validated on frozen features, so that it cannot memorize single
labels: a multinomial one, or for several labels per image one per class. Label issues are detected with cleanlab,
following Northcutt et al. (2021, JAIR 70, arXiv:1911.00068); with several labels, separately for each class, and images
are ranked as in Thyagarajan et al. (2022, arXiv:2211.13895).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import process
from sightline.callbacks import Progress, no_progress
from sightline.data.iterative_stratification import stratify_iteratively
from sightline.data.targets import LABEL_SETS, join_classes
from sightline.data.types import ImageRecord, Subset
from sightline.errors import DataError, check_installed, plural, require
from sightline.inference.results import ClassProbability
from sightline.seeding import derive_seed, make_generator
from sightline.tasks.protocol import Task, find_task

PURPOSE = "Finding label issues"
MIN_REPEATS = 2  # images of a class: one to fit to, and one to check
FOLDS = 5  # also the minimum number of images with and without a class, if images have several labels
# Of the weights, per feature: logits vary as much with many features as with few. With 5% of the labels of 600
# photographs of cats and dogs changed, 0.99 of these are listed, and 0.93 of the listed labels are wrong (three
# drawings). On 468 street scenes with several labels, 3% of them changed, the average precision is 0.605; with 0.0002
# and 0.003, it is 0.577 and 0.567.
PENALTY = 0.0008
# If each image has one of more classes than this, the penalty falls in proportion to their number, as the part of each
# class in the loss does. On 2,689 images in 96 clusters, 5% of the labels changed, this gives an average precision of
# 0.70 instead of 0.57.
MANY_CLASSES = 10
IMPROBABLE = 0.2  # a probability below which a label is questioned in any case


def check_packages() -> None:
    """Raise `MissingExtraError` if a package that finding label issues needs is not installed."""
    check_installed("sklearn", "cleanlab", purpose=PURPOSE)


@dataclass(frozen=True, slots=True)
class LabelIssue:
    """An image whose label may be wrong: `quality` in [0, 1], lower is worse.

    `probability` is that of `suggested_label`.
    """

    path: str
    sha256: str
    label: str
    suggested_label: str
    quality: float
    probability: float

    def to_patch(self) -> dict[str, Any]:
        """Return one line of a label patch."""
        reason = (
            f"looks like {self.suggested_label} ({self.probability:.2f}) to a classifier trained without this image"
        )
        return {
            "action": "relabel", "path": self.path, "sha256": self.sha256, "label": self.label,
            "to": self.suggested_label,
            "reason": reason,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class LabelSetIssue:
    """An image with several labels, or none, some of which may be wrong: `quality` in [0, 1], lower is worse.

    `missing` are the classes of `suggested_label` that `label` lacks, and `wrong` the classes that only `label` has,
    each with the probability that the image has it.
    """

    path: str
    sha256: str
    label: str
    suggested_label: str
    quality: float
    missing: tuple[ClassProbability, ...]
    wrong: tuple[ClassProbability, ...]

    def to_patch(self) -> dict[str, Any]:
        """Return one line of a label patch, with all classes of the image."""
        parts = [("probably has", self.missing), ("probably lacks", self.wrong)]
        clauses = [
            f"{verb} {', '.join(f'{c.label} ({c.probability:.2f})' for c in classes)}"
            for verb, classes in parts
            if classes
        ]
        return {
            "action": "relabel", "path": self.path, "sha256": self.sha256, "label": self.label,
            "to": self.suggested_label,
            "reason": f"{' and '.join(clauses)}, according to a classifier trained without this image",
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class LabelIssueCount:
    """The number of images that probably have a class but lack its label, and of images with a wrong label of it."""

    label: str
    missing: int
    wrong: int


def count_label_issues(changes: Iterable[tuple[str, str]]) -> tuple[LabelIssueCount, ...]:
    """Return the counts of each class that is missing or wrong, highest counts first.

    `changes` are pairs of the label of an image, with any number of classes, and the suggested label.

    >>> [count.label for count in count_label_issues([("a;b", "b"), ("", "c"), ("c", "")])]
    ['c', 'a']
    """
    missing, wrong = Counter[str](), Counter[str]()
    for old, new in changes:
        before, after = set(LABEL_SETS.list_classes(old)), set(LABEL_SETS.list_classes(new))
        missing.update(after - before)
        wrong.update(before - after)
    names = sorted({*missing, *wrong}, key=lambda name: (-missing[name] - wrong[name], name))
    return tuple(LabelIssueCount(name, missing[name], wrong[name]) for name in names)


def find_repeated_classes(
    labels: NDArray[np.int32], classes: Sequence[str], groups: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Return the numbers of the `classes` that at least two images have, int64, by their `labels` int32 [N].

    With `groups` [N], images of at least two groups. Raises `DataError` if there are fewer than two such classes: a
    class with one image, or in one group, cannot be predicted by a model fitted without that.
    """
    repeated = np.flatnonzero(_count_units(labels, len(classes), groups) >= MIN_REPEATS)
    if len(repeated) < 2:
        units = "two images" if groups is None else "images of two groups"
        raise DataError(
            f"Finding label issues needs at least two classes with {units} each, but only {len(repeated)} of "
            f"{plural(len(classes), 'class', 'classes')} {'has' if len(repeated) == 1 else 'have'} that many: add "
            "images."
        )
    return repeated


def _count_units(labels: NDArray[np.int32], count: int, groups: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Return how many images, or groups of them, have each of `count` classes."""
    if groups is not None:
        labels = np.unique(np.stack([labels, groups]), axis=1)[0].astype(np.int32)
    return np.bincount(labels, minlength=count)


def predict_out_of_fold(
    features: NDArray[np.float32],
    labels: NDArray[np.int32],
    classes: Sequence[str],
    seed: int = 0,
    progress: Progress = no_progress,
    groups: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Return out-of-fold probabilities [N, K] from `features` float32 [N, F], of classes of `find_repeated_classes`.

    Images of one of the `groups` [N] are in the same fold. If that fold has all images of a class, its labels are
    assumed to be correct.
    """
    model_selection = require("sklearn.model_selection", PURPOSE)
    folds = max(2, min(FOLDS, int(_count_units(labels, len(classes), groups).min())))
    probabilities = np.eye(len(classes))[labels]
    kind = model_selection.StratifiedKFold if groups is None else model_selection.StratifiedGroupKFold
    splits = kind(folds, shuffle=True, random_state=derive_seed(seed, "labels") % 2**32)
    for done, (train_rows, fold_rows) in enumerate(splits.split(features, labels, groups), 1):
        known, train_labels = np.unique(labels[train_rows], return_inverse=True)
        test_rows = fold_rows[np.isin(labels[fold_rows], known)]
        if len(known) < 2 or not len(test_rows):
            continue
        probabilities[test_rows] = 0.0
        probabilities[np.ix_(test_rows, known)] = _fit_and_predict(
            find_task("single_label"), features[train_rows], train_labels, len(known), features[test_rows],
            PENALTY * min(1, MANY_CLASSES / len(known)),
        )  # fmt: skip
        progress("checking labels (folds)", done, folds)
    probabilities /= probabilities.sum(1, keepdims=True)  # those of a head are float32
    return probabilities


def _fit_and_predict(
    task: Task,
    features: NDArray[np.float32],
    labels: NDArray[Any],
    num_classes: int,
    others: NDArray[np.float32],
    penalty: float = PENALTY,
) -> NDArray[np.floating]:
    """Return the probabilities [n, K] of images with features `others` [n, F] by a head fitted to [N, F]."""
    from sightline.training import linear_head  # imported here, since a report does not build networks

    train = Subset(features, np.arange(len(features)), labels, ("",) * len(features))
    with process.one_blas_thread():
        head = next(linear_head.iter_heads(task, train, num_classes, penalties=(penalty * features.shape[1],)))
    return task.activate(task.link_scores(head.compute_scores(others)))


def _assign_folds(
    classes: Sequence[Sequence[str]], folds: int, seed: int, groups: NDArray[np.int64] | None
) -> NDArray[np.int64]:
    """Return the fold of each image, int64 [N]: those of a group together, and each class in about equal parts."""
    units = np.arange(len(classes)) if groups is None else np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(units)
    counters = [Counter[str]() for _ in sizes]
    for unit, names in zip(units.tolist(), classes, strict=True):
        counters[unit].update(names)
    count = len(sizes)
    order = make_generator(seed, "labels").permutation(count)
    fold_of = np.empty(count, np.int64)
    fold_of[order] = stratify_iteratively(
        sizes[order].tolist(), [counters[i] for i in order], [1 / folds] * folds, np.arange(count) / count
    )
    return fold_of[units]


def select_label_issues(
    images: Sequence[ImageRecord], labels: NDArray[np.int32], probabilities: NDArray[np.float64], classes: Sequence[str]
) -> tuple[LabelIssue, ...]:
    """Return the images with label issues, worst first; `probabilities` [N, K] are out-of-fold.

    Raises `MissingExtraError` without cleanlab.
    """
    find_label_issues = require("cleanlab.filter", PURPOSE).find_label_issues
    get_label_quality_scores = require("cleanlab.rank", PURPOSE).get_label_quality_scores
    labels_int64 = labels.astype(np.int64)
    order = find_label_issues(labels_int64, probabilities, return_indices_ranked_by="normalized_margin", n_jobs=1)
    quality = get_label_quality_scores(labels_int64, probabilities, method="normalized_margin")
    issues = []
    for i in map(int, order):
        to = int(probabilities[i].argmax())
        if to != labels_int64[i]:
            p = images[i]
            issues.append(
                LabelIssue(p.path, p.sha256, p.label, classes[to], float(quality[i]), float(probabilities[i, to]))
            )
    return tuple(issues)


def find_checkable_classes(labels: NDArray[np.uint8], groups: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Return the columns of `labels` [N, K] for which each fold has an image with the class and one without it.

    Images of one of the `groups` [N] are in the same fold. Raises `DataError` if there are no such columns.
    """
    units = np.arange(len(labels)) if groups is None else groups
    least = max(MIN_REPEATS, _count_folds(units))
    counts = [min(len(np.unique(units[column == value])) for value in (0, 1)) for column in labels.T]
    columns = np.flatnonzero(np.array(counts) >= least)
    if not len(columns):
        name = "images" if groups is None else "groups of images"
        raise DataError(
            f"Finding label issues needs a class that at least {least} {name} have and {least} lack, but there is none "
            f"among {len(labels)} images: add images."
        )
    return columns


def _count_folds(units: NDArray[np.int64]) -> int:
    return min(FOLDS, len(np.unique(units)))


def predict_labels_out_of_fold(
    task: Task,
    features: NDArray[np.float32],
    labels: NDArray[np.uint8],
    seed: int = 0,
    progress: Progress = no_progress,
    groups: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Return out-of-fold probabilities [N, K] of each class of a `task` with several labels, uint8 [N, K].

    The folds have about the same fraction of the images with each class, or without it, whichever are fewer. Images of
    one of the `groups` [N] are in the same fold.
    """
    count, num_classes = labels.shape
    rarer = np.where(2 * labels.sum(0, dtype=np.int64) <= count, labels, 1 - labels)
    num_folds = _count_folds(np.arange(count) if groups is None else groups)
    classes = [list(map(str, np.flatnonzero(row))) for row in rarer]
    folds = _assign_folds(classes, num_folds, seed, groups)
    probabilities = np.zeros((count, num_classes))
    for fold in range(num_folds):
        train, rows = folds != fold, folds == fold
        probabilities[rows] = _fit_and_predict(task, features[train], labels[train], num_classes, features[rows])
        progress("checking labels (folds)", fold + 1, num_folds)
    return probabilities


def select_label_set_issues(
    images: Sequence[ImageRecord], labels: NDArray[np.uint8], probabilities: NDArray[np.float64], classes: Sequence[str]
) -> tuple[LabelSetIssue, ...]:
    """Return the images with issues in their labels [N, K], worst first; `probabilities` [N, K] are out-of-fold.

    Confident learning questions the labels of each class separately, with thresholds for this class. For a class that
    is easy to recognize, few labels reach these, so improbable labels are questioned as well. The quality of an image
    is the exponential moving average of the probabilities of all its labels, present or absent, from the highest to the
    lowest, which counts most.

    Raises `MissingExtraError` without cleanlab.
    """
    find_label_issues = require("cleanlab.filter", PURPOSE).find_label_issues
    get_label_quality_scores = require("cleanlab.multilabel_classification.rank", PURPOSE).get_label_quality_scores
    questioned = _find_improbable(labels, probabilities)
    for column in range(labels.shape[1]):
        of_class = np.stack([1 - probabilities[:, column], probabilities[:, column]], axis=1)
        questioned[:, column] |= find_label_issues(labels[:, column].astype(np.int64), of_class, n_jobs=1)
    quality = get_label_quality_scores([np.flatnonzero(row).tolist() for row in labels], probabilities)
    suggested = labels.astype(bool) ^ questioned

    def list_probabilities(image: int, chosen: NDArray[np.bool_]) -> tuple[ClassProbability, ...]:
        return tuple(
            ClassProbability(classes[k], float(probabilities[image, k])) for k in np.flatnonzero(chosen).tolist()
        )

    issues = []
    for i in np.argsort(quality, kind="stable").tolist():
        if questioned[i].any():
            image = images[i]
            missing = list_probabilities(i, questioned[i] & suggested[i])
            wrong = list_probabilities(i, questioned[i] & ~suggested[i])
            changed = {c.label for c in (*missing, *wrong)}
            names = changed.symmetric_difference(LABEL_SETS.list_classes(image.label))
            issues.append(
                LabelSetIssue(
                    image.path, image.sha256, image.label, join_classes(names), float(quality[i]), missing, wrong
                )
            )
    return tuple(issues)


def _find_improbable(labels: NDArray[np.uint8], probabilities: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which labels [N, K] are improbable, and would still be if half of the images had the class.

    For a rare class that the features do not distinguish, every label is improbable, but no more than its absence
    elsewhere.
    """
    frequencies = labels.mean(0)
    present, absent = probabilities / frequencies, (1 - probabilities) / (1 - frequencies)
    likely = np.stack([probabilities, present / (present + absent)])
    improbable: NDArray[np.bool_] = np.where(labels, likely, 1 - likely).max(0) < IMPROBABLE
    return improbable
