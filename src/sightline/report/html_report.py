"""The report of a run as one self-contained HTML file; a pure function of its value."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sightline.config import RunConfig
from sightline.config.durations import format_duration
from sightline.data.label_patch import PatchEntry
from sightline.data.types import SPLITS
from sightline.errors import ImageError
from sightline.evaluation import label_issues
from sightline.evaluation.label_issues import LabelIssueCount
from sightline.preprocessing import translate_errors
from sightline.report import charts, sentences, templates
from sightline.report.heatmap_plot import overlay_heat
from sightline.runs.report_images import MAX_LABEL_ISSUES, MAX_LEAKS, MAX_SIDE
from sightline.runs.run_report import RunReport
from sightline.tasks.protocol import find_task

MAX_ERRORS = 8  # each shown with a heat map
MAX_CLASSES, MAX_SLICES = 40, 8  # table rows
GENERAL_SECTIONS = ("summary", "missing", "data", "leakage", "training", "environment")
"""The sections of the page for every task; each task names its additional ones."""


def render_html(report: RunReport) -> str:
    """Return the page of a run.

    The template gets the fields of the report, images as data URIs by path, and the functions in `HELPERS`, so that a
    page in another language only needs another template.
    """
    values = {field.name: getattr(report, field.name) for field in fields(report)}
    images = {
        f"{kind}_images": {
            i.path: templates.encode_image(content)
            for i, content in report.images.items()
            if i.kind == kind and i.path in paths and content
        }
        for kind, paths in _find_shown_paths(report).items()
    }
    splits = {row.split for leak in report.leaks for row in leak.images}
    values |= images | {
        "heat_maps": _overlay_heat_maps(report),
        "has_new_thresholds": report.has_new_thresholds,
        "general_sections": GENERAL_SECTIONS,
        "task_sections": find_task(report.config.model.task).sections,
        "leak_splits": [split for split in SPLITS if split in splits],
    }
    return templates.render_page("report.html.j2", **HELPERS, **values)


def _find_shown_paths(report: RunReport) -> dict[str, set[str]]:
    """Return the paths of the images to show on the page, by kind."""
    worst = {error["path"] for error in _list_shown_errors(report)}
    return {
        "error": worst,
        "true_mask": worst,
        "predicted_mask": worst,
        "leak": {row.path for leak in report.leaks[:MAX_LEAKS] for row in leak.images},
        "label_issue": {issue.path for issue in (report.label_issues or ())[:MAX_LABEL_ISSUES]},
    }


def _list_shown_errors(report: RunReport) -> Sequence[Mapping[str, Any]]:
    if report.metrics is None:
        return []
    errors = report.metrics["errors"]
    examples: Sequence[Mapping[str, Any]] = errors.get("most_confident_errors") or errors.get("worst_images", ())
    return examples[:MAX_ERRORS]


def _overlay_heat_maps(report: RunReport) -> dict[str, str]:
    """Return the error images overlaid with their heat maps, as data URIs by path, as far as the run has them."""
    thumbnails = {image.path: content for image, content in report.images.items() if image.kind == "error"}
    predicted = {error["path"]: error["predicted"] for error in _list_shown_errors(report)}
    overlays = {
        image.path: encode_overlay(thumbnails.get(image.path, b""), content)
        for image, content in report.images.items()
        if image.kind == "heat_map" and predicted.get(image.path) == image.predicted
    }
    return {path: overlay for path, overlay in overlays.items() if overlay}


def describe_run(config: RunConfig) -> str:
    """Return the model and the data of a run, as the title of the page and of its curves."""
    return f"{config.model.name} on {'+'.join(Path(source).name for source in config.data.sources) or 'arrays'}"


def list_operating_points(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each operating point in ``metrics.json``: a threshold chosen on validation, evaluated on other images.

    `name` is the rate with the `target`, `rate` its value and interval, `other` those of the rate traded for it; `of`
    is the class whose probability has the `threshold`, "" for the confidence, and `note` a caveat.
    """
    rows: list[dict[str, Any]] = []
    if (selective := metrics["selective_check"]) is not None and (evaluated := selective["evaluated"]) is not None:
        rows.append({
            "name": "precision", "target": selective["threshold"]["target"], "of": "",
            "threshold": selective["threshold"]["confidence"],
            "rate": {"value": evaluated["precision"], "interval": evaluated["interval"]}, "other_name": "coverage",
            "other": {"value": evaluated["coverage"], "interval": None}, "met": evaluated["met"],
            "conservative": selective["threshold"]["conservative"], "note": selective["threshold"]["note"],
        })  # fmt: skip
    binary = metrics["binary"]
    if binary is None:
        return rows
    usual = {(p["rate"], p["target"], p["threshold"]) for p in binary["usual_points"]}
    requested = [p for p in binary["operating_points"] if p["rates"] is not None]
    requested = [p for p in requested if (p["rate"], p["target"], p["threshold"]) not in usual]
    for p in [*requested, *(p for p in binary["usual_points"] if p["rates"] is not None)]:
        other = "specificity" if p["rate"] == "sensitivity" else "sensitivity"
        rows.append({
            "name": p["rate"], "target": p["target"], "of": binary["positive"], "threshold": p["threshold"],
            "rate": p["rates"][p["rate"]], "other_name": other, "other": p["rates"][other], "met": p["met"],
            "conservative": p["conservative"], "note": p["note"],
        })  # fmt: skip
    return rows


