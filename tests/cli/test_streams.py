"""Standard streams that are closed, full or disconnected, in processes started by a shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest

from command import Command, draw_classes
from waiting import wait_until

fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")

LIGHT = [["models"], ["models", "--format", "json"], ["recipes", "quick"], ["--version"], ["--help"]]
FULL, CLOSED = "No space left on device", "it is closed"

Shell = Callable[..., tuple[int, str, str]]


def shell(
    redirection: str, *arguments: object, variables: Mapping[str, str] = MappingProxyType({})
) -> tuple[int, str, str]:
    """Run ``sightline ARGUMENTS... REDIRECTION`` in a shell; return the exit code and the output."""
    command = f'exec "$0" -m sightline "$@" {redirection}'
    completed = subprocess.run(
        ["sh", "-c", command, sys.executable, *map(str, arguments)],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=300, env=os.environ | variables,
    )  # fmt: skip
    return completed.returncode, completed.stdout, completed.stderr


@pytest.fixture(scope="session")
def run_and_image(trained: tuple[Path, dict[str, Any]], colors: Path) -> tuple[Path, Path]:
    """A run and an image."""
    return trained[0], next((colors / "red").iterdir())


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
@pytest.mark.parametrize(("redirection", "why"), [(">/dev/full", FULL), (">&-", CLOSED)], ids=["full", "closed"])
def test_a_lost_result_is_an_error(arguments: list[str], redirection: str, why: str) -> None:
    advice = "Free some space." if why == FULL else "Redirect it to a file, e.g. with > FILE."
    expected = f"error: Standard output cannot be written: {why}. {advice}\n"
    assert shell(redirection, *arguments) == (2, "", expected)


def test_a_home_folder_that_cannot_be_written_changes_no_output(colors: Path) -> None:
    assert shell("", "doctor", colors, variables={"HOME": os.devnull})[2] == shell("", "doctor", colors)[2]


@pytest.mark.parametrize("form", [[], ["--format", "csv"], ["--format", "json"]], ids=["text", "csv", "json"])
def test_a_lost_prediction_is_an_error(run_and_image: tuple[Path, Path], form: list[str]) -> None:
    code, _, err = shell(">/dev/full", "predict", *run_and_image, *form)
    assert code == 2
    assert err.startswith("error: Standard output cannot be written")
    assert len(err.splitlines()) == 1


def test_a_prediction_that_goes_to_a_file_needs_no_streams(run_and_image: tuple[Path, Path], tmp_path: Path) -> None:
    place = tmp_path / "out.csv"
    assert shell("<&- >&- 2>&-", "predict", *run_and_image, "--out", place)[0] == 0
    assert place.read_text(encoding="utf-8").count("\n") == 2


def test_a_command_that_reads_nothing_needs_no_input(run_and_image: tuple[Path, Path]) -> None:
    code, out, err = shell("<&-", "predict", *run_and_image)
    assert (code, err) == (0, "")
    assert str(run_and_image[1]) in out
    code, out, err = shell("<&-", "predict", run_and_image[0], "-")
    assert (code, out) == (2, "")
    assert err.startswith("error: Standard input is closed")


def test_doctor_says_that_its_findings_are_lost(colors: Path) -> None:
    assert shell(">/dev/full", "doctor", colors)[0] == 2
    code, out, _ = shell("2>&- <&-", "doctor", colors)
    assert code == 0
    assert "120 images in 3 classes" in out


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gbk"])
def test_json_is_valid_in_any_encoding(encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    data = draw_classes(tmp_path / "data", {"café": (200, 60, 60), "茶 🍵": (60, 200, 60)}, 3)
    code, out, _ = shell("", "doctor", data, "--format", "json")
    assert code == 0
    assert json.loads(out)["classes"] == {"café": 3, "茶 🍵": 3}


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_lost_progress_changes_nothing(redirection: str, run_and_image: tuple[Path, Path], tmp_path: Path) -> None:
    expected = shell("", "predict", *run_and_image)
    assert shell(redirection, "predict", *run_and_image) == (expected[0], expected[1], "")
    assert shell(redirection, "predict", tmp_path / "none", run_and_image[1]) == (2, "", ""), (
        "the exit code signals the error"
    )
    assert shell(redirection, "train", "--nonsense") == (2, "", "")


@pytest.mark.parametrize(
    "arguments", [["models"], ["models", "--format", "json"], ["--help"], ["recipes", "quick"]], ids=" ".join
)
def test_a_closed_reader_is_ignored(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)  # before anything is written, which `| head -1` does not guarantee
    try:
        completed = subprocess.run(
            [sys.executable, "-m", "sightline", *arguments],
            stdout=write, stderr=subprocess.PIPE, text=True, check=False, timeout=300,
        )  # fmt: skip
    finally:
        os.close(write)
    assert (completed.returncode, completed.stderr) == (141, "")


def test_rows_that_nobody_reads_end_quietly(run_and_image: tuple[Path, Path], colors: Path) -> None:
    command = f'"$0" -m sightline predict "{run_and_image[0]}" "{colors}" --format csv | head -1'
    completed = subprocess.run(["sh", "-c", command, sys.executable], capture_output=True, text=True, check=True)
    assert completed.stdout.startswith("path,label")
    assert completed.stderr == ""


def test_a_reader_that_has_exited_stops_rows_with_the_code_of_other_tools(run_and_image: tuple[Path, Path]) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "sightline", "predict", *map(str, run_and_image), "--format", "csv"]
    try:
        completed = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(write)
    assert (completed.returncode, completed.stderr) == (141, "")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can make a pipe smaller than a page of help")
def test_an_end_of_a_pipe_that_does_not_block_is_waited_for() -> None:
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(write, False)
    command = [sys.executable, "-m", "sightline", "models", "--format", "json"]
    with subprocess.Popen(command, stdout=write, stderr=subprocess.PIPE) as child:
        os.close(write)
        with os.fdopen(read, "rb") as file:
            wait_until(lambda: any(fcntl.ioctl(read, termios.FIONREAD, bytes(4))))
            time.sleep(0.2)  # it meets the full pipe
            text = file.read()
        assert child.stderr is not None
        assert child.stderr.read() == b""
    assert child.returncode == 0
    assert len(text) > 4096
    assert json.loads(text)["models"]


@pytest.mark.slow
def test_every_command_reports_a_lost_result(run_and_image: tuple[Path, Path], colors: Path, tmp_path: Path) -> None:
    """Their output files are written nevertheless."""
    run = tmp_path / "run"
    small = ["--recipe", "quick", "--model", "cifar10-simple", "--set", "model.hidden_units=[64]", "--epochs", "1"]
    verbs: list[list[object]] = [
        ["train", colors, *small, "--out", run], ["resume", run, "--epochs", "2"], ["evaluate", run],
        ["report", run], ["model-card", run], ["explain", run, run_and_image[1], "--out", tmp_path / "maps"],
        ["describe", run],
        ["preview", colors, "--out", tmp_path / "x.png"], ["compare", run, run_and_image[0]],
        ["doctor", colors, "--format", "json"],
        ["export", run, "--to", "vectors", "--out", tmp_path / "v"], ["serve", run, "--port", "0"], ["env"],
        ["compress", run, "--methods", "int8", "--max-drop", "50", "--out", tmp_path / "c"],
        ["demo", "--epochs", "1", "--out", tmp_path / "demo"],
    ]  # fmt: skip
    for arguments in verbs:
        code, _, err = shell(">/dev/full <&-", *arguments)
        assert code == 2, (arguments, err)
        assert err.splitlines()[-1].startswith("error: Standard output cannot be written"), (arguments, err)
        assert "Traceback" not in err
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["status"] == "complete"
    assert (tmp_path / "x.png").is_file()


def test_input_without_end_is_refused(
    sightline: Command, run_and_image: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path("/dev/zero").open("rb") as zero:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=zero))
        result = sightline("predict", run_and_image[0], "-", "--set", "data.limits.file_mb=2")
    assert result.code == 2
    assert "Standard input is larger than 2 MiB (data.limits.file_mb)" in result.err


def test_unreadable_input_is_reported_without_a_traceback(
    sightline: Command, run_and_image: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(size: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=SimpleNamespace(read=fail)))
    result = sightline("predict", run_and_image[0], "-")
    assert (result.code, result.err) == (2, "error: Standard input cannot be read: Input/output error.\n")
