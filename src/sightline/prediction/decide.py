"""When to trust an answer: `Thresholds` applied to what a network says of one picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

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
    is reached (or, without such a threshold, where the set holds one class); else "set" where the set holds some
    classes but not all; else "abstain". Sets list the most probable class first.
    """
    strange = energy(logits)
    held = None if thresholds.quantile is None else sets(probabilities, thresholds.quantile)
    return [
        _one(row, None if held is None else held[i], float(strange[i]), classes, thresholds)
        for i, row in enumerate(probabilities)
    ]


def _one(
    row: NDArray[np.float32], held: NDArray[np.bool_] | None, strange: float, classes: Sequence[str], at: Thresholds
) -> Decision:
    names = None if held is None else tuple(classes[j] for j in np.argsort(-row, kind="stable") if held[j])
    size = 0 if names is None else len(names)
    sure = size == 1 and at.target_precision is None  # a target that no confidence reaches is answered by no class
    if at.confidence is not None:
        sure = float(row.max()) >= at.confidence
    if not np.isfinite(row).all() or (at.ood_limit is not None and not strange <= at.ood_limit):
        return Decision("abstain", names, strange)
    if sure:
        return Decision("class", names, strange)
    return Decision("set" if 0 < size < len(classes) else "abstain", names, strange)
