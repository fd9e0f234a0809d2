"""Learning curves hold groups together, and what they predict is what hidden labels bring."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from hidden_labels import check_coverage, make_subset
from sightline.data.types import Subset
from sightline.errors import DataError
from sightline.evaluation.held_out import HeldOutErrors, HeldOutRankings
from sightline.evaluation.label_subsets import REPEATS, draw_partitions, list_sizes, list_strata
from sightline.evaluation.learning_curve import LearningCurve, measure_learning_curve
from sightline.intervals import wilson_interval
from sightline.report import plotting
from sightline.report.learning_curve_plot import plot_learning_curve
from sightline.tasks.protocol import Task, find_task
from sightline.training import linear_head
from sightline.training.linear_head import fit_linear_head

CLASSES = 3


def draw_features(count: int, seed: int, noise: float = 1.4) -> Subset:
    """Return features float32 [N, 30] of classes that overlap: with all labels of the world some errors remain."""
    centers = np.random.default_rng(7).normal(0, 1, (CLASSES, 30)) / math.sqrt(3)
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count).astype(np.int32)
    return make_subset((centers[labels] + noise * rng.normal(0, 1, (count, 30))).astype(np.float32), labels)


def measure(features: Subset, **options: Any) -> LearningCurve:
    return measure_learning_curve(features, features.paths, **options)


@pytest.fixture(scope="module")
def curve() -> LearningCurve:
    return measure(draw_features(220, 0), more=[40, 198])


def test_points_are_accuracies_of_growing_subsets(curve: LearningCurve) -> None:
    assert [point.labels for point in curve.points] == list(list_sizes(198, CLASSES))
    assert curve.held_out == 220, "every image is held out once"
    accuracies = [point.value for point in curve.points]
    assert accuracies[0] < accuracies[-1] - 0.05
    assert all(point.interval.low < point.value < point.interval.high for point in curve.points)
    train, test = draw_features(198, 1), draw_features(4000, 2)
    head = fit_linear_head(find_task("single_label"), train, test.head(500), CLASSES)
    expected = float((head.compute_scores(test.pixels).argmax(1) == test.labels).mean())
    assert curve.points[-1].interval.low < expected < curve.points[-1].interval.high


def test_gains_rise_with_the_labels_and_have_intervals(curve: LearningCurve) -> None:
    few, many = curve.gains
    assert (few.more, few.labels, many.labels) == (40, 238, 396)
    assert 0 <= few.gain <= many.gain
    assert few.interval.low <= few.gain <= few.interval.high <= many.interval.high
    assert curve.no_gain_reason is None
    assert curve.to_dict()["gains"][0]["gain"] == few.gain


def test_the_same_seed_gives_the_same_curve_in_any_number_of_threads() -> None:
    features = draw_features(60, 3)
    first, again, other = (measure(features, seed=seed, threads=t) for seed, t in ((1, 1), (1, 3), (2, 1)))
    assert first.to_dict() == again.to_dict()
    assert first.to_dict() != other.to_dict()


def test_progress_ends_at_the_total() -> None:
    events: list[tuple[str, int, int]] = []
    measure(draw_features(60, 3), progress=lambda *event: events.append(event))
    assert max(events)[1] == max(events)[2] == len(events)


@pytest.mark.slow
def test_without_enough_errors_nothing_is_predicted() -> None:
    curve = measure(draw_features(120, 0, noise=0.05))
    assert (curve.errors, curve.gains, curve.law) == (0, (), None)
    assert curve.no_gain_reason == (
        "What more labels would bring cannot be predicted from 0 errors on 120 held-out images: that takes at least "
        "10. More labels can bring at most 3.1 points"
    )
    curve = measure(draw_features(120, 0, noise=0.05), more=[5000])
    assert (curve.no_gain_reason or "").startswith("What 5,000 more labels would bring cannot be predicted from 0 err")
    assert curve.points[-1].interval.low == pytest.approx(1 - 0.031, abs=1e-3)


def test_too_few_images_are_an_error_that_states_how_many_it_takes() -> None:
    with pytest.raises(DataError, match=r"13 images to train on in 3 classes\. Label at least 13 of each class"):
        measure(draw_features(15, 0))


def test_both_figures_are_drawn(curve: LearningCurve) -> None:
    without_law = measure(draw_features(60, 0, noise=0.05))
    pages = [plot_learning_curve(curve, "beans"), plot_learning_curve(without_law)]
    assert all(page.startswith(b"\x89PNG") for page in pages)
    assert len(pages[0]) > len(pages[1]), "it has the law and the prediction as well"


def test_every_prediction_is_in_the_figure(curve: LearningCurve, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(plotting, "render_png", figures.append)
    gain = curve.gains[0]
    plot_learning_curve(replace(curve, gains=tuple(replace(gain, more=more) for more in range(1, 8))))
    words = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert [word.partition(" more")[0] for word in words if " more: " in word] == [str(more) for more in range(1, 8)]


# Several labels per image


def draw_label_sets(count: int, seed: int, noise: float = 1.2) -> Subset:
    """Return features float32 [N, 12] of images that have each of three classes, the last a rare one, on its own."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((count, CLASSES)) < [0.6, 0.4, 0.1]).astype(np.uint8)
    values = labels @ np.eye(CLASSES, 12) * 1.5 + noise * rng.normal(0, 1, (count, 12))
    return make_subset(values.astype(np.float32), labels)


