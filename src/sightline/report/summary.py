"""Values as plain dicts: the only place that defines the keys of ``--json`` and of files."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sightline import metrics
from sightline.explanation.result import Explanation
from sightline.records import (
    ClassFigures,
    Evaluation,
    Figure,
    Interval,
    Leaked,
    Missing,
    Overlap,
    PartFigures,
    Prediction,
    TrainResult,
)


def evaluation(value: Evaluation) -> dict[str, Any]:
    """Return the metrics of an evaluation, without its arrays."""
    return {
        "accuracy": value.accuracy,
        "accuracy_interval": [value.accuracy_interval.low, value.accuracy_interval.high],
        "loss": value.loss,
        "count": value.count,
        "classes": list(value.classes),
        "untested_classes": list(value.untested),
        "per_class": [_of_class(c) for c in value.per_class],
        "confusion": value.confusion.tolist(),
        "rejects": [{"path": r.path, "reason": r.reason} for r in value.rejects],
        "seconds": value.seconds,
        "figures": {name: figure(f) for name, f in value.figures.items()},
        "worst_pairs": [
            {"label": value.classes[i], "answer": value.classes[j], "count": count}
            for i, j, count in metrics.worst_pairs(value.confusion)
        ],
        "leaked": leaked(value.leaked),
        "missing": missing(value.missing),
        "added": value.added,
        "training_images": overlap(value.overlap),
    }


def leaked(value: Leaked | None) -> dict[str, Any] | None:
    """Return which evaluated images are in an earlier split too, and the metrics without them."""
    if value is None:
        return None
    counts = {"count": len(value.paths), "identical": value.identical, "near": value.near, "images": list(value.paths)}
    other = value.without
    if other is None:
        return counts | {"without": None}
    return counts | {"without": headline(other) | {"figures": {n: figure(f) for n, f in other.figures.items()}}}


def headline(value: Evaluation) -> dict[str, Any]:
    """Return the few metrics of an evaluation that a run and a bundle keep of each split."""
    metrics_of = {
        "accuracy": value.accuracy,
        "accuracy_interval": interval(value.accuracy_interval),
        "loss": value.loss,
        "count": value.count,
        "untested_classes": list(value.untested),
    }
    if value.leaked is None:
        return metrics_of
    leaked, other = value.leaked, value.leaked.without
    counts = {"count": len(leaked.paths), "identical": leaked.identical, "near": leaked.near}
    return metrics_of | {"leaked": counts | {"without": None if other is None else headline(other)}}


def missing(value: Missing | None) -> dict[str, Any] | None:
    """Return how many of a run's own images were not evaluated since they are no longer as they were."""
    if value is None:
        return None
    return {
        "count": len(value.images),
        "changed": value.changed,
        "total": value.total,
        "images": list(value.images),
    }


def overlap(value: Overlap | None) -> dict[str, Any] | None:
    """Return how many images from elsewhere the model was trained or validated on; None for a count not known."""
    if value is None:
        return None
    return {
        "included": value.included,
        "identical": None if value.identical is None else len(value.identical),
        "near": None if value.near is None else len(value.near),
        "images": [*(value.identical or ()), *(value.near or ())],
    }


def _of_class(value: ClassFigures) -> dict[str, Any]:
    return {
        "label": value.label,
        "precision": value.precision,
        "precision_interval": interval(value.precision_interval),
        "recall": value.recall,
        "recall_interval": interval(value.recall_interval),
        "f1": value.f1,
        "support": value.support,
    }


def figure(value: Figure) -> dict[str, Any]:
    """Return a metric: its value, its interval as [low, high], each None where there is none, and why (`note`).

    `classes` is how many classes a mean over classes covers.
    """
    found = {"value": value.value, "interval": interval(value.interval), "note": value.note}
    return found if value.classes is None else found | {"classes": value.classes}


def interval(value: Interval | None) -> list[float] | None:
    """Return an interval as [low, high]."""
    return None if value is None else [value.low, value.high]


def training(value: TrainResult) -> dict[str, Any]:
    """Return the outcome of a training run."""

    def part(metrics_of: PartFigures | None) -> dict[str, Any] | None:
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
        "validation": part(value.validation),
        "test": part(value.test),
        "epochs": value.epochs,
        "seconds": value.seconds,
        "images_per_second": value.images_per_second,
        "weights_sha256": value.weights_sha256,
        "notes": list(value.notes),
        **value.details,
    }


def prediction(value: Prediction) -> dict[str, Any]:
    """Return one line of ``predict --json``."""
    if value.error is not None:
        return {"path": value.path, "error": value.error}
    return {
        "path": value.path,
        "label": value.label,
        "probability": value.probability,
        "top": [asdict(c) for c in value.top],
        **({} if value.decision is None else asdict(value.decision)),
    }


def explanation(value: Explanation) -> dict[str, Any]:
    """Return one line of ``explain --json``; `region` is [left, top, right, bottom] in pixels of the image."""
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
        "share": None if region is None else region.share,
        "check": None if value.check is None else asdict(value.check),
    }
