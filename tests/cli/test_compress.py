"""Compressing a run as a user does it: budget, Pareto front, a bundle per candidate, resuming after a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from command import Command
from sightline import load
from sightline.compression import search
from sightline.compression.judge import judge
from sightline.compression.store import Candidate, front
from sightline.prediction import bundle, parity
from sightline.prediction.keras import KerasPredictor

Trained = tuple[Path, dict[str, Any]]
CHEAP = ("--means", "rightsize,int8,float16", "--epochs", "1")


@pytest.fixture(scope="module")
def found(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A search that was killed and then restarted; its folder, and the output of the second process."""
    out = tmp_path_factory.mktemp("searches") / "out"
    command = [sys.executable, "-m", "sightline", "compress", str(trained[0]), "--out", str(out), "--json", *CHEAP]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        record = out / "candidates" / "large-float16" / "record.json"
        until = time.monotonic() + 300
        while not record.is_file() and first.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    assert record.is_file()
    assert not (out / "front.json").exists()
    (out / "candidates" / "rightsize" / "bundle").mkdir(
        parents=True, exist_ok=True
    )  # as left by a search that was killed later
    kept = record.stat().st_mtime_ns
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert record.stat().st_mtime_ns == kept, "a finished candidate was recomputed"
    return out, done.stdout


def test_json_is_the_front_and_the_chosen_one(found: tuple[Path, str], trained: Trained) -> None:
    out, printed = found
    told = json.loads(printed)
    assert told == json.loads((out / "front.json").read_text())
    rows = {c["name"]: c for c in told["candidates"]}
    assert set(rows) >= {"large", "large-int8", "large-float16", "rightsize", "rightsize-int8"}
    large, best = rows["large"], rows[told["best"]]
    assert large["parameters"] == trained[1]["parameters"]
    assert large["accuracy"] == pytest.approx(trained[1]["validation"]["accuracy"])
    assert best["accuracy"] >= large["accuracy"]
    assert best["bytes"] == min(r["bytes"] for r in rows.values() if r["accuracy"] >= large["accuracy"])
    assert rows["rightsize"]["parameters"] < large["parameters"] / 100
    assert rows["large-int8"]["bytes"] < large["bytes"] / 3
    assert rows["large-float16"]["bytes"] < large["bytes"] / 1.9
    said = told["judgement"]
    assert said["part"] == "test"
    assert said["count"] == trained[1]["test"]["count"]
    assert said["interval"]["low"] <= said["difference"] <= said["interval"]["high"]
    assert told["reached"] is (not said["worse"])
    with Image.open(out / "front.png") as picture:
        assert min(picture.size) > 400


def test_every_candidate_is_a_bundle_with_its_lineage(found: tuple[Path, str], colours: Path) -> None:
    out, _ = found
    folders = list((out / "candidates").iterdir())
    assert len(folders) >= 5
    for folder in folders:
        record = json.loads((folder / "record.json").read_text())
        made, predictor = bundle.load(folder / "bundle")
        assert made.manifest.precision == record["precision"]
        assert [dict(step) for step in made.manifest.lineage] == record["lineage"]
        assert made.manifest.lineage[0]["step"] == "train"
        assert made.manifest.parameters == record["parameters"]
        assert len(made.model) == record["bytes"]
        assert predictor.classes == ("blue", "green", "red")
    classifier = load(out / "best")
    predictions = classifier.predict(colours / "red")
    assert np.mean([p.label == "red" for p in predictions]) > 0.5
    keras = KerasPredictor.load(out / "best.keras", classifier.classes, classifier.preprocess)
    assert keras.model.count_params() == json.loads((out / "front.json").read_text())["candidates"][3]["parameters"]


