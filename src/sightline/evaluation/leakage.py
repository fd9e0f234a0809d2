"""Evaluation under data leakage: metrics with and without images that are in an earlier split too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sightline.data.types import LabeledSubset
from sightline.evaluation.evaluator import compute_evaluation
from sightline.evaluation.results import EvaluationResult, LeakedImages


def add_leakage(evaluation: EvaluationResult, labeled: LabeledSubset) -> EvaluationResult:
    """Return an evaluation of `labeled` with its leakage, missing images and overlap with the training images."""
    return replace(
        evaluation,
        leaked=_evaluate_without_leaked(evaluation, labeled),
        missing=labeled.missing,
        added=labeled.added,
        overlap=labeled.overlap,
    )


def _evaluate_without_leaked(evaluation: EvaluationResult, labeled: LabeledSubset) -> LeakedImages | None:
    kinds = [labeled.leaked.get(p.sha256) for p in labeled.images]
    if not any(kinds):
        return None
    clean = np.array([i for i, kind in enumerate(kinds) if kind is None], np.int64)
    without = None
    if len(clean):
        without = compute_evaluation(evaluation.classes, evaluation.probabilities[clean], labeled.subset.select(clean))
    paths = tuple(p.path for p, kind in zip(labeled.images, kinds, strict=True) if kind)
    return LeakedImages(kinds.count("identical"), kinds.count("near_duplicates"), paths, without)
