"""Validation of ``predictions.npz``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.evaluation.results import LabeledPredictions


def parse_predictions(arrays: Mapping[str, NDArray[Any]]) -> LabeledPredictions:
    """Build `LabeledPredictions` from the arrays of ``predictions.npz``; raises `KeyError` or `ValueError`."""
    paths, labels, probabilities, classes = (arrays[n] for n in ("paths", "labels", "probabilities", "classes"))
    has_several = labels.ndim == 2
    kind_of_labels = ("labels", labels, "b", 2) if has_several else ("labels", labels, "i", 1)
    expected_arrays = (("paths", paths, "U", 1), kind_of_labels, ("probabilities", probabilities, "f", 2))
    for name, array, kind, ndim in (*expected_arrays, ("classes", classes, "U", 1)):
        if array.dtype.kind != kind or array.ndim != ndim:
            raise ValueError(f"{name} has the wrong type or shape: {array.dtype} {list(array.shape)}")
    if not len(paths) == len(labels) == len(probabilities) or probabilities.shape[1] != len(classes):
        raise ValueError(f"it has {len(paths)} paths, {len(labels)} labels, probabilities {list(probabilities.shape)}")
    if has_several and labels.shape != probabilities.shape:
        raise ValueError(f"it has labels {list(labels.shape)} and probabilities {list(probabilities.shape)}")
    if not has_several and len(labels) and not (labels.min() >= 0 and labels.max() < len(classes)):
        raise ValueError(f"its labels are not between 0 and the number of classes, {len(classes)}")
    if not np.isfinite(probabilities).all():
        raise ValueError("its probabilities are not finite")
    return LabeledPredictions(tuple(paths.tolist()), labels, probabilities, tuple(classes.tolist()))
