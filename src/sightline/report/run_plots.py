"""Figures of a run, drawn off screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sightline.callbacks import EpochRecord
from sightline.evaluation.results import EvaluationResult
from sightline.report import fonts, plotting
from sightline.report.charts import MAX_NAMED_CLASSES, find_stages, format_count
from sightline.report.plotting import INK, TRAIN, VALIDATION, RenderedFigure


def plot_curves(history: Sequence[EpochRecord], title: str = "", accuracy_name: str = "accuracy") -> RenderedFigure:
    """Draw loss and accuracy, called `accuracy_name`, of training and validation over the epochs, side by side."""
    figure = plotting.make_figure(9, 3.9)
    epochs = [r.epoch for r in history]
    marker = "o" if len(epochs) < 8 else None  # a single point makes no line
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        axes.plot(epochs, [getattr(r, name) for r in history], color=TRAIN, label="training", marker=marker)
        held_out = [getattr(r, f"val_{name}") for r in history]
        if None not in held_out:
            axes.plot(epochs, held_out, color=VALIDATION, label="validation", marker=marker)
        ious = [r.val_mean_iou for r in history]
        if name == "accuracy" and None not in ious:
            axes.plot(epochs, ious, color=VALIDATION, label="validation mean IoU", linestyle=":", marker=marker)
        if len(epochs) == 1:
            _write_values(axes)
        _mark_stages(axes, history)
        plotting.style_axes(axes, "epoch", accuracy_name if name == "accuracy" else name)
        axes.axhline(0, color="none")  # keeps space above the highest loss
        axes.set_ylim(0, 1.02 if name == "accuracy" else None)
        axes.set_xlim(min(epochs, default=1) - 0.5, max(epochs, default=1) + 0.5)
        if marker:
            axes.set_xticks(epochs)
        else:
            axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    if title:
        figure.suptitle(title, **plotting.text_style(12))
    return plotting.render(figure)


def _write_values(axes: Any) -> None:
    """Write the value of each point beside it, on alternate sides, as a single epoch has no line to read."""
    for number, line in enumerate(axes.get_lines()):
        (x,), (y,) = line.get_data()
        side = 1 if number % 2 else -1
        axes.annotate(
            f"{y:.4f}", (x, y), (10 * side, 10 * (number // 2)), textcoords="offset points", va="center",
            ha="left" if side > 0 else "right", color=line.get_color(), fontsize=9,
        )  # fmt: skip


def _mark_stages(axes: Any, history: Sequence[EpochRecord]) -> None:
    """Draw a line between stages, and the name of each above its epochs; draw nothing for a single stage."""
    stages = find_stages(history)
    if len(stages) < 2:
        return
    for stage in stages:
        axes.text(
            (stage["first"] + stage["last"]) / 2, 1.01, plotting.shorten(stage["name"]), ha="center",
            transform=axes.get_xaxis_transform(), **plotting.text_style(8),
        )  # fmt: skip
    for stage in stages[1:]:
        axes.axvline(stage["first"] - 0.5, color=INK, linewidth=0.8, linestyle="--")


def plot_confusion(evaluation: EvaluationResult, title: str = "", *, percentages: bool = False) -> RenderedFigure:
    """Draw the confusion matrix: colors are fractions of the true class, numbers are counts (up to 30 classes).

    With `percentages`, the numbers are percentages of the true class.
    """
    matrix = evaluation.confusion
    count = len(evaluation.classes)
    named = count <= MAX_NAMED_CLASSES
    names = [plotting.shorten(name) for name in evaluation.classes] if named else []
    cell = float(np.clip(5 / count, 0.48, 0.9)) if named else 8 / count  # inches
    room = 0.085 * max(map(fonts.count_columns, names), default=4)
    level = room < 0.9 * cell
    figure = plotting.make_figure(cell * count + room + 1.6, cell * count + (0.2 if level else 0.75 * room + 0.1) + 0.9)
    axes = figure.subplots()
    fractions = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    bar = figure.colorbar(image, cax=axes.inset_axes([1.03, 0, min(0.2 / (cell * count), 0.1), 1]))
    bar.set_label("fraction of the true class", color=INK)
    if named:
        tilt = {} if level else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(count), names, **plotting.text_style(), **tilt)
        axes.set_yticks(range(count), names, **plotting.text_style())
        for i, j in np.argwhere(matrix).tolist():
            text = f"{100 * fractions[i, j]:.0f}" if percentages else format_count(int(matrix[i, j]))
            ink = "white" if fractions[i, j] > 0.5 else INK
            axes.text(j, i, text, ha="center", va="center", fontsize=8 if count > 8 else 10, color=ink)
    axes.set_xlabel("predicted class" if named else "predicted class (index)", color=INK)
    axes.set_ylabel("true class" if named else "true class (index)", color=INK)
    axes.set_title(title, **plotting.text_style(12))
    return plotting.render(figure)
