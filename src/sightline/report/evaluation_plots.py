"""Evaluation plots by name: reliability, risk-coverage, confusion, ROC and precision-recall, errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sightline.data.types import Subset
from sightline.evaluation.binary import BinaryReport
from sightline.evaluation.calibration import BINS, CalibrationReport, ReliabilityBin
from sightline.evaluation.error_analysis import ErrorExample
from sightline.evaluation.report import EvaluationReport
from sightline.evaluation.selective import RiskCoverageCurve
from sightline.report import plotting, run_plots
from sightline.report.image_grid import plot_grid
from sightline.report.plotting import GRID, INK, TRAIN, VALIDATION, RenderedFigure

COLUMNS = 4  # thumbnails per row


def plot_main(value: EvaluationReport) -> dict[str, RenderedFigure]:
    """Draw the figures that every run includes."""
    plots = {
        "reliability": plot_reliability(value.calibration, value.split),
        "risk-coverage": plot_risk_coverage(value.risk_coverage, value.split),
        "confusion": run_plots.plot_confusion(value.evaluation, f"Confusion matrix, {value.split}"),
    }
    if value.binary is not None and value.binary.positives and value.binary.negatives:
        plots["roc-precision-recall"] = plot_binary(value.binary, value.split)
    return plots


def plot_all(value: EvaluationReport, samples: Subset) -> dict[str, RenderedFigure]:
    """Draw all figures of an evaluation of `samples`."""
    plots = plot_main(value) | {
        "confusion-normalized": run_plots.plot_confusion(
            value.evaluation, f"Confusion matrix, {value.split}, % of each true class", percentages=True
        ),
    }
    if value.errors.most_confident_errors:
        plots["errors"] = plot_thumbnails(value.errors.most_confident_errors, samples, "Most confident errors")
        pairs = [a for pair in value.errors.confused_pairs for a in pair.examples]
        plots["errors-by-pair"] = plot_thumbnails(pairs, samples, "Errors by pair of classes")
    if value.errors.least_confident_correct:
        plots["least-confident"] = plot_thumbnails(
            value.errors.least_confident_correct, samples, "Least confident correct predictions"
        )
    return plots


def plot_thumbnails(examples: Sequence[ErrorExample], samples: Subset, title: str) -> RenderedFigure:
    """Draw images as the model sees them, each with its true and predicted class above."""
    cells = [
        (samples.take(np.array([a.index]))[0], f"{a.label}\npredicted {a.predicted}, {a.probability:.2f}")
        for a in examples
    ]
    return RenderedFigure(plot_grid([cells[i : i + COLUMNS] for i in range(0, len(cells), COLUMNS)], title))


def plot_reliability(value: CalibrationReport, title: str = "") -> RenderedFigure:
    """Draw accuracy against confidence, before and after temperature scaling, with bars for the number of images."""
    sides: list[tuple[str, Sequence[ReliabilityBin], float]] = [("as served", value.bins, value.ece or 0.0)]
    if value.temperature is not None and value.ece_after is not None and not value.unchanged:
        sides.append((f"at temperature {value.temperature.value:.2f}", value.bins_after, value.ece_after))
    figure = plotting.make_figure(4.4 * len(sides) + 0.3, 5.2)
    grid_of = figure.subplots(2, len(sides), height_ratios=[4, 1], sharex=True, squeeze=False)
    for (upper, lower), (name, bins, ece) in zip(grid_of.T, sides, strict=True):
        middles = [(b.low + b.high) / 2 for b in bins]
        upper.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle="--", label="perfect calibration")
        upper.bar(middles, [b.accuracy for b in bins], width=0.9 / BINS, color=TRAIN, label="accuracy")
        upper.plot(
            [b.confidence for b in bins], [b.accuracy for b in bins], "o", color=VALIDATION, markersize=4,
            label="at the mean confidence", clip_on=False,
        )  # fmt: skip
        upper.set_title(f"{name}: ECE {ece:.3f}", fontsize=10, color=INK)
        upper.set_ylim(0, 1.02)
        upper.set_ylabel("accuracy", color=INK)
        lower.bar(middles, [b.count for b in bins], width=0.9 / BINS, color=GRID)
        lower.set_xlabel("confidence", color=INK)
        lower.set_ylabel("images", color=INK)
        lower.set_xlim(0, 1)
        for axes in (upper, lower):
            axes.spines[["top", "right"]].set_visible(False)
    names = grid_of[0, 0].get_legend_handles_labels()
    figure.legend(*names, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"Reliability, {title}" if title else "Reliability", **plotting.text_style(12))
    return plotting.render(figure)


def plot_binary(value: BinaryReport, title: str) -> RenderedFigure:
    """Draw the ROC and precision-recall curves of two classes, with chance level and the thresholds in use."""
    figure = plotting.make_figure(9, 4.4)
    fraction = value.positives / (value.positives + value.negatives)
    left, right = figure.subplots(1, 2)
    left.plot(value.roc.x, value.roc.y, color=TRAIN, drawstyle="steps-post")
    left.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle="--", label="chance")
    right.plot(value.precision_recall.x, value.precision_recall.y, color=TRAIN, drawstyle="steps-pre")
    right.axhline(fraction, color=INK, linewidth=0.8, linestyle="--", label="chance")
    marks = [("more probable class", value.rates, "o", INK)]
    marks += [
        (f"{p.rate} {p.target:g} on validation", p.rates, "s^"[i % 2], VALIDATION)
        for i, p in enumerate(value.operating_points) if p.rates is not None
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
        plotting.style_axes(axes, x, y)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_title(name, fontsize=10, color=INK)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(
        f"Detection of {plotting.shorten(value.positive)}{', ' * bool(title)}{title}", **plotting.text_style(12)
    )
    return plotting.render(figure)


def plot_risk_coverage(curve: RiskCoverageCurve, title: str) -> RenderedFigure:
    """Draw the risk-coverage curve: the error rate against the fraction of images, most confident first."""
    figure = plotting.make_figure(5.6, 4)
    axes: Any = figure.subplots()
    axes.step(curve.coverage, curve.risk, where="pre", color=TRAIN)
    plotting.style_axes(axes, "coverage", "risk (error rate)")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, max(0.02, 1.08 * float(curve.risk.max())))
    axes.set_title(f"Risk-coverage curve, {title}: area {curve.aurc:.4f}", **plotting.text_style(11))
    return plotting.render(figure)
