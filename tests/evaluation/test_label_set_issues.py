"""Label issues of images with several labels, on clusters whose wrong labels are known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sightline.data.targets import LABEL_SETS, join_classes
from sightline.data.types import ImageRecord
from sightline.errors import DataError
from sightline.evaluation import label_issues
from sightline.tasks.protocol import find_task

TASK = find_task("multi_label")
CLASSES = ("car", "person", "road", "tree")
RATES = np.array([0.4, 0.1, 0.93, 0.5])  # a rare class, and one that few images lack


def draw_features(count: int = 400) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    true = (rng.random((count, len(CLASSES))) < RATES).astype(np.uint8)
    features = rng.normal(size=(count, 24)) + 6 * true @ np.eye(len(CLASSES), 24)
    return features.astype(np.float32), true


def make_images(labels: NDArray[np.uint8]) -> list[ImageRecord]:
    names = [join_classes(c for c, has in zip(CLASSES, row, strict=True) if has) for row in labels]
    return [ImageRecord(f"{i}.png", f"{i:064x}", name, None, 8, 8) for i, name in enumerate(names)]


def test_planted_labels_are_found_in_each_class() -> None:
    pytest.importorskip("cleanlab", reason="the extra labels is not installed")
    features, true = draw_features()
    planted = np.zeros(true.shape, bool)
    for column in range(len(CLASSES)):  # of each class, three are missing and three are wrong
        for value in (0, 1):
            planted[np.flatnonzero(true[:, column] == value)[3 + column :: 7][:3], column] = True
    noisy = np.where(planted, 1 - true, true).astype(np.uint8)
    images = make_images(noisy)
    probabilities = label_issues.predict_labels_out_of_fold(TASK, features, noisy)
    issues = label_issues.select_label_set_issues(images, noisy, probabilities, CLASSES)

    assert [issue.quality for issue in issues] == sorted(issue.quality for issue in issues)
    suggested = noisy.copy()
    for issue in issues:
        suggested[int(issue.path.partition(".")[0])] = LABEL_SETS.encode([issue.suggested_label], CLASSES)[0]
        assert {c.label for c in issue.missing} == {*issue.suggested_label.split(";")} - {*issue.label.split(";"), ""}
        assert {c.label for c in issue.wrong} == {*issue.label.split(";")} - {*issue.suggested_label.split(";"), ""}
        assert all(c.probability > 0.5 for c in issue.missing)
        assert all(c.probability < 0.5 for c in issue.wrong)
    questioned = suggested != noisy
    recall = (questioned & planted).sum(0) / planted.sum(0)
    precision = (questioned & planted).sum() / questioned.sum()
    assert recall.mean() >= 0.8, recall
    assert precision >= 0.75
    wrong_images = {images[i].path for i in np.flatnonzero(planted.any(1))}
    first = {issue.path for issue in issues[:10]}
    assert len(first & wrong_images) >= 9
    counts = label_issues.count_label_issues((issue.label, issue.suggested_label) for issue in issues)
    by_class = {count.label: (count.missing, count.wrong) for count in counts}
    columns = zip(CLASSES, (questioned & (noisy == 0)).T, (questioned & (noisy == 1)).T, strict=True)
    expected = {name: (int(missing.sum()), int(wrong.sum())) for name, missing, wrong in columns}
    assert by_class == {c: pair for c, pair in expected.items() if any(pair)}


def test_a_line_of_the_patch_has_all_classes_and_says_why() -> None:
    pytest.importorskip("cleanlab", reason="the extra labels is not installed")
    rng = np.random.default_rng(0)
    labels = (rng.random((60, 2)) < 0.5).astype(np.uint8)
    probabilities = np.where(labels, 0.95, 0.05) + rng.uniform(-0.04, 0.04, labels.shape)
    labels[0], probabilities[0] = (1, 0), (0.02, 0.97)
    labels[1], probabilities[1] = (0, 1), (0.04, 0.03)
    images = [ImageRecord(f"{i}.png", "0", LABEL_TEXTS[tuple(row)], None, 8, 8) for i, row in enumerate(labels)]
    issues = label_issues.select_label_set_issues(images, labels, probabilities, ("a", "b"))
    lines = {issue.path: issue.to_patch() for issue in issues}
    assert set(lines) == {"0.png", "1.png"}
    assert (lines["0.png"]["label"], lines["0.png"]["to"]) == ("a;c", "b;c"), "a class that is not checked stays"
    assert lines["0.png"]["reason"] == (
        "probably has b (0.97) and probably lacks a (0.02), according to a classifier trained without this image"
    )
    assert (lines["1.png"]["action"], lines["1.png"]["to"]) == ("relabel", "")


LABEL_TEXTS = {(0, 0): "", (1, 0): "a;c", (0, 1): "b", (1, 1): "a;b"}


def test_predictions_are_of_models_that_did_not_see_the_image() -> None:
    rng = np.random.default_rng(1)
    labels = (rng.random((100, 2)) < 0.5).astype(np.uint8)
    features = rng.normal(size=(100, 120)).astype(np.float32)  # a model could only memorize
    probabilities = label_issues.predict_labels_out_of_fold(TASK, features, labels)
    assert ((probabilities > 0) & (probabilities < 1)).all()
    assert abs(((probabilities >= 0.5) == labels).mean() - 0.5) < 0.15
    np.testing.assert_array_equal(probabilities, label_issues.predict_labels_out_of_fold(TASK, features, labels))


def test_a_class_of_few_images_is_not_checked() -> None:
    labels = np.zeros((40, 4), np.uint8)
    labels[:4, 0] = labels[:5, 1] = labels[:35, 2] = labels[:36, 3] = 1
    assert label_issues.find_checkable_classes(labels).tolist() == [1, 2]
    with pytest.raises(DataError, match="a class that at least 5 images have and 5 lack"):
        label_issues.find_checkable_classes(labels[:, [0, 3]])


def test_images_of_a_group_are_in_one_fold() -> None:
    """As `split.group` says: images of a group look alike, so that a model that knows one of them knows the others."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(24), 10)
    features = (rng.normal(size=(24, 100))[groups] + 0.1 * rng.normal(size=(240, 100))).astype(np.float32)
    labels = rng.integers(0, 2, (24, 3))[groups].astype(np.uint8)

    def find_errors(together: np.ndarray | None) -> float:
        p = label_issues.predict_labels_out_of_fold(TASK, features, labels, groups=together)
        return float(np.abs(p - labels).mean())

    assert find_errors(None) < 0.3
    assert find_errors(groups) > 0.38


def test_a_class_of_few_groups_is_not_checked() -> None:
    groups = np.repeat(np.arange(8), 5)
    labels = np.zeros((40, 3), np.uint8)
    labels[groups < 4, 0] = labels[::5, 1] = labels[groups > 2, 2] = 1
    assert label_issues.find_checkable_classes(labels).tolist() == [0, 1, 2]
    assert label_issues.find_checkable_classes(labels, groups).tolist() == [1]
    with pytest.raises(DataError, match="a class that at least 5 groups of images have and 5 lack"):
        label_issues.find_checkable_classes(labels[:, [0, 2]], groups)
