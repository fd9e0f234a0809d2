"""The pages of a run in a real browser: its results, by mouse and by keyboard."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sightline as sl
from browser import NO_BROWSER, find_browser
from command import COLORS, draw_classes
from sightline.studio.contents import Studio, open_studio
from studio_server import serve

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)]


@pytest.fixture(scope="module")
def address(run_studio: Studio) -> Iterator[str]:
    with serve(run_studio) as opened:
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


def test_an_image_is_tried(open_page: Any, address: str, run: sl.Run) -> None:
    page = open_page(f"{address}/try", ready="#drop")
    photo = next(Path(run.config.data.sources[0]).glob("green/*.png"))
    page.set_input_files("#file", str(photo))
    playwright.expect(page.locator("#top li")).to_have_count(3)
    label = run.classifier.predict(photo)[0].label
    assert page.locator("#label").text_content().startswith(f"{label} · ")
    assert page.evaluate("document.querySelector('#view').width") == 32
    page.click("#start-features")
    playwright.expect(page.locator("#nearest img")).to_have_count(8, timeout=30_000)
    page.wait_for_function("() => [...document.querySelectorAll('#nearest img')].every((i) => i.naturalWidth === 32)")
    page.click("#show-heat")
    page.wait_for_selector("#heat:not([hidden])", timeout=30_000)
    assert not page.locator("#view").is_visible()
    playwright.expect(page.locator("#evidence")).not_to_be_empty()
    page.click("#show-heat")
    assert page.locator("#view").is_visible()


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_an_image_is_dropped_or_pasted(open_page: Any, address: str, way: str) -> None:
    page = open_page(f"{address}/try", ready="#drop")
    page.evaluate(
        """async (way) => {
          const canvas = new OffscreenCanvas(40, 20);
          canvas.getContext("2d").fillRect(0, 0, 40, 20);
          const data = new DataTransfer();
          data.items.add(new File([await canvas.convertToBlob()], "black.png", { type: "image/png" }));
          const [drop, paste] = [{ dataTransfer: data }, { clipboardData: data }];
          document.dispatchEvent(way === "drop" ? new DragEvent(way, drop) : new ClipboardEvent(way, paste));
        }""",
        way,
    )
    playwright.expect(page.locator("#top li")).to_have_count(3)
    assert page.evaluate("document.querySelector('#view').width") == 40


def test_a_file_that_is_not_an_image_is_reported(open_page: Any, address: str, tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("no image")
    page = open_page(f"{address}/try", ready="#drop")
    page.set_input_files("#file", str(tmp_path / "note.png"))
    page.wait_for_selector("#message:not([hidden])")
    assert "cannot be classified" in page.locator("#message").text_content()
    errors = [error for error in open_page.errors if "400 (Bad Request)" not in error]
    open_page.errors[:] = errors  # the browser logs the refused request


def test_the_camera_is_classified_until_it_stops(open_page: Any, address: str) -> None:
    page = open_page(f"{address}/try", ready="#camera:not([hidden])")
    page.click("#camera")
    playwright.expect(page.locator("#top li")).to_have_count(3)
    page.click("#snap")
    page.wait_for_function("() => document.querySelector('#view').width === 640")
    assert not page.locator("#live").is_visible()
    page.wait_for_function("() => document.querySelector('#video').srcObject.getTracks()[0].readyState === 'ended'")
    page.click("#camera")
    page.click("#stop")
    assert not page.locator("#result").is_visible()


def test_the_viewer_shows_a_heat_map(open_page: Any, address: str) -> None:
    page = open_page(address)
    page.keyboard.press("Enter")
    page.click("#show-heat")
    page.wait_for_selector("#viewer-heat:not([hidden])", timeout=30_000)
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#viewer-heat", state="hidden")
    playwright.expect(page.locator("#viewer-image")).to_be_visible()


def test_two_runs_are_compared(open_page: Any, run: sl.Run, other: sl.Run, tmp_path: Path) -> None:
    with open_studio(run, tmp_path / "fixes.jsonl", compare=[other]) as studio, serve(studio) as address:
        page = open_page(f"{address}/compare", 390, ready="#verdict")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        group = page.locator(".group").first
        count = len(group.locator("img").all())
        assert group.locator("h2").text_content() == f"Only {run.path.name} is right: {count}"
        group.locator("a").click()
        page.wait_for_selector(".tile img")
        playwright.expect(page.locator("#count")).to_have_text(f"{count} images")
        page.click("#filters summary")
        page.click("#clear")
        playwright.expect(page.locator("#count")).to_have_text("60 images")


def test_points_of_the_map_are_selected_by_lasso_and_by_keyboard(open_page: Any, address: str) -> None:
    page = open_page(f"{address}/map", ready="#features:not([hidden]), #map:not([hidden])")
    if page.locator("#start-features").is_visible():
        page.click("#start-features")
    page.wait_for_selector("#map:not([hidden])", timeout=30_000)
    playwright.expect(page.locator("#legend li")).to_have_count(3)
    bounds = page.locator("#plane").bounding_box()
    corners = [(1, 1), (bounds["width"] - 2, 1), (bounds["width"] - 2, bounds["height"] - 2), (1, bounds["height"] - 2)]
    for i, (x, y) in enumerate(corners):
        page.mouse.move(bounds["x"] + x, bounds["y"] + y, steps=3)
        if not i:
            page.mouse.down()
    page.mouse.up()
    playwright.expect(page.locator("#chosen")).to_have_text("60 selected")
    playwright.expect(page.locator("#preview img")).to_have_count(24)
    page.keyboard.press("Escape")
    playwright.expect(page.locator("#chosen")).to_have_text("0 selected")
    page.focus("#plane")
    for key, times in (("ArrowLeft", 1), ("Shift+ArrowRight", 12), ("Shift+ArrowUp", 8), ("ArrowDown", 4)):
        for _ in range(times):
            page.keyboard.press(key)
    playwright.expect(page.locator("#chosen")).not_to_have_text("0 selected")
    count = page.locator("#chosen").text_content().split()[0]
    page.keyboard.press("Enter")
    page.wait_for_selector(".tile img")
    playwright.expect(page.locator("#count")).to_have_text("1 image" if count == "1" else f"{count} images")
    assert page.locator("#selection-filter").is_visible()


def test_look_alikes_of_a_large_image_follow_the_list(open_page: Any, address: str) -> None:
    page = open_page(f"{address}/?split=test")
    page.keyboard.press("Enter")
    page.click("#show-nearest")
    playwright.expect(page.locator("#viewer-nearest img")).to_have_count(8, timeout=30_000)
    nearest = page.locator("#viewer-nearest li").first
    first = str(nearest.get_attribute("title"))
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    playwright.expect(nearest).not_to_have_attribute("title", first, timeout=30_000)
    playwright.expect(page.locator("#viewer-nearest img")).to_have_count(8, timeout=30_000)


def test_hostile_names_are_text_on_every_page(tmp_path: Path, open_page: Any) -> None:
    script = "<img src=x onerror=document.title='owned'>"
    names = (script, "$&$'\"{{7*7}} LABEL")
    data = draw_classes(tmp_path / "data", COLORS, 12)
    for color, name in zip(COLORS, names, strict=False):
        (data / color).rename(data / name)
        (data / name / f"{color}-000.png").rename(data / name / f"{script}\x1b[2J'\".png")
    run = sl.train(data, recipe="quick", model="cifar10-simple", epochs=1, seed=1, out=tmp_path / "a")
    shutil.copytree(run.path, tmp_path / script)
    with open_studio(run, tmp_path / "fixes.jsonl") as studio, serve(studio) as address:
        page = open_page(address)
        for path in ("results", "compare", "map", "try", "train"):
            page.goto(f"{address}/{path}")
            if path == "compare":
                page.click(".choices a")
                assert script in page.text_content("#runs")
            elif path == "map":
                page.click("#start-features")
                page.wait_for_selector("#map:not([hidden])")
                playwright.expect(page.locator("#legend")).to_contain_text(names[1])
            elif path == "try":
                page.set_input_files("#file", next((data / names[1]).iterdir()))
                page.wait_for_selector("#nearest li")
                page.click("#show-heat")
                playwright.expect(page.locator("#evidence")).to_contain_text(re.compile(r"“.+”"), timeout=60_000)
                label = str(page.text_content("#label")).rpartition(" · ")[0]
                assert f"“{label}”" in page.text_content("#evidence"), "no pattern of a replacement"
            assert "owned" not in page.title()
            assert page.locator("img[src=x]").count() == 0


@pytest.mark.parametrize(
    ("width", "language", "word", "brightness"),
    [(1280, "en-US", "Slice", "brightness up to"), (390, "zh-CN", "切片", "亮度 ≤")],
)
def test_images_of_a_slice_are_found_from_the_results_and_the_filters(
    open_page: Any, cameras: str, width: int, language: str, word: str, brightness: str
) -> None:
    page = open_page(f"{cameras}/results", width, ready="#slices", locale=language)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing scrolls sideways"
    row = page.locator("#slices tbody tr", has_text="camera old")
    count = row.locator("td").nth(2).inner_text()
    row.locator("th a").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".tile img")
    playwright.expect(page.locator("#count")).to_contain_text(count)
    if width < 640:
        page.locator("#filters summary").click()
    field = page.get_by_label(word)
    assert field.input_value() == "camera old"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    field.focus()
    page.keyboard.press("Home")  # all
    page.wait_for_url(lambda address: "slice=" not in address)
    names = page.locator("select[name=slice] option").all_text_contents()
    assert len(names) > 8, "brightness, sharpness and the cameras"
    assert any(name.startswith(brightness) and name.endswith(")") for name in names), "translated, with its count"


def test_the_order_by_score_begins_with_the_most_unusual_image(open_page: Any, cameras: str) -> None:
    page = open_page(f"{cameras}/?split=test")
    page.select_option("select[name=sort]", "ood")
    page.wait_for_url("**sort=ood**")
    page.wait_for_load_state("networkidle")
    page.keyboard.press("Escape")
    page.locator("#grid").focus()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    scores = []
    for _ in range(5):
        facts = page.locator("#viewer-facts")
        scores.append(float(facts.locator("dt", has_text="Out-of-distribution").locator("+ dd").inner_text()))
        page.keyboard.press("ArrowRight")
    assert scores == sorted(scores, reverse=True)
    assert len({*scores}) > 1


def test_groups_follow_each_other_once_the_images_are_checked(open_page: Any, cameras: str) -> None:
    page = open_page(f"{cameras}/?sort=group")
    page.locator("#check").click()
    page.wait_for_selector("#finding-filter:not([hidden])", timeout=30_000)
    page.wait_for_function("() => document.querySelectorAll('.tile .finding').length > 1")
    tiles = page.locator(".tile")
    assert tiles.nth(0).locator(".finding").count() == tiles.nth(1).locator(".finding").count() == 1
    assert page.locator("select[name=finding]").input_value() == ""
    assert page.locator("select[name=sort]").input_value() == "group"
