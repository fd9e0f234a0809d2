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

from sightline.errors import DataError, check_installed, require
from sightline.randomness import derive
from sightline.records import Picture, Progress, no_progress

PURPOSE = "Finding label issues"
FOLDS = 5
# C. On 600 photographs of cats and dogs with 5% wrong labels, 0.001 found 0.90 of them and 0.1 found 0.78. The features
# were those of a network trained on the correct labels, so both are optimistic.
STRENGTH = 0.001


def check_packages() -> None:
    """Raise `MissingExtraError` if a package that finding label issues needs is not installed."""
    check_installed("sklearn", "cleanlab", purpose=PURPOSE)


@dataclass(frozen=True, slots=True)
class Suspect:
    """An image whose label is probably wrong: `quality` in [0, 1], lower is worse; `probability` is that of `to`."""

    path: str
    sha256: str
    label: str
    to: str
    quality: float
    probability: float

    def to_patch(self) -> dict[str, Any]:
        """Return one line of a label patch."""
        reason = f"looks like {self.to} ({self.probability:.2f}) to a classifier trained without this image"
        return {
            "action": "relabel", "path": self.path, "sha256": self.sha256, "label": self.label, "to": self.to,
            "reason": reason,
        }  # fmt: skip


def out_of_fold(
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
    heads = require("sklearn.linear_model", PURPOSE)
    selection = require("sklearn.model_selection", PURPOSE)
    slow = require("sklearn.exceptions", PURPOSE).ConvergenceWarning
    folds = min(FOLDS, int(counts.min()))
    x = features.astype(np.float64)
    found = np.zeros((len(labels), classes))
    splits = selection.StratifiedKFold(folds, shuffle=True, random_state=derive(seed, "labels") % 2**32)
    for done, (kept, left) in enumerate(splits.split(x, labels), 1):
        mean, deviation = x[kept].mean(0), x[kept].std(0)
        deviation = np.where(deviation > 0, deviation, 1.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", slow)  # a nearly converged head ranks just as well
            head = heads.LogisticRegression(C=STRENGTH, max_iter=200).fit((x[kept] - mean) / deviation, labels[kept])
        found[left] = head.predict_proba((x[left] - mean) / deviation)
        progress("checking labels", done, folds)
    return found


def suspects(
    pictures: Sequence[Picture], labels: NDArray[np.int32], probabilities: NDArray[np.float64], classes: Sequence[str]
) -> tuple[Suspect, ...]:
    """Return the images with label issues, worst first; `probabilities` [N, K] are out-of-fold.

    Raises `MissingExtraError` without cleanlab.
    """
    find_label_issues = require("cleanlab.filter", PURPOSE).find_label_issues
    get_label_quality_scores = require("cleanlab.rank", PURPOSE).get_label_quality_scores
    given = labels.astype(np.int64)
    order = find_label_issues(given, probabilities, return_indices_ranked_by="normalized_margin", n_jobs=1)
    quality = get_label_quality_scores(given, probabilities, method="normalized_margin")
    found = []
    for i in map(int, order):
        to = int(probabilities[i].argmax())
        if to != given[i]:
            p = pictures[i]
            found.append(
                Suspect(p.path, p.sha256, p.label, classes[to], float(quality[i]), float(probabilities[i, to]))
            )
    return tuple(found)