def test_another_budget_needs_no_new_work_and_a_hopeless_one_says_how_near(
    sightline: Command, found: tuple[Path, str], trained: Trained
) -> None:
    out, _ = found
    before = {p: p.stat().st_mtime_ns for p in out.glob("candidates/*/record.json")}
    shown = sightline("compress", trained[0], "--out", out, *CHEAP, "--max-size", "10MB", "--max-params", "100000")
    assert shown.code == 0
    for word in ("times fewer parameters", "95% interval", "McNemar p =", "rightsize"):
        assert word in shown.out
    hopeless = sightline("compress", trained[0], "--out", out, *CHEAP, "--max-size", "1KB")
    assert hopeless.code == 1
    assert "No candidate meets the budget" in hopeless.out
    assert "0.001 MB allowed" in hopeless.out
    assert not list(out.glob("best*")), "chosen under another budget"
    told = sightline("compress", trained[0], "--out", out, *CHEAP, "--max-latency", "0.0001ms", "--json")
    assert (told.code, told.json["best"], told.json["reached"]) == (1, None, False)
    assert "latency" in told.json["misses"][0]
    again = sightline("compress", trained[0], "--out", out, *CHEAP)
    assert "epochs: 1 per fine-tuning, at most 3 for a new head or a student" in again.err
    assert (out / "best.keras").is_file()
    assert {p: p.stat().st_mtime_ns for p in out.glob("candidates/*/record.json")} == before


