"""The bundle of a run, as a user sees it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sightline as face
from command import Command
from sightline.prediction import bundle


@pytest.fixture
def run(trained: tuple[Path, dict[str, Any]]) -> Path:
    return trained[0]


def test_run_bundle_zip_and_file_give_the_same_answers(
    sightline: Command, run: Path, colours: Path, tmp_path: Path
) -> None:
    archive = shutil.make_archive(str(tmp_path / "b"), "zip", run / "bundle")
    lone = shutil.copy(run / "bundle" / "model.onnx", tmp_path / "lone.onnx")
    answers = [sightline("predict", model, colours, "--json").out for model in (run, run / "bundle", archive, lone)]
    assert len(set(answers)) == 1
    assert len(answers[0].splitlines()) == 120
    figures = [sightline("evaluate", model, colours, "--json").json for model in (run, archive, lone)]
    assert {f["accuracy"] for f in figures} == {figures[0]["accuracy"]}


def test_the_keras_model_and_the_bundle_agree(run: Path, colours: Path) -> None:
    pictures = sorted(colours.rglob("*.png"))
    ours = face.load(run)
    trained = face.load(run, engine="keras")
    pixels = np.stack([ours.preprocess.decode(p.read_bytes()) for p in pictures])
    first, second = ours.predictor.outputs(pixels), trained.predictor.outputs(pixels)
    assert type(ours.predictor) is not type(trained.predictor)
    assert np.abs(first.probabilities - second.probabilities).max() < 1e-5
    assert np.allclose(first.logits, second.logits, atol=1e-4)
    assert np.allclose(first.features, second.features, atol=1e-4)


def test_the_manifest_tells_what_the_run_found(run: Path, trained: tuple[Path, dict[str, Any]]) -> None:
    said = trained[1]
    manifest = json.loads((run / "bundle" / "manifest.json").read_text("utf-8"))
    assert manifest["classes"] == ["blue", "green", "red"]
    assert manifest["weights_sha256"] == said["weights_sha256"]
    assert manifest["figures"]["test"]["accuracy"] == said["test"]["accuracy"]
    assert manifest["parity"]["top1_agreement"] == 1
    assert manifest["parity"]["greatest_difference"] < 1e-4
    assert manifest["data"]["counts"]["train"] == said["train"]["count"]
    assert [g["label"] for g in manifest["golden"]] == ["blue", "green", "red", "blue"]


def test_a_changed_bundle_is_refused(sightline: Command, run: Path, colours: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run / "bundle", tmp_path / "b")
    (copy / "manifest.json").write_text((copy / "manifest.json").read_text("utf-8").replace("blue", "cyan"), "utf-8")
    found = sightline("predict", copy, colours)
    assert (found.code, found.out) == (2, "")
    assert "one of them was changed" in found.err
    assert "Copy it again from where it was made" in found.err


def test_a_run_whose_bundle_is_gone_answers_through_keras(
    sightline: Command, run: Path, colours: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(copy / "bundle")
    picture = next((colours / "red").iterdir())
    (found,) = sightline("predict", copy, picture, "--json").lines
    (expected,) = sightline("predict", run, picture, "--json").lines
    assert found["probability"] == pytest.approx(expected["probability"], abs=1e-5)


def test_a_bundle_without_pictures_cannot_be_evaluated(sightline: Command, run: Path) -> None:
    found = sightline("evaluate", run / "bundle")
    assert found.code == 2
    assert "name some" in found.err


def test_golden_examples_can_be_left_out(sightline: Command, colours: Path, tmp_path: Path) -> None:
    options = ("--recipe", "quick", "--model", "cifar10-simple", "--epochs", "1", "--set", "bundle.golden=0")
    assert sightline("train", colours, *options, "--out", tmp_path / "r").code == 0
    assert not (tmp_path / "r" / "bundle" / "golden").exists()
    assert bundle.load(tmp_path / "r" / "bundle")[0].manifest.golden == ()


def test_predicting_from_a_bundle_imports_no_framework(run: Path, colours: Path) -> None:
    """Without any package of the extra `train`: importing one raises an error."""
    code = (
        "import sys\n"
        "for name in ('keras', 'tensorflow', 'jax', 'torch', 'sklearn', 'matplotlib', 'onnx', 'tomlkit', 'h5py', "
        "'tensorboard'):\n"
        "    sys.modules[name] = None\n"
        "from sightline.cli import main\n"
        "sys.argv = ['sightline', *sys.argv[1:]]\n"
        "main()\n"
    )
    for verb in (["predict", run / "bundle", colours / "red", "--json"], ["evaluate", run / "bundle", colours]):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, verb)], capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
