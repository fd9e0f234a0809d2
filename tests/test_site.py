"""The site: every page is in its navigation, and the messages quoted on the troubleshooting page exist."""

from __future__ import annotations

import ast
import itertools
import re
import runpy
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

from sightline.models import registry

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
TROUBLESHOOTING = (DOCS / "troubleshooting.md", DOCS / "zh-CN" / "troubleshooting.md")


def list_quotes(page: Path) -> list[str]:
    """Return the messages that a troubleshooting page explains."""
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("**")]
    return re.findall(r'"([^"\n]+)"', "\n".join(lines))


QUOTES = list_quotes(TROUBLESHOOTING[0])


@cache
def message_texts() -> str:
    """All string literals of the package, with a null character for each value inserted in an f-string."""
    texts = []
    for path in (REPOSITORY / "src" / "sightline").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(str(v.value) if isinstance(v, ast.Constant) else "\0" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


@pytest.mark.parametrize("quote", QUOTES)
def test_a_quoted_message_exists(quote: str) -> None:
    for words in quote.split(" … "):
        assert words in message_texts(), words


def test_the_chinese_page_explains_the_same_messages() -> None:
    assert list_quotes(TROUBLESHOOTING[1]) == QUOTES


def test_the_check_can_fail() -> None:
    assert len(QUOTES) > 20
    assert "no message says this" not in message_texts()


def test_every_page_is_in_the_navigation() -> None:
    navigation = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    listed = set(re.findall(r"[\w/.-]+\.md", navigation))
    outside = re.findall(r'": "([\w.-]+\.md)"', (DOCS / "site.py").read_text(encoding="utf-8"))
    assert listed == {*outside, *(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))}


@pytest.mark.parametrize(
    ("page", "language"), [("zh-CN/data.md", "zh-CN"), ("zh.md", "zh-CN"), ("data.md", "en"), ("index.md", "en")]
)
def test_a_page_states_its_language(page: str, language: str) -> None:
    hooks = runpy.run_path(str(DOCS / "site.py"))
    file = SimpleNamespace(src_uri=page)
    config = SimpleNamespace(theme={"language": "en"})
    hooks["on_page_context"]({}, page=SimpleNamespace(file=file), config=config)
    html = hooks["on_post_page"](f'<html lang="{config.theme["language"]}" class="no-js">')
    assert html == f'<html lang="{language}" class="no-js">'


def test_every_results_file_is_a_page() -> None:
    sources = re.findall(r'^    "([\w/.-]+\.md)": "', (DOCS / "site.py").read_text(encoding="utf-8"), re.MULTILINE)
    results = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "benchmarks" / "results").glob("*.md")}
    assert results
    assert results <= set(sources)


def test_the_table_of_parity_lists_every_network() -> None:
    page = (REPOSITORY / "benchmarks" / "results" / "export.md").read_text(encoding="utf-8")
    rows = page.partition("<!-- parity: begin -->")[2].partition("<!-- parity: end -->")[0]
    assert re.findall(r"^\| `([\w-]+)` \|.* onnx \|", rows, re.MULTILINE) == list(registry.ENTRIES)


@pytest.mark.parametrize("page", [REPOSITORY / "README.zh-CN.md", *sorted((DOCS / "zh-CN").glob("*.md"))])
def test_no_line_ends_inside_a_chinese_sentence(page: Path) -> None:
    """A browser shows the end of a line as a space, which Chinese does not have."""
    lines = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL).splitlines()
    letters, marks = "\u4e00-\u9fff", "\u3001-\u303f\uff00-\uffef"
    inside = re.compile(rf"[{marks}]\n\s*\S|[{letters}]\n\s*[{letters}{marks}]")
    for line, following in itertools.pairwise(lines):
        is_text = not re.match(r"\s*(?:\||#|[-*] |\d+\. |: |> |!\[|<|\*\*|$)", following) and line[:1] not in {"#", "|"}
        assert not (is_text and inside.search(f"{line}\n{following}")), line


@pytest.mark.parametrize("page", sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")))
def test_no_page_has_a_placeholder_that_browsers_take_for_a_tag(page: str) -> None:
    code = re.compile(r"```.*?```|^    .*?$|`[^`]*`|<!--.*?-->", re.DOTALL | re.MULTILINE)
    text = code.sub("", (DOCS / page).read_text(encoding="utf-8"))
    assert set(re.findall(r"<(?!https?:)/?\w+", text)) <= {"<br", "<code", "</code"}
