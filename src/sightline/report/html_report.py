"""The report of a run as one HTML file that needs no network: a value in, text out."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sightline.config import RunConfig
from sightline.data.checks.leakage import Leak
from sightline.data.types import SPLITS
from sightline.errors import plural
from sightline.report import sentences, templates
from sightline.report.heatmap_plot import overlay_heat
from sightline.report.plotting import RenderedFigure
from sightline.runs.report_images import MAX_SIDE, Images
from sightline.runs.run_report import RunReport

MAX_ERRORS = 8  # errors shown, each with a heat map
MAX_CLASSES, MAX_SLICES, MAX_LABEL_ISSUES, MAX_LEAKS = 40, 8, 20, 20  # rows of tables


def render_html(report: RunReport, figures: Mapping[str, RenderedFigure]) -> str:
    """Return the page of a run, which shows these of its figures."""
    environment = templates.make_environment()
    environment.filters |= {"percent": format_percent, "between": format_interval}
    text = resources.files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(text).render(_collect_values(report, figures))


def _collect_values(report: RunReport, figures: Mapping[str, RenderedFigure]) -> dict[str, Any]:
    """Return what the template shows; without an evaluation, it says so."""
    metrics = report.metrics
    values: dict[str, Any] = {
        "report": report,
        "title": describe_run(report.config),
        "headline": ["No images were held out for evaluation: set split.validation or split.test above 0."],
        "run": report.run,
        "summary": _summary_rows(report),
        "findings": report.findings,
        "plots": [(name, *encode_figure(figure)) for name, figure in figures.items()],
        "classes": [], "hidden_classes": 0, "slices": [], "errors": [], "thresholds": "", "metrics_file": "",
        "untested": "", "validation": None, "binary": None, "operating_points": [], "split": "",
        "label_issues": report.label_issues[:MAX_LABEL_ISSUES],
        "leaks": [_leak_row(leak) for leak in report.leaks[:MAX_LEAKS]],
        "hidden_leaks": max(len(report.leaks) - MAX_LEAKS, 0),
        "commands": "\n".join(report.commands),
        "config": report.config_text,
        "environment": _environment_rows(report),
    }  # fmt: skip
    if metrics is not None:
        class_rows, split = sort_classes(metrics["per_class"]), metrics["split"]
        values |= {
            "headline": summarize(metrics, split),
            "classes": class_rows[:MAX_CLASSES],
            "hidden_classes": max(len(class_rows) - MAX_CLASSES, 0),
            "metrics_file": f"eval/{split}/metrics.json",
            "untested": sentences.describe_untested(
                metrics["untested_classes"], len(metrics["classes"]), sentences.describe_split(split)
            ),
            "validation": _metric_rows(metrics),
            "binary": metrics["binary"],
            "operating_points": operating_points(metrics),
            "split": split,
            "slices": [s for s in metrics["slices"] if s["significantly_worse"]][:MAX_SLICES],
            "thresholds": describe_thresholds(metrics),
            "errors": _error_rows(metrics["errors"]["most_confident_errors"][:MAX_ERRORS], report.images),
        }
    return values


def describe_run(config: RunConfig) -> str:
    """Return what was trained on what: the title of the page and of its curves."""
    return f"{config.model.name} on {'+'.join(Path(source).name for source in config.data.sources) or 'arrays'}"


def format_percent(value: float | None, digits: int = 1) -> str:
    """Return a fraction as people read it.

    >>> format_percent(0.9634)
    '96.3%'
    """
    return "not defined" if value is None else f"{100 * value:.{digits}f}%"


def summarize(metrics: Mapping[str, Any], split: str) -> list[str]:
    """Return what ``metrics.json`` of a split says, in plain sentences, the most important first."""
    low, high = metrics["accuracy_interval"]
    images = "validation images, which also chose the weights" if split == "validation" else "unseen images"
    if metrics["leaked"] is not None and split != "validation":
        images = "test images, not all of them unseen"
    right = f"Accuracy {format_percent(metrics['accuracy'])} on {metrics['count']} {images}"
    missing = sentences.describe_untested(
        metrics["untested_classes"], len(metrics["classes"]), sentences.describe_split(split)
    )
    lines = [f"{right} (95% interval {format_percent(low)} to {format_percent(high)}).{' ' * bool(missing)}{missing}"]
    warnings = (
        sentences.describe_leakage(metrics["leaked"], number=format_percent),
        sentences.describe_shift(metrics["validation"], split),
    )
    lines += filter(None, warnings)
    pairs = metrics["errors"]["confused_pairs"]
    if pairs:
        worst = pairs[0]
        lines.append(
            f"The most frequent confusion is {worst['label']} classified as {worst['predicted']}: "
            f"{plural(worst['count'], 'time')}, {format_percent(worst['fraction'])} of that class."
        )
    elif metrics["count"]:
        lines.append("It made no errors on these images; more images would narrow the interval.")
    if selective_line := _summarize_selective(metrics["selective_check"]):
        lines.append(selective_line)
    calibration = metrics["calibration"]
    lines.append(
        f"The expected calibration error of its probabilities is {format_percent(calibration['ece'])}."
        + (f" {calibration['note']}" if calibration["note"] else "")
    )
    return lines


def _summarize_selective(selective: Mapping[str, Any] | None) -> str:
    """Return what a confidence threshold chosen on validation reaches on the other images; "" if there are none."""
    if selective is None:
        return ""
    threshold, evaluated = selective["threshold"], selective["evaluated"]
    target = format_percent(threshold["target"], 0)
    if evaluated is None:
        return (
            f"The {threshold['count']} validation images are too few, or too often misclassified, to choose a "
            f"confidence threshold for a precision of {target}."
        )
    line = (
        f"At a confidence of at least {format_percent(threshold['confidence'])} (chosen on validation "
        "for a precision of "
        f"{target}), its coverage is {format_percent(evaluated['coverage'])} of these images"
    )
    if evaluated["precision"] is None:
        return f"{line}."
    low, high = evaluated["interval"]
    verdict = "the target is met" if evaluated["met"] else f"these images do not confirm {target}"
    return (
        f"{line}, with a precision of {format_percent(evaluated['precision'])} (95% interval "
        f"{format_percent(low)} to {format_percent(high)}; "
        f"at least {format_percent(evaluated['lower_bound'])} with 95% confidence): {verdict}."
    )


def operating_points(metrics: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Return a row for each operating point in ``metrics.json``: thresholds chosen on validation, evaluated here.

    Target, threshold, the rate with its interval, its cost in the other rate, and whether the target is met.
    """
    rows = []
    if (selective := metrics["selective_check"]) is not None and (evaluated := selective["evaluated"]) is not None:
        target = selective["threshold"]
        rows.append((
            f"precision {format_percent(target['target'], 0)}",
            f"confidence from {format_percent(target['confidence'], 2)}",
            _rate(evaluated["precision"], evaluated["interval"]), f"coverage {format_percent(evaluated['coverage'])}",
            _verdict(met=evaluated["met"]),
        ))  # fmt: skip
    binary = metrics["binary"]
    if binary is None:
        return rows
    usual = {(p["rate"], p["target"], p["threshold"]) for p in binary["usual_points"]}
    requested = [p for p in binary["operating_points"] if p["rates"] is not None]
    requested = [p for p in requested if (p["rate"], p["target"], p["threshold"]) not in usual]
    for p in [*requested, *binary["usual_points"]]:
        other = "specificity" if p["rate"] == "sensitivity" else "sensitivity"
        own, cost = p["rates"][p["rate"]], p["rates"][other]
        rows.append((
            f"{p['rate']} {format_percent(p['target'], 0 if round(100 * p['target'], 6).is_integer() else 1)}",
            f"{binary['positive']} from {format_percent(p['threshold'], 2)}", _rate(own["value"], own["interval"]),
            f"{other} {_rate(cost['value'], cost['interval'])}", _verdict(met=p["met"]),
        ))  # fmt: skip
    return rows


