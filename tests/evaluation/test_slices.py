"""Where a classifier fails: mistakes, slices, wrong labels, and against another classifier."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from sightline.api.label_issues import _check_labels
from sightline.callbacks import no_progress
from sightline.data.types import ImageRecord, Subset
from sightline.errors import DataError, MissingExtraError
from sightline.evaluation import label_issues as wrong_labels
from sightline.evaluation.error_analysis import analyze_errors
from sightline.evaluation.paired import compare_paired, group_p_value, mcnemar_p_value
from sightline.evaluation.scoring import compute_evaluation
from sightline.evaluation.slices import evaluate_slices, find_slices, image_properties, record_properties, slice_masks
from sightline.tasks.protocol import find_task
from strategies import image_record


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_scipys_exact_test(lost: int, won: int) -> None:
    expected = binomtest(lost, lost + won, 0.5).pvalue if lost + won else 1.0
    assert mcnemar_p_value(lost, won) == pytest.approx(expected, rel=1e-6)


def test_verdicts() -> None:
    base = np.arange(200) % 2 == 0
    better = base | (np.arange(200) < 40)
    comparison = compare_paired(base, better)
    assert (
        comparison.verdict,
        comparison.only_first_correct,
        comparison.only_second_correct,
        comparison.difference,
    ) == (
        "better",
        0,
        20,
        0.1,
    )
    assert comparison.difference_interval is not None
    assert 0 < comparison.difference_interval.low < 0.1 < comparison.difference_interval.high
    assert compare_paired(better, base).verdict == "worse"
    assert compare_paired(base, base).verdict == "no significant difference"
    slightly = base | (np.arange(200) < 12)  # 6 against 0: p = 0.03
    assert compare_paired(base, slightly).verdict == "better"
    assert compare_paired(base, slightly, tests=2).verdict == "no significant difference"


def test_twins_are_called_different_one_time_in_twenty_at_most() -> None:
    rng = np.random.default_rng(0)
    verdicts = [compare_paired(rng.random(100) < 0.8, rng.random(100) < 0.8).verdict for _ in range(60)]
    assert verdicts.count("no significant difference") >= 54


def make_evaluation(p: list[list[float]], truth: list[int]) -> object:
    count = len(truth)
    samples = Subset(
        np.zeros((count, 2, 2, 3), np.uint8), np.arange(count), np.array(truth, np.int32),
        tuple(f"{i}.png" for i in range(count)),
    )  # fmt: skip
    return compute_evaluation(("a", "b", "c"), np.array(p, np.float32), samples)


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (0, 5), (3, 9), (7, 7)])
def test_groups_of_one_image_have_the_p_value_of_mcnemar(lost: int, gained: int) -> None:
    differences = np.repeat([-1.0, 1.0, 0.0], [lost, gained, 4])
    assert group_p_value(differences) == pytest.approx(mcnemar_p_value(lost, gained))


def test_images_of_one_group_are_not_evidence_of_their_own() -> None:
    groups = np.repeat(np.arange(6), 50)
    first = np.zeros(300, bool)
    second = np.isin(groups, [0, 1, 2])  # right on all images of three of six groups
    alone, together = compare_paired(first, second), compare_paired(first, second, groups=groups)
    assert (alone.verdict, alone.groups) == ("better", None)
    assert alone.p_value < 1e-30
    assert (together.verdict, together.groups, together.p_value) == ("no significant difference", 6, 0.25)
    assert together.difference == alone.difference
    assert together.difference_interval is not None
    assert alone.difference_interval is not None
    assert together.difference_interval.low < alone.difference_interval.low
    assert compare_paired(first, second, groups=np.zeros(300, np.int64)).difference_interval is None


def test_false_verdicts_are_rare_where_images_of_a_group_agree() -> None:
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(30), 20)
    runs = [[rng.random(30)[groups] < 0.7 for _ in range(2)] for _ in range(80)]
    wrong = sum(compare_paired(*pair, groups=groups).verdict != "no significant difference" for pair in runs)
    assert wrong <= 8, "5% of 80 and two standard deviations"
    assert sum(compare_paired(*pair).verdict != "no significant difference" for pair in runs) > 40


def test_the_mistakes_worth_looking_at() -> None:
    p = [[0.6, 0.4, 0], [0.1, 0.9, 0], [0.2, 0.8, 0], [0, 0.45, 0.55], [1, 0, 0]]
    errors = analyze_errors(make_evaluation(p, [1, 0, 0, 2, 0]))  # type: ignore[arg-type]
    assert [(a.path, a.label, a.predicted) for a in errors.most_confident_errors] == [
        ("1.png", "a", "b"), ("2.png", "a", "b"), ("0.png", "b", "a"),
    ]  # fmt: skip
    assert [a.path for a in errors.least_confident_correct] == ["3.png", "4.png"]
    assert [(p.label, p.predicted, p.count, len(p.examples)) for p in errors.confused_pairs] == [
        ("a", "b", 2, 2),
        ("b", "a", 1, 1),
    ]
    assert errors.confused_pairs[0].fraction == pytest.approx(2 / 3)


def test_the_slice_that_is_worse_is_named_and_no_other() -> None:
    rng = np.random.default_rng(0)
    camera = ["old" if i % 4 == 0 else "new" for i in range(400)]
    correct = rng.random(400) < np.where(np.array(camera) == "old", 0.6, 0.95)
    values = {"camera": camera, "brightness": rng.random(400).tolist()}
    slice_rows = evaluate_slices(find_slices(values), correct)
    assert [s.name for s in slice_rows if s.significantly_worse] == ["camera old"]
    assert (slice_rows[0].name, slice_rows[0].count) == ("camera old", 100)
    assert slice_rows[0].difference_interval.high < 0 < slice_rows[0].rest_accuracy - slice_rows[0].accuracy


def test_chance_alone_names_a_slice_seldom() -> None:
    rng = np.random.default_rng(1)
    named = 0
    for _ in range(200):
        values = {name: rng.random(200).tolist() for name in "abcd"}
        named += any(s.significantly_worse for s in evaluate_slices(find_slices(values), rng.random(200) < 0.85))
    assert named <= 15


def test_chance_names_a_small_slice_seldom_even_if_errors_are_rare() -> None:
    rng, named = np.random.default_rng(2), 0
    for _ in range(150):
        values = {name: rng.exponential(2, 1000).astype(int).astype(str).tolist() for name in "ab"}
        values = {name: [f"site {value}" for value in column] for name, column in values.items()}
        named += any(s.significantly_worse for s in evaluate_slices(find_slices(values), rng.random(1000) < 0.98))
    assert named <= 7, "Wilson's intervals name one in a tenth of the cases"


@pytest.mark.slow
def test_a_slice_of_few_groups_is_seldom_named_by_chance() -> None:
    """Sites of ten images that are right or wrong together: a difference of two of them is chance."""
    rng, site = np.random.default_rng(2), np.repeat(np.arange(40), 10)
    named = named_alone = 0
    camera = {"camera": ["old" if i % 4 == 0 else "new" for i in site]}
    for _ in range(40):
        correct = (rng.random(40) < 0.7)[site]
        named += any(s.significantly_worse for s in evaluate_slices(find_slices(camera), correct, site))
        named_alone += any(s.significantly_worse for s in evaluate_slices(find_slices(camera), correct))
    assert named <= 5
    assert named_alone > 8
    rng = np.random.default_rng(0)
    worse = (rng.random(40) < np.where(np.arange(40) % 4 == 0, 0.2, 0.9))[site]
    rows = evaluate_slices(find_slices(camera), worse, site)
    assert [row.name for row in rows if row.significantly_worse] == ["camera old"]
    assert rows[0].accuracy == worse[site % 4 == 0].mean()
    assert rows[0].interval.low <= rows[0].accuracy <= rows[0].interval.high
    alone = evaluate_slices(find_slices(camera), worse)[0]
    assert rows[0].difference_interval.low < alone.difference_interval.low
    assert rows[0].difference_interval.high > alone.difference_interval.high


def test_a_slice_of_one_group_is_left_out() -> None:
    site = np.repeat(np.arange(4), 20)
    values = {"site": [f"site {i}" for i in site], "side": ["left" if i < 2 else "right" for i in site]}
    correct = np.random.default_rng(0).random(80) < 0.8
    assert {row.name for row in evaluate_slices(find_slices(values), correct, site)} == {"side left", "side right"}


def test_slices_of_words_numbers_and_nothing() -> None:
    assert list(slice_masks("site", ["x", "", "x", "y"])) == ["site x", "site unset", "site y"]
    assert slice_masks("site", ["x"] * 5) == {}
    assert slice_masks("size", [3.0] * 5) == {}
    together = slice_masks("n", ["1", "2", "2", "9"])
    assert sum(at.astype(int) for at in together.values()).tolist() == [1] * 4  # type: ignore[union-attr]
    months = slice_masks("month", [str(202401 + i % 12) for i in range(120)])
    assert list(months) == [
        "month up to 202403",
        "month 202403 to 202406",
        "month 202406 to 202409",
        "month above 202409",
    ]
    assert sum(at.astype(int) for at in months.values()).tolist() == [1] * 120  # type: ignore[union-attr]
    assert find_slices({"size": [1.0] * 5}) == {}
    assert evaluate_slices({}, np.ones(5, bool)) == ()


def test_a_slice_has_ten_images_inside_and_outside() -> None:
    camera = ["a"] * 10 + ["b"] * 9 + ["c"] * 31
    assert {name: int(mask.sum()) for name, mask in find_slices({"camera": camera}).items()} == {
        "camera a": 10, "camera c": 31,
    }  # fmt: skip


def test_properties_are_those_of_the_images() -> None:
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    pixels[1, ::2] = 200
    images = [ImageRecord("a", "0", "x", None, 40, 10), ImageRecord("b", "1", "x", None, 9, 9, extra={"site": "north"})]
    samples = Subset(pixels, np.arange(2), np.zeros(2, np.int32), ("a", "b"))
    properties = image_properties(samples, images)
    assert properties["size"] == [20, 9]
    assert properties["aspect ratio"] == [4, 1]
    assert properties["brightness"] == [0, 100]
    assert properties["sharpness"][0] == 0 < properties["sharpness"][1]
    assert properties["site"] == ["", "north"]
    assert list(properties) == ["size", "aspect ratio", "brightness", "sharpness", "site"]
    assert record_properties(images) == {name: properties[name] for name in ("size", "aspect ratio", "site")}


@pytest.mark.parametrize("channels", [1, 3])
def test_brightness_is_the_mean_of_the_gray_pixels_bit_by_bit(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 20, 30, channels), np.uint8)
    images = [ImageRecord(name, name, "x", None, 30, 20) for name in "abc"]
    samples = Subset(pixels, np.arange(3), np.zeros(3, np.int32), tuple("abc"))
    expected = pixels.mean(3, dtype=np.float32).mean((1, 2))
    assert image_properties(samples, images)["brightness"] == expected.tolist()


def draw_clusters(count: int = 300, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    true = (np.arange(count) % classes).astype(np.int32)
    return (rng.normal(size=(count, 20)) + 3 * np.eye(classes, 20)[true]).astype(np.float32), true


def test_planted_labels_come_first() -> None:
    pytest.importorskip("cleanlab", reason="the extra labels is not installed")
    features, true = draw_clusters()
    given_labels = true.copy()
    planted = np.arange(0, 300, 20)
    given_labels[planted] = (true[planted] + 1) % 3
    images = [image_record("abc"[k], i) for i, k in enumerate(given_labels)]
    p = wrong_labels.predict_out_of_fold(features, given_labels, "abc")
    np.testing.assert_allclose(p.sum(1), 1)
    issues = wrong_labels.select_label_issues(images, given_labels, p, "abc")
    first = {s.path for s in issues[: len(planted)]}
    assert len(first & {images[i].path for i in planted}) >= 0.8 * len(planted)
    assert [s.quality for s in issues] == sorted(s.quality for s in issues)
    line = issues[0].to_patch()
    assert set(line) == {"action", "path", "sha256", "label", "to", "reason"}
    assert (line["action"], line["label"]) == ("relabel", issues[0].label)
    assert line["to"] != line["label"]


def test_among_many_classes_those_with_few_images_are_recognized() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(100), np.where(np.arange(100) % 2, 12, 6)).astype(np.int32)
    features = (0.4 * rng.normal(size=(100, 200))[labels] + rng.normal(size=(len(labels), 200))).astype(np.float32)
    p = wrong_labels.predict_out_of_fold(features, labels, [f"class {k}" for k in range(100)])
    assert (p.argmax(1) == labels).mean() > 0.75


def test_without_cleanlab_the_install_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    with pytest.raises(MissingExtraError, match=r'pip install "\.\[labels\]"'):
        wrong_labels.select_label_issues([], np.zeros(0, np.int32), np.zeros((0, 2)), "ab")


def test_a_class_of_one_image_cannot_be_checked() -> None:
    assert wrong_labels.find_repeated_classes(np.array([0, 1, 2, 2, 0], np.int32), "abc").tolist() == [0, 2]
    with pytest.raises(DataError, match="two images each, but only 1 of 3 classes has that many"):
        wrong_labels.find_repeated_classes(np.array([0, 1, 0, 2], np.int32), "abc")


def test_images_of_a_group_are_checked_by_a_model_that_knows_none_of_them() -> None:
    """Images of a group look alike, and labels are random: who knows a group knows its label, and nobody else does."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(24), 10)
    features = (3 * rng.normal(size=(24, 200))[groups] + 0.1 * rng.normal(size=(240, 200))).astype(np.float32)
    labels = rng.permutation(np.arange(24) % 2)[groups].astype(np.int32)
    rows = np.arange(240)
    alone = wrong_labels.predict_out_of_fold(features, labels, "ab")[rows, labels]
    together = wrong_labels.predict_out_of_fold(features, labels, "ab", groups=groups)[rows, labels]
    assert alone.mean() > 0.6
    assert together.mean() < 0.52
    assert wrong_labels.find_repeated_classes(
        np.array([0, 0, 1, 1, 2, 2]), "abc", np.array([0, 1, 2, 2, 3, 4])
    ).tolist() == [0, 2]
    with pytest.raises(DataError, match="with images of two groups each, but only 1 of 2 classes has that many"):
        wrong_labels.find_repeated_classes(np.array([0, 0, 1, 1], np.int32), "ab", np.array([0, 1, 2, 2]))


