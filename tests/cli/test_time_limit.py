"""`train --time-limit` as a user sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import sightline as sl
from command import SMALL, Command


@pytest.mark.slow
def test_a_run_finishes_and_says_what_was_left_out(sightline: Command, colors: Path, tmp_path: Path) -> None:
    run = tmp_path / "r"
    many = ("--time-limit", "2s", *SMALL[:-1], "3000", "--out", run)
    result = sightline("train", colors, *many)
    assert result.code == 0, result.err
    assert "of 3,000 epochs fit into the time limit: " in result.err
    assert "time limit 2s, of which " in result.out
    info: dict[str, Any] = json.loads((run / "run.json").read_text())
    trained = sl.Run(run)
    assert 1 <= len(trained.history) < 3000
    assert info["time"]["stages"]["0"]["configured"] == 3000
    assert info["time"]["elapsed"] > 0
    assert trained.result.details["time"]["outlook"] in result.out
    assert "<dt>time limit</dt><dd>2s, of which" in (run / "report.html").read_text()
    assert (run / "bundle" / "model.onnx").is_file(), "the best model so far is finished"
    more = len(trained.history) + 1
    assert len(trained.resume(epochs=more).history) == more, "an extension is not limited"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--time-limit", "soon"), "train.time_limit cannot be 'soon': expected a duration such as 90s, 10m or 1h30m."),
        (("--time-limit", "1m", "--hosts", "2", "--rank", "0", "--coordinator", "localhost:1"), "for a single host"),
    ],
)
def test_a_limit_that_cannot_be_kept_is_refused(
    options: tuple[str, ...], message: str, sightline: Command, colors: Path, tmp_path: Path
) -> None:
    result = sightline("train", colors, *options, "--out", tmp_path / "r")
    assert (result.code, message in result.err) == (2, True), result.err
    assert not (tmp_path / "r").exists()
