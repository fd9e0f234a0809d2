"""Figures of several runs: every run is in them, distinct, and none hides the others."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from recording import make_history
from sightline.callbacks import EpochRecord
from sightline.report import comparison_plots


def open_png(png: bytes) -> Image.Image:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        image.load()
        assert len(image.convert("L").getcolors() or []) > 10, "something must be drawn"
        return image


def test_every_run_has_its_line_in_all_four_fields(figures_drawn: list[Any]) -> None:
    runs = {"first": make_history(3), "烘焙 $5": make_history(5, loss=1.0)}
    image = open_png(comparison_plots.plot_curves(runs))
    assert min(image.size) > 500
    fields = figures_drawn[-1].axes
    assert [axes.get_title() for axes in fields] == [
        "training loss", "validation loss", "training accuracy", "validation accuracy",
    ]  # fmt: skip
    for axes, name in zip(fields, ("loss", "val_loss", "accuracy", "val_accuracy"), strict=True):
        lines = {line.get_label(): line for line in axes.lines}
        assert set(lines) == set(runs)
        for run, line in lines.items():
            np.testing.assert_array_equal(line.get_xdata(), [r.epoch for r in runs[run]])
            np.testing.assert_array_equal(line.get_ydata(), [getattr(r, name) for r in runs[run]])
    (legend,) = figures_drawn[-1].legends
    assert [text.get_text() for text in legend.get_texts()] == list(runs)
    assert not any(text.get_parse_math() for text in legend.get_texts())


def test_twenty_runs_have_distinct_lines(figures_drawn: list[Any]) -> None:
    comparison_plots.plot_curves({f"run-{i}": make_history(9) for i in range(20)})
    looks = {(line.get_color(), line.get_linestyle()) for line in figures_drawn[-1].axes[0].lines}
    assert len(looks) == 20
    assert len({line.get_color() for line in figures_drawn[-1].axes[0].lines[:8]}) == 8
    (legend,) = figures_drawn[-1].legends
    width = legend.get_window_extent().width
    assert width <= figures_drawn[-1].bbox.width, "the legend stays within the figure"


def test_a_huge_loss_does_not_flatten_the_others(figures_drawn: list[Any]) -> None:
    comparison_plots.plot_curves({"good": make_history(9), "wild": make_history(9, loss=1e6), "fair": make_history(9)})
    assert figures_drawn[-1].axes[0].get_yscale() == "log"
    comparison_plots.plot_curves({"good": make_history(9), "fair": make_history(9)})
    assert figures_drawn[-1].axes[0].get_yscale() == "linear"


@pytest.mark.parametrize(
    "runs", [{"a": [], "b": []}, {"a": make_history(1, validated=False), "b": []}], ids=["none", "few"]
)
def test_what_is_missing_is_left_out(runs: dict[str, list[EpochRecord]], figures_drawn: list[Any]) -> None:
    comparison_plots.plot_curves(runs)
    assert [len(line.get_xdata()) for line in figures_drawn[-1].axes[0].lines] == [len(h) for h in runs.values()]
    titles = [axes.get_title() for axes in figures_drawn[-1].axes]
    assert titles == ["training loss", "training accuracy"], "no run has a validation split"
    whole = [not line.get_clip_on() for line in figures_drawn[-1].axes[0].lines]
    assert whole == [len(h) > 0 for h in runs.values()], "a dot at zero is not cut"


COLUMNS: dict[str, list[comparison_plots.Value]] = {
    "train.optimizer.learning_rate": [0.1, 0.001, 0.1, 0.001],
    "底座": ["冻结", "冻结", "trainable", "trainable"],
}


@pytest.mark.parametrize("minimize", [False, True])
def test_each_trial_is_a_line_and_the_best_is_thick(figures_drawn: list[Any], minimize: bool) -> None:
    values = [0.5, 0.9, 0.7, 0.6]
    image = open_png(comparison_plots.plot_parallel(COLUMNS, values, "validation.accuracy", minimize=minimize))
    assert min(image.size) > 400
    (axes,) = figures_drawn[-1].axes
    lines = [line for line in axes.lines if len(line.get_xdata()) == 3]
    assert len(lines) == 4
    heights = sorted(line.get_ydata()[-1] for line in lines)
    np.testing.assert_allclose(heights, [0, 0.25, 0.5, 1])
    thick = max(lines, key=lambda line: line.get_linewidth())
    assert thick.get_ydata()[-1] == (0 if minimize else 1)
    assert [t.get_text() for t in axes.get_xticklabels()] == ["learning_rate", "底座", "validation.accuracy"]
    words = {text.get_text() for text in axes.texts}
    assert {"0.1", "0.001", "冻结", "trainable", "0.5", "0.9"} <= words
    assert len({line.get_ydata()[1] for line in lines}) == 4, "lines through one value stay apart"


def test_many_values_lie_on_a_scale(figures_drawn: list[Any]) -> None:
    rates: list[comparison_plots.Value] = [10.0**-i for i in range(20)]
    sizes = [i / 20 for i in range(20)]
    comparison_plots.plot_parallel({"rate": rates, "size": [*range(20)]}, sizes, "loss", logarithmic={"rate"})
    lines = [line for line in figures_drawn[-1].axes[0].lines if len(line.get_xdata()) == 3]
    heights = sorted(line.get_ydata()[0] for line in lines)
    np.testing.assert_allclose(np.diff(heights), 1 / 19)


def test_scales_over_a_narrow_range_tell_their_values_apart(figures_drawn: list[Any]) -> None:
    rates = [0.101 + i / 10_000 for i in range(20)]
    comparison_plots.plot_parallel({"rate": rates}, [1.0865 + i / 1000 for i in range(20)], "validation.loss")
    texts = [text.get_text() for text in figures_drawn[-1].axes[0].texts]
    assert len({*texts}) == len(texts) == 10


def test_trials_that_scored_alike_are_drawn(figures_drawn: list[Any]) -> None:
    open_png(comparison_plots.plot_parallel({"a": [1]}, [0.5], "x"))
    open_png(comparison_plots.plot_parallel({"a": [1, 2]}, [0.5, 0.5], "x"))


def test_importance_is_a_bar_for_each_parameter(figures_drawn: list[Any]) -> None:
    open_png(comparison_plots.plot_importance({"train.batch_size": 0.75, "seed": 0.25}, "validation.accuracy"))
    (axes,) = figures_drawn[-1].axes
    assert [bar.get_width() for bar in axes.patches] == [0.75, 0.25]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["batch_size", "seed"]
    assert {"75%", "25%"} <= {t.get_text() for t in axes.texts}
