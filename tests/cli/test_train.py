"""Training as a user sees it."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sightline as face
from command import COLORS, SMALL, Command, draw_classes
from sightline.cli.train import print_result
from sightline.errors import SightlineError
from sightline.intervals import Interval
from sightline.training import checkpoints
from sightline.training.result import SplitMetrics, TrainingMetrics, TrainResult

pytestmark = pytest.mark.usefixtures("plain_figures")

KEYS = {
    "run", "model", "parameters", "classes", "train", "validation", "test",
    "epochs", "seconds", "images_per_second", "weights_sha256",
}  # fmt: skip


def make_result(details: dict[str, Any]) -> TrainResult:
    """Return the result of a run of one epoch."""
    metrics = SplitMetrics(0.9, 0.3, 20)
    return TrainResult(
        "r", "m", 5, ("a", "b"), TrainingMetrics(0.9, 0.3, 80), metrics, metrics, 1, 2.0, 40.0, "0" * 64, "quick",
        bundle="r/bundle", details=details,
    )  # fmt: skip


@pytest.mark.parametrize(("temperature", "lines"), [(1.0, 0), (1.25, 1)])
def test_losses_after_calibration_are_distinguished_from_those_of_epochs(
    temperature: float, lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    print_result(make_result({"temperature": temperature}))
    text = "these losses are after calibration (temperature 1.250), the val_loss of epochs before it"
    out = capsys.readouterr().out
    assert out.count(text) == lines
    assert "1 epoch at 40 training images/s; 2 s in all, including reading and evaluation" in out
    assert re.search(r"^report     r/report\.html\nbundle     r/bundle\nfigures    r/figures$", out, re.MULTILINE)


def test_the_time_of_a_resumed_run_is_that_since_it_was_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(make_result({"resumed": True}))
    assert "; 2 s since it was resumed, including reading and evaluation" in capsys.readouterr().out


def test_the_metrics_are_printed_with_their_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    validation, test = SplitMetrics(0.9, 0.3, 20, Interval(0.699, 0.972)), SplitMetrics(0.5, 0.3, 20)
    details = {
        "metrics": {"test": {"mean_iou": 0.5, "mean_dice": 0.6}},
        "metric_intervals": {"test": {"mean_iou": [0.4, 0.6], "mean_dice": None}},
    }
    result = TrainResult(
        "r", "m", 5, ("a", "b"), TrainingMetrics(0.9, 0.3, 80), validation, test, 1, 2.0, 40.0, "0" * 64, "quick",
        details=details,
    )  # fmt: skip
    print_result(result)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "validation accuracy 0.9000 (95% interval 0.6990 to 0.9720) on 20 images, loss 0.3000"
    values = "mean IoU 0.5000 (95% interval 0.4000 to 0.6000), mean Dice 0.6000 on 20 images, loss 0.3000"
    assert lines[1] == f"test       {values}"


def test_one_json_object_and_nothing_else(sightline: Command, colors: Path, tmp_path: Path) -> None:
    result = sightline("train", colors, *SMALL, "--out", tmp_path / "r", "--format", "json")
    assert result.code == 0
    assert result.out.count("\n") == 1
    assert set(result.json) >= KEYS
    assert result.json["classes"] == ["blue", "green", "red"]
    assert result.json["epochs"] == 2
    assert set(result.json["train"]) == {"accuracy", "loss", "count"}
    for split in ("validation", "test"):
        assert set(result.json[split]) == {"accuracy", "accuracy_interval", "loss", "count"}
    assert sum(result.json[name]["count"] for name in ("train", "validation", "test")) == 120
    assert "epoch 2" in result.err


@pytest.mark.parametrize(
    ("devices", "message"),
    [("64", "device.num_devices is 64, but this host has only"), ("two", "all, not 'two'"), ("0", "all, not '0'")],
)
def test_devices_are_counted(devices: str, message: str, sightline: Command, colors: Path, tmp_path: Path) -> None:
    result = sightline("train", colors, *SMALL, "--devices", devices, "--out", tmp_path / "r")
    assert result.code == 2
    assert message in result.err
    assert not (tmp_path / "r").exists()


def test_the_run_directory_is_complete(trained: tuple[Path, dict[str, Any]]) -> None:
    path, result = trained
    names = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}
    assert {
        "run.json", "config.toml", "data.jsonl", "history.jsonl", "history.csv", "model.keras", "model.json",
        "eval/test/metrics.json", "eval/test/predictions.npz", "eval/validation/metrics.json",
        "figures/curves.png", "figures/confusion.png",
    } <= names  # fmt: skip
    assert not [n for n in names if ".part" in n]
    info = json.loads((path / "run.json").read_text())
    assert (info["status"], info["schema"]) == ("complete", 2)
    assert info["result"]["weights_sha256"] == result["weights_sha256"]
    lines = [json.loads(line) for line in (path / "history.jsonl").read_text().splitlines()]
    with (path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(r["val_loss"]) for r in rows] == [line["val_loss"] for line in lines]
    assert len([json.loads(line) for line in (path / "data.jsonl").read_text().splitlines()]) == 120


def test_event_files_can_be_read_by_tensorboard(trained: tuple[Path, dict[str, Any]]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained[0] / "tensorboard"))
    events.Reload()
    tags = events.Tags()["tensors"]
    assert {"loss/train", "loss/validation", "accuracy/train", "accuracy/validation", "learning_rate"} <= set(tags)
    assert [e.step for e in events.Tensors("loss/train")] == [1, 2]
    final = {
        name: events.Tensors(f"test/accuracy{name}")[-1].tensor_proto.float_val[0] for name in ("", "_low", "_high")
    }
    assert final[""] == pytest.approx(trained[1]["test"]["accuracy"])
    assert final["_low"] < final[""] <= final["_high"]


def test_it_learns(sightline: Command, colors: Path, tmp_path: Path) -> None:
    result = sightline("train", colors, *SMALL[:-1], "8", "--out", tmp_path / "r", "--format", "json")
    assert result.json["test"]["accuracy"] > 0.9


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    sightline: Command, colors: Path, tmp_path: Path
) -> None:
    augmented = ("--set", "augment.rotation=10", "--set", "augment.brightness=0.1")
    shas = [
        sightline(
            "train", colors, *SMALL, *augmented, "--seed", seed, "--out", tmp_path / f"r{i}", "--format", "json"
        ).json["weights_sha256"]
        for i, seed in enumerate((1, 1, 2))
    ]
    assert shas[0] == shas[1] != shas[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["train.precision=mixed_bfloat16"],
        [
            "train.class_weights=balanced", "train.label_smoothing=0.1", "train.l2=0.0001",
            "split.mode=stratified", "split.test=0", "input.channels=1",
        ],
        [
            "train.loss=focal", "train.optimizer.name=sgd", "train.schedule.name=step",
            "train.early_stopping.patience=1", "train.early_stopping.monitor=val_accuracy", "train.epochs=6",
        ],
    ],
    ids=lambda settings: settings[0],
)  # fmt: skip
def test_settings_train_and_load(sightline: Command, colors: Path, tmp_path: Path, settings: list[str]) -> None:
    options = [split for s in settings for split in ("--set", s)]
    result = sightline("train", colors, *SMALL, *options, "--out", tmp_path / "r", "--format", "json")
    assert result.code == 0, result.err
    model = face.load(tmp_path / "r", engine="keras")
    assert {v.dtype for v in model.predictor.model.weights} == {"float32"}  # type: ignore[attr-defined]  # a Keras predictor
    if "split.test=0" in settings:
        assert result.json["test"] is None


def test_two_stages_on_a_network_without_pretrained_weights(sightline: Command, colors: Path, tmp_path: Path) -> None:
    (tmp_path / "stages.toml").write_text(
        '[[train.stages]]\nname = "head"\nunfreeze = 0\nepochs = 2\nviews = 2\n'
        '[[train.stages]]\nname = "all"\nunfreeze = -1\nepochs = 1\n'
    )
    result = sightline(
        "train", colors, *SMALL, "--config", tmp_path / "stages.toml", "--out", tmp_path / "r", "--format", "json"
    )
    assert result.code == 0, result.err
    history = [json.loads(line) for line in (tmp_path / "r" / "history.jsonl").read_text().splitlines()]
    assert [h["stage"] for h in history] == ["head", "head", "all"]


@pytest.mark.slow
def test_no_cache_leaves_none(
    sightline: Command, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "cache"))
    assert sightline("train", colors, *SMALL, "--no-cache", "--out", tmp_path / "r").code == 0
    assert not (tmp_path / "cache").exists()
    assert sightline("train", colors, *SMALL, "--out", tmp_path / "s").code == 0
    assert len(list((tmp_path / "cache").iterdir())) == 1


def _one_class(folder: Path) -> None:
    draw_classes(folder, {"cat": (9, 9, 9)}, 3)


def _corrupt_class(folder: Path) -> None:
    draw_classes(folder, {"cat": (9, 9, 9), "dog": (99, 9, 9)}, 3)
    for path in (folder / "dog").iterdir():
        path.write_bytes(b"\xff\xd8\xff not an image")


def _unknown_in_test(folder: Path) -> None:
    draw_classes(folder / "train", COLORS, 4)
    draw_classes(folder / "test", {**COLORS, "pink": (255, 99, 99)}, 2)


@pytest.mark.parametrize(
    ("prepare", "options", "words"),
    [
        (_one_class, (), ["only one class", "'cat'"]),
        (Path.mkdir, (), ["No images in", "cat/1.jpg"]),
        (None, (), ["There is no folder", "beans"]),
        (_corrupt_class, (), ["class 'dog'", "3 could not be read"]),
        (_unknown_in_test, (), ["'pink'", "training split"]),
        (_one_class, ("--set", "train.epoch=5"), ["train.epoch", "epochs"]),
        (_one_class, ("--set", "train.epochs=many"), ["train.epochs", "whole number"]),
        (_one_class, ("--set", "split.validation=2"), ["split.validation", "between"]),
        (_one_class, ("--recipe", "qick"), ["'qick'", "quick"]),
        (_one_class, ("--model", "vg16"), ["'vg16'", "vgg16"]),
        (_one_class, ("--config", "no.toml"), ["no TOML file"]),
    ],
)
def test_bad_input_gets_one_clear_message_and_leaves_nothing(
    sightline: Command, tmp_path: Path, prepare: Any, options: tuple[str, ...], words: list[str]
) -> None:
    if prepare is not None:
        prepare(tmp_path / "data")
    result = sightline("train", tmp_path / "data", "--out", tmp_path / "run", "--recipe", "quick", *options)
    assert result.code == 2
    assert result.out == ""
    for word in words:
        assert word in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "run").exists()


def test_an_unwritable_output_is_refused_before_any_work(sightline: Command, colors: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run", "/proc/run"):
        result = sightline("train", colors, *SMALL, "--out", out)
        assert result.code == 2, out
        assert "--out" in result.err
        assert "decoding" not in result.err


def test_a_run_is_not_overwritten_unless_forced(
    sightline: Command, colors: Path, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = shutil.copytree(trained[0], tmp_path / "r")
    result = sightline("train", colors, *SMALL, "--seed", 9, "--out", out)
    assert (result.code, "--force" in result.err) == (2, True)
    assert sightline("train", colors, *SMALL, "--out", out, "--force").code == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    assert sightline("train", colors, *SMALL, "--out", tmp_path / "mine", "--force").code == 2
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_an_effort_that_does_not_exist_or_has_no_effect_is_refused(
    sightline: Command, colors: Path, tmp_path: Path
) -> None:
    for options, message in (
        (("--recipe", "quick", "--effort", "best"), "the recipe quick trains in one way only"),
        (("--effort", "more"), "error: --effort cannot be 'more'"),
        (("--set", "train.effort=more"), "error: train.effort cannot be 'more'"),
        (("--effort", "best", "--set", "train.effort=more"), "error: train.effort cannot be 'more'"),
        (("--track", "mlflw"), "--track cannot be 'mlflw'. Did you mean 'mlflow'?"),
        (("--set", 'train.track=["mlflw"]'), "train.track cannot be 'mlflw'. Did you mean 'mlflow'?"),
    ):
        result = sightline("train", colors, *options, "--out", tmp_path / "r")
        assert (result.code, message in result.err) == (2, True), result.err
        assert not (tmp_path / "r").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("effort", "stages"), [("fast", ["head"]), ("best", ["head", "fine-tune"])])
def test_an_effort_decides_what_is_trained(effort: str, stages: list[str], sightline: Command, tmp_path: Path) -> None:
    data = draw_classes(tmp_path / "data", {"red": (200, 40, 40), "green": (40, 200, 40)}, 20, size=80)
    small = ("--set", "input.height=64", "--epochs", 2, "--set", "train.early_stopping.monitor=val_loss")
    result = sightline("train", data, "--effort", effort, *small, "--out", tmp_path / "r", "--format", "json")
    assert result.code == 0, result.err
    run = face.Run(tmp_path / "r")
    assert ([record.stage for record in run.history], run.config.train.effort) == (stages, effort)
    assert result.json["test"]["accuracy"] == 1
    assert f"<dt>effort</dt><dd>{effort}</dd>" in (tmp_path / "r" / "report.html").read_text()


@pytest.mark.slow
def test_auto_is_pretrained_without_a_home_or_a_network(
    sightline: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    data = draw_classes(tmp_path / "data", {"red": (200, 40, 40), "green": (40, 200, 40)}, 20, size=80)
    result = sightline("train", data, "--out", tmp_path / "r", "--epochs", 2, "--format", "json")
    assert result.code == 0, result.err
    assert (result.json["model"], result.json["epochs"]) == ("efficientnet-lite0", 1)
    assert "fine-tune: left out, as every validation image is classified correctly already" in result.err
    assert result.json["test"]["accuracy"] == 1
    assert "EfficientNet-Lite0 with the installed ImageNet weights" in result.err
    assert (tmp_path / "r" / "bundle" / "model.onnx").is_file(), "the file gives the outputs of the model"


def test_missing_weights_are_named_before_any_decoding(
    sightline: Command, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras

    def offline(*arguments: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(keras.utils, "get_file", offline)
    result = sightline("train", colors, "--recipe", "transfer-mobilenetv2", "--out", tmp_path / "r")
    assert result.code == 2
    assert "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5" in result.err
    assert str(tmp_path / "keras" / "models") in result.err
    assert "https://" in result.err
    assert not (tmp_path / "r").exists()


def test_a_nan_loss_stops_the_run(sightline: Command, colors: Path, tmp_path: Path) -> None:
    result = sightline("train", colors, *SMALL, "--set", "train.optimizer.learning_rate=1e30", "--out", tmp_path / "r")
    assert result.code == 1
    assert "learning rate" in result.err
    payload = json.loads((tmp_path / "r" / "run.json").read_text())
    assert payload["status"] == "failed"
    assert payload["batch"], "the images of the step"
    assert all((colors / path).is_file() or Path(path).is_file() for path in payload["batch"])


@pytest.mark.skipif(os.name == "nt", reason="SIGINT cannot be sent to one process on Windows")
@pytest.mark.parametrize(
    "number",
    [pytest.param("SIGINT", marks=pytest.mark.slow), "SIGTERM", pytest.param("SIGHUP", marks=pytest.mark.slow)],
)
def test_an_interrupt_leaves_a_checkpoint_that_loads(colors: Path, tmp_path: Path, number: str) -> None:
    out = tmp_path / "r"
    command = [sys.executable, "-m", "sightline", "train", colors, *SMALL[:-1], "10000", "--out", out]
    with subprocess.Popen([str(c) for c in command], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch 2"):
                break
        sent_at = time.monotonic()
        process.send_signal(signal.Signals[number])
        rest = process.stderr.read()
        assert process.wait(30) == 130
        assert time.monotonic() - sent_at < 20
    assert "checkpoint" in rest
    assert str(out) in rest
    assert json.loads((out / "run.json").read_text())["status"] == "interrupted"
    last = checkpoints.load_latest(out / "checkpoints")
    assert last is not None
    assert len(last.state["history"]) >= 2
    assert f"sightline resume {out}" in rest
    assert face.load(out).predict(colors / "red")[0].error is None


def test_python_evaluates_as_the_command_does(trained: tuple[Path, dict[str, Any]], colors: Path) -> None:
    model = face.load(trained[0])
    evaluation = model.evaluate()
    with np.load(trained[0] / "eval" / "test" / "predictions.npz", allow_pickle=False) as saved:
        probabilities = saved["probabilities"]
    np.testing.assert_allclose(evaluation.result.probabilities, probabilities, atol=1e-6)  # in batches of other sizes
    assert evaluation.accuracy == trained[1]["test"]["accuracy"]
    with pytest.raises(SightlineError, match="test split"):
        model.evaluate(colors, split="test")


def test_arrays_in_memory_train(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 80, (60, 28, 28), np.uint8)
    labels = np.arange(60) % 2
    pixels[labels == 1] += 120
    data = face.Dataset.from_arrays(pixels, labels, classes=["night", "day"], name="night-day")
    run = face.train(data, recipe="quick", set=["train.epochs=2"], out=tmp_path / "r")
    assert run.result.classes == ("day", "night")
    predictions = run.classifier.predict([pixels[0], pixels[1]])
    assert len(predictions) == 2
    assert {c.label for c in predictions[0].top} == {"day", "night"}
