"""The pages of a run in a real browser: its results, by mouse and by keyboard."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest

import sightline as sl
from browser import NO_BROWSER, find_browser
from command import COLORS, draw_classes
from sightline.studio.contents import Studio, open_studio
from studio_server import LISTED, check_images, serve

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)]

MARGIN = 12  # pixels around the points of the map


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
    page.wait_for_selector(LISTED)
    word = "image" if count == "1" else "images"
    playwright.expect(page.locator("#count")).to_have_text(f"{count} {word}")
    playwright.expect(page.locator("select[name=split]")).to_have_value("test")
    page.locator(".pages a", has_text="Results").click()
    page.wait_for_url(f"{address}/results")
    page.wait_for_selector("#confusion")


def test_sliders_move_the_metrics(page: Any) -> None:
    coverage, abstention = page.locator("#coverage-value"), page.locator("#numbers [data-metric=abstention] b")
    playwright.expect(coverage).to_have_text("100.0%")
    playwright.expect(abstention).to_have_text("0.0%")
    page.locator("#coverage").focus()
    page.keyboard.press("Home")
    page.keyboard.press("PageUp")
    playwright.expect(coverage).not_to_have_text("100.0%")
    playwright.expect(abstention).not_to_have_text("0.0%")
    playwright.expect(page.locator("#threshold")).not_to_have_value("0")
    page.locator("#abstained").click()
    page.wait_for_selector(LISTED)
    playwright.expect(page.locator("input[name=below]")).not_to_have_value("")
    page.go_back()
    page.click("button[data-confidence='0']")
    playwright.expect(coverage).to_have_text("100.0%")


def test_the_threshold_moves_precision_recall_and_abstention_with_their_intervals(
    open_page: Any, run: sl.Run, other: sl.Run, tmp_path: Path
) -> None:
    stored = other.directory.read_predictions("test")
    assert stored is not None
    confidences, is_right = stored.probabilities.max(1), stored.probabilities.argmax(1) == stored.labels
    tenths = min(range(1, 10), key=lambda k: abs(int((confidences >= k / 10).sum()) - len(confidences) / 2))
    is_accepted = confidences >= tenths / 10
    accepted, hits, count = int(is_accepted.sum()), int((is_right & is_accepted).sum()), len(confidences)
    assert 0 < accepted < count
    expected = {"precision": (hits, accepted), "recall": (hits, count), "abstention": (count - accepted, count)}
    with open_studio(other, tmp_path / "fixes.jsonl") as studio, serve(studio) as address:
        page = open_page(f"{address}/results?split=test", ready="#confusion")
        page.focus("#threshold")
        page.keyboard.press("Home")
        for _ in range(tenths):
            page.keyboard.press("PageUp")
        playwright.expect(page.locator("#threshold-value")).to_have_text(f"{tenths / 10:.3f}")
        playwright.expect(page.locator("#accepted")).to_have_text(f"of {accepted} classified images ({count} in all)")
        playwright.expect(page.locator("#curve text").first).to_have_text("0%")
        playwright.expect(page.locator("#curve text").nth(2)).to_have_text("100%")
        playwright.expect(page.locator("#errors")).to_have_text(str(accepted - hits))
        for name, (number, among) in expected.items():
            text = page.locator(f"#numbers [data-metric={name}]").inner_text()
            low, high = binomtest(number, among).proportion_ci(method="wilson")
            values = [float(digits) for digits in re.findall(r"[0-9.]+", text)]
            assert values == pytest.approx([100 * number / among, 100 * low, 100 * high], abs=0.051), name
        recalls = page.locator("#per-class [data-metric=recall] b").all_inner_texts()
        for k, text in enumerate(recalls):
            is_class = stored.labels == k
            recall = (is_right & is_accepted & is_class).sum() / is_class.sum()
            assert float(text.rstrip("%")) == pytest.approx(100 * recall, abs=0.051), "abstentions are misses"
        page.keyboard.press("End")
        playwright.expect(page.locator("#numbers [data-metric=abstention] b")).to_have_text("100.0%")
        playwright.expect(page.locator("#numbers [data-metric=precision] b")).to_have_text("\u2013")  # of no image


@pytest.mark.parametrize("language", ["en-US", pytest.param("zh-CN", marks=pytest.mark.exhaustive)])
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
    playwright.expect(page.locator("#label")).to_contain_text(f"{label} · ")
    playwright.expect(page.locator("#view")).to_have_js_property("width", 32)
    button = page.locator("#start-features")
    playwright.expect(button.or_(page.locator("#nearest img")).filter(visible=True).first).to_be_visible()
    if button.is_visible():  # else another test of this studio was first
        button.click()
    playwright.expect(page.locator("#nearest img")).to_have_count(8)
    for image in page.locator("#nearest img").all():
        playwright.expect(image).to_have_js_property("naturalWidth", 32)
    page.click("#show-heat")
    page.wait_for_selector("#heat:not([hidden])")
    playwright.expect(page.locator("#view")).to_be_hidden()
    playwright.expect(page.locator("#evidence")).not_to_be_empty()
    page.click("#show-heat")
    playwright.expect(page.locator("#view")).to_be_visible()


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
    playwright.expect(page.locator("#view")).to_have_js_property("width", 40)


def test_a_file_that_is_not_an_image_is_reported(open_page: Any, address: str, tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("no image")
    page = open_page(f"{address}/try", ready="#drop")
    page.set_input_files("#file", str(tmp_path / "note.png"))
    playwright.expect(page.locator("#message")).to_contain_text("cannot be classified")
    errors = [error for error in open_page.errors if "400 (Bad Request)" not in error]
    open_page.errors[:] = errors  # the browser logs the refused request


def test_the_camera_is_classified_until_it_stops(open_page: Any, address: str) -> None:
    page = open_page(f"{address}/try", ready="#camera:not([hidden])")
    page.click("#camera")
    playwright.expect(page.locator("#top li")).to_have_count(3)
    page.click("#snap")
    playwright.expect(page.locator("#view")).to_have_js_property("width", 640)
    playwright.expect(page.locator("#live")).to_be_hidden()
    page.wait_for_function("() => document.querySelector('#video').srcObject.getTracks()[0].readyState === 'ended'")
    page.click("#camera")
    page.click("#stop")
    playwright.expect(page.locator("#result")).to_be_hidden()


def test_a_camera_that_is_asked_for_twice_is_started_once(open_page: Any, address: str) -> None:
    page = open_page(f"{address}/try", ready="#camera:not([hidden])")
    page.evaluate(
        """() => {
          const devices = navigator.mediaDevices;
          const ask = devices.getUserMedia.bind(devices);
          window.streams = [];
          devices.getUserMedia = async (options) => {
            window.streams.push(await ask(options));
            return window.streams.at(-1);
          };
          for (let i = 0; i < 2; i++) document.querySelector("#camera").click();
        }"""
    )
    page.click("#stop")
    playwright.expect(page.locator("#live")).to_be_hidden()
    playwright.expect(page.locator("#camera")).to_be_enabled()
    assert page.evaluate("window.streams.map((stream) => stream.getTracks()[0].readyState)") == ["ended"]


def test_the_viewer_shows_a_heat_map(open_page: Any, address: str) -> None:
    page = open_page(address)
    page.keyboard.press("Enter")
    page.click("#show-heat")
    page.wait_for_selector("#viewer-heat:not([hidden])")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#viewer-heat", state="hidden")
    playwright.expect(page.locator("#viewer-image")).to_be_visible()


def test_two_runs_are_compared(open_page: Any, run: sl.Run, other: sl.Run, tmp_path: Path) -> None:
    with open_studio(run, tmp_path / "fixes.jsonl", compare=[other]) as studio, serve(studio) as address:
        page = open_page(f"{address}/compare", 390, ready="#verdict")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        group = page.locator(".group").first
        count = len(group.locator("img").all())
        playwright.expect(group.locator("h2")).to_have_text(f"Only {run.path.name} is right: {count}")
        group.locator("a").click()
        page.wait_for_selector(LISTED)
        playwright.expect(page.locator("#count")).to_have_text(f"{count} images")
        page.click("#filters summary")
        page.click("#clear")
        playwright.expect(page.locator("#count")).to_have_text("60 images")


def read_points(page: Any) -> tuple[NDArray[np.uint32], NDArray[np.float64]]:
    """Return the positions of images in the list, and of their points on the map, in pixels from its left and top."""
    values = page.evaluate("fetch('/map/points?method=pca').then((response) => response.json())")
    ids, x, y = (
        np.frombuffer(base64.b64decode(values[name]), kind)
        for name, kind in (("ids", "<u4"), ("x", "<f4"), ("y", "<f4"))
    )
    bounds = page.locator("#plane").bounding_box()
    width, height = bounds["width"] - 2 * MARGIN, bounds["height"] - 2 * MARGIN
    return ids, np.stack([MARGIN + width * x, MARGIN + height * (1.0 - y)], 1)


def test_the_lasso_selects_the_points_inside_it_alone(open_page: Any, address: str) -> None:
    page = open_page(f"{address}/map", ready="#features:not([hidden]), #map:not([hidden])")
    if page.locator("#start-features").is_visible():
        page.click("#start-features")
    page.wait_for_selector("#map:not([hidden])")
    ids, points = read_points(page)
    bounds = page.locator("#plane").bounding_box()
    sums = np.sort(points.sum(1))
    cuts = [float(sums[i : i + 2].mean()) for i in range(59) if sums[i + 1] - sums[i] > 3]  # pixels, across diagonals
    far = bounds["width"] - 2, bounds["height"] - 2
    in_box = {cut: (points < np.minimum(cut - 1, far)).all(1) for cut in cuts}  # of the lasso below the diagonal
    inside = {cut: points.sum(1) < cut for cut in cuts}
    cut = max(cuts, key=lambda cut: int(in_box[cut].sum() - inside[cut].sum()))
    count = int(inside[cut].sum())
    assert 0 < count < in_box[cut].sum(), "a lasso is no rectangle"
    x, y = np.minimum(cut - 1, far).tolist()
    corners = [(1, 1), (x, 1), (x, cut - x), (cut - y, y), (1, y)]
    for i, (left, top) in enumerate(corners):
        page.mouse.move(bounds["x"] + left, bounds["y"] + top, steps=3)
        if not i:
            page.mouse.down()
    page.mouse.up()
    playwright.expect(page.locator("#chosen")).to_have_text(f"{count} selected")
    page.click("#show-chosen")
    page.wait_for_selector(LISTED)
    playwright.expect(page.locator("#count")).to_have_text(f"{count} images")
    listed = page.evaluate(
        "fetch(`/order${location.search}`).then((answer) => answer.arrayBuffer()).then((b) => [...new Uint32Array(b)])"
    )
    assert sorted(listed) == sorted(ids[inside[cut]].tolist())


def test_points_of_the_map_are_selected_by_lasso_and_by_keyboard(open_page: Any, address: str) -> None:
    page = open_page(f"{address}/map", ready="#features:not([hidden]), #map:not([hidden])")
    if page.locator("#start-features").is_visible():
        page.click("#start-features")
    page.wait_for_selector("#map:not([hidden])")
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
    page.wait_for_selector(LISTED)
    playwright.expect(page.locator("#count")).to_have_text("1 image" if count == "1" else f"{count} images")
    playwright.expect(page.locator("#selection-filter")).to_be_visible()


def test_look_alikes_of_a_large_image_follow_the_list(open_page: Any, address: str) -> None:
    page = open_page(f"{address}/?split=test")
    page.keyboard.press("Enter")
    page.click("#show-nearest")
    playwright.expect(page.locator("#viewer-nearest img")).to_have_count(8)
    nearest = page.locator("#viewer-nearest li").first
    first = str(nearest.get_attribute("title"))
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    playwright.expect(nearest).not_to_have_attribute("title", first)
    playwright.expect(page.locator("#viewer-nearest img")).to_have_count(8)


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
                playwright.expect(page.locator("#runs")).to_contain_text(script)
            elif path == "map":
                page.click("#start-features")
                page.wait_for_selector("#map:not([hidden])")
                playwright.expect(page.locator("#legend")).to_contain_text(names[1])
            elif path == "try":
                page.set_input_files("#file", next((data / names[1]).iterdir()))
                page.wait_for_selector("#nearest li")
                page.click("#show-heat")
                playwright.expect(page.locator("#evidence")).to_contain_text(re.compile(r"“.+”"))
                label = str(page.text_content("#label")).rpartition(" · ")[0]
                evidence = page.locator("#evidence")
                playwright.expect(evidence).to_contain_text(f"“{label}”")  # no pattern of a replacement
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
    page.wait_for_selector(LISTED)
    playwright.expect(page.locator("#count")).to_contain_text(count)
    if width < 640:
        page.locator("#filters summary").click()
    field = page.get_by_label(word)
    playwright.expect(field).to_have_value("camera old")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    field.focus()
    page.keyboard.press("Home")  # all
    page.wait_for_url(lambda address: "slice=" not in address)
    options = page.locator("select[name=slice] option")
    assert options.count() > 8, "brightness, sharpness and the cameras"
    translated = options.filter(has_text=re.compile(rf"^{re.escape(brightness)}.*\)$"))
    playwright.expect(translated.first).to_be_attached()  # with its count


def test_the_order_by_score_begins_with_the_most_unusual_image(open_page: Any, cameras: str) -> None:
    page = open_page(f"{cameras}/?split=test")
    with page.expect_response("**/order?*sort=ood*") as response:
        page.select_option("select[name=sort]", "ood")
    order = np.frombuffer(response.value.body(), "<u4")
    page.wait_for_selector(f"#image-{order[0]}[data-position='0'] img")
    playwright.expect(page.locator(".tile:not(:has(.caption))")).to_have_count(0)
    page.locator("#grid").press("Enter")
    scores = []
    for number in order[:5]:
        page.wait_for_selector(f"#viewer[data-id='{number}']")
        facts = page.locator("#viewer-facts")
        scores.append(float(facts.locator("dt", has_text="Out-of-distribution").locator("+ dd").inner_text()))
        page.keyboard.press("ArrowRight")
    assert scores == sorted(scores, reverse=True)
    assert len({*scores}) > 1


def test_groups_follow_each_other_once_the_images_are_checked(open_page: Any, cameras: str) -> None:
    page = open_page(f"{cameras}/?sort=group")
    check_images(page)
    for position in (0, 1):
        playwright.expect(page.locator(f".tile.finding[data-position='{position}']")).to_have_count(1)
    playwright.expect(page.locator("select[name=finding]")).to_have_value("")
    playwright.expect(page.locator("select[name=sort]")).to_have_value("group")


@pytest.mark.parametrize("language", ["en-US", "zh-CN"])
def test_every_page_shows_its_keys(run_studio: Studio, open_page: Any, language: str) -> None:
    with serve(run_studio) as address:
        page = open_page(address, locale=language)
        links = page.eval_on_selector_all(".pages a", "all => all.map((a) => a.href)")
        assert len(links) >= 5
        for link in links:
            page.goto(link)
            assert page.locator("#keys").count() == 0, "the keys are elements once somebody asks for them"
            for shows in ("key", "button"):
                page.keyboard.press("?") if shows == "key" else page.click("#help")
                playwright.expect(page.locator("#keys")).to_be_visible()
                assert page.locator("#keys dt").count() == page.locator("#keys dd").count() >= 3
                page.keyboard.press("Escape")
                playwright.expect(page.locator("#keys")).to_be_hidden()
