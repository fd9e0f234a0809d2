"""The progress display of long work."""

from __future__ import annotations

import pytest

from sightline.progress import ProgressDisplay


def test_a_long_task_has_a_line_from_time_to_time_where_there_are_no_bars(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr("sightline.progress.time.perf_counter", lambda: now)
    with ProgressDisplay() as display:
        for done in range(1000, 5000):  # one image per second
            display.on_progress("predicting", done, 5000)
            now += 1
        display.on_progress("predicting", 5000, 5000)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" of")[0] for line in lines[:6]] == [
        f"predicting: {1000 + seconds:,}" for seconds in (5, 15, 35, 75, 135, 195)
    ]
    assert lines[0] == "predicting: 1,005 of 5,000, 67 min left"
    assert lines[-2:] == ["predicting: 4,975 of 5,000, 25 s left", "predicting: 5,000 in 4000.0 s"]


def test_a_task_of_unknown_length_says_what_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr("sightline.progress.time.perf_counter", lambda: now)
    with ProgressDisplay() as display:
        for done in range(8):
            display.on_progress("embedding", done, 0)
            now += 1
        display.on_progress("embedding", 8, 8)
    assert capsys.readouterr().err.splitlines() == ["embedding: 5 so far", "embedding: 8 in 8.0 s"]