def test_several_labels_have_a_curve_of_mean_average_precision() -> None:
    curve = measure(draw_label_sets(240, 0), task="multi_label", more=[200])
    assert (curve.metric, curve.num_classes, curve.held_out) == ("mean_average_precision", CLASSES, 240)
    assert curve.points[0].value < curve.points[-1].value
    train, test = draw_label_sets(216, 1), draw_label_sets(4000, 2)
    head = fit_linear_head(find_task("multi_label"), train, test.head(500), CLASSES)
    expected = average_precision_score(test.labels, head.compute_scores(test.pixels), average="macro")
    low, high = curve.points[-1].interval
    assert low < expected < high
    assert high - low < 0.2, "ten errors and more need no wider interval than the resampled one"
    (gain,) = curve.gains
    assert gain.interval.low <= gain.gain <= gain.interval.high
    assert curve.to_dict()["gains"][0]["mean_average_precision"] == gain.value


def test_several_labels_without_errors_predict_nothing() -> None:
    curve = measure(draw_label_sets(120, 0, noise=0.02), task="multi_label")
    assert curve.gains == ()
    assert "from 0 misranked labels on 120 held-out images" in (curve.no_gain_reason or "")
    low, high = curve.points[-1].interval
    assert low < 0.97, "without errors, resampled intervals have no width"
    assert high == 1


