"""Calibration, abstaining, prediction sets: known answers, and what chance allows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import binom

from sightline import intervals, metrics
from sightline.errors import DataError, UsageError
from sightline.evaluation import binary, calibration, conformal, selective
from sightline.evaluation.report import evaluate_calibration
from sightline.inference.decisions import compute_nonconformity, decide, make_prediction_sets
from sightline.inference.ood import compute_energy
from sightline.inference.predictor import ModelOutputs, Outputs
from sightline.inference.results import Thresholds


def draw_logits(
    count: int, classes: int = 4, heat: float = 1.0, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Logits, and labels drawn from their softmax; the logits are then multiplied by `heat`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (count, classes))
    chosen = (softmax(logits, 1).cumsum(1) > rng.random((count, 1))).argmax(1)
    return (logits * heat).astype(np.float32), chosen.astype(np.int32)


@pytest.mark.parametrize("heat", [0.5, 1.0, 3.0])
def test_the_temperature_is_the_one_that_was_put_in(heat: float) -> None:
    logits, labels = draw_logits(5000, heat=heat)
    temperature = calibration.fit_temperature(logits, labels)
    assert temperature.value == pytest.approx(heat, rel=0.1)
    assert temperature.nll_after <= temperature.nll_before
    assert (temperature.count, temperature.note) == (5000, "")
    if heat == 3:
        assert temperature.ece_after < 0.03
        assert temperature.ece_before > 0.1

    def loss(t: float) -> float:
        return float(-log_softmax(logits.astype(float) / t, 1)[np.arange(5000), labels].mean())

    best = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-6})
    assert temperature.value == pytest.approx(best.x, rel=1e-3)
    exact = calibration.fit_temperature(log_softmax(logits, 1), labels)
    assert exact.value == pytest.approx(temperature.value, rel=1e-4)


def test_a_temperature_of_too_few_says_so_and_of_none_is_refused() -> None:
    logits, labels = draw_logits(50)
    assert "50 images" in calibration.fit_temperature(logits, labels).note
    sure = np.eye(3, dtype=np.float32)[[0, 1, 2] * 100]
    for scale in (1, 60, 600):  # above 37, the slope of the loss underflows before the bound
        fitted = calibration.fit_temperature(scale * sure, np.array([0, 1, 2] * 100, np.int32))
        assert "bound (0.05)" in fitted.note
        assert fitted.is_at_bound
    outputs = ModelOutputs(Outputs(softmax(sure, 1), sure, sure), np.array([0, 1, 2] * 100, np.int32))
    reported = evaluate_calibration(outputs, outputs)
    assert (reported.ece_after, reported.bins_after) == (None, ()), "a temperature that is not applied is not evaluated"
    assert "none is applied" in reported.note
    with pytest.raises(DataError, match="no images"):
        calibration.fit_temperature(logits[:0], labels[:0])
    with pytest.raises(DataError, match="NaN"):
        calibration.fit_temperature(np.full((2, 2), np.nan, np.float32), np.zeros(2, np.int32))
    certain = np.array([[0, -np.inf], [0, -1]], np.float32)
    assert np.isfinite(calibration.fit_temperature(certain, np.array([0, 1], np.int32)).value)


def test_ece_by_hand() -> None:
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]], np.float32)
    labels = np.array([0, 1, 0, 1], np.int32)  # at 0.9: half right; at 0.6: all
    assert calibration.compute_ece(p, labels) == pytest.approx((0.4 + 0.4) / 2)
    assert [b.count for b in calibration.reliability_bins(p, labels)] == [2, 2]
    assert calibration.compute_ece(p[:0], labels[:0]) == 0


@pytest.mark.parametrize("heat", [1.0, 3.0])
def test_the_interval_of_an_ece_contains_the_true_one_and_0_only_if_calibrated(heat: float) -> None:
    def draw(count: int, seed: int) -> ModelOutputs:
        logits, labels = draw_logits(count, heat=heat, seed=seed)
        return ModelOutputs(Outputs(softmax(logits, 1), logits, logits), labels)

    exact = evaluate_calibration(draw(200_000, 99), None).ece
    intervals = [evaluate_calibration(draw(300, seed), None).interval for seed in range(40)]
    assert exact is not None
    assert sum(i is not None and i.low <= exact <= i.high for i in intervals) >= 36
    assert sum(i is not None and i.low == 0 for i in intervals) in (range(36, 41) if heat == 1 else [0])


def test_an_ece_with_few_errors_has_a_reason_and_no_interval() -> None:
    sure = np.eye(3, dtype=np.float32)[[0, 1, 2] * 100]
    labels = np.array([0, 1, 2] * 100, np.int32)
    labels[:9] = (labels[:9] + 1) % 3
    report = evaluate_calibration(ModelOutputs(Outputs(sure, sure, sure), labels), None)
    assert (report.interval, report.interval_note) == (None, "no interval with 9 errors: it needs at least 10")


def test_risk_and_coverage_by_hand() -> None:
    curve = selective.compute_risk_coverage(np.array([0.7, 0.9, 0.8], np.float32), np.array([True, False, False]))
    assert curve.coverage.tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    assert curve.risk.tolist() == pytest.approx([0, 0, 1 / 3])
    assert curve.aurc == pytest.approx(1 / 9)
    tied = selective.compute_risk_coverage(np.full(4, 0.5, np.float32), np.array([False, True, False, True]))
    assert tied.risk.tolist() == [0.5] * 4  # no order among equals


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=60), st.floats(0.05, 0.99))
def test_the_threshold_is_the_smallest_that_reaches_the_target(pairs: list[tuple[int, bool]], target: float) -> None:
    confidence = np.array([c / 20 for c, _ in pairs], np.float32)
    correct = np.array([r for _, r in pairs])
    threshold = selective.choose_threshold(confidence, correct, target, conservative=False)
    reaching = [t for t in np.unique(confidence) if correct[confidence >= t].mean() >= target - 1e-9]
    if not reaching:
        assert threshold.confidence is None
        return
    assert threshold.confidence == min(reaching)
    assert threshold.confidence is not None
    assert threshold.accepted == (confidence >= threshold.confidence).sum()


def test_a_conservative_threshold_keeps_its_promise_where_the_plain_one_does_not() -> None:
    def falls_short(*, conservative: bool) -> float:
        missed = 0
        for seed in range(200):
            rng = np.random.default_rng(seed)
            confidence = rng.random(400).astype(np.float32)
            correct = rng.random(400) < 0.6 + 0.4 * confidence
            at = selective.choose_threshold(confidence, correct, 0.9, conservative=conservative).confidence
            if at is not None:
                missed += 0.6 + 0.4 * (at + 1) / 2 < 0.9  # the true precision above it
        return missed / 200

    assert falls_short(conservative=True) <= 0.09  # 0.05 and chance
    assert falls_short(conservative=False) > 0.3


def test_it_takes_299_images_to_show_99_percent() -> None:
    sure = np.linspace(0.5, 1, 299, dtype=np.float32)
    assert selective.choose_threshold(sure, np.ones(299, bool), 0.99).coverage == 1
    assert selective.choose_threshold(sure[1:], np.ones(298, bool), 0.99).confidence is None
    for wrong in (0.0, 1.0, -1.0, 1.5):
        with pytest.raises(UsageError, match="between 0 and 1"):
            selective.choose_threshold(sure, np.ones(299, bool), wrong)


def test_thresholds_of_many_validation_images_take_a_moment() -> None:
    """Not a time that grows with the square of their number: it was minutes."""
    confidence = np.linspace(1, 0, 50_000, dtype=np.float32)
    correct = (np.arange(50_000) % 20 != 19) | (confidence > 0.99)
    assert selective.choose_threshold(confidence, correct, 0.9).accepted == 50_000
    scores = np.linspace(0, 1, 50_000)
    point = binary.choose_operating_point(scores, scores >= 0, "sensitivity", 0.9)
    assert point.threshold is not None
    misses = int((scores < point.threshold).sum())
    assert binom.cdf(misses, 50_000, 0.1) <= 0.05 < binom.cdf(misses + 1, 50_000, 0.1)


def test_a_threshold_says_that_its_bound_ignores_groups() -> None:
    sure, right, groups = np.linspace(0.5, 1, 400, dtype=np.float32), np.ones(400, bool), np.repeat(np.arange(10), 40)
    alone, grouped = (selective.choose_threshold(sure, right, 0.95, groups=of) for of in (None, groups))
    assert (alone.note, grouped.confidence) == ("", alone.confidence)
    assert "treats 400 validation images as independent, but they are in 10 groups" in grouped.note
    few = selective.choose_threshold(sure[:20], right[:20], 0.95, groups=groups[:20])
    assert "independent" not in few.note, "there is no threshold, and so no bound"


def test_being_conservative_says_what_it_costs() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.random(800).astype(np.float32)
    correct = rng.random(800) < 0.6 + 0.4 * confidence
    plain = selective.choose_threshold(confidence, correct, 0.9, conservative=False)
    threshold = selective.choose_threshold(confidence, correct, 0.9)
    assert threshold.lower_bound is not None
    assert threshold.lower_bound >= 0.9 > intervals.lower_bound(round(plain.coverage * 720), 800)
    assert threshold.coverage_cost == pytest.approx(plain.coverage - threshold.coverage)
    assert threshold.coverage_cost > 0
    assert (plain.coverage_cost, plain.conservative, threshold.conservative) == (0, False, True)
    few = selective.choose_threshold(confidence[:20], np.ones(20, bool), 0.99)
    assert (few.confidence, few.coverage_cost) == (None, 1)
    assert "at least 299 without an error" in few.note
    assert "--no-conservative has a coverage of 100.0%" in few.note
    one = selective.choose_threshold(np.ones(1, np.float32), np.ones(1, bool), 0.9)
    assert one.note.startswith("1 validation image does not show that any threshold reaches the target;")


def test_a_threshold_is_chosen_on_validation_and_met_only_by_its_lower_bound() -> None:
    sure = np.linspace(0.5, 1, 400, dtype=np.float32)
    right = np.ones(400, bool)
    few = selective.evaluate_selective((sure, right), (sure[-100:], right[-100:]))
    assert few.threshold.target == 0.99
    assert few.evaluated is not None
    assert (few.evaluated.precision, few.evaluated.met) == (1, False), "100 images cannot show 99%"
    assert few.evaluated.lower_bound == pytest.approx(0.05 ** (1 / 100))
    enough = selective.evaluate_selective((sure, right), (np.repeat(sure, 2), np.repeat(right, 2)))
    assert enough.evaluated is not None
    assert enough.evaluated.met
    worse = selective.evaluate_selective((sure, right), (sure, np.arange(400) % 4 > 0))
    assert worse.evaluated is not None
    assert (worse.evaluated.precision, worse.evaluated.met) == (0.75, False)
    nothing = selective.evaluate_selective((sure[:20], right[:20]), (sure, right))
    assert (nothing.threshold.target, nothing.threshold.confidence, nothing.evaluated) == (0.9, None, None)
    medium = selective.evaluate_selective((sure[:100], right[:100]), (sure, right))
    assert medium.threshold.target == 0.95


def test_sets_hold_the_truth_as_often_as_stated_over_many_splits() -> None:
    logits, labels = draw_logits(600, classes=6, heat=2.5)  # badly calibrated: it does not matter
    p = metrics.softmax(logits)
    rng = np.random.default_rng(0)
    fractions, sizes = [], []
    for _ in range(300):
        order = rng.permutation(600)
        held_out, rest = order[:200], order[200:]
        quantile = conformal.fit_quantile(p[held_out], labels[held_out], 0.9)
        result = conformal.evaluate_sets(p[rest], labels[rest], quantile, 0.9)
        fractions.append(result.coverage)
        sizes.append(result.mean_size)
    assert 0.895 <= np.mean(fractions) <= 0.915  # between 0.9 and 0.9 + 1 / 201
    assert 1 < np.mean(sizes) < 6


def test_too_few_images_for_a_coverage_give_all_classes() -> None:
    logits, labels = draw_logits(8)
    p = metrics.softmax(logits)
    assert make_prediction_sets(p, conformal.fit_quantile(p, labels, 0.9)).all()
    with pytest.raises(DataError, match="no validation images"):
        conformal.fit_quantile(p[:0], labels[:0], 0.9)
    with pytest.raises(UsageError, match="between 0 and 1"):
        conformal.fit_quantile(p, labels, 90)


def test_conformity_by_hand() -> None:
    p = np.array([[0.2, 0.5, 0.3]], np.float32)
    np.testing.assert_allclose(compute_nonconformity(p), [[0.8, 0, 0.7]], atol=1e-6)


def test_no_set_is_empty_and_a_classifier_right_more_often_than_asked_names_one_class() -> None:
    p = np.array([[0.99, 0.01], [0.6, 0.4], [0.7, 0.3]] * 30, np.float32)
    quantile = conformal.fit_quantile(p, np.zeros(90, np.int32), 0.9)
    assert quantile == 0
    assert (make_prediction_sets(p, quantile).sum(1) == 1).all()


# Decisions.

CLASSES = ("a", "b", "c")
LOGITS = np.log(np.array([[0.9, 0.05, 0.05], [0.5, 0.45, 0.05], [0.34, 0.33, 0.33]], np.float32))


def decide_all(**fields: float) -> list[tuple[str, tuple[str, ...] | None]]:
    decisions = decide(metrics.softmax(LOGITS), compute_energy(LOGITS), CLASSES, Thresholds(100, **fields))  # type: ignore[arg-type]
    return [(d.decision, d.set) for d in decisions]


def test_decisions() -> None:
    assert decide_all(target_precision=0.9, confidence=0.4) == [("class", None), ("class", None), ("abstain", None)]
    assert decide_all(coverage=0.9, conformal_quantile=0.68) == [
        ("class", ("a",)), ("set", ("a", "b")), ("abstain", ("a", "b", "c")),
    ]  # fmt: skip
    both = decide_all(confidence=0.8, target_precision=0.9, conformal_quantile=0.68)
    assert [d for d, _ in both] == ["class", "set", "abstain"]
    assert [d for d, _ in decide_all(target_precision=0.999, conformal_quantile=0.5)] == [
        "set",
        "set",
        "set",
    ]  # out of reach
    assert {d for d, _ in decide_all(confidence=0.1, ood_limit=-1)} == {"abstain"}


def test_nan_probabilities_abstain() -> None:
    bad = np.full((1, 3), np.nan, np.float32)
    (decisions,) = decide(bad, np.array([np.nan]), CLASSES, Thresholds(5, target_precision=0.9, confidence=0.1))
    assert decisions.decision == "abstain"


def test_thresholds_survive_json_and_refuse_what_they_do_not_know() -> None:
    ours = Thresholds(95, target_precision=0.99, confidence=0.7, selective_coverage=0.9, ood_limit=-2.5)
    assert Thresholds.from_dict(ours.to_dict()) == ours
    for wrong in ({}, {"count": 1, "x": 2}, {"count": "1"}, {"count": 1, "conformal": "raps"}, {"count": True}):
        with pytest.raises(ValueError, match=r"lacks count|unknown key 'x'|count is|conformal is 'raps'"):
            Thresholds.from_dict(wrong)
