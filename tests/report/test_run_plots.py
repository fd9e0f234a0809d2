"""Figures are images of what they are given: complete, in bounds and legible."""

from __future__ import annotations

import dataclasses
import io
import math
import sys
from typing import Any
from xml.dom import minidom

import numpy as np
import pytest
from PIL import Image

from recording import make_history
from sightline.errors import MissingExtraError
from sightline.evaluation.drift import Drift
from sightline.evaluation.results import EvaluationResult
from sightline.intervals import Interval
from sightline.report import run_plots
from sightline.report.drift_plot import plot_drift
from sightline.report.plotting import RenderedFigure


def evaluation(classes: int, name: str = "class {}", count: int = 100) -> EvaluationResult:
    matrix = np.eye(classes, dtype=np.int64) * count + np.eye(classes, k=1, dtype=np.int64)
    names = tuple(name.format(i) for i in range(classes))
    nothing = np.zeros((0, classes), np.float32)
    return EvaluationResult(
        names, 0.9, Interval(0.8, 0.95), 0.4, int(matrix.sum()), (), (), (), np.zeros(0, np.int32), nothing, 1.0,
        confusion=matrix,
    )  # fmt: skip


def open_png(figures_drawn: RenderedFigure) -> Image.Image:
    with Image.open(io.BytesIO(figures_drawn.png)) as image:
        assert image.format == "PNG"
        image.load()
        assert len(image.convert("L").getcolors() or []) > 10, "something must be drawn"
        return image


def texts(figure: Any) -> list[str]:
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


# Curves


@pytest.mark.parametrize("epochs", [1, 2, 7, 8, 60])
def test_curves_show_every_epoch(epochs: int, figures_drawn: list[Any]) -> None:
    rows = make_history(epochs)
    image = open_png(run_plots.plot_curves(rows, "quick on beans"))
    assert 800 < image.width < 1300
    assert 350 < image.height < 700
    loss, accuracy = figures_drawn[0].axes
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
        assert axes.get_ylabel() == name
        assert axes.get_xlabel() == "epoch"
        lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
        assert list(lines) == ["training", "validation"]
        for label, prefix in (("training", ""), ("validation", "val_")):
            np.testing.assert_array_equal(lines[label].get_xdata(), range(1, epochs + 1))
            np.testing.assert_allclose(lines[label].get_ydata(), [getattr(r, prefix + name) for r in rows])
        low, high = axes.get_ylim()
        assert low == 0
        assert high > max(max(line.get_ydata()) for line in lines.values()) * 1.01
        left, right = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if left <= tick <= right]
        assert ticks
        assert all(tick == int(tick) and 1 <= tick <= epochs for tick in ticks)
    assert accuracy.get_ylim() == (0, 1.02)
    assert "quick on beans" in texts(figures_drawn[0])


def test_legend_covers_no_curve(figures_drawn: list[Any]) -> None:
    run_plots.plot_curves(make_history(10))
    (legend,) = figures_drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["training", "validation"]
    box = legend.get_window_extent()
    assert all(not box.overlaps(axes.get_window_extent()) for axes in figures_drawn[0].axes)


def test_curves_without_validation_have_one_line(figures_drawn: list[Any]) -> None:
    open_png(run_plots.plot_curves(make_history(5, validated=False)))
    assert [text.get_text() for text in figures_drawn[0].legends[0].get_texts()] == ["training"]


def test_one_epoch_is_a_point_with_its_value(figures_drawn: list[Any]) -> None:
    (row,) = make_history(1)
    run_plots.plot_curves([row])
    written = texts(figures_drawn[0])
    assert {f"{row.loss:.4f}", f"{row.val_loss:.4f}", f"{row.accuracy:.4f}", f"{row.val_accuracy:.4f}"} <= {*written}
    assert all(line.get_marker() == "o" for line in figures_drawn[0].axes[0].lines[:2])


def test_stages_are_named_above_their_epochs(figures_drawn: list[Any]) -> None:
    run_plots.plot_curves(make_history(20, ("head", "fine-tune")))
    for axes in figures_drawn[0].axes:
        assert [(t.get_text(), t.get_position()[0]) for t in axes.texts] == [("head", 5.5), ("fine-tune", 15.5)]
        dashed = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"]
        assert dashed == [10.5]
        top = axes.get_window_extent().y1
        assert all(text.get_window_extent().y0 >= top for text in axes.texts)


def test_one_stage_needs_no_name(figures_drawn: list[Any]) -> None:
    run_plots.plot_curves(make_history(20))
    assert not figures_drawn[0].axes[0].texts


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_curves_that_leave_the_numbers_are_drawn_as_far_as_they_go(bad: float) -> None:
    rows = make_history(6)
    rows[3] = dataclasses.replace(rows[3], val_loss=bad, loss=bad)
    open_png(run_plots.plot_curves(rows))


def test_a_history_without_epochs_is_plotted() -> None:
    open_png(run_plots.plot_curves([]))


# Confusion


@pytest.mark.parametrize("classes", [2, 3, 10, 30])
def test_confusion_shows_names_and_counts(classes: int, figures_drawn: list[Any]) -> None:
    result = evaluation(classes)
    image = open_png(run_plots.plot_confusion(result, "test"))
    assert 300 < image.width < 2200
    assert 250 < image.height < 2200
    axes = figures_drawn[0].axes[0]
    names = list(result.classes)
    assert [label.get_text() for label in axes.get_xticklabels()] == names
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    cells = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}
    assert cells == {(i, j): str(result.confusion[i, j]) for i, j in np.argwhere(result.confusion)}
    np.testing.assert_allclose(axes.images[0].get_array(), result.confusion / result.confusion.sum(1, keepdims=True))
    assert axes.images[0].get_clim() == (0, 1)
    assert "test" in texts(figures_drawn[0])


