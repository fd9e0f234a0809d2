"""An evaluation report as a plain dict: what ``evaluate --json`` and ``metrics.json`` hold besides the metrics."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from sightline.evaluation.abstain import Reached, Selective, Threshold
from sightline.evaluation.binary import Binary, OperatingPoint, Rates
from sightline.evaluation.binary import Curve as DetectionCurve
from sightline.evaluation.calibration import Bin
from sightline.evaluation.conformal import Coverage
from sightline.evaluation.judgement import Answered, Calibration, Judgement
from sightline.evaluation.mistakes import Answer, Mistakes
from sightline.evaluation.shift import Shift
from sightline.evaluation.slices import Slice
from sightline.report.summary import figure, interval

POINTS = 101  # of the risk-coverage curve
CURVE = 501  # of the ROC and the precision-recall curve


def judgement(value: Judgement) -> dict[str, Any]:
    """Return all but the evaluation's own figures, as JSON values."""
    return {
        "part": value.part,
        "calibration": _calibration(value.calibration),
        "risk_coverage": _curve(value),
        "thresholds": None if value.thresholds is None else value.thresholds.to_dict(),
        "threshold": None if value.threshold is None else _proportion(value.threshold),
        "selective": None if value.selective is None else _selective(value.selective),
        "answered": None if value.answered is None else _proportion(value.answered),
        "coverage": None if value.coverage is None else _proportion(value.coverage),
        "strangers": None if value.strangers is None else asdict(value.strangers),
        "binary": None if value.binary is None else _binary(value.binary),
        "validation": None if value.shift is None else _shift(value.shift),
        "mistakes": _mistakes(value.mistakes),
        "slices": [_slice(s) for s in value.slices],
    }


def _calibration(value: Calibration) -> dict[str, Any]:
    bins: dict[str, list[Bin]] = {"bins": list(value.bins), "bins_after": list(value.bins_after)}
    return {
        "ece": value.ece,
        "ece_after": value.ece_after,
        "temperature": None if value.temperature is None else asdict(value.temperature),
        **{name: [asdict(b) for b in found] for name, found in bins.items()},
        "note": value.note,
    }


def _curve(value: Judgement) -> dict[str, Any]:
    at = np.unique(np.linspace(0, len(value.curve.risk) - 1, POINTS).astype(int))
    return {
        "aurc": value.curve.aurc,
        "coverage": value.curve.coverage[at].tolist(),
        "risk": value.curve.risk[at].tolist(),
    }


def _proportion(value: Threshold | Answered | Coverage | Reached) -> dict[str, Any]:
    return asdict(value) | {"interval": interval(value.interval)}


def _selective(value: Selective) -> dict[str, Any]:
    return {
        "threshold": _proportion(value.threshold),
        "reached": None if value.reached is None else _proportion(value.reached),
    }


def _binary(value: Binary) -> dict[str, Any]:
    return {
        "positive": value.positive,
        "negative": value.negative,
        "rule": value.rule,
        "positives": value.positives,
        "negatives": value.negatives,
        **_rates(value.rates),
        "auroc": figure(value.auroc),
        "average_precision": figure(value.average_precision),
        "roc": _points(value.roc, "false_positive_rate", "sensitivity"),
        "precision_recall": _points(value.precision_recall, "recall", "precision"),
        "operating_points": [_operating_point(p) for p in value.operating_points],
        "usual_points": [_operating_point(p) for p in value.usual_points],
    }


def _rates(value: Rates) -> dict[str, Any]:
    rates = {name: figure(getattr(value, name)) for name in ("sensitivity", "specificity", "ppv", "npv")}
    return {"threshold": value.threshold} | rates


def _points(value: DetectionCurve, x: str, y: str) -> dict[str, Any]:
    """Return at most `CURVE` points of a curve, both ends among them; a threshold above all scores is null."""
    at = np.unique(np.linspace(0, len(value.x) - 1, CURVE).astype(int)) if len(value.x) else np.zeros(0, int)
    thresholds = [t if np.isfinite(t) else None for t in value.threshold[at].tolist()]
    return {x: value.x[at].tolist(), y: value.y[at].tolist(), "threshold": thresholds}


def _operating_point(value: OperatingPoint) -> dict[str, Any]:
    return asdict(value) | {"reached": None if value.reached is None else _rates(value.reached)}


def _shift(value: Shift) -> dict[str, Any]:
    return {
        "count": value.count,
        "accuracy": value.accuracy,
        "accuracy_interval": interval(value.accuracy_interval),
        "loss": value.loss,
        "ece": value.ece,
        "accuracy_difference": value.accuracy_difference,
        "accuracy_difference_interval": interval(value.interval),
        "accuracy_differs": value.accuracy_differs,
        "ece_difference": value.ece_difference,
        "ece_p_value": value.ece_p_value,
        "ece_differs": value.ece_differs,
    }


def _mistakes(value: Mistakes) -> dict[str, Any]:
    def answers(found: tuple[Answer, ...]) -> list[dict[str, Any]]:
        return [{key: v for key, v in asdict(a).items() if key != "at"} for a in found]

    pairs = [asdict(p) | {"examples": answers(p.examples)} for p in value.pairs]
    return {"wrong": answers(value.wrong), "unsure": answers(value.unsure), "pairs": pairs}


def _slice(value: Slice) -> dict[str, Any]:
    return asdict(value) | {"interval": interval(value.interval), "gap": interval(value.gap)}
