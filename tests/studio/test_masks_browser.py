"""Masks in a real browser: layers over the images, predicted masks, and the pages of a run of masks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sightline as sl
from browser import NO_BROWSER, find_browser
from drawn_scenes import BAR, DISK, draw_scene, encode
from sightline import Dataset
from sightline.studio.contents import Studio, open_studio
from studio_server import serve

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)]

SLOW_MS = 60_000  # until the model is loaded
COLORS = """selector => {
  const layer = document.querySelector(selector);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [layer.naturalWidth ?? layer.width, layer.naturalHeight ?? layer.height];
  const context = canvas.getContext("2d");
  context.drawImage(layer, 0, 0);
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  const colors = new Set();
  for (let i = 0; i < data.length; i += 4) colors.add(data.slice(i, i + 4).join(","));
  return [...colors].sort();
}"""
CLASS_COLORS = ["0,158,115,255", "230,159,0,255", "86,180,233,255"]  # of the first three classes


@pytest.fixture(scope="module")
def address(mask_studio: Studio) -> Iterator[str]:
    with serve(mask_studio) as opened:
        yield opened


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "new.png"
    path.write_bytes(encode(draw_scene(7000)[0]))
    return path


def loaded(page: Any, selector: str) -> None:
    page.wait_for_function("s => { const i = document.querySelector(s); return i.complete && i.naturalWidth > 0; }", arg=selector)  # fmt: skip  # noqa: E501


def test_masks_are_switched_off_and_on_by_key_and_by_button(open_page: Any, address: str) -> None:
    page = open_page(address)
    mask = page.locator(".tile .mask").first
    playwright.expect(mask).to_be_visible()
    loaded(page, ".tile .mask")
    assert page.evaluate(COLORS, ".tile .mask") == ["0,0,0,0", *CLASS_COLORS]
    image = page.locator(".tile img").first.bounding_box()
    assert mask.bounding_box() == image
    page.keyboard.press("m")
    playwright.expect(mask).to_be_hidden()
    playwright.expect(page.locator("#show-masks")).to_have_attribute("aria-pressed", "false")
    page.click("#show-masks")
    playwright.expect(mask).to_be_visible()
    page.keyboard.press("/")
    page.keyboard.type("m")
    playwright.expect(mask).to_be_visible()
    assert page.locator("#show-masks").get_attribute("aria-pressed") == "true"


def test_the_viewer_shows_both_masks_and_keeps_them_while_one_moves(open_page: Any, address: str) -> None:
    page = open_page(f"{address}/?split=validation&sort=iou")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#viewer-mask")).to_be_visible()
    loaded(page, "#viewer-mask")
    assert page.locator("#viewer-mask").bounding_box() == page.locator("#viewer-image").bounding_box()
    playwright.expect(page.locator("#viewer-facts")).to_contain_text("Mean IoU")
    page.click("#show-predicted")
    page.wait_for_selector("#predicted:not([hidden])", timeout=SLOW_MS)
    assert set(page.evaluate(COLORS, "#predicted-layer")) <= {*CLASS_COLORS}
    assert page.locator("#predicted-layer").bounding_box() == page.locator("#predicted-image").bounding_box()
    with page.expect_response(re.compile("/images/[0-9]+/mask")) as moved:
        page.keyboard.press("ArrowRight")
    assert moved.value.url.endswith(f"/{page.locator('#viewer').get_attribute('data-id')}/mask")
    page.wait_for_selector("#predicted:not([hidden]) #predicted-layer")
    page.keyboard.press("m")
    playwright.expect(page.locator("#predicted-layer")).to_be_hidden()
    playwright.expect(page.locator("#viewer-mask")).to_be_hidden()
    playwright.expect(page.locator("#viewer-image")).to_be_visible()
    page.click("#show-predicted")
    playwright.expect(page.locator("#prediction")).to_be_hidden()


def test_classes_are_text_whatever_their_names_are(open_page: Any, address: str) -> None:
    page = open_page(address)
    dialogs: list[Any] = []
    page.on("dialog", lambda dialog: dialogs.append(dialog))  # noqa: PLW0108  # Playwright marks the function
    playwright.expect(page.locator("#legend li")).to_have_text([DISK, BAR, "ground"])
    options = page.locator("select[name=label] option")
    playwright.expect(options).to_have_count(4)
    assert options.all_text_contents()[1:] == [f"{DISK} (40)", f"{BAR} (40)", "ground (40)"]
    page.select_option("select[name=label]", DISK)
    playwright.expect(page.locator("#count")).to_have_text("40 images")
    swatch = page.locator(".tile .swatch").first
    playwright.expect(swatch).to_have_attribute("title", DISK)
    playwright.expect(swatch).to_have_css("background-color", "rgb(230, 159, 0)")
    page.keyboard.press("Escape")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#viewer-facts .chip")).to_have_text([DISK, BAR, "ground"])
    page.keyboard.press("Escape")
    page.goto(f"{address}/results")
    page.click(f"#per-class a >> text={BAR}")
    page.wait_for_selector(".tile img")
    playwright.expect(page.locator("select[name=label]")).to_have_value(BAR)
    assert dialogs == []


def test_no_class_is_set_and_an_image_is_left_out(mask_data: Path, patch: Path, open_page: Any) -> None:
    with open_studio(Dataset(mask_data), patch) as studio, serve(studio) as address:
        page = open_page(address)
        for key in ("1", "2", "n"):
            page.keyboard.press(key)
        assert not page.locator("#write-folders").is_visible()
        assert page.locator("#classes").count() == 0
        page.keyboard.press("x")
        playwright.expect(page.locator("#corrections")).to_have_text("1 correction")
        assert '"action": "drop"' in patch.read_text().replace('":"', '": "')
        page.click("#help")
        playwright.expect(page.locator("#keys")).to_contain_text("Show the masks, or hide them")


@pytest.mark.parametrize("width", [1280, 390])
def test_a_mask_is_predicted_for_a_new_image(open_page: Any, address: str, photo: Path, width: int) -> None:
    page = open_page(f"{address}/try", width, ready="#drop")
    page.set_input_files("#file", str(photo))
    page.wait_for_selector("#top li", timeout=SLOW_MS)
    assert page.evaluate("document.querySelector('#view').width") == 32
    assert set(page.evaluate(COLORS, "#layer")) <= {*CLASS_COLORS}
    assert page.locator("#layer").bounding_box() == page.locator("#view").bounding_box()
    areas = [float(text.rstrip("%")) for text in page.locator("#top .value").all_text_contents()]
    assert sum(areas) == pytest.approx(100, abs=0.2)
    playwright.expect(page.locator("#quality")).to_contain_text("Quality 0.")
    page.keyboard.press("m")
    playwright.expect(page.locator("#layer")).to_be_hidden()
    playwright.expect(page.locator("#view")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_model_abstains_from_a_mask_because_of_its_quality(open_page: Any, address: str, photo: Path) -> None:
    def abstain(route: Any) -> None:
        if route.request.method != "POST":
            route.continue_()
            return
        answer = route.fetch()
        route.fulfill(response=answer, json=answer.json() | {"decision": "abstain"})

    page = open_page(f"{address}/try", ready="#drop")
    page.route("**/try", abstain)
    page.set_input_files("#file", str(photo))
    page.wait_for_selector("#decision:not([hidden])", timeout=SLOW_MS)
    playwright.expect(page.locator("#decision")).to_have_text("The quality is too low: the model abstains.")


def test_the_camera_is_predicted_until_it_stops(open_page: Any, address: str) -> None:
    page = open_page(f"{address}/try", ready="#camera:not([hidden])")
    page.click("#camera")
    page.wait_for_selector("#top li", timeout=SLOW_MS)
    page.wait_for_function("() => document.querySelector('#view').width === 640")
    page.click("#snap")
    page.wait_for_function("() => document.querySelector('#video').srcObject.getTracks()[0].readyState === 'ended'")
    playwright.expect(page.locator("#live")).to_be_hidden()
    page.click("#camera")
    page.click("#stop")
    playwright.expect(page.locator("#result")).to_be_hidden()


def test_a_file_that_is_not_an_image_is_reported(open_page: Any, address: str, tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("no image")
    page = open_page(f"{address}/try", ready="#drop")
    page.set_input_files("#file", str(tmp_path / "note.png"))
    page.wait_for_selector("#message:not([hidden])", timeout=SLOW_MS)
    assert "cannot be predicted" in page.locator("#message").text_content()
    open_page.errors[:] = [error for error in open_page.errors if "400 (Bad Request)" not in error]


def test_a_cell_of_the_results_opens_its_images_the_most_pixels_first(open_page: Any, address: str) -> None:
    page = open_page(f"{address}/results", ready="#confusion")
    loaded(page, "#worst .mask")
    page.keyboard.press("m")
    playwright.expect(page.locator("#worst .mask").first).to_be_hidden()
    page.locator("#confusion td.right a").last.click()
    page.wait_for_selector(".tile img")
    playwright.expect(page.locator("select[name=sort]")).to_have_value("rank")
    playwright.expect(page.locator("#count")).to_have_text("10 images")
    page.go_back()
    page.locator("#worst a").first.click()
    page.wait_for_selector(".tile img")
    playwright.expect(page.locator("#count")).to_have_text("1 image")


def test_two_runs_are_compared(open_page: Any, mask_run: sl.Run, other_mask_run: sl.Run, tmp_path: Path) -> None:
    opened = open_studio(mask_run, tmp_path / "fixes.jsonl", compare=[other_mask_run])
    with opened as studio, serve(studio) as address:
        page = open_page(f"{address}/compare", 390, ready="#verdict")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        playwright.expect(page.locator("#verdict")).to_contain_text("b: worse.")
        page.locator(".group a").first.click()
        page.wait_for_selector(".tile img")
        playwright.expect(page.locator("#count")).to_have_text("8 images")
