"""The arrays of ``predictions.npz``: the values stored for each image, and their validation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.evaluation.results import LabeledPredictions
from sightline.evaluation.segmentation_metrics import MaskScores


def list_image_values(report: object) -> dict[str, NDArray[Any]]:
    """Return the arrays of a report that ``predictions.npz`` stores besides the predictions; empty for other tasks."""
    from sightline.evaluation.multi_label import MultiLabelReport
    from sightline.evaluation.report import EvaluationReport
    from sightline.evaluation.segmentation import SegmentationReport

    if isinstance(report, SegmentationReport):
        result = report.evaluation
        return MaskScores.from_confusions(result.confusions, result.quality).to_arrays()
    if not isinstance(report, EvaluationReport | MultiLabelReport) or report.energies is None:
        return {}
    masks = report.slice_masks if isinstance(report, EvaluationReport) else {}
    return {
        "energies": report.energies,
        "slice_names": np.array([*masks], dtype=np.str_),
        "slice_masks": np.array([*masks.values()], dtype=np.bool_).reshape(len(masks), len(report.energies)),
    }


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
    return LabeledPredictions(
        tuple(paths.tolist()), labels, probabilities, tuple(classes.tolist()), *_parse_image_values(arrays, len(paths)),
        MaskScores.from_arrays(arrays, len(paths), len(classes)),
    )  # fmt: skip


def _parse_image_values(
    arrays: Mapping[str, NDArray[Any]], count: int
) -> tuple[NDArray[np.float64] | None, dict[str, NDArray[np.bool_]]]:
    """Return the energies and the slices of `count` images; None and an empty dict if there are no energies."""
    if "energies" not in arrays:
        return None, {}
    energies, names, masks = (arrays[name] for name in ("energies", "slice_names", "slice_masks"))
    kinds = energies.dtype.kind + names.dtype.kind + masks.dtype.kind
    if kinds != "fUb" or names.ndim != 1 or energies.shape != (count,) or masks.shape != (len(names), count):
        shapes = f"{list(energies.shape)}, {list(names.shape)} and {list(masks.shape)}"
        raise ValueError(f"energies, slice_names and slice_masks have the wrong types or shapes: {shapes}")
    return energies, dict(zip(names.tolist(), masks, strict=True))
