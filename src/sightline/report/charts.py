"""Geometry of the charts in an HTML page: scales, ticks and paths, which `charts.html.j2` writes as SVG.

The page defines the words, colors and styles of a chart; this module only computes numbers, in units of its view box.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sightline import intervals
from sightline.callbacks import EpochRecord
from sightline.errors import plural
from sightline.inference.mask_colors import list_colors
from sightline.metrics import most_confused_pairs
from sightline.report import fonts
from sightline.report.plotting import shorten

WIDTH, HEIGHT = 400, 250  # of a chart's view box; a unit is about a pixel in a column of the page
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 26, 40  # room for ticks and the names of the axes
LETTER = 6.4  # mean width of a letter in tick labels
MAX_NAMED_CLASSES = 30  # with more classes, their names and counts do not fit beside a matrix
MAX_CELLS = 2000  # maximum cells drawn of a confusion matrix, the largest first
MAX_PAIRS = 20  # confusions in the list beside a large matrix
ERROR_LEVELS = (0.05, 0.1, 0.25, 0.5)  # fractions of a class at which the color of an error changes
CORRECT_LEVELS = (0.5, 0.7, 0.85, 0.95)


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear map of [low, high] to [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the position of `value`, rounded to a tenth."""
        span = self.high - self.low or 1.0
        return round(self.start + (value - self.low) / span * (self.end - self.start), 1)


@dataclass(frozen=True, slots=True)
class Frame:
    """The area of a chart between its axes."""

    x: Scale
    y: Scale
    width: int = WIDTH
    height: int = HEIGHT

    def path(self, xs: Sequence[float], ys: Sequence[float | None], step: str = "") -> str:
        """Return the line through the points as SVG path data, interrupted where a value is missing.

        With `step`, each value extends up to its own x (``pre``) or from there on (``post``).
        """
        words: list[str] = []
        for x, y in zip(xs, ys, strict=True):
            if y is None or not math.isfinite(y):
                words.append("")
                continue
            across, down = self.x(x), self.y(y)
            if not words or not words[-1]:
                words.append(f"M{across:g} {down:g}")
            elif step:
                words.append(f"V{down:g}H{across:g}" if step == "pre" else f"H{across:g}V{down:g}")
            else:
                words.append(f"L{across:g} {down:g}")
        return "".join(words)


def make_frame(x: Sequence[float], y: Sequence[float], *, height: int = HEIGHT) -> Frame:
    """Return the frame of a chart whose axes show the ranges `x` and `y`, each (low, high)."""
    return Frame(Scale(x[0], x[1], LEFT, WIDTH - RIGHT), Scale(y[0], y[1], height - BOTTOM, TOP), height=height)


def choose_ticks(low: float, high: float, count: int = 5, *, integer: bool = False) -> list[float]:
    """Return about `count` round numbers in [low, high].

    >>> choose_ticks(0, 1), choose_ticks(1, 14, integer=True)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [5, 10])
    """
    raw = (high - low) / count
    if not math.isfinite(raw) or raw <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    if power == 0:  # underflows for the smallest numbers
        return [low]
    step = next((m * power for m in (1, 2, 5) if m * power >= raw * 0.9), 10 * power)
    if integer:
        step = max(1, round(step))
    first = math.ceil(low / step - 1e-9)
    ticks = [round(n * step, 10) for n in range(first, math.floor(high / step + 1e-9) + 1)]
    return [int(tick) for tick in ticks] if integer else ticks


def limit_from_zero(values: Sequence[float | None], least: float = 0.0) -> float:
    """Return the upper limit of an axis from 0 that shows all `values` with some room above; at least `least`."""
    highest = max((v for v in values if v is not None and math.isfinite(v)), default=0.0)
    return max(1.08 * highest, least) or 1.0


def find_stages(history: Sequence[EpochRecord]) -> list[dict[str, Any]]:
    """Return the name, first epoch and last epoch of each training stage."""
    spans = [(name, [row.epoch for row in rows]) for name, rows in groupby(history, lambda row: row.stage)]
    return [{"name": name, "first": epochs[0], "last": epochs[-1]} for name, epochs in spans]


