"""The page of a server: its files, their headers and its texts; `tests/cli/test_serve_page.py` opens it."""

from __future__ import annotations

import ast
import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from asgi_client import RawAnswer, exchange, make_scope
from sightline import preprocessing
from sightline.api.classifier import Classifier
from sightline.inference.predictor import FakePredictor
from sightline.preprocessing import PreprocessingSpec

pytest.importorskip("starlette")


def get(*paths: str, method: str = "GET", **options: Any) -> list[RawAnswer]:
    """Request paths of a server with `options` of `create_app`, and return the answers."""
    from sightline.serve.app import create_app

    classifier = Classifier(FakePredictor(("a", "b"), PreprocessingSpec(8, 8)))
    app = create_app(classifier, max_bytes=1 << 20, **options)

    async def exchange_all() -> list[RawAnswer]:
        async with app.router.lifespan_context(app):
            return [await exchange(app, make_scope(path, method=method)) for path in paths]

    return asyncio.run(exchange_all())


def test_the_page_and_its_files_load_nothing_from_elsewhere_and_need_no_token() -> None:
    from sightline.serve.access import Access

    access = Access("correct-horse")
    (page,) = get("/", access=access)
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page[2].decode())
    files = [f"/{address}" for address in addresses if address.startswith("page/")]
    assert {address for address in addresses if not address.startswith("page/")} == {"openapi.json"}
    assert len(files) == 4
    for status, headers, body in [page, *get(*files, access=access)]:
        assert status == 200
        directives = headers["content-security-policy"].split(";")
        policy = dict(directive.strip().split(" ", 1) for directive in directives)
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert "unsafe" not in headers["content-security-policy"]
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|<style| style=| on\w+=", body.decode())
    assert get("/model", "/page", access=access)[0][0] == 401


def test_only_the_files_of_the_page_are_served() -> None:
    answers = get("/page/none.js", "/page/../page.py", "/page/%2e%2e/page.py", "/page/", "/nowhere")
    assert [status for status, _, _ in answers] == [404] * 5
    assert json.loads(answers[0][2])["error"].startswith("There is nothing at /page/none.js: ")
    assert [status for status, _, _ in get("/", "/page/page.js", method="POST")] == [405, 405]


def test_both_languages_have_all_texts() -> None:
    from sightline.serve.page import FOLDER

    script, page = ((FOLDER / name).read_text(encoding="utf-8") for name in ("page.js", "index.html"))
    blocks = re.findall(r"^  (?:en|zh): \{(.*?)^  \},", script, re.MULTILINE | re.DOTALL)
    english, chinese = (set(re.findall(r"(?:^    |, )(\w+): [\"(]", block, re.MULTILINE)) for block in blocks)
    assert english == chinese
    used = set(re.findall(r'data-text="(\w+)"', page)) | set(re.findall(r'\btext\("(\w+)"\)', script))
    assert used <= english


def test_each_error_that_is_translated_is_one_of_the_server() -> None:
    from sightline.serve.page import FOLDER

    sentences = []
    for file in [*FOLDER.parent.glob("*.py"), *Path(preprocessing.__file__).parent.glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            pieces = node.values if isinstance(node, ast.JoinedStr) else [node]
            for value in ("5", "the image"):
                texts = [str(piece.value) if isinstance(piece, ast.Constant) else value for piece in pieces]
                if isinstance(node, ast.JoinedStr) and ast.unparse(node.values[-1]).endswith("advice}"):
                    texts.pop()  # for clients that are not a page
                sentences.append("".join(texts))
    patterns = re.findall(r"^  \[/(.+)/s?, \"", (FOLDER / "page.js").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(patterns) == 18
    for pattern in patterns:
        assert any(re.search(pattern, sentence, re.DOTALL) for sentence in sentences), pattern
