"""The documentation matches the code."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import typer.core
import typer.main

from sightline.cli import app
from sightline.config import recipes

REPOSITORY = Path(__file__).parents[1]


def test_the_reference_is_what_the_code_generates() -> None:
    spec = importlib.util.spec_from_file_location("generate", REPOSITORY / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (REPOSITORY / "docs" / "reference.md").read_text(encoding="utf-8") == module.reference(), "run `make docs`"


PAGES = [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md"), *REPOSITORY.glob("benchmarks/**/*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_commands_have_the_options_of_the_command_line(page: Path) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    unknown = []
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for verb, rest in re.findall(r"(?:^|`|\$ |&& )sightline ([a-z-]+)([^`\n#|&]*)", text, re.MULTILINE):
        command = group.commands.get(verb)
        options = {name for parameter in getattr(command, "params", ()) for name in parameter.opts} | {"--help"}
        unknown += [f"{verb} {name}" for name in re.findall(r"(?<=\s)--[a-z][a-z-]*", rest) if name not in options]
    assert not unknown


def test_every_recipe_of_a_tutorial_has_a_row() -> None:
    page = (REPOSITORY / "docs" / "tutorials.md").read_text(encoding="utf-8")
    rows = "".join(line for line in page.splitlines() if line.startswith("| `"))
    missing = [name for name in recipes.names() if f"`{name}`" not in rows]
    assert missing == ["auto", "fast-small", "quick", "segmentation", "transfer", "transfer-mobilenetv2"], (
        "only our own recipes have none"
    )
