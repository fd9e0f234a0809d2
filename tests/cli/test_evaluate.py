"""Evaluation and its thresholds as a user sees them."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sightline as sl
from command import SMALL, Command
from sightline.api import model_evaluation
from sightline.api.classifier import Classifier
from sightline.api.model_evaluation import evaluate_model
from sightline.callbacks import no_progress
from sightline.cli import evaluation_view
from sightline.errors import DataError, ModelError
from sightline.evaluation.label_issues import LabelIssue, LabelSetIssue
from sightline.inference.predictor import FakePredictor, Outputs
from sightline.inference.results import ClassProbability, ThresholdRequest
from sightline.preprocessing import PreprocessingSpec
from sightline.runs.directory import RunDirectory

pytestmark = pytest.mark.usefixtures("plain_figures")


@pytest.fixture
def run(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A copy, as evaluation writes into it."""
    return Path(shutil.copytree(trained[0], tmp_path / "run"))


@pytest.mark.parametrize("options", [{}, {"target_precision": 0.5}])
def test_what_is_measured_of_a_run_is_not_stored_once_it_has_been_trained_further(
    run: Path, options: dict[str, Any]
) -> None:
    classifier, files = sl.load(run), {path: path.read_bytes() for path in run.rglob("*.json")}
    with RunDirectory(run).lock(), pytest.raises(ModelError, match="another process is writing"):
        classifier.evaluate(**options)
    assert {path: path.read_bytes() for path in run.rglob("*.json")} == files
    info = json.loads((run / "run.json").read_text())
    info["result"]["weights_sha256"] = "f00"
    (run / "run.json").write_text(json.dumps(info))
    files[run / "run.json"] = (run / "run.json").read_bytes()
    with pytest.raises(ModelError, match="has been trained further since its model was loaded: load and evaluate it"):
        classifier.evaluate(**options)
    assert {path: path.read_bytes() for path in run.rglob("*.json")} == files
    sl.load(run).evaluate(**options)


def test_an_evaluation_that_cannot_be_stored_is_refused_at_once(
    sightline: Command, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, _: path != run)
    monkeypatch.setattr(model_evaluation, "OutputReader", None)  # reads the images
    result = sightline("evaluate", run)
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        f"error: The evaluation cannot be stored in {run}, which is not writable: copy the run to another folder, and "
        "evaluate the copy.\n"
    )


def test_images_of_something_else_are_far_from_the_validation_images(
    sightline: Command, colors: Path, tmp_path: Path
) -> None:
    """The distance and its limit go wherever the model goes: into the report, the bundle, its zip and exports."""
    run, strange = tmp_path / "run", tmp_path / "strange"
    strange.mkdir()
    for i in range(20):
        stripes = np.zeros((16, 16, 3), np.uint8)
        stripes[:, :: 2 + i % 3] = 255
        Image.fromarray(stripes).save(strange / f"{i}.png")
    settings = ("--set", "split.validation=0.5", "--set", "split.test=0.2", "--set", "evaluation.target_precision=0.6")
    assert sightline("train", colors, *SMALL, *settings, "--out", run).code == 0
    thresholds = RunDirectory.open(run).read_thresholds()
    assert thresholds is not None
    assert (thresholds.ood, thresholds.count >= 40) == ("distance", True)
    result = sightline("evaluate", run, "--ood", strange)
    assert "AUROC by energy" in result.out
    stored = json.loads((run / "eval" / "test" / "metrics.json").read_text())
    assert "ood_space" not in stored["thresholds"]
    assert stored["ood"]["distance_auroc"] > 0.9
    rates = [f"{stored['ood'][name]:.1%}" for name in ("flagged_fraction", "false_alarm_rate")]
    assert f"the model's limit flags {rates[0]} of them, and {rates[1]} of the in-distribution images" in result.out
    assert stored["ood"]["flagged_fraction"] > 0.8
    assert stored["ood"]["false_alarm_rate"] < 0.1
    page = " ".join((run / "report.html").read_text(encoding="utf-8").split())
    limit = f"is above {thresholds.ood_limit:.4g}, a limit that about 1% of images like the validation images exceed"
    assert (
        f"distance from the validation images in feature space (the <code>ood_score</code> of a prediction) {limit}"
        in page
    )
    cells = [f"{stored['ood']['distance_auroc']:.3f}", *rates]
    assert "".join(f'<td class="n">{cell}</td>' for cell in cells) in page
    assert f"{rates[0]} of {stored['ood']['name']} and {rates[1]} of the evaluated images are above the limit" in page
    histogram = stored["ood"]["histogram"]
    assert [len(histogram["edges"]), sum(histogram["evaluated"]), sum(histogram["ood"])] == pytest.approx([31, 1, 1])
    assert "have changed since" not in page
    expected = [(p.decision.decision, p.decision.ood_score) for p in sl.load(run).predict(strange) if p.decision]
    assert [decision for decision, _ in expected].count("abstain") > 16
    is_ood = [(score or 0) > (thresholds.ood_limit or 0) for _, score in expected]
    assert [
        json.loads(line)["is_ood"] for line in sightline("predict", run, strange, "--format", "json").out.splitlines()
    ] == is_ood
    printed = sightline("predict", run, strange).out.splitlines()
    assert [line.endswith("  abstain: unlike the training images") for line in printed[:20]] == is_ood
    archive = shutil.make_archive(str(tmp_path / "model"), "zip", run / "bundle")
    for model in (run / "bundle", run / "bundle" / "model.onnx", archive):
        loaded = [(p.decision.decision, p.decision.ood_score) for p in sl.load(model).predict(strange) if p.decision]
        assert [decision for decision, _ in loaded] == [decision for decision, _ in expected]
        assert [score for _, score in loaded] == pytest.approx([score for _, score in expected], rel=1e-3)


