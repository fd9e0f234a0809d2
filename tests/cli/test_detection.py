"""Two-class models as a user sees them: positive class, rates, thresholds, untested classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from command import Command, draw_classes

CLASSES = {"good": (90, 120, 90), "dent": (150, 100, 100)}
OPTIONS = ("--recipe", "quick", "--model", "cifar10-simple", "--epochs", "3")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train, validation and test folders of two classes, 60 images each."""
    root = draw_classes(tmp_path_factory.mktemp("data") / "parts", CLASSES, 90, 16)
    for path in sorted(root.rglob("*.png")):
        part = ("train", "validation", "test")[int(path.stem[-3:]) % 3]
        (root / part / path.parent.name).mkdir(parents=True, exist_ok=True)
        path.rename(root / part / path.parent.name / path.name)
    for label in CLASSES:
        (root / label).rmdir()
    return root


@pytest.fixture(scope="module")
def fitted(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose positive class is set explicitly, overriding the rule by names."""
    from sightline import train

    path = tmp_path_factory.mktemp("runs") / "run"
    assignments = ["model.name=cifar10-simple", "train.epochs=3", "evaluation.positive=good"]
    train(parts, recipe="quick", set=assignments, out=path)
    return path


@pytest.fixture
def run(fitted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fitted, tmp_path / "run"))


def metrics_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "eval" / "test" / "metrics.json").read_text("utf-8"))
    return found


def test_the_positive_class_goes_from_the_settings_into_run_report_and_bundle(
    sightline: Command, run: Path, parts: Path, tmp_path: Path
) -> None:
    kept = metrics_of(run)["binary"]
    assert (kept["positive"], kept["rule"], kept["positives"]) == ("good", "as requested", 30)
    page = (run / "report.html").read_text("utf-8")
    assert "Detection of good" in page
    assert 'alt="roc-precision-recall"' in page
    assert "Validation and test" in page
    lone = shutil.copy(run / "bundle" / "model.onnx", tmp_path / "lone.onnx")
    for model in (run, run / "bundle", lone):
        arguments = () if model == run else (parts,)
        assert sightline("evaluate", model, *arguments, "--json").json["binary"]["positive"] == "good"
    other = sightline("evaluate", run, "--positive", "dent", "--json").json["binary"]
    assert (other["positive"], other["sensitivity"]) == ("dent", kept["specificity"])


def test_thresholds_for_rates_are_chosen_on_validation_and_stated_on_test(sightline: Command, run: Path) -> None:
    arguments = ("evaluate", run, "--positive", "dent", "--target-sensitivity", "0.6", "--target-specificity", "0.6")
    found = sightline(*arguments, "--json")
    assert found.code == 0, found.err
    points = found.json["binary"]["operating_points"]
    assert [(p["rate"], p["target"], p["count"], p["conservative"]) for p in points] == [
        ("sensitivity", 0.6, 60, True), ("specificity", 0.6, 60, True),
    ]  # fmt: skip
    assert all(len(p["reached"][p["rate"]]["interval"]) == 2 for p in points)
    assert metrics_of(run)["binary"] == found.json["binary"]
    nothing = sightline("evaluate", run, "--target-sensitivity", "0.99", "--target-specificity", "0.6")
    assert nothing.code == 1
    assert "30 validation images of that class cannot show" in nothing.out
    assert "predict 'good' where its probability is at least" in nothing.out
    assert "PPV" in nothing.out
    assert "mean of both classes" in nothing.out
    assert "average precision of 'good'" in nothing.out


def test_a_threshold_asked_for_alone_is_kept_for_predict_report_and_bundle(
    sightline: Command, run: Path, parts: Path
) -> None:
    target = ("--target-sensitivity", "0.9")
    found = sightline("evaluate", run, *target, "--json").json
    (point,) = found["binary"]["operating_points"]
    kept = json.loads((run / "thresholds.json").read_text("utf-8"))
    assert (kept["rate"], kept["target_rate"], kept["positive"]) == ("sensitivity", 0.9, "good")
    assert kept["positive_threshold"] == point["threshold"]
    assert "`predict` goes by the threshold for this sensitivity" in sightline("evaluate", run, *target).out
    answers = {}
    for model in (run, run / "bundle"):
        for label in CLASSES:
            rows = [
                json.loads(r) for r in sightline("predict", model, parts / "test" / label, "--json").out.splitlines()
            ]
            good = [{c["label"]: c["probability"] for c in row["top"]}["good"] for row in rows]
            assert [row["label"] == "good" for row in rows] == [p >= point["threshold"] for p in good]
            assert all(row["top"][0] == {k: row[k] for k in ("label", "probability")} for row in rows)
            answers[model, label] = [row["label"] for row in rows]
    assert answers[run, "good"] == answers[run / "bundle", "good"]
    assert answers[run, "good"].count("good") / 30 == point["reached"]["sensitivity"]["value"]
    assert sightline("report", run).code == 0
    page = (run / "report.html").read_text("utf-8")
    assert "<h2>Operating points</h2>" in page
    assert "chosen on validation for a sensitivity of 90.0%" in page
    again = sightline("evaluate", run, "--json").json["binary"]["operating_points"]
    assert [(p["threshold"], p["reached"]) for p in again] == [(point["threshold"], point["reached"])]
    # Another target replaces it, also one of another kind; two at once are only stated.
    assert sightline("evaluate", run, "--target-precision", "0.5").code in {0, 1}
    assert json.loads((run / "thresholds.json").read_text("utf-8"))["positive_threshold"] is None
    both = sightline("evaluate", run, *target, "--target-specificity", "0.6").out
    assert "not kept for `predict`: it keeps a threshold that is asked for alone" in both
    assert json.loads((run / "thresholds.json").read_text("utf-8"))["target_precision"] == 0.5


def test_a_wrong_positive_class_is_refused_at_once(sightline: Command, run: Path, parts: Path, tmp_path: Path) -> None:
    found = sightline("train", parts, *OPTIONS, "--set", "evaluation.positive=godo", "--out", tmp_path / "r")
    assert (found.code, found.out) == (2, "")
    assert "'godo' is not a class of the model. Did you mean 'good'" in found.err
    assert not (tmp_path / "r").exists()
    found = sightline("evaluate", run, "--positive", "bad")
    assert (found.code, found.out) == (2, "")
    assert "'bad' is not a class of the model" in found.err


def test_rates_need_two_classes(sightline: Command, trained: tuple[Path, dict[str, Any]]) -> None:
    found = sightline("evaluate", trained[0], "--target-specificity", "0.9")
    assert (found.code, found.out) == (2, "")
    assert "A target specificity needs a model with two classes; this one has 3." in found.err


def test_a_class_without_a_test_image_is_named_by_train_and_report_and_card(sightline: Command, tmp_path: Path) -> None:
    data = draw_classes(tmp_path / "rare", {"ok": (90, 120, 90)}, 40, 16)
    draw_classes(tmp_path / "few", {"defect": (150, 100, 100)}, 1, 16)
    shutil.move(tmp_path / "few" / "defect", data / "defect")
    found = sightline("train", data, *OPTIONS, "--out", tmp_path / "r")
    assert found.code == 0, found.err
    sentence = "1 of 2 classes has no image in the test split and is not tested: 'defect'."
    assert sentence in found.out
    assert metrics_of(tmp_path / "r")["untested_classes"] == ["defect"]
    info = json.loads((tmp_path / "r" / "run.json").read_text("utf-8"))["result"]
    assert info["untested_classes"]["test"] == ["defect"]
    assert sentence.replace("'", "&#39;") in (tmp_path / "r" / "report.html").read_text("utf-8")
    assert sentence in sightline("evaluate", tmp_path / "r").out
    assert sightline("card", tmp_path / "r").code == 0
    card = (tmp_path / "r" / "bundle" / "README.md").read_text("utf-8")
    assert "1 of 2 classes has no image in the test split" in card


def test_another_positive_class_needs_no_training(sightline: Command, run: Path, parts: Path) -> None:
    weights = (run / "model.keras").read_bytes()
    arguments = ("--recipe", "quick", "--model", "cifar10-simple", "--epochs", "3", "--set", "evaluation.positive=dent")
    found = sightline("train", parts, *arguments, "--out", run)
    assert found.code == 0, found.err
    assert "nothing to train" in found.err
    assert (run / "model.keras").read_bytes() == weights
    assert metrics_of(run)["binary"]["positive"] == "dent"
