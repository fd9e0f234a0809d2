"""Evaluation under data leakage: metrics with and without images that are in an earlier split too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sightline.evaluation.evaluate import figures
from sightline.records import Evaluation, Labelled, Leaked


def noted(evaluation: Evaluation, labelled: Labelled) -> Evaluation:
    """Return an evaluation of `labelled` with its leakage, missing images and overlap with the training images."""
    return replace(
        evaluation,
        leaked=_leaked(evaluation, labelled),
        missing=labelled.missing,
        added=labelled.added,
        overlap=labelled.overlap,
    )


def _leaked(evaluation: Evaluation, labelled: Labelled) -> Leaked | None:
    kinds = [labelled.leaked.get(p.sha256) for p in labelled.pictures]
    if not any(kinds):
        return None
    keep = np.array([i for i, kind in enumerate(kinds) if kind is None], np.int64)
    without = None
    if len(keep):
        without = figures(evaluation.classes, evaluation.probabilities[keep], labelled.samples.at(keep))
    paths = tuple(p.path for p, kind in zip(labelled.pictures, kinds, strict=True) if kind)
    return Leaked(kinds.count("identical"), kinds.count("near"), paths, without)
