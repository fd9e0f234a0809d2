"""The figure of a learning curve: the measured metric, the fitted law, and its extrapolation."""

from __future__ import annotations

from itertools import cycle

from sightline.evaluation.learning_curve import LearningCurve
from sightline.report import plotting
from sightline.report.plotting import INK, TRAIN, VALIDATION


def plot_learning_curve(curve: LearningCurve, title: str = "") -> bytes:
    """Draw the metric over the number of labeled training images, with 95% intervals; predictions are dashed."""
    figure = plotting.make_figure(7.5, 4.6)
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes = figure.subplots()
    points = curve.points
    values = [point.value for point in points]
    below = [point.value - point.interval.low for point in points]
    above = [point.interval.high - point.value for point in points]
    axes.errorbar(
        [point.labels for point in points], values, yerr=[below, above], color=TRAIN, fmt="o", capsize=3,
        elinewidth=1.2, label="measured, 95% interval", zorder=4,
    )  # fmt: skip
    if len(curve.fitted):
        labels, fitted, low, high = curve.fitted.T
        known = labels <= curve.labels
        axes.plot(labels[known], fitted[known], color=INK, linewidth=1.4, label="fitted power law", zorder=3)
        axes.plot(labels[~known], fitted[~known], color=VALIDATION, linestyle="--", label="predicted", zorder=3)
        axes.fill_between(
            labels[~known], low[~known], high[~known], color=VALIDATION, alpha=0.15, linewidth=0, label="95% band",
        )  # fmt: skip
        for gain, marker in zip(curve.gains, cycle("sD^vP"), strict=False):
            low_end, high_end = (100 * end for end in gain.interval)
            axes.plot(
                gain.labels, gain.value, marker, color="white", markeredgecolor=VALIDATION, zorder=5,
                label=f"{gain.more:,} more: {100 * gain.gain:+.1f} points ({low_end:.1f} to {high_end:.1f})",
            )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    axes.set_ylim(top=min(axes.get_ylim()[1], 1.0))
    images = "training labels" if curve.metric == "accuracy" else "labeled training images"
    plotting.style_axes(axes, images, f"{curve.metric.replace('_', ' ')} on held-out images")
    axes.legend(loc="lower right", frameon=False)
    axes.set_title(title, **plotting.text_style(12))
    return plotting.render_png(figure)
