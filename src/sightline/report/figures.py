"""Figures of a run, drawn off screen and returned as PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from sightline.errors import MissingExtraError
from sightline.records import EpochRecord, Evaluation

TRAIN, VALIDATION = "#1f6feb", "#d9480f"
INK, GRID = "#24292f", "#d0d7de"


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise MissingExtraError("matplotlib", "train", "Drawing figures") from None
    return Figure(figsize=(width, height), dpi=120, layout="constrained")  # no pyplot: no screen, no global state


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def curves(history: Sequence[EpochRecord], title: str = "") -> bytes:
    """Draw loss and accuracy of training and validation over the epochs, side by side."""
    figure = _figure(9, 3.6)
    epochs = [r.epoch for r in history]
    panels = ((r"loss", "cross-entropy"), ("accuracy", "accuracy"))
    for axes, (name, label) in zip(figure.subplots(1, 2), panels, strict=True):
        marker = "o" if len(epochs) < 2 else None  # a single point makes no line
        axes.plot(epochs, [getattr(r, name) for r in history], color=TRAIN, label="training", marker=marker)
        held_out = [getattr(r, f"val_{name}") for r in history]
        if None not in held_out:
            axes.plot(epochs, held_out, color=VALIDATION, label="validation", marker=marker)
        for left, right in pairwise(history):
            if left.stage != right.stage:
                axes.axvline(left.epoch + 0.5, color=GRID, linestyle="--")
                axes.annotate(
                    right.stage, (left.epoch + 0.5, 1), (3, -4), color=INK, fontsize=8,
                    xycoords=("data", "axes fraction"), textcoords="offset points", va="top",
                )  # fmt: skip
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.grid(color=GRID, linewidth=0.6)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False)
    if title:
        figure.suptitle(title, color=INK)
    return _png(figure)


def confusion(evaluation: Evaluation, title: str = "") -> bytes:
    """Draw the confusion matrix, shares of each true class in colour, counts as numbers (up to 30 classes)."""
    matrix = evaluation.confusion
    count = len(evaluation.classes)
    side = float(np.clip(0.45 * count + 2.2, 3.6, 14))
    figure = _figure(side + 0.8, side)
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, fraction=0.046, label="share of the true class")
    if count <= 30:  # beyond this, numbers and names no longer fit
        for i, j in np.ndindex(count, count):
            if matrix[i, j]:
                axes.text(
                    j,
                    i,
                    str(matrix[i, j]),
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if share[i, j] > 0.5 else INK,
                )
        axes.set_xticks(range(count), evaluation.classes, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(count), evaluation.classes)
    axes.set_xlabel("answer")
    axes.set_ylabel("truth")
    axes.set_title(title, color=INK)
    return _png(figure)
