"""Selective and conformal prediction: apply `Thresholds` to the outputs of a network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sightline.data.class_tree import LEAST_PROBABILITY, ClassTree, build_tree
from sightline.errors import ModelError, list_some, plural
from sightline.inference.results import ClassProbability, Decision, DecisionKind, Nonconformity, Prediction, Thresholds


class Interpreter(Protocol):
    """Turns the outputs of a network for one image into its prediction."""

    def __call__(
        self,
        path: str,
        probabilities: NDArray[np.float32],
        classes: tuple[str, ...],
        *,
        top: int,
        thresholds: Thresholds | None,
        ood_score: float | None,
    ) -> Prediction:
        """Return the prediction for the image at `path`, from its probabilities float32 [K] and its `ood_score`.

        It contains the `top` most probable `classes`, and a decision if there are `thresholds`, which need the score.
        """


def compute_nonconformity(probabilities: NDArray[np.float32], score: Nonconformity = "lac") -> NDArray[np.float64]:
    """Return the nonconformity score of each class, float64 [N, K]: lower conforms better.

    It is one minus the probability ("lac": Sadinle et al., 2019, arXiv:1609.00451), but 0 for the most probable class,
    so that no set is empty. Adaptive scores, which sum the probabilities of all more probable classes (Romano et al.,
    2020), give the most confident images empty sets if the accuracy of a classifier exceeds the coverage.

    With "contiguous", a class between two more probable ones is treated as the less probable of the two, so that sets
    of ordered classes have no gaps.
    """
    p = probabilities.astype(np.float64)
    if score == "contiguous":
        p = np.minimum(np.maximum.accumulate(p, 1), np.maximum.accumulate(p[:, ::-1], 1)[:, ::-1])
    scores = 1 - p
    scores[np.arange(len(scores)), probabilities.argmax(1)] = 0
    return scores


def make_prediction_sets(
    probabilities: NDArray[np.float32], quantile: float, score: Nonconformity = "lac"
) -> NDArray[np.bool_]:
    """Return bool [N, K]: the classes in the conformal prediction set of each image."""
    in_sets: NDArray[np.bool_] = compute_nonconformity(probabilities, score) <= quantile
    return in_sets


def decide(
    probabilities: NDArray[np.float32], ood_scores: NDArray[np.float64], classes: Sequence[str], thresholds: Thresholds
) -> list[Decision]:
    """Return a `Decision` for each of N images, from float32 [N, K] probabilities and out-of-distribution scores [N].

    "abstain" if the score exceeds the out-of-distribution limit or an output is not finite; else "class" if the
    confidence threshold is reached, if there is none and the set has a single class, or if a threshold for the positive
    class gives the label; else "set" if the set has some but not all classes; else "abstain". Sets list the most
    probable class first.
    """
    in_sets = (
        None
        if thresholds.conformal_quantile is None
        else make_prediction_sets(probabilities, thresholds.conformal_quantile, thresholds.conformal)
    )
    return [
        _decide_one(row, None if in_sets is None else in_sets[i], float(ood_scores[i]), classes, thresholds)
        for i, row in enumerate(probabilities)
    ]


def decide_labels(ood_score: float, thresholds: Thresholds) -> Decision:
    """Return the `Decision` for an image that may have several labels.

    "abstain" if the score exceeds the out-of-distribution limit, else "labels".
    """
    is_ood = _is_ood(ood_score, thresholds)
    return Decision("abstain" if is_ood else "labels", None, ood_score, is_ood)


def predict_labels(
    probabilities: NDArray[np.float32], classes: Sequence[str], thresholds: Thresholds | None
) -> NDArray[np.int64]:
    """Return the index of the predicted class of each image, int64 [N], from float32 [N, K] probabilities.

    It is the most probable class, unless a threshold for the positive class of a binary model decides. Raises
    `ModelError` if the positive class is not one of two `classes`.
    """
    predicted: NDArray[np.int64] = probabilities.argmax(1).astype(np.int64)
    if thresholds is not None and thresholds.positive_threshold is not None:
        check_thresholds(thresholds, classes)
        positive_index = list(classes).index(str(thresholds.positive))
        is_positive = probabilities[:, positive_index].astype(np.float64) >= thresholds.positive_threshold
        predicted = np.where(is_positive, positive_index, 1 - positive_index).astype(np.int64)
    return predicted


def predict_class(
    path: str,
    probabilities: NDArray[np.float32],
    classes: tuple[str, ...],
    *,
    top: int,
    thresholds: Thresholds | None,
    ood_score: float | None,
) -> Prediction:
    """Return the prediction of one class: the `Interpreter` of single-label classification."""
    decision = None
    if thresholds is not None and ood_score is not None:
        decision = decide(probabilities[None], np.array([ood_score]), classes, thresholds)[0]
    order = np.argsort(-probabilities, kind="stable")
    first = predict_labels(probabilities[None], classes, thresholds)[0]
    top_indices = np.concatenate([[first], order[order != first]])[:top]
    candidates = tuple(ClassProbability(classes[i], float(probabilities[i])) for i in top_indices)
    return Prediction(path, candidates[0].label, candidates[0].probability, candidates, decision=decision)


def predict_nodes(
    probabilities: NDArray[np.float32],
    ood_scores: NDArray[np.float64] | None,
    tree: ClassTree,
    thresholds: Thresholds | None,
) -> NDArray[np.int64]:
    """Return the predicted node of the tree for each image, int64 [N]; -1 to abstain.

    It is the deepest node whose probability reaches the threshold or, without a threshold, exceeds one half. As in
    `decide`, the model abstains on out-of-distribution images and on outputs that are not finite.
    """
    if thresholds is None or (thresholds.confidence is None and thresholds.target_precision is None):
        limit = LEAST_PROBABILITY
    else:
        limit = np.inf if thresholds.confidence is None else thresholds.confidence
    nodes = tree.find_deepest_nodes(tree.sum_probabilities(probabilities), limit)
    known = np.isfinite(probabilities).all(1)
    if thresholds is not None and thresholds.ood_limit is not None and ood_scores is not None:
        known &= ood_scores <= thresholds.ood_limit
    return np.where(known, nodes, -1)


def predict_in_tree(
    path: str,
    probabilities: NDArray[np.float32],
    classes: tuple[str, ...],
    *,
    top: int,
    thresholds: Thresholds | None,
    ood_score: float | None,
) -> Prediction:
    """Return the prediction of a class in a tree: the `Interpreter` of hierarchical classification.

    `classes` are the leaves of the tree, named by their paths.
    """
    tree = build_tree(classes)
    prediction = predict_class(path, probabilities, classes, top=top, thresholds=None, ood_score=None)
    scores = None if ood_score is None else np.array([ood_score])
    node = int(predict_nodes(probabilities[None], scores, tree, thresholds)[0])
    sums = tree.sum_probabilities(probabilities[None])[0]
    above = dict.fromkeys(tree.ancestors[int(probabilities.argmax())].tolist())
    decision = None
    if thresholds is not None and ood_score is not None:
        kind: DecisionKind = "abstain" if node < 0 else "class" if tree.nodes[node] in classes else "ancestor"
        decision = Decision(kind, None, ood_score, _is_ood(ood_score, thresholds))
    return replace(
        prediction,
        decision=decision,
        node=None if node < 0 else tree.nodes[node],
        node_probability=None if node < 0 else float(sums[node]),
        levels=tuple(ClassProbability(tree.nodes[node], float(sums[node])) for node in above),
    )


def number_grades(classes: Sequence[str]) -> list[int]:
    """Return the number of each grade: from the names if they differ only in consecutive numbers, else from 0.

    >>> number_grades(["1", "2", "3"]), number_grades(["grade 1", "grade 2"]), number_grades(["light", "dark"])
    ([1, 2, 3], [1, 2], [0, 1])
    """
    matches = [re.fullmatch(r"(\D*)(\d+)(\D*)", name) for name in classes]
    numbers = [int(match[2]) for match in matches if match]
    words = {(match[1], match[3]) for match in matches if match}
    is_named = len(words) == 1 and ("-", "") not in words and numbers == [numbers[0] + i for i in range(len(classes))]
    return numbers if is_named else list(range(len(classes)))


def add_expected_grade(
    prediction: Prediction, probabilities: NDArray[np.float32], classes: Sequence[str]
) -> Prediction:
    """Return the prediction with its expected grade under `probabilities` float32 [K], if they are finite."""
    if not np.isfinite(probabilities).all():
        return prediction
    return replace(prediction, expected_grade=float(compute_expected_grades(probabilities, classes)))


def compute_expected_grades(probabilities: NDArray[np.float32], classes: Sequence[str]) -> NDArray[np.float64]:
    """Return the mean of the grades weighted by their probabilities: float64 [N], or [] for one image.

    >>> compute_expected_grades(np.array([[0.5, 0.25, 0.25]], np.float32), ("1", "2", "3")).tolist()
    [1.75]
    """
    return np.asarray(probabilities.astype(np.float64) @ np.array(number_grades(classes)))


def check_thresholds(thresholds: Thresholds, classes: Sequence[str]) -> None:
    """Raise `ModelError` if `thresholds` do not fit these classes."""
    if thresholds.positive is not None and (len(classes) != 2 or thresholds.positive not in classes):
        raise ModelError(
            f"its thresholds are for the detection of {thresholds.positive!r}, expected one of the two classes of the "
            f"model; it has {len(classes)}: {list_some(classes, 8)}"
        )
    for limits in (thresholds.labels, thresholds.absent):
        if limits is not None and set(limits) != set(classes):
            other = min(set(limits) ^ set(classes))
            raise ModelError(
                f"its thresholds are for {plural(len(limits), 'class', 'classes')}, expected the {len(classes)} of the "
                f"model: only one of the two has {other!r}"
            )


def _is_ood(ood_score: float, thresholds: Thresholds) -> bool:
    return thresholds.ood_limit is not None and not ood_score <= thresholds.ood_limit


def _decide_one(
    row: NDArray[np.float32],
    in_set: NDArray[np.bool_] | None,
    ood_score: float,
    classes: Sequence[str],
    thresholds: Thresholds,
) -> Decision:
    names = None if in_set is None else tuple(classes[j] for j in np.argsort(-row, kind="stable") if in_set[j])
    size = 0 if names is None else len(names)
    # no class if the target precision is set but no confidence reaches it
    is_confident = size == 1 and thresholds.target_precision is None
    if thresholds.positive_threshold is not None:
        is_confident = True
    elif thresholds.confidence is not None:
        is_confident = float(row.max()) >= thresholds.confidence
    is_ood = _is_ood(ood_score, thresholds)
    if is_ood or not np.isfinite(row).all():
        return Decision("abstain", names, ood_score, is_ood)
    if is_confident:
        return Decision("class", names, ood_score)
    return Decision("set" if 0 < size < len(classes) else "abstain", names, ood_score)
