"""`train --time-limit` as a user sees it."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

import sightline as sl
from command import SMALL, Command
from sightline.api import training
from sightline.config.durations import parse_duration
from sightline.runs import pipeline
from sightline.runs.directory import RunDirectory


@pytest.mark.slow
def test_a_run_finishes_and_says_what_was_left_out(
    sightline: Command, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "r"
    write_report = training.write_first_report  # type: ignore[attr-defined]  # imported there

    def write_slowly(*arguments: Any) -> None:
        time.sleep(2)
        write_report(*arguments)

    monkeypatch.setattr(training, "write_first_report", write_slowly)
    many = ("--time-limit", "2s", *SMALL[:-1], "3000", "--out", run)
    result = sightline("train", colors, *many)
    assert result.code == 0, result.err
    assert "1 of 3,000 epochs begins, but does not fit into the time limit: " in result.err
    used = re.search(r"time limit 2s; the run took (\S+)\. ", result.out)
    assert used is not None
    info: dict[str, Any] = json.loads((run / "run.json").read_text())
    trained = sl.Run(run)
    assert 1 <= len(trained.history) < 3000
    assert info["time"]["stages"]["0"]["configured"] == 3000
    assert info["time"]["elapsed"] > 0
    time_info = trained.result.details["time"]
    assert time_info["outlook"] in result.out
    assert parse_duration(used[1]) >= round(time_info["seconds"]) + 1, "with the report, which states the time before"
    page = (run / "report.html").read_text()
    assert re.search(r"<dt>time limit</dt><dd>2s; the run took \S+ before this report\.", page)
    assert (run / "bundle" / "model.onnx").is_file(), "the best model so far is finished"
    more = len(trained.history) + 1
    assert len(trained.resume(epochs=more).history) == more, "an extension is not limited"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--time-limit", "soon"), "--time-limit cannot be 'soon': expected a duration such as 90s, 10m or 1h30m."),
        (("--time-limit", "1m", "--hosts", "2", "--rank", "0", "--coordinator", "localhost:1"), "on a single host"),
    ],
)
def test_a_limit_that_cannot_be_kept_is_refused(
    options: tuple[str, ...], message: str, sightline: Command, colors: Path, tmp_path: Path
) -> None:
    result = sightline("train", colors, *options, "--out", tmp_path / "r")
    assert (result.code, message in result.err) == (2, True), result.err
    assert not (tmp_path / "r").exists()


class Interrupting(sl.Callback):
    """Interrupts a run a quarter of a second after a task has begun."""

    def __init__(self, task: str) -> None:
        self.task = task

    def on_progress(self, task: str, done: int, total: int) -> None:
        if task == self.task:
            time.sleep(0.25)
            raise KeyboardInterrupt


def read_elapsed(run: Path) -> float:
    return float(RunDirectory.open(run).info["time"]["elapsed"])


@pytest.mark.parametrize("task", ["indexing", "decoding"])
def test_the_time_of_an_interrupted_session_counts(
    task: str, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here before training; a session that is killed then counts until its images are decoded."""
    run, callback = tmp_path / "r", Interrupting(task)
    with pytest.raises(sl.Interrupted):
        sl.train(colors, recipe="quick", time_limit="10m", cache=False, out=run, callback=callback)
    first = read_elapsed(run)
    assert first > 0.25
    with pytest.raises(sl.Interrupted):
        sl.Run(run).resume(callback=callback)
    second = read_elapsed(run)
    assert second > first + 0.25
    at_training: list[float] = []

    def stop(*_: object) -> None:
        at_training.append(read_elapsed(run))
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "fit", stop)
    with pytest.raises(sl.Interrupted):
        sl.Run(run).resume()
    assert second < at_training[0] < read_elapsed(run)
