"""`sightline sweep` as a user sees it; its behavior is tested in tests/sweeps/test_sweeps.py."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from command import SPACE, Command
from sightline.api import training_process
from sightline.api.training import train_run
from sightline.errors import Interrupted, ModelError
from waiting import wait_until

pytestmark = pytest.mark.usefixtures("plain_figures")


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "rates.toml"
    path.write_text(SPACE)
    return path


def test_a_sweep_prints_one_object_then_its_table(
    sightline: Command, colors: Path, space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trials train in this process; those of tests/sweeps/test_sweeps.py train in processes of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training_process, "train_in_subprocess", train_run)
    result = sightline("sweep", colors, space, "--format", "json")
    assert result.code == 0
    assert result.out.count("\n") == 1
    assert result.err == "", "no progress output with --format json"
    assert result.json["study"] == "rates-colors"
    assert result.json["directory"] == "runs/rates-colors"
    best, trials = result.json["best"], result.json["trials"]
    assert best == trials[0]
    assert {t["settings"]["train.optimizer.learning_rate"] for t in trials} == {1e-3, 1e-4}
    assert best["value"] == max(t["value"] for t in trials)
    again = sightline("sweep", colors, space)
    assert again.code == 0
    assert "2 of them already finished" in again.err
    assert "epoch" not in again.err
    assert f"best       trial {best['trial']}, " in again.out
    assert f"trials is partly lucky: `sightline evaluate {best['run']}` shows its test metrics" in again.out
    assert "results.csv" in again.out
    for trial in trials:
        assert f"{trial['value']:.4f}" in again.out
    runs = sightline("compare", *(t["run"] for t in trials), "--format", "json").json["runs"]
    assert [set(run["settings"]) for run in runs] == [{"train.optimizer.learning_rate"}] * 2


def test_an_interrupt_exits_130_and_says_how_to_go_on(
    sightline: Command, colors: Path, space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any, **options: Any) -> None:
        raise Interrupted("Stopped in epoch 1.")

    monkeypatch.setattr(training_process, "train_in_subprocess", stop)
    result = sightline("sweep", colors, space, "--out", tmp_path / "o")
    assert result.code == 130
    assert result.out == ""
    assert "0 of 2 trials" in result.err
    assert "the same command" in result.err


def test_trials_have_the_settings_of_all_and_a_sweep_without_a_complete_one_says_why_in_its_table(
    sightline: Command, colors: Path, space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = []

    def fail(*arguments: Any, **options: Any) -> None:
        settings.append(options["set"])
        raise ModelError("The head does not fit.")

    monkeypatch.setattr(training_process, "train_in_subprocess", fail)
    result = sightline("sweep", colors, space, "--out", tmp_path / "o", "--set", "train.batch_size=4")
    assert result.code == 2
    assert [all_of_trial[-1] for all_of_trial in settings] == ["train.batch_size=4"] * 2
    assert result.out.count("The head does not fit.") == 1
    assert "\nfailed     trials 1, 2: The head does not fit.\n" in result.out
    assert "figures" not in result.out
    assert "trial 1 failed: The head does not fit.\n" in result.err
    assert "trial 2 failed for the same reason as trial 1\n" in result.err
    assert result.err.endswith("error: No trial was completed, and 2 failed; the reasons are above.\n")


AROUND = """
import atexit, sys
from sightline.cli import main
heavy = {"jax", "keras", "tensorflow", "torch"}
atexit.register(lambda: print("imported here:", sorted(heavy & set(sys.modules)), flush=True))
main()
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals cannot be sent to one process on Windows")
def test_a_signal_reaches_the_trial_and_the_sweep_itself_imports_no_framework(
    colors: Path, space: Path, tmp_path: Path
) -> None:
    """So its memory does not grow with the number of trials: each frees its memory with its process."""
    space.write_text(SPACE.replace("epochs = 1", "epochs = 10_000"))
    command = [sys.executable, "-c", AROUND, "sweep", str(colors), str(space), "--out", str(tmp_path / "o")]
    run = tmp_path / "o" / "trial-0001"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as sweeping:
        history = run / "history.jsonl"
        wait_until(lambda: sweeping.poll() is not None or (history.is_file() and history.read_text()), 300)
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


def test_bad_input_gets_one_clear_message(sightline: Command, colors: Path, space: Path, tmp_path: Path) -> None:
    for number, (arguments, words) in enumerate(
        (
            ((colors, "transfer-tabel"), ["transfer-tabel", "'transfer-table'"]),
            ((colors, tmp_path / "no.toml"), ["no.toml"]),
            ((tmp_path / "nothing", space), ["There is no folder"]),
            ((colors, space, "--storage", "nonsense"), ["journal:FILE"]),
            (("transfer-table", colors), ["in this order: `sightline sweep photos/ transfer-table --trials 8`."]),
        )
    ):
        result = sightline("sweep", *arguments, "--out", tmp_path / f"o{number}")
        assert result.code == 2, result
        assert result.out == ""
        assert "Traceback" not in result.err
        for word in words:
            assert word in result.err


@pytest.mark.slow
def test_a_sweep_in_which_every_trial_fails_says_so(
    sightline: Command, colors: Path, space: Path, tmp_path: Path
) -> None:
    space.write_text(SPACE + 'model.head = ["sigmoid"]\n')  # invalid for three classes
    result = sightline("sweep", colors, space, "--out", tmp_path / "o", "--format", "json")
    assert result.code == 2
    assert "No trial was completed, and 2 failed" in result.err
    assert [t["state"] for t in result.json["trials"]] == ["failed", "failed"]
    assert result.json["best"] is None
