"""A run whose exported file was rejected: `train` exits with 1, and the other commands still work."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from command import Command
from sightline import backend
from sightline.api.training import train_run
from sightline.datasets import coffee_beans
from tf32 import emulate_tf32

pytestmark = pytest.mark.usefixtures("plain_figures")

SETTINGS = ("model.name=cifar10-simple", "train.epochs=4", "bundle.calibrate=false")
TRAIN = ("train", "beans:90@16", "--recipe", "quick", *(word for text in SETTINGS for word in ("--set", text)))


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a device that computes in TF32, with parity computed in TF32 too."""
    run = tmp_path_factory.mktemp("refused") / "run"
    with pytest.MonkeyPatch.context() as gpu:
        emulate_tf32(gpu)
        gpu.setattr(backend, "full_precision", nullcontext)
        result = train_run("beans:90@16", recipe="quick", set=SETTINGS, out=run)
    assert result.bundle is None
    assert "the largest difference in probability is" in str(result.no_bundle_reason)
    return run


@pytest.mark.slow
def test_train_says_why(refused: Path, sightline: Command) -> None:
    reasons = []
    for arguments in (TRAIN, ("resume", refused)):  # both find it complete
        result = sightline(*arguments, *(["--out", refused] if arguments is TRAIN else []), "--format", "json")
        assert result.code == 1
        assert result.json["bundle"] is None
        reasons.append(result.json["no_bundle_reason"])
        assert f"error: {refused} has no bundle: {reasons[-1]}." in result.err
    assert reasons[0] == reasons[1]
    assert reasons[0].startswith("the outputs of the exported file differ from the model's: on 12 images")


@pytest.mark.backends
def test_a_device_of_reduced_precision_ships(sightline: Command, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as gpu:
        emulate_tf32(gpu)
        result = sightline(*TRAIN, "--out", tmp_path / "run", "--format", "json")
    assert result.code == 0, result.err
    assert result.json["bundle"] == str(tmp_path / "run" / "bundle")
    assert result.json["no_bundle_reason"] is None


def test_the_model_itself_predicts_and_is_evaluated(refused: Path, sightline: Command, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "a.png")
    assert sightline("predict", refused, tmp_path / "a.png", "--format", "json").json["label"] in coffee_beans.CLASSES
    assert sightline("evaluate", refused, "--format", "json").json["count"] > 0


def test_a_card_has_no_place_and_says_the_reason(refused: Path, sightline: Command) -> None:
    result = sightline("model-card", refused)
    assert result.code == 2
    assert "has no bundle to write the model card to: the outputs of the exported file differ" in result.err


def test_a_limit_of_ones_own_exports_it(refused: Path, sightline: Command, tmp_path: Path) -> None:
    result = sightline(
        "export", refused, "--to", "bundle", "--tolerance", "0.01", "--out", tmp_path / "b.zip", "--format", "json"
    )
    assert result.code == 0, result.err
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "a.png")
    assert sightline("predict", tmp_path / "b.zip", tmp_path / "a.png").code == 0
