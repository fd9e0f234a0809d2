"""Labeling with several classes per image in a real browser: by keyboard and by touch, until the F1 is known."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import sightline as sl
from browser import NO_BROWSER, find_browser
from sightline import Dataset
from sightline.studio.contents import Studio, open_studio
from studio_server import serve
from task_images import LABEL_COLORS, write_label_sets

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)]

SLOW = 240_000  # milliseconds for what waits until features are computed and a head is fitted
ASKED = "#asked:not([hidden])"
SEEN = "() => document.querySelector('#image').complete"
COUNT = 90


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder of images without labels, and the classes of each."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    table = write_label_sets(folder, COUNT)
    rows = [line.split(",") for line in table.read_text(encoding="utf-8").splitlines()[1:]]
    table.unlink()
    return folder, {path: labels for path, labels, _ in rows}


def open_scenes(folder: Path, patch: Path) -> Any:
    return open_studio(Dataset(folder, set=["model.task=multi_label"]), patch, classes=LABEL_COLORS)


def read_answers(patch: Path) -> dict[str, str]:
    rows = map(json.loads, patch.read_text(encoding="utf-8").splitlines())
    return {row["path"]: row.get("to", "") for row in rows}


def list_violations(page: Any) -> list[str]:
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
    page.evaluate("Promise.allSettled(document.getAnimations().map((animation) => animation.finished))")
    violations = axe.Axe().run(page, options={"runOnly": tags, "resultTypes": ["violations"]}).response["violations"]
    return [f"{violation['id']}: {violation['nodes'][0]['html'][:120]}" for violation in violations]


def wait_for_next(page: Any, path: str) -> None:
    page.wait_for_function("path => document.querySelector('#path').textContent !== path", arg=path)


@pytest.mark.exhaustive
def test_images_are_labeled_by_keyboard_until_their_f1_is_known(
    scenes: tuple[Path, dict[str, str]], patch: Path, open_page: Any
) -> None:
    folder, labels = scenes
    with open_scenes(folder, patch) as studio, serve(studio) as address:
        page = open_page(f"{address}/label", ready=ASKED)
        playwright.expect(page.locator("#question")).to_have_text("Which of the classes does this image have?")
        page.wait_for_function(SEEN)
        take, blue = page.locator("#take"), page.locator("#choices [data-to=blue]")
        playwright.expect(take).to_contain_text("None of them")
        page.keyboard.press("1")
        playwright.expect(blue).to_have_attribute("aria-pressed", "true")
        playwright.expect(take).to_contain_text("Next image")
        assert list_violations(page) == []
        page.keyboard.press("1")
        playwright.expect(blue).to_have_attribute("aria-pressed", "false")
        blue.click()
        page.keyboard.press("3")
        first = page.text_content("#path")
        page.keyboard.press("Enter")
        wait_for_next(page, first)
        playwright.expect(blue).to_have_attribute("aria-pressed", "false")
        playwright.expect(page.locator("#progress")).to_have_text(f"1 labeled, {COUNT - 1} to go")
        assert read_answers(patch) == {first: "blue;red"}
        page.keyboard.press("u")
        playwright.expect(page.locator("#path")).to_have_text(first)
        playwright.expect(page.locator("#progress")).to_have_text(f"0 labeled, {COUNT} to go")
        for number in range(48):
            page.wait_for_function(SEEN)
            path = page.text_content("#path")
            for name in filter(None, labels[path].split(";")):
                page.keyboard.press(str(1 + LABEL_COLORS.index(name)))
            page.keyboard.press("Enter" if number % 2 else "Space")
            wait_for_next(page, path)
        playwright.expect(page.locator("#progress")).to_have_text(f"48 labeled, {COUNT - 48} to go", timeout=SLOW)
        answers = read_answers(patch)
        assert answers == {path: labels[path] for path in answers}
        assert "" in answers.values(), "an image that shows nothing is an answer"
        accuracy = page.locator("#accuracy")
        playwright.expect(accuracy).to_contain_text("F1 of an image now", timeout=SLOW)
        numbers = re.fullmatch(r"F1 of an image now (\d\.\d\d) \((\d\.\d\d) to (\d\.\d\d)\)", accuracy.text_content())
        assert numbers
        value, low, high = map(float, numbers.groups())
        assert low < value <= high
        page.keyboard.press("?")
        playwright.expect(page.locator("#keys")).to_contain_text("none of them")
        assert page.text_content("#command") == (
            f"sightline train {folder} --set model.task=multi_label --patch {patch}"
        )


@pytest.mark.parametrize("language", ["en-US", "zh-CN"])
def test_a_phone_switches_classes_on_and_off(
    scenes: tuple[Path, dict[str, str]], patch: Path, open_page: Any, language: str
) -> None:
    with open_scenes(scenes[0], patch) as studio, serve(studio) as address:
        options = {"has_touch": True, "is_mobile": True, "locale": language}
        page = open_page(f"{address}/label", 390, ready=ASKED, **options)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.wait_for_function(SEEN)
        first = page.text_content("#path")
        for name in ("red", "blue", "red"):
            page.locator(f"#choices [data-to={name}]").tap()
        playwright.expect(page.locator("#choices [data-to=blue]")).to_have_attribute("aria-pressed", "true")
        assert list_violations(page) == []
        page.locator("#take").tap()
        wait_for_next(page, first)
        page.wait_for_function(SEEN)
        second = page.text_content("#path")
        page.locator("#take").tap()
        wait_for_next(page, second)
        playwright.expect(page.locator("#progress")).to_contain_text("2 labeled" if language == "en-US" else "剩余 88")
        assert read_answers(patch) == {first: "blue", second: ""}


def test_the_labels_of_a_photo_are_shown_and_the_most_probable_one_explained(
    label_studio: Studio, label_run: sl.Run, tmp_path: Path, open_page: Any
) -> None:
    folder = Path(label_run.config.data.sources[0]).parent
    photos = sorted(folder.glob("*.png"), key=lambda path: int(path.stem))[:30]
    predictions = label_run.classifier.predict(photos)
    several = next(photo for photo, one in zip(photos, predictions, strict=True) if len(one.labels or ()) > 1)
    fewest = min(range(len(photos)), key=lambda i: len(predictions[i].labels or ()))
    with serve(label_studio) as address:
        page = open_page(f"{address}/try", ready="#drop")
        for path in (several, photos[fewest]):
            prediction = label_run.classifier.predict(path)[0]
            page.set_input_files("#file", str(path))
            expected = ", ".join(prediction.labels or ()) or "no label"
            playwright.expect(page.locator("#label")).to_have_text(expected, timeout=SLOW)
            playwright.expect(page.locator("#top li").first).to_contain_text(prediction.top[0].label)
            page.click("#show-heat")
            playwright.expect(page.locator("#heat")).to_be_visible(timeout=SLOW)
            playwright.expect(page.locator("#evidence")).to_contain_text(prediction.top[0].label)
