"""Hostile names of classes, files and folders, in what `serve` and `studio` print and answer, and in their pages."""

from __future__ import annotations

import json
import os
import re
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from browser import NO_BROWSER, Browser, Page, find_browser
from hostile_names import CLASSES, RUN, check_page, check_text, list_images, read_csv
from server_process import Server
from sightline.escaping import escape_formula, printable
from studio_client import read_token

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such file names")

PAGES = ("/", "/results", "/compare", "/map", "/try", "/train")  # of the studio
KEYS = re.compile(r'(data-current|data-label|value)="[^"]*"')  # attributes that scripts read
BACKWARDS = next(label for label in CLASSES if "\u202e" in label)


def read(server: Server, path: str, body: bytes | None = None, **headers: str) -> str:
    request = urllib.request.Request(server.address + path, body, headers)  # noqa: S310  # our own server
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
        content: bytes = response.read()
        return content.decode()


def test_serve(hostile_run: Path, hostile_images: Path) -> None:
    image = next(list_images(hostile_images)).read_bytes()
    with Server(hostile_run, "--log-format", "text") as server:
        model = json.loads(read(server, "/model"))
        assert set(model["classes"]) == set(CLASSES)
        answer = json.loads(read(server, "/predict", image, **{"Content-Type": "image/png"}))
        assert answer["label"] in CLASSES
        assert answer["model"]["name"] == printable(RUN)
        json.loads(read(server, "/openapi.json"))
        metrics = check_text(read(server, "/metrics"))
        assert all(re.match(r"#|[a-z_]+(\{.*\})? [0-9.e+-]+$", line) for line in metrics.splitlines())
        check_page(read(server, "/"), "page/")
        status, answer = server.request(f"/models/{quote(chr(27))}[2J%0Aforged%E2%80%AE/predict", b"x")
        assert status == 404
        assert answer["error"]
        code, err = server.stop()
    assert code == 0
    assert "\\u001b[2J\\nforged" in check_text(err)


@pytest.mark.slow
def test_studio(hostile_run: Path, hostile_images: Path, tmp_path: Path) -> None:
    patch = tmp_path / "\x1b[2J\nforged.jsonl"
    with Server(hostile_run, "--patch", patch, verb="studio") as server:
        for path in PAGES:
            check_page(KEYS.sub("", read(server, path)), "/")
        page = read(server, "/results")
        assert "&lt;script&gt;alert(2)" in page
        token = read_token(page)
        count = len(list(list_images(hostile_images)))
        rows: Any = json.loads(read(server, f"/images?ids={','.join(map(str, range(count - len(CLASSES))))}"))
        assert {row["label"] for row in rows} == set(CLASSES)
        paths = [row["path"] for row in rows]
        assert any(path.endswith("[b].png") and "\x1b[2J\u202e" in path for path in paths)
        table = read_csv(read(server, "/images.csv"))
        assert {row["label"] for row in table} == set(map(escape_formula, CLASSES))
        assert sorted(row["path"] for row in table) == sorted(map(escape_formula, paths))
        body = json.dumps({"ids": [0], "edit": "relabel", "to": BACKWARDS}).encode()
        read(server, "/corrections", body, **{"Content-Type": "application/json", "X-CSRF-Token": token})
        query = f"/order?label={quote(BACKWARDS)}"
        assert len(read(server, query)) > 0
        code, err = server.stop()
    assert code == 0
    check_text(server.address + err)
    (line,) = patch.read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["to"] == BACKWARDS


def test_a_studio_that_does_not_start(hostile_run: Path, tmp_path: Path) -> None:
    patch = tmp_path / "\x1b[2J\nforged.jsonl"
    patch.write_text("[", encoding="utf-8")
    with Server(hostile_run, "--patch", patch, verb="studio") as server:
        assert server.address == ""
        code, err = server.stop()
    assert code == 2
    assert "\\x1b[2J\\nforged.jsonl" in check_text(err)


@pytest.mark.slow
@pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)
def test_no_name_is_displayed_backwards(hostile_run: Path, hostile_images: Path, tmp_path: Path) -> None:
    image = next((hostile_images / BACKWARDS).glob("*000.png"))
    with (
        Server(hostile_run) as served,
        Server(hostile_run, "--patch", tmp_path / "fixes.jsonl", verb="studio") as studio,
        Browser(tmp_path / "profile") as browser,
        Page(browser, 1280) as page,
    ):
        page.open(f"{served.address}/")
        page.choose_file("#file", image)
        page.wait_for("document.querySelectorAll('#top li').length === 4")
        assert printable(BACKWARDS) in page.evaluate("document.querySelector('#top').textContent")
        for path in PAGES:
            page.open(f"{studio.address}{path}")
            if path == "/":
                page.wait_for("document.querySelectorAll('.tile').length > 4")
                options = "[...document.querySelector('[name=label]').options].map((option) => option.value)"
                page.wait_for(f"{options}.length > 1")  # they come after the images
                assert BACKWARDS in page.evaluate(options), "keys are unchanged"
                page.evaluate(f"document.querySelector('[name=label]').value = {json.dumps(BACKWARDS)}")
            elif path == "/try":
                page.choose_file("#file", image)
                page.wait_for("document.querySelectorAll('#top li').length === 4")
            visible = page.evaluate(
                "document.body.innerText + [...document.querySelectorAll('[title], [alt]')]"
                ".map((e) => e.title + e.alt).join('')"
            )
            assert "\u202e" not in visible
            assert path not in {"/", "/results", "/try"} or printable(BACKWARDS) in visible
