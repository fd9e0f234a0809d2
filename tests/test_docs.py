"""The documentation matches the code."""

from __future__ import annotations

import importlib.util
import re
import tomllib
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
def test_anchors_are_headings(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text(encoding="utf-8")):
        linked = page.parent / target if target else page
        if "://" not in target and linked.suffix == ".md":
            assert anchor in list_anchors(linked), f"{page.name} links to {target}#{anchor}"


def list_anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings on GitHub and on the site."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def test_no_page_installs_the_project_of_the_same_name_on_pypi() -> None:
    unsafe = re.compile(r"pip install (--\S+ )*[\"']?sightline|sightline\[")
    assert [page.name for page in PAGES if unsafe.search(page.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("page", ["docs/index.md", "docs/zh-CN/index.md"])
def test_every_extra_has_a_row(page: str) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(project["optional-dependencies"])
    rows = [line.split("|")[1] for line in (REPOSITORY / page).read_text(encoding="utf-8").splitlines() if "|" in line]
    assert extras <= set(re.findall(r"`(\w+)`", "".join(rows)))
    (everything,) = project["optional-dependencies"]["all"]
    without = {"all", "jax", "torch", "remote", "mlflow", "wandb", "otel", "ray"}
    assert extras - set(re.findall(r"\w+", everything)) == without


# The excluded page is about measured choices.
GUIDES = [page for page in (REPOSITORY / "docs").glob("*.md") if page.name != "architecture.md"]
LOG_OF_MEASUREMENTS = re.compile(r"\bcommit [0-9a-f]{7}|[(,] ?20\d\d-\d\d-\d\d[,;)]")


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_a_guide_holds_conclusions(page: Path) -> None:
    """Commits and dates of measurements are in benchmarks/, which guides link to."""
    assert LOG_OF_MEASUREMENTS.findall(page.read_text(encoding="utf-8")) == []


def test_a_log_of_measurements_is_reported() -> None:
    for text in ("(2 cores, commit a760267f, 2026-11-27)", "flowers (2026-11-26)", "one seed, 2026-11-27)"):
        assert LOG_OF_MEASUREMENTS.search(text)
    assert not LOG_OF_MEASUREMENTS.search('{"time": "2026-11-26T21:52:19.233+00:00"} [commit](x)')


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
    assert missing == ["airbench", "auto", "fast-small", "quick", "segmentation", "transfer", "transfer-mobilenetv2"], (
        "only our own recipes have none"
    )


def test_the_citation_states_the_version() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.*)$", citation, re.MULTILINE) == [project["version"]]


@pytest.mark.parametrize("page", [*REPOSITORY.glob("docs/zh-CN/*.md")], ids=lambda page: page.name)
def test_a_chinese_page_and_its_original_link_to_each_other(page: Path) -> None:
    original = REPOSITORY / "docs" / page.name
    assert f"](../{page.name})" in page.read_text(encoding="utf-8")
    assert f"](zh-CN/{page.name})" in original.read_text(encoding="utf-8")
