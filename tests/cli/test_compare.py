"""Comparing runs as a user sees it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from command import Command
from sightline.api.training import train_run
from sightline.callbacks import Callback, EpochRecord
from sightline.errors import Interrupted

pytestmark = pytest.mark.usefixtures("plain_figures")

Trained = tuple[Path, dict[str, Any]]


class Impatient(Callback):
    """Stops training after its first epoch."""

    def on_epoch_end(self, record: EpochRecord) -> None:
        raise Interrupted("Enough.")


@pytest.fixture(scope="module")
def interrupted(colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stopped") / "烘焙 2"
    assignments = ["model.name=cifar10-simple", "train.epochs=5", "train.optimizer.name=sgd"]
    with pytest.raises(Interrupted):
        train_run(colors, recipe="quick", set=assignments, out=path, callback=Impatient())
    return path


def test_the_numbers_are_the_runs_own(sightline: Command, trained: Trained, interrupted: Path) -> None:
    result = sightline("compare", trained[0], interrupted, "--format", "json")
    assert result.code == 0
    assert result.err == ""
    assert result.out.count("\n") == 1
    first, second = result.json["runs"]
    own = json.loads((trained[0] / "eval" / "test" / "metrics.json").read_text())
    assert (first["split"], first["status"]) == ("test", "complete")
    for key in ("accuracy", "accuracy_interval", "loss"):
        assert first[key] == own[key]
    assert first["parameters"] == trained[1]["parameters"]
    assert first["seconds"] == trained[1]["seconds"]
    (epoch,) = [json.loads(line) for line in (interrupted / "history.jsonl").read_text().splitlines()]
    assert (second["split"], second["status"], second["epochs"]) == ("validation", "interrupted", 1)
    assert (second["accuracy"], second["loss"], second["seconds"]) == (
        epoch["val_accuracy"], epoch["val_loss"], epoch["seconds"],
    )  # fmt: skip
    low, high = second["accuracy_interval"]
    assert low < second["accuracy"] < high or second["accuracy"] in {low, high}
    assert second["parameters"] is None


def test_only_settings_that_differ_are_shown(sightline: Command, trained: Trained, interrupted: Path) -> None:
    first, second = sightline("compare", trained[0], interrupted, "--format", "json").json["runs"]
    assert first["settings"] == {"model.hidden_units": [96], "train.epochs": 2, "train.optimizer.name": "adam"}
    assert second["settings"] == {"model.hidden_units": None, "train.epochs": 5, "train.optimizer.name": "sgd"}


def test_a_stage_that_only_one_run_has_takes_one_line(
    sightline: Command, trained: Trained, interrupted: Path, tmp_path: Path
) -> None:
    longer = tmp_path / "longer"
    shutil.copytree(interrupted, longer)
    config = longer / "config.toml"
    stages = '[{name = "head", unfreeze = 0}, {name = "rest", learning_rate = 1e-3, epochs = 3}]'
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("\nstages = []\n", f"\nstages = {stages}\n"), encoding="utf-8")
    out = sightline("compare", interrupted, longer).out
    assert re.findall(r"train\.stages\S* (?:none|[^\s,]+(?:, [^\s,]+)*)", out) == [
        "train.stages.0: none", "train.stages.1: none", "train.stages.0: name=head, unfreeze=0",
        "train.stages.1: name=rest, epochs=3, learning_rate=0.001",
    ]  # fmt: skip
    settings = sightline("compare", interrupted, longer, "--format", "json").json["runs"][1]["settings"]
    assert settings["train.stages.1.solver"] == "gradient"
    assert "train.stages" not in settings, "the empty list of the other run"


@pytest.mark.usefixtures("drawn_figures")
def test_the_table_and_the_plot(sightline: Command, trained: Trained, interrupted: Path, tmp_path: Path) -> None:
    figure = tmp_path / "curves.png"
    Image.new("RGB", (8, 8)).save(figure)
    before = figure.read_bytes()
    result = sightline("compare", trained[0], interrupted, "--figure", figure)
    assert result.code == 2
    assert "exists and was not written by Sightline" in " ".join(result.err.split())
    assert figure.read_bytes() == before
    figure.unlink()
    assert sightline("compare", trained[0], interrupted, "--figure", figure).code == 0
    result = sightline("compare", trained[0], interrupted, "--figure", figure)
    assert result.code == 0, "in place of the former figure"
    for word in ("train.optimizer.name=sgd", "model.hidden_units=unset", "烘焙 2 (interrupted)", "validation", "test"):
        assert word in result.out
    assert f"{trained[1]['parameters']:,}" in result.out
    assert f"{trained[1]['test']['accuracy']:.4f}" in result.out
    with Image.open(figure) as image:
        assert image.format == "PNG"
        assert min(image.size) > 500


def test_runs_of_the_same_name_are_distinguished(sightline: Command, trained: Trained, tmp_path: Path) -> None:
    for name in "ab":
        shutil.copytree(trained[0], tmp_path / name / "run")
    rows = sightline("compare", tmp_path / "a" / "run", tmp_path / "b" / "run", "--format", "json").json["runs"]
    assert [row["name"] for row in rows] == ["a/run", "b/run"]
    assert [row["settings"] for row in rows] == [{}, {}]


def test_the_verdict_is_by_the_same_images(sightline: Command, trained: Trained, tmp_path: Path) -> None:
    for name in ("good", "bad"):
        shutil.copytree(trained[0], tmp_path / name)
        file = tmp_path / name / "eval" / "test" / "predictions.npz"
        with np.load(file) as stored:
            arrays = dict(stored)
        right = np.eye(3, dtype=np.float32)[arrays["labels"]]
        np.savez(file, **arrays | {"probabilities": right if name == "good" else 1 - right})
    result = sightline("compare", tmp_path / "bad", tmp_path / "good", trained[0], "--format", "json")
    first, _ = result.json["comparisons"]
    assert (first["verdict"], first["difference"], first["split"]) == ("better", 1.0, "test")
    assert first["p_value"] < 0.001
    assert first["count"] == trained[1]["test"]["count"]
    stdout = sightline("compare", tmp_path / "good", tmp_path / "bad").out
    assert "bad vs. good: worse." in stdout
    shutil.copytree(trained[0], tmp_path / "twin")
    assert "no significant difference" in sightline("compare", trained[0], tmp_path / "twin").out


def test_runs_without_common_images_cannot_be_compared(sightline: Command, trained: Trained, interrupted: Path) -> None:
    (only,) = sightline("compare", trained[0], interrupted, "--format", "json").json["comparisons"]
    assert only["verdict"] is None
    assert only["note"] == "烘焙 2 is not complete: wait for its training, or resume it"


def test_bad_use_gets_one_clear_message(sightline: Command, trained: Trained, tmp_path: Path) -> None:
    run = trained[0]
    for arguments, words in (
        ((run,), ["two or more runs"]),
        ((run, run), ["given twice"]),
        ((run, run / ".." / run.name), ["given twice"]),
        ((run, tmp_path), ["is not a run", str(tmp_path)]),
        ((run, tmp_path / "none"), ["There is no folder", "none: check the path"]),
    ):
        result = sightline("compare", *arguments)
        assert result.code == 2
        assert result.out == ""
        assert "Traceback" not in result.err
        for word in words:
            assert word in result.err
    shutil.copytree(run, tmp_path / "other")
    (tmp_path / "file").write_text("")
    result = sightline("compare", run, tmp_path / "other", "--figure", tmp_path / "file" / "f.png")
    assert result.code == 2
    assert "There is no folder" in result.err
