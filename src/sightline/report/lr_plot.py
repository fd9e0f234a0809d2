"""Plot the learning rates over the steps of training, before training starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from sightline.config import RunConfig, StageConfig
from sightline.config.stage_epochs import count_epochs
from sightline.report import plotting
from sightline.report.diagram import save_figure
from sightline.report.plotting import INK, TRAIN
from sightline.training.schedules import build_schedule

POINTS = 4000  # maximum number of steps plotted


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """One stage: its name, its number of steps, and the learning rate of each step, counted from 0."""

    name: str
    steps: int
    rate: Callable[[int], float]


def plan_stages(config: RunConfig, steps: int) -> list[PlannedStage]:
    """Return the stages of a configuration, for data with `steps` steps per epoch."""
    stages = config.train.stages or (StageConfig("training"),)
    out = []
    for stage in stages:
        count = 0 if stage.is_solved else steps * count_epochs(config.train, stage)
        start = config.train.optimizer.learning_rate if stage.learning_rate is None else stage.learning_rate
        out.append(PlannedStage(stage.name, count, build_schedule(config.train.schedule, start, count)))
    return [stage for stage in out if stage.steps]


def plot_learning_rates(stages: Sequence[PlannedStage], steps: int, title: str = "", format: str = "png") -> bytes:
    """Draw the learning rate over all steps, stage after stage, with a second axis in epochs of `steps` steps."""
    figure = plotting.make_figure(7.5, 3.6)
    axes = figure.subplots()
    start = 0
    bounds = [0]
    for stage in stages:
        at = _sample_steps(stage.steps)
        axes.plot([start + step for step in at], [stage.rate(step) for step in at], color=TRAIN, linewidth=1.6)
        start += stage.steps
        bounds.append(start)
    if len(stages) > 1:
        for stage, (left, right) in zip(stages, pairwise(bounds), strict=True):
            axes.text((left + right) / 2, 1.02, plotting.shorten(stage.name), ha="center",
                      transform=axes.get_xaxis_transform(), **plotting.text_style(9))  # fmt: skip
        for bound in bounds[1:-1]:
            axes.axvline(bound, color=INK, linewidth=0.8, linestyle="--")
    axes.set_xlim(0, max(start, 1))
    axes.set_ylim(0, None)
    axes.margins(y=0.08)
    plotting.style_axes(axes, f"step ({steps:,} to an epoch)", "learning rate")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if title:
        figure.suptitle(title, **plotting.text_style(11))
    return save_figure(figure, format)


def _sample_steps(steps: int) -> list[int]:
    """Return the steps to draw: all, or `POINTS` of them including the first and the last."""
    if steps <= POINTS:
        return list(range(steps))
    return [round(i * (steps - 1) / (POINTS - 1)) for i in range(POINTS)]
