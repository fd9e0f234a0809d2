"""Drawn images in a studio without a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sightline as sl
from browser import find_browser
from command import COLORS, draw_classes
from sightline import Dataset
from sightline.studio.contents import Studio, open_studio

LISTED = ".tile img, #empty:not([hidden])"  # what a page of images has once it has loaded


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three classes, with 8 images of 32x32 each."""
    return draw_classes(tmp_path_factory.mktemp("data") / "colors", COLORS, 8)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> sl.Run:
    """A run on drawn images of three classes, some of them with the wrong label."""
    root = tmp_path_factory.mktemp("run")
    folder = draw_classes(root / "colors", COLORS, 20)
    for i in range(4):
        (folder / "blue" / f"blue-{i:03}.png").rename(folder / "red" / f"mistake-{i}.png")
    return sl.train(folder, recipe="quick", model="cifar10-simple", epochs=2, seed=1, out=root / "a")


@pytest.fixture
def patch(tmp_path: Path) -> Path:
    return tmp_path / "fixes.jsonl"


@pytest.fixture
def studio(colors: Path, patch: Path) -> Iterator[Studio]:
    with open_studio(Dataset(colors), patch) as opened:
        yield opened


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Chromium with a camera that shows a test image."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    camera = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=find_browser(), args=["--no-sandbox", *camera])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Any]:
    """Open an address; a script that fails, or a resource that is refused, fails the test."""
    contexts, errors = [], []

    def open_one(
        address: str, width: int = 1280, *, ready: str = ".tile img, #empty:not([hidden])", **options: Any
    ) -> Any:
        contexts.append(chromium.new_context(viewport={"width": width, "height": 800}, **options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(address)
        page.wait_for_selector(ready)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert [error for error in errors if "ERR_CONNECTION_REFUSED" not in error] == []
