"""Command line output: plurals, and escaping of untrusted text."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from sightline import cli
from sightline.cli import output
from sightline.escaping import printable
from sightline.progress import ProgressDisplay
from strategies import hostile_text

MARKUP = r"\[/x] [red]x[/] :smile: [link=file:///etc] a\ "


class Terminal(io.StringIO):
    """A text stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def test_one_epoch_is_not_one_epochs(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay() as display:
        display.on_stage_begin("training", 1, 1)
        display.on_stage_begin("training", 2, 3)
    assert capsys.readouterr().err.splitlines() == ["training: 1 epoch of 1 step", "training: 2 epochs of 3 steps"]


def capture(action: str, text: str) -> str:
    """Return what one of the print functions outputs for `text`."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        match action:
            case "say":
                output.print_line(text, (text, "bold"))
            case "complain":
                output.print_error(text)
            case "news":
                ProgressDisplay().on_message(text)
    return out.getvalue()


@given(st.sampled_from(["say", "complain", "news"]), hostile_text() | st.just(MARKUP))
def test_a_line_stays_one_line_and_is_shown_as_it_is(action: str, text: str) -> None:
    expected = {"say": "{0}{0}\n", "complain": "error: {0}\n", "news": "{0}\n"}[action]
    assert capture(action, text) == expected.format(printable(text))


@given(st.lists(st.tuples(hostile_text() | st.just(MARKUP), st.lists(hostile_text(), max_size=3)), max_size=4))
def test_no_cell_forges_a_row(rows: list[tuple[str, list[str]]]) -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        output.print_table(["\x1b[2J\nname", "lines"], [list(row) for row in rows])
    head, *lines = out.getvalue().splitlines()
    assert head.split() == ["\\x1b[2J\\nname", "lines"]
    assert len(lines) == sum(max(1, len(several)) for _, several in rows)
    for name, _ in rows:
        assert any(line.startswith(printable(name)) for line in lines)


def test_a_terminal_sees_colors_and_no_other_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    hostile = "\x1b]0;title\x07\x9b2J" + MARKUP
    with contextlib.redirect_stdout(Terminal()) as out, contextlib.redirect_stderr(Terminal()) as err:
        output.print_line((hostile, "bold"))
        output.print_table([hostile], [[hostile]])
        output.print_error(hostile)
        with ProgressDisplay() as display:
            display.on_progress(hostile, 1, 2)
            display.on_message(hostile)
            display.on_progress(hostile, 2, 2)
    assert "\x1b[1m" in out.getvalue()
    for text in (out.getvalue(), err.getvalue()):
        rest = re.sub(
            r"\x1b\[[0-9;]*[mAK]|\x1b\[\?25[lh]", "", text
        )  # styles; for progress bars: cursor up, erase line, cursor visibility
        assert set(re.findall(r"[\x00-\x1f\x7f-\x9f]", rest)) <= {"\n", "\r"}
        assert "\\x1b]0;title" in rest


def test_json_is_escaped_on_a_terminal_alone() -> None:
    value = {"name": "\x1b[2J\x9b2J\u202e 图"}
    with contextlib.redirect_stdout(Terminal()) as terminal:
        output.print_json(value)
    with contextlib.redirect_stdout(io.StringIO()) as sent:
        output.print_json(value)
    assert json.loads(terminal.getvalue()) == json.loads(sent.getvalue()) == value
    assert "\x9b" not in terminal.getvalue()
    assert "\u202e" not in terminal.getvalue()
    assert "\x9b2J\u202e 图" in sent.getvalue()


def test_rows_on_a_terminal_are_escaped() -> None:
    with contextlib.redirect_stdout(Terminal()) as terminal:
        output.results_stream().write("\x1b[2J\n,cat\n")
    assert terminal.getvalue() == "\\x1b[2J\\n,cat\n"


def find_direct_prints(source: str) -> list[str]:
    """Return the places where a module prints without `output`: `print`, `echo`, standard streams, rich."""
    violations = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name(id="print")) | ast.Attribute(attr="stdout" | "stderr" | "stdin" | "echo"):
                violations.append(ast.unparse(node))
            case ast.ImportFrom(module=str(name)) if name.split(".")[0] == "rich":
                violations.append(ast.unparse(node))
    return violations


OWN = {"output.py", "streams.py", "__init__.py"}  # the last flushes standard output


@pytest.mark.parametrize("path", sorted(Path(cli.__file__).parent.glob("*.py")), ids=lambda path: path.name)
def test_all_text_goes_through_one_place(path: Path) -> None:
    violations = find_direct_prints(path.read_text(encoding="utf-8"))
    assert path.name in OWN or violations == []


def test_direct_prints_are_found() -> None:
    source = "import sys, typer\nfrom rich.console import Console\nprint(1)\nsys.stdout.write('')\ntyper.echo('')"
    assert len(find_direct_prints(source)) == 4


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_tables_align_at_any_width(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "make_console", lambda **_: Console(width=width))
    columns = ["run", "settings that differ", "parameters", "accuracy", "95% interval", "epochs"]
    name = "runs/a-very-long-name-of-a-run-that-no-narrow-terminal-holds/第一次"
    rows = [[name, "train.epochs=5", "1,234,567", "0.9876", "0.9123 to 0.9456", "10"]] * 2
    output.print_table(columns, rows, right=["parameters", "accuracy", "epochs"])
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert max(cell_len(line) for line in lines) <= width
    for whole in ("1,234,567", "0.9876", "0.9123 to 0.9456"):
        assert text.count(whole) == 2, "numbers and intervals are never broken"
    for column in ("parameters", "accuracy", "epochs"):
        head = next(line for line in lines if column in line and "=" not in line)
        end = head.index(column) + len(column)
        cells = [line[:end] for line in lines if re.search(r"\d$", line[:end]) and line[end - 1] != " "]
        assert len(cells) >= 2, "right-aligned below the heading"


@pytest.mark.parametrize("limit", [3, None])
def test_a_table_ends_in_the_number_of_rows_left_out(limit: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(["n"], [[str(i)] for i in range(100)], limit=limit, rest="see all.csv")
    *lines, last = capsys.readouterr().out.splitlines()
    count = limit or output.MAX_ROWS
    assert len(lines) == 1 + count
    assert last == f"... and {100 - count} more of 100: see all.csv"


def test_a_table_of_the_first_rows_counts_the_others_too(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(["n"], [["1"], ["2"]], limit=5, rest="see all.csv", total=9)
    assert capsys.readouterr().out.splitlines()[-1] == "... and 7 more of 9: see all.csv"
