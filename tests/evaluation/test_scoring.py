"""Figures and their intervals against scikit-learn and SciPy, and where those give up."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import (
    average_precision_score,
    precision_recall_fscore_support,
    roc_auc_score,
    top_k_accuracy_score,
)

from sightline import intervals, metrics
from sightline.data.types import Subset
from sightline.errors import DataError
from sightline.evaluation import block_bootstrap, bootstrap
from sightline.evaluation.bootstrap import NARROW_NOTE, Resampling, explain_width
from sightline.evaluation.results import EvaluationResult
from sightline.evaluation.scoring import (
    FEW_ERRORS_NOTE,
    METRICS,
    NAMES,
    check_probabilities,
    compute_class_metrics,
    compute_evaluation,
    compute_metrics,
)

Scored = tuple[NDArray[np.float32], NDArray[np.int32]]


def draw_predictions(count: int, classes: int, seed: int = 0, right: float = 1.5) -> Scored:
    """Probabilities and labels of a classifier that is often right; every class is there where count allows."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % classes).astype(np.int32)
    logits = rng.normal(size=(count, classes))
    logits[np.arange(count), labels] += right
    return metrics.softmax(logits.astype(np.float32)), labels


@given(st.integers(2, 8), st.integers(10, 80), st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_metrics_equal_those_of_scikit_learn(classes: int, count: int, seed: int) -> None:
    p, labels = draw_predictions(count, classes, seed)
    p = np.round(p, 1) + np.float32(0.01)  # equal scores
    p /= p.sum(1, keepdims=True)
    scores = compute_metrics(p, labels)
    one_hot = np.eye(classes)[labels]
    assert scores["auroc"].value == pytest.approx(roc_auc_score(one_hot, p, average="macro"))
    assert scores["average_precision"].value == pytest.approx(average_precision_score(one_hot, p, average="macro"))
    assert scores["brier"].value == pytest.approx(((p - one_hot) ** 2).sum(1).mean(), abs=1e-6)
    for how in ("macro", "weighted"):
        theirs = precision_recall_fscore_support(labels, p.argmax(1), average=how, zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), theirs[:3], strict=True):
            assert scores[f"{how}_{name}"].value == pytest.approx(value)