def test_labels_that_no_model_can_check_are_taken_to_be_right() -> None:
    """Without an image of a class outside of its group, every model would take it for another class."""
    labels = np.array([0, 0, 1, 1] * 10, np.int32)
    groups = np.array([0, 1, 2, 3] * 10)
    labels[groups == 3] = 2
    p = wrong_labels.predict_out_of_fold(np.zeros((40, 2), np.float32), labels, "abc", groups=groups)
    np.testing.assert_allclose(p.sum(1), 1)
    np.testing.assert_array_equal(p[labels > 0].argmax(1), labels[labels > 0])


def test_the_other_classes_are_checked_without_one_of_a_single_image() -> None:
    pytest.importorskip("cleanlab", reason="the extra labels is not installed")
    features, true = draw_clusters()
    features[7] = 50
    given_labels = np.where(true == 2, 3, true).astype(np.int32)
    given_labels[7] = 2  # the only image of its class
    planted = np.arange(0, 300, 30)
    given_labels[planted] = 3
    images = [image_record("abcd"[k], i) for i, k in enumerate(given_labels)]
    classifier: Any = SimpleNamespace(run=None, classes=("a", "b", "c", "d"), task=find_task("single_label"))
    check = _check_labels(classifier, images, features, given_labels, no_progress)
    assert check.unchecked_classes == ("c",)
    others = np.flatnonzero(np.arange(300) != 7)
    numbers = np.where(given_labels == 3, 2, given_labels)[others].astype(np.int32)
    expected = wrong_labels.predict_out_of_fold(features[others], numbers, "abd")
    assert check.issues == wrong_labels.select_label_issues([images[i] for i in others], numbers, expected, "abd")
    assert {issue.path for issue in check.issues} & {images[i].path for i in planted}
