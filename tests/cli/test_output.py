"""Tables: short ones as they are, long ones cut, with the place of the rest."""

from __future__ import annotations

import pytest
from rich.console import Console

from sightline.cli import output

ROWS = [[f"class {i}", str(i)] for i in range(1000)]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "console", lambda: Console(force_terminal=True, width=80, highlight=False))


def test_a_long_table_is_cut_where_a_file_holds_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(["class", "images"], ROWS, rest="all are in runs/1/eval/test/metrics.json")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 42
    assert lines[40].split() == ["class", "39", "39"]
    assert lines[41] == "... and 960 more of 1,000: all are in runs/1/eval/test/metrics.json"


def test_without_such_a_file_a_pipe_gets_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(["class", "images"], ROWS)
    assert len(capsys.readouterr().out.splitlines()) == 1001


@pytest.mark.usefixtures("terminal")
def test_without_such_a_file_a_terminal_is_told_how_to_get_them(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(["class", "images"], ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 42
    assert lines[-1] == "... and 960 more of 1,000: add --json or send the output to a file to see all"


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("count", [1, 40, 44])
def test_a_few_rows_more_are_not_worth_a_cut(capsys: pytest.CaptureFixture[str], count: int) -> None:
    output.table(["class", "images"], ROWS[:count], rest="elsewhere")
    assert len(capsys.readouterr().out.splitlines()) == count + 1
