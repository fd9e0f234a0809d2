"""Every page of the studio in a real browser, on a desktop and on a phone: nothing is cut, and headers stay small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sightline as sl
from browser import NO_BROWSER, find_browser
from command import COLORS, draw_classes
from screenshots import Screenshots
from sightline import Dataset
from sightline.studio.contents import Studio, open_studio
from studio_server import check_images, serve
from synthetic_images import encode_png, write_files
from task_images import LABEL_COLORS, write_task

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)]

Looks = list[tuple[int, str, str]]  # widths, languages and color schemes
LOOKS: Looks = [(1280, "zh-CN", "dark"), (320, "en-US", "light")]  # WCAG 2.2, 1.4.10: no page is wider than 320
OTHER_LOOKS: Looks = [(1280, "en-US", "light"), (390, "zh-CN", "dark")]
DRAWN = "img[src], .tile img, #empty:not([hidden]), main h2, main section"
MOST_HEADER = {1280: 64, 390: 120, 320: 120}  # pixels of 800
LIST_CUT = """
() => {
  const cut = [];
  const describe = (e) => `${e.tagName} #${e.id} "${(e.textContent || e.name || "").trim().slice(0, 30)}"`;
  const scrolls = (e) => ["auto", "scroll"].includes(getComputedStyle(e).overflowX);
  const isInScroller = (e) => e !== null && (scrolls(e) || isInScroller(e.parentElement));
  for (const e of document.querySelectorAll("body *")) {
    if (!e.checkVisibility() || e.closest(".skip, .hidden, svg")) continue;
    const { left, right, width, height } = e.getBoundingClientRect();
    const style = getComputedStyle(e);
    if (!width || !height || style.display === "inline") continue;
    const isOutside = left < -1 || right > innerWidth + 1;
    if (isOutside && !isInScroller(e.parentElement)) cut.push(`outside the page: ${describe(e)}`);
    if (e.tagName === "SELECT") {
      const text = document.createElement("canvas").getContext("2d");
      text.font = style.font;
      const needed = Math.max(...[...e.options].map((option) => text.measureText(option.textContent).width));
      const room = e.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
      if (needed > room) cut.push(`an option is cut: ${e.name}`);
    } else if (!["IMG", "CANVAS", "VIDEO", "INPUT"].includes(e.tagName) && e.clientWidth) {
      const isMeant = style.textOverflow === "ellipsis" || e.matches(".scroll, .pages");
      if (!isMeant && e.scrollWidth > e.clientWidth + 1) cut.push(`wider than its box: ${describe(e)}`);
    }
  }
  return cut;
}
"""
IS_ELLIPSIS = "selector => { const e = document.querySelector(selector); return e.scrollWidth > e.clientWidth; }"


@pytest.fixture(scope="module")
def patch_far_away(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of corrections whose path is longer than a page is wide."""
    folder = tmp_path_factory.mktemp("project") / "/".join(["a folder of a network drive"] * 6)
    folder.mkdir(parents=True)
    return folder / "cats-and-dogs-of-the-second-round-fixes.jsonl"