def add_bin_intervals(bins: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the bins of a reliability diagram, each with the 95% interval of its accuracy (Wilson)."""
    return [dict(one) | {"interval": find_interval(one["accuracy"], one["count"])} for one in bins]


def find_interval(fraction: float, count: int) -> list[float]:
    """Return the 95% interval (Wilson) of a fraction of `count` images, clipping values from a damaged file."""
    count = max(count, 0)
    return list(intervals.wilson_interval(round(min(max(fraction, 0.0), 1.0) * count), count))


def list_confusions(classes: Sequence[str], matrix: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """Return the `MAX_PAIRS` largest off-diagonal cells of a confusion matrix, largest first."""
    return [
        {"label": classes[i], "predicted": classes[j], "count": count, "fraction": count / max(sum(matrix[i]), 1)}
        for i, j, count in most_confused_pairs(matrix, MAX_PAIRS)
    ]


def lay_out_matrix(classes: Sequence[str], matrix: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return the geometry of a confusion matrix: its size, cells and the positions of the class names.

    Each cell has the level of its color, 1 to 5. If more than `MAX_CELLS` cells are not empty, only the diagonal and
    the largest others are drawn.
    """
    count = len(classes)
    named = count <= MAX_NAMED_CLASSES
    names = [shorten(name) for name in classes] if named else []
    longest = max((measure_text(name) for name in names), default=0.0)
    cell = min(96.0, max(30.0, 380 / max(count, 1))) if named else max(620 / count, 0.62)
    level = longest <= cell - 6
    left = longest + 34 if named else 44
    bottom = (22 if level else 0.72 * longest + 26) + 22 if named else 44
    room = 0.0 if level or not named else max(0.0, 0.72 * longest - left - cell / 2 + 8)  # for tilted names
    diagonal = [(i, i, row[i]) for i, row in enumerate(matrix) if row[i]]
    most = count**2 if named else max(MAX_CELLS - len(diagonal), 0)
    totals = [max(sum(row), 1) for row in matrix]
    cells = [_describe_cell(i, j, n, n / totals[i]) for i, j, n in (*diagonal, *most_confused_pairs(matrix, most))]
    return {
        "named": named, "names": names, "tilted": not level, "cell": round(cell, 2), "left": round(left + room, 1),
        "top": 8, "side": round(cell * count, 1), "cells": cells,
        "hidden": sum(len(row) - row.count(0) for row in matrix) - len(cells),
        "width": round(left + room + cell * count + 10), "height": round(8 + cell * count + bottom),
        "ticks": [int(t) for t in choose_ticks(0, count - 1, 6, integer=True)],
    }  # fmt: skip


def _describe_cell(row: int, column: int, count: int, fraction: float) -> dict[str, Any]:
    levels = CORRECT_LEVELS if row == column else ERROR_LEVELS
    level = 1 + sum(fraction >= start for start in levels)
    return {"row": row, "column": column, "count": count, "fraction": fraction, "level": level}


def measure_text(text: str) -> float:
    """Return the approximate width of a tick label."""
    return LETTER * fonts.count_columns(text)


def format_count(value: int) -> str:
    """Return a count that fits into a cell.

    >>> format_count(9999), format_count(12345)
    ('9999', '12k')
    """
    return str(value) if value < 10_000 else f"{value // 1000}k"


HELPERS = {
    "add_bin_intervals": add_bin_intervals,
    "correct_levels": CORRECT_LEVELS,
    "error_levels": ERROR_LEVELS,
    "find_stages": find_stages,
    "format_count": format_count,
    "frame": make_frame,
    "lay_out_matrix": lay_out_matrix,
    "measure_text": measure_text,
    "limit_from_zero": limit_from_zero,
    "list_mask_colors": list_colors,
    "list_confusions": list_confusions,
    "max_pairs": MAX_PAIRS,
    "plural": plural,
    "shorten": shorten,
    "ticks": choose_ticks,
}
"""Functions and constants for templates, by name."""
