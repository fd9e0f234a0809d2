"""`sightline train --folds`: metrics over all images, and a final model that is trained on all of them."""

from __future__ import annotations

import json
import re
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sightline as sl
from command import Command
from recording import RecordingCallback
from sightline import metrics
from sightline.callbacks import EpochRecord
from sightline.cli import output
from sightline.evaluation.report import EvaluationReport
from sightline.runs import folds
from sightline.runs.directory import RunDirectory

pytestmark = pytest.mark.usefixtures("plain_figures")

FOLDS = 2
SETTINGS: dict[str, Any] = {
    "recipe": "quick", "model": "cifar10-simple", "epochs": 2, "folds": FOLDS, "batch_size": 16,
    "set": ["model.hidden_units=[64]"],
}  # fmt: skip


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 30 noisy images of 16x16, and a test split of 10 each."""
    root, rng = tmp_path_factory.mktemp("data") / "noisy", np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 10)):
        for label, red in (("dusk", 110), ("noon", 146)):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(rng.normal([red, 128, 128], 60, (16, 16, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{number}.png")
    (root / "train" / "dusk" / "notes.txt").write_text("at the lake", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def messages() -> RecordingCallback:
    return RecordingCallback()


@pytest.fixture(scope="module")
def run(noisy: Path, messages: RecordingCallback, tmp_path_factory: pytest.TempPathFactory) -> sl.Run:
    return sl.train(noisy, **SETTINGS, out=tmp_path_factory.mktemp("runs") / "run", callback=messages)


def open_folds(run: sl.Run) -> Iterator[RunDirectory]:
    return (RunDirectory.open(folds.get_fold_path(run.directory, fold)) for fold in range(FOLDS))


@pytest.mark.usefixtures("run")
def test_notes_are_repeated_once_for_the_final_model(messages: RecordingCallback) -> None:
    assert messages.lines.count("1 file skipped: not an image") == 2
    assert [line for line in messages.lines if "fold" in line] == [
        "fold 1 of 2", "fold 2 of 2", "the final model, on all images, after 2 folds"
    ]  # fmt: skip


def test_every_image_is_predicted_by_a_model_that_was_not_trained_on_it(run: sl.Run, noisy: Path) -> None:
    assert run.validation is not None
    assert run.test is not None
    assert (run.result.train.count, run.validation.count, run.test.count) == (60, 60, 20)
    stored = run.directory.read_predictions("validation")
    assert stored is not None
    predicted = []
    for fold_run in open_folds(run):
        splits = {row.path: row.split for row in fold_run.read_data() or ()}
        assert len(splits) == 60, "the images of the test split are in no fold"
        fold_predictions = fold_run.read_predictions("test")
        assert fold_predictions is not None
        assert all(splits[path] == "test" for path in fold_predictions.paths)
        assert "validation" in splits.values()
        predicted += list(fold_predictions.paths)
        rows = [stored.paths.index(path) for path in fold_predictions.paths]
        ratio = np.log(stored.probabilities[rows, 0] / stored.probabilities[rows, 1])
        expected = np.log(fold_predictions.probabilities[:, 0] / fold_predictions.probabilities[:, 1])
        scale = float(fold_run.result["temperature"]) / float(run.result.details["temperature"])
        np.testing.assert_allclose(ratio, expected * scale, rtol=1e-3, atol=1e-4)
    assert sorted(predicted) == sorted(stored.paths)
    assert run.validation.accuracy == np.mean(stored.probabilities.argmax(1) == stored.labels)
    without_test = sl.Run(run.path, result=replace(run.result, test=None))
    assert "on 60 out-of-fold images" in repr(without_test)


def test_the_final_model_has_the_median_epochs_and_the_temperature_of_the_folds(run: sl.Run) -> None:
    best = [int(fold_run.result["best_epoch"]) for fold_run in open_folds(run)]
    assert len(run.history) == run.result.details["best_epoch"] == statistics.median_low(best)
    assert run.result.details["folds"] == FOLDS
    assert run.config.train.early_stopping.epoch is None, "the settings are those of the request"
    paths = [row.path for row in run.directory.read_data() or () if row.split == "train"]
    logits = folds.collect_logits(run.directory, FOLDS, paths, run.classifier.classes)
    stored = run.directory.read_predictions("validation")
    assert stored is not None
    temperature = np.float32(run.result.details["temperature"])
    np.testing.assert_allclose(stored.probabilities, metrics.softmax(logits / temperature), atol=1e-5)


def test_evaluate_and_report_show_both(sightline: Command, run: sl.Run) -> None:
    result = sightline("evaluate", run.path)
    assert "on 20 images" in result.out
    assert run.validation is not None
    assert f"out-of-fold: accuracy {run.validation.accuracy:.4f} on 60 images" in result.out
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "Out-of-fold and test" in page
    assert f"{FOLDS}, each evaluated by a model that was trained on the others" in page
    out_of_fold = sightline("evaluate", run.path, "--split", "validation", "--format", "json").json
    assert (out_of_fold["split"], out_of_fold["count"]) == ("out-of-fold", 60)
    assert out_of_fold["accuracy"] == pytest.approx(run.validation.accuracy)
    manifest = json.loads((run.path / "bundle" / "manifest.json").read_text())
    assert set(manifest["metrics"]) == {"out-of-fold", "test"}
    assert sightline("evaluate", run.path, "--split", "validation", "--tta", "flip").code == 2


def test_evaluate_names_the_file_of_all_classes(
    sightline: Command, run: sl.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "MAX_ROWS", 1)
    for split in ("validation", "test"):
        named = re.search(r"all classes are in (\S+\.json)", sightline("evaluate", run.path, "--split", split).out)
        assert named is not None
        assert named[1] == str(run.path / "eval" / split / "metrics.json")
        assert Path(named[1]).is_file()


def test_runs_with_folds_are_compared_on_out_of_fold_images(sightline: Command, run: sl.Run, tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        shutil.copytree(run.path, path)
        shutil.rmtree(path / "eval" / "test")
        info = json.loads((path / "run.json").read_text())
        info["result"]["test"] = None
        (path / "run.json").write_text(json.dumps(info))
    printed = sightline("compare", *paths).out
    assert "on 60 out-of-fold images" in printed
    assert "validation" not in printed
    config = paths[1] / "config.toml"
    config.write_text(re.sub(r"(?m)^folds = 2\b", "folds = 0", config.read_text()))
    result = sightline("compare", *paths, "--format", "json").json
    assert [row["split"] for row in result["runs"]] == ["out-of-fold", "validation"]
    assert result["comparisons"][0]["split"] == "held-out"


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_exports_are_compared_on_the_training_images(
    sightline: Command, run: sl.Run, tmp_path: Path, precision: str
) -> None:
    limits = ["--tolerance", "1", "--min-agreement", "0"]
    result = sightline("export", run.path, "--precision", precision, "--out", tmp_path / "small.onnx", *limits)
    assert result.code == 0, result.err
    assert "60 images of the training split, since the run has no validation split" in " ".join(result.out.split())
    assert sl.load(tmp_path / "small.onnx").classes == run.classifier.classes


def test_thresholds_are_chosen_on_the_out_of_fold_predictions(run: sl.Run, tmp_path: Path) -> None:
    copy = sl.load(shutil.copytree(run.path, tmp_path / "run"))
    evaluation = copy.evaluate(target_precision=0.5, conservative=False)
    assert isinstance(evaluation.report, EvaluationReport)
    assert evaluation.report.threshold is not None
    assert evaluation.report.threshold.count == 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "at least 2 folds"),
        ({"time_limit": "1m"}, "leave out `time_limit`"),
        ({"set": {"split.folds": 3, "split.fold": 3}, "folds": None}, "and a lower fold"),
    ],
)
def test_what_does_not_go_with_folds_is_an_error(
    noisy: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(sl.SightlineError, match=message):
        sl.train(noisy, **(SETTINGS | options), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_with_folds_is_not_trained_further(sightline: Command, run: sl.Run) -> None:
    result = sightline("resume", run.path, "--epochs", "5")
    assert result.code == 2
    assert "train it again with --epochs 5" in result.err


class StopAfter(sl.Callback):
    """Interrupts the training after some epochs in all."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.messages: list[str] = []

    def on_message(self, text: str) -> None:
        self.messages.append(text)

    def on_epoch_end(self, record: EpochRecord) -> None:
        self.epochs -= 1
        if not self.epochs:
            raise sl.Interrupted("Stopped.")


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [1, 3, 5])
def test_an_interrupted_run_continues_in_its_fold(noisy: Path, run: sl.Run, tmp_path: Path, epochs: int) -> None:
    path = tmp_path / "run"
    with pytest.raises(sl.Interrupted, match=rf"`sightline resume {path}` continues"):
        sl.train(noisy, **SETTINGS, out=path, callback=StopAfter(epochs))
    callback = StopAfter(0)
    resumed = sl.Run(path).resume(callback=callback)
    assert resumed.result.weights_sha256 == run.result.weights_sha256
    assert resumed.validation == run.validation
    done = (epochs - 1) // 2  # folds
    assert [text for text in callback.messages if text.startswith("fold ")] == [
        f"fold {fold + 1} of {FOLDS}" for fold in range(done, FOLDS)
    ]


@pytest.mark.slow
def test_a_fold_is_evaluated_on_validation_images_as_before_it_was_fitted_to_them(
    sightline: Command, noisy: Path, tmp_path: Path
) -> None:
    size = {"input.height": 32, "input.width": 32}
    run = sl.train(noisy, recipe="transfer", effort="fast", folds=FOLDS, set=size, out=tmp_path / "run")
    fold = next(open_folds(run))
    recorded, stored = fold.result["validation"], fold.read_predictions("validation")
    assert stored is not None
    result = sightline("evaluate", fold.path, "--split", "validation", "--format", "json").json
    assert (result["split"], result["count"]) == ("validation", recorded["count"])
    assert result["loss"] == pytest.approx(recorded["loss"], abs=1e-6)
    fitted = metrics.cross_entropy(
        sl.load(fold.path).predict_proba([noisy / path for path in stored.paths]), stored.labels
    )
    assert fitted < result["loss"] - 0.01, "the model has been fitted to these images since"
    refused = sightline("evaluate", fold.path, "--split", "validation", "--tta", "flip")
    assert (refused.code, "was trained on the images afterwards" in " ".join(refused.err.split())) == (2, True)
