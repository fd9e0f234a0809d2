"""Figures for several runs: overlaid learning curves; parallel coordinates and parameter importance of a sweep."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from sightline.callbacks import EpochRecord
from sightline.report import plotting
from sightline.report.plotting import INK

COLORS = ("#1f6feb", "#d9480f", "#2b8a3e", "#862e9c", "#0b7285", "#e67700", "#c2255c", "#495057")
DASHES = ("-", "--", ":", "-.")  # when the colors repeat, the dashes differ
LOG_SCALE_RATIO = 50.0  # losses that differ by this factor are drawn on a logarithmic scale
SPREAD = 0.25  # spread of the lines of one value, as a fraction of the distance between two values
MAX_TICKS = 12  # a parameter with more values has a numeric scale

Value = bool | int | float | str


def plot_curves(histories: Mapping[str, Sequence[EpochRecord]], title: str = "") -> bytes:
    """Draw loss and accuracy (rows) of training and validation (columns) over the epochs, with a line for each run.

    Runs with folds have no validation split; if no run has one, the figure has no validation column.
    """
    figure = plotting.make_figure(10, 6.4)
    is_validated = any(r.val_loss is not None for history in histories.values() for r in history)
    splits = [("training", ""), ("validation", "val_")] if is_validated else [("training", "")]
    grid = figure.subplots(2, len(splits), sharex=True, sharey="row", squeeze=False)
    for row, name in zip(grid, ("loss", "accuracy"), strict=True):
        for axes, (split, prefix) in zip(row, splits, strict=True):
            for number, (run, history) in enumerate(histories.items()):
                points = [(r.epoch, v) for r in history if (v := getattr(r, f"{prefix}{name}")) is not None]
                axes.plot(*_columns(points), label=plotting.shorten(run), **_line_style(number, points))
            _style_axes(axes, f"{split} {name}")
        _set_scale(row[0], name, histories)
    last = max((r.epoch for history in histories.values() for r in history), default=1)
    for axes in grid[1]:
        axes.set_xlabel("epoch", color=INK)
        axes.set_xlim(0.5, last + 0.5)
        axes.xaxis.get_major_locator().set_params(integer=True)
    if last < 10:
        grid[1, 0].set_xticks(range(1, last + 1))
    _add_legend(figure, grid[0, 0])
    if title:
        figure.suptitle(title, **plotting.text_style(12))
    return plotting.render_png(figure)


def _columns(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _line_style(number: int, points: Sequence[Any]) -> dict[str, Any]:
    is_dotted = 0 < len(points) < 8  # a single point makes no line; a dot at zero is not clipped
    dashes = DASHES[number // len(COLORS) % len(DASHES)]
    color = COLORS[number % len(COLORS)]
    marker = {"marker": "o", "markersize": 3.5, "clip_on": False} if is_dotted else {}
    return {"color": color, "linestyle": dashes, "linewidth": 1.6} | marker


def _style_axes(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=10, color=INK)
    plotting.style_axes(axes)


def _set_scale(axes: Any, name: str, histories: Mapping[str, Sequence[EpochRecord]]) -> None:
    """Set the scale of a row: accuracy from 0 to 1; the huge loss of one run must not flatten the others."""
    if name == "accuracy":
        axes.set_ylim(0, 1.02)
        return
    losses = [v for history in histories.values() for r in history for v in (r.loss, r.val_loss) if v is not None]
    if losses and min(losses) > 0 and max(losses) > LOG_SCALE_RATIO * float(np.median(losses)):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)


def _add_legend(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    longest = max(map(len, labels), default=1)
    columns = int(np.clip(100 // (longest + 8), 1, 4))
    family = plotting.text_style(9)
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    for text in legend.get_texts():
        text.set(color=family["color"], family=family["family"], fontsize=9, parse_math=False)


def short_names(names: Collection[str]) -> list[str]:
    """Return the last part of each dotted name, or the whole names if these parts are ambiguous.

    >>> short_names(["train.batch_size", "model.name", "train.optimizer.name"])
    ['batch_size', 'model.name', 'train.optimizer.name']
    """
    last = [name.rpartition(".")[2] for name in names]
    return [word if last.count(word) == 1 else name for word, name in zip(last, names, strict=True)]


def plot_parallel(
    columns: Mapping[str, Sequence[Value]],
    values: Sequence[float],
    monitor: str,
    *,
    logarithmic: Collection[str] = (),
    minimize: bool = False,
    title: str = "",
) -> bytes:
    """Draw parallel coordinates: a line through the parameters of each trial, colored by metric; the best is thick.

    `columns` has the values of all trials for each parameter; `values` [N] are their metrics.
    """
    figure = plotting.make_figure(max(6.0, 2.1 * (len(columns) + 1)), 4.6)
    axes = figure.subplots()
    heights = [
        _place_values(axes, x, column, logarithmic=name in logarithmic)
        for x, (name, column) in enumerate(columns.items())
    ]
    low, high = min(values), max(values)
    heights.append([_interpolate(v, low, high) for v in values])
    fractions = (0.0, 0.25, 0.5, 0.75, 1.0) if high > low else (0.5,)
    for fraction, text in zip(fractions, _format_ticks([low + f * (high - low) for f in fractions], 3), strict=True):
        _add_tick(axes, len(columns), fraction, text)
    lines = np.array(heights).T  # [N, columns + 1]
    best = (min if minimize else max)(range(len(values)), key=lambda i: values[i])
    for i in sorted(range(len(values)), key=lambda i: (i == best, -values[i] if minimize else values[i])):
        fraction = lines[i, -1]
        axes.plot(
            lines[i], color=_line_color(1 - fraction if minimize else fraction), linewidth=3.2 if i == best else 1.4
        )
    for x in range(len(columns) + 1):
        axes.axvline(x, color=INK, linewidth=0.9, zorder=3)
    names = [plotting.shorten(name) for name in short_names(columns)]
    axes.set_xticks(range(len(names) + 1), [*names, monitor], **plotting.text_style(9))
    axes.set_yticks([])
    axes.set_xlim(-0.15, len(columns) + 0.45)
    axes.set_ylim(-0.1, 1.1)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title(title, **plotting.text_style(12))
    return plotting.render_png(figure)


def _format_ticks(values: Sequence[float], digits: int) -> list[str]:
    """Return distinct values with `digits` significant digits, or as many more as are needed to distinguish them.

    >>> _format_ticks([1.0866, 1.0902, 1.0939], 3)
    ['1.087', '1.09', '1.094']
    """
    texts = [f"{value:.{digits}g}" for value in values]
    return texts if len({*texts}) == len(texts) or digits > 15 else _format_ticks(values, digits + 1)


def _line_color(fraction: float) -> Any:
    from matplotlib import colormaps

    return colormaps["viridis_r"](0.05 + 0.9 * fraction)  # the best are dark, as pale yellow is hard to see on white


def _place_values(axes: Any, x: int, column: Sequence[Value], *, logarithmic: bool) -> list[float]:
    """Label the axis at `x` and return the height of each value on it, 0 to 1."""
    numbers = [v for v in column if isinstance(v, int | float) and not isinstance(v, bool)]
    distinct = sorted(set(numbers)) if len(numbers) == len(column) else list(dict.fromkeys(column))
    if len(distinct) > MAX_TICKS and len(numbers) == len(column):
        scaled = np.log10(numbers) if logarithmic else np.array(numbers, float)
        low, high = float(scaled.min()), float(scaled.max())
        fractions = (0.0, 0.25, 0.5, 0.75, 1.0)
        ticks = [low + fraction * (high - low) for fraction in fractions]
        for fraction, text in zip(
            fractions, _format_ticks([10**t if logarithmic else t for t in ticks], 2), strict=True
        ):
            _add_tick(axes, x, fraction, text)
        return [_interpolate(float(v), low, high) for v in scaled]
    heights = {value: _interpolate(i, 0, len(distinct) - 1) for i, value in enumerate(distinct)}
    for value, height in heights.items():
        _add_tick(axes, x, height, plotting.shorten(f"{value:g}" if isinstance(value, float) else str(value)))
    return _spread(column, heights)


def _spread(column: Sequence[Value], heights: Mapping[Value, float]) -> list[float]:
    """Return the heights of all values, with equal values spread a little so that their lines stay distinct."""
    room = SPREAD / max(len(heights), 2)
    members = {value: [i for i, v in enumerate(column) if v == value] for value in heights}
    spread_heights = [heights[v] for v in column]
    for group in members.values():
        for rank, i in enumerate(group):
            spread_heights[i] += room * (0.5 - rank / (len(group) - 1)) if len(group) > 1 else 0
    return spread_heights


def _add_tick(axes: Any, x: float, height: float, text: str) -> None:
    box = {"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    axes.text(x + 0.03, height, text, va="center", zorder=4, bbox=box, **plotting.text_style(8))


def _interpolate(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def plot_importance(fractions: Mapping[str, float], monitor: str) -> bytes:
    """Draw the importance of each parameter as a bar: the fraction of the variance between trials."""
    figure = plotting.make_figure(7, 1.2 + 0.4 * len(fractions))
    axes = figure.subplots()
    names = [plotting.shorten(name) for name in short_names(fractions)]
    bars = axes.barh(range(len(fractions)), list(fractions.values()), color=COLORS[0], height=0.6)
    axes.bar_label(bars, [f"{fraction:.0%}" for fraction in fractions.values()], padding=3, color=INK, fontsize=9)
    axes.set_yticks(range(len(fractions)), names, **plotting.text_style(9))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1)
    axes.set_xlabel("fraction of the variance between trials (fANOVA)", color=INK)
    axes.set_title(f"Importance for {monitor}", **plotting.text_style(11))
    axes.spines[["top", "right"]].set_visible(False)
    return plotting.render_png(figure)
