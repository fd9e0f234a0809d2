"""Figures of an evaluation: what is drawn, and what is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sightline import metrics
from sightline.evaluation import binary
from sightline.evaluation.calibration import CalibrationReport
from sightline.evaluation.report import evaluate_calibration
from sightline.evaluation.scoring import compute_metrics
from sightline.inference.predictor import ModelOutputs, Outputs
from sightline.report import evaluation_plots


def draw_outputs(count: int, heat: float, seed: int = 0) -> ModelOutputs:
    """Logits that are calibrated at `heat` 1, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (count, 3)).astype(np.float32)
    labels = (metrics.softmax(logits).cumsum(1) > rng.random((count, 1))).argmax(1).astype(np.int32)
    hot = logits * np.float32(heat)
    return ModelOutputs(Outputs(metrics.softmax(hot), hot, logits), labels)


def with_temperature(value: float) -> CalibrationReport:
    calibration_result = evaluate_calibration(draw_outputs(400, 1), draw_outputs(400, 1, 1))
    assert calibration_result.temperature is not None
    return replace(calibration_result, temperature=replace(calibration_result.temperature, value=value))


def test_the_remark_on_the_calibration_names_the_images_that_it_counts() -> None:
    test, validation = draw_outputs(40, 1), draw_outputs(30, 1, 1)
    assert evaluate_calibration(test, validation).note.startswith("With 30 validation images, ")
    assert evaluate_calibration(test, test).note.startswith("With 40 images, ")


@pytest.mark.parametrize("value", [1.0, 0.9951, 1.0049])
def test_the_identity_is_not_drawn_twice(figures_drawn: list[Any], value: float) -> None:
    assert f"{value:.2f}" == "1.00"
    assert with_temperature(value).unchanged
    evaluation_plots.plot_reliability(with_temperature(value))
    assert [axes.get_title() for axes in figures_drawn[0].axes if axes.get_title()] == [
        f"as served: ECE {with_temperature(value).ece:.3f}"
    ]


def test_a_temperature_that_changes_something_is_drawn_beside(figures_drawn: list[Any]) -> None:
    calibration_result = evaluate_calibration(draw_outputs(400, 2.5), draw_outputs(400, 2.5, 1))
    assert not calibration_result.unchanged
    evaluation_plots.plot_reliability(calibration_result)
    titles = [axes.get_title() for axes in figures_drawn[0].axes if axes.get_title()]
    assert len(titles) == 2
    assert titles[1].startswith("at temperature 2.")
    (names,) = figures_drawn[0].legends
    assert [text.get_text() for text in names.get_texts()] == [
        "perfect calibration", "at the mean confidence", "accuracy",
    ]  # fmt: skip


def test_roc_and_precision_recall_are_drawn_with_what_is_in_use(figures_drawn: list[Any]) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200).astype(np.int32)
    logits = rng.normal(0, 1, (200, 2)).astype(np.float32)
    logits[np.arange(200), labels] += 2
    p = metrics.softmax(logits)
    rates = binary.evaluate_binary(p, labels, ("defect", "ok"), compute_metrics(p, labels)["auroc"])
    point = binary.choose_operating_point(p[:, 0].astype(float), labels == 0, "sensitivity", 0.9)
    tried = binary.evaluate_operating_point(point, p[:, 0].astype(float), labels == 0)
    assert evaluation_plots.plot_binary(replace(rates, operating_points=(tried,)), "test").png.startswith(b"\x89PNG")
    left, right = figures_drawn[0].axes
    curve = left.get_lines()[0]
    np.testing.assert_array_equal(curve.get_xdata(), rates.roc.x)
    np.testing.assert_array_equal(right.get_lines()[0].get_ydata(), rates.precision_recall.y)
    assert left.get_title() == f"ROC: area {rates.auroc.value:.4f}"
    assert right.get_title() == f"precision-recall: average precision {rates.average_precision.value:.4f}"
    (words,) = figures_drawn[0].legends
    assert [text.get_text() for text in words.get_texts()] == [
        "chance", "more probable class", "sensitivity 0.9 on validation",
    ]  # fmt: skip