@pytest.mark.parametrize("num_pools", [1, 4])
def test_error_rates_are_one_minus_the_precision_of_each_pool(num_pools: int) -> None:
    rng = np.random.default_rng(0)
    labels, scores = rng.random((80, 3)) < 0.3, rng.random((2, 80, 3)).astype(np.float32)
    units, pools = np.arange(80) % 20, np.arange(80) // 20 % num_pools
    results = HeldOutRankings((10, 20), scores, labels, units, np.arange(80) // 20, pools, 20)
    for number, rate in enumerate(results.compute_error_rates()):
        precisions = [
            average_precision_score(labels[pools == pool], scores[number][pools == pool], average="macro")
            for pool in range(num_pools)
        ]
        assert 1 - rate == pytest.approx(np.mean(precisions))
    resampled = results.resample_rates(0)
    assert resampled.shape == (1000, 2)
    assert np.isfinite(resampled).all()
    assert 0.02 < resampled[:, 0].std() < 0.2


def test_resamples_whose_groups_and_repeats_do_not_meet_are_left_out() -> None:
    rng = np.random.default_rng(0)
    labels, scores = rng.random((60, 3)) < 0.4, rng.random((1, 60, 3)).astype(np.float32)
    units = np.arange(60) // 20
    resampled = HeldOutRankings((10,), scores, labels, units, units, np.zeros(60, np.int64), 60).resample_rates(0)
    assert 200 < len(resampled) < 1000
    assert resampled.max() < 0.8


def test_strata_are_the_rarest_classes_and_spread_every_class() -> None:
    labels = draw_label_sets(300, 5).labels
    strata = list_strata(labels)
    rare = labels[:, 2] == 1
    assert (strata[rare] == 2).all()
    assert (strata[~labels.any(1)] == CLASSES).all()
    for partition in draw_partitions(strata, np.arange(300), None, 0):
        for size in (60, 150):
            counts = labels[partition.pool[:size]].sum(0)
            assert counts == pytest.approx(size * labels[partition.pool].mean(0), abs=0.12 * size)


# Subsets and held-out images


def draw_units(count: int, seed: int = 0) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return labels of a rare and of two frequent classes, and units of one to five images, mostly of one class."""
    rng = np.random.default_rng(seed)
    units = np.sort(rng.integers(0, count // 3, count)).astype(np.int64)
    labels = rng.choice(CLASSES, count // 3, p=[0.1, 0.4, 0.5])[units].astype(np.int32)
    return np.where(rng.random(count) < 0.05, 2, labels).astype(np.int32), units


@pytest.mark.parametrize("seed", range(4))
def test_every_image_is_held_out_once_and_never_beside_its_group(seed: int) -> None:
    labels, units = draw_units(300, seed)
    partitions = draw_partitions(labels, units, None, seed)
    assert len(partitions) == REPEATS
    assert sorted(np.concatenate([p.held_out for p in partitions])) == list(range(300))
    for partition in partitions:
        assert not set(units[partition.pool]) & set(units[partition.held_out])
        assert sorted([*partition.pool, *partition.held_out]) == list(range(300))
        assert 20 <= len(partition.held_out) <= 40
        rare = [(labels[p.held_out] == 0).sum() for p in partitions]
        assert max(rare) <= 12


def test_subsets_are_stratified_and_begin_with_every_class() -> None:
    labels, units = draw_units(300)
    pool = draw_partitions(labels, np.arange(300), None, 0)[0].pool
    assert set(labels[pool[:CLASSES]]) == set(range(CLASSES))
    for size in (30, 90, 200):
        counts = Counter(labels[pool[:size]].tolist())
        for label in range(CLASSES):
            assert abs(counts[label] - size * (labels[pool] == label).mean()) <= 2
    grouped = draw_partitions(labels, units, None, 0)[0].pool
    changes = (np.diff(units[grouped]) != 0).sum() + 1
    assert changes == len(set(units[grouped])), "a group stands together"


def test_given_splits_are_kept_and_leaking_images_are_not_trained_on() -> None:
    labels, units = draw_units(200)
    held_out = np.arange(200) % 4 == 0
    partitions = draw_partitions(labels, units, held_out, 0)
    assert all(set(p.held_out) == set(np.flatnonzero(held_out)) for p in partitions)
    assert all(not set(units[p.pool]) & set(units[held_out]) for p in partitions)
    assert len({tuple(p.pool) for p in partitions}) == REPEATS, "each repeat has an order of its own"


def test_all_training_images_of_a_given_split_are_trained_on_once(monkeypatch: pytest.MonkeyPatch) -> None:
    features = draw_features(200, 0)
    sizes: list[int] = []
    solve = linear_head.iter_heads

    def record(task: Task, train: Subset, *arguments: Any) -> Any:
        sizes.append(len(train))
        return solve(task, train, *arguments)

    monkeypatch.setattr(linear_head, "iter_heads", record)
    curve = measure(features, held_out=np.arange(200) >= 120)
    counts = Counter(sizes)
    assert counts.pop(120) == 1
    assert set(counts.values()) == {REPEATS}
    assert curve.held_out == 80
    assert curve.points[-1].labels == 120


# What is predicted from half of a set is what the other half brings


@pytest.mark.slow
def test_the_predicted_interval_holds_what_as_many_labels_again_bring() -> None:
    assert check_coverage(draw_features(2000, 11), 80, seed=0)


@pytest.mark.slow
def test_the_predicted_interval_of_several_labels_holds_it_too() -> None:
    assert check_coverage(draw_label_sets(2000, 11), 120, seed=0, task="multi_label")


def test_intervals_without_errors_count_groups() -> None:
    """Ten patients of 20 images each without an error show no more than ten images."""
    patients, repeats = np.repeat(np.arange(10), 20), np.zeros(200, np.int64)
    wrong = np.zeros((1, 200), bool)
    alone = HeldOutErrors((9,), wrong, np.arange(200), repeats, 200).estimate_interval(0, np.zeros(100))
    assert alone == wilson_interval(200, 200)
    grouped = HeldOutErrors((9,), wrong, patients, repeats, 200).estimate_interval(0, np.zeros(100))
    assert grouped == pytest.approx((0.025 ** (1 / 10), 1), abs=1e-6)
    twice = HeldOutErrors((9,), np.tile(wrong, 2), np.tile(patients, 2), np.repeat([0, 1], 200), 200)
    assert twice.estimate_interval(0, np.zeros(100)) == pytest.approx(grouped)
    one = HeldOutErrors((9,), wrong, np.zeros(200, np.int64), repeats, 200).estimate_interval(0, np.zeros(100))
    assert one == (0, 1)
    labels = np.tile(np.eye(2, dtype=bool), (100, 1))
    scores = labels[None].astype(np.float32)
    pools = np.zeros(200, np.int64)
    first, second = (
        HeldOutRankings((9,), scores, labels, units, repeats, pools, 200).estimate_interval(0, np.zeros(100))
        for units in (np.arange(200), patients)
    )
    assert first == wilson_interval(200, 200)
    assert second == wilson_interval(10, 10)


def draw_rankings(rng: np.random.Generator, num_groups: int) -> HeldOutRankings:
    """Return scores of images in groups of 20 that share a difficulty, each held out once."""
    groups = np.repeat(np.arange(num_groups), 20)
    labels = rng.random((len(groups), 2)) < 0.3
    scores = rng.normal(size=labels.shape) + 1.5 * labels + 0.7 * rng.normal(size=(num_groups, 2))[groups]
    pools = np.zeros(len(groups), np.int64)
    return HeldOutRankings((9,), scores[None].astype(np.float32), labels, groups, groups % 10, pools, len(groups))


def test_intervals_of_few_groups_contain_the_mean_average_precision() -> None:
    rng = np.random.default_rng(0)
    true_rate = draw_rankings(rng, 5000).compute_error_rates()[0]
    covered = []
    for seed in range(40):
        results = draw_rankings(rng, 4)
        interval = results.estimate_interval(0, results.resample_rates(seed)[:, 0])
        covered.append(interval.low <= 1 - true_rate <= interval.high)
    assert np.mean(covered) >= 0.95, "percentiles contain it in 26 of 40 cases"
    assert draw_rankings(rng, 1).estimate_interval(0, np.zeros(100)) == (0, 1), "one group tells nothing of others"


def test_a_single_group_leaves_nothing_to_train_on() -> None:
    features = Subset(np.zeros((40, 3), np.float32), np.arange(40), np.repeat([0, 1], 20).astype(np.int32), ("",) * 40)
    with pytest.raises(DataError, match="No image is left to train on, since all are in one group"):
        measure_learning_curve(features, ["patient"] * 40)
