"""An evaluation report as a plain dict: what ``evaluate`` prints and ``metrics.json`` holds besides the metrics."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from sightline.evaluation.binary import BinaryCurve as DetectionCurve
from sightline.evaluation.binary import BinaryRates, BinaryReport, OperatingPoint
from sightline.evaluation.calibration import ReliabilityBin
from sightline.evaluation.conformal import SetCoverage
from sightline.evaluation.error_analysis import ErrorAnalysis, ErrorExample
from sightline.evaluation.report import CalibrationReport, DecisionMetrics, EvaluationReport
from sightline.evaluation.selective import SelectiveMetrics, SelectiveResult, Threshold
from sightline.evaluation.shift import SplitShift
from sightline.evaluation.slices import SliceMetrics
from sightline.report.to_dict import interval_to_list, metric_to_dict

RISK_COVERAGE_POINTS = 101  # of the risk-coverage curve
CURVE_POINTS = 501  # of the ROC and the precision-recall curve


def report_to_dict(value: EvaluationReport) -> dict[str, Any]:
    """Return all but the evaluation's own figures, as JSON values."""
    return {
        "part": value.split,
        "calibration": _calibration(value.calibration),
        "risk_coverage": _curve(value),
        "thresholds": None if value.thresholds is None else value.thresholds.to_dict(),
        "threshold": None if value.threshold is None else _proportion(value.threshold),
        "selective": None if value.selective is None else _selective(value.selective),
        "answered": None if value.decisions is None else _proportion(value.decisions),
        "coverage": None if value.set_coverage is None else _proportion(value.set_coverage),
        "strangers": None if value.ood is None else asdict(value.ood),
        "binary": None if value.binary is None else _binary(value.binary),
        "validation": None if value.shift is None else _shift(value.shift),
        "mistakes": _errors(value.errors),
        "slices": [_slice(s) for s in value.slices],
    }


def _calibration(value: CalibrationReport) -> dict[str, Any]:
    bins: dict[str, list[ReliabilityBin]] = {"bins": list(value.bins), "bins_after": list(value.bins_after)}
    return {
        "ece": value.ece,
        "ece_after": value.ece_after,
        "temperature": None if value.temperature is None else asdict(value.temperature),
        **{name: [asdict(b) for b in reliability_bins] for name, reliability_bins in bins.items()},
        "note": value.note,
    }


def _curve(value: EvaluationReport) -> dict[str, Any]:
    at = np.unique(np.linspace(0, len(value.risk_coverage.risk) - 1, RISK_COVERAGE_POINTS).astype(int))
    return {
        "aurc": value.risk_coverage.aurc,
        "coverage": value.risk_coverage.coverage[at].tolist(),
        "risk": value.risk_coverage.risk[at].tolist(),
    }


def _proportion(value: Threshold | DecisionMetrics | SetCoverage | SelectiveMetrics) -> dict[str, Any]:
    return asdict(value) | {"interval": interval_to_list(value.interval)}


def _selective(value: SelectiveResult) -> dict[str, Any]:
    return {
        "threshold": _proportion(value.threshold),
        "reached": None if value.evaluated is None else _proportion(value.evaluated),
    }


def _binary(value: BinaryReport) -> dict[str, Any]:
    return {
        "positive": value.positive,
        "negative": value.negative,
        "rule": value.rule,
        "positives": value.positives,
        "negatives": value.negatives,
        **_rates(value.rates),
        "auroc": metric_to_dict(value.auroc),
        "average_precision": metric_to_dict(value.average_precision),
        "roc": _points(value.roc, "false_positive_rate", "sensitivity"),
        "precision_recall": _points(value.precision_recall, "recall", "precision"),
        "operating_points": [_operating_point(p) for p in value.operating_points],
        "usual_points": [_operating_point(p) for p in value.usual_points],
    }


def _rates(value: BinaryRates) -> dict[str, Any]:
    rates = {name: metric_to_dict(getattr(value, name)) for name in ("sensitivity", "specificity", "ppv", "npv")}
    return {"threshold": value.threshold} | rates


def _points(value: DetectionCurve, x: str, y: str) -> dict[str, Any]:
    """Return at most `CURVE_POINTS` points of a curve, both ends among them; a threshold above all scores is null."""
    at = np.unique(np.linspace(0, len(value.x) - 1, CURVE_POINTS).astype(int)) if len(value.x) else np.zeros(0, int)
    thresholds = [t if np.isfinite(t) else None for t in value.threshold[at].tolist()]
    return {x: value.x[at].tolist(), y: value.y[at].tolist(), "threshold": thresholds}


def _operating_point(value: OperatingPoint) -> dict[str, Any]:
    return asdict(value) | {"reached": None if value.rates is None else _rates(value.rates)}


def _shift(value: SplitShift) -> dict[str, Any]:
    return {
        "count": value.count,
        "accuracy": value.accuracy,
        "accuracy_interval": interval_to_list(value.accuracy_interval),
        "loss": value.loss,
        "ece": value.ece,
        "accuracy_difference": value.accuracy_difference,
        "accuracy_difference_interval": interval_to_list(value.interval),
        "accuracy_differs": value.accuracy_differs,
        "ece_difference": value.ece_difference,
        "ece_p_value": value.ece_p_value,
        "ece_differs": value.ece_differs,
    }


def _errors(value: ErrorAnalysis) -> dict[str, Any]:
    def examples(items: tuple[ErrorExample, ...]) -> list[dict[str, Any]]:
        return [{key: v for key, v in asdict(a).items() if key != "at"} for a in items]

    pairs = [asdict(p) | {"examples": examples(p.examples)} for p in value.pairs]
    return {
        "wrong": examples(value.most_confident_errors),
        "unsure": examples(value.least_confident_correct),
        "pairs": pairs,
    }


def _slice(value: SliceMetrics) -> dict[str, Any]:
    return asdict(value) | {"interval": interval_to_list(value.interval), "gap": interval_to_list(value.gap)}