def test_the_test_part_is_asked_once_about_each_that_is_chosen(
    sightline: Command, found: tuple[Path, str], trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, printed = found
    told = json.loads(printed)
    kept = json.loads((out / "judgements.json").read_text())
    assert kept[told["best"]]["p_value"] == told["judgement"]["p_value"]
    monkeypatch.setattr("sightline.workflow.compress._judged", None)  # calling it fails
    assert sightline("compress", trained[0], "--out", out, *CHEAP, "--json").json["judgement"] == told["judgement"]


def test_a_candidate_says_its_own_temperature_and_can_be_exported(
    sightline: Command, found: tuple[Path, str], colours: Path, tmp_path: Path
) -> None:
    """Its Keras model is saved next to its bundle, for the formats that Keras writes."""
    folder = found[0] / "candidates" / "rightsize"
    made = bundle.read(folder / "bundle").manifest
    keras = KerasPredictor.load(folder / "model.keras", made.classes, made.preprocess)
    assert made.temperature == pytest.approx(1 / keras.model.get_layer("temperature").scale)
    arguments = ("--format", "saved_model", "--parity", colours, "--json")
    done = sightline("export", folder / "bundle", *arguments, "--out", tmp_path / "saved")
    assert (done.code, done.json["accepted"]) == (0, True)
    copied = shutil.copytree(folder / "bundle", tmp_path / "alone")
    refused = sightline("export", copied, *arguments, "--out", tmp_path / "other")
    assert refused.code == 2
    assert "next to its model.keras" in refused.err


def test_a_candidate_from_a_stranger_is_checked_before_keras_reads_it(
    sightline: Command, found: tuple[Path, str], trained: Trained, tmp_path: Path
) -> None:
    out = shutil.copytree(found[0], tmp_path / "out")
    model = out / "candidates" / "rightsize" / "model.keras"
    with zipfile.ZipFile(model) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(model, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (members | {"config.json": b" " * (32 << 20)}).items():
            archive.writestr(name, content)
    shutil.rmtree(out / "candidates" / "rightsize-int8")  # so that it is made from that model again
    done = sightline("compress", trained[0], "--out", out, *CHEAP)
    assert done.code == 2
    assert "config.json decompresses from" in done.err
    assert f"remove {model.parent}" in " ".join(done.err.split())


def test_bad_use_gets_one_clear_message(
    sightline: Command, found: tuple[Path, str], trained: Trained, tmp_path: Path
) -> None:
    run, (out, _) = trained[0], found
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    Image.new("RGB", (32, 32)).save(_made(tmp_path / "other" / "violet") / "1.png")
    Image.new("RGB", (32, 32), "red").save(_made(tmp_path / "other" / "red") / "1.png")
    for arguments, words in (
        ((run, "--means", "slimm"), "Did you mean 'slim'?"),
        ((run, "--max-size", "two"), "is not a size"),
        ((run, "--max-latency", "5 min"), "is not a duration"),
        ((tmp_path,), "is not a run"),
        ((run, "--out", out, "--epochs", "7"), "another epochs"),
        ((run, "--out", tmp_path / "full"), "holds no search"),
        ((run, "--data", tmp_path / "other", "--out", tmp_path / "new"), "must be the same"),
    ):
        outcome = sightline("compress", *arguments)
        assert (outcome.code, outcome.out) == (2, "")
        assert words in outcome.err
        assert "Traceback" not in outcome.err
    assert not (tmp_path / "new").exists()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("means", ["slim", pytest.param("slim,distill", marks=pytest.mark.slow)])
def test_slimming_in_rounds(
    sightline: Command, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, means: str
) -> None:
    monkeypatch.setattr(search, "ROUNDS", 2)
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    told = sightline("compress", run, "--means", means, "--epochs", "1", "--max-drop", "100", "--json").json
    rows = {c["name"]: c for c in told["candidates"]}
    assert [step["step"] for step in rows["slim-2"]["lineage"]] == ["train", "slim", "slim"]
    assert [step.get("importance") for step in rows["slim-2"]["lineage"]] == [None, "scale", "taylor"]
    assert rows["slim-2"]["parameters"] < rows["slim-1"]["parameters"] < rows["large"]["parameters"]
    assert rows["slim-2"]["multiply_adds"] < rows["slim-1"]["multiply_adds"] < rows["large"]["multiply_adds"]
    assert (run / "compressed" / "teacher.npy").is_file() is ("distill" in means)
    told_of = {name: bundle.read(run / "compressed" / "candidates" / name / "bundle").manifest for name in rows}
    assert told_of["slim-1"].model == trained[1]["model"]
    if "distill" in means:
        assert rows["distill-cifar10-deep"]["lineage"][-1]["student"] == "cifar10-deep"
        assert told_of["distill-cifar10-deep"].model == "cifar10-deep"


def test_the_front_is_what_no_other_beats() -> None:
    def made(name: str, accuracy: float, size: int, latency: float, failed: str = "") -> Candidate:
        return Candidate(name, None, "float32", (), accuracy, bytes=size, latency=latency, failed=failed)

    rows = [
        made("large", 0.9, 100, 5), made("same", 0.9, 100, 5), made("quick", 0.8, 100, 1), made("small", 0.8, 10, 2),
        made("beaten", 0.8, 11, 2), made("none", 1.0, 0, 0, failed="diverged"),
    ]  # fmt: skip
    assert front(rows) == ("large", "same", "quick", "small")


@pytest.mark.slow
def test_a_chain_of_convolutions_is_twenty_times_smaller_without_loss(sightline: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trained = sightline(
        "train",
        "beans:1000@48",
        "--recipe",
        "quick",
        "--model",
        "fashion-cnn",
        "--epochs",
        "20",
        "--set",
        "split.validation=0.25",
        "--set",
        "split.test=0.25",
        "--out",
        run,
    )
    assert trained.code == 0
    told = sightline("compress", run, "--epochs", "8", "--max-drop", "2", "--json")
    rows = {c["name"]: c for c in told.json["candidates"]}
    most = {name: rows["large"][name] / 20 for name in ("parameters", "bytes")}
    small = [c for c in rows.values() if all(c[name] < limit for name, limit in most.items())]
    best = max(small, key=lambda c: float(c["accuracy"]))  # with few images, the smallest may just be lucky
    samples = load(run).labelled(split="test").samples
    right = [
        parity.probabilities(load(run / "compressed" / "candidates" / name / "bundle").predictor, samples).argmax(1)
        == samples.labels
        for name in ("large", best["name"])
    ]
    assert not judge(right[0], right[1], "test").worse
    chosen, said = rows[told.json["best"]], told.json["judgement"]
    assert chosen["bytes"] <= best["bytes"]
    assert told.code == (0 if not said["worse"] or said["difference"] >= -0.02 else 1)
