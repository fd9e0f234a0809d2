"""`sightline card`: Hugging Face format, correct metrics, and a bundle that still loads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # comes with pre-commit, without types

from command import Command
from sightline.prediction import bundle
from sightline.prediction.manifest import Manifest
from sightline.preprocess import Preprocess
from sightline.report.card import card


def header(text: str) -> dict[str, Any]:
    start, middle, _ = text.split("---\n", 2)
    assert start == ""
    values: dict[str, Any] = yaml.safe_load(middle)
    return values


def test_the_card_is_in_the_bundle_and_says_what_the_run_says(
    sightline: Command, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained[0], tmp_path / "run"))
    done = sightline("card", run)
    assert done.code == 0
    path = run / "bundle" / "README.md"
    assert path.read_text(encoding="utf-8") == done.out
    found, _ = bundle.load(run / "bundle")
    assert "figures/confusion.png" in found.files
    values = header(done.out)
    assert values["pipeline_tag"] == "image-classification"
    assert values["library_name"] == "sightline"
    assert isinstance(values["license"], str)
    for name in ("tags", "datasets", "metrics"):
        assert values[name]
        assert all(isinstance(item, str) for item in values[name])
    (entry,) = values["model-index"]
    splits = {result["dataset"]["split"]: result for result in entry["results"]}
    assert set(splits) == set(found.manifest.figures)
    for split, result in splits.items():  # required by Hugging Face
        assert set(result) == {"task", "dataset", "metrics"}
        assert {"type", "name"} <= set(result["dataset"])
        metrics = {m["type"]: m["value"] for m in result["metrics"]}
        assert metrics["accuracy"] == pytest.approx(found.manifest.figures[split]["accuracy"])
    test = trained[1]["test"]
    assert f"| test | {test['count']} | {test['accuracy']:.4f} |" in done.out
    for part, count in found.manifest.data["counts"].items():
        assert f"| {part} | {count} |" in done.out
    again = sightline("card", run, "--json")
    assert again.json == {"path": str(path), "card": done.out}


def test_without_a_bundle_there_is_no_place_for_it(
    sightline: Command, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained[0], tmp_path / "run"))
    shutil.rmtree(run / "bundle")
    done = sightline("card", run)
    assert done.code == 2
    assert "no bundle" in done.err
    assert sightline("card", tmp_path).code == 2


def test_names_cannot_break_the_card() -> None:
    names = ('a: "b"', "- c", "<script>", "d | e", "# f\n---", "图")
    manifest = Manifest("net", names, Preprocess(8, 8), data={"name": '"x": [', "counts": {}})
    text = card(manifest, {})
    assert header(text)["datasets"] == ['"x": [']
    assert "model-index" not in header(text), "Hugging Face rejects an index without results"
    assert "<script>" not in text
    assert "\n---" not in text.split("---\n", 2)[2]
    assert "图" in text
