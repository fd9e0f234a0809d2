"""Pages whose answers are late, as on a slow machine: no key, click or typed letter is lost, or goes elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import NO_BROWSER, find_browser
from command import COLORS, draw_classes
from held_requests import Held
from sightline import Dataset
from sightline.studio.contents import Studio, open_studio
from studio_server import LISTED, expect_text, read_labels, serve

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)]


@pytest.fixture
def open_page(open_page: Any) -> Any:
    open_page.intercepts = True
    return open_page


@pytest.fixture
def twins(tmp_path: Path, patch: Path) -> Iterator[Studio]:
    """A folder whose checks find something."""
    folder = draw_classes(tmp_path / "twins", COLORS, 3)
    (folder / "red" / "twin.png").write_bytes((folder / "blue" / "blue-001.png").read_bytes())
    with open_studio(Dataset(folder), patch) as opened:
        yield opened


def press_button(page: Any, button: Any) -> None:
    """Press the button of the mouse down on a button, without letting it go."""
    box = button.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()


def test_letters_that_are_typed_before_the_first_answer_stay_in_the_search(
    studio: Studio, patch: Path, open_page: Any
) -> None:
    with serve(studio) as address:
        page = open_page(address)
        page.goto("about:blank")
        requests = Held(page, "**/state*")
        page.goto(address)
        requests.wait()
        page.keyboard.press("/")
        page.keyboard.type("re")
        requests.routes[0].continue_()
        page.wait_for_selector(LISTED)
        page.keyboard.type("d-000x")
        playwright.expect(page.locator("input[name=text]")).to_have_value("red-000x")
        page.wait_for_selector("#empty:not([hidden])")
        assert not patch.exists(), "no letter was a key"


def test_the_list_has_the_focus_once_it_is_loaded(studio: Studio, open_page: Any) -> None:
    with serve(studio) as address:
        playwright.expect(open_page(address).locator("#grid")).to_be_focused()


def test_a_button_that_is_pressed_while_an_answer_arrives_is_a_click(
    studio: Studio, patch: Path, open_page: Any
) -> None:
    with serve(studio) as address:
        page = open_page(address)
        requests = Held(page, "**/corrections")
        page.keyboard.press("2")
        requests.wait()
        press_button(page, page.locator("#classes [data-to=red]"))
        requests.routes[0].continue_()
        expect_text(page, "#corrections", "1 correction")
        page.mouse.up()
        expect_text(page, "#corrections", "2 corrections")
        assert read_labels(patch) == {"blue/blue-000.png": "green", "blue/blue-001.png": "red"}


def test_a_chip_that_is_pressed_while_an_answer_arrives_is_removed(tmp_path: Path, patch: Path, open_page: Any) -> None:
    root = draw_classes(tmp_path / "images", {"x": (90, 90, 90)}, 2, 16)
    (root / "labels.csv").write_text("path,label\nx/x-000.png,car;tree\nx/x-001.png,car\n", encoding="utf-8")
    with open_studio(Dataset(root / "labels.csv"), patch) as studio, serve(studio) as address:
        page = open_page(address)
        requests = Held(page, "**/corrections")
        page.keyboard.press("2")  # no tree, of the first image
        requests.wait()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.querySelector('#viewer-image').naturalWidth > 0")
        press_button(page, page.get_by_role("button", name="Remove the label car"))
        requests.routes[0].continue_()
        expect_text(page, "#corrections", "1 correction")
        page.mouse.up()
        expect_text(page, "#corrections", "2 corrections")
        assert read_labels(patch) == {"x/x-000.png": "car", "x/x-001.png": ""}


def test_an_image_opens_while_its_findings_are_loaded(twins: Studio, open_page: Any) -> None:
    with serve(twins) as address:
        page = open_page(address)
        requests = Held(page, "**/images?*")
        page.click("#check")
        requests.wait()
        page.locator("#grid").press("Enter")
        expect_text(page, "#viewer-path", "blue/blue-000.png")
        page.keyboard.press("ArrowRight")
        expect_text(page, "#viewer-path", "blue/blue-001.png")
        requests.routes[0].continue_()
        playwright.expect(page.locator("#viewer-facts")).to_contain_text("identical files")


def test_the_cursor_stays_when_groups_are_listed_again(twins: Studio, open_page: Any) -> None:
    with serve(twins) as address:
        page = open_page(address)
        page.click("#check")
        page.wait_for_selector("#finding-filter:not([hidden])")
        page.goto("about:blank")
        requests = Held(page, "**/state*")
        page.goto(f"{address}/?sort=group")
        requests.wait()
        page.wait_for_selector(".tile img")
        page.keyboard.press("ArrowRight")
        selection = page.locator("#selection")
        path = selection.text_content()
        with page.expect_request("**/images?*"):  # after the list
            requests.routes[0].continue_()
        playwright.expect(selection).to_have_text(path)
        page.keyboard.press("ArrowLeft")
        playwright.expect(selection).not_to_have_text(path)


def test_the_map_is_of_the_method_that_was_chosen_last(run_studio: Studio, open_page: Any) -> None:
    assert run_studio.model is not None
    run_studio.model.features.start()
    run_studio.model.features.wait()
    with serve(run_studio) as address:
        page = open_page(f"{address}/map", ready="#map:not([hidden]) #legend li")
        legend = page.locator("#legend").text_content()
        page.evaluate("document.querySelector('[name=method]').append(new Option('other', 'other'))")
        requests = Held(page, "**/map/points?method=other")
        page.select_option("[name=method]", "other")
        requests.wait()
        with page.expect_response("**/map/points?method=pca") as response:
            page.select_option("[name=method]", "pca")
        values = response.value.json()
        requests.routes[0].fulfill(json=values | {"classes": [f"other {name}" for name in values["classes"]]})
        page.wait_for_timeout(300)
        assert page.locator("#legend").text_content() == legend


def test_a_training_is_started_once_the_page_can_start_it(studio: Studio, open_page: Any) -> None:
    with serve(studio) as address:
        page = open_page(address)
        page.goto("about:blank")
        scripts = Held(page, "**/training.js")
        page.goto(f"{address}/train", wait_until="commit")
        button = page.locator("#start button")
        playwright.expect(button).to_be_disabled()
        scripts.wait()
        playwright.expect(button).to_be_disabled()  # a click on it would be lost
        scripts.routes[0].continue_()
        playwright.expect(button).to_be_enabled()
        with page.expect_request("**/train/start"):
            page.select_option("[name=effort]", "fast")
            page.select_option("[name=recipe]", "quick")  # which has one effort alone, so that nothing starts
            button.click()
        playwright.expect(page.locator("#message")).to_contain_text("one way only")
    open_page.errors.clear()
