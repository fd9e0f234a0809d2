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
from sightline.inference import bundle

pytestmark = pytest.mark.usefixtures("plain_figures")


@pytest.fixture
def run(trained: tuple[Path, dict[str, Any]]) -> Path:
    return trained[0]


def test_run_bundle_zip_and_file_predict_alike(sightline: Command, run: Path, colors: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "b"), "zip", run / "bundle")
    lone = shutil.copy(run / "bundle" / "model.onnx", tmp_path / "lone.onnx")
    outputs = [
        sightline("predict", model, colors, "--format", "json").out for model in (run, run / "bundle", archive, lone)
    ]
    assert len(set(outputs)) == 1
    assert len(outputs[0].splitlines()) == 120
    metrics = [sightline("evaluate", model, colors, "--format", "json").json for model in (run, archive, lone)]
    assert {f["accuracy"] for f in metrics} == {metrics[0]["accuracy"]}


def test_the_keras_model_and_the_bundle_agree(run: Path, colors: Path) -> None:
    images = sorted(colors.rglob("*.png"))
    ours = face.load(run)
    trained = face.load(run, engine="keras")
    pixels = np.stack([ours.preprocess.decode(p.read_bytes()) for p in images])
    first, second = ours.predictor.outputs(pixels), trained.predictor.outputs(pixels)
    assert type(ours.predictor) is not type(trained.predictor)
    assert np.abs(first.probabilities - second.probabilities).max() < 1e-5
    assert np.allclose(first.logits, second.logits, atol=1e-4)
    assert np.allclose(first.features, second.features, atol=1e-4)


def test_the_manifest_holds_the_results_of_the_run(run: Path, trained: tuple[Path, dict[str, Any]]) -> None:
    result = trained[1]
    manifest = json.loads((run / "bundle" / "manifest.json").read_text("utf-8"))
    assert manifest["classes"] == ["blue", "green", "red"]
    assert manifest["weights_sha256"] == result["weights_sha256"]
    assert manifest["metrics"]["test"]["accuracy"] == result["test"]["accuracy"]
    assert manifest["parity"]["top1_agreement"] == 1
    assert manifest["parity"]["max_difference"] < 1e-4
    assert manifest["data"]["counts"]["train"] == result["train"]["count"]
    assert [g["label"] for g in manifest["reference_examples"]] == ["blue", "green", "red", "blue"]


def test_a_changed_bundle_is_refused(sightline: Command, run: Path, colors: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run / "bundle", tmp_path / "b")
    (copy / "manifest.json").write_text((copy / "manifest.json").read_text("utf-8").replace("blue", "cyan"), "utf-8")
    result = sightline("predict", copy, colors)
    assert (result.code, result.out) == (2, "")
    assert "one of them was changed" in result.err
    assert "Copy it again from where it was made" in result.err


def test_a_run_without_its_bundle_predicts_with_keras(
    sightline: Command, run: Path, colors: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(copy / "bundle")
    image = next((colors / "red").iterdir())
    (rows,) = sightline("predict", copy, image, "--format", "json").lines
    (expected,) = sightline("predict", run, image, "--format", "json").lines
    assert rows["probability"] == pytest.approx(expected["probability"], abs=1e-5)


def test_a_bundle_without_images_cannot_be_evaluated(sightline: Command, run: Path) -> None:
    result = sightline("evaluate", run / "bundle")
    assert result.code == 2
    assert "give images" in result.err


def test_reference_examples_can_be_omitted(sightline: Command, colors: Path, tmp_path: Path) -> None:
    options = (
        "--recipe",
        "quick",
        "--model",
        "cifar10-simple",
        "--epochs",
        "1",
        "--set",
        "bundle.num_reference_examples=0",
    )
    assert sightline("train", colors, *options, "--out", tmp_path / "r").code == 0
    assert not (tmp_path / "r" / "bundle" / "reference").exists()
    assert bundle.load(tmp_path / "r" / "bundle")[0].manifest.reference_examples == ()


def test_predicting_from_a_bundle_imports_no_framework(run: Path, colors: Path) -> None:
    """Without any package of the extra `train`, nor what builds networks: importing one raises an error."""
    code = (
        "import sys\n"
        "for name in ('keras', 'tensorflow', 'jax', 'torch', 'sklearn', 'matplotlib', 'onnx', 'tomlkit', 'h5py', "
        "'tensorboard', 'sightline.models.build', 'sightline.export'):\n"
        "    sys.modules[name] = None\n"
        "from sightline.cli import main\n"
        "sys.argv = ['sightline', *sys.argv[1:]]\n"
        "main()\n"
    )
    for verb in (["predict", run / "bundle", colors / "red", "--format", "json"], ["evaluate", run / "bundle", colors]):
        completed = subprocess.run(
            [sys.executable, "-c", code, *map(str, verb)], capture_output=True, text=True, check=False, timeout=300
        )
        assert completed.returncode == 0, completed.stderr


def test_a_removed_bundle_is_called_so(sightline: Command, run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(copy / "bundle")
    result = sightline("resume", copy)
    assert result.code == 1
    assert f"{copy} has no bundle: its folder {copy / 'bundle'} was removed." in result.err
    assert "None" not in result.err