@pytest.mark.usefixtures("drawn_figures")
def test_everything_is_printed_stored_and_plotted(sightline: Command, run: Path, tmp_path: Path) -> None:
    ood_folder = tmp_path / "strange"  # without class folders: these images need no labels
    ood_folder.mkdir()
    for i in range(8):
        noise = np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(noise).save(ood_folder / f"{i}.png")
    arguments = ("evaluate", run, "--target-precision", "0.7", "--coverage", "0.8", "--ood", ood_folder)
    result = sightline(*arguments, "--format", "json")
    assert result.code == 0
    payload = result.json
    stored = json.loads((run / "eval" / "test" / "metrics.json").read_text())
    of_command = {"label_issues", "label_issue_counts", "unchecked_classes", "label_agreement", "tta_views"}
    assert {key: value for key, value in payload.items() if key not in of_command} == stored
    assert {"auroc", "macro_f1", "brier", "log_loss", "average_precision"} <= set(payload["metrics"])
    assert payload["calibration"]["temperature"]["count"] > 0
    assert payload["calibration"]["note"], "there are too few images"
    assert payload["set_coverage"]["target"] == 0.8
    assert payload["ood"]["ood_count"] == 8
    assert 0 <= payload["ood"]["energy_auroc"] <= 1
    assert payload["ood"]["distance_auroc"] is None
    assert "needs 40 validation images" in payload["ood"]["note"]
    thresholds = json.loads((run / "thresholds.json").read_text())
    assert thresholds == payload["thresholds"]
    assert thresholds["target_precision"] == 0.7
    plots = {path.stem for path in (run / "figures").iterdir()}
    assert {"reliability", "risk-coverage", "confusion", "confusion-normalized"} <= plots
    page = " ".join((run / "report.html").read_text(encoding="utf-8").split())
    assert f"8 images of strange against the {payload['count']} evaluated images" in page
    ood = payload["ood"]
    assert f'<th scope="row">energy of the logits</th><td class="n">{ood["energy_auroc"]:.3f}</td>' in page
    assert f"{100 * ood['flagged_fraction']:.1f}%" in page
    assert f"is above {thresholds['ood_limit']:.4g}, a limit that at least 99%" in page
    outcome = sightline("evaluate", run)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "strange" not in page
    assert f"evaluate {run} --ood FOLDER" in page, "with its limit, but no other images"
    for word in ("AUROC", "calibration: ECE", "risk-coverage", "returns a set for"):
        assert word in outcome.out


