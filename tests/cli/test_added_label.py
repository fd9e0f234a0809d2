"""A label that the model does not know: by nearest neighbors, or added to a model with several labels per image."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

import sightline as sl
from command import Command
from sightline import api
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
    api.train(leave_out(table), recipe="quick", set=settings, out=path)
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
