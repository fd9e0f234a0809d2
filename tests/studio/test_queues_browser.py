"""Working through a run in a real browser: selections, splits, orders, queues, and runs of several labels."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import sightline as sl
from browser import NO_BROWSER, find_browser
from command import COLORS, draw_classes
from sightline import Dataset
from sightline.studio.contents import Studio, open_studio
from sightline.studio.query import Query
from studio_server import LISTED, VIEWED, check_images, expect_text, read_lines, serve

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)]

MOST_ELEMENTS = 400  # of the document at 1280x800, with all filters of a run, its findings and the large view


def test_space_selects_single_images_that_are_corrected_together(studio: Studio, patch: Path, open_page: Any) -> None:
    with serve(studio) as address:
        page = open_page(address)
        page.keyboard.press("Space")
        expect_text(page, "#selection", "1 selected")
        for _ in range(2):
            page.keyboard.press("ArrowRight")
        page.keyboard.press("Space")
        expect_text(page, "#selection", "2 selected")
        playwright.expect(page.locator(".tile[aria-selected=true]")).to_have_count(2)
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Space")
        page.keyboard.press("Space")  # takes it out again
        expect_text(page, "#selection", "2 selected")
        page.keyboard.press("3")
        expect_text(page, "#corrections", "2 corrections")
    assert read_lines(patch) == [("relabel", f"blue/blue-00{i}.png", "red") for i in (0, 2)]


def test_images_are_moved_to_another_split(tmp_path: Path, patch: Path, open_page: Any) -> None:
    for split in ("train", "test"):
        draw_classes(tmp_path / "images" / split, COLORS, 3)
    with open_studio(Dataset(tmp_path / "images"), patch) as studio, serve(studio) as address:
        page = open_page(f"{address}/?split=train&label=red")
        expect_text(page, "#count", "3 images")
        page.keyboard.press("a")
        page.click("button[data-edit=move][data-to=test]")
        expect_text(page, "#corrections", "3 corrections")
        page.select_option("select[name=split]", "test")
        expect_text(page, "#count", "6 images")
        page.keyboard.press("u")
        expect_text(page, "#corrections", "0 corrections")
    assert read_lines(patch) == []


def test_the_order_by_disagreement_begins_with_the_least_likely_label(run_studio: Studio, open_page: Any) -> None:
    expected = run_studio.library.list_ids(Query(sort="disagreement"))
    rows = run_studio.library.describe(expected[:3])
    probabilities = [row["label_probability"] for row in rows]
    assert probabilities == sorted(probabilities)
    assert expected != run_studio.library.list_ids(Query())
    with serve(run_studio) as address:
        page = open_page(address)
        page.select_option("select[name=sort]", "disagreement")
        for position, image in enumerate(expected[:3]):
            page.wait_for_selector(f"#image-{image}[data-position='{position}'] img")
        assert page.url.endswith("?sort=disagreement")


def test_predictions_are_filtered_by_class_and_by_a_confidence_that_is_typed(
    run_studio: Studio, open_page: Any
) -> None:
    rows = run_studio.library.describe(run_studio.library.list_ids(Query()))
    label = max(COLORS, key=lambda color: sum(row["predicted"] == color for row in rows))
    predicted = sorted((row for row in rows if row["predicted"] == label), key=lambda row: float(row["confidence"]))
    assert 1 < len(predicted) < len(rows)
    confidences = [float(row["confidence"]) for row in predicted]
    count = max(range(1, len(predicted)), key=lambda i: confidences[i] - confidences[i - 1])  # where the gap is largest
    limit = f"{(confidences[count - 1] + confidences[count]) / 2:.6f}"
    assert confidences[count - 1] < float(limit) < confidences[count]
    with serve(run_studio) as address:
        page = open_page(address)
        page.select_option("select[name=predicted]", label)
        expect_text(page, "#count", f"{len(predicted)} images")
        page.focus("input[name=below]")
        page.keyboard.type(limit)
        for _ in range(2):  # the second time from the address
            expect_text(page, "#count", f"{count} image" + "s" * (count > 1))
            playwright.expect(page.locator("select[name=predicted]")).to_have_value(label)
            playwright.expect(page.locator("input[name=below]")).to_have_value(limit)
            playwright.expect(page.locator(".tile")).to_have_count(count)
            titles = page.locator(".tile").evaluate_all("all => all.map((tile) => tile.title)")
            assert sorted(titles) == sorted(row["path"] for row in predicted[:count])
            page.reload()
            page.wait_for_selector(LISTED)
        page.fill("input[name=below]", "87")  # no fraction
        expect_text(page, "#count", f"{len(predicted)} images")
        playwright.expect(page.locator("input[name=below]:out-of-range")).to_have_count(1)
        playwright.expect(page.locator("#message")).to_be_hidden()


def test_likely_label_errors_are_a_queue_that_empties(run: sl.Run, tmp_path: Path, patch: Path, open_page: Any) -> None:
    path = tmp_path / "copy"
    shutil.copytree(run.path, path)
    copy = sl.Run(path)
    rows = [row for row in copy.directory.read_data() or () if row.label == "red"][:3]
    reason = "probably blue (0.97), according to a classifier trained without this image"
    line = {"action": "relabel", "label": "red", "to": "blue", "reason": reason}
    copy.directory.write_label_issues([line | {"path": row.path, "sha256": row.sha256} for row in rows])
    with open_studio(copy, patch) as studio, serve(studio) as address:
        page = open_page(address)
        page.select_option("select[name=finding]", "suspected-label-errors")
        expect_text(page, "#count", "3 images")
        playwright.expect(page.locator("select[name=state]")).to_have_value("to-review")
        page.keyboard.press("Home")
        page.keyboard.press("Enter")
        playwright.expect(page.locator("#viewer-path")).to_have_text(rows[0].path)
        playwright.expect(page.locator("#viewer-facts")).to_contain_text("0.97")
        page.wait_for_function(VIEWED)  # before, nobody can keep it
        page.keyboard.press("k")
        expect_text(page, "#corrections", "1 correction")
        page.keyboard.press("Escape")
        page.goto(f"{address}/?finding=suspected-label-errors&state=to-review&sort=group")
        page.wait_for_selector(LISTED)
        expect_text(page, "#count", "2 images")
        page.keyboard.press("Home")
        page.keyboard.press("1")  # blue, and on to the next
        expect_text(page, "#corrections", "2 corrections")
        page.keyboard.press("x")
        expect_text(page, "#corrections", "3 corrections")
        page.reload()
        page.wait_for_selector("#empty:not([hidden])")
    assert read_lines(patch) == [
        ("keep", rows[0].path, None), ("relabel", rows[1].path, "blue"), ("drop", rows[2].path, None)
    ]  # fmt: skip


def test_two_runs_of_several_labels_are_compared(
    label_run: sl.Run, other_label_run: sl.Run, tmp_path: Path, open_page: Any
) -> None:
    with (
        open_studio(label_run, tmp_path / "fixes.jsonl", compare=[other_label_run]) as studio,
        serve(studio) as address,
    ):
        page = open_page(f"{address}/compare", ready="#verdict")
        playwright.expect(page.locator("#label-sets li")).to_have_count(3)
        group = page.locator(".group:has(a)").first
        count = group.locator("h2").inner_text().rpartition(": ")[2]
        group.locator("a").first.click()
        page.wait_for_selector(LISTED)
        expect_text(page, "#count", f"{count} image" + "s" * (count != "1"))
        playwright.expect(page.locator(".tile .chip").first).to_be_visible()


def test_a_run_with_features_findings_and_the_large_view_has_few_elements(cameras: str, open_page: Any) -> None:
    page = open_page(f"{cameras}/map", ready="#features:not([hidden]), #map:not([hidden])")
    if page.locator("#start-features").is_visible():
        page.click("#start-features")
    page.wait_for_selector("#map:not([hidden])")
    page.goto(cameras)
    page.wait_for_selector(LISTED)
    check_images(page)
    assert page.locator("*").count() < MOST_ELEMENTS
    page.keyboard.press("Enter")
    page.click("#show-nearest")
    playwright.expect(page.locator("#viewer-nearest li").first).to_be_visible()
    page.click("#show-heat")
    playwright.expect(page.locator("#viewer-heat")).to_be_visible()
    assert page.locator("*").count() < MOST_ELEMENTS
