"""The predictions to look at: most confident errors, least confident correct ones, and the most confused pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import jsonio, metrics
from sightline.evaluation.results import EvaluationResult

MAX_EXAMPLES = 12  # predictions of each kind
MAX_PAIRS, EXAMPLES_PER_PAIR = 5, 4


@dataclass(frozen=True, slots=True)
class ErrorExample:
    """Image number `index` of the evaluation: true class `label`, predicted class `predicted`, and its probability.

    `expected_grade` is only set by a model of grades.
    """

    index: int
    path: str
    label: str
    predicted: str
    probability: float
    expected_grade: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields except the number of the image as JSON values."""
        without_grade = [] if self.expected_grade is not None else ["expected_grade"]
        return jsonio.fields_to_dict(self, skip=["index", *without_grade])


@dataclass(frozen=True, slots=True)
class ConfusedPair:
    """`count` images of class `label`, a fraction `fraction` of it, are classified as `predicted`.

    `examples` are the most confident of them.
    """

    label: str
    predicted: str
    count: int
    fraction: float
    examples: tuple[ErrorExample, ...]


@dataclass(frozen=True, slots=True)
class ErrorAnalysis:
    """The most confident of `count` errors, the least confident correct predictions, and the most confused classes."""

    count: int
    most_confident_errors: tuple[ErrorExample, ...]
    least_confident_correct: tuple[ErrorExample, ...]
    confused_pairs: tuple[ConfusedPair, ...]


def analyze_errors(evaluation: EvaluationResult) -> ErrorAnalysis:
    """Return the predictions of an evaluation that are worth looking at."""
    predictions = evaluation.probabilities.argmax(1)
    confidences = evaluation.probabilities.max(1) if len(predictions) else np.zeros(0, np.float32)
    order = np.argsort(-confidences, kind="stable")
    wrong, right = (
        order[predictions[order] != evaluation.labels[order]],
        order[predictions[order] == evaluation.labels[order]][::-1],
    )

    grades = evaluation.expected_grades

    def pick(at: NDArray[np.int64], count: int) -> tuple[ErrorExample, ...]:
        return tuple(
            ErrorExample(
                int(i), evaluation.paths[i], evaluation.classes[evaluation.labels[i]],
                evaluation.classes[predictions[i]], float(confidences[i]), None if grades is None else float(grades[i]),
            )
            for i in at[:count]
        )  # fmt: skip

    pairs = [
        ConfusedPair(
            evaluation.classes[true], evaluation.classes[predicted], count,
            count / int(evaluation.confusion[true].sum()),
            pick(wrong[(evaluation.labels[wrong] == true) & (predictions[wrong] == predicted)], EXAMPLES_PER_PAIR),
        )
        for true, predicted, count in metrics.most_confused_pairs(evaluation.confusion, MAX_PAIRS)
    ]  # fmt: skip
    return ErrorAnalysis(len(wrong), pick(wrong, MAX_EXAMPLES), pick(right, MAX_EXAMPLES), tuple(pairs))
