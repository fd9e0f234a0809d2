"""The predictions to look at: most confident errors, least confident correct ones, and the most confused pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline import metrics
from sightline.records import Evaluation

MOST = 12  # predictions of each kind
PAIRS, EACH = 5, 4


@dataclass(frozen=True, slots=True)
class Answer:
    """Image number `at` of the evaluation: true class `label`, predicted class `answer`, and its probability."""

    at: int
    path: str
    label: str
    answer: str
    probability: float


@dataclass(frozen=True, slots=True)
class Pair:
    """`count` images of class `label`, a fraction `share` of it, are classified as `answer`; the most confident."""

    label: str
    answer: str
    count: int
    share: float
    examples: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Mistakes:
    """The most confident errors, the least confident correct predictions, and the most confused pairs of classes."""

    wrong: tuple[Answer, ...]
    unsure: tuple[Answer, ...]
    pairs: tuple[Pair, ...]


def mistakes(found: Evaluation, most: int = MOST) -> Mistakes:
    """Return the predictions of an evaluation that are worth looking at."""
    answers = found.probabilities.argmax(1)
    sure = found.probabilities.max(1) if len(answers) else np.zeros(0, np.float32)
    order = np.argsort(-sure, kind="stable")
    wrong, right = order[answers[order] != found.labels[order]], order[answers[order] == found.labels[order]][::-1]

    def pick(at: NDArray[np.int64], count: int) -> tuple[Answer, ...]:
        return tuple(
            Answer(
                int(i), found.paths[i], found.classes[found.labels[i]], found.classes[answers[i]], float(sure[i])
            )
            for i in at[:count]
        )  # fmt: skip

    pairs = [
        Pair(
            found.classes[true], found.classes[given], count, count / int(found.confusion[true].sum()),
            pick(wrong[(found.labels[wrong] == true) & (answers[wrong] == given)], EACH),
        )
        for true, given, count in metrics.worst_pairs(found.confusion, PAIRS)
    ]  # fmt: skip
    return Mistakes(pick(wrong, most), pick(right, most), tuple(pairs))
