"""Masks that a model abstains on, and the promise of the threshold for their expected IoU."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sightline import jsonio
from sightline.cli import segmentation_view
from sightline.errors import UsageError
from sightline.evaluation import mask_decisions
from sightline.evaluation.mask_outputs import MaskOutputs
from sightline.inference.mask_quality import decide_mask
from sightline.inference.predictor import Outputs
from sightline.inference.results import ThresholdRequest, Thresholds

PIXELS = 1000


def draw_outputs(count: int, seed: int) -> MaskOutputs:
    """Return outputs for images of one class whose IoU the quality follows, with noise."""
    rng = np.random.default_rng(seed)
    ious = rng.uniform(0.2, 1, count)
    confusions = np.zeros((count, 2, 2), np.int64)
    confusions[:, 0, 0] = np.rint(ious * PIXELS)
    confusions[:, 0, 1] = PIXELS - confusions[:, 0, 0]
    nothing = np.zeros((count, 2), np.float32)
    return MaskOutputs(
        Outputs(nothing, nothing, nothing), np.zeros((count, 1, 1), np.uint8), confusions,
        np.zeros((count, 2, 4), np.int64), np.zeros(count), np.zeros((count, 15, 3)),
        (ious + rng.normal(0, 0.08, count)).clip(0, 1), np.zeros((0, 2), np.float32), np.zeros(0, np.int32),
        np.zeros(0, np.int32), {},
    )  # fmt: skip


def test_the_threshold_keeps_the_share_of_poor_masks_below_the_target() -> None:
    request = ThresholdRequest(target_precision=0.9, min_iou=0.6)
    held_out, new = draw_outputs(400, 0), draw_outputs(20_000, 1)
    thresholds = mask_decisions.fit_thresholds(held_out, request, None)
    assert thresholds is not None
    assert thresholds.quality is not None
    decisions = mask_decisions.evaluate_decisions(new, thresholds)
    assert decisions is not None
    assert decisions.precision is not None
    assert decisions.precision >= 0.9
    assert decisions.met
    assert 0.3 < decisions.coverage < 0.6
    accepted = new.quality >= thresholds.quality
    ious = new.confusions[:, 0, 0] / PIXELS
    assert decisions.precision == pytest.approx((ious[accepted] >= 0.6).mean())
    assert decisions.mean_iou.value == pytest.approx(ious[accepted].mean())
    interval = decisions.mean_iou.interval
    assert interval is not None
    assert interval.low < ious[accepted].mean() < interval.high
    grouped = mask_decisions.choose_threshold(replace(held_out, groups=np.repeat(np.arange(8), 50)), request)
    assert grouped is not None
    assert "treats 400 validation images as independent, but they are in 8 groups" in grouped.note
    relaxed = mask_decisions.fit_thresholds(held_out, ThresholdRequest(0.9, conservative=False, min_iou=0.6), None)
    assert relaxed is not None
    assert relaxed.quality is not None
    assert relaxed.quality < thresholds.quality
    same = mask_decisions.evaluate_decisions(held_out, thresholds, is_fitted=True)
    assert same is not None
    assert same.met is None


def test_without_a_threshold_that_reaches_the_target_no_mask_is_accepted() -> None:
    thresholds = mask_decisions.fit_thresholds(draw_outputs(20, 0), ThresholdRequest(0.99, min_iou=0.9), None)
    assert thresholds is not None
    assert (thresholds.quality, thresholds.min_iou) == (None, 0.9)
    decisions = mask_decisions.evaluate_decisions(draw_outputs(20, 1), thresholds)
    nothing = SimpleNamespace(risk=[])
    report: Any = SimpleNamespace(risk_coverage=nothing, threshold=None, selective=decisions)
    lines = list(segmentation_view._list_decision_lines(report, ""))
    assert lines == ["  on these 20 images: accepts 0.0%; abstains on 100.0%"]
    decision = decide_mask(1.0, thresholds)
    assert decision is not None
    assert decision.decision == "abstain"
    decisions = mask_decisions.evaluate_decisions(draw_outputs(50, 1), thresholds)
    assert decisions is not None
    assert (decisions.coverage, decisions.precision, decisions.mean_iou.note) == (0, None, "no mask is accepted")
    assert Thresholds.from_dict(thresholds.to_dict()) == thresholds
    assert "min_iou" not in Thresholds(3).to_dict()


def test_the_best_images_come_first_in_the_risk_coverage_curve() -> None:
    outputs = draw_outputs(200, 0)
    curve = mask_decisions.compute_risk_coverage(outputs)
    ious = outputs.confusions[:, 0, 0] / PIXELS
    assert curve.risk[-1] == pytest.approx(1 - ious.mean())
    best = np.argsort(-outputs.quality)[:50]
    assert curve.risk[49] == pytest.approx(1 - ious[best].mean())
    assert curve.aurc < 0.6 * curve.risk[-1]


def test_images_of_void_pixels_alone_have_an_empty_risk_coverage_curve() -> None:
    outputs = replace(draw_outputs(5, 0), confusions=np.zeros((5, 2, 2), np.int64))
    curve = mask_decisions.compute_risk_coverage(outputs)
    assert jsonio.loads(jsonio.dumps(curve.to_dict())) == {"aurc": None, "coverage": [], "risk": []}


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ThresholdRequest(0.9, coverage=0.9), "are for labels of whole images"),
        (ThresholdRequest(sensitivity=0.9), "are for labels of whole images"),
        (ThresholdRequest(min_iou=0.5), "give both"),
        (ThresholdRequest(0.9, min_iou=1.0), "The smallest IoU must be between 0 and 1"),
        (ThresholdRequest(1.5), "The target precision must be between 0 and 1"),
    ],
)
def test_targets_without_a_meaning_for_masks_are_refused(request_: ThresholdRequest, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        mask_decisions.check_request(request_)
