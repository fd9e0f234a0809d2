"""Hierarchical classification: each image belongs to one class, and the classes are the leaves of a tree."""

from __future__ import annotations

from collections.abc import Sequence

from sightline.config import RunConfig
from sightline.data.targets import CLASS_PATHS
from sightline.data.types import LabeledSubset
from sightline.errors import UsageError
from sightline.evaluation import hierarchy
from sightline.evaluation.hierarchy import HierarchyReport
from sightline.inference import decisions
from sightline.inference.predictor import ModelOutputs
from sightline.inference.results import NO_THRESHOLDS, ThresholdRequest, Thresholds
from sightline.tasks.protocol import register_task
from sightline.tasks.single_label import SingleLabel


@register_task("hierarchical")
class Hierarchical(SingleLabel):
    """One class for each image, named by its path in a tree.

    The network is that of single-label classification, with a softmax over the leaves. The probability of a class above
    others is the sum of theirs.
    """

    targets = CLASS_PATHS
    sections = ("levels", *SingleLabel.sections)
    interpret = staticmethod(decisions.predict_in_tree)

    def check_settings(self, config: RunConfig) -> None:
        """Raise `UsageError` for settings of other tasks, and for targets that a tree does not have."""
        SingleLabel.check_settings(self, config)
        if config.evaluation.coverage is not None:
            raise UsageError(
                "evaluation.coverage is for single-label classification: a hierarchical model answers with a class "
                "above others in place of a set; set evaluation.target_precision."
            )
        if config.evaluation.positive_class:
            raise UsageError("evaluation.positive_class is for single-label classification: leave it out.")

    def check_request(self, request: ThresholdRequest, classes: Sequence[str]) -> None:
        """Raise `UsageError` for targets that a tree does not have, or outside (0, 1)."""
        if request.coverage is not None or request.rates or request.positive:
            raise UsageError(
                "--coverage, --positive, --target-sensitivity and --target-specificity are for single-label "
                "classification: a hierarchical model has --target-precision."
            )
        SingleLabel.check_request(self, request, classes)

    def fit_thresholds(
        self,
        classes: tuple[str, ...],
        outputs: ModelOutputs,
        request: ThresholdRequest = NO_THRESHOLDS,
        old: Thresholds | None = None,
    ) -> Thresholds | None:
        """Return the threshold of answers for the target precision, see `evaluation.hierarchy.choose_threshold`."""
        return hierarchy.fit_thresholds(classes, outputs, request, old) if request else old

    def evaluate(
        self,
        classes: tuple[str, ...],
        outputs: ModelOutputs,
        labeled: LabeledSubset,
        split: str,
        validation_outputs: ModelOutputs | None,
        thresholds: Thresholds | None = None,
        threshold_request: ThresholdRequest = NO_THRESHOLDS,
    ) -> HierarchyReport:
        """Return what single-label classification has, the accuracy at each level, and the answers at each depth."""
        return hierarchy.build_report(
            classes, outputs, labeled, split, validation_outputs, thresholds, threshold_request
        )
