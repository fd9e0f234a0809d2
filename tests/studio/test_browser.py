"""The studio in a real browser: what its user sees and does, by mouse, keyboard and touch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from browser import NO_BROWSER, find_browser
from command import COLORS, draw_classes
from sightline import Dataset
from sightline.data.types import ImageRecord, Index
from sightline.preprocessing import PreprocessingSpec
from sightline.studio.checks import BackgroundCheck
from sightline.studio.contents import Studio, open_studio
from sightline.studio.corrections import Corrections
from sightline.studio.folder_export import FolderExport
from sightline.studio.library import ImagePrediction, Library
from sightline.studio.thumbnails import Thumbnails
from studio_server import LISTED, expect_text, read_lines, serve

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)]

MOST_ELEMENTS = {(1280, 800): 300, (1920, 1080): 400}  # of the document, head, filters and dialogs included, by window
MANY = 100_000
FEW = "(most) => document.querySelectorAll('*').length < most"  # once those that were in view before are gone
FAR_DOWN = """() => {
  const shown = [...document.querySelectorAll(".tile:has(img)")];
  return shown.length > 10 && shown.every((tile) => tile.dataset.position > 10_000);
}"""


def expect_labels(page: Any, labels: list[str]) -> None:
    playwright.expect(page.locator(".tile .caption")).to_have_text(labels)


def test_labels_are_corrected_by_keyboard_alone(studio: Studio, patch: Path, open_page: Any) -> None:
    with serve(studio) as address:
        page = open_page(address)
        expect_text(page, "#count", "24 images")
        page.keyboard.press("3")  # red, and on to the next
        page.keyboard.press("ArrowRight")
        page.keyboard.press("x")
        expect_text(page, "#corrections", "2 corrections")
        assert read_lines(patch) == [("relabel", "blue/blue-000.png", "red"), ("drop", "blue/blue-002.png", None)]
        page.keyboard.press("u")
        expect_text(page, "#corrections", "1 correction")
        assert read_lines(patch) == [("relabel", "blue/blue-000.png", "red")]
        page.keyboard.press("Home")
        for _ in range(2):
            page.keyboard.press("Shift+ArrowRight")
        expect_text(page, "#selection", "3 selected")
        page.keyboard.press("2")
        expect_text(page, "#corrections", "3 corrections")
        assert [to for _, _, to in read_lines(patch)] == ["green"] * 3
        page.keyboard.press("/")
        page.keyboard.type("red-00")
        expect_text(page, "#count", "8 images")
        page.keyboard.press("Escape")
        page.keyboard.press("a")
        page.keyboard.press("x")
        expect_text(page, "#corrections", "11 corrections")
        playwright.expect(page.locator(".tile.dropped")).to_have_count(8)
        page.keyboard.press("?")
        playwright.expect(page.locator("#keys")).to_be_visible()
        page.keyboard.press("Escape")
        playwright.expect(page.locator("#keys")).to_be_hidden()


def test_x_on_all_images_looks_at_those_that_are_not_in_view(tmp_path: Path, patch: Path, open_page: Any) -> None:
    folder = draw_classes(tmp_path / "many", COLORS, 200, 16)
    with open_studio(Dataset(folder), patch) as studio, serve(studio) as address:
        studio.corrections.apply(range(400), "relabel", "red")  # more than a page learns of at once
        studio.corrections.apply(range(400, 599), "drop")
        studio.corrections.apply([599], "relabel", "blue")
        page = open_page(f"{address}/?text=red-")
        expect_text(page, "#count", "200 images")
        page.keyboard.press("a")
        page.keyboard.press("x")  # the last image is not dropped
        playwright.expect(page.locator("select[name=state] [value=dropped]")).to_have_text("dropped (200)")
        page.keyboard.press("a")
        page.keyboard.press("x")
        playwright.expect(page.locator("select[name=state] [value=dropped]")).to_have_text("dropped (0)")
        assert read_lines(patch)[400:] == [("relabel", "red/red-199.png", "blue")]


def test_filters_stay_in_the_address(studio: Studio, open_page: Any) -> None:
    with serve(studio) as address:
        page = open_page(address)
        page.select_option("select[name=label]", "green")
        expect_text(page, "#count", "8 images")
        expect_labels(page, ["green"] * 8)
        assert page.url.endswith("?label=green")
        page.reload()
        page.wait_for_selector(LISTED)
        expect_text(page, "#count", "8 images")
        playwright.expect(page.locator("select[name=label]")).to_have_value("green")
        page.fill("input[name=text]", "nothing")
        page.wait_for_selector("#empty:not([hidden])")
        page.click("#clear")
        expect_text(page, "#count", "24 images")


def test_an_image_is_shown_large_and_a_new_class_is_named(studio: Studio, patch: Path, open_page: Any) -> None:
    with serve(studio) as address:
        page = open_page(address)
        page.keyboard.press("Enter")
        expect_text(page, "#viewer-path", "blue/blue-000.png")
        playwright.expect(page.locator("#viewer-image")).to_have_js_property("naturalWidth", 32)
        page.keyboard.press("ArrowRight")
        expect_text(page, "#viewer-path", "blue/blue-001.png")
        page.keyboard.press("a")
        expect_text(page, "#selection", "blue/blue-001.png")
        page.keyboard.press("Escape")
        playwright.expect(page.locator("#viewer")).to_be_hidden()
        page.click("#another")
        page.keyboard.type("purple")
        page.keyboard.press("Enter")
        expect_text(page, "#corrections", "1 correction")
        assert read_lines(patch) == [("relabel", "blue/blue-001.png", "purple")]
        playwright.expect(page.locator("#classes [data-to=purple]")).to_have_count(1)
        page.locator("#classes [data-to=purple]").click()
        expect_text(page, "#corrections", "2 corrections")


def test_two_pages_see_what_each_other_does(studio: Studio, patch: Path, open_page: Any) -> None:
    with serve(studio) as address:
        first, second = open_page(address), open_page(address)
        first.keyboard.press("2")
        second.wait_for_selector(".tile.corrected")
        second.keyboard.press("End")
        second.keyboard.press("x")
        expect_text(second, "#corrections", "2 corrections")
        first.keyboard.press("u")
        expect_text(second, "#corrections", "1 correction")
        assert read_lines(patch) == [("drop", "red/red-007.png", None)]


def test_the_server_restarts_in_the_middle(colors: Path, patch: Path, open_page: Any) -> None:
    with open_studio(Dataset(colors), patch) as studio, serve(studio) as address:
        page = open_page(address)
        page.keyboard.press("2")
        expect_text(page, "#corrections", "1 correction")
    page.keyboard.press("3")
    playwright.expect(page.locator("#message")).to_contain_text("sent again")
    page.goto("about:blank")  # before it is sent again to the next studio, which refuses it
    port = int(address.rpartition(":")[2])
    with open_studio(Dataset(colors), patch) as studio, serve(studio, port):
        page.goto(address)
        page.wait_for_selector(LISTED)
        page.wait_for_selector(".tile.corrected")
        page.keyboard.press("3")
        playwright.expect(page.locator("#image-0 .caption")).to_have_text("red")
        expect_text(page, "#corrections", "1 correction")
        assert len(read_lines(patch)) == 1


def test_undo_goes_on_after_a_reload_and_a_restart(colors: Path, patch: Path, open_page: Any) -> None:
    with open_studio(Dataset(colors), patch) as studio, serve(studio) as address:
        page = open_page(address)
        playwright.expect(page.locator("#undo")).to_be_disabled()
        page.keyboard.press("2")
        page.keyboard.press("End")
        page.keyboard.press("x")
        expect_text(page, "#corrections", "2 corrections")
        page.reload()
        page.wait_for_selector(LISTED)
        page.keyboard.press("u")
        expect_text(page, "#corrections", "1 correction")
        page.keyboard.press("Home")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("3")
        expect_text(page, "#corrections", "2 corrections")
        page.goto("about:blank")
    with open_studio(Dataset(colors), patch) as studio, serve(studio) as address:
        page = open_page(address)
        page.keyboard.press("End")
        page.wait_for_selector("#undo:enabled")
        for left, image in ((1, 1), (0, 0)):  # the last first, and the page shows what it was
            page.keyboard.press("u")
            expect_text(page, "#corrections", "1 correction" if left else "0 corrections")
            playwright.expect(page.locator(f"#image-{image}")).to_have_class(re.compile(r"\bcursor\b"))
            assert len(read_lines(patch)) == left
        playwright.expect(page.locator("#undo")).to_be_disabled()


def test_the_corrected_list_is_downloaded(studio: Studio, open_page: Any) -> None:
    with serve(studio) as address:
        page = open_page(address)
        page.keyboard.press("2")
        page.keyboard.press("x")
        expect_text(page, "#corrections", "2 corrections")
        with page.expect_download() as download:
            page.click("a[download]")
        lines = Path(download.value.path()).read_text(encoding="utf-8").splitlines()
    assert lines[:3] == ["path,label", "blue/blue-000.png,green", "blue/blue-002.png,blue"]
    assert len(lines) == 24


@pytest.mark.parametrize(
    ("language", "finding", "count", "colon"),
    [
        ("en-US", "identical files, different classes", "2 images", ": "),
        ("zh-CN", "文件相同但类别不同", "2 张图片", "\uff1a"),
    ],
)
def test_the_checks_become_a_queue(
    tmp_path: Path, patch: Path, open_page: Any, language: str, finding: str, count: str, colon: str
) -> None:
    folder = draw_classes(tmp_path / "twins", COLORS, 3)
    (folder / "red" / "twin.png").write_bytes((folder / "blue" / "blue-001.png").read_bytes())
    with open_studio(Dataset(folder), patch) as studio, serve(studio) as address:
        page = open_page(address, locale=language)
        page.click("#check")
        page.wait_for_selector("#finding-filter:not([hidden])")
        page.select_option("select[name=finding]", "conflicting-duplicates")
        expect_text(page, "select[name=finding] option:checked", f"{finding} (2)")
        expect_text(page, "#count", count)
        expect_labels(page, ["blue", "red"])
        playwright.expect(page.locator("select[name=sort]")).to_have_value("group")
        playwright.expect(page.locator(".tile.finding")).to_have_count(2)
        page.keyboard.press("Enter")
        named = f"{finding}{colon}blue/blue-001.png, red/twin.png"
        playwright.expect(page.locator("#viewer-facts dd").last).to_have_text(named)


@pytest.mark.parametrize(("language", "fact"), [("en-US", "several frames: 3 frames"), ("zh-CN", "多帧\uff1a3 帧")])
def test_the_reason_of_a_finding_is_in_the_language_of_the_page(
    tmp_path: Path, patch: Path, open_page: Any, language: str, fact: str
) -> None:
    from PIL import Image

    long = "a class whose name is longer than a list of classes is wide"
    folder = draw_classes(tmp_path / "data", {long: (9, 200, 9), "b": (200, 9, 9)}, 2)
    frames = [Image.new("RGB", (40, 30), (60 * i, 90, 20)) for i in range(3)]
    frames[0].save(folder / "b" / "moving.gif", save_all=True, append_images=frames[1:])
    with open_studio(Dataset(folder), patch) as studio, serve(studio) as address:
        page = open_page(address, locale=language)
        page.select_option("select[name=label]", long)
        playwright.expect(page.locator("select[name=label]")).to_have_attribute("title", f"{long} (2)")
        page.select_option("select[name=label]", "b")
        page.click("#check")
        page.wait_for_selector("#finding-filter:not([hidden])")
        page.select_option("select[name=finding]", "animated")
        page.wait_for_selector(".tile.finding[title='b/moving.gif']")
        page.locator("#grid").press("Enter")
        playwright.expect(page.locator("#viewer-facts")).to_contain_text(fact)


def test_an_image_that_cannot_be_shown_large_says_so(tmp_path: Path, patch: Path, open_page: Any) -> None:
    folder = draw_classes(tmp_path / "data", COLORS, 2)
    broken = folder / "blue" / "blue-000.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with open_studio(Dataset(folder), patch) as studio, serve(studio) as address:
        page = open_page(address)
        page.keyboard.press("Enter")
        playwright.expect(page.locator("#viewer-image")).to_have_attribute("alt", "cannot be shown")
        page.keyboard.press("ArrowRight")
        playwright.expect(page.locator("#viewer-image")).to_have_attribute("alt", "blue, blue/blue-001.png")
    open_page.errors[:] = [error for error in open_page.errors if "404" not in error]  # of the image


def test_a_hostile_name_is_text(tmp_path: Path, patch: Path, open_page: Any) -> None:
    label = "<img src=x onerror=document.title='owned'>"
    folder = draw_classes(tmp_path / "data", {label: (9, 9, 9), "b": (200, 9, 9)}, 2)
    with open_studio(Dataset(folder), patch) as studio, serve(studio) as address:
        page = open_page(address)
        expect_labels(page, [label] * 2 + ["b"] * 2)
        page.keyboard.press("Enter")
        page.wait_for_selector("#viewer[open]")
        assert page.title() == "data · Sightline Studio"
        assert page.locator("img[src=x]").count() == 0


@pytest.mark.parametrize("language", ["en-US", pytest.param("zh-CN", marks=pytest.mark.exhaustive)])
def test_a_phone_labels_by_touch(studio: Studio, patch: Path, open_page: Any, language: str) -> None:
    with serve(studio) as address:
        page = open_page(address, width=390, has_touch=True, is_mobile=True, locale=language)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, "nothing scrolls sideways"
        for tile in page.locator(".tile").all()[:2]:
            tile.tap()
        page.locator("#classes [data-to=red]").tap()
        expect_text(page, "#corrections", "2 corrections" if language == "en-US" else "2 处更正")
        assert len(read_lines(patch)) == 2
        assert page.evaluate("document.documentElement.lang") == ("en" if language == "en-US" else "zh-CN")


def draw_studio(folder: Path, images: int, classes: int) -> Studio:
    """Open a studio of predicted images in memory that are one file."""
    from PIL import Image

    Image.new("RGB", (40, 30), (20, 90, 200)).save(folder / "one.png")
    content = (folder / "one.png").read_bytes()
    records = tuple(
        ImageRecord(f"{i % classes}/{i:06}.png", f"{i:064x}", f"class {i % classes}", None, 40, 30)
        for i in range(images)
    )
    index = Index("many", records, (), lambda _: content)
    corrections = Corrections(folder / "fixes.jsonl", index)
    predictions = {
        i: ImagePrediction(f"class {(i + (i % 7 == 0)) % classes}", (i * 37 % 1000) / 1000, 0.5, float(i % 997))
        for i in range(images)
    }
    slices = {f"brightness {k}": range(k, images, 4) for k in range(4)} | {"camera old": range(0, images, 5)}
    library = Library(index, corrections, None, predictions, slices=slices)
    check = BackgroundCheck(index, library, Dataset(folder).config.input)
    thumbnails = Thumbnails(index, PreprocessingSpec(8, 8))
    return Studio("many", library, corrections, thumbnails, check, FolderExport(index, corrections))


def test_a_thousand_classes_are_few_elements(tmp_path: Path, patch: Path, open_page: Any) -> None:
    studio = draw_studio(tmp_path, 2000, 1000)
    with serve(studio) as address:
        page = open_page(address)
        assert page.locator("*").count() < 350
        page.focus("select[name=label]")
        page.select_option("select[name=label]", "class 777")
        expect_text(page, "#count", "2 images")
        page.keyboard.press("Escape")
        assert page.locator("*").count() < 350
        playwright.expect(page.locator("select[name=label]")).to_have_value("class 777")
        page.locator("#another", has_text="Other class…").click()
        page.keyboard.type("class 99")
        suggested = page.locator("#known-classes option").all_text_contents()
        assert suggested == [f"class {i}" for i in sorted(map(str, range(1000))) if i.startswith("99")]
        page.keyboard.type("8")
        page.keyboard.press("Enter")
        expect_text(page, "#corrections", "1 correction")
        assert read_lines(tmp_path / "fixes.jsonl") == [("relabel", "777/000777.png", "class 998")]
        expect_text(page, "select[name=label] option:checked", "class 777 (1)")
        assert page.locator("#classes button").count() == 50
        page.click("#clear")
        expect_text(page, "#count", "2,000 images")
        playwright.expect(page.locator("select[name=label]")).to_have_value("")
    studio.library.close()


def test_a_thousand_classes_are_labeled_by_name(tmp_path: Path, patch: Path, open_page: Any) -> None:
    folder = draw_classes(tmp_path / "drawn", COLORS, 2) / "red"
    names = [f"class {i}" for i in range(1000)]
    with open_studio(Dataset(folder), patch, classes=names) as studio, serve(studio) as address:
        page = open_page(f"{address}/label", ready="#asked:not([hidden])")
        page.wait_for_function("() => document.querySelector('#image').complete")
        playwright.expect(page.locator("#choices button")).to_have_count(50)
        path = page.text_content("#path")
        page.keyboard.press("n")
        page.keyboard.type("class 997")
        page.keyboard.press("Enter")
        playwright.expect(page.locator("#progress")).to_contain_text("1 labeled")
        assert read_lines(patch) == [("relabel", path, "class 997")]


def test_a_hundred_thousand_images_scroll_with_few_elements(tmp_path: Path, open_page: Any) -> None:
    studio = draw_studio(tmp_path, MANY, 10)
    with serve(studio) as address:
        page = open_page(address)
        expect_text(page, "#count", "100,000 images")
        page.keyboard.press("End")
        for (width, height), most in reversed(MOST_ELEMENTS.items()):
            page.set_viewport_size({"width": width, "height": height})
            for position, key in ((MANY - 1, "Home"), (0, "End")):  # what was in view still is at another size
                page.wait_for_selector(f"#image-{position} img")
                page.wait_for_function(FEW, arg=most)
                page.keyboard.press(key)
            page.wait_for_selector(f"#image-{MANY - 1} img")
        for (width, height), most in reversed(MOST_ELEMENTS.items()):
            page.set_viewport_size({"width": width, "height": height})
            page.evaluate("document.querySelector('#grid').scrollTop = 1e6")
            page.wait_for_function(FAR_DOWN)
            page.wait_for_function(FEW, arg=most)
        page.select_option("select[name=sort]", "confidence")
        page.select_option("select[name=state]", "wrong")
        expect_text(page, "#count", "14,286 images")
        page.wait_for_function("() => document.querySelectorAll('.tile.wrong .caption').length > 10")
        captions = page.locator(".tile .caption").all_text_contents()
        values = [int(re.findall(r"(\d+)%", text)[0]) for text in captions]
        assert values == sorted(values)
        page.select_option("select[name=state]", "")
        page.select_option("select[name=slice]", "brightness 3")
        expect_text(page, "#count", "25,000 images")
        page.select_option("select[name=sort]", "ood")
        first = 996 + 3 * 997  # the first with the largest score
        page.wait_for_selector(f"#image-{first}[data-position='0'] img")
        page.select_option("select[name=sort]", "group")
        expect_text(page, "#count", "25,000 images")
        page.wait_for_function(FEW, arg=most)
    studio.library.close()
