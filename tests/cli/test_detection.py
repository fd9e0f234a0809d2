"""Two-class models as a user sees them: positive class, rates, thresholds, untested classes."""

from __future__ import annotations

import json
import shutil
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from command import Command, draw_classes

pytestmark = pytest.mark.usefixtures("plain_figures")

CLASSES = {"good": (90, 120, 90), "dent": (150, 100, 100)}
OPTIONS = ("--recipe", "quick", "--model", "cifar10-simple", "--set", "model.hidden_units=[64]", "--epochs", "3")


@pytest.fixture(scope="module")
def split_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train, validation and test folders of two classes, 60 images each."""
    root = draw_classes(tmp_path_factory.mktemp("data") / "parts", CLASSES, 90, 16)
    for path in sorted(root.rglob("*.png")):
        split = ("train", "validation", "test")[int(path.stem[-3:]) % 3]
        (root / split / path.parent.name).mkdir(parents=True, exist_ok=True)
        path.rename(root / split / path.parent.name / path.name)
    for label in CLASSES:
        (root / label).rmdir()
    return root


@pytest.fixture(scope="module")
def trained_run(split_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose positive class is set explicitly, overriding the rule by names."""
    from sightline.api.training import train_run

    path = tmp_path_factory.mktemp("runs") / "run"
    assignments = [
        "model.name=cifar10-simple",
        "model.hidden_units=[64]",
        "train.epochs=3",
        "evaluation.positive_class=good",
    ]
    train_run(split_folders, recipe="quick", set=assignments, out=path)
    return path


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


def read_metrics(run: Path) -> dict[str, Any]:
    payload: dict[str, Any] = json.loads((run / "eval" / "test" / "metrics.json").read_text("utf-8"))
    return payload


@pytest.mark.slow
def test_the_positive_class_goes_from_the_settings_into_run_report_and_bundle(
    sightline: Command, run: Path, split_folders: Path, tmp_path: Path
) -> None:
    stored = read_metrics(run)["binary"]
    assert (stored["positive"], stored["rule"], stored["positives"]) == ("good", "as requested", 30)
    page = (run / "report.html").read_text("utf-8")
    assert "Detection of good" in page
    assert 'aria-label="ROC curve of good' in page
    assert "Validation and test" in page
    lone = shutil.copy(run / "bundle" / "model.onnx", tmp_path / "lone.onnx")
    for model in (run, run / "bundle", lone):
        arguments = () if model == run else (split_folders,)
        assert sightline("evaluate", model, *arguments, "--format", "json").json["binary"]["positive"] == "good"
    other = sightline("evaluate", run, "--positive", "dent", "--format", "json").json["binary"]
    assert (other["positive"], other["sensitivity"]) == ("dent", stored["specificity"])


@pytest.mark.slow
def test_thresholds_for_rates_are_chosen_on_validation_and_stated_on_test(sightline: Command, run: Path) -> None:
    arguments = ("evaluate", run, "--positive", "dent", "--target-sensitivity", "0.6", "--target-specificity", "0.6")
    result = sightline(*arguments, "--format", "json")
    assert result.code == 0, result.err
    points = result.json["binary"]["operating_points"]
    assert [(p["rate"], p["target"], p["count"], p["conservative"]) for p in points] == [
        ("sensitivity", 0.6, 60, True), ("specificity", 0.6, 60, True),
    ]  # fmt: skip
    assert all(len(p["rates"][p["rate"]]["interval"]) == 2 for p in points)
    assert read_metrics(run)["binary"] == result.json["binary"]
    nothing = sightline("evaluate", run, "--target-sensitivity", "0.99", "--target-specificity", "0.6")
    assert nothing.code == 1
    assert "30 validation images of that class cannot show" in nothing.out
    assert "predict 'good' where its probability is at least" in nothing.out
    assert "PPV" in nothing.out
    assert "mean of both classes" in nothing.out
    assert "average precision of 'good'" in nothing.out


