"""Evaluation under data leakage: metrics with and without images that are also in an earlier split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sightline.data.types import LabeledSubset, Subset
from sightline.evaluation.results import LeakedImages, TaskResult

R = TypeVar("R", bound=TaskResult)


def add_leakage(
    evaluation: R, labeled: LabeledSubset, evaluate: Callable[[NDArray[np.float32], Subset], TaskResult]
) -> R:
    """Return an evaluation of `labeled` with its leakage, missing images and overlap with the training images.

    `evaluate` returns the evaluation of the probabilities of some of these images.
    """
    return replace(
        evaluation,
        leaked=_evaluate_without_leaked(evaluation, labeled, evaluate),
        missing=labeled.missing,
        added=labeled.added,
        overlap=labeled.overlap,
    )


def _evaluate_without_leaked(
    evaluation: TaskResult, labeled: LabeledSubset, evaluate: Callable[[NDArray[np.float32], Subset], TaskResult]
) -> LeakedImages | None:
    kinds = [labeled.leaked.get(p.sha256) for p in labeled.images]
    if not any(kinds):
        return None
    clean = np.array([i for i, kind in enumerate(kinds) if kind is None], np.int64)
    without = evaluate(evaluation.probabilities[clean], labeled.subset.select(clean)) if len(clean) else None
    paths = tuple(p.path for p, kind in zip(labeled.images, kinds, strict=True) if kind)
    return LeakedImages(kinds.count("identical"), kinds.count("near_duplicates"), paths, without)