def choose_threshold(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the confidence threshold of the model, or else one that was chosen on validation; None without either.

    The result includes the coverage on the evaluated images, its 95% interval unless the images are in groups, and the
    precision above the threshold.
    """
    saved, selective, check = metrics["thresholds"], metrics["selective"], metrics["selective_check"]
    if saved is not None and selective is not None and saved.get("confidence") is not None:
        coverage, count = selective["class_fraction"], selective["count"]
        values = {"confidence": saved["confidence"], "target": selective["target"], "precision": selective["precision"]}
    elif check is not None and check["evaluated"] is not None:
        coverage, count = check["evaluated"]["coverage"], check["evaluated"]["count"]
        threshold = check["threshold"]
        values = {"confidence": threshold["confidence"], "target": threshold["target"],
                  "precision": check["evaluated"]["precision"]}  # fmt: skip
    else:
        return None
    interval = None if metrics.get("groups") else charts.find_interval(coverage, count)
    return values | {"coverage": coverage, "interval": interval}


def format_number(value: float | None, digits: int) -> str:
    """Return a number with `digits` decimals.

    >>> format_number(0.98765, 3), format_number(None, 3)
    ('0.988', 'not defined')
    """
    return "not defined" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def encode_overlay(thumbnail: bytes, heat: bytes) -> str:
    """Overlay a heat map on a thumbnail (both file contents), and return a data URI; "" if either is damaged."""
    pixels, values = _decode(thumbnail, "RGB"), _decode(heat, "L")
    if pixels is None or values is None or pixels.shape[:2] != values.shape:
        return ""
    file = io.BytesIO()
    Image.fromarray(overlay_heat(pixels, np.divide(values, 255, dtype=np.float32))).save(file, "WEBP", quality=80)
    return templates.encode_image(file.getvalue())


def _decode(content: bytes, mode: str) -> NDArray[np.uint8] | None:
    try:
        with translate_errors(), Image.open(io.BytesIO(content), formats=("WEBP", "PNG")) as image:
            return np.asarray(image.convert(mode)) if max(image.size) <= MAX_SIDE else None
    except ImageError:
        return None


def sort_classes(classes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the metrics of each tested class, worst first."""
    return sorted((c for c in classes if c["support"]), key=lambda c: (c["f1"] or 0.0, c["label"]))


def count_label_issues(issues: Sequence[PatchEntry]) -> list[LabelIssueCount]:
    """Return how many labels of each class are possibly missing or wrong in multi-label data."""
    return [*label_issues.count_label_issues((issue.label, issue.to or "") for issue in issues)]


HELPERS = {
    "chosen_threshold": choose_threshold,
    "count_label_issues": count_label_issues,
    "describe_run": describe_run,
    "format_duration": format_duration,
    "max_errors": MAX_ERRORS,
    "max_classes": MAX_CLASSES,
    "max_label_issues": MAX_LABEL_ISSUES,
    "max_leaks": MAX_LEAKS,
    "max_slices": MAX_SLICES,
    "name_accuracy": sentences.name_accuracy,
    "number": format_number,
    "operating_points": list_operating_points,
    "sort_classes": sort_classes,
}
"""Functions and constants for the report's template, by name, in addition to `charts.HELPERS`."""
