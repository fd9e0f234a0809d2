"""`sightline model-card`: Hugging Face format, correct metrics, and a bundle that still loads."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from command import Command
from sightline.errors import ModelError
from sightline.inference import bundle
from sightline.inference.manifest import Manifest
from sightline.preprocessing import PreprocessingSpec
from sightline.report.model_card import render_card

pytestmark = pytest.mark.usefixtures("plain_figures")


def header(text: str) -> dict[str, Any]:
    start, middle, _ = text.split("---\n", 2)
    assert start == ""
    values: dict[str, Any] = yaml.safe_load(middle)
    return values


def test_the_card_is_in_the_bundle_and_says_what_the_run_says(
    sightline: Command, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained[0], tmp_path / "run"))
    outcome = sightline("model-card", run)
    assert outcome.code == 0
    path = run / "bundle" / "README.md"
    assert path.read_text(encoding="utf-8") == outcome.out
    loaded_bundle, _ = bundle.load(run / "bundle")
    assert "figures/confusion.png" in loaded_bundle.files
    values = header(outcome.out)
    assert values["pipeline_tag"] == "image-classification"
    assert values["library_name"] == "sightline"
    assert "datasets" not in values, "Hugging Face takes its names for data sets on the Hub"
    assert isinstance(values["license"], str)
    for name in ("tags", "metrics"):
        assert values[name]
        assert all(isinstance(item, str) for item in values[name])
    (entry,) = values["model-index"]
    splits = {result["dataset"]["split"]: result for result in entry["results"]}
    assert set(splits) == set(loaded_bundle.manifest.metrics)
    for split, result in splits.items():  # required by Hugging Face
        assert set(result) == {"task", "dataset", "metrics"}
        assert {"type", "name"} <= set(result["dataset"])
        metrics = {m["type"]: m["value"] for m in result["metrics"]}
        assert metrics["accuracy"] == pytest.approx(loaded_bundle.manifest.metrics[split]["accuracy"])
    test = trained[1]["test"]
    assert f"| test | {test['count']} | {test['accuracy']:.4f} |" in outcome.out
    for split_name, count in loaded_bundle.manifest.data["counts"].items():
        assert f"| {split_name} | {count} |" in outcome.out
    again = sightline("model-card", run, "--format", "json")
    assert again.json == {"path": str(path), "card": outcome.out}


def test_without_a_bundle_there_is_no_place_for_it(
    sightline: Command, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained[0], tmp_path / "run"))
    shutil.rmtree(run / "bundle")
    result = sightline("model-card", run)
    assert result.code == 2
    assert "no bundle" in result.err
    assert sightline("model-card", tmp_path).code == 2


def test_files_of_others_in_the_bundle_are_not_lost(
    sightline: Command, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained[0], tmp_path / "run"))
    (run / "bundle" / "notes.md").write_text("mine")
    result = sightline("model-card", run)
    assert (result.code, result.out) == (2, "")
    assert "contains notes.md, which Sightline did not write there" in result.err
    assert (run / "bundle" / "notes.md").read_text() == "mine"


def test_names_cannot_break_the_card() -> None:
    names = ('a: "b"', "- c", "<script>", "d | e", "# f\n---", "图")
    manifest = Manifest('"x": [', names, PreprocessingSpec(8, 8), data={"name": '"x": [', "counts": {}})
    manifest = replace(manifest, precision="float32\n\n<script>\x1b[2J", weights_sha256="0`\n\n<script>")
    text = render_card(manifest, {})
    assert "\x1b" not in text
    assert header(text)["tags"][-1] == '"x": ['
    assert "model-index" not in header(text), "Hugging Face rejects an index without results"
    assert "<script>" not in text
    assert "\n---" not in text.split("---\n", 2)[2]
    assert "图" in text


def test_a_metric_that_is_not_defined_is_not_stated() -> None:
    metrics = {"test": {"accuracy": 0.5, "accuracy_interval": None, "loss": None, "count": 2}}
    manifest = Manifest("net", ("cat", "dog"), PreprocessingSpec(8, 8), data={"name": "pets"}, metrics=metrics)
    text = render_card(manifest, {})
    assert "| test | 2 | 0.5000 |  | not defined |" in text
    assert [metric["type"] for metric in header(text)["model-index"][0]["results"][0]["metrics"]] == ["accuracy"]


@pytest.mark.parametrize(
    ("thresholds", "sentence"),
    [
        (None, "It always predicts one of them"),
        ({"count": 9, "ood_limit": 1.0}, "It always predicts one of them"),
        (
            {"count": 9, "target_precision": 0.95, "confidence": 0.8125, "ood_limit": 1.0},
            "otherwise predicts one of them. It abstains on images that are less like its training images",
        ),
        ({"count": 9, "target_precision": 0.95}, "It abstains on every image"),
        (
            {"count": 9, "coverage": 0.9, "conformal_quantile": 0.5, "ood_limit": 1.0},
            "and abstains when the set holds all classes. It abstains on images that are less like its training images",
        ),
        (
            {"count": 9, "target_precision": 0.95, "confidence": 0.8, "coverage": 0.9, "conformal_quantile": 0.5},
            "a set of classes that contains the true one with a probability of 0.9 when its probability is below 0.8",
        ),
        (
            {"count": 9, "rate": "sensitivity", "target_rate": 0.95, "positive": "dog", "positive_threshold": 0.25},
            "It predicts dog when its probability is at least 0.25, a threshold chosen for a sensitivity of 0.95",
        ),
    ],
    ids=["none", "ood alone", "confidence", "not reached", "sets", "sets below", "rate"],
)
def test_the_card_says_when_the_model_abstains(thresholds: dict[str, Any] | None, sentence: str) -> None:
    manifest = Manifest("net", ("cat", "dog"), PreprocessingSpec(8, 8), data={"name": "pets"}, thresholds=thresholds)
    text = render_card(manifest, {})
    assert sentence in text
    assert ("always predicts" in text) == ("always predicts" in sentence)


def test_a_manifest_with_leaked_images_of_another_shape_is_refused() -> None:
    manifest = Manifest("net", ("cat", "dog"), PreprocessingSpec(8, 8))
    leaked: dict[str, Any] = {"count": 1, "identical": 1, "near_duplicates": 0, "without_leaked": None}
    values = {**manifest.to_dict(), "metrics": {"test": {"leaked": leaked}}}
    assert Manifest.from_dict(values).metrics["test"]["leaked"] == leaked
    leaked["without_leaked"] = {"accuracy": None, "accuracy_interval": None, "count": 0}
    with pytest.raises(ModelError, match="accuracy"):
        Manifest.from_dict(values)