@pytest.mark.parametrize("classes", [31, 200])
def test_many_classes_are_numbered(classes: int, figures_drawn: list[Any]) -> None:
    image = open_png(run_plots.plot_confusion(evaluation(classes)))
    assert max(image.size) < 1600
    axes = figures_drawn[0].axes[0]
    assert not axes.texts
    assert axes.get_xlabel() == "predicted class (index)"
    assert "class 3" not in texts(figures_drawn[0])


def extents(labels: list[Any]) -> list[Any]:
    return [label.get_window_extent() for label in labels if label.get_text()]


@pytest.mark.parametrize(
    ("classes", "name"), [(2, "class {}"), (10, "class {}"), (12, "{}"), (30, "n{}"), (3, "a somewhat longer name {}")]
)
def test_labels_do_not_overlap(classes: int, name: str, figures_drawn: list[Any]) -> None:
    run_plots.plot_confusion(evaluation(classes, name, 54_321))
    axes = figures_drawn[0].axes[0]
    rows, counts = extents(axes.get_yticklabels()), extents(axes.texts)
    columns = extents(axes.get_xticklabels()) if not axes.get_xticklabels()[0].get_rotation() else []
    for boxes in (rows, counts, columns):
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


@pytest.mark.parametrize(("classes", "name"), [(10, "a rather long name of a class, number {}"), (30, "class {}")])
def test_nothing_is_cut_at_the_border(classes: int, name: str) -> None:
    image = open_png(run_plots.plot_confusion(evaluation(classes, name), "test"))
    border = np.asarray(image.convert("L"))
    assert all((edge == 255).all() for edge in (border[0], border[-1], border[:, 0], border[:, -1]))


def test_long_names_keep_both_ends(figures_drawn: list[Any]) -> None:
    run_plots.plot_confusion(evaluation(2, "Phalaenopsis amabilis var. alba, plate number {}"))
    names = [label.get_text() for label in figures_drawn[0].axes[0].get_yticklabels()]
    assert names == ["Phalaenopsis a…late number 0", "Phalaenopsis a…late number 1"]


def test_large_counts_are_written_short(figures_drawn: list[Any]) -> None:
    run_plots.plot_confusion(evaluation(2, count=54_321))
    assert sorted(text.get_text() for text in figures_drawn[0].axes[0].texts) == ["1", "54k", "54k"]


def test_counts_stand_out_from_their_cell(figures_drawn: list[Any]) -> None:
    run_plots.plot_confusion(evaluation(4))
    for text in figures_drawn[0].axes[0].texts:
        diagonal = text.get_position()[0] == text.get_position()[1]
        assert (text.get_color() == "white") is diagonal


def test_names_of_any_script_are_plotted_as_text_without_warnings(figures_drawn: list[Any]) -> None:
    names = ("猫 图片", "$x_{$", "under $5 or $9", "\\frac", "two\nlines")
    result = dataclasses.replace(evaluation(5), classes=names)
    open_png(run_plots.plot_confusion(result, "豆 for $1 and $2"))
    tick_labels = [label.get_text() for label in figures_drawn[0].axes[0].get_xticklabels()]
    assert tick_labels == ["猫 图片", "$x_{$", "under $5 or $9", "\\frac", "two lines"]
    open_png(run_plots.plot_curves(make_history(4, ("$x_{$", "微调 $")), "$\\frac$ 豆"))


def test_class_without_images_is_drawn() -> None:
    result = evaluation(3)
    result.confusion[1] = 0
    open_png(run_plots.plot_confusion(result))


def test_same_figures_same_bytes() -> None:
    assert run_plots.plot_curves(make_history(5), "x") == run_plots.plot_curves(make_history(5), "x")
    assert run_plots.plot_confusion(evaluation(3)) == run_plots.plot_confusion(evaluation(3))


def test_missing_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"matplotlib.*\.\[train\]"):
        run_plots.plot_curves(make_history(2))


def test_a_name_that_attacks_is_drawn_as_text() -> None:
    """Control characters would make an SVG that no browser draws; markup in a name stays text."""
    hostile = "\x1b[2J<script></script>\x00\u202e" + '" onload="alert(1)'
    rendered = run_plots.plot_confusion(evaluation(3, hostile + "{}"), title="\x9b<svg onload=alert(1)>\nsecond")
    for vector in (rendered.svg, run_plots.plot_curves(make_history(3, (hostile, "b")), title=hostile).svg):
        assert vector is not None
        tree = minidom.parseString(vector)  # noqa: S318  # our own
        assert tree.getElementsByTagName("script") == []
        assert not [e for e in tree.getElementsByTagName("*") if e.hasAttribute("onload")]
    assert b"\\u009b&lt;svg onload=alert(1)&gt;" in (rendered.svg or b"")


def test_the_evidence_for_drift_has_ticks_at_whole_images_and_powers_of_ten(figures_drawn: list[Any]) -> None:
    for count, last in ((3, 1.5), (60, 40.0)):
        plot_drift(Drift(0.05, None, None, "distance", 0.3, np.linspace(-1, last, count)))
        (axes,) = figures_drawn[-1].axes
        ticks = np.concatenate([axes.get_xticks(), axes.get_yticks()])
        assert (ticks == ticks.round()).all()
