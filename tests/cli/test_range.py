"""A dataset of 12-bit images: training decides on their range once, and everything later uses it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command import SMALL, Command
from high_bit_depth import png_16
from sightline import load
from sightline.runs import facts, pipeline
from synthetic_images import draw_scene, encode, write_files

pytestmark = pytest.mark.usefixtures("plain_figures")

LOW, HIGH = 1000, 1400


def make_stripes(number: int, color: int) -> Any:
    """Return stripes along one axis, with values in a narrow range of 12 bits: uint16 [32, 32]."""
    rng = np.random.default_rng([number, color])
    waves = np.sin(np.arange(32) * rng.uniform(1.5, 2.5) + rng.uniform(0, 6))
    values = (LOW + HIGH) / 2 + (HIGH - LOW) / 2 * (waves[:, None] if color else waves[None]) * np.ones((32, 32))
    return np.clip(values + rng.normal(0, 10, (32, 32)), LOW, HIGH).astype(np.uint16)


@pytest.fixture(scope="module")
def microscope(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = {
        f"{label}/{i}.png": png_16(make_stripes(i, k)) for k, label in enumerate(("across", "down")) for i in range(30)
    }
    return write_files(tmp_path_factory.mktemp("deep") / "microscope", files)


def stop(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_the_range_is_decided_once_and_kept_with_run_and_bundle(
    sightline: Command, microscope: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "r"
    arguments = ("train", microscope, *SMALL, "--out", run)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "finalize", stop)
        stopped = sightline(*arguments)
    assert stopped.code == 130
    assert "60 images have more than 8 bits per sample, read with 1000 as black and 1400 as white" in stopped.err
    stored_range = tomllib.loads((run / "config.toml").read_text())["input"]["value_range"]
    assert stored_range == [LOW, HIGH]
    monkeypatch.setattr(facts, "resolve_range", lambda *_: pytest.fail("the range was derived again"))
    assert sightline("resume", run).code == 0
    assert sightline(*arguments, "--format", "json").code == 0  # complete: it is only evaluated again

    spec = json.loads((run / "model.json").read_text())["preprocess"]
    manifest = json.loads((run / "bundle" / "manifest.json").read_text())
    assert spec["value_range"] == manifest["preprocess"]["value_range"] == stored_range
    classifier = load(run / "bundle")
    pixels = classifier.preprocess.decode((microscope / "across" / "3.png").read_bytes())
    assert len(np.unique(pixels)) > 100
    expected = np.clip((make_stripes(3, 0).astype(float) - LOW) / (HIGH - LOW), 0, 1) * 255
    assert np.abs(pixels[..., 0] - expected).max() <= 0.5
    dim = png_16(np.full((32, 32), LOW, np.uint16))  # its own range alone would differ
    assert (classifier.preprocess.decode(dim) == 0).all()
    run_accuracy = sightline("evaluate", run, "--format", "json").json["accuracy"]
    bundle_accuracy = load(run / "bundle").evaluate([microscope]).accuracy
    assert min(run_accuracy, bundle_accuracy) > 0.5


def test_8_bit_images_have_no_range(tmp_path: Path, sightline: Command) -> None:
    files = {
        f"{label}/{i}.jpg": encode(draw_scene(30 * k + i, 32, 32), "JPEG")
        for k, label in enumerate("ab")
        for i in range(9)
    }
    result = sightline("train", write_files(tmp_path / "data", files), *SMALL, "--epochs", "1", "--out", tmp_path / "r")
    assert result.code == 0
    assert "more than 8 bits" not in result.err
    assert json.loads((tmp_path / "r" / "model.json").read_text())["preprocess"]["value_range"] is None
    assert tomllib.loads((tmp_path / "r" / "config.toml").read_text())["input"]["value_range"] == "full"


@pytest.mark.usefixtures("drawn_figures")
def test_a_given_range_is_taken_by_doctor_and_show(sightline: Command, microscope: Path, tmp_path: Path) -> None:
    plain = {
        f["kind"]: f
        for f in sightline("doctor", microscope, "--format", "json", "--write-fixes", tmp_path / "fix").json["findings"]
    }
    assert (tmp_path / "fix").read_text() == ""
    assert "blank" not in plain
    assert "read with 1000 as black and 1400 as white" in plain["high-bit-depth"]["description"]
    findings = sightline("doctor", microscope, "--format", "json", "--set", "input.value_range=full").json["findings"]
    assert next(f["count"] for f in findings if f["kind"] == "blank") == 60
    result = sightline("preview", microscope, "--out", tmp_path / "a.png", "--set", "input.value_range=[0, 60000]")
    assert result.code == 0
    assert sightline("preview", microscope, "--out", tmp_path / "b.png").code == 0
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()
    wrong = sightline("doctor", microscope, "--set", "input.value_range=[9, 3]")
    assert (wrong.code, wrong.out) == (2, "")
    assert "input.value_range must be [low, high] with low < high" in wrong.err


def test_the_limit_is_a_setting_of_train_and_doctor(sightline: Command, tmp_path: Path) -> None:
    files = {
        f"{label}/{i}.png": encode(draw_scene(30 * k + i, 32, 32)) for k, label in enumerate("ab") for i in range(9)
    }
    data = write_files(tmp_path / "data", files | {"a/large.png": encode(draw_scene(99, 1100, 1000))})
    limit = ("--set", "input.max_megapixels=1")
    assert sightline("train", data, *SMALL, "--epochs", "1", "--out", tmp_path / "r", *limit).code == 0
    rows = [json.loads(line) for line in (tmp_path / "r" / "data.jsonl").read_text().splitlines()]
    reason = "too large: 1100x1000 pixels, limit 1 megapixels (max_megapixels)"
    assert [(r["path"], r["reason"]) for r in rows if "reason" in r] == [("a/large.png", reason)]
    findings = {f["kind"]: f for f in sightline("doctor", data, "--format", "json", *limit).json["findings"]}
    assert findings["unreadable"]["reasons"] == [reason]
    assert "unreadable" not in {f["kind"] for f in sightline("doctor", data, "--format", "json").json["findings"]}
    refused = sightline("predict", tmp_path / "r", data / "a" / "large.png", "--format", "json")
    assert refused.code == 1
    assert reason in refused.out
