"""Errors of label pairs: classes predicted together for an image that does not have both, and the reverse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

PairKind = Literal["true", "predicted", "wrong", "missed"]
PAIR_KINDS: tuple[PairKind, ...] = get_args(PairKind)
MAX_PAIRS = 20


@dataclass(frozen=True, slots=True)
class LabelPairErrors:
    """The numbers of images that have two classes together.

    `true` images have both classes. For `predicted` images both are predicted, for `wrong` of them although the image
    does not have both. `missed` images have both, but they are not both predicted.
    """

    first: str
    second: str
    true: int
    predicted: int
    wrong: int
    missed: int


def count_pair_errors(
    classes: Sequence[str], labels: NDArray[np.bool_], predicted: NDArray[np.bool_]
) -> tuple[LabelPairErrors, ...]:
    """Return the `MAX_PAIRS` pairs of classes with the most errors, most first; those without errors are left out.

    `labels` and `predicted` are bool [N, K].
    """
    true, chosen, right = (
        np.triu((of.T @ of).astype(np.int64), 1)  # float32 counts up to 16 million images exactly
        for of in (values.astype(np.float32) for values in (labels, predicted, labels & predicted))
    )
    errors = true + chosen - 2 * right
    positions = np.argsort(-errors, axis=None, kind="stable")[:MAX_PAIRS].tolist()
    return tuple(
        LabelPairErrors(
            classes[i], classes[j], int(true[i, j]), int(chosen[i, j]),
            int(chosen[i, j] - right[i, j]), int(true[i, j] - right[i, j]),
        )
        for i, j in (divmod(position, len(classes)) for position in positions)
        if errors[i, j]
    )  # fmt: skip


def select_pair(
    labels: NDArray[np.bool_], predicted: NDArray[np.bool_], pair: tuple[int, int], kind: PairKind
) -> NDArray[np.bool_]:
    """Return the images in one of the counts of `LabelPairErrors`, bool [N]; `pair` are the columns of its classes."""
    columns = list(pair)
    true, chosen = (np.asarray(of[:, columns].all(1), bool) for of in (labels, predicted))
    selected: NDArray[np.bool_] = {
        "true": true, "predicted": chosen, "wrong": chosen & ~true, "missed": true & ~chosen
    }[kind]  # fmt: skip
    return selected
