"""A label that the model does not know: by nearest neighbors, or added to a model with several labels per image."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import sightline as sl
from command import Command
from sightline.api.added_class import AddedClass
from sightline.api.training import train_run
from task_images import NETWORK, TRAINING, write_label_sets

pytestmark = pytest.mark.usefixtures("plain_figures")

NEW = "red"


def leave_out(table: Path) -> Path:
    """Write the table without the new label beside it."""
    with table.open(encoding="utf-8") as file:
        rows = [(row["path"], row["labels"].split(";")) for row in csv.DictReader(file)]
    lines = [f"{path},{';'.join(c for c in labels if c != NEW)}" for path, labels in rows]
    path = table.with_name("two.csv")
    path.write_text("\n".join(["path,labels", *lines]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All labels of the images that the model is trained on, those with the new label among them."""
    return write_label_sets(tmp_path_factory.mktemp("known"), 120)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All labels of images that the model does not know."""
    return write_label_sets(tmp_path_factory.mktemp("other"), 80, seed=5)


@pytest.fixture(scope="module")
def run(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that knows two of three labels."""
    path = tmp_path_factory.mktemp("runs") / "run"
    settings = ["model.task=multi_label", "train.epochs=8", *NETWORK, *TRAINING]
    train_run(leave_out(table), recipe="quick", set=settings, out=path)
    return path


@pytest.mark.parametrize("suffix", [None, ".npy", ".csv"])
def test_nearest_neighbors_give_each_label_its_own_probability(
    suffix: str | None, sightline: Command, run: Path, table: Path, other: Path, tmp_path: Path
) -> None:
    reference = table
    if suffix is not None:
        reference = tmp_path / f"reference{suffix}"
        result = sightline("embed", run, table, "--labeled", "--out", reference)
        assert result.code == 0, result.err
    options = ("--knn", "5", "--reference", reference, "--format", "json", "--probabilities")
    result = sightline("predict", run, *(other.parent / f"{i}.png" for i in range(80)), *options)
    assert result.code == 0, result.err
    with other.open(encoding="utf-8") as file:
        true = [{*row["labels"].split(";")} - {""} for row in csv.DictReader(file)]
    correct = []
    for row, labels in zip(result.lines, true, strict=True):
        p = row["probabilities"]
        assert set(p) == {"blue", "green", "red"}, "and not the sets of them"
        assert row["labels"] == [c for c, _ in sorted(p.items(), key=lambda at: -at[1]) if p[c] >= 0.5]
        correct += [(p[c] >= 0.5) == (c in labels) for c in ("blue", "green")]
    assert np.mean(correct) > 0.85
    assert any(sum(row["probabilities"].values()) > 1.2 for row in result.lines)
    twin = sl.load(run).predict(other.parent / "0.png", knn=5, reference=reference)[0]
    assert list(twin.labels or ()) == result.lines[0]["labels"]


def test_a_model_of_one_label_takes_a_reference_with_several(
    sightline: Command, trained: tuple[Path, object], table: Path, tmp_path: Path
) -> None:
    options = ("--knn", "5", "--reference", table, "--out", tmp_path / "rows.csv")
    result = sightline("predict", trained[0], table.parent / "0.png", *options)
    assert result.code == 0, result.err
    (row,) = csv.DictReader((tmp_path / "rows.csv").read_text(encoding="utf-8").splitlines())
    assert row["label"] == ";".join(sorted(row["label"].split(";"))), "as a manifest has it"
    neighbors = sl.load(trained[0]).with_neighbors(table, knn=5)
    assert neighbors.classes == ("blue", "green", "red")
    assert neighbors.task.name == "multi_label"
    mirrored = neighbors.with_tta()
    assert (mirrored.task.name, mirrored.feature_model_id) == ("multi_label", neighbors.feature_model_id)
    evaluations = [neighbors.evaluate(table, tta=tta, progress=False) for tta in (None, "flip")]
    assert evaluations[0].metrics.keys() == evaluations[1].metrics.keys() >= {"subset_accuracy"}


