"""Accessibility of every page that Sightline makes: axe-core finds nothing against WCAG 2.2, levels A and AA."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import sightline as sl
from browser import NO_BROWSER, find_browser
from command import COLORS, draw_classes
from drawn_scenes import draw_scene, encode
from screenshots import Screenshots
from server_process import Server
from sightline import Dataset
from sightline.studio.contents import Studio, open_studio
from sightline.sweeps import SweepResult
from studio_server import LISTED, serve

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)]

OPTIONS = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"], "resultTypes": ["violations"]}
Looks = dict[str, list[tuple[int, str]]]  # the widths and color schemes for each language
ALL = list(itertools.product((1280, 390), ("light", "dark")))
SOME: Looks = {"en-US": [ALL[0]], "zh-CN": [ALL[-1]]}  # each width, scheme and language
OTHERS: Looks = {language: [look for look in ALL if look not in SOME[language]] for language in SOME}
TOKEN = "secret" * 4


def list_violations(page: Any, looks: list[tuple[int, str]], screenshots: Screenshots | None = None) -> list[str]:
    """Return what axe-core finds on a page as it is, for each width and color scheme; `screenshots` show these."""
    violations = []
    for width, scheme in looks:
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        page.evaluate("Promise.allSettled(document.getAnimations().map((animation) => animation.finished))")
        for violation in axe.Axe().run(page, options=OPTIONS).response["violations"]:
            nodes = [f"{node['html'][:120]}: {node['failureSummary']}" for node in violation["nodes"][:3]]
            violations.append(f"{page.url} {width} {scheme} {violation['id']}: {nodes}")
        if screenshots is not None:
            screenshots.take(page)
    return violations


class Check:
    """Opens an address in each language, prepares the page, and fails for what axe-core finds on it."""

    def __init__(self, open_page: Any, looks: Looks) -> None:
        self._open_page, self._looks = open_page, looks

    def __call__(self, address: str, ready: str, prepare: Callable[[Any], None] | None = None) -> None:
        for language, looks in self._looks.items():
            page = self._open_page(address, ready=ready, locale=language)
            if prepare is not None:
                prepare(page)
            assert list_violations(page, looks, self._open_page.screenshots) == []
            page.context.close()


@pytest.fixture(params=[pytest.param(SOME, id="some"), pytest.param(OTHERS, id="others", marks=pytest.mark.exhaustive)])
def check(request: pytest.FixtureRequest, open_page: Any) -> Check:
    return Check(open_page, request.param)


@pytest.fixture(scope="module")
def address(run_studio: Studio, other: sl.Run, swept: SweepResult) -> Iterator[str]:
    assert run_studio.model is not None
    run_studio.model.features.start()
    run_studio.model.features.wait()
    with serve(run_studio) as opened:
        yield opened


@pytest.fixture(scope="module")
def photo(run: sl.Run) -> Path:
    return next(Path(run.config.data.sources[0]).glob("green/*.png"))


def show_large(page: Any) -> None:
    page.keyboard.press("Enter")
    page.wait_for_selector("#viewer[open]")
    page.click("#show-nearest")
    page.wait_for_selector("#viewer-nearest li")


def show_keys(page: Any) -> None:
    page.keyboard.press("?")
    page.wait_for_selector("dialog[open]")


def select_images(page: Any) -> None:
    page.keyboard.press("Shift+ArrowRight")
    page.click("#another")
    page.wait_for_selector("dialog[open]")


@pytest.mark.parametrize("prepare", [None, show_large, show_keys, select_images])
def test_the_list_of_images(check: Check, address: str, prepare: Callable[[Any], None] | None) -> None:
    check(address, LISTED, prepare)


@pytest.mark.parametrize(
    ("path", "ready"),
    [
        ("results", "#confusion"),
        ("map", "#map:not([hidden]) #legend li"),
        ("train", "#loss .of-train circle"),
        ("train?sweep=sweep", "#parallel .trial"),
    ],
)
def test_a_page_of_a_run(check: Check, address: str, path: str, ready: str) -> None:
    check(f"{address}/{path}", ready)


def test_the_results_of_several_labels(check: Check, label_studio: Studio) -> None:
    with serve(label_studio) as address:
        check(f"{address}/results", "#label-pairs")


def test_the_results_of_grades(check: Check, graded_studio: Studio) -> None:
    with serve(graded_studio) as address:
        check(f"{address}/results", "#grades")


def test_masks(check: Check, mask_studio: Studio, tmp_path: Path) -> None:
    (tmp_path / "new.png").write_bytes(encode(draw_scene(7000)[0]))

    def show_both(page: Any) -> None:
        page.keyboard.press("Enter")
        page.click("#show-predicted")
        page.wait_for_selector("#predicted:not([hidden])", timeout=60_000)

    def take(page: Any) -> None:
        page.set_input_files("#file", str(tmp_path / "new.png"))
        page.wait_for_selector("#top li", timeout=60_000)

    with serve(mask_studio) as address:
        check(f"{address}/?sort=iou", ".tile .mask")
        check(f"{address}/?split=validation", ".tile .mask", show_both)
        check(f"{address}/results", "#confusion")
        check(f"{address}/try", "#drop", take)
        check(f"{address}/label", "main p")


def test_the_comparison_of_two_runs_of_masks(
    check: Check, mask_run: sl.Run, other_mask_run: sl.Run, tmp_path: Path
) -> None:
    opened = open_studio(mask_run, tmp_path / "fixes.jsonl", compare=[other_mask_run])
    with opened as studio, serve(studio) as address:
        check(f"{address}/compare", "#verdict")


def test_a_model_that_is_tried(check: Check, address: str, photo: Path) -> None:
    def prepare(page: Any) -> None:
        page.set_input_files("#file", str(photo))
        page.wait_for_selector("#nearest img")
        page.click("#run-here")
        page.wait_for_selector("#here-state[data-difference]")
        page.click("#show-heat")
        page.wait_for_selector("#heat:not([hidden])")

    check(f"{address}/try", "#drop", prepare)


def test_the_comparison_of_two_runs(check: Check, run: sl.Run, other: sl.Run, tmp_path: Path) -> None:
    with open_studio(run, tmp_path / "fixes.jsonl", compare=[other]) as studio, serve(studio) as opened:
        check(f"{opened}/compare", "#verdict")


@pytest.mark.parametrize(("task", "keys"), [("single_label", "1"), ("multi_label", "1 2 Enter")])
def test_labeling(check: Check, tmp_path: Path, task: str, keys: str) -> None:
    images = draw_classes(tmp_path / "labeled", COLORS, 5)
    (tmp_path / "photos").mkdir()
    for number, path in enumerate(sorted(images.rglob("*.png"))):
        path.rename(tmp_path / "photos" / f"{number}.png")
    data = Dataset(tmp_path / "photos", set={"model.task": task})
    opened = open_studio(data, tmp_path / "fixes.jsonl", classes=sorted(COLORS))

    def label(page: Any) -> None:
        page.wait_for_function("() => document.querySelector('#image').complete")
        for key in keys.split():
            page.keyboard.press(key)
        page.wait_for_selector("#undo:enabled")
        if task == "multi_label":
            page.keyboard.press("1")
            page.wait_for_selector("#choices [aria-pressed=true]")

    with opened as studio, serve(studio) as address:
        check(f"{address}/label", "#asked:not([hidden])", label)


@pytest.mark.exhaustive
def test_a_studio_in_the_network(check: Check, open_page: Any, run_studio: Studio) -> None:
    with serve(run_studio, token=TOKEN) as opened:
        root = opened.partition("/?")[0]
        check(root, "main")
        open_page.errors[:] = [error for error in open_page.errors if "401" not in error]  # which is what it shows

        def follow(page: Any) -> None:
            page.goto(f"{root}/phone")
            page.wait_for_selector("main svg, main img")

        check(opened, LISTED, follow)


def test_the_page_of_a_server(check: Check, run: sl.Run, photo: Path) -> None:
    def predict(page: Any) -> None:
        page.set_input_files("#file", str(photo))
        page.wait_for_selector("#top li")
        page.wait_for_selector("#heat-switch:not([hidden])")

    with Server(run.path) as server:
        check(f"{server.address}/", "#file", predict)


def test_the_report_of_a_run(open_page: Any, run: sl.Run) -> None:
    page = open_page((run.path / "report.html").as_uri(), ready="h1")
    assert list_violations(page, ALL, open_page.screenshots) == []


def test_a_page_with_faults_is_refused(open_page: Any, address: str) -> None:
    page = open_page(address)
    page.evaluate("document.querySelector('#grid').insertAdjacentHTML('afterend', '<img src=\"/static/icon.svg\">')")
    assert any("image-alt" in violation for violation in list_violations(page, ALL[:1]))


@pytest.mark.exhaustive
def test_slices(check: Check, cameras: str) -> None:
    check(f"{cameras}/results", "#slices")
    check(f"{cameras}/?split=test&slice=camera+old&sort=ood", LISTED)
