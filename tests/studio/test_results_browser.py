"""The pages of a run in a real browser: its results, by mouse and by keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import sightline as sl
from browser import NO_BROWSER, find_browser
from sightline.studio.contents import open_studio
from studio_server import serve

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)]


@pytest.fixture(scope="module")
def address(run: sl.Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with open_studio(run, tmp_path_factory.mktemp("patch") / "fixes.jsonl") as studio, serve(studio) as opened:
        yield opened


@pytest.fixture
def page(open_page: Any, address: str) -> Any:
    return open_page(f"{address}/results", ready="#confusion")


def test_a_cell_of_the_matrix_opens_its_images(page: Any, address: str) -> None:
    cells = page.locator("#confusion .right a")
    count = cells.first.inner_text().split()[0]
    cells.first.click()
    page.wait_for_selector(".tile img")
    word = "image" if count == "1" else "images"
    playwright.expect(page.locator("#count")).to_have_text(f"{count} {word}")
    assert page.locator("select[name=split]").input_value() == "test"
    page.locator(".pages a", has_text="Results").click()
    page.wait_for_selector("#confusion")
    assert page.url == f"{address}/results"


def test_sliders_move_the_metrics(page: Any) -> None:
    def read(metric: str) -> str:
        return str(page.locator(f"#numbers [data-metric={metric}] b").text_content())

    page.wait_for_function("() => document.querySelector('#coverage-value').textContent === '100.0%'")
    assert read("abstention") == "0.0%"
    page.locator("#coverage").focus()
    page.keyboard.press("Home")
    page.keyboard.press("PageUp")
    page.wait_for_function("() => document.querySelector('#coverage-value').textContent !== '100.0%'")
    assert read("abstention") != "0.0%"
    assert float(page.locator("#threshold").input_value()) > 0
    page.locator("#abstained").click()
    page.wait_for_selector(".tile img")
    assert page.locator("input[name=below]").input_value() != ""
    page.go_back()
    page.click("button[data-confidence='0']")
    page.wait_for_function("() => document.querySelector('#coverage-value').textContent === '100.0%'")


@pytest.mark.parametrize("language", ["en-US", "zh-CN"])
def test_the_page_fits_a_phone(open_page: Any, address: str, language: str) -> None:
    page = open_page(f"{address}/results", 390, ready="#confusion", locale=language)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("#numbers dt").count() == 4