def _rate(value: float | None, ends: Sequence[float] | None) -> str:
    return format_percent(value) + (f" ({format_interval(ends)})" if ends is not None else "")


def _verdict(*, met: bool | None) -> str:
    return "met" if met else "not shown"


def encode_image(content: bytes) -> str:
    """Return the content of a WebP file as a data URI; "" for none."""
    return data_uri(content, "webp") if content else ""


def encode_overlay(thumbnail: bytes, heat: bytes) -> str:
    """Return a thumbnail with a heat map on it, each the content of a file, as a data URI; "" if either is damaged."""
    pixels, values = _decode(thumbnail, "RGB"), _decode(heat, "L")
    if pixels is None or values is None or pixels.shape[:2] != values.shape:
        return ""
    file = io.BytesIO()
    Image.fromarray(overlay_heat(pixels, np.divide(values, 255, dtype=np.float32))).save(file, "WEBP", quality=80)
    return encode_image(file.getvalue())


def _decode(content: bytes, mode: str) -> NDArray[np.uint8] | None:
    try:
        with Image.open(io.BytesIO(content), formats=("WEBP", "PNG")) as image:
            return np.asarray(image.convert(mode)) if max(image.size) <= MAX_SIDE else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def encode_figure(rendered: RenderedFigure) -> tuple[str, str]:
    """Return a figure as data URIs, for a wide and for a narrow page ("": as the wide one).

    Its words are text where it is SVG, so that the browser draws them with its own fonts.
    """
    wide = data_uri(rendered.png) if rendered.svg is None else data_uri(rendered.svg, "svg+xml")
    return wide, "" if rendered.narrow is None else data_uri(rendered.narrow, "svg+xml")


def data_uri(data: bytes, kind: str = "png") -> str:
    """Return an image file as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def sort_classes(classes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the metrics of each class that was tested, the worst first."""
    return sorted((c for c in classes if c["support"]), key=lambda c: (c["f1"], c["label"]))