def test_targets_of_earlier_evaluations_can_be_taken_back(sightline: Command, run: Path) -> None:
    image = next((run / "bundle" / "reference").iterdir())
    before = sightline("predict", run, image, "--format", "json").json
    missed = sightline("evaluate", run, "--target-precision", "0.99", "--coverage", "0.8")
    assert missed.code == 1
    assert "these thresholds are saved with the model anyway; --reset-thresholds restores" in missed.err
    for path in (run, run / "bundle"):
        assert "decision" in sightline("predict", path, image, "--format", "json").json
    again = sightline("evaluate", run, "--reset-thresholds", "--coverage", "0.8", "--format", "json")
    thresholds = again.json["thresholds"]
    assert (thresholds["target_precision"], thresholds["coverage"]) == (None, 0.8)
    assert sightline("evaluate", run, "--reset-thresholds").code == 0
    for path in (run, run / "bundle"):
        assert sightline("predict", path, image, "--format", "json").json == before
    assert not (run / "thresholds.json").exists()
    assert "are computed from single images" in sightline("evaluate", run, "--reset-thresholds", "--tta", "flip").err


def test_tta_is_reported_and_not_stored(sightline: Command, run: Path) -> None:
    stored = (run / "eval" / "test" / "metrics.json").read_bytes()
    one, two = (
        sightline("evaluate", run, "--format", "json").json,
        sightline("evaluate", run, "--tta", "flip", "--format", "json").json,
    )
    assert (one["tta_views"], two["tta_views"]) == (1, 2)
    assert one["loss"] != two["loss"]
    for kind, views in (("flip", 2), ("flip-shift", 6)):
        text = sightline("evaluate", run, "--tta", kind).out
        assert f"{kind} test-time augmentation: mean over {views} views of each image" in text
    assert json.loads((run / "eval" / "test" / "metrics.json").read_text())["loss"] == json.loads(stored)["loss"]
    refused = sightline("evaluate", run, "--tta", "flip", "--coverage", "0.9")
    assert refused.code == 2
    assert "--tta cannot be combined" in refused.err


def test_decisions_follow_and_a_later_call_keeps_what_it_does_not_ask_for(
    sightline: Command, run: Path, colors: Path
) -> None:
    before = sightline("predict", run, colors / "red", "--format", "json").lines
    assert "decision" not in before[0]
    assert sightline("evaluate", run, "--coverage", "0.8").code == 0
    assert sightline("evaluate", run, "--target-precision", "0.5").code == 0
    assert json.loads((run / "thresholds.json").read_text())["coverage"] == 0.8
    after = sightline("predict", run, colors / "red", "--format", "json").lines
    for line, old in zip(after, before, strict=True):
        assert line["label"] == old["label"]
        assert line["probability"] == pytest.approx(old["probability"], abs=1e-6)
        assert line["decision"] in {"class", "set", "abstain"}
        assert set(line["set"]) <= {"red", "green", "blue"}
        assert line["ood_score"] < 100
    assert "red" in sightline("predict", run, colors / "red").out


def test_an_unreachable_target_exits_with_1_and_always_abstains(sightline: Command, run: Path, colors: Path) -> None:
    result = sightline("evaluate", run, "--target-precision", "0.99", "--format", "json")
    assert result.code == 1
    assert result.json["threshold"]["confidence"] is None
    assert "do not show that any threshold reaches" in result.json["threshold"]["note"]
    lines = sightline("predict", run, colors / "red", "--format", "json").lines
    assert {line["decision"] for line in lines} == {"abstain"}


@pytest.fixture
def split_folders(colors: Path, tmp_path: Path) -> Path:
    """Images with a validation and a test split."""
    for path in sorted(colors.rglob("*.png")):
        split = "validation" if int(path.stem[-3:]) % 2 else "test"
        (tmp_path / "parts" / split / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "parts" / split / path.parent.name)
    return tmp_path / "parts"


@pytest.mark.parametrize("form", ["folder", "zip", "onnx"])
def test_a_model_without_its_run_is_fitted_on_the_validation_split_of_the_data(
    sightline: Command, run: Path, split_folders: Path, tmp_path: Path, form: str
) -> None:
    model = Path(shutil.copytree(run / "bundle", tmp_path / "model"))
    if form == "zip":
        model = Path(shutil.make_archive(str(tmp_path / "model"), "zip", tmp_path, "model"))
    elif form == "onnx":
        model = model / "model.onnx"
    before = sightline("predict", model, split_folders / "test", "--format", "json").lines
    assert "decision" not in before[0]
    result = sightline(
        "evaluate", model, split_folders, "--target-precision", "0.5", "--coverage", "0.8", "--format", "json"
    )
    assert result.code == 0, result.err
    assert result.json["thresholds"]["count"] == result.json["count"] == 60
    after = sightline("predict", model, split_folders / "test", "--format", "json").lines
    for line, old in zip(after, before, strict=True):
        assert {key: line[key] for key in old} == old
        assert line["decision"] in {"class", "set", "abstain"}
        assert set(line["set"]) <= {"red", "green", "blue"}
    answered = sum(line["decision"] == "class" for line in after) / len(after)
    assert answered == pytest.approx(result.json["selective"]["class_fraction"])
    again = sightline("evaluate", model, split_folders, "--split", "validation", "--format", "json").json
    assert again["thresholds"] == result.json["thresholds"], "kept, and still readable"


