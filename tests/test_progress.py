"""The display of long work."""

from __future__ import annotations

import pytest

from sightline.progress import ProgressDisplay


def test_a_long_task_has_a_line_each_minute_where_there_are_no_bars(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr("sightline.progress.time.perf_counter", lambda: now)
    with ProgressDisplay() as display:
        for done in range(1000, 5000):  # an image each second
            display.on_progress("predicting", done, 5000)
            now += 1
        display.on_progress("predicting", 5000, 5000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "predicting: 1,060 of 5,000, 66 min left"
    assert lines[-2:] == ["predicting: 4,960 of 5,000, 40 s left", "predicting: 5000 in 4000.0 s"]
    assert len(lines) == 67