def format_interval(ends: Sequence[float] | None) -> str:
    """Return an interval of a proportion as people read it; "" where there is none.

    >>> format_interval([0.9, 0.965])
    '90.0 to 96.5%'
    """
    return "" if ends is None else f"{100 * ends[0]:.1f} to {format_percent(ends[1])}"


def _leak_row(leak: Leak) -> dict[str, Any]:
    """Return the kind of a group and its paths by split."""
    paths = {split: [row.path for row in leak.images if row.split == split] for split in SPLITS}
    kind = "identical" if leak.kind == "identical" else "near duplicates"
    return {"kind": kind, "splits": [(split, names) for split, names in paths.items() if names]}


def _summary_rows(report: RunReport) -> list[tuple[str, str]]:
    result, network, choice = report.result, report.network, report.recipe_choice
    cost = "" if network is None else f", {network.multiply_adds:,} multiply-adds per image"
    trained = plural(result.get("epochs") or 0, "epoch")
    rows = [
        ("network", f"{result.get('model')}, {result.get('parameters', 0):,} parameters{cost}"),
        (
            "recipe",
            f"{result.get('recipe')}: {choice['recipe']}, {choice['reason']}" if choice else str(result.get("recipe")),
        ),
        ("trained", f"{trained} in {result.get('seconds', 0):.0f} s, best: {result.get('best_epoch')}"),
        ("training images", f"{(result.get('train') or {}).get('count', 0)}"),
    ]
    metrics, total = (report.metrics or {}).get("metrics", {}), len((report.metrics or {}).get("classes", ()))
    for key, name in {"macro_f1": "macro F1", "auroc": "AUROC", "brier": "Brier score"}.items():
        metric = metrics.get(key)
        if metric is not None and metric["value"] is not None:
            ends, count = metric["interval"], metric.get("classes")
            interval = f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends else ""
            classes = f", over {count} of {total} classes" if (count or total) < total else ""
            rows.append((name, f"{metric['value']:.3f}{interval}{classes}"))
    return rows


def _environment_rows(report: RunReport) -> list[tuple[str, str]]:
    values = dict(report.environment)
    return [
        *((k, str(v)) for k, v in values.items() if k != "versions"),
        *sorted((values.get("versions") or {}).items()),
    ]


def _metric_rows(metrics: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]] | None:
    """Return a row per metric: its name, its value on validation and on the evaluated images, and the difference.

    Each of the three is a value and its interval.
    """
    validation = metrics["validation"]
    if validation is None:
        return None
    low, high = (100 * end for end in validation["accuracy_difference_interval"])
    accuracies = [
        (format_percent(m["accuracy"]), format_interval(m["accuracy_interval"])) for m in (validation, metrics)
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


def describe_thresholds(metrics: Mapping[str, Any]) -> str:
    """Return what the thresholds of an evaluation in ``metrics.json`` do to its images; "" if there are none."""
    thresholds, selective = metrics["thresholds"], metrics["selective"]
    if thresholds is None:
        return ""
    if thresholds["positive_threshold"] is not None:
        return (
            f"The model predicts {thresholds['positive']} if its probability is at least "
            f"{format_percent(thresholds['positive_threshold'], 2)}, a threshold chosen on "
            f"validation for a {thresholds['rate']} of {format_percent(thresholds['target_rate'])}."
        )
    if thresholds["confidence"] is None and thresholds["target_precision"] is not None:
        return (
            f"No threshold reaches a precision of {format_percent(thresholds['target_precision'])} on validation, so "
            "the model never predicts a single class; run `sightline evaluate` with another target to replace it."
        )
    if selective is None or thresholds["confidence"] is None:
        return ""
    line = (
        f"The model predicts a class if its confidence is at least {format_percent(thresholds['confidence'])}: "
        f"for {format_percent(selective['class_fraction'])} of these images"
    )
    if selective["precision"] is None or selective["interval"] is None or selective["target"] is None:
        return f"{line}."
    low, high = selective["interval"]
    line += (
        f", of which {format_percent(selective['precision'])} are correct (95% interval {format_percent(low)} to "
        f"{format_percent(high)})."
    )
    verdict = "The threshold was fitted on these images, so expect lower precision on new ones."
    if selective["met"] is not None:
        met, bound = "is met" if selective["met"] else "is not demonstrated", format_percent(selective["lower_bound"])
        target = format_percent(selective["target"])
        verdict = f"The target of {target} {met}: the precision is at least {bound} with 95% confidence."
    return f"{line} {verdict}"


def _error_rows(errors: Sequence[Mapping[str, Any]], images: Images) -> list[dict[str, Any]]:
    """Return errors with their thumbnails and heat maps, "" where the run has none."""
    thumbnails = {image.path: content for image, content in images.items() if image.kind == "error"}
    heats = {(i.path, i.predicted): content for i, content in images.items() if i.kind == "heat_map"}
    rows = []
    for error in errors:
        path, predicted = error["path"], error["predicted"]
        thumbnail, heat = thumbnails.get(path, b""), heats.get((path, predicted), b"")
        rows.append({**error, "image": encode_image(thumbnail), "heat": encode_overlay(thumbnail, heat)})
    return rows