@pytest.mark.slow
def test_a_threshold_asked_for_alone_is_kept_for_predict_report_and_bundle(
    sightline: Command, run: Path, split_folders: Path
) -> None:
    target = ("--target-sensitivity", "0.9")
    payload = sightline("evaluate", run, *target, "--format", "json").json
    (point,) = payload["binary"]["operating_points"]
    stored_payload = json.loads((run / "thresholds.json").read_text("utf-8"))
    assert (stored_payload["rate"], stored_payload["target_rate"], stored_payload["positive"]) == (
        "sensitivity",
        0.9,
        "good",
    )
    assert stored_payload["positive_threshold"] == point["threshold"]
    assert "`predict` uses the threshold for this sensitivity" in sightline("evaluate", run, *target).out
    answers = {}
    for model in (run, run / "bundle"):
        for label in CLASSES:
            rows = [
                json.loads(r)
                for r in sightline(
                    "predict", model, split_folders / "test" / label, "--format", "json"
                ).out.splitlines()
            ]
            good = [{c["label"]: c["probability"] for c in row["top"]}["good"] for row in rows]
            assert [row["label"] == "good" for row in rows] == [p >= point["threshold"] for p in good]
            assert all(row["top"][0] == {k: row[k] for k in ("label", "probability")} for row in rows)
            answers[model, label] = [row["label"] for row in rows]
    assert answers[run, "good"] == answers[run / "bundle", "good"]
    assert answers[run, "good"].count("good") / 30 == point["rates"]["sensitivity"]["value"]
    assert sightline("report", run).code == 0
    page = (run / "report.html").read_text("utf-8")
    assert ">Operating points</h2>" in page
    assert "chosen on validation for a sensitivity of 90.0%" in page
    again = sightline("evaluate", run, "--format", "json").json["binary"]["operating_points"]
    assert [(p["threshold"], p["rates"]) for p in again] == [(point["threshold"], point["rates"])]
    # Another target replaces it, also one of another kind; two at once are only stated.
    assert sightline("evaluate", run, "--target-precision", "0.5").code in {0, 1}
    assert json.loads((run / "thresholds.json").read_text("utf-8"))["positive_threshold"] is None
    both = sightline("evaluate", run, *target, "--target-specificity", "0.6").out
    assert "not stored for `predict`: only a single target is stored" in both
    assert json.loads((run / "thresholds.json").read_text("utf-8"))["target_precision"] == 0.5
    # One that no threshold reaches leaves the stored one, and says nothing about several.
    unreached = sightline("evaluate", run, "--target-sensitivity", "0.999")
    assert unreached.code == 1
    assert "  not stored for `predict`\n" in unreached.out


def test_a_wrong_positive_class_is_refused_at_once(
    sightline: Command, run: Path, split_folders: Path, tmp_path: Path
) -> None:
    result = sightline(
        "train", split_folders, *OPTIONS, "--set", "evaluation.positive_class=godo", "--out", tmp_path / "r"
    )
    assert (result.code, result.out) == (2, "")
    assert "'godo' is not a class of the model. Did you mean 'good'" in result.err
    assert not (tmp_path / "r").exists()
    result = sightline("evaluate", run, "--positive", "bad")
    assert (result.code, result.out) == (2, "")
    assert "'bad' is not a class of the model" in result.err


def test_rates_need_two_classes(sightline: Command, trained: tuple[Path, dict[str, Any]]) -> None:
    result = sightline("evaluate", trained[0], "--target-specificity", "0.9")
    assert (result.code, result.out) == (2, "")
    assert "A target specificity needs a model with two classes; this one has 3." in result.err


def test_a_class_without_a_test_image_is_named_by_train_and_report_and_card(sightline: Command, tmp_path: Path) -> None:
    data = draw_classes(tmp_path / "rare", {"ok": (90, 120, 90)}, 40, 16)
    draw_classes(tmp_path / "few", {"defect": (150, 100, 100)}, 1, 16)
    shutil.move(tmp_path / "few" / "defect", data / "defect")
    result = sightline("train", data, *OPTIONS, "--out", tmp_path / "r")
    assert result.code == 0, result.err
    sentence = "1 of 2 classes has no image in the test split and is not tested: 'defect'."
    assert sentence in result.out
    assert read_metrics(tmp_path / "r")["untested_classes"] == ["defect"]
    info = json.loads((tmp_path / "r" / "run.json").read_text("utf-8"))["result"]
    assert info["untested_classes"]["test"] == ["defect"]
    lowest = info["lowest_recall"]["test"]
    assert lowest["label"] == "ok"
    assert f"lowest recall {lowest['recall']:.4f} (95% interval" in result.out
    assert f" on {lowest['support']} images of 'ok'" in result.out
    assert sentence in unescape((tmp_path / "r" / "report.html").read_text("utf-8"))
    assert sentence in sightline("evaluate", tmp_path / "r").out
    assert sightline("model-card", tmp_path / "r").code == 0
    card = (tmp_path / "r" / "bundle" / "README.md").read_text("utf-8")
    assert "1 of 2 classes has no image in the test split" in card


def test_another_positive_class_needs_no_training(sightline: Command, run: Path, split_folders: Path) -> None:
    weights = (run / "model.keras").read_bytes()
    arguments = (*OPTIONS, "--set", "evaluation.positive_class=dent")
    result = sightline("train", split_folders, *arguments, "--out", run)
    assert result.code == 0, result.err
    assert "nothing to train" in result.err
    assert (run / "model.keras").read_bytes() == weights
    assert read_metrics(run)["binary"]["positive"] == "dent"
