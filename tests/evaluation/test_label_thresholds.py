"""Thresholds of each class of an image with several labels: for the highest F1, a precision or a recall."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn import metrics as reference

from sightline.errors import UsageError
from sightline.evaluation.label_thresholds import (
    check_request,
    evaluate_decisions,
    fit_label_thresholds,
    fit_precision,
    fit_recall,
    fit_thresholds,
    list_limits,
    list_thresholds,
    list_unreached,
)
from sightline.inference.results import NO_THRESHOLDS, ThresholdRequest, Thresholds

CLASSES = tuple("abcd")


def draw(count: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return probabilities with ties, and labels; the last class is rare."""
    rng = np.random.default_rng(seed)
    labels = rng.random((count, 4)) < (0.6, 0.4, 0.3, 0.05)
    noise = rng.normal(0, 0.15, (count, 4))
    return np.clip(0.3 + 0.4 * labels + noise, 0, 1).round(2).astype(np.float32), labels


def test_no_threshold_has_a_higher_f1() -> None:
    p, y = draw(200)
    chosen = fit_label_thresholds(CLASSES, p, y)
    for k, label in enumerate(CLASSES):
        best = max(reference.f1_score(y[:, k], p[:, k] >= cut, zero_division=0) for cut in np.linspace(0, 1, 201))
        assert reference.f1_score(y[:, k], p[:, k] >= chosen[label]) == pytest.approx(best)
    y[:, 0] = False
    assert fit_label_thresholds(CLASSES, p, y)["a"] == 0.5


@pytest.mark.parametrize("lowest", [0.1, 0.0])
def test_a_threshold_may_be_below_all_probabilities(lowest: float) -> None:
    p = np.array([[lowest], [0.3], [0.4]], np.float32)
    cut = fit_label_thresholds(("a",), p, np.ones((3, 1), bool))["a"]
    assert 0 <= cut < 0.05 + 1e-6
    assert (p >= cut).all()


@pytest.mark.parametrize("kind", ["precision", "recall"])
def test_a_conservative_target_is_missed_by_one_validation_split_in_twenty_at_most(kind: str) -> None:
    missed = np.zeros(3)
    truth = draw(20_000, seed=1)
    for seed in range(100):
        p, y = draw(300, seed=100 + seed)
        if kind == "precision":
            cuts = list_thresholds(Thresholds(0, labels=fit_precision(CLASSES, p, y, 0.9, True)[0]), CLASSES)
        else:
            cuts = list_thresholds(Thresholds(0, labels=fit_recall(CLASSES, p, y, 0.9, True)), CLASSES)
        predicted = truth[0] >= cuts
        among = predicted if kind == "precision" else truth[1]
        rates = (predicted & truth[1]).sum(0)[:3] / np.maximum(among.sum(0)[:3], 1)
        missed += (rates < 0.9) & np.isfinite(cuts[:3])
    assert (missed / 100 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 100)).all()


@pytest.mark.parametrize("conservative", [True, False])
def test_the_target_is_reached_on_validation_and_no_laxer_threshold_does(*, conservative: bool) -> None:
    p, y = draw(400)
    present, absent = fit_precision(CLASSES, p, y, 0.9, conservative)
    recalled = fit_recall(CLASSES, p, y, 0.9, conservative)
    for k, label in enumerate("abc"):
        cut, limit = present[label], absent[label]
        assert cut is not None
        assert limit is not None
        assert limit < cut, "no image is both"
        assert y[p[:, k] >= cut, k].mean() >= 0.9
        assert (~y[p[:, k] <= limit, k]).mean() >= 0.9
        assert (p[y[:, k], k] >= recalled[label]).mean() >= 0.9
        if not conservative:
            laxer = np.unique(p[p[:, k] < cut, k])
            assert all(y[p[:, k] >= c, k].mean() < 0.9 for c in laxer)
            assert (p[y[:, k], k] > recalled[label]).mean() < 0.9


