"""Label issues, found by confident learning on out-of-fold predictions from the network's features.

A strongly regularized multinomial logistic regression is cross-validated on frozen features, so that it cannot memorize
single labels. Label issues are found with cleanlab, following Northcutt et al. (2021, JAIR 70, arXiv:1911.00068).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.callbacks import Progress, no_progress
from sightline.data.types import ImageRecord
from sightline.errors import DataError, check_installed, require
from sightline.seeding import derive_seed

PURPOSE = "Finding label issues"
FOLDS = 5
# C. On 600 photographs of cats and dogs with 5% wrong labels, 0.001 found 0.90 of them and 0.1 found 0.78. The features
# were those of a network trained on the correct labels, so both are optimistic.
REGULARIZATION = 0.001


def check_packages() -> None:
    """Raise `MissingExtraError` if a package that finding label issues needs is not installed."""
    check_installed("sklearn", "cleanlab", purpose=PURPOSE)


@dataclass(frozen=True, slots=True)
class LabelIssue:
    """An image whose label is probably wrong: `quality` in [0, 1], lower is worse.

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


def predict_out_of_fold(
    features: NDArray[np.float32],
    labels: NDArray[np.int32],
    classes: int,
    seed: int = 0,
    progress: Progress = no_progress,
) -> NDArray[np.float64]:
    """Return out-of-fold probabilities [N, K] from `features` float32 [N, F].

    Raises `DataError` for fewer than two classes, or a class with fewer than two images.
    """
    counts = np.bincount(labels, minlength=classes)
    if classes < 2 or counts.min() < 2:
        raise DataError(
            f"Finding label issues needs at least two classes with two images each; class number {counts.argmin()} "
            f"has {counts.min()}: add images."
        )
    linear_model = require("sklearn.linear_model", PURPOSE)
    model_selection = require("sklearn.model_selection", PURPOSE)
    convergence_warning = require("sklearn.exceptions", PURPOSE).ConvergenceWarning
    folds = min(FOLDS, int(counts.min()))
    x = features.astype(np.float64)
    probabilities = np.zeros((len(labels), classes))
    splits = model_selection.StratifiedKFold(folds, shuffle=True, random_state=derive_seed(seed, "labels") % 2**32)
    for done, (train_rows, test_rows) in enumerate(splits.split(x, labels), 1):
        mean, deviation = x[train_rows].mean(0), x[train_rows].std(0)
        deviation = np.where(deviation > 0, deviation, 1.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", convergence_warning)  # a nearly converged head ranks just as well
            head = linear_model.LogisticRegression(C=REGULARIZATION, max_iter=200).fit(
                (x[train_rows] - mean) / deviation, labels[train_rows]
            )
        probabilities[test_rows] = head.predict_proba((x[test_rows] - mean) / deviation)
        progress("checking labels (folds)", done, folds)
    return probabilities


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
