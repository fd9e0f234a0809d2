"""The Pareto plot of a search: accuracy or another metric against file size, latency, parameters and multiply-adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sightline.metrics import describe_metric
from sightline.report import plotting
from sightline.report.plotting import INK, TRAIN, VALIDATION

FAINT = "#8c959f"
_LABEL_PLACES = (  # offsets in points, and alignments; nearest first
    ((0, 7), "center", "bottom"), ((0, -7), "center", "top"), ((8, 0), "left", "center"), ((-8, 0), "right", "center"),
    *(place for level in (17, 27, 37) for place in (((0, level), "center", "bottom"), ((0, -level), "center", "top"))),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ParetoPoint:
    """One candidate: a metric in [0, 1], `bytes` of its file, `latency` in milliseconds, whether it is on the front."""

    name: str
    metric: float
    bytes: int
    latency: float
    parameters: int
    multiply_adds: int
    on_front: bool
    best: bool = False


def plot_pareto(points: Sequence[ParetoPoint], floor: float | None, metric: str = "accuracy") -> bytes:
    """Draw the `metric` of candidates over each of the four costs.

    `floor` is the required value of the metric, None if the requirement is on another metric.
    """
    figure = plotting.make_figure(11, 8.4)
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panels = (
        ("size of the file (MB)", "bytes", 1e6), ("latency at batch 1 (ms)", "latency", 1.0),
        ("parameters (millions)", "parameters", 1e6), ("multiply-adds (millions)", "multiply_adds", 1e6),
    )  # fmt: skip
    for axes, (label, field, scale) in zip(figure.subplots(2, 2, sharey=True).flat, panels, strict=True):
        for dominated in (True, False):
            group = [p for p in points if p.on_front != dominated]
            axes.scatter(
                [getattr(p, field) / scale for p in group], [p.metric for p in group],
                color=FAINT if dominated else TRAIN, s=34, label=("on the Pareto front", "dominated")[dominated],
                zorder=3,
            )  # fmt: skip
        chosen = [p for p in points if p.best]
        axes.scatter(
            [getattr(p, field) / scale for p in chosen], [p.metric for p in chosen], s=130, facecolors="none",
            edgecolors=VALIDATION, linewidths=1.8, label="chosen", zorder=4,
        )  # fmt: skip
        if floor is not None:
            axes.axhline(floor, color=INK, linewidth=0.8, linestyle="--", label=f"required {describe_metric(metric)}")
        axes.set_xscale("log")
        values = [getattr(p, field) for p in points]
        wide = max(values) > 100 * min(values)  # labels other than those of decades would overlap
        axes.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.18, y=0.15)
        plotting.style_axes(axes, label)
    figure.draw_without_rendering()  # lays out the figure, so that the positions of points are known for their names
    for axes, (_, field, scale) in zip(figure.axes, panels, strict=True):
        _label_points(axes, points, field, scale)
    for axes in figure.axes[::2]:
        axes.set_ylabel(f"validation {describe_metric(metric)}", color=INK)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle("Smaller models", **plotting.text_style(12))
    return plotting.render_png(figure)


def _label_points(axes: Any, points: Sequence[ParetoPoint], field: str, scale: float) -> None:
    """Label the points on the front and the largest, where the label covers no other label or point, if possible.

    Call this once the limits of the axes are known.
    """
    from matplotlib.transforms import Bbox

    places = {(getattr(p, field) / scale, p.metric) for p in points}
    taken = [Bbox.from_extents(x - 7, y - 7, x + 7, y + 7) for x, y in axes.transData.transform([*places])]
    largest = max(points, key=lambda p: p.bytes)
    named = sorted(
        (p for p in points if p.on_front or p.best or p is largest),
        key=lambda p: (not p.best, float(getattr(p, field))),
    )
    box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    for point in named:
        text = axes.annotate(
            plotting.shorten(point.name), (getattr(point, field) / scale, point.metric), xytext=(0, 0),
            textcoords="offset points", bbox=box, zorder=2.5, **plotting.text_style(7),
        )  # fmt: skip
        for offset, horizontal, vertical in _LABEL_PLACES:
            text.set(position=offset, ha=horizontal, va=vertical)
            if not any(text.get_window_extent().overlaps(other) for other in taken):
                taken.append(text.get_window_extent())
                break
        else:
            text.remove()
