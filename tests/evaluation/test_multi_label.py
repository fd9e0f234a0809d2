"""Metrics of several labels per image, compared with scikit-learn."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as reference

from sightline import metrics
from sightline.api.evaluation import Evaluation
from sightline.data.types import ImageRecord, LabeledSubset, Subset
from sightline.errors import DataError
from sightline.evaluation import block_bootstrap, bootstrap, multi_label_metrics
from sightline.evaluation.block_bootstrap import BlockBootstrap
from sightline.evaluation.bootstrap import NARROW_NOTE, Resampling
from sightline.evaluation.label_pairs import count_pair_errors
from sightline.evaluation.label_thresholds import fit_label_thresholds, fit_thresholds
from sightline.evaluation.multi_label import build_report
from sightline.evaluation.multi_label_metrics import (
    AVERAGED,
    COUNTED,
    RANKED,
    compute_coverage,
    compute_label_metrics,
    compute_ranking_losses,
)
from sightline.evaluation.results import Metric
from sightline.inference.results import NO_THRESHOLDS, ThresholdRequest
from sightline.intervals import wilson_interval
from sightline.report.templates import make_environment

CLASSES = tuple("abcd")
HALF = np.full(4, 0.5)


def draw(count: int = 80, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return probabilities with ties, and labels; one image has none, and one has all."""
    rng = np.random.default_rng(seed)
    labels = rng.random((count, 4)) < (0.6, 0.4, 0.3, 0.15)
    labels[0], labels[1] = False, True
    probabilities = (0.05 + 0.3 * labels + 0.6 * rng.random((count, 4))).round(2).astype(np.float32)
    return probabilities, labels


def test_the_metrics_are_those_of_scikit_learn() -> None:
    p, y = draw()
    predicted, values = p >= 0.5, {name: m.value for name, m in compute_label_metrics(CLASSES, p, y, HALF)[0].items()}
    expected = {
        "mean_average_precision": reference.average_precision_score(y, p, average="macro"),
        "micro_average_precision": reference.average_precision_score(y, p, average="micro"),
        "auroc": reference.roc_auc_score(y, p, average="macro"),
        "micro_auroc": reference.roc_auc_score(y, p, average="micro"),
        "example_f1": reference.f1_score(y, predicted, average="samples", zero_division=1),
        "hamming_loss": reference.hamming_loss(y, predicted),
        "ranking_loss": reference.label_ranking_loss(y, p),
        "coverage_error": reference.coverage_error(y, p),
        "subset_accuracy": reference.accuracy_score(y, predicted),
        "log_loss": np.mean([reference.log_loss(y[:, k], p[:, k].astype(np.float64)) for k in range(4)]),
    }
    for how in ("micro", "macro"):
        expected[f"{how}_f1"] = reference.f1_score(y, predicted, average=how)
        expected[f"{how}_precision"] = reference.precision_score(y, predicted, average=how)
        expected[f"{how}_recall"] = reference.recall_score(y, predicted, average=how)
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, abs=1e-6), name
    assert set(values) == {*expected, "calibration_error"}


def test_each_interval_holds_its_value_and_narrows_with_more_images() -> None:
    few, many = (compute_label_metrics(CLASSES, *draw(count), HALF)[0] for count in (60, 600))
    for name in many:
        metric, other = many[name], few[name]
        assert metric.value is not None
        assert metric.interval is not None, name
        assert other.interval is not None
        assert metric.interval.low <= metric.value <= metric.interval.high
        assert metric.interval.high - metric.interval.low < 0.6 * (other.interval.high - other.interval.low), name


