"""Labeling a folder in a real browser: by keyboard, from the first class to the accuracy, and on a phone."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest

from browser import NO_BROWSER, find_browser
from command import COLORS, draw_classes
from held_requests import wait_until
from sightline import Dataset
from sightline.errors import SightlineError
from sightline.studio import contents
from sightline.studio.contents import open_studio
from sightline.training.stage_features import FEATURES
from studio_server import features_of_colors, read_labels, serve, start_command

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)]

SLOW = 240_000  # milliseconds for what waits until features are computed and a head is fitted
ASKED = "#asked:not([hidden])"
SEEN = "() => document.querySelector('#image').complete"  # before, nobody can label it
NAMES = sorted(COLORS)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 90 images without labels; the letter in the name of each says its class."""
    root = tmp_path_factory.mktemp("data")
    labeled = draw_classes(root / "labeled", COLORS, 30)
    folder = root / "photos"
    folder.mkdir()
    for number, path in enumerate(sorted(labeled.rglob("*.png"), key=lambda path: path.name[-6:])):
        path.rename(folder / f"{number:03}{path.parent.name[0]}.png")
    return folder


def show(page: Any) -> str:
    """Return the path of the image that is asked for."""
    return str(page.text_content("#path"))


def answer(page: Any, count: int) -> None:
    """Label images by keyboard: with the key of the class whose first letter the name has."""
    for _ in range(count):
        page.wait_for_function(SEEN)
        path = show(page)
        page.keyboard.press(str(1 + next(i for i, name in enumerate(NAMES) if name[0] == path[3])))
        page.wait_for_function("path => document.querySelector('#path').textContent !== path", arg=path)


def expect_count(page: Any, labeled: int) -> None:
    playwright.expect(page.locator("#progress")).to_have_text(f"{labeled} labeled, {90 - labeled} to go", timeout=SLOW)


@pytest.mark.usefixtures("feature_process")
def test_a_folder_is_labeled_until_its_accuracy_is_known(photos: Path, patch: Path, open_page: Any) -> None:
    with open_studio(Dataset(photos), patch, classes=NAMES[:1]) as studio, serve(studio) as address:
        page = open_page(f"{address}/label", ready=ASKED)
        playwright.expect(page.locator("#question")).to_have_text("Add two classes to begin.")
        for name in NAMES[1:]:
            page.keyboard.press("n")
            page.keyboard.type(name)
            page.keyboard.press("Enter")
            page.wait_for_selector(f"#choices [data-to={name}]")
        first = show(page)
        answer(page, 12)
        expect_count(page, 12)
        page.keyboard.press("u")
        expect_count(page, 11)
        page.wait_for_function(SEEN)
        last = show(page)
        page.keyboard.press("x")
        playwright.expect(page.locator("#progress")).to_have_text("11 labeled, 78 to go", timeout=SLOW)
        page.keyboard.press("u")
        playwright.expect(page.locator("#path")).to_have_text(last)
        playwright.expect(page.locator("#features")).to_be_empty(timeout=SLOW)
        answer(page, 40)
        expect_count(page, 51)
        assert read_labels(patch)[first] == next(name for name in NAMES if name[0] == first[3])
        assert len(read_labels(patch)) == 51
        assert all(path[3] == label[0] for path, label in read_labels(patch).items())
        playwright.expect(page.locator("#accuracy")).to_contain_text(re.compile(r"Accuracy now 1.00 .0"), timeout=SLOW)
        playwright.expect(page.locator("#gain")).to_contain_text("at most")
        assert page.text_content("#command") == f"sightline train {photos} --patch {patch}"
        page.keyboard.press("?")
        playwright.expect(page.locator("#keys")).to_be_visible()
    port = int(address.rpartition(":")[2])
    with features_of_colors(), open_studio(Dataset(photos), patch) as studio, serve(studio, port):
        page.reload()
        expect_count(page, 51)
        playwright.expect(page.locator("#accuracy")).to_contain_text("Accuracy now", timeout=SLOW)


def test_a_page_that_is_loaded_again_goes_on_with_its_images(photos: Path, patch: Path, open_page: Any) -> None:
    """Else those of the audit that it had would be skipped for a while, and the accuracy be known later than stated."""
    with open_studio(Dataset(photos), patch, classes=NAMES) as studio, serve(studio) as address:
        page = open_page(f"{address}/label", ready=ASKED)
        first = show(page)
        page.reload()
        playwright.expect(page.locator("#path")).to_have_text(first)
        page.goto(address)
        page.go_back()
        playwright.expect(page.locator("#path")).to_have_text(first)
        other = open_page(f"{address}/label", ready=ASKED)
        playwright.expect(other.locator("#path")).not_to_have_text(first)
        other.goto("about:blank")  # or it would have the image among its next ones
        page.close(run_before_unload=True)
        wait_until(other, lambda: show_first(open_page, address) == first)


