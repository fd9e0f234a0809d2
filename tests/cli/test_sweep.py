"""`sightline sweep` as a user sees it; its behavior is tested in tests/test_sweep.py."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from command import Command
from sightline.errors import Interrupted
from sightline.sweep import child

SPACE = """
recipe = "quick"
[settings]
model.name = "cifar10-simple"
model.hidden = [4]
train.epochs = 1
train.tensorboard = false
[space]
train.optimizer.learning_rate = [1e-3, 1e-4]
"""


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "rates.toml"
    path.write_text(SPACE)
    return path


def test_a_sweep_prints_one_object_then_its_table(
    sightline: Command, colours: Path, space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = sightline("sweep", colours, space, "--json")
    assert found.code == 0
    assert found.out.count("\n") == 1
    assert found.err == "", "no progress output with --json"
    assert found.json["study"] == "rates-colours"
    assert found.json["directory"] == "runs/rates-colours"
    best, trials = found.json["best"], found.json["trials"]
    assert best == trials[0]
    assert {t["settings"]["train.optimizer.learning_rate"] for t in trials} == {1e-3, 1e-4}
    assert best["value"] == max(t["value"] for t in trials)
    again = sightline("sweep", colours, space)
    assert again.code == 0
    assert "2 of them already finished" in again.err
    assert "epoch" not in again.err
    assert f"best       trial {best['trial']}, " in again.out
    assert best["run"] in again.out
    assert "results.csv" in again.out
    for trial in trials:
        assert f"{trial['value']:.4f}" in again.out
    runs = sightline("compare", *(t["run"] for t in trials), "--json").json["runs"]
    assert [set(run["settings"]) for run in runs] == [{"train.optimizer.learning_rate"}] * 2


def test_an_interrupt_exits_130_and_says_how_to_go_on(
    sightline: Command, colours: Path, space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any, **options: Any) -> None:
        raise Interrupted("Stopped in epoch 1.")

    monkeypatch.setattr(child, "train", stop)
    found = sightline("sweep", colours, space, "--out", tmp_path / "o")
    assert found.code == 130
    assert found.out == ""
    assert "0 of 2 trials" in found.err
    assert "the same command" in found.err


AROUND = """
import atexit, sys
from sightline.cli import main
heavy = {"jax", "keras", "tensorflow", "torch"}
atexit.register(lambda: print("imported here:", sorted(heavy & set(sys.modules)), flush=True))
main()
"""


@pytest.mark.skipif(os.name == "nt", reason="signals cannot be sent to one process on Windows")
def test_a_signal_reaches_the_trial_and_the_sweep_itself_imports_no_framework(
    colours: Path, space: Path, tmp_path: Path
) -> None:
    """So its memory does not grow with the number of trials: each frees its memory with its process."""
    space.write_text(SPACE.replace("epochs = 1", "epochs = 10_000"))
    command = [sys.executable, "-c", AROUND, "sweep", str(colours), str(space), "--out", str(tmp_path / "o")]
    run = tmp_path / "o" / "trial-0001"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as sweeping:
        until = time.monotonic() + 300
        while not (run / "history.jsonl").is_file() or not (run / "history.jsonl").read_text():
            assert sweeping.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        sweeping.send_signal(signal.SIGTERM)
        out, err = sweeping.communicate(timeout=300)
    assert sweeping.returncode == 130, err
    assert "0 of 2 trials" in err
    assert "the same command" in err
    assert out == "imported here: []\n"
    info = json.loads((run / "run.json").read_text())
    assert info["status"] == "interrupted"
    assert list((run / "checkpoints").glob("*.npz")), "its state was saved"
    with (run / "lock").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the training process is gone


def test_bad_input_gets_one_clear_message(sightline: Command, colours: Path, space: Path, tmp_path: Path) -> None:
    for number, (arguments, words) in enumerate(
        (
            ((colours, "transfer-tabel"), ["transfer-tabel", "'transfer-table'"]),
            ((colours, tmp_path / "no.toml"), ["no.toml"]),
            ((tmp_path / "nothing", space), ["There is no folder"]),
            ((colours, space, "--storage", "nonsense"), ["journal:FILE"]),
        )
    ):
        found = sightline("sweep", *arguments, "--out", tmp_path / f"o{number}")
        assert found.code == 2, found
        assert found.out == ""
        assert "Traceback" not in found.err
        for word in words:
            assert word in found.err


def test_a_sweep_in_which_every_trial_fails_says_so(
    sightline: Command, colours: Path, space: Path, tmp_path: Path
) -> None:
    space.write_text(SPACE + 'model.head = ["sigmoid"]\n')  # invalid for three classes
    found = sightline("sweep", colours, space, "--out", tmp_path / "o", "--json")
    assert found.code == 2
    assert "No trial was completed, and 2 failed" in found.err
    assert [t["state"] for t in found.json["trials"]] == ["failed", "failed"]
    assert found.json["best"] is None