def test_the_metrics_of_a_class_are_those_of_scikit_learn() -> None:
    p, y = draw()
    for k, row in enumerate(compute_label_metrics(CLASSES, p, y, np.array([0.3, 0.4, 0.5, 0.6]))[1]):
        assert row.threshold is not None
        predicted = p[:, k] >= row.threshold
        assert row.precision == pytest.approx(reference.precision_score(y[:, k], predicted))
        assert row.recall == pytest.approx(reference.recall_score(y[:, k], predicted))
        assert row.f1 == pytest.approx(reference.f1_score(y[:, k], predicted))
        assert row.average_precision.value == pytest.approx(reference.average_precision_score(y[:, k], p[:, k]))
        assert row.auroc.value == pytest.approx(reference.roc_auc_score(y[:, k], p[:, k]))
        assert row.support == y[:, k].sum()


@pytest.mark.parametrize("size", [1, 5], ids=["images", "groups of 5"])
def test_the_intervals_of_a_class_hold_its_f1_and_its_calibration_error(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLES", bootstrap.MIN_RESAMPLES)  # enough here, and quick
    rng, levels = np.random.default_rng(4), np.array([0.05, 0.3, 0.7, 0.95])
    fractions = np.clip(
        levels + np.array([0.0, 0.1, -0.1, 0.0]), 0, 1
    )  # of the images with each probability that have the class
    hits, chosen, true = fractions[2:].sum(), 2, fractions.sum()
    expected = {"f1": 2 * hits / (chosen + true), "calibration_error": np.abs(levels - fractions).mean()}
    groups, labels = None if size == 1 else np.arange(300) // size, tuple(map(str, range(30)))
    shape, covered = (300 // size, len(labels)), []
    for seed in range(4):  # with 30 classes at once, each of other images: their intervals are computed together
        at = np.repeat(rng.integers(0, 4, shape), size, axis=0)  # images of a group have one probability and one label
        y = np.repeat(rng.random(shape), size, axis=0) < fractions[at]
        p = levels[at].astype(np.float32)
        _, rows = compute_label_metrics(labels, p, y, np.full(len(labels), 0.5), seed, groups=groups)
        values, (row,) = compute_label_metrics(labels[:1], p[:, :1], y[:, :1], HALF[:1], groups=groups)
        assert row.calibration_interval == values["calibration_error"].interval
        for row in rows:
            assert row.f1_interval is not None
            assert row.calibration_interval is not None
            covered.append([
                row.f1_interval.low <= expected["f1"] <= row.f1_interval.high,
                row.calibration_interval.low <= expected["calibration_error"] <= row.calibration_interval.high,
            ])  # fmt: skip
    assert np.mean(covered, axis=0).min() >= 0.88


def test_a_class_without_errors_has_an_interval_of_f1_with_a_width() -> None:
    y = np.arange(40)[:, None] % 2 == 0
    p = np.where(y, 0.9, 0.1).astype(np.float32)
    (alone,), (grouped,) = (
        compute_label_metrics(("a",), p, y, HALF[:1], groups=groups)[1] for groups in (None, np.arange(40) // 10)
    )
    assert alone.f1 == grouped.f1 == 1
    assert alone.f1_interval is not None
    assert grouped.f1_interval is not None
    assert grouped.f1_interval.low < alone.f1_interval.low < 1
    (never,) = compute_label_metrics(("a",), p, np.zeros_like(y), HALF[:1])[1]
    assert (never.f1, never.f1_interval) == (None, None)


def test_a_class_without_images_is_left_out_of_the_means() -> None:
    p, y = draw()
    y[:, 3] = False
    values, per_class = compute_label_metrics(CLASSES, p, y, HALF)
    expected = np.mean([reference.average_precision_score(y[:, k], p[:, k]) for k in range(3)])
    assert values["mean_average_precision"].value == pytest.approx(expected)
    assert values["mean_average_precision"].classes == 3
    row = per_class[3]
    assert (row.recall, row.f1, row.auroc.value) == (None, None, None)
    assert row.average_precision.note == "no image has the class"


def test_a_class_that_all_images_have_is_ranked_perfectly_and_has_no_auroc() -> None:
    p, y = draw()
    y[:, 0] = True
    values, per_class = compute_label_metrics(CLASSES, p, y, HALF)
    expected = reference.average_precision_score(y, p, average="macro")
    assert values["mean_average_precision"].value == pytest.approx(expected)
    assert (values["mean_average_precision"].classes, values["auroc"].classes) == (4, 3)
    assert (per_class[0].average_precision.value, per_class[0].auroc.value) == (1, None)
    assert per_class[0].auroc.note == "all images have the class"
    y[:] = [True, True, False, False]
    values, _ = compute_label_metrics(CLASSES, p, y, HALF)
    assert values["auroc"].note == "every class has all images or none"
    assert values["micro_auroc"].value == pytest.approx(reference.roc_auc_score(y, p, average="micro"))


def test_means_over_classes_of_few_images_say_that_their_intervals_are_too_narrow() -> None:
    means = ["mean_average_precision", "auroc", "macro_f1", "macro_precision", "macro_recall"]
    for count, names in ((14, means), (60, [])):
        p, y = draw(count)
        values, _ = compute_label_metrics(CLASSES, p, y, HALF)
        assert [name for name, metric in values.items() if NARROW_NOTE in metric.note] == names


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 4], ids=["images", "groups of 4"])
def test_many_pairs_have_the_intervals_of_few(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLES", 400)  # enough here, and quick
    p, y = draw(2000)
    p += np.random.default_rng(1).normal(0, 1e-4, p.shape).astype(np.float32)  # hardly any ties
    groups = None if size == 1 else np.arange(2000) // size
    blocks, block_classes = compute_label_metrics(CLASSES, p, y, HALF, groups=groups)
    difference = multi_label_metrics.compare_label_sets(y, (p, p[::-1]), (p >= 0.5, p[::-1] >= 0.5), groups)
    monkeypatch.setattr(block_bootstrap, "MAX_BLOCKS", 2000)
    monkeypatch.setattr(block_bootstrap, "MAX_EDGES", 2000)
    exact, exact_classes = compute_label_metrics(CLASSES, p, y, HALF, groups=groups)
    pairs = [(blocks[name], exact[name]) for name in (*RANKED, "calibration_error")]
    for one, other in zip(block_classes, exact_classes, strict=True):
        pairs += [(one.auroc, other.auroc), (one.average_precision, other.average_precision)]
        pairs += [(replace(one.average_precision, interval=one.calibration_interval),
                   replace(other.average_precision, interval=other.calibration_interval))]  # fmt: skip
    for metric, expected in pairs:
        assert metric.value == pytest.approx(expected.value)
        assert metric.interval is not None
        assert expected.interval is not None
        assert metric.interval == pytest.approx(expected.interval, abs=0.2 * width(expected))
        assert width(metric) > 0
    ranked = multi_label_metrics.compare_label_sets(y, (p, p[::-1]), (p >= 0.5, p[::-1] >= 0.5), groups)
    in_blocks, image_by_image = difference.mean_average_precision, ranked.mean_average_precision
    assert in_blocks.interval == pytest.approx(image_by_image.interval, abs=0.2 * width(image_by_image))


def test_a_block_is_ranked_as_its_images_are() -> None:
    p, y = draw(900)
    y[:, 0] &= np.random.default_rng(0).random(900) < 0.05  # a rare class, between whose scores most others lie
    scores = p.astype(np.float64)
    blocks = BlockBootstrap.draw(900, 4, Resampling(3), "ranking")
    assert blocks.blocks.tolist() == list(range(900))
    ranks = blocks.rank_classes(scores, y)
    for k in range(4):
        expected = metrics.auroc_and_ap(scores[:, k], y[:, k], blocks.weights)
        np.testing.assert_allclose(ranks[k], expected, atol=1e-12)
    np.testing.assert_allclose(ranks[-1], ranks[:-1].mean(0), atol=1e-12)
    many = BlockBootstrap.draw(5000, 4, Resampling(3, np.arange(5000) // 2), "ranking")
    assert many.weights.shape[1] == len(np.unique(many.blocks)) == 1000
    assert (many.blocks[::2] == many.blocks[1::2]).all(), "groups stay whole"
    assert set(np.bincount(many.blocks).tolist()) == {4, 6}


def test_a_nearly_perfect_model_has_the_intervals_of_its_images_in_blocks() -> None:
    """Scores of many images of a class share a cell, where ties would make the interval twice too wide."""
    rng = np.random.default_rng(0)
    y = np.arange(20_000) < 8000
    scores = rng.normal(5 * y)
    blocks = BlockBootstrap.draw(len(y), 1, Resampling(), "ranking")
    blocks = replace(blocks, weights=blocks.weights[:201])
    ranks = blocks.rank_classes(scores[:, None], y[:, None])[0]
    weights = np.array_split(blocks.weights, 10)
    expected = np.concatenate([metrics.auroc_and_ap(scores, y, rows[:, blocks.blocks]) for rows in weights], axis=1)
    np.testing.assert_allclose(ranks[:, 0], expected[:, 0])
    ends, expected_ends = (np.percentile(of, [2.5, 97.5], axis=1) for of in (ranks, expected))
    np.testing.assert_allclose(np.diff(ends, axis=0), np.diff(expected_ends, axis=0), rtol=0.1)


def test_a_perfect_model_has_no_interval_in_blocks_either(monkeypatch: pytest.MonkeyPatch) -> None:
    _, y = draw(200)
    monkeypatch.setattr(block_bootstrap, "MAX_BLOCKS", 50)
    values, _ = compute_label_metrics(CLASSES, np.where(y, 0.9, 0.1).astype(np.float32), y, HALF)
    for name in RANKED:
        assert values[name] == replace(values[name], value=1.0, interval=None)
        assert values[name].note == "no interval: the same value in every resample"


def test_images_of_a_group_count_as_one() -> None:
    """Copies of an image make no interval narrower if they are known to be of one group; else they do."""
    p, y = draw()
    copies = 5
    alone, alone_classes = compute_label_metrics(CLASSES, p, y, HALF)
    pretended, _ = compute_label_metrics(CLASSES, np.repeat(p, copies, 0), np.repeat(y, copies, 0), HALF)
    groups = np.repeat(np.arange(len(y)), copies)
    grouped, grouped_classes = compute_label_metrics(
        CLASSES, np.repeat(p, copies, 0), np.repeat(y, copies, 0), HALF, groups=groups
    )
    for name in (*RANKED, *COUNTED, *AVERAGED, "subset_accuracy"):
        assert grouped[name].value == pytest.approx(alone[name].value)
        low, high = (grouped[name].interval or ()), (alone[name].interval or ())
        assert low == pytest.approx(high, abs=0.05), name
        assert width(pretended[name]) < 0.7 * width(grouped[name]), name
    for one, other in zip(alone_classes, grouped_classes, strict=True):
        assert one.recall_interval is not None
        assert other.recall_interval is not None
        assert other.recall_interval == pytest.approx(one.recall_interval, abs=0.15)
        assert other.recall_interval.low < one.recall_interval.low  # exact, and of a variance that is estimated
    single, classes = compute_label_metrics(CLASSES, p, y, HALF, groups=np.zeros(len(y), np.int64))
    assert single["micro_f1"].note == "no interval: all images are in one group"
    assert (single["auroc"].interval, classes[0].recall_interval) == (None, None)


def test_a_report_resamples_the_groups_of_the_images() -> None:
    p, y = draw()
    labeled = label_images(y)
    one, other = (
        build_report(CLASSES, p, labeled, "test", None),
        build_report(
            CLASSES,
            p,
            replace(labeled, groups={path: str(int(path) // 20) for path in labeled.subset.paths}),
            "test",
            None,
        ),
    )
    assert one.evaluation.metrics["micro_f1"].value == other.evaluation.metrics["micro_f1"].value
    assert one.evaluation.metrics["micro_f1"].interval != other.evaluation.metrics["micro_f1"].interval


def test_decisions_without_an_error_count_as_one_for_each_image_or_group() -> None:
    _, y = draw(20)
    labeled, perfect = label_images(y), np.where(y, 0.9, 0.1).astype(np.float32)
    for groups, count in (({}, 20), ({path: str(int(path) // 4) for path in labeled.subset.paths}, 5)):
        evaluation = build_report(CLASSES, perfect, replace(labeled, groups=groups), "test", None).evaluation
        assert evaluation.metrics["hamming_loss"].interval is None
        assert evaluation.accuracy_interval == wilson_interval(count, count)


def test_images_with_all_classes_or_none_have_no_wrong_order() -> None:
    p, y = draw()
    losses, depths = compute_ranking_losses(p.astype(np.float64), y), compute_coverage(p.astype(np.float64), y)
    assert (losses[0], losses[1], depths[0], depths[1]) == (0, 0, 0, 4)


def width(metric: Metric) -> float:
    assert metric.interval is not None
    return metric.interval.high - metric.interval.low


def label_images(y: NDArray[np.bool_]) -> LabeledSubset:
    paths = tuple(map(str, range(len(y))))
    subset = Subset(np.zeros((len(y), 1, 1, 3), np.uint8), np.arange(len(y)), y.astype(np.uint8), paths)
    return LabeledSubset(subset, (), ())


def test_a_report_names_what_is_missed_and_predicted_in_its_place() -> None:
    y = np.array([[1, 0], [1, 0], [0, 1]], bool)
    p = np.array([[0.1, 0.9], [0.2, 0.8], [0.1, 0.7]], np.float32)
    report = build_report(("cat", "dog"), p, label_images(y), "test", None)
    pair = report.errors.confused_pairs[0]
    assert (pair.label, pair.predicted, pair.count) == ("cat", "dog", 2)
    first = report.errors.most_confident_errors[0]
    assert (first.label, first.predicted, first.path) == ("cat", "dog", "0")
    assert report.errors.count == 2
    assert report.evaluation.accuracy == pytest.approx(2 / 6)


def test_a_report_lists_the_pairs_of_labels_with_the_most_errors() -> None:
    p, y = draw(200)
    report = build_report(CLASSES, p, label_images(y), "test", None)
    assert report.errors.pair_errors == count_pair_errors(CLASSES, y, p >= 0.5)
    rows = report.to_dict()["errors"]["pair_errors"]
    assert [row["wrong"] + row["missed"] for row in rows] == sorted(
        (row["wrong"] + row["missed"] for row in rows), reverse=True
    )
    assert set(rows[0]) == {"first", "second", "true", "predicted", "wrong", "missed"}
    page = str(make_environment().get_template("multi_label.html.j2").module.errors(report.to_dict(), 5, {}))  # type: ignore[attr-defined]
    first = f"{rows[0]['first']}, {rows[0]['second']}"
    cells = re.search(rf"<td class=\"name\">{first}</td>(.*?)</tr>", page)
    assert cells is not None
    assert re.findall(r">(\d+)<", cells[1]) == [str(rows[0][k]) for k in ("true", "predicted", "wrong", "missed")]


def test_metrics_without_images_of_an_earlier_split() -> None:
    p, y = draw(40)
    images = tuple(ImageRecord(str(i), f"{i:064x}", "", None, 1, 1) for i in range(40))
    leaked = {images[3].sha256: "identical", images[5].sha256: "near_duplicates"}
    report = build_report(CLASSES, p, replace(label_images(y), images=images, leaked=leaked), "test", None)
    assert report.evaluation.leaked is not None
    values = report.to_dict()["leaked"]
    clean = [i for i in range(40) if i not in (3, 5)]
    expected = compute_label_metrics(CLASSES, p[clean], y[clean], HALF)[0]
    assert (values["count"], values["identical"], values["near_duplicates"], values["images"]) == (2, 1, 1, ["3", "5"])
    assert values["without_leaked"]["count"] == 38
    for name, metric in values["without_leaked"]["metrics"].items():
        assert metric["value"] == expected[name].value, name
    summary = report.evaluation.summarize()
    assert summary["leaked"]["without_leaked"]["micro_f1"]["value"] == expected["micro_f1"].value


def test_probabilities_that_are_none_are_refused() -> None:
    y = np.ones((2, 2), bool)
    with pytest.raises(DataError, match="probabilities of 1 are not between 0 and 1: "):
        build_report(("a", "b"), np.array([[0, 1], [0, np.nan]], np.float32), label_images(y), "test", None)


def test_decisions_of_a_fold_are_those_of_thresholds_from_the_other_folds() -> None:
    rng = np.random.default_rng(0)
    p, y = rng.random((60, 4)).astype(np.float32), rng.random((60, 4)) < 0.3  # nothing to learn
    paths = tuple(map(str, range(60)))
    subset = Subset(p, np.arange(60), y.astype(np.uint8), paths)
    images = tuple(ImageRecord(path, path, "", None, 1, 1) for path in paths)
    fold_by_path = {path: number % 5 for number, path in enumerate(paths)}
    thresholds = fit_thresholds(CLASSES, p, y, NO_THRESHOLDS, None)
    optimistic = build_report(CLASSES, p, LabeledSubset(subset, images, ()), "validation", thresholds)
    labeled = LabeledSubset(subset, images, (), folds=fold_by_path)
    honest = build_report(CLASSES, p, labeled, "out-of-fold", thresholds)
    predicted = np.empty_like(y)
    for fold in range(5):
        rows = np.arange(60) % 5 == fold
        cuts = fit_label_thresholds(CLASSES, p[~rows], y[~rows])
        predicted[rows] = p[rows] >= list(cuts.values())
    assert honest.evaluation.metrics["micro_f1"].value == pytest.approx(
        reference.f1_score(y, predicted, average="micro")
    )
    assert honest.evaluation.accuracy == pytest.approx((predicted == y).mean())
    evaluation = Evaluation(honest, None, 1)
    named = ["".join(np.array(CLASSES)[row]) for row in predicted]
    assert [row["predicted"].replace(";", "") for row in evaluation.predictions] == named
    assert len(evaluation.errors) == honest.errors.count
    values = [report.evaluation.metrics["macro_f1"].value or 0 for report in (honest, optimistic)]
    assert values[0] < values[1] - 0.02
    assert [row.threshold for row in honest.evaluation.per_class] == list((thresholds.labels or {}).values())
    assert honest.evaluation.metrics["auroc"] == optimistic.evaluation.metrics["auroc"]


@pytest.mark.parametrize("request_", [ThresholdRequest(target_precision=0.7, fnr=0.2), ThresholdRequest(recall=0.8)])
def test_targets_are_checked_on_folds_that_did_not_choose_the_thresholds(request_: ThresholdRequest) -> None:
    p, y = draw(200)
    paths = tuple(map(str, range(200)))
    images = tuple(ImageRecord(path, path, "", None, 1, 1) for path in paths)
    subset = Subset(p, np.arange(200), y.astype(np.uint8), paths)
    thresholds = fit_thresholds(CLASSES, p, y, request_, None)
    reports = [
        build_report(CLASSES, p, LabeledSubset(subset, images, (), folds=folds), "out-of-fold", thresholds)
        for folds in ({}, {path: int(path) % 4 for path in paths})
    ]
    assert reports[0].evaluation.metrics["micro_f1"] != reports[1].evaluation.metrics["micro_f1"]
    if request_.fnr is None:
        return
    sets, decisions = ([getattr(report, name) for report in reports] for name in ("label_sets", "decisions"))
    assert sets[0].threshold == sets[1].threshold
    assert sets[0].fnr != sets[1].fnr
    assert decisions[0] != decisions[1]
