"""Selective and conformal prediction: apply `Thresholds` to the outputs of a network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sightline.errors import ModelError
from sightline.records import Decision, Thresholds


def energy(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the energy -log sum exp(logits), float64 [N]: higher for out-of-distribution images.

    Source: Liu et al., 2020, arXiv:2010.03759.
    """
    x = logits.astype(np.float64)
    top = x.max(1)
    found: NDArray[np.float64] = -(top + np.log(np.exp(x - top[:, None]).sum(1)))
    return found


def conformity(probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the nonconformity score of each class, float64 [N, K]: lower conforms better.

    It is one minus the probability ("lac": Sadinle et al., 2019, arXiv:1609.00451), but 0 for the most probable class,
    so that no set is empty. Adaptive scores, which sum the probabilities of all more probable classes (Romano et al.,
    2020), give the most confident images empty sets if the accuracy of a classifier exceeds the coverage.
    """
    found = 1 - probabilities.astype(np.float64)
    found[np.arange(len(found)), probabilities.argmax(1)] = 0
    return found


def sets(probabilities: NDArray[np.float32], quantile: float) -> NDArray[np.bool_]:
    """Return bool [N, K]: the classes in the conformal prediction set of each image."""
    found: NDArray[np.bool_] = conformity(probabilities) <= quantile
    return found


def decide(
    probabilities: NDArray[np.float32], logits: NDArray[np.float32], classes: Sequence[str], thresholds: Thresholds
) -> list[Decision]:
    """Return a `Decision` for each of N images, from float32 [N, K] probabilities and logits.

    "abstain" if the energy exceeds the out-of-distribution limit or an output is not finite; else "class" if the
    confidence threshold is reached, if there is none and the set has a single class, or if a threshold for the positive
    class gives the label; else "set" if the set has some but not all classes; else "abstain". Sets list the most
    probable class first.
    """
    strange = energy(logits)
    held = None if thresholds.quantile is None else sets(probabilities, thresholds.quantile)
    return [
        _one(row, None if held is None else held[i], float(strange[i]), classes, thresholds)
        for i, row in enumerate(probabilities)
    ]


def labels(
    probabilities: NDArray[np.float32], classes: Sequence[str], thresholds: Thresholds | None
) -> NDArray[np.int64]:
    """Return the index of the predicted class of each image, int64 [N], from float32 [N, K] probabilities.

    It is the most probable class, unless a threshold for the positive one of two classes decides. Raises `ModelError`
    if the positive class is not one of two `classes`.
    """
    predicted: NDArray[np.int64] = probabilities.argmax(1).astype(np.int64)
    if thresholds is not None and thresholds.positive_threshold is not None:
        check(thresholds, classes)
        k = list(classes).index(str(thresholds.positive))
        is_positive = probabilities[:, k].astype(np.float64) >= thresholds.positive_threshold
        predicted = np.where(is_positive, k, 1 - k).astype(np.int64)
    return predicted


def check(thresholds: Thresholds, classes: Sequence[str]) -> None:
    """Raise `ModelError` if `thresholds` are not for these classes."""
    if thresholds.positive is not None and (len(classes) != 2 or thresholds.positive not in classes):
        raise ModelError(
            f"its thresholds are for the detection of {thresholds.positive!r}, expected one of the two classes of the "
            f"model; it has {len(classes)}: {', '.join(classes[:8])}"
        )


def _one(
    row: NDArray[np.float32], held: NDArray[np.bool_] | None, strange: float, classes: Sequence[str], at: Thresholds
) -> Decision:
    names = None if held is None else tuple(classes[j] for j in np.argsort(-row, kind="stable") if held[j])
    size = 0 if names is None else len(names)
    sure = size == 1 and at.target_precision is None  # if no confidence reaches the target, never a class
    if at.positive_threshold is not None:
        sure = True
    elif at.confidence is not None:
        sure = float(row.max()) >= at.confidence
    if not np.isfinite(row).all() or (at.ood_limit is not None and not strange <= at.ood_limit):
        return Decision("abstain", names, strange)
    if sure:
        return Decision("class", names, strange)
    return Decision("set" if 0 < size < len(classes) else "abstain", names, strange)
