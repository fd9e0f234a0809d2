"""The studio on a network that is slow, loses requests, or answers them out of order: no label goes elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from browser import NO_BROWSER, find_browser
from command import COLORS, draw_classes
from held_requests import Held, wait_until
from sightline import Dataset
from sightline.studio.contents import open_studio
from studio_server import VIEWED, serve

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)]

ASKED = "#asked:not([hidden])"
NAMES = sorted(COLORS)
TRIES = 4  # how often a change is sent before it is given up
IS_ON_TOP = """() => {
  const { left, top, width, height } = document.querySelector("#message").getBoundingClientRect();
  return document.elementFromPoint(left + width / 2, top + height / 2)?.id === "message";
}"""
SEEN = VIEWED.replace("viewer-", "")
PRESS_WHILE_BROKEN = """
addEventListener("DOMContentLoaded", () => {
  const broken = document.querySelector("#broken");
  window.notes = [];
  new MutationObserver(() => {
    if (!broken.textContent) return;
    window.notes.push(broken.textContent);
    for (const key of "1x") document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  }).observe(broken, { childList: true });
});
"""


@pytest.fixture
def open_page(open_page: Any) -> Any:
    open_page.intercepts = True
    return open_page


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 images without labels."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "photos"
    folder.mkdir()
    for number, path in enumerate(sorted(draw_classes(root / "labeled", COLORS, 8).rglob("*.png"))):
        path.rename(folder / f"{number:03}.png")
    return folder


@contextmanager
def open_folder(folder: Path, patch: Path) -> Iterator[str]:
    with open_studio(Dataset(folder), patch, classes=NAMES) as studio, serve(studio) as address:
        yield address


def hold_answer(page: Any, address: str) -> list[Any]:
    """Send the first request to an address and hold its answer back: the list that is returned gets both."""
    requests: list[Any] = []

    def hold(route: Any) -> None:
        requests.append((route, route.fetch())) if not requests else route.continue_()

    page.route(address, hold)
    return requests


def read_lines(patch: Path) -> dict[str, str]:
    if not patch.exists():
        return {}
    return {row["path"]: row["to"] for row in map(json.loads, patch.read_text(encoding="utf-8").splitlines())}


def expect_text(page: Any, selector: str, text: str) -> None:
    playwright.expect(page.locator(selector)).to_contain_text(text)


def hurry(page: Any) -> None:
    """Load the page again with timeouts of a fifth."""
    page.add_init_script(
        "const wait = AbortSignal.timeout; AbortSignal.timeout = (ms) => wait.call(AbortSignal, ms / 5)"
    )
    page.reload()


def lose_answers(page: Any, address: str, count: int = 1) -> list[Any]:
    """Let the server answer requests, and lose the first `count` answers; return what was lost."""
    lost: list[Any] = []

    def lose(route: Any) -> None:
        if len(lost) == count:
            route.continue_()
        else:
            lost.append(route.fetch())
            route.abort()

    page.route(address, lose)
    return lost


def label(page: Any, key: str) -> str:
    """Label the image that is asked for, and return its path."""
    page.wait_for_function(SEEN)
    path = str(page.text_content("#path"))
    page.keyboard.press(key)
    page.wait_for_function("path => document.querySelector('#path').textContent !== path", arg=path)
    return path


@pytest.mark.parametrize("status", [0, 500], ids=["lost", "refused"])
def test_an_undo_that_fails_can_be_tried_again(photos: Path, patch: Path, open_page: Any, status: int) -> None:
    with open_folder(photos, patch) as address:
        page = open_page(f"{address}/label", ready=ASKED)
        first, second = label(page, "1"), label(page, "2")
        expect_text(page, "#progress", "2 labeled")
        requests = Held(page, "**/undo", count=1 if status else TRIES)
        page.keyboard.press("u")
        requests.wait()
        if status:
            requests.routes[0].fulfill(status=status, json={"error": "The file cannot be written."})
        else:
            requests.lose()
        expect_text(page, "#message", "cannot be written" if status else "may not be saved")
        playwright.expect(page.locator("#undo")).to_be_enabled()
        page.keyboard.press("u")
        expect_text(page, "#progress", "1 labeled")
        assert read_lines(patch) == {first: NAMES[0]}
        playwright.expect(page.locator("#path")).to_have_text(second)
    open_page.errors.clear()


@pytest.mark.exhaustive
def test_an_undo_that_fails_in_the_list_can_be_tried_again(colors: Path, patch: Path, open_page: Any) -> None:
    with open_studio(Dataset(colors), patch) as studio, serve(studio) as address:
        page = open_page(address)
        page.keyboard.press("2")
        page.keyboard.press("3")
        expect_text(page, "#corrections", "2 corrections")
        requests = Held(page, "**/undo", count=TRIES)
        page.keyboard.press("u")
        requests.lose()
        expect_text(page, "#message", "may not be saved")
        page.keyboard.press("u")
        expect_text(page, "#corrections", "1 correction")
        assert read_lines(patch) == {"blue/blue-000.png": "green"}
    open_page.errors.clear()


@pytest.mark.exhaustive
@pytest.mark.parametrize("width", [1280, 390])
def test_a_correction_that_fails_in_the_large_view_says_so_there(
    colors: Path, patch: Path, open_page: Any, width: int
) -> None:
    reason = "It cannot be written, for a reason that takes more than one line on a phone."
    with open_studio(Dataset(colors), patch) as studio, serve(studio) as address:
        page = open_page(address, width)
        page.keyboard.press("Enter")
        page.wait_for_function(VIEWED)
        page.route("**/corrections", lambda route: route.fulfill(status=500, json={"error": reason}))
        page.keyboard.press("3")
        expect_text(page, "#message", reason)
        assert page.evaluate(IS_ON_TOP), "no dialog covers it"
        page.click("[data-edit=keep]")  # it covers no button
        page.keyboard.press("Escape")
        playwright.expect(page.locator("#viewer")).to_be_hidden()
        page.wait_for_function(IS_ON_TOP)  # the dialog says that it has closed after it has
        assert page.locator("#message").bounding_box()["width"] > 300
    open_page.errors.clear()


@pytest.mark.exhaustive
def test_a_label_that_is_never_answered_holds_no_later_ones_back(photos: Path, patch: Path, open_page: Any) -> None:
    with open_folder(photos, patch) as address:
        page = open_page(f"{address}/label", ready=ASKED)
        hurry(page)
        page.wait_for_selector(ASKED)
        requests = Held(page, "**/corrections")
        first, second = label(page, "1"), label(page, "2")
        requests.wait()
        expect_text(page, "#message", "being sent again")
        expect_text(page, "#progress", "2 labeled")
        page.wait_for_selector("#message", state="hidden")
        assert read_lines(patch) == {first: NAMES[0], second: NAMES[1]}


def test_a_label_whose_answer_is_lost_is_one_label(photos: Path, patch: Path, open_page: Any) -> None:
    with open_folder(photos, patch) as address:
        page = open_page(f"{address}/label", ready=ASKED)
        lost = lose_answers(page, "**/corrections", 2)
        path = label(page, "1")
        expect_text(page, "#message", "being sent again")
        page.wait_for_selector("#message", state="hidden")
        assert len(lost) == 2
        assert read_lines(patch) == {path: NAMES[0]}
        page.keyboard.press("u")
        expect_text(page, "#progress", "0 labeled")
        assert read_lines(patch) == {}, "one undo takes it back"
        playwright.expect(page.locator("#path")).to_have_text(path)
    open_page.errors.clear()


@pytest.mark.exhaustive
def test_an_undo_whose_answer_is_lost_takes_one_label_back(photos: Path, patch: Path, open_page: Any) -> None:
    with open_folder(photos, patch) as address:
        page = open_page(f"{address}/label", ready=ASKED)
        first, second = label(page, "1"), label(page, "2")
        expect_text(page, "#progress", "2 labeled")
        lose_answers(page, "**/undo")
        page.keyboard.press("u")
        expect_text(page, "#message", "being sent again")
        playwright.expect(page.locator("#path")).to_have_text(second)
        assert read_lines(patch) == {first: NAMES[0]}
        page.keyboard.press("u")
        playwright.expect(page.locator("#path")).to_have_text(first)
        assert read_lines(patch) == {}
    open_page.errors.clear()


@pytest.mark.exhaustive
def test_a_correction_that_is_sent_again_leaves_alone_what_another_page_corrected_since(
    colors: Path, patch: Path, open_page: Any
) -> None:
    with open_studio(Dataset(colors), patch) as studio, serve(studio) as address:
        page, other = open_page(address), open_page(address)
        requests = hold_answer(page, "**/corrections")
        page.keyboard.press("2")  # blue-000 is green
        wait_until(page, lambda: requests)
        other.keyboard.press("3")  # and red
        expect_text(other, "#corrections", "1 correction")
        requests[0][0].abort()
        expect_text(page, "#message", "being sent again")
        page.wait_for_selector("#message", state="hidden")
        playwright.expect(page.locator("#image-0 .caption")).to_have_text("red")
        assert read_lines(patch) == {"blue/blue-000.png": "red"}
    open_page.errors.clear()


@pytest.mark.exhaustive
def test_a_list_says_that_the_studio_does_not_answer(colors: Path, patch: Path, open_page: Any) -> None:
    with open_studio(Dataset(colors), patch) as studio, serve(studio) as address:
        page = open_page(address)
        hurry(page)
        page.wait_for_selector(".tile .caption")
        requests = Held(page, "**/state*")
        requests.wait()
        expect_text(page, "#message", "has not responded for 20 seconds")
        page.wait_for_selector("#message", state="hidden")  # the next look is answered
        assert len(requests.routes) == 1


@pytest.mark.exhaustive
def test_an_image_that_does_not_arrive_is_requested_again(photos: Path, patch: Path, open_page: Any) -> None:
    with open_folder(photos, patch) as address:
        page = open_page(f"{address}/", ready=".tile")
        requested: set[str] = set()
        retries: list[Any] = []

        def lose_and_hold(route: Any) -> None:
            image = route.request.url.partition("?")[0]
            if image not in requested:
                requested.add(image)
                route.abort()
            elif not retries:
                retries.append(route)
            else:
                route.continue_()

        page.route("**/large/*", lose_and_hold)
        page.add_init_script(PRESS_WHILE_BROKEN)
        page.goto(f"{address}/label")
        wait_until(page, lambda: retries)
        assert "requested again" in page.evaluate("window.notes[0]")
        path = str(page.text_content("#path"))
        for key in "1x":
            page.keyboard.press(key)
        page.wait_for_timeout(200)
        assert page.text_content("#path") == path, "nobody can have seen it"
        retries[0].continue_()
        page.wait_for_function("() => document.querySelector('#image').naturalWidth > 0")
        playwright.expect(page.locator("#broken")).to_have_text("")
        assert label(page, "1") == path
        expect_text(page, "#progress", "1 labeled")
        assert read_lines(patch) == {path: NAMES[0]}
    open_page.errors.clear()


@pytest.mark.exhaustive
def test_an_image_whose_request_is_never_answered_is_requested_again(photos: Path, patch: Path, open_page: Any) -> None:
    with open_folder(photos, patch) as address:
        page = open_page(f"{address}/", ready=".tile")
        page.clock.install()
        requests = Held(page, "**/large/*")
        page.goto(f"{address}/label")
        page.wait_for_selector(ASKED)
        requests.wait()
        page.clock.fast_forward(21_000)
        page.wait_for_function("() => document.querySelector('#image').naturalWidth > 0")
        path = label(page, "1")
        assert path
        expect_text(page, "#progress", "1 labeled")
        assert read_lines(patch) == {path: NAMES[0]}


@pytest.mark.exhaustive
def test_looks_at_a_slow_server_do_not_pile_up(photos: Path, patch: Path, open_page: Any) -> None:
    with open_folder(photos, patch) as address:
        page = open_page(f"{address}/label", ready=ASKED)
        requests = Held(page, "**/label/state*", count=100)
        requests.wait()
        page.wait_for_timeout(4000)
        assert len(requests.routes) == 1
        requests.routes[0].abort()
        requests.wait(2)
    open_page.errors.clear()


def test_no_image_is_labeled_before_it_is_seen(photos: Path, patch: Path, open_page: Any) -> None:
    with open_folder(photos, patch) as address:
        page = open_page(f"{address}/label", ready=ASKED)
        page.wait_for_load_state("networkidle")
        requests = Held(page, "**/large/*", count=100)

        def will_be_seen() -> bool:  # some are loaded ahead
            source = page.evaluate("document.querySelector('#image').src")
            wait_until(page, lambda: page.evaluate(SEEN) or source in [route.request.url for route in requests.routes])
            return bool(page.evaluate(SEEN))

        seen = []
        while will_be_seen():
            seen.append(label(page, "1"))
        last = str(page.text_content("#path"))
        page.keyboard.press("2")
        page.wait_for_timeout(300)
        assert page.text_content("#path") == last
        for route in requests.routes:
            route.continue_()
        assert label(page, "3") == last
        expect_text(page, "#progress", f"{len(seen) + 1} labeled")
        assert read_lines(patch) == dict.fromkeys(seen, NAMES[0]) | {last: NAMES[2]}


@pytest.mark.exhaustive
def test_an_image_that_cannot_be_shown_is_left_out(photos: Path, patch: Path, open_page: Any) -> None:
    with open_folder(photos, patch) as address:
        page = open_page(f"{address}/", ready=".tile")
        page.route("**/large/*", lambda route: route.abort())
        page.goto(f"{address}/label")
        expect_text(page, "#broken", "You can leave it out")
        page.wait_for_function(SEEN)
        path = page.text_content("#path")
        page.keyboard.press("1")
        page.keyboard.press("x")
        expect_text(page, "#progress", "0 labeled, 23 to go")
        assert json.loads(patch.read_text(encoding="utf-8"))["path"] == path
    open_page.errors.clear()


@pytest.mark.exhaustive
def test_the_viewer_corrects_what_it_shows(colors: Path, patch: Path, open_page: Any) -> None:
    with open_studio(Dataset(colors), patch) as studio, serve(studio) as address:
        page = open_page(address)
        page.keyboard.press("Enter")
        page.wait_for_function(VIEWED)
        requests = Held(page, "**/large/*", count=100)
        page.keyboard.press("ArrowRight")
        requests.wait()
        assert not page.evaluate(VIEWED)
        page.keyboard.press("2")
        page.wait_for_timeout(500)
        assert read_lines(patch) == {}
        requests.routes[0].continue_()
        page.wait_for_function(VIEWED)
        page.keyboard.press("2")
        expect_text(page, "#corrections", "1 correction")
        assert read_lines(patch) == {"blue/blue-001.png": "green"}


@pytest.mark.exhaustive
def test_a_label_of_many_images_is_toggled_by_all_of_them(tmp_path: Path, patch: Path, open_page: Any) -> None:
    folder = draw_classes(tmp_path / "many", COLORS, 80)
    paths = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.png"))]
    labels = [("cat;dog" if i % 2 else "cat") if i < 180 else "dog" for i in range(len(paths))]
    table = folder / "images.csv"
    table.write_text("\n".join(["path,label", *(f"{path},{names}" for path, names in zip(paths, labels, strict=True))]))
    with open_studio(Dataset(table), patch) as studio, serve(studio) as address:
        page = open_page(address)
        page.wait_for_selector("#image-0 .chip")
        page.keyboard.press("a")
        button = page.locator("#classes [data-to=cat]")
        playwright.expect(button).to_have_attribute("aria-pressed", "mixed")
        button.click()
        expect_text(page, "#corrections", "60 corrections")
        assert set(read_lines(patch).values()) == {"cat;dog"}
        page.keyboard.press("a")
        button.click()  # now every image has it
        expect_text(page, "#corrections", "180 corrections")
        assert not any("cat" in to for to in read_lines(patch).values())


@pytest.mark.exhaustive
def test_a_key_that_is_held_labels_one_image(photos: Path, patch: Path, open_page: Any) -> None:
    with open_folder(photos, patch) as address:
        page = open_page(f"{address}/label", ready=ASKED)
        page.wait_for_function(SEEN)
        page.keyboard.down("1")
        for _ in range(5):
            page.wait_for_timeout(100)
            page.keyboard.down("1")  # as the keyboard repeats it
        page.keyboard.up("1")
        expect_text(page, "#progress", "1 labeled")
        page.wait_for_timeout(1500)
        assert len(read_lines(patch)) == 1


@pytest.mark.exhaustive
def test_a_key_that_is_held_corrects_one_image(colors: Path, patch: Path, open_page: Any) -> None:
    with open_studio(Dataset(colors), patch) as studio, serve(studio) as address:
        page = open_page(address)
        page.keyboard.down("2")
        for _ in range(5):
            page.keyboard.down("2")
        page.keyboard.up("2")
        expect_text(page, "#corrections", "1 correction")
        page.wait_for_timeout(500)
        assert len(read_lines(patch)) == 1


@pytest.mark.exhaustive
def test_a_label_that_fails_does_not_replace_the_image_that_is_shown(photos: Path, patch: Path, open_page: Any) -> None:
    with open_folder(photos, patch) as address:
        page = open_page(f"{address}/label", ready=ASKED)
        requests = Held(page, "**/corrections", count=TRIES)
        first = label(page, "1")
        requests.wait()
        second = str(page.text_content("#path"))
        requests.lose()
        expect_text(page, "#message", "may not be saved")
        assert label(page, "2") == second
        assert label(page, "3") == first, "it is asked for again, next"
        expect_text(page, "#progress", "2 labeled")
        assert read_lines(patch) == {first: NAMES[2], second: NAMES[1]}
    open_page.errors.clear()


@pytest.mark.exhaustive
def test_a_correction_that_fails_selects_nothing_in_place_of_what_is_selected_since(
    colors: Path, patch: Path, open_page: Any
) -> None:
    with open_studio(Dataset(colors), patch) as studio, serve(studio) as address:
        page = open_page(address)
        requests = Held(page, "**/corrections", count=TRIES)
        page.keyboard.press("Shift+ArrowRight")
        page.keyboard.press("3")  # blue-000 and blue-001
        requests.wait()
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        page.keyboard.press("Shift+ArrowRight")  # blue-004 and blue-005
        requests.lose()
        expect_text(page, "#message", "may not be saved")
        page.keyboard.press("2")
        expect_text(page, "#corrections", "2 corrections")
        assert read_lines(patch) == dict.fromkeys(["blue/blue-004.png", "blue/blue-005.png"], "green")
    open_page.errors.clear()


@pytest.mark.exhaustive
def test_rows_that_arrive_late_do_not_replace_newer_ones(colors: Path, patch: Path, open_page: Any) -> None:
    with open_studio(Dataset(colors), patch) as studio, serve(studio) as address:
        page, other = open_page(address), open_page(address)
        requests = hold_answer(page, "**/corrections")
        page.keyboard.press("2")  # blue-000 is green; the answer to this is late
        wait_until(page, lambda: requests)
        other.keyboard.press("3")  # and red
        expect_text(other, "#corrections", "1 correction")
        first = page.locator("#image-0 .caption")
        playwright.expect(first).to_have_text("red")
        requests[0][0].fulfill(response=requests[0][1])
        page.wait_for_timeout(500)
        assert first.text_content() == "red"
        page.wait_for_timeout(4000)
        assert first.text_content() == "red"
        assert read_lines(patch) == {"blue/blue-000.png": "red"}


@pytest.mark.exhaustive
def test_images_that_are_listed_late_have_the_newest_labels(colors: Path, patch: Path, open_page: Any) -> None:
    with open_studio(Dataset(colors), patch) as studio, serve(studio) as address:
        page = open_page(address)
        page.wait_for_selector("#image-0 .caption")
        late = hold_answer(page, "**/images?*")
        page.reload(wait_until="commit")
        wait_until(page, lambda: late)
        page.wait_for_selector("#classes [data-to=green]")
        page.keyboard.press("2")
        expect_text(page, "#corrections", "1 correction")
        page.wait_for_event("response", lambda response: "/state?" in response.url)  # a look at what changed is done
        late[0][0].fulfill(response=late[0][1])
        page.wait_for_selector("#image-1 .caption")
        playwright.expect(page.locator("#image-0 .caption")).to_have_text("green")


@pytest.mark.exhaustive
def test_more_images_than_one_request_returns_are_all_described(tmp_path: Path, patch: Path, open_page: Any) -> None:
    folder = draw_classes(tmp_path / "many", COLORS, 300)
    with open_studio(Dataset(folder), patch) as studio, serve(studio) as address:
        page = open_page(address)
        page.set_viewport_size({"width": 7680, "height": 4320})  # as zoomed out
        page.wait_for_function("() => document.querySelectorAll('.tile').length > 600")
        described = "() => [...document.querySelectorAll('.tile')].every((tile) => tile.querySelector('.caption'))"
        page.wait_for_function(described)
