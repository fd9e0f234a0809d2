"""Cleaning a data set in a real browser: several labels, keeping, look-alikes, and the folders of the cleaned set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import NO_BROWSER, find_browser
from command import COLORS, draw_classes
from sightline import Dataset
from sightline.studio.contents import Studio, open_studio
from studio_server import VIEWED, expect_text, read_lines, serve

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)]

HOSTILE = "<img src=x onerror=document.title='owned'>"
LABELS = ("car;tree", "car", "", f"tree;{HOSTILE}")


@pytest.fixture
def several(tmp_path: Path, patch: Path) -> Iterator[Studio]:
    root = draw_classes(tmp_path / "images", {"x": (90, 90, 90)}, len(LABELS), 16)
    lines = [f'x/x-{i:03}.png,"{label}"' for i, label in enumerate(LABELS)]
    (root / "labels.csv").write_text("\n".join(["path,label", *lines]) + "\n", encoding="utf-8")
    with open_studio(Dataset(root / "labels.csv"), patch) as opened:
        yield opened


def expect_chips(page: Any, position: int, labels: list[str]) -> None:
    playwright.expect(page.locator(f"#image-{position} .chip")).to_have_text(labels)


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.exhaustive)])
def test_labels_are_chips_that_keys_and_clicks_toggle(
    several: Studio, patch: Path, open_page: Any, scheme: str
) -> None:
    with serve(several) as address:
        page = open_page(address, color_scheme=scheme)
        names = page.locator("#classes [data-to]").evaluate_all("all => all.map(one => one.dataset.to)")
        assert names == [HOSTILE, "car", "tree"]
        expect_chips(page, 0, ["car", "tree"])
        expect_chips(page, 2, [])
        page.keyboard.press("3")  # tree, of the first image: it stays there
        page.keyboard.press("1")
        expect_text(page, "#corrections", "1 correction")
        expect_chips(page, 0, [HOSTILE, "car"])
        assert page.locator("img[src=x]").count() == 0
        assert page.title() != "owned"
        page.keyboard.press("u")
        page.keyboard.press("u")
        expect_text(page, "#corrections", "0 corrections")
        page.keyboard.press("a")
        car = page.locator("#classes [data-to=car]")
        playwright.expect(car).to_have_attribute("aria-pressed", "mixed")
        car.click()
        expect_text(page, "#corrections", "2 corrections")
        playwright.expect(car).to_have_attribute("aria-pressed", "true")
        car.click()
        playwright.expect(page.locator("#canvas")).not_to_contain_text("car")
        expect_text(page, "#corrections", "2 corrections")
        assert [to for _, _, to in read_lines(patch)] == ["tree", ""], "of those that had it"


def test_labels_without_room_are_counted(tmp_path: Path, patch: Path, open_page: Any) -> None:
    names = ("bicyclist", "car", "fence", "pavement", "pedestrian", "pole", "sign", "tree")
    root = draw_classes(tmp_path / "images", {"x": (90, 90, 90)}, 2, 16)
    lines = ["path,label", f'x/x-000.png,"{";".join(names)}"', "x/x-001.png,car;tree"]
    (root / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = Dataset(root / "labels.csv", set=["model.task=multi_label"])
    with open_studio(data, patch) as studio, serve(studio) as address:
        page = open_page(address, width=390)
        page.wait_for_selector("#image-0 .chip")
        chips = page.locator("#image-0 .chip").all_text_contents()
        assert 0 < len(chips) < len(names)
        assert chips == list(names[: len(chips)])
        count = f"+{len(names) - len(chips)}"
        playwright.expect(page.locator("#image-0 .chips")).to_have_attribute("data-more", count)
        expect_chips(page, 1, ["car", "tree"])
        assert page.locator("#image-1 .chips").get_attribute("data-more") is None


def test_a_chip_is_removed_and_another_label_added_beside_the_large_image(
    several: Studio, patch: Path, open_page: Any
) -> None:
    with serve(several) as address:
        page = open_page(address)
        page.keyboard.press("Enter")
        page.wait_for_selector("#viewer[open]")
        page.wait_for_function(VIEWED)  # no image that has not arrived is corrected
        page.get_by_role("button", name="Remove the label car").click()
        expect_text(page, "#corrections", "1 correction")
        page.locator("#viewer #others").get_by_role("button", name="New class").click()
        page.keyboard.type("zebra")
        page.keyboard.press("Enter")
        page.wait_for_selector("#viewer-facts .chip:has-text('zebra')")
        assert read_lines(patch) == [("relabel", "x/x-000.png", "tree;zebra")]
        page.locator("#viewer button.close").click()
        playwright.expect(page.locator("#viewer #actions")).to_have_count(0)
        page.select_option("select[name=label]", "zebra")
        expect_text(page, "#count", "1 image")


def test_what_is_kept_leaves_the_queue_for_every_page_and_after_a_restart(
    tmp_path: Path, patch: Path, open_page: Any
) -> None:
    folder = draw_classes(tmp_path / "twins", COLORS, 3)
    (folder / "red" / "twin.png").write_bytes((folder / "blue" / "blue-001.png").read_bytes())

    def open_queue(address: str, count: str) -> Any:
        page = open_page(address)
        page.click("#check")
        page.wait_for_selector("#finding-filter:not([hidden])")
        page.select_option("select[name=finding]", "conflicting-duplicates")
        expect_text(page, "#count", count)
        playwright.expect(page.locator("select[name=state]")).to_have_value("to-review")
        return page

    with open_studio(Dataset(folder), patch) as studio, serve(studio) as address:
        page, other = open_queue(address, "2 images"), open_page(address)
        page.locator("#others [data-edit=keep]").click()
        page.wait_for_selector(".tile.kept")
        page.keyboard.press("x")
        expect_text(page, "#corrections", "2 corrections")
        other.wait_for_selector(".tile.kept")
        page.keyboard.press("u")
        expect_text(page, "#corrections", "1 correction")
        assert read_lines(patch) == [("keep", "blue/blue-001.png", None)]
    with open_studio(Dataset(folder), patch) as studio, serve(studio) as address:
        page = open_queue(address, "1 image")
        playwright.expect(page.locator(".tile")).to_have_attribute("title", "red/twin.png")
        page.select_option("select[name=finding]", "")
        page.select_option("select[name=state]", "kept")
        expect_text(page, "#count", "1 image")


@pytest.mark.parametrize("language", ["en-US", pytest.param("zh-CN", marks=pytest.mark.exhaustive)])
def test_the_cleaned_set_is_written_as_folders_of_links(
    studio: Studio, patch: Path, open_page: Any, language: str
) -> None:
    with serve(studio) as address:
        page = open_page(address, locale=language)
        page.keyboard.press("x")
        expect_text(page, "#corrections", "1 correction" if language == "en-US" else "1 处更正")
        page.click("#write-folders")
        folder = patch.with_name("fixes-images-1")
        text = {
            "en-US": f"23 images are in {folder}: 23 hard links",
            "zh-CN": f"23 张图片已写入 {folder}\uff1a23 个硬链接",
        }
        expect_text(page, "#folders-state", text[language])
        assert len(list(folder.glob("*/*.png"))) == 23


@pytest.mark.exhaustive
def test_look_alikes_of_a_folder_come_from_a_pretrained_network(
    studio: Studio, open_page: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "cache"))
    with serve(studio) as address:
        page = open_page(address)
        page.click("#check")
        playwright.expect(page.locator("#check-state")).to_contain_text("Checked")
        page.locator("#grid").press("Enter")
        page.click("#show-nearest")
        page.wait_for_selector("#viewer-nearest li")
        playwright.expect(page.locator("#viewer-nearest p")).to_be_empty(timeout=240_000)
        nearest = page.locator("#viewer-nearest li")
        playwright.expect(nearest).to_have_count(8)
        assert nearest.locator("b").all_text_contents()[:4] == ["blue"] * 4
        page.keyboard.press("ArrowRight")
        expect_text(page, "#viewer-path", "blue/blue-001.png")
        playwright.expect(nearest.locator("img[alt='blue/blue-001.png']")).to_have_count(0)
        playwright.expect(nearest).to_have_count(8)