def show(table: Path, *, new: bool) -> list[Path]:
    """Return the images of the table that show the new label, or that do not."""
    with table.open(encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    return [table.parent / row["path"] for row in rows if (NEW in row["labels"].split(";")) == new]


@pytest.fixture(scope="module")
def added(run: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> AddedClass:
    """The new label, from six images that show it and labeled images of the three labels."""
    out = tmp_path_factory.mktemp("added") / "bundle"
    return sl.load(run).add_class(NEW, show(other, new=True)[:6], reference=other, out=out)


def test_the_other_labels_keep_their_probabilities_and_thresholds(run: Path, added: AddedClass, tmp_path: Path) -> None:
    old, new = sl.load(run), sl.load(added.path)
    assert new.classes == (*old.classes, NEW) == added.classes
    pixels = np.random.default_rng(0).integers(0, 256, (37, 32, 32, 3), np.uint8)
    old_bundle = sl.load(run / "bundle")
    for count in (1, 37):
        before, after = (model.predictor.outputs(pixels[:count]) for model in (old_bundle, new))
        np.testing.assert_array_equal(after.probabilities[:, :2], before.probabilities)
        np.testing.assert_array_equal(after.logits[:, :2], before.logits)
        np.testing.assert_array_equal(after.features, before.features)
    assert old.thresholds is not None
    assert new.thresholds is not None
    assert old.thresholds.labels is not None
    assert new.thresholds.labels == {**old.thresholds.labels, NEW: added.threshold}
    assert new.thresholds.ood_limit == old.thresholds.ood_limit
    assert (added.accuracy, added.dropped_thresholds) == (None, False)
    assert new.feature_model_id == old.feature_model_id


def test_the_new_label_is_predicted_beside_the_others(added: AddedClass, table: Path) -> None:
    new = sl.load(added.path)
    with_it, without = (new.predict(show(table, new=has)) for has in (True, False))
    recall, false = (np.mean([NEW in (p.labels or ()) for p in rows]) for rows in (with_it, without))
    assert recall > false + 0.4
    assert any(len(p.labels or ()) > 1 for p in with_it), "beside others"
    assert np.mean([p.decision is not None and p.decision.decision == "labels" for p in with_it]) > 0.8
    evaluation = new.evaluate(table)
    value = evaluation.metrics["mean_average_precision"].value
    assert value is not None
    assert value > 0.85


def test_its_votes_are_those_that_are_stated(added: AddedClass, other: Path, table: Path) -> None:
    """In NumPy, from the features: exp(s / 0.07), and as much for images with the label as for those without."""
    new = sl.load(added.path)
    with other.open(encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    has = np.array([NEW in row["labels"].split(";") for row in rows])
    known = new.embed([other.parent / row["path"] for row in rows]).vectors.astype(float)
    features = new.embed(show(table, new=True)[:9]).vectors.astype(float)
    weights = np.exp(
        (features / np.linalg.norm(features, axis=1)[:, None])
        @ (known / np.linalg.norm(known, axis=1)[:, None]).T
        / 0.07
    )
    present, absent = weights[:, has].mean(1), weights[:, ~has].mean(1)
    expected = present / (present + absent)
    probabilities = new.predict_proba(show(table, new=True)[:9])[:, 2]
    np.testing.assert_allclose(probabilities, expected, atol=2e-4)


def test_the_manifest_says_what_was_added(run: Path, added: AddedClass) -> None:
    manifest = json.loads((added.path / "manifest.json").read_text())
    original = json.loads((run / "bundle" / "manifest.json").read_text())
    step = manifest["lineage"][-1]
    assert (step["step"], step["class"], step["calibration"]) == ("add-class", NEW, f"not fitted to {NEW}")
    assert manifest["task"] == "multi_label"
    assert manifest["weights_sha256"] != original["weights_sha256"]
    assert manifest["parameters"] > original["parameters"]
    assert manifest["parity"]["max_difference"] < 1e-4
    metrics = manifest["metrics"]["test"]
    assert metrics["mean_average_precision"] == original["metrics"]["test"]["mean_average_precision"]
    assert metrics["untested_classes"] == [NEW]
    assert "micro_f1" not in metrics, "it counts the decisions of all labels"
    assert manifest["reference_examples"][-1]["label"] == NEW


def test_the_command_takes_the_images_of_the_run(
    sightline: Command, run: Path, other: Path, table: Path, tmp_path: Path
) -> None:
    """Those that show the new label, without saying so, are left out if they are among its images."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    result = sightline("add-class", copy, NEW, *show(table, new=True)[:8])
    assert result.code == 0, result.err
    lines = {line.partition(" ")[0]: line for line in result.out.splitlines()}
    assert list(lines) == ["class", "recall", "threshold", "predicted", "calibration", "model"]
    assert lines["class"].endswith("red, the last of 3, from 8 images")
    assert " of 8 when each is left out of the fit (95% interval " in lines["recall"]
    assert lines["threshold"].endswith("for red; the other labels keep their probabilities and thresholds")
    assert " images of the run, its test split" in lines["predicted"]
    assert "images without the label left out: they are copies of images with it" in result.err
    assert sl.load(copy / "with-red").predict(other.parent / "0.png")[0].error is None
    exported = sightline("export", copy / "with-red", "--parity", other, "--out", tmp_path / "e.onnx")
    assert exported.code == 0, exported.err
    options = ("--reference", other, "--out", tmp_path / "b", "--format", "json")
    second = sightline("add-class", copy / "with-red", "any", *show(other, new=False)[:4], *options)
    assert second.code == 0, second.err
    assert second.json["classes"] == ["blue", "green", "red", "any"]
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    first, both = (sl.load(path).predictor.probabilities(pixels) for path in (copy / "with-red", tmp_path / "b"))
    np.testing.assert_array_equal(both[:, :3], first)


def test_label_sets_are_left_out_and_targets_kept(run: Path, other: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    classifier = sl.load(copy)
    thresholds = classifier.thresholds
    assert thresholds is not None
    limits = {"blue": 0.1, "green": None}
    classifier.save_thresholds(
        replace(
            thresholds, target_fnr=0.1, set_threshold=0.2, target_precision=0.9, label_target="precision", absent=limits
        )
    )
    added = classifier.add_class(NEW, show(other, new=True)[:5], reference=other)
    assert added.dropped_thresholds
    stored = sl.load(added.path).thresholds
    assert stored is not None
    assert (stored.set_threshold, stored.target_precision) == (None, 0.9)
    assert stored.absent == {**limits, NEW: added.threshold}
    assert all(NEW not in (p.undecided or ()) for p in sl.load(added.path).predict(show(other, new=True)))


@pytest.mark.parametrize(
    ("name", "labels", "words"),
    [
        ("re;d", "blue", "'re;d' has a ';', which separates the labels of an image"),
        ("blue", "blue", "'blue' is already a class of the model"),
        ("red", "cyan", "has the label 'cyan', which is neither the new label nor one of the model"),
        ("red", "red;blue", "at least 2 images without it for comparison, but there are 0"),
    ],
)
def test_a_mistake_is_an_error_that_says_what_to_do(
    name: str, labels: str, words: str, sightline: Command, run: Path, other: Path, tmp_path: Path
) -> None:
    names = [f"{i}.png" for i in range(20, 26)]
    table = other.with_name(f"{tmp_path.name}.csv")
    table.write_text("\n".join(["path,labels", *(f"{i},{labels}" for i in names)]), encoding="utf-8")
    images = [other.parent / f"{i}.png" for i in range(4)]
    result = sightline("add-class", run, name, *images, "--reference", table, "--out", tmp_path / "new")
    assert (result.code, result.out) == (2, "")
    assert words in result.err
    assert not (tmp_path / "new").exists()