@given(st.integers(2, 60), st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_redrawn_rankings_are_scikit_learns_with_weights(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, positive = rng.integers(0, 12, count) / 4, rng.random(count) < 0.4  # many are equal
    counts = rng.multinomial(count, np.full(count, 1 / count), 5).astype(float)
    for area, average, w in zip(*metrics.auroc_and_ap(values, positive, counts), counts, strict=True):
        if w[positive].sum() and w[~positive].sum():
            assert area == pytest.approx(roc_auc_score(positive, values, sample_weight=w))
            assert average == pytest.approx(average_precision_score(positive, values, sample_weight=w))
        else:
            assert np.isnan(area)


@pytest.mark.parametrize("groups", [None, np.arange(900) // 3], ids=["images", "groups"])
def test_rankings_of_many_images_have_the_intervals_of_few(
    groups: NDArray[np.int64] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    p, labels = draw_predictions(900, 3)
    exact = compute_metrics(p, labels, Resampling(groups=groups))
    monkeypatch.setattr(block_bootstrap, "MAX_BLOCKS", 150)
    monkeypatch.setattr(block_bootstrap, "MAX_EDGES", 50)
    blocks = compute_metrics(p, labels, Resampling(groups=groups))
    for name in ("auroc", "average_precision"):
        expected, interval = exact[name].interval, blocks[name].interval
        assert expected is not None
        assert interval is not None
        assert blocks[name].value == pytest.approx(exact[name].value)
        assert interval != expected
        assert interval == pytest.approx(expected, abs=0.25 * (expected.high - expected.low))


def test_cells_drawn_as_a_multinomial_and_by_images_spread_alike() -> None:
    few, many = np.array([300, 100]), np.array([6, 2] * 50)  # the second is drawn image by image
    for counts in (few, many):
        resampled = Resampling().resample_counts(np.repeat(np.arange(len(counts)), counts), len(counts), "test")
        assert resampled.shape == (bootstrap.RESAMPLES, len(counts))
        assert (resampled.sum(1) == 400).all()
        deviation = resampled[:, ::2].sum(1).std()
        assert deviation == pytest.approx(np.sqrt(400 * 0.75 * 0.25), rel=0.1)


@given(st.integers(2, 8), st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=60))
def test_metrics_of_each_class_are_scikit_learns_and_none_where_they_are_not_defined(
    classes: int, pairs: list[tuple[int, int]]
) -> None:
    both = np.array(pairs, np.int64).reshape(-1, 2) % classes
    labels, answers = both[:, 0].astype(np.int32), both[:, 1]
    names = tuple("abcdefgh"[:classes])
    ours = compute_class_metrics(metrics.confusion_matrix(labels, answers, classes), names)
    assert tuple(c.label for c in ours) == names
    if not pairs:
        assert all((c.precision, c.recall, c.f1, c.support) == (None, None, None, 0) for c in ours)
        return
    theirs = precision_recall_fscore_support(labels, answers, labels=range(classes), zero_division=0)
    for i, c in enumerate(ours):
        row = (c.precision or 0, c.recall or 0, c.f1 or 0, c.support)
        assert row == pytest.approx(tuple(column[i] for column in theirs))
        true, predicted = labels == i, answers == i
        hits, support, count = (int(at.sum()) for at in (true & predicted, true, predicted))
        assert (c.recall is None, c.f1 is None, c.precision is None) == (not support, not support, not count)
        assert c.recall_interval == (intervals.wilson_interval(hits, support) if support else None)
        assert c.precision_interval == (intervals.wilson_interval(hits, count) if count else None)


def test_means_over_classes_say_how_many_they_cover() -> None:
    p, labels = draw_predictions(60, 5)
    mask = labels < 3
    scores = compute_metrics(p[mask], labels[mask])
    covered = {name: metric.classes for name, metric in scores.items() if metric.classes is not None}
    assert covered == dict.fromkeys(["macro_precision", "macro_recall", "macro_f1", "auroc", "average_precision"], 3)


def test_a_perfect_score_has_no_interval_without_a_width() -> None:
    sure = np.eye(3, dtype=np.float32)[np.arange(45) % 3]
    scores = compute_metrics(sure, (np.arange(45) % 3).astype(np.int32))
    for name in ("macro_f1", "macro_recall", "auroc", "average_precision"):
        assert (scores[name].value, scores[name].interval) == (1, None)
        assert "no interval: the same value in every resample" in scores[name].note
    assert scores["weighted_recall"].interval == intervals.wilson_interval(45, 45)


def test_the_average_precision_of_two_classes_says_what_it_is() -> None:
    metric = compute_metrics(*draw_predictions(80, 2))["average_precision"]
    assert (metric.note, metric.classes) == ("mean of both classes", 2)
    for name in ("auroc", "average_precision"):
        assert compute_metrics(*draw_predictions(80, 3))[name].note == "mean over classes, one-vs-rest"


def test_means_over_classes_of_few_images_say_that_their_intervals_are_too_narrow() -> None:
    means = ["macro_precision", "macro_recall", "macro_f1", "weighted_precision", "auroc", "average_precision"]
    for count, names in ((45, means), (200, [])):
        scores = compute_metrics(*draw_predictions(count, 10, right=0.6))
        assert [name for name, metric in scores.items() if NARROW_NOTE in metric.note] == names
    assert explain_width(np.array([9, 9, 0, 20])) == NARROW_NOTE
    assert explain_width(np.array([2, 0, 10])) == "", "half of the classes are not most"


def test_top_k_is_scikit_learns() -> None:
    p, labels = draw_predictions(300, 10, right=0.5)
    for k in (1, 3, 5):
        assert metrics.in_top_k(p, labels, k).mean() == top_k_accuracy_score(labels, p, k=k)
    assert {"top_1", "top_5"} <= set(compute_metrics(p, labels))
    assert "top_5" not in compute_metrics(*draw_predictions(20, 5))


def test_equal_probabilities_are_top_in_the_order_of_the_classes() -> None:
    flat = np.full((4, 4), 0.25, np.float32)
    assert metrics.in_top_k(flat, np.arange(4, dtype=np.int32), 2).tolist() == [True, True, False, False]


def test_intervals_contain_their_metrics_and_are_seeded() -> None:
    p, labels = draw_predictions(300, 3)
    scores = compute_metrics(p, labels)
    for metric in scores.values():
        assert metric.value is not None
        assert metric.interval is not None
        assert metric.interval.low < metric.value < metric.interval.high
    assert scores == compute_metrics(p, labels)
    assert scores != compute_metrics(p, labels, Resampling(seed=1))


def test_a_bootstrap_that_leaves_its_own_value_out_makes_no_interval() -> None:
    """Of 300 classes with two images, nearly all resamples have a lower macro precision than the images."""
    rng = np.random.default_rng(0)
    labels = np.tile(np.arange(300), 2).astype(np.int32)
    logits = rng.normal(size=(600, 300))
    logits[np.arange(600), labels] += 4
    scores = compute_metrics(metrics.softmax(logits.astype(np.float32)), labels)
    precision = scores["macro_precision"]
    assert (precision.interval, precision.note) == (None, "no interval: too few images for a bootstrap")
    for metric in scores.values():
        assert metric.value is not None
        assert metric.interval is None or metric.interval.low <= metric.value <= metric.interval.high


def test_a_bootstrap_interval_is_about_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(size=400)
    ends = bootstrap.percentile_interval(Resampling().resample_means(values[:, None], "test")[:, 0])
    assert ends is not None
    half = 1.96 * values.std() / 20
    assert (ends.low, ends.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)


@pytest.mark.parametrize(
    ("groups", "images", "signal", "names"),
    [(None, 240, 3.1, ["macro_f1", "auroc", "average_precision"]), (6, 20, 2.0, ["macro_f1", "auroc", "log_loss"])],
    ids=["few errors", "few groups"],
)
def test_nine_in_ten_intervals_or_more_hold_the_truth(
    groups: int | None, images: int, signal: float, names: list[str]
) -> None:
    """In both cases, percentiles of resampled values hold it less often for one of the metrics or more."""

    def draw(rng: np.random.Generator, count: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        labels = rng.integers(0, 2, count * images).astype(np.int32)
        strength = signal + (0.0 if groups is None else 0.6) * rng.normal(size=count).repeat(images)
        logit = rng.normal(size=len(labels)) * np.sqrt(2) + strength * (2 * labels - 1)
        return metrics.softmax(np.stack([0 * logit, signal * logit], 1).astype(np.float32)), labels

    rng = np.random.default_rng(2)
    true = {name: compute_metrics(*draw(rng, 20_000 // images))[name].value for name in names}
    hits = dict.fromkeys(names, 0)
    for seed in range(60):
        numbers = None if groups is None else np.repeat(np.arange(groups), images)
        scores = compute_metrics(*draw(rng, groups or 1), Resampling(seed, numbers))
        for name in names:
            low, high = scores[name].interval or (0.0, 1.0)
            hits[name] += low <= (true[name] or 0.0) <= high
    assert min(hits.values()) >= 54, hits


@pytest.mark.parametrize(("wrong", "noted"), [(9, ["log_loss", "brier"]), (10, [])])
def test_losses_with_few_errors_say_that_their_intervals_are_too_narrow(wrong: int, noted: list[str]) -> None:
    labels = np.arange(300, dtype=np.int32) % 2
    p = np.where(np.eye(2, dtype=bool)[labels ^ (np.arange(300) < wrong)], 0.9, 0.1).astype(np.float32)
    assert [name for name, metric in compute_metrics(p, labels).items() if FEW_ERRORS_NOTE in metric.note] == noted


@pytest.mark.parametrize("units", [2, 4, 5])
@pytest.mark.parametrize("grouped", [False, True], ids=["images", "groups"])
def test_fewer_than_five_images_or_groups_have_no_interval_that_spans_everything(units: int, grouped: bool) -> None:
    p, labels = draw_predictions(units * (30 if grouped else 1), 2, right=0.5)
    paths = tuple(f"{i}.png" for i in range(len(labels)))
    groups = {path: str(i % units) for i, path in enumerate(paths)} if grouped else {}
    result = compute_evaluation(("a", "b"), p, Subset(p, np.arange(len(p)), labels, paths), group_by_path=groups)
    loss = result.metrics["log_loss"]
    if units == 5:
        assert loss.interval is not None
        assert loss.interval.high < 100 * loss.interval.low
        return
    bootstrapped = [m for name, m in result.metrics.items() if name not in {"top_1", "weighted_recall"}]
    assert all(metric.interval is None for metric in bootstrapped)
    reason = f"no interval: fewer than 5 {'groups' if grouped else 'images'}"
    assert (loss.note, repr(loss)) == (reason, f"{loss.value:.4g} ({reason})")
    assert loss.to_dict() == {"value": loss.value, "interval": None, "note": reason}
    assert result.metrics["top_1"].interval, "a proportion has one that holds for any number of images"


def test_losses_without_an_error_have_no_interval() -> None:
    """The true loss is mostly that of errors, of which these images have none: resamples do not vary by them."""
    labels = np.arange(100, dtype=np.int32) % 2
    right = np.random.default_rng(0).uniform(0.9, 1, 100).astype(np.float32)
    scores = compute_metrics(np.where(labels[:, None] == [0, 1], right[:, None], 1 - right[:, None]), labels)
    for name in ("log_loss", "brier"):
        assert (scores[name].interval, scores[name].note) == (None, "no interval: no errors")


def test_the_auroc_of_a_few_positives_has_their_degrees_of_freedom() -> None:
    """The positives determine its error (DeLong et al., 1988): Student's t is that of their number."""
    rng, labels = np.random.default_rng(0), (np.arange(300) < 8).astype(np.int32)
    scores = rng.normal(size=300) + 1.5 * labels
    positive = (1 / (1 + np.exp(-scores))).astype(np.float32)
    auroc = compute_metrics(np.stack([1 - positive, positive], 1), labels)["auroc"]
    above = scores[:8, None] > scores[8:]
    error = np.sqrt(above.mean(1).var(ddof=1) / 8 + above.mean(0).var(ddof=1) / 292)
    assert auroc.value == pytest.approx(above.mean())
    expected = intervals.scaled_interval(above.mean(), error, 8, intervals.RATE)
    assert auroc.interval == pytest.approx(expected, abs=0.02)
    four = (np.arange(300) < 4).astype(np.int32)
    assert compute_metrics(np.stack([1 - positive, positive], 1), four)["auroc"].note == (
        "no interval: fewer than 5 images of a class"
    )


def test_a_perfect_model_has_no_loss_of_minus_zero() -> None:
    metric = compute_metrics(np.eye(3, dtype=np.float32), np.arange(3, dtype=np.int32))["log_loss"]
    assert f"{metric.value:.4f}" == "0.0000"


def test_one_class_one_image_and_none() -> None:
    p = np.full((5, 2), 0.5, np.float32)
    scores = compute_metrics(p, np.zeros(5, np.int32))
    assert (scores["auroc"].value, scores["auroc"].note) == (None, "all images are of one class")
    one = compute_metrics(p[:1], np.zeros(1, np.int32))
    assert one["log_loss"].interval is None
    assert one["log_loss"].note == "no interval: fewer than 5 images"
    assert all(f.value is None and f.note for f in compute_metrics(p[:0], np.zeros(0, np.int32)).values())


def test_one_image_of_each_class_and_a_thousand_classes() -> None:
    for count, classes in ((4, 4), (1000, 1000)):
        scores = compute_metrics(*draw_predictions(count, classes))
        assert set(NAMES) <= set(scores)
        assert all(f.value is not None and np.isfinite(f.value) for f in scores.values())
        assert all(f.note for f in scores.values() if f.interval is None)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.5, 3.0])
@pytest.mark.parametrize("shape", [(4,), (4, 2, 2)], ids=["images", "masks"])
def test_probabilities_that_are_none_are_refused_with_their_image(shape: tuple[int, ...], bad: float) -> None:
    p = np.full((*shape, 4), 0.25, np.float32)
    check_probabilities(p, ["a.png", "b.png", "c.png", "d.png"])
    check_probabilities(p[:0], [])
    p[2].flat[-1] = bad
    with pytest.raises(DataError, match=r"probabilities of c\.png are not between 0 and 1 or do not sum to 1: "):
        check_probabilities(p, ["a.png", "b.png", "c.png", "d.png"])


def test_probabilities_of_masks_are_checked_without_an_array_of_their_size() -> None:
    p = np.full((2, 128, 128, 32), 1 / 32, np.float32)
    tracemalloc.start()
    try:
        check_probabilities(p, ["a.png", "b.png"])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < p.nbytes / 8


def test_an_interval_without_a_width_is_none() -> None:
    resamples = np.full(2000, 0.5)
    resamples[:10] = 1.0  # the few resamples without a single image of the class that is never predicted
    metric = Resampling().make_metric(0.5, resamples, 10)
    assert (metric.interval, metric.note) == (None, "no interval: the same value in nearly every resample")
    rounded = 0.4010 + np.linspace(0, 1e-14, 2000)
    assert Resampling().make_metric(0.4010, rounded, 10).note == "no interval: the same value in every resample"


def test_intervals_of_copies_in_groups_are_those_of_the_originals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS._entries, "hits", lambda p, labels: float((p.argmax(1) == labels).mean()))
    classes, times = ("a", "b"), 9
    one_p, one_labels = draw_predictions(40, 2)
    p, labels = np.repeat(one_p, times, 0), np.repeat(one_labels, times)
    paths = tuple(f"{i}.png" for i in range(len(labels)))
    subset = Subset(p, np.arange(len(labels)), labels, paths)
    groups = {path: str(i // times) for i, path in enumerate(paths)}
    originals = compute_evaluation(classes, p[::times], subset.select(np.arange(0, len(labels), times)))
    grouped, alone = (compute_evaluation(classes, p, subset, group_by_path=of) for of in (groups, {}))
    assert (grouped.groups, alone.groups, originals.groups) == (40, None, None)

    def list_widths(result: EvaluationResult) -> list[float]:
        all_intervals = [result.accuracy_interval, *(metric.interval for metric in result.metrics.values())]
        all_intervals += [interval for c in result.per_class for interval in (c.precision_interval, c.recall_interval)]
        assert None not in all_intervals
        return [interval.high - interval.low for interval in all_intervals if interval]

    narrow, wide, expected = map(np.array, map(list_widths, (alone, grouped, originals)))
    assert grouped.metrics["hits"].interval == pytest.approx(grouped.accuracy_interval, abs=0.05)
    np.testing.assert_allclose(wide, expected, rtol=0.25)
    assert (wide > 2 * narrow).all()
    single = compute_evaluation(classes, p, subset, group_by_path=dict.fromkeys(paths, "x"))
    assert {metric.interval for metric in single.metrics.values()} == {None}
    assert {metric.note for metric in single.metrics.values()} == {bootstrap.ONE_GROUP_NOTE}
    assert single.accuracy_interval.high - single.accuracy_interval.low > 0.5