def test_it_is_not_claimed_that_stored_thresholds_were_fitted_on_the_evaluated_images(
    sightline: Command, run: Path, split_folders: Path, tmp_path: Path
) -> None:
    """Of a model without its run it is not known, unless they are fitted by this very command."""
    model = Path(shutil.copytree(run / "bundle", tmp_path / "model"))
    on_validation = ("evaluate", model, split_folders, "--split", "validation")
    fitted = sightline(*on_validation, "--target-precision", "0.5", "--coverage", "0.8").out
    assert "the threshold was chosen on these same images" in fitted
    assert "the sets were fitted on these same images" in fitted
    again = sightline(*on_validation).out
    assert "on these same images" not in again
    assert "the threshold was chosen on validation images: if these are among them, evaluate on others" in again
    assert "the sets were fitted on validation images: if these are among them, evaluate on others" in again


def test_without_a_validation_split_or_beside_its_run_nothing_is_fitted(
    sightline: Command, run: Path, colors: Path, split_folders: Path, tmp_path: Path
) -> None:
    lone = Path(shutil.copy(run / "bundle" / "model.onnx", tmp_path / "lone.onnx"))
    content = lone.read_bytes()
    result = sightline("evaluate", lone, colors, "--coverage", "0.8")
    assert (result.code, result.out) == (2, "")
    assert "give images with a validation split (folders validation/ and test/)" in result.err
    assert lone.read_bytes() == content
    result = sightline("evaluate", run / "bundle" / "model.onnx", split_folders, "--coverage", "0.8")
    assert (result.code, result.out) == (2, "")
    assert f"belongs to the run {run} and uses its thresholds: evaluate the run" in result.err
    model_folder = Path(shutil.copytree(run / "bundle", tmp_path / "model"))
    (model_folder / "mine.txt").write_text("do not lose me")
    result = sightline("evaluate", model_folder, split_folders, "--coverage", "0.8")
    assert result.code == 2
    assert "contains mine.txt, which Sightline did not write there: move it elsewhere first." in result.err
    assert (model_folder / "mine.txt").read_text() == "do not lose me"


class NanPredictor(FakePredictor):
    def outputs(self, pixels: Any) -> Outputs:
        outputs = super().outputs(pixels)
        return Outputs(
            *(np.full_like(split, np.nan) for split in (outputs.probabilities, outputs.logits, outputs.features))
        )


@pytest.mark.parametrize(
    "threshold_request", [ThresholdRequest(), ThresholdRequest(0.9, 0.9)], ids=["figures", "thresholds"]
)
def test_a_model_that_predicts_nan_is_rejected_with_the_first_image(
    split_folders: Path, threshold_request: ThresholdRequest
) -> None:
    model = Classifier(NanPredictor(("blue", "green", "red"), PreprocessingSpec(8, 8)))
    with pytest.raises(
        DataError,
        match=r"of test/blue/.* and 59 other images are not between 0 and 1 or .*train the model again",
    ):
        evaluate_model(model, split_folders, split=None, threshold_request=threshold_request, progress=no_progress)


@pytest.mark.parametrize("option", ["--target-precision", "--coverage"])
def test_targets_are_between_0_and_1(sightline: Command, run: Path, option: str) -> None:
    result = sightline("evaluate", run, option, "99")
    assert (result.code, result.out) == (2, "")
    assert "between 0 and 1" in result.err
    assert not (run / "thresholds.json").exists()


def test_damaged_thresholds_say_how_to_mend_them(sightline: Command, run: Path, colors: Path) -> None:
    (run / "thresholds.json").write_text('{"count": "many"}')
    result = sightline("predict", run, colors / "red")
    assert result.code == 2
    assert "--target-precision" in result.err


