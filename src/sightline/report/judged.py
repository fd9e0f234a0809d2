"""Evaluation plots by name: reliability, risk-coverage, confusion, ROC and precision-recall, errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sightline.evaluation.abstain import Curve
from sightline.evaluation.binary import Binary
from sightline.evaluation.calibration import BINS, Bin
from sightline.evaluation.judgement import Calibration, Judgement
from sightline.evaluation.mistakes import Answer
from sightline.records import Samples
from sightline.report import canvas, figures
from sightline.report.canvas import GRID, INK, TRAIN, VALIDATION, Drawing
from sightline.report.grid import grid

ACROSS = 4  # thumbnails in a row


def main(value: Judgement) -> dict[str, Drawing]:
    """Draw the figures that every run has."""
    found = {
        "reliability": reliability(value.calibration, value.part),
        "risk-coverage": risk_coverage(value.curve, value.part),
        "confusion": figures.confusion(value.evaluation, value.part),
    }
    if value.binary is not None and value.binary.positives and value.binary.negatives:
        found["roc-precision-recall"] = detection(value.binary, value.part)
    return found


def drawings(value: Judgement, samples: Samples) -> dict[str, Drawing]:
    """Draw all figures of a judgement of `samples`."""
    found = main(value) | {
        "confusion-shares": figures.confusion(value.evaluation, f"{value.part}, % of each true class", shares=True),
    }
    if value.mistakes.wrong:
        found["mistakes"] = thumbnails(value.mistakes.wrong, samples, "Most confident errors")
        pairs = [a for pair in value.mistakes.pairs for a in pair.examples]
        found["mistakes-by-pair"] = thumbnails(pairs, samples, "Errors by pair of classes")
    if value.mistakes.unsure:
        found["least-sure"] = thumbnails(value.mistakes.unsure, samples, "Least confident correct predictions")
    return found


def thumbnails(answers: Sequence[Answer], samples: Samples, title: str) -> Drawing:
    """Draw images as the model sees them, with truth and answer above each."""
    cells = [
        (samples.take(np.array([a.at]))[0], f"{a.label}\npredicted {a.answer}, {a.probability:.2f}") for a in answers
    ]
    return Drawing(grid([cells[i : i + ACROSS] for i in range(0, len(cells), ACROSS)], title))


def reliability(value: Calibration, title: str = "") -> Drawing:
    """Draw accuracy against confidence, before and after the temperature; bars below say how many images."""
    sides: list[tuple[str, Sequence[Bin], float]] = [("as served", value.bins, value.ece)]
    if value.temperature is not None and value.ece_after is not None and not value.unchanged:
        sides.append((f"at temperature {value.temperature.value:.2f}", value.bins_after, value.ece_after))
    figure = canvas.blank(4.4 * len(sides) + 0.3, 5.2)
    grid_of = figure.subplots(2, len(sides), height_ratios=[4, 1], sharex=True, squeeze=False)
    for (upper, lower), (name, bins, ece) in zip(grid_of.T, sides, strict=True):
        middles = [(b.low + b.high) / 2 for b in bins]
        upper.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle="--")
        upper.bar(middles, [b.accuracy for b in bins], width=0.9 / BINS, color=TRAIN, label="right")
        upper.plot(
            [b.confidence for b in bins], [b.accuracy for b in bins], "o", color=VALIDATION, markersize=4, label="mean"
        )
        upper.set_title(f"{name}: ECE {ece:.3f}", fontsize=10, color=INK)
        upper.set_ylim(0, 1.02)
        upper.set_ylabel("accuracy", color=INK)
        lower.bar(middles, [b.count for b in bins], width=0.9 / BINS, color=GRID)
        lower.set_xlabel("confidence", color=INK)
        lower.set_ylabel("images", color=INK)
        lower.set_xlim(0, 1)
        for axes in (upper, lower):
            axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"Reliability, {title}" if title else "Reliability", **canvas.words(12))
    return canvas.drawing(figure)


def detection(value: Binary, title: str = "") -> Drawing:
    """Draw the ROC and the precision-recall curve of two classes, chance beside them, and the thresholds in use."""
    figure = canvas.blank(9, 4.4)
    fraction = value.positives / (value.positives + value.negatives)
    left, right = figure.subplots(1, 2)
    left.plot(value.roc.x, value.roc.y, color=TRAIN, drawstyle="steps-post")
    left.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle="--", label="chance")
    right.plot(value.precision_recall.x, value.precision_recall.y, color=TRAIN, drawstyle="steps-pre")
    right.axhline(fraction, color=INK, linewidth=0.8, linestyle="--", label="chance")
    marks = [("more probable class", value.rates, "o", INK)]
    marks += [
        (f"{p.rate} {p.target:g} on validation", p.reached, "s^"[i % 2], VALIDATION)
        for i, p in enumerate(value.operating_points) if p.reached is not None
    ]  # fmt: skip
    for name, rates, marker, color in marks:
        sensitivity, specificity = rates.sensitivity.value or 0.0, rates.specificity.value or 0.0
        left.plot(1 - specificity, sensitivity, marker, color=color, label=name, linestyle="none")
        if rates.ppv.value is not None:
            right.plot(sensitivity, rates.ppv.value, marker, color=color, linestyle="none")
    area, average = value.auroc.value, value.average_precision.value
    for axes, x, y, name in (
        (left, "1 - specificity", "sensitivity", f"ROC: area {area:.4f}"),
        (right, "sensitivity (recall)", "precision (PPV)", f"precision-recall: average precision {average:.4f}"),
    ):
        axes.set_xlabel(x, color=INK)
        axes.set_ylabel(y, color=INK)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.grid(color=GRID, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(name, fontsize=10, color=INK)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"Detection of {canvas.short(value.positive)}{', ' * bool(title)}{title}", **canvas.words(12))
    return canvas.drawing(figure)


def risk_coverage(curve: Curve, title: str = "") -> Drawing:
    """Draw the risk-coverage curve: the error rate against the fraction of images, most confident first."""
    figure = canvas.blank(5.6, 4)
    axes: Any = figure.subplots()
    axes.step(curve.coverage, curve.risk, where="pre", color=TRAIN)
    axes.set_xlabel("coverage", color=INK)
    axes.set_ylabel("risk (error rate)", color=INK)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, max(0.02, 1.08 * float(curve.risk.max())))
    axes.grid(color=GRID, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{title}: area {curve.aurc:.4f}", **canvas.words(11))
    return canvas.drawing(figure)