def test_a_class_with_too_few_images_is_never_predicted_or_always() -> None:
    p, y = draw(60)
    y[:, 3] = False
    y[0, 3] = True
    for request, cut in ((ThresholdRequest(0.95), np.inf), (ThresholdRequest(recall=0.95), 0.0)):
        thresholds = fit_thresholds(CLASSES, p, y, request, None)
        assert list_thresholds(thresholds, CLASSES)[3] == cut
        assert "d" in list_unreached(thresholds)
        assert Thresholds.from_dict(thresholds.to_dict()) == thresholds
    assert list_unreached(fit_thresholds(CLASSES, p, y, NO_THRESHOLDS, None)) == ()


def test_the_decisions_are_those_of_the_thresholds() -> None:
    p, y = draw(400)
    thresholds = fit_thresholds(CLASSES, p, y, ThresholdRequest(0.9), None)
    other, truth = draw(300, seed=5)
    decisions = evaluate_decisions(CLASSES, other, truth, thresholds)
    limits = list_limits(thresholds, CLASSES)
    assert decisions is not None
    assert limits is not None
    present, absent = other >= list_thresholds(thresholds, CLASSES), other <= limits
    for k, row in enumerate(decisions):
        assert row.present.coverage == pytest.approx(present[:, k].mean())
        assert row.undecided == pytest.approx(1 - present[:, k].mean() - absent[:, k].mean())
        for decision, decided, hit in ((row.present, present, truth), (row.absent, absent, ~truth)):
            count, hits = int(decided[:, k].sum()), int((decided & hit)[:, k].sum())
            assert (decision.accepted, decision.precision) == (count, hits / count if count else None)
            if count:
                exact = binomtest(hits, count).proportion_ci(method="wilson")
                assert decision.interval is not None
                assert (decision.interval.low, decision.interval.high) == pytest.approx((exact.low, exact.high))
                bound = binomtest(hits, count, alternative="greater").proportion_ci(method="exact").low
                assert decision.lower_bound == pytest.approx(bound)
                assert decision.met == (bound >= 0.9)
            else:
                assert (decision.interval, decision.lower_bound, decision.met) == (None, None, False)
    assert 0 < decisions[0].undecided < 1
    assert evaluate_decisions(CLASSES, other, truth, fit_thresholds(CLASSES, p, y, NO_THRESHOLDS, None)) is None


def test_what_is_not_asked_for_stays() -> None:
    p, y = draw(200)
    precise = fit_thresholds(CLASSES, p, y, ThresholdRequest(0.9), None)
    both = fit_thresholds(CLASSES, p, y, ThresholdRequest(fnr=0.2), precise)
    assert (both.labels, both.absent, both.target_fnr) == (precise.labels, precise.absent, 0.2)
    assert both.set_threshold is not None
    recalled = fit_thresholds(CLASSES, p, y, ThresholdRequest(recall=0.9), both)
    assert (recalled.label_target, recalled.absent, recalled.target_precision) == ("recall", None, None)
    assert recalled.set_threshold == both.set_threshold


@pytest.mark.parametrize("request_", [NO_THRESHOLDS, ThresholdRequest(0.7, fnr=0.2), ThresholdRequest(recall=0.8)])
def test_thresholds_tell_the_targets_that_they_were_chosen_for(request_: ThresholdRequest) -> None:
    p, y = draw(200)
    other = fit_thresholds(CLASSES, p, y, ThresholdRequest(recall=0.6), None)
    for old in (None, other) if request_ else (None,):
        assert ThresholdRequest.from_thresholds(fit_thresholds(CLASSES, p, y, request_, old)) == request_


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ThresholdRequest(0.9, recall=0.9), "one threshold, for --target-precision or for --target-recall"),
        (ThresholdRequest(1.0), "The target precision must be between 0 and 1, e.g. 0.9; got 1.0"),
        (ThresholdRequest(fnr=0.0), "The target false-negative rate must be between"),
        (ThresholdRequest(coverage=0.9), "are for single-label classification: use --target-precision"),
        (ThresholdRequest(sensitivity=0.9), "are for single-label classification: use --target-precision"),
    ],
)
def test_requests_that_do_not_fit_are_refused(request_: ThresholdRequest, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_request(request_)