@pytest.fixture(scope="module")
def split_images(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A data set with splits and many classes, with long names."""
    classes = {f"class of many words {i}": (i * 9, 200 - i * 9, 60) for i in range(9)} | COLORS
    folder = tmp_path_factory.mktemp("data") / ("a data set with quite a long name of its own" * 2)
    for split in ("train", "validation", "test"):
        draw_classes(folder / split, classes, 2)
    return Dataset(folder)


@pytest.fixture(params=[LOOKS, pytest.param(OTHER_LOOKS, marks=pytest.mark.exhaustive)], ids=["some", "others"])
def looks(request: pytest.FixtureRequest) -> Looks:
    return list(request.param)


def check_pages(studio: Studio, open_page: Any, looks: Looks) -> None:
    with serve(studio, token="t" * 32) as address:
        for width, language, scheme in looks:
            page = open_page(address, width, ready=DRAWN, locale=language, color_scheme=scheme)
            links = page.eval_on_selector_all(".pages a", "all => all.map((a) => a.href)")
            assert len(links) >= 4
            for link in links:
                page.goto(link, wait_until="networkidle")
                page.wait_for_selector(DRAWN)
                open_page.screenshots.take(page)
                where = f"{link} at {width} in {language}, {scheme}"
                assert page.evaluate(LIST_CUT) == [], where
                assert page.evaluate("document.documentElement.scrollWidth") <= width, where
                assert page.locator("header").bounding_box()["height"] <= MOST_HEADER[width], where
                here = page.locator(".pages [aria-current]").bounding_box()
                assert here["x"] >= 0, where
                assert here["x"] + here["width"] <= width, where
            page.close()


def test_no_page_of_a_run_is_cut(
    run: sl.Run, other: sl.Run, patch_far_away: Path, open_page: Any, looks: Looks
) -> None:
    with open_studio(run, patch_far_away, compare=[other]) as studio:
        check_pages(studio, open_page, looks)


@pytest.fixture(scope="module")
def run_of_long_labels(tmp_path_factory: pytest.TempPathFactory) -> sl.Run:
    """A run with several labels per image, whose names are long."""
    root = tmp_path_factory.mktemp("labels")
    source, settings = write_task("multi_label", root / "images", 90)
    text = source.read_text(encoding="utf-8")
    for color in LABEL_COLORS:
        text = text.replace(color, f"many words for {color}")
    source.write_text(text, encoding="utf-8")
    groups = "split.group=column:scene"
    return sl.train(source, epochs=1, seed=1, out=root / "run", set=[*settings, "split.test=0.4", groups])


@pytest.mark.exhaustive
def test_no_page_of_several_labels_is_cut(
    run_of_long_labels: sl.Run, patch_far_away: Path, open_page: Any, looks: Looks
) -> None:
    with open_studio(run_of_long_labels, patch_far_away) as studio:
        check_pages(studio, open_page, looks)
        with serve(studio) as address:
            page = open_page(f"{address}/results", 390, ready="#label-pairs")
            for table in ("#per-class", "#label-pairs"):
                first, second = (page.locator(f"{table} tbody tr").nth(i).bounding_box() for i in range(2))
                assert first["height"] == pytest.approx(second["height"], abs=60), "no row is a column of letters"
                assert first["height"] < 200


@pytest.mark.exhaustive
def test_no_page_of_grades_is_cut(graded_run: sl.Run, patch_far_away: Path, open_page: Any, looks: Looks) -> None:
    with open_studio(graded_run, patch_far_away) as studio:
        check_pages(studio, open_page, looks)


def test_no_page_of_a_run_of_masks_is_cut(
    mask_run: sl.Run, other_mask_run: sl.Run, patch_far_away: Path, open_page: Any, looks: Looks
) -> None:
    with open_studio(mask_run, patch_far_away, compare=[other_mask_run]) as studio:
        check_pages(studio, open_page, looks)


def test_no_page_of_images_to_label_is_cut(
    split_images: Dataset, patch_far_away: Path, open_page: Any, looks: Looks
) -> None:
    with open_studio(split_images, patch_far_away) as studio:
        studio.corrections.apply([0], "drop")  # of which the page Train says that they are there
        check_pages(studio, open_page, looks)


@pytest.mark.parametrize("width", [375, 390])
def test_on_a_phone_an_image_without_a_class_says_so_and_a_class_can_be_added_to_many(
    tmp_path: Path, patch: Path, open_page: Any, width: int
) -> None:
    folder = write_files(tmp_path / "photos", {f"{i}.png": encode_png(i) for i in range(4)})
    classes = [f"animal {i}" for i in range(12)]
    with open_studio(Dataset(folder), patch, classes=classes) as studio, serve(studio) as address:
        page = open_page(address, width)
        playwright.expect(page.locator(".caption").first).to_have_text("no class yet")
        assert not page.evaluate(IS_ELLIPSIS, ".caption")
        page.dblclick(".tile")
        playwright.expect(page.locator("#viewer-facts")).to_contain_text("no class yet")
        page.keyboard.press("Escape")
        box = page.locator("#another").bounding_box()
        center = [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2]
        assert page.evaluate("([x, y]) => document.elementFromPoint(x, y)?.id", center) == "another"


def test_on_a_phone_the_names_of_findings_are_whole(tmp_path: Path, patch: Path, open_page: Any) -> None:
    files = {f"{name}/{i}.png": encode_png(i) for name, numbers in (("a", (1, 2)), ("b", (1, 3))) for i in numbers}
    folder = write_files(tmp_path / "photos", files)
    with open_studio(Dataset(folder), patch) as studio, serve(studio) as address:
        page = open_page(address, 390)
        page.click("#filters summary")
        check_images(page)
        playwright.expect(page.locator("[name=finding]")).to_contain_text("identical files, different classes (2)")
        page.focus("[name=finding]")
        assert page.evaluate(LIST_CUT) == []


def test_a_screenshot_shows_the_whole_page_and_says_how(
    run_studio: Studio, open_page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGHTLINE_SCREENSHOTS", str(tmp_path / "pages"))
    with serve(run_studio) as address:
        page = open_page(f"{address}/results", 390, ready="#confusion", locale="zh-CN", color_scheme="dark")
        Screenshots("test_of a[page]").take(page)
        assert page.viewport_size == {"width": 390, "height": 800}
    with Image.open(tmp_path / "pages" / "of-a-page-01-results-390-dark-zh-CN.png") as image:
        assert image.width == 390
        assert image.height > 1000
        assert np.asarray(image.convert("L")).mean() < 80, "it is dark"


def test_the_bars_leave_room_for_the_images(split_images: Dataset, patch_far_away: Path, open_page: Any) -> None:
    with open_studio(split_images, patch_far_away) as studio, serve(studio) as address:
        phone = open_page(address, 390, has_touch=True, is_mobile=True)
        buttons = [button.bounding_box() for button in phone.locator("#others button").all()]
        assert len(buttons) >= 6  # a new class, drop, restore and three splits
        assert max(box["x"] + box["width"] for box in buttons) <= 390
        assert phone.locator("#grid").bounding_box()["height"] > 0.5 * 800
        page = open_page(address)
        assert page.evaluate(IS_ELLIPSIS, ".file code span")
        assert not page.evaluate(IS_ELLIPSIS, ".file code b"), "the name of the file is whole"
        assert page.get_attribute(".file code", "title") == str(patch_far_away)
