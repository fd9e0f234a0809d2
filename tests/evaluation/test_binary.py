"""Two classes as a detection: against scikit-learn and SciPy, by hand, and what a chosen threshold promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_curve, roc_curve

from sightline import intervals
from sightline.errors import UsageError
from sightline.evaluation import binary, bootstrap
from sightline.evaluation.binary import (
    choose_operating_point,
    choose_positive_class,
    compute_rates_at,
    evaluate_operating_point,
)
from sightline.evaluation.scoring import compute_class_metrics, compute_metrics
from sightline.inference.results import Rate

CLASSES = ("defect", "ok")

Scores = NDArray[np.float64]
Truth = NDArray[np.bool_]


def draw_scores(count: int, seed: int = 0, fraction: float = 0.3) -> tuple[Scores, Truth]:
    """Scores in [0, 1] and truth of a detector that is often right."""
    rng = np.random.default_rng(seed)
    truth = rng.random(count) < fraction
    return 1 / (1 + np.exp(-rng.normal(2 * truth - 1, 1))), truth


@pytest.mark.parametrize(
    ("classes", "positive"),
    [
        (("defect", "ok"), "defect"),
        (("NORMAL", "PNEUMONIA"), "PNEUMONIA"),
        (("0", "1"), "1"),
        (("no", "yes"), "yes"),
        (("crack", "no_crack"), "crack"),
        (("not_ok", "ok"), "not_ok"),
        (("Parasitized", "Uninfected"), "Parasitized"),
        (("bent pin", "good"), "bent pin"),
        (("fire", "non_fire"), "fire"),
        (("COVID19", "NonCOVID"), "COVID19"),
        (("NOT_covid", "covid_2"), "covid_2"),
        (("rust", "rust-free"), "rust"),
        (("glaucoma", "glaucoma negative"), "glaucoma"),
        (("dog", "hotdog"), "hotdog"),
        (("Melanoma", "NotMelanoma"), "Melanoma"),
        (("with_mask", "without_mask"), "with_mask"),
        (("合格", "不合格"), "不合格"),
        (("口罩", "无口罩"), "口罩"),
        (("cat", "dog"), "dog"),
        (("cat 1", "dog 2"), "dog 2"),
        (("bad", "faulty"), "faulty"),
        (("猫", "狗"), "狗"),
    ],
)
def test_the_positive_class_is_found_by_name_else_it_is_the_second(classes: tuple[str, str], positive: str) -> None:
    assert choose_positive_class(classes)[0] == positive
    assert choose_positive_class(classes, classes[0]) == (classes[0], "as requested")


def test_a_positive_class_that_there_is_not_is_refused() -> None:
    with pytest.raises(UsageError, match=r"positive class 'defct' is not a class.*'defect'"):
        choose_positive_class(CLASSES, "defct")
    with pytest.raises(UsageError, match="exactly two classes; there are 3"):
        binary.check_positive_class(("a", "b", "c"), "a")
    binary.check_positive_class(("a", "b", "c"), "")


def evaluate_sample(count: int = 200, seed: int = 0, positive: str = "") -> tuple[binary.BinaryReport, Scores, Truth]:
    score, truth = draw_scores(count, seed)
    p = np.stack([score, 1 - score], 1).astype(np.float32)
    labels = np.where(truth, 0, 1).astype(np.int32)
    return (
        binary.evaluate_binary(p, labels, CLASSES, compute_metrics(p, labels)["auroc"], positive),
        p[:, 0].astype(float),
        truth,
    )


def test_rates_are_those_of_the_confusion_matrix_with_wilsons_intervals() -> None:
    result, score, truth = evaluate_sample()
    (tn, fp), (fn, tp) = confusion_matrix(truth, score >= 0.5).tolist()
    for metric, hits, count in (
        (result.rates.sensitivity, tp, tp + fn), (result.rates.specificity, tn, tn + fp),
        (result.rates.ppv, tp, tp + fp), (result.rates.npv, tn, tn + fn),
    ):  # fmt: skip
        assert metric.value == hits / count
        assert metric.interval == intervals.wilson_interval(hits, count)
    assert (result.positives, result.negatives) == (int(truth.sum()), int((~truth).sum()))
    other, _, _ = evaluate_sample(positive="ok")
    assert (other.positive, other.rates.sensitivity.value) == ("ok", result.rates.specificity.value)
    of_class = compute_class_metrics(np.array([[tp, fn], [fp, tn]]), CLASSES)[0]
    assert (of_class.recall_interval, of_class.precision_interval) == (
        result.rates.sensitivity.interval, result.rates.ppv.interval,
    )  # fmt: skip


def test_average_precision_is_that_of_the_positive_class(monkeypatch: pytest.MonkeyPatch) -> None:
    result, score, truth = evaluate_sample()
    assert result.average_precision.value == pytest.approx(average_precision_score(truth, score))
    interval, value = result.average_precision.interval, result.average_precision.value
    assert interval is not None
    assert interval.low < (value or 0) < interval.high
    other, _, _ = evaluate_sample(positive="ok")
    assert other.average_precision.value == pytest.approx(average_precision_score(~truth, 1 - score))
    assert other.auroc == result.auroc, "the area under the ROC curve is that of either class"
    monkeypatch.setattr(bootstrap, "BUDGET", 199 * len(score))
    of_many = evaluate_sample()[0].average_precision.interval
    assert of_many is not None, "as of more than 100,000 images"
    assert of_many == pytest.approx(interval, abs=0.25 * (interval.high - interval.low))


@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=2, max_size=60))
def test_curves_are_scikit_learns(pairs: list[tuple[int, bool]]) -> None:
    score, truth = np.array([s / 8 for s, _ in pairs]), np.array([t for _, t in pairs])
    if truth.all() or not truth.any():
        return
    roc, precision_recall = binary.compute_curves(score, truth)
    x, y, at = roc_curve(truth, score, drop_intermediate=False)
    for ours, theirs in ((roc.x, x), (roc.y, y), (roc.threshold, at)):
        np.testing.assert_allclose(ours, theirs)
    precision, recall, at = precision_recall_curve(truth, score)
    np.testing.assert_allclose(precision_recall.x[::-1], recall[:-1])
    np.testing.assert_allclose(precision_recall.y[::-1], precision[:-1])
    np.testing.assert_allclose(precision_recall.threshold[::-1], at)


@pytest.mark.parametrize("truth", [True, False])
def test_images_of_one_class_leave_the_other_rate_undefined(truth: bool) -> None:
    labels = np.full(5, 0 if truth else 1, np.int32)
    p = np.tile(np.array([[0.9, 0.1]], np.float32), (5, 1))
    rates = binary.evaluate_binary(p, labels, CLASSES, compute_metrics(p, labels)["auroc"])
    undefined = rates.rates.specificity if truth else rates.rates.sensitivity
    assert (undefined.value, undefined.interval) == (None, None)
    assert undefined.note.startswith("no image of the")
    assert rates.rates.npv.note == "the negative class was never predicted"
    assert rates.average_precision.value is None


# Operating points.


@pytest.mark.parametrize("rate", ["sensitivity", "specificity"])
@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=80), st.floats(0.05, 0.95))
def test_without_a_margin_it_is_the_threshold_that_gives_away_least(
    rate: Rate, pairs: list[tuple[int, bool]], target: float
) -> None:
    score, truth = np.array([s / 20 for s, _ in pairs]), np.array([t for _, t in pairs])
    point = choose_operating_point(score, truth, rate, target, conservative=False)
    if not (truth if rate == "sensitivity" else ~truth).any():
        assert point.threshold is None
        return
    assert point.threshold is not None
    value = getattr(compute_rates_at(score, truth, point.threshold), rate).value
    assert value >= target - 1e-9
    stricter = [t for t in np.unique(score).tolist() if t > point.threshold and rate == "sensitivity"]
    assert all((score[truth] >= t).mean() < target - 1e-9 for t in stricter)
    if rate == "specificity":
        lower = np.nextafter(point.threshold, -np.inf)
        assert compute_rates_at(score, truth, lower).specificity.value < target - 1e-9 or point.threshold <= score.min()  # type: ignore[operator]


@pytest.mark.parametrize("rate", ["sensitivity", "specificity"])
def test_a_conservative_threshold_falls_short_once_in_twenty(rate: Rate) -> None:
    from scipy.stats import norm

    def short(*, conservative: bool) -> float:
        missed = 0
        for seed in range(300):
            point = choose_operating_point(*draw_scores(300, seed, 0.5), rate, 0.9, conservative=conservative)
            assert point.threshold is not None
            at = np.log(point.threshold / (1 - point.threshold))
            missed += (norm.sf(at - 1) if rate == "sensitivity" else norm.cdf(at + 1)) < 0.9  # the true rate
        return missed / 300

    assert short(conservative=True) <= 0.085  # 0.05 and chance
    assert short(conservative=False) > 0.3


@pytest.mark.parametrize(("rate", "other"), [("sensitivity", "specificity"), ("specificity", "sensitivity")])
def test_what_being_conservative_costs_is_stated(rate: Rate, other: Rate) -> None:
    score, truth = draw_scores(2000)
    point = choose_operating_point(score, truth, rate, 0.9)
    assert not point.note
    grouped = choose_operating_point(score, truth, rate, 0.9, groups=np.arange(len(score)) // 40)
    assert grouped.threshold == point.threshold
    assert f"treats {len(score):,} validation images as independent, but they are in" in grouped.note
    relaxed = choose_operating_point(score, truth, rate, 0.9, conservative=False)
    assert point.threshold is not None
    assert relaxed.threshold is not None
    assert (point.relaxed_threshold, relaxed.relaxed_threshold, relaxed.rate_cost) == (relaxed.threshold, None, 0.0)
    strict, loose = (
        getattr(compute_rates_at(score, truth, t), other).value for t in (point.threshold, relaxed.threshold)
    )
    assert point.rate_cost == pytest.approx(loose - strict)
    assert point.rate_cost > 0
    nothing = choose_operating_point(score[:20], truth[:20], rate, 0.99)
    assert f"--no-conservative would use a threshold of {nothing.relaxed_threshold:.4f}" in (nothing.note)


def test_usual_points_are_those_that_validation_shows() -> None:
    points = binary.choose_usual_points(draw_scores(400, 1), draw_scores(400, 2))
    rates = ("sensitivity", "specificity")
    assert [(p.rate, p.target) for p in points] == [(rate, target) for rate in rates for target in (0.95, 0.9)]
    for point in points:
        chosen = choose_operating_point(*draw_scores(400, 1), point.rate, point.target)
        assert evaluate_operating_point(chosen, *draw_scores(400, 2)) == point
    assert binary.choose_usual_points(draw_scores(8, 1), draw_scores(400, 2)) == ()
    grouped = binary.choose_usual_points(draw_scores(400, 1), draw_scores(400, 2), groups=np.arange(400) // 40)
    assert all("they are in 10 groups" in point.note for point in grouped)


def test_a_target_is_met_on_test_by_its_lower_bound_alone() -> None:
    score, truth = draw_scores(4000)
    point = choose_operating_point(score, truth, "sensitivity", 0.9)
    sure, positive = np.ones(4000), np.ones(4000, bool)
    few, many = (evaluate_operating_point(point, sure[:n], positive[:n]) for n in (20, 4000))
    for result in (few, many):
        assert result.rates is not None
        assert result.rates.sensitivity.value == 1
    assert (few.met, many.met) == (False, True), "20 images cannot show 90%"
    none = choose_operating_point(score[:5], np.zeros(5, bool), "sensitivity", 0.9)
    assert none.note == "There is no validation image of that class to choose a threshold on."
    nothing = choose_operating_point(score[:20], truth[:20], "sensitivity", 0.99)
    assert nothing.threshold is None
    assert "cannot show that a threshold reaches the target" in nothing.note
    assert evaluate_operating_point(nothing, score, truth) == nothing
