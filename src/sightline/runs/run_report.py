"""The report of a run: collect its files and its evaluation, and write report.html."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.data.checks.leakage import Leak
from sightline.data.types import SPLITS, LabeledSubset
from sightline.errors import plural
from sightline.evaluation.error_analysis import ErrorExample
from sightline.evaluation.report import EvaluationReport
from sightline.explain.heatmaps import compute_heat_maps
from sightline.inference.runtimes.keras import KerasPredictor
from sightline.report import html_report, sentences
from sightline.report.heatmap_plot import overlay_heat
from sightline.runs.directory import RunDirectory

MAX_ERRORS = 8  # errors shown, each with a heat map
MAX_CLASSES, MAX_SLICES, MAX_LABEL_ISSUES, MAX_LEAKS = 40, 8, 20, 20  # rows of tables
PLOT_NAMES = ("curves", "confusion", "risk-coverage", "reliability", "roc-precision-recall")  # 2 and 3 are side by side


def write_report(
    run: RunDirectory,
    result: Mapping[str, Any],
    evaluation_report: EvaluationReport | None,
    labeled: LabeledSubset,
    keras_predictor: KerasPredictor,
) -> Path:
    """Write the report of `run`, whose result is `result` (as printed by ``train --format json``).

    `evaluation_report` is the evaluation on the images `labeled`, None if there are none; `keras_predictor` computes
    the heat maps.
    """
    return run.write_report(
        html_report.render_html(_collect_report(run, result, evaluation_report, labeled, keras_predictor))
    )


def _collect_report(
    run: RunDirectory,
    result: Mapping[str, Any],
    evaluation_report: EvaluationReport | None,
    labeled: LabeledSubset,
    keras_predictor: KerasPredictor,
) -> dict[str, Any]:
    """Return the content of the page as plain values; without an evaluation, it says so."""
    info, config, leaks = run.info, run.config, run.read_leaks()
    values: dict[str, Any] = {
        "title": f"{config.model.name} on {'+'.join(Path(s).name for s in config.data.sources) or 'arrays'}",
        "headline": ["No images were held out for evaluation: set split.validation or split.test above 0."],
        "run": str(run.path),
        "summary": _summary_rows(result, evaluation_report),
        "findings": info.get("findings", []),
        "plots": [
            (name, *html_report.encode_figure(figure))
            for name in PLOT_NAMES
            if (figure := run.read_figure(name)) is not None
        ],
        "classes": [], "hidden_classes": 0, "slices": [], "errors": [], "thresholds": "", "metrics_file": "",
        "untested": "", "validation": None, "binary": None, "operating_points": [], "split": "",
        "label_issues": run.read_label_issues()[:MAX_LABEL_ISSUES],
        "leaks": [_leak_row(leak) for leak in leaks[:MAX_LEAKS]],
        "hidden_leaks": max(len(leaks) - MAX_LEAKS, 0),
        "commands": _reproduce_commands(run, info),
        "config": run.config_text,
        "environment": [(k, str(v)) for k, v in info.items() if k in {"backend", "devices", "threads", "platform"}]
        + sorted((k, str(v)) for k, v in info.get("versions", {}).items()),
    }  # fmt: skip
    if evaluation_report is not None:
        metrics = evaluation_report.to_dict()
        class_rows = html_report.sort_classes(metrics["per_class"])
        values |= {
            "headline": html_report.summarize(metrics, evaluation_report.split),
            "classes": class_rows[:MAX_CLASSES],
            "hidden_classes": max(len(class_rows) - MAX_CLASSES, 0),
            "metrics_file": f"eval/{evaluation_report.split}/metrics.json",
            "untested": sentences.describe_untested(
                metrics["untested_classes"], len(metrics["classes"]), sentences.describe_split(evaluation_report.split)
            ),
            "validation": _metric_rows(metrics),
            "binary": metrics["binary"],
            "operating_points": html_report.operating_points(metrics),
            "split": evaluation_report.split,
            "slices": [s for s in metrics["slices"] if s["significantly_worse"]][:MAX_SLICES],
            "thresholds": _threshold_text(evaluation_report),
        }
        values |= _error_rows(
            evaluation_report.errors.most_confident_errors[:MAX_ERRORS], evaluation_report, labeled, keras_predictor
        )
    return values


def _leak_row(leak: Leak) -> dict[str, Any]:
    """Return the kind of a group and its paths by split."""
    paths = {split: [row.path for row in leak.images if row.split == split] for split in SPLITS}
    kind = "identical" if leak.kind == "identical" else "near duplicates"
    return {"kind": kind, "splits": [(split, names) for split, names in paths.items() if names]}


def _summary_rows(result: Mapping[str, Any], evaluation_report: EvaluationReport | None) -> list[tuple[str, str]]:
    best_epoch = result.get("best_epoch")
    rows = [
        ("network", f"{result.get('model')}, {result.get('parameters', 0):,} parameters"),
        ("recipe", str(result.get("recipe"))),
        (
            "trained",
            f"{plural(result.get('epochs') or 0, 'epoch')} in {result.get('seconds', 0):.0f} s, best: {best_epoch}",
        ),
        ("training images", f"{(result.get('train') or {}).get('count', 0)}"),
    ]
    if evaluation_report is not None:
        metric_names = {"macro_f1": "macro F1", "auroc": "AUROC", "brier": "Brier score"}
        for key, name in metric_names.items():
            metric = evaluation_report.evaluation.metrics.get(key)
            if metric is not None and metric.value is not None:
                interval_text = f" ({metric.interval.low:.3f} to {metric.interval.high:.3f})" if metric.interval else ""
                total = len(evaluation_report.evaluation.classes)
                classes_text = (
                    f", over {metric.classes} of {total} classes" if (metric.classes or total) < total else ""
                )
                rows.append((name, f"{metric.value:.3f}{interval_text}{classes_text}"))
    return rows


def _metric_rows(metrics: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]] | None:
    """Return a row per metric: its name, its value on validation and on the evaluated images, and the difference.

    Each of the three is a value and its interval.
    """
    validation = metrics["validation"]
    if validation is None:
        return None
    low, high = (100 * end for end in validation["accuracy_difference_interval"])
    accuracies = [
        (html_report.format_percent(m["accuracy"]), html_report.format_interval(m["accuracy_interval"]))
        for m in (validation, metrics)
    ]
    errors = [(f"{ece:.3f}", "") for ece in (validation["ece"], metrics["calibration"]["ece"])]
    return [
        ("images", [(str(validation["count"]), ""), (str(metrics["count"]), ""), ("", "")]),
        (
            "accuracy",
            [*accuracies, (f"{100 * validation['accuracy_difference']:+.1f} points", f"{low:+.1f} to {high:+.1f}")],
        ),
        (
            "calibration error",
            [*errors, (f"{validation['ece_difference']:+.3f}", f"p = {validation['ece_p_value']:.2g}")],
        ),
        ("cross-entropy", [(f"{validation['loss']:.4f}", ""), (f"{metrics['loss']:.4f}", ""), ("", "")]),
    ]


def _threshold_text(evaluation_report: EvaluationReport) -> str:
    thresholds = evaluation_report.thresholds
    if thresholds is not None and thresholds.positive_threshold is not None:
        return (
            f"The model predicts {thresholds.positive} if its probability is at least "
            f"{html_report.format_percent(thresholds.positive_threshold, 2)}, a threshold chosen on "
            f"validation for a {thresholds.rate} of "
            f"{html_report.format_percent(thresholds.target_rate)}."
        )
    if thresholds is not None and thresholds.target_precision is not None and thresholds.confidence is None:
        return (
            "No threshold reaches a precision of "
            f"{html_report.format_percent(thresholds.target_precision)} on validation, so the model "
            "never predicts a single class; run `sightline evaluate` with another target to replace it."
        )
    if (
        evaluation_report.thresholds is None
        or evaluation_report.selective is None
        or evaluation_report.thresholds.confidence is None
    ):
        return ""
    selective = evaluation_report.selective
    line = (
        "The model predicts a class if its confidence is at least "
        f"{html_report.format_percent(evaluation_report.thresholds.confidence)}: "
        f"for {html_report.format_percent(selective.class_fraction)} of these images"
    )
    if selective.precision is None or selective.interval is None or selective.target is None:
        return f"{line}."
    interval, target = selective.interval, html_report.format_percent(selective.target)
    line += (
        f", of which {html_report.format_percent(selective.precision)} are correct (95% interval "
        f"{html_report.format_percent(interval.low)} to "
        f"{html_report.format_percent(interval.high)})."
    )
    if selective.met is None:
        return f"{line} The threshold was fitted on these images, so expect lower precision on new ones."
    met = "is met" if selective.met else "is not demonstrated"
    bound = html_report.format_percent(selective.lower_bound)
    return f"{line} The target of {target} {met}: the precision is at least {bound} with 95% confidence."


def _error_rows(
    errors: tuple[ErrorExample, ...],
    evaluation_report: EvaluationReport,
    labeled: LabeledSubset,
    keras_predictor: KerasPredictor,
) -> dict[str, Any]:
    """Return the most confident errors with the model's input images and heat maps."""
    if not errors:
        return {}
    pixels = labeled.subset.take(np.array([a.index for a in errors]))
    numbers = np.array([evaluation_report.evaluation.classes.index(a.predicted) for a in errors])
    heats = compute_heat_maps(keras_predictor, pixels, numbers, "gradcam")
    rows = [
        {"label": a.label, "predicted": a.predicted, "probability": a.probability, "path": a.path,
         "image": html_report.encode_png(image), "heat": html_report.encode_png(overlay_heat(_to_rgb(image), heat))}
        for a, image, heat in zip(errors, pixels, heats, strict=True)
    ]  # fmt: skip
    return {"errors": rows}


def _to_rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def _reproduce_commands(run: RunDirectory, info: dict[str, Any]) -> str:
    command = info.get("command", [])
    words = ["sightline", *command[1:]] if command else []
    lines = [" ".join(shlex.quote(w) for w in words)] if words[1:2] == ["train"] else []
    run_path = shlex.quote(str(run.path))
    lines += [f"sightline resume {run_path} --epochs {entry['to']}" for entry in info.get("extensions", [])]
    return "\n".join([*lines, f"sightline evaluate {run_path}", f"sightline report {run_path}"])
