"""The scaling page: the options of its commands exist, and its arithmetic is right."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from sightline.cli import app

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "scaling.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| [^|]+ \| ([\d,.]+(?: [\u00d7/+] \(?[\d,.]+\)?)+) \| ([\d,.]+) [^|]+ \|$", re.MULTILINE)
SPEED = re.compile(r'^\| [^|]+ \| ([\d,]+) images/s \| \[[^]]+\]\(([^#)]+)#([\w-]+)\), "([^"]+)" \|$', re.MULTILINE)


def list_commands(page: str) -> list[str]:
    """Return the arguments of each `sightline` command, in code blocks and inline."""
    lines = [line for block in re.findall(r"```(?:sh|yaml)\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    quoted = re.findall(r"`sightline ([^` ]+ [^`]+)`", page)  # `sightline serve` alone just names a command
    in_blocks = [match.group(1) for line in lines if (match := re.search(r"\bsightline ([^\"]+)", line))]
    return list(dict.fromkeys([*in_blocks, *quoted]))


def parse(text: str) -> None:
    """Parse the arguments of a command without running it."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    context = group.make_context("sightline", ["help"])
    name, command, arguments = group.resolve_command(context, shlex.split(text, comments=True))
    assert command is not None
    command.make_context(name, arguments, parent=context)


@pytest.mark.parametrize("text", list_commands(PAGE))
def test_a_command_can_be_parsed(text: str) -> None:
    parse(text)


def test_a_wrong_command_is_noticed() -> None:
    assert len(list_commands(PAGE)) > 10
    assert list_commands("```sh\nsrun sightline train x --out y # on node0\n```") == ["train x --out y # on node0"]
    with pytest.raises(typer.BadParameter.__mro__[2], match="No such option"):
        parse("train photos/ --machines 4")


def test_the_budget_adds_up() -> None:
    rows = ROW.findall(PAGE)
    assert len(rows) > 15
    for formula, result in rows:
        value = eval(formula.replace(",", "").replace("\N{MULTIPLICATION SIGN}", "*"))  # noqa: S307  # numbers and signs, as ROW says
        digits = len(result.partition(".")[2])
        assert f"{value:,.{digits}f}" == result, f"{formula} is {value}, not {result}"
    table = PAGE[PAGE.index("| **to predict**") :]
    assert len(re.findall(r"^\| .*\d [\u00d7/+] ", table, re.MULTILINE)) == len(rows), (
        "a row that this test does not read"
    )


def read_cell(page: Path, anchor: str, row: str) -> str:
    """Return the first number in a table row, in the section of a page with this anchor."""
    sections = re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (section,) = [text for text in sections if text.partition("\n")[0].lower().replace(" ", "-") == anchor]
    (cell,) = re.findall(rf"^\| {re.escape(row)} \| ([\d,]+) ", section, re.MULTILINE)
    return str(cell)


def test_the_budget_takes_what_was_measured_from_the_tables_that_it_names() -> None:
    start, end = PAGE.index("| measured, on two cores"), PAGE.index("| **to predict**")
    rows = SPEED.findall(PAGE[start:end])
    assert len(rows) == PAGE[start:end].count("images/s"), "a row that this test does not read"
    for speed, page, anchor, row in rows:
        assert read_cell(DOCS / page, anchor, row) == speed, row
        assert f" / {speed} " in PAGE[end:], f"{row} is not in the arithmetic"