def test_images_of_one_class_and_one_image(sightline: Command, run: Path, colors: Path, tmp_path: Path) -> None:
    shutil.copytree(colors / "red", tmp_path / "data" / "red")
    arguments = ("evaluate", run, tmp_path / "data", "--include-training", "--format", "json")
    one = sightline(*arguments).json
    assert one["metrics"]["auroc"] == {
        "value": None, "interval": None, "note": "all images are of one class", "classes": 0,
    }  # fmt: skip
    for path in sorted((tmp_path / "data" / "red").iterdir())[1:]:
        path.unlink()
    assert sightline(*arguments).json["count"] == 1
    assert json.loads((run / "eval" / "test" / "metrics.json").read_text())["count"] > 1, (
        "other images do not overwrite it"
    )


def test_wrong_labels_without_the_extra(
    sightline: Command, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    result = sightline("evaluate", run, "--find-label-issues", tmp_path / "patch.jsonl")
    assert result.code == 2
    assert ".[labels]" in result.err
    assert not (tmp_path / "patch.jsonl").exists()


@pytest.mark.slow
def test_planted_labels_of_cats_and_dogs_are_listed_first(
    sightline: Command, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cleanlab", reason="the extra labels is not installed")
    monkeypatch.setenv("KERAS_HOME", str(shared / "keras"))
    data = tmp_path / "data"
    shutil.copytree(shared / "data" / "cats_vs_dogs" / "train", data, copy_function=shutil.copyfile)
    rng = np.random.default_rng(0)
    planted = set()
    for label, other in (("cat", "dog"), ("dog", "cat")):
        for path in rng.choice(sorted((data / label).glob("*")), 15, replace=False):
            planted.add(f"{other}/planted-{label}-{path.name}")
    for name in planted:
        other, _, rest = name.partition("/planted-")
        label, _, file = rest.partition("-")
        shutil.move(data / label / file, data / other / f"planted-{label}-{file}")
    run, patch = tmp_path / "run", tmp_path / "patch.jsonl"
    assert sightline("train", data, "--recipe", "transfer", "--out", run, "--format", "json").code == 0
    assert sightline("evaluate", run, "--find-label-issues", patch, "--format", "json").code == 0
    paths = [json.loads(line)["path"] for line in patch.read_text().splitlines()]
    assert len(planted & set(paths[:30])) >= 18  # 60% of 30, among the first 5% of 600
    lines = [json.loads(line) for line in patch.read_text().splitlines()]
    keep_lines = [{k: v for k, v in line.items() if k != "to"} | {"action": "keep"} for line in lines[:2]]
    keep_lines[1]["sha256"] = lines[2]["sha256"]  # as if the image had changed since
    patch.write_text("".join(json.dumps(line) + "\n" for line in keep_lines))
    assert sightline("evaluate", run, "--find-label-issues", patch, "--format", "json").code == 0
    again = [json.loads(line) for line in patch.read_text().splitlines()]
    assert again == [*keep_lines, *lines[1:]], "an image that is kept is no label error, as long as it is the same"
    assert [issue.path for issue in RunDirectory(run).read_label_issues() or ()] == paths[1:]


def test_how_far_to_trust_suggested_labels_is_said_with_them(capsys: pytest.CaptureFixture[str]) -> None:
    issue = LabelIssue("1.png", "0", "ant", "bee", 0.1, 0.9)
    evaluation_view.print_label_issues((issue,), "labels.jsonl", (), 0.42)
    assert "the models behind these suggestions agree with 42.0% of all labels" in capsys.readouterr().out


def test_label_issues_of_several_labels_are_not_called_probable(capsys: pytest.CaptureFixture[str]) -> None:
    issue = LabelSetIssue("1.png", "0", "ant", "ant;bee", 0.1, (ClassProbability("bee", 0.9),), ())
    evaluation_view.print_label_issues((issue,), "labels.jsonl", (), None)
    printed = capsys.readouterr().out
    assert "labels of 1 image may be wrong, worst first" in printed
    assert "in a long list, most labels near its end are right" in printed


def test_no_label_issues_are_said_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    evaluation_view.print_label_issues((), "labels.jsonl", ("ant", "bee"), 0.42)
    printed = capsys.readouterr().out
    assert "no label looks wrong" in printed
    assert "42.0%" not in printed
    assert "labels.jsonl" not in printed
    assert "2 classes have too few images for the labels to be checked: 'ant', 'bee'" in printed
