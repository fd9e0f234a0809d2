"""Comparing runs as a user sees it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from command import Command
from sightline import train
from sightline.errors import Interrupted
from sightline.records import EpochRecord
from sightline.watch import Watcher

Trained = tuple[Path, dict[str, Any]]


class Impatient(Watcher):
    """Stops training after its first epoch."""

    def epoch(self, record: EpochRecord) -> None:
        raise Interrupted("Enough.")


@pytest.fixture(scope="module")
def interrupted(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stopped") / "烘焙 2"
    assignments = ["model.name=cifar10-simple", "model.hidden=[4]", "train.epochs=5", "train.optimizer.name=sgd"]
    with pytest.raises(Interrupted):
        train(colours, recipe="quick", set=assignments, out=path, watcher=Impatient())
    return path


def test_the_numbers_are_the_runs_own(sightline: Command, trained: Trained, interrupted: Path) -> None:
    found = sightline("compare", trained[0], interrupted, "--json")
    assert found.code == 0
    assert found.err == ""
    assert found.out.count("\n") == 1
    first, second = found.json["runs"]
    own = json.loads((trained[0] / "eval" / "test" / "metrics.json").read_text())
    assert (first["part"], first["status"]) == ("test", "complete")
    for key in ("accuracy", "accuracy_interval", "loss"):
        assert first[key] == own[key]
    assert first["parameters"] == trained[1]["parameters"]
    assert first["seconds"] == trained[1]["seconds"]
    (epoch,) = [json.loads(line) for line in (interrupted / "history.jsonl").read_text().splitlines()]
    assert (second["part"], second["status"], second["epochs"]) == ("validation", "interrupted", 1)
    assert (second["accuracy"], second["loss"], second["seconds"]) == (
        epoch["val_accuracy"], epoch["val_loss"], epoch["seconds"],
    )  # fmt: skip
    low, high = second["accuracy_interval"]
    assert low < second["accuracy"] < high or second["accuracy"] in {low, high}
    assert second["parameters"] is None


def test_only_settings_that_differ_are_shown(sightline: Command, trained: Trained, interrupted: Path) -> None:
    first, second = sightline("compare", trained[0], interrupted, "--json").json["runs"]
    assert first["settings"] == {"model.hidden": None, "train.epochs": 2, "train.optimizer.name": "adam"}
    assert second["settings"] == {"model.hidden": [4], "train.epochs": 5, "train.optimizer.name": "sgd"}


def test_the_table_and_the_figure(sightline: Command, trained: Trained, interrupted: Path, tmp_path: Path) -> None:
    figure = tmp_path / "new" / "curves.png"
    found = sightline("compare", trained[0], interrupted, "--figure", figure)
    assert found.code == 0
    for word in ("train.optimizer.name=sgd", "model.hidden=unset", "烘焙 2 (interrupted)", "validation", "test"):
        assert word in found.out
    assert f"{trained[1]['parameters']:,}" in found.out
    assert f"{trained[1]['test']['accuracy']:.4f}" in found.out
    with Image.open(figure) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 500


def test_runs_of_one_name_are_told_apart(sightline: Command, trained: Trained, tmp_path: Path) -> None:
    for name in "ab":
        shutil.copytree(trained[0], tmp_path / name / "run")
    rows = sightline("compare", tmp_path / "a" / "run", tmp_path / "b" / "run", "--json").json["runs"]
    assert [row["name"] for row in rows] == ["a/run", "b/run"]
    assert [row["settings"] for row in rows] == [{}, {}]


def test_the_verdict_is_by_the_same_pictures(sightline: Command, trained: Trained, tmp_path: Path) -> None:
    for name in ("good", "bad"):
        shutil.copytree(trained[0], tmp_path / name)
        file = tmp_path / name / "eval" / "test" / "predictions.npz"
        with np.load(file) as kept:
            arrays = dict(kept)
        right = np.eye(3, dtype=np.float32)[arrays["labels"]]
        np.savez(file, **arrays | {"probabilities": right if name == "good" else 1 - right})
    found = sightline("compare", tmp_path / "bad", tmp_path / "good", trained[0], "--json")
    first, _ = found.json["contests"]
    assert (first["verdict"], first["difference"], first["part"]) == ("better", 1.0, "test")
    assert first["p_value"] < 0.001
    assert first["count"] == trained[1]["test"]["count"]
    shown = sightline("compare", tmp_path / "good", tmp_path / "bad").out
    assert "bad vs. good: worse." in shown
    shutil.copytree(trained[0], tmp_path / "twin")
    assert "cannot tell" in sightline("compare", trained[0], tmp_path / "twin").out


def test_runs_judged_on_nothing_in_common_cannot_be_told_apart(
    sightline: Command, trained: Trained, interrupted: Path
) -> None:
    (only,) = sightline("compare", trained[0], interrupted, "--json").json["contests"]
    assert only["verdict"] == "cannot tell"
    assert "evaluate both" in only["note"]


def test_bad_use_gets_one_clear_message(sightline: Command, trained: Trained, tmp_path: Path) -> None:
    run = trained[0]
    for arguments, words in (
        ((run,), ["two or more runs"]),
        ((run, run), ["given twice"]),
        ((run, run / ".." / run.name), ["given twice"]),
        ((run, tmp_path), ["is not a run", str(tmp_path)]),
        ((run, tmp_path / "none"), ["is not a run"]),
    ):
        found = sightline("compare", *arguments)
        assert found.code == 2
        assert found.out == ""
        assert "Traceback" not in found.err
        for word in words:
            assert word in found.err
    shutil.copytree(run, tmp_path / "other")
    (tmp_path / "file").write_text("")
    found = sightline("compare", run, tmp_path / "other", "--figure", tmp_path / "file" / "f.png")
    assert found.code == 2
    assert "--figure" in found.err
