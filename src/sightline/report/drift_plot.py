"""The figure for a watched stream: the evidence for drift after each image, and the alarm."""

from __future__ import annotations

import numpy as np

from sightline.evaluation.drift import Drift
from sightline.report import plotting
from sightline.report.plotting import INK, TRAIN, VALIDATION

MAX_POINTS = 4000


def plot_drift(drift: Drift, title: str = "") -> bytes:
    """Draw the evidence for drift over the number of images, on a logarithmic scale; return a PNG."""
    figure = plotting.make_figure(7.5, 3.8)
    axes = figure.subplots()
    count = len(drift.log_evidence)
    step = max(1, count // MAX_POINTS)
    axes.plot(
        np.arange(1, count + 1)[::step], drift.log_evidence[::step] / np.log(10), color=TRAIN, linewidth=1.4,
        label="evidence",
    )  # fmt: skip
    axes.axhline(-np.log10(drift.level), color=VALIDATION, linestyle="--", label=f"alarm at {1 / drift.level:g}")
    if drift.start is not None:
        axes.axvline(drift.start, color=INK, linewidth=1, label=f"most likely start: image {drift.start:,}")
    for axis in (axes.xaxis, axes.yaxis):  # ticks at whole images and whole powers of 10
        axis.get_major_locator().set_params(integer=True)
    axes.yaxis.set_major_formatter(lambda value, _: f"$10^{{{value:g}}}$")
    plotting.style_axes(axes, "images", "evidence for drift")
    axes.legend(frameon=False)
    axes.set_title(title, **plotting.text_style(12))
    return plotting.render_png(figure)
