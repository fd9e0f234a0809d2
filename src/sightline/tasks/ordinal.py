"""Ordinal classification: each image has one of several grades, which have an order."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.config import RunConfig
from sightline.data.targets import GRADES
from sightline.errors import UsageError
from sightline.evaluation.ordinal import compute_ordinal_evaluation
from sightline.inference import decisions
from sightline.inference.results import Prediction, Thresholds
from sightline.metrics import sigmoid
from sightline.models.head import make_ordinal_coefficients
from sightline.tasks.protocol import LossGradient, register_task
from sightline.tasks.single_label import SingleLabel


@register_task("ordinal")
class Ordinal(SingleLabel):
    """One of K grades for each image, learned as K - 1 decisions: is it above this grade, given that it is not below?

    This is CORN (Shi et al., 2021, arXiv:2111.08851). Its probabilities of the grades are products of those of the
    decisions, so for any weights they are valid, and a higher grade is never more likely to be exceeded than a lower
    one. Its loss, the sum of the decisions' cross-entropies, is the cross-entropy of the grades: everything except the
    head and the metrics is shared with single-label classification.
    """

    targets = GRADES
    activation = "ordinal"
    nonconformity = "contiguous"
    compute_result = staticmethod(compute_ordinal_evaluation)

    def check_settings(self, config: RunConfig) -> None:
        """Raise `UsageError` for settings that do not apply to grades."""
        if config.model.head != "softmax":
            raise UsageError(
                f"model.head is {config.model.head}, which is for single-label classification: leave it out, since "
                "model.task=ordinal has one sigmoid for each boundary between two grades."
            )
        super().check_settings(config)

    def count_units(self, num_classes: int) -> int:
        """Return the number of boundaries between grades."""
        return num_classes - 1

    def link_scores(self, scores: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Return the logits of the grades, float32 [N, K], from the scores of their boundaries [N, K - 1]."""
        z = scores.astype(np.float64)
        terms = np.concatenate([z, np.logaddexp(0, z)], 1)
        return (terms @ make_ordinal_coefficients(z.shape[1] + 1)).astype(np.float32)

    def differentiate_loss(self, logits: NDArray[np.float64], labels: NDArray[np.int32]) -> LossGradient:
        """Return the cross-entropy of the grades, and its gradient for the scores of their boundaries [n, K - 1]."""
        boundary = np.arange(logits.shape[1])
        exceeds, reached = boundary < labels[:, None], boundary <= labels[:, None]
        losses = np.where(reached, np.logaddexp(0, np.where(exceeds, -logits, logits)), 0).sum(1, keepdims=True)
        residuals = np.where(reached, sigmoid(logits) - exceeds, 0)
        return LossGradient(losses, residuals, (self.link_scores(logits).argmax(1) == labels).astype(np.float64))

    @staticmethod
    def interpret(
        path: str,
        probabilities: NDArray[np.float32],
        classes: tuple[str, ...],
        *,
        top: int,
        thresholds: Thresholds | None,
        ood_score: float | None,
    ) -> Prediction:
        """Return the most probable grade and the expected one."""
        prediction = decisions.predict_class(
            path, probabilities, classes, top=top, thresholds=thresholds, ood_score=ood_score
        )
        return decisions.add_expected_grade(prediction, probabilities, classes)