def show_first(open_page: Any, address: str) -> str:
    """Return the path of the image that a new page asks for, and leave the page."""
    page = open_page(f"{address}/label", ready=ASKED)
    path = show(page)
    page.goto("about:blank")
    return path


def test_what_is_computed_is_named(photos: Path, patch: Path, open_page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else "Computing features 100%" is there for as long as a network takes to load."""
    tasks: SimpleQueue[tuple[str, int, int]] = SimpleQueue()

    def report(*arguments: Any) -> Any:
        while (state := tasks.get())[0]:
            arguments[-1].on_progress(*state)
        raise SightlineError("That is all.")

    monkeypatch.setattr(contents, "compute_in_process", report)
    steps = {
        ("indexing", 0, 0): "Reading the images …",
        ("decoding", 45, 90): "Decoding the images 50%",
        ("loading the network", 0, 0): "Loading the pretrained network …",
        (FEATURES, 89, 90): "Computing features 98%",
        ("projecting", 0, 0): "Comparing the features …",
    }
    with open_studio(Dataset(photos), patch, classes=NAMES) as studio, serve(studio) as address:
        page = open_page(f"{address}/label", ready=ASKED)
        for state, text in steps.items():
            tasks.put(state)
            playwright.expect(page.locator("#features")).to_contain_text(text)
        tasks.put(("", 0, 0))
        playwright.expect(page.locator("#features")).to_have_text("That is all.")


@pytest.mark.exhaustive
def test_what_more_labels_would_bring_is_stated_in_numbers(
    photos: Path, tmp_path: Path, patch: Path, open_page: Any
) -> None:
    """Two thirds of the labels are drawn at random, so that the head errs often enough for a statement."""
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(3)
    for path in sorted(photos.iterdir()):
        letter = random.choice([name[0] for name in NAMES]) if random.random() < 2 / 3 else path.name[3]
        (folder / f"{path.name[:3]}{letter}.png").write_bytes(path.read_bytes())
    with open_studio(Dataset(folder), patch, classes=NAMES) as studio, serve(studio) as address:
        page = open_page(f"{address}/label", ready=ASKED)
        playwright.expect(page.locator("#features")).to_be_empty(timeout=SLOW)
        answer(page, 84)
        expect_count(page, 84)
        playwright.expect(page.locator("#gain")).to_contain_text("would bring about", timeout=SLOW)
        accuracy, gain = page.text_content("#accuracy"), page.text_content("#gain")
        numbers = re.fullmatch(r"Accuracy now (0\.\d\d) \((0\.\d\d) to (0\.\d\d)\)", accuracy)
        points = re.fullmatch(
            r"100 more labels would bring about ([+-]\d+\.\d) points \((-?\d+\.\d) to (-?\d+\.\d)\)", gain
        )
        assert numbers
        assert points
        value, low, high = map(float, numbers.groups())
        assert low < value < high
        # Of who knows the class that was drawn; one interval of 95% may miss it by little.
        assert low - 0.05 < 1 / 3 + 2 / 9 < high + 0.05
        value, low, high = map(float, points.groups())
        assert low <= value <= high
        assert low < high


@pytest.mark.exhaustive
def test_two_pages_label_different_images_and_lose_none(photos: Path, patch: Path, open_page: Any) -> None:
    with open_studio(Dataset(photos), patch, classes=NAMES) as studio, serve(studio) as address:
        first = open_page(f"{address}/label", ready=ASKED)
        first.wait_for_event("response", lambda response: re.search(r"/label/state.*shown=\w", response.url))
        second = open_page(f"{address}/label", ready=ASKED)
        assert show(first) != show(second)
        for _ in range(6):
            answer(first, 1)
            answer(second, 1)
        expect_count(first, 12)
        expect_count(second, 12)
        labels = read_labels(patch)
        assert len(labels) == 12
        assert all(path[3] == label[0] for path, label in labels.items())


@pytest.mark.exhaustive
def test_a_late_answer_shows_no_image_again(photos: Path, patch: Path, open_page: Any) -> None:
    late: list[Any] = []

    def hold_the_first(route: Any) -> None:
        late.append((route, route.fetch())) if not late else route.continue_()

    with open_studio(Dataset(photos), patch, classes=NAMES) as studio, serve(studio) as address:
        page = open_page(f"{address}/label", ready=ASKED)
        page.route("**/label/state*", hold_the_first)
        wait_until(page, lambda: late)
        answer(page, 6)
        expect_count(page, 6)
        route, response = late[0]
        route.fulfill(response=response)
        answer(page, 6)
        expect_count(page, 12)
        assert len(read_labels(patch)) == 12


@pytest.mark.parametrize("language", ["en-US", pytest.param("zh-CN", marks=pytest.mark.exhaustive)])
def test_a_phone_labels_by_touch(photos: Path, patch: Path, open_page: Any, language: str) -> None:
    with open_studio(Dataset(photos), patch, classes=NAMES) as studio, serve(studio) as address:
        options = {"has_touch": True, "is_mobile": True, "locale": language}
        page = open_page(f"{address}/label", 390, ready=ASKED, **options)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        for _ in range(2):
            page.wait_for_function(SEEN)
            path = show(page)
            page.locator("#choices [data-to=red]").tap()
            playwright.expect(page.locator("#path")).not_to_have_text(path)
        playwright.expect(page.locator("#progress")).to_contain_text("2 labeled" if language == "en-US" else "剩余 88")
        page.locator("#undo").tap()
        playwright.expect(page.locator("#progress")).to_contain_text("1 labeled" if language == "en-US" else "剩余 89")


def test_on_a_phone_the_image_stays_in_view_above_many_classes(photos: Path, patch: Path, open_page: Any) -> None:
    classes = [f"class {i}" for i in range(24)]
    with open_studio(Dataset(photos), patch, classes=classes) as studio, serve(studio) as address:
        page = open_page(f"{address}/label", 390, ready="#choices [data-to='class 23']", has_touch=True, is_mobile=True)
        page.locator("#drop").scroll_into_view_if_needed()
        playwright.expect(page.locator("#drop")).to_be_in_viewport()
        playwright.expect(page.locator("#image")).to_be_in_viewport(ratio=1)
        page.focus("#choices button")
        playwright.expect(page.locator("#choices button").first).to_be_in_viewport(ratio=1)
        box = page.locator("#choices button").first.bounding_box()
        center = [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2]
        assert page.evaluate("([x, y]) => document.elementFromPoint(x, y).dataset.to", center) == "class 0"


@pytest.mark.exhaustive
def test_a_server_that_is_killed_in_the_middle_loses_no_label(photos: Path, patch: Path, open_page: Any) -> None:
    options = ["--classes", ",".join(NAMES), "--patch", patch]
    with start_command(photos, *options) as (process, address):
        page = open_page(f"{address}/label", ready=ASKED)
        answer(page, 4)
        expect_count(page, 4)
        page.wait_for_function(SEEN)
        process.send_signal(signal.SIGKILL)
        process.wait()
        page.keyboard.press("1")
        playwright.expect(page.locator("#message")).to_contain_text("may not be saved")
        page.goto("about:blank")
    assert len(read_labels(patch)) == 4
    with start_command(photos, *options, "--port", address.rpartition(":")[2]):
        page.goto(f"{address}/label")
        page.wait_for_selector(ASKED)
        expect_count(page, 4)
        answer(page, 2)
        expect_count(page, 6)
        labels = read_labels(patch)
        assert len(labels) == 6
        assert all(path[3] == label[0] for path, label in labels.items())
        page.goto("about:blank")  # before this server ends, too
    open_page.errors[:] = [error for error in open_page.errors if "net::ERR_" not in error]  # of the killed server


def test_hostile_names_are_text_while_labeling(photos: Path, tmp_path: Path, patch: Path, open_page: Any) -> None:
    script = "<img src=x onerror=document.title='owned'>"
    names = [script, "$&$'\"{{7*7}} LABEL"]
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, path in enumerate(sorted(photos.iterdir())[:3]):
        (folder / f"{number} {script}\x1b[2J'\".png").write_bytes(path.read_bytes())
    with open_studio(Dataset(folder), patch, classes=names) as studio, serve(studio) as address:
        page = open_page(f"{address}/label", ready=ASKED)
        assert script in show(page)
        for name in names:
            playwright.expect(page.locator("#choices")).to_contain_text(name)
        page.keyboard.press("n")
        page.keyboard.type(f"{script} & more")
        page.keyboard.press("Enter")
        playwright.expect(page.locator("#choices")).to_contain_text("& more")
        page.wait_for_function(SEEN)
        page.keyboard.press("2")
        playwright.expect(page.locator("#progress")).to_have_text("1 labeled, 2 to go")
        assert list(read_labels(patch).values()) == names[1:]
        assert "owned" not in page.title()
        assert page.locator("img[src=x]").count() == 0
