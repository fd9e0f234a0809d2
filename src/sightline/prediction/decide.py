"""When to trust an answer: `Thresholds` applied to what a network says of one picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sightline.errors import ModelError
from sightline.records import Decision, Thresholds


def energy(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return -log sum exp(logits), float64 [N]: the higher, the stranger (Liu et al., 2020, arXiv:2010.03759)."""
    x = logits.astype(np.float64)
    top = x.max(1)
    found: NDArray[np.float64] = -(top + np.log(np.exp(x - top[:, None]).sum(1)))
    return found


def conformity(probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return each class's conformal score, float64 [N, K]: the higher, the less it fits.

    One less its probability ("lac": Sadinle et al., 2019, arXiv:1609.00451), but 0 for the most probable class, so that
    no set is ever empty. Adaptive scores, which add up the probabilities of all classes that are more probable (Romano
    et al., 2020), leave the surest pictures with empty sets wherever a classifier is right more often than is asked.
    """
    found = 1 - probabilities.astype(np.float64)
    found[np.arange(len(found)), probabilities.argmax(1)] = 0
    return found


def sets(probabilities: NDArray[np.float32], quantile: float) -> NDArray[np.bool_]:
    """Return bool [N, K]: which classes the conformal set of each picture holds."""
    found: NDArray[np.bool_] = conformity(probabilities) <= quantile
    return found


def decide(
    probabilities: NDArray[np.float32], logits: NDArray[np.float32], classes: Sequence[str], thresholds: Thresholds
) -> list[Decision]:
    """Return a `Decision` for each of N pictures, from float32 [N, K] probabilities and logits.

    "abstain" where the picture is stranger than the limit or something is no number; else "class" where the confidence
    is reached, where no confidence is asked for and the set holds one class, or where a threshold for the positive
    class gives the label; else "set" where the set holds some classes but not all; else "abstain". Sets list the most
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
    """Return the number of the predicted class of each image, int64 [N], from float32 [N, K] probabilities.

    It is the most probable class, unless a threshold for the positive one of two classes decides. Raises `ModelError`
    where the positive class is not one of two `classes`.
    """
    predicted: NDArray[np.int64] = probabilities.argmax(1).astype(np.int64)
    if thresholds is not None and thresholds.positive_threshold is not None:
        check(thresholds, classes)
        k = list(classes).index(str(thresholds.positive))
        is_positive = probabilities[:, k].astype(np.float64) >= thresholds.positive_threshold
        predicted = np.where(is_positive, k, 1 - k).astype(np.int64)
    return predicted


def check(thresholds: Thresholds, classes: Sequence[str]) -> None:
    """Raise `ModelError` where `thresholds` are not for these classes."""
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
    sure = size == 1 and at.target_precision is None  # a target that no confidence reaches is answered by no class
    if at.positive_threshold is not None:
        sure = True
    elif at.confidence is not None:
        sure = float(row.max()) >= at.confidence
    if not np.isfinite(row).all() or (at.ood_limit is not None and not strange <= at.ood_limit):
        return Decision("abstain", names, strange)
    if sure:
        return Decision("class", names, strange)
    return Decision("set" if 0 < size < len(classes) else "abstain", names, strange)
