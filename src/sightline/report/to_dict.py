"""Values as plain dicts: the only place that defines the keys of ``--format json`` and of files."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sightline import metrics
from sightline.data.types import MissingImages, TrainingOverlap
from sightline.evaluation.results import ClassMetrics, EvaluationResult, LeakedImages, Metric
from sightline.explain.explanation import Explanation
from sightline.inference.results import Prediction
from sightline.intervals import Interval
from sightline.training.result import SplitMetrics, TrainResult


def evaluation_to_dict(value: EvaluationResult) -> dict[str, Any]:
    """Return the metrics of an evaluation, without its arrays."""
    return {
        "accuracy": value.accuracy,
        "accuracy_interval": [value.accuracy_interval.low, value.accuracy_interval.high],
        "loss": value.loss,
        "count": value.count,
        "classes": list(value.classes),
        "untested_classes": list(value.untested_classes),
        "per_class": [_class_to_dict(c) for c in value.per_class],
        "confusion": value.confusion.tolist(),
        "rejects": [{"path": r.path, "reason": r.reason} for r in value.unreadable],
        "seconds": value.seconds,
        "metrics": {name: metric_to_dict(f) for name, f in value.metrics.items()},
        "worst_pairs": [
            {"label": value.classes[i], "answer": value.classes[j], "count": count}
            for i, j, count in metrics.most_confused_pairs(value.confusion)
        ],
        "leaked": leakage_to_dict(value.leaked),
        "missing": missing_to_dict(value.missing),
        "added": value.added,
        "training_images": overlap_to_dict(value.overlap),
    }


def leakage_to_dict(value: LeakedImages | None) -> dict[str, Any] | None:
    """Return which evaluated images are in an earlier split too, and the metrics without them."""
    if value is None:
        return None
    counts = {"count": len(value.paths), "identical": value.identical, "near": value.near, "images": list(value.paths)}
    other = value.without_leaked
    if other is None:
        return counts | {"without": None}
    return counts | {
        "without": headline_to_dict(other) | {"metrics": {n: metric_to_dict(f) for n, f in other.metrics.items()}}
    }


def headline_to_dict(value: EvaluationResult) -> dict[str, Any]:
    """Return the few metrics of an evaluation that a run and a bundle keep of each split."""
    metrics_of = {
        "accuracy": value.accuracy,
        "accuracy_interval": interval_to_list(value.accuracy_interval),
        "loss": value.loss,
        "count": value.count,
        "untested_classes": list(value.untested_classes),
    }
    if value.leaked is None:
        return metrics_of
    leaked, other = value.leaked, value.leaked.without_leaked
    counts = {"count": len(leaked.paths), "identical": leaked.identical, "near": leaked.near}
    return metrics_of | {"leaked": counts | {"without": None if other is None else headline_to_dict(other)}}


def missing_to_dict(value: MissingImages | None) -> dict[str, Any] | None:
    """Return how many of a run's own images were not evaluated since they are no longer as they were."""
    if value is None:
        return None
    return {
        "count": len(value.images),
        "changed": value.changed,
        "total": value.total,
        "images": list(value.images),
    }


def overlap_to_dict(value: TrainingOverlap | None) -> dict[str, Any] | None:
    """Return how many images from elsewhere the model was trained or validated on; None for a count not known."""
    if value is None:
        return None
    return {
        "included": value.included,
        "identical": None if value.identical is None else len(value.identical),
        "near": None if value.near is None else len(value.near),
        "images": [*(value.identical or ()), *(value.near or ())],
    }


def _class_to_dict(value: ClassMetrics) -> dict[str, Any]:
    return {
        "label": value.label,
        "precision": value.precision,
        "precision_interval": interval_to_list(value.precision_interval),
        "recall": value.recall,
        "recall_interval": interval_to_list(value.recall_interval),
        "f1": value.f1,
        "support": value.support,
    }


def metric_to_dict(value: Metric) -> dict[str, Any]:
    """Return a metric: its value, its interval as [low, high], each None where there is none, and why (`note`).

    `classes` is how many classes a mean over classes covers.
    """
    fields = {"value": value.value, "interval": interval_to_list(value.interval), "note": value.note}
    return fields if value.classes is None else fields | {"classes": value.classes}


def interval_to_list(value: Interval | None) -> list[float] | None:
    """Return an interval as [low, high]."""
    return None if value is None else [value.low, value.high]


def training_to_dict(value: TrainResult) -> dict[str, Any]:
    """Return the outcome of a training run."""

    def split_to_dict(metrics_of: SplitMetrics | None) -> dict[str, Any] | None:
        return None if metrics_of is None else asdict(metrics_of)

    return {
        "run": value.run,
        "bundle": value.bundle,
        "bundle_reason": value.bundle_reason,
        "recipe": value.recipe,
        "model": value.model,
        "parameters": value.parameters,
        "classes": list(value.classes),
        "train": asdict(value.train),
        "validation": split_to_dict(value.validation),
        "test": split_to_dict(value.test),
        "epochs": value.epochs,
        "seconds": value.seconds,
        "images_per_second": value.images_per_second,
        "weights_sha256": value.weights_sha256,
        "notes": list(value.notes),
        **value.details,
    }


def prediction_to_dict(value: Prediction) -> dict[str, Any]:
    """Return one line of ``predict --format json``."""
    if value.error is not None:
        return {"path": value.path, "error": value.error}
    return {
        "path": value.path,
        "label": value.label,
        "probability": value.probability,
        "top": [asdict(c) for c in value.top],
        **({} if value.decision is None else asdict(value.decision)),
    }


def explanation_to_dict(value: Explanation) -> dict[str, Any]:
    """Return one line of ``explain --format json``; `region` is [left, top, right, bottom] in pixels of the image."""
    if value.error is not None:
        return {"path": value.path, "method": value.method, "error": value.error}
    region = value.region
    return {
        "path": value.path,
        "label": value.label,
        "probability": value.probability,
        "method": value.method,
        "figure": value.figure,
        "region": None if region is None else [region.left, region.top, region.right, region.bottom],
        "share": None if region is None else region.heat_fraction,
        "check": None if value.check is None else asdict(value.check),
    }
