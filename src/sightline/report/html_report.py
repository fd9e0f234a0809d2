"""The report of a run as one HTML file that needs no network: values in, text out."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sightline.errors import plural
from sightline.report import sentences, templates
from sightline.report.plotting import RenderedFigure

MAX_THUMBNAIL_SIDE = 192  # greatest side of an image in the page, in pixels


def render_html(report: Mapping[str, Any]) -> str:
    """Return the page of what `runs.run_report` puts together."""
    environment = templates.make_environment()
    environment.filters |= {"percent": format_percent, "between": format_interval}
    text = resources.files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(text).render(**report)


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


def encode_png(pixels: NDArray[np.uint8]) -> str:
    """Return uint8 [H, W, C] as a data URI, at most `MAX_THUMBNAIL_SIDE` on a side."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
    image.thumbnail((MAX_THUMBNAIL_SIDE, MAX_THUMBNAIL_SIDE))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=80)
    return data_uri(file.getvalue(), "webp")


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
