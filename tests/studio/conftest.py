"""Drawn images in a studio without a server."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sightline as sl
from browser import SLOWDOWN, find_browser
from command import COLORS, TINY_SWEEP, draw_classes
from drawn_scenes import BAR, DISK, draw_scenes, name_classes
from empty_figures import empty_figures
from screenshots import Screenshots
from sightline import Dataset
from sightline.api import training_process
from sightline.api.training import train_run
from sightline.studio import contents
from sightline.studio.contents import Studio, open_studio
from sightline.studio.feature_process import compute_in_process
from sightline.sweeps import SweepResult, sweep
from studio_server import LISTED, WAIT_SECONDS, features_of_colors, serve
from task_images import write_task

HAS_FAILED = pytest.StashKey[bool]()


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three classes, with 8 images of 32x32 each."""
    return draw_classes(tmp_path_factory.mktemp("data") / "colors", COLORS, 8)


@pytest.fixture(scope="module", autouse=True)
def _no_figures(plain_figures: dict[str, Any]) -> None:
    """No page of the studio shows a figure that matplotlib drew."""


@pytest.fixture(scope="module", autouse=True)
def _features_of_colors() -> Iterator[None]:
    """Most pages that label images are looked at before, or whatever, the features of a pretrained network are."""
    with features_of_colors():
        yield


@pytest.fixture
def feature_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute the features of one test as the studio does: of a pretrained network, in a process of their own."""
    monkeypatch.setattr(contents, "compute_in_process", compute_in_process)


def train(data: Path | str, **options: Any) -> sl.Run:
    """Train a run that tests share, without drawing its figures either."""
    with empty_figures():
        return sl.train(data, **options)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> sl.Run:
    """A run on drawn images of three classes, some of them with the wrong label."""
    root = tmp_path_factory.mktemp("run")
    folder = draw_classes(root / "colors", COLORS, 20)
    for i in range(4):
        (folder / "blue" / f"blue-{i:03}.png").rename(folder / "red" / f"mistake-{i}.png")
    return train(folder, recipe="quick", model="cifar10-simple", epochs=2, seed=1, out=root / "a")


def copy_run(run: sl.Run, path: Path, split: str, change: Callable[[dict[str, Any]], None]) -> sl.Run:
    """Copy a run to `path` and change the arrays that it predicted for a split in place."""
    shutil.copytree(run.path, path)
    file = path / "eval" / split / "predictions.npz"
    with np.load(file) as saved:
        arrays = dict(saved)
    change(arrays)
    np.savez(file, **arrays)
    return sl.Run(path)


def copy_as_folded(run: sl.Run, path: Path) -> sl.Run:
    """Copy a run to `path`, as if its validation images had been predicted by folds."""
    shutil.copytree(run.path, path)
    for name, old, new in (("config.toml", "folds = 0", "folds = 2"), ("data.jsonl", '"validation"', '"train"')):
        text = (path / name).read_text(encoding="utf-8")
        assert old in text
        (path / name).write_text(text.replace(old, new), encoding="utf-8")
    return sl.Run(path)


@pytest.fixture(scope="session")
def folded_label_run(label_run: sl.Run, tmp_path_factory: pytest.TempPathFactory) -> sl.Run:
    return copy_as_folded(label_run, tmp_path_factory.mktemp("folded-labels") / "run")


@pytest.fixture(scope="session")
def folded_mask_run(mask_run: sl.Run, tmp_path_factory: pytest.TempPathFactory) -> sl.Run:
    return copy_as_folded(mask_run, tmp_path_factory.mktemp("folded-masks") / "run")


@pytest.fixture(scope="session")
def other(run: sl.Run, tmp_path_factory: pytest.TempPathFactory) -> sl.Run:
    """A copy of the run that predicts the next class for each third test image."""

    def change(arrays: dict[str, Any]) -> None:
        arrays["probabilities"][::3] = np.roll(arrays["probabilities"][::3], 1, 1)

    return copy_run(run, tmp_path_factory.mktemp("other") / "b", "test", change)


@pytest.fixture(scope="session")
def swept(run: sl.Run, tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    """A sweep of three trials in the folder of `run`."""
    space = tmp_path_factory.mktemp("space") / "rates.toml"
    space.write_text(f"""monitor = "validation.loss"
{TINY_SWEEP}[space]
train.optimizer.learning_rate = [1e-2, 1e-3, 1e-6]
""")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_process, "train_in_subprocess", train_run)  # each process would load a framework
        return sweep(run.config.data.sources, space, out=run.path.parent / "sweep", progress=False)


@pytest.fixture(scope="session")
def label_run(tmp_path_factory: pytest.TempPathFactory) -> sl.Run:
    """A run on drawn images with up to three labels each."""
    root = tmp_path_factory.mktemp("labels")
    source, settings = write_task("multi_label", root / "images", 90)
    return train(source, epochs=2, seed=1, set=[*settings, "split.test=0.4"], out=root / "run")


@pytest.fixture(scope="session")
def other_label_run(label_run: sl.Run, tmp_path_factory: pytest.TempPathFactory) -> sl.Run:
    """A copy of `label_run` that predicts the opposite for each second test image."""

    def change(arrays: dict[str, Any]) -> None:
        arrays["probabilities"][::2] = 1 - arrays["probabilities"][::2]

    return copy_run(label_run, tmp_path_factory.mktemp("other-labels") / "b", "test", change)


@pytest.fixture(scope="session")
def label_studio(label_run: sl.Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """The studio of `label_run`, which tests share: they leave its labels alone."""
    with open_studio(label_run, tmp_path_factory.mktemp("patch") / "fixes.jsonl") as opened:
        yield opened


@pytest.fixture(scope="session")
def graded_run(tmp_path_factory: pytest.TempPathFactory) -> sl.Run:
    """A run on drawn images of five grades."""
    root = tmp_path_factory.mktemp("grades")
    source, settings = write_task("ordinal", root / "images", 100)
    return train(source, epochs=12, seed=1, out=root / "run", set=[*settings, "split.test=0.3"])


@pytest.fixture(scope="session")
def graded_studio(graded_run: sl.Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    with open_studio(graded_run, tmp_path_factory.mktemp("patch") / "fixes.jsonl") as opened:
        yield opened


@pytest.fixture(scope="session")
def mask_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn scenes with masks, the names of whose classes are those of an attacker."""
    folder = draw_scenes(tmp_path_factory.mktemp("masks") / "scenes", 30, 10)
    name_classes(folder, DISK, BAR)
    return folder


@pytest.fixture(scope="session")
def mask_run(mask_data: Path, tmp_path_factory: pytest.TempPathFactory) -> sl.Run:
    """A model of the masks of `mask_data`."""
    settings = {"model.task": "segmentation", "device.threads": 1}
    out = tmp_path_factory.mktemp("mask-run") / "a"
    return train(mask_data, recipe="fcn", epochs=2, seed=1, set=settings, out=out, progress=False)


@pytest.fixture(scope="session")
def other_mask_run(mask_run: sl.Run) -> sl.Run:
    """A copy of `mask_run` beside it that predicts other classes for eight of the ten images."""

    def change(arrays: dict[str, Any]) -> None:
        is_worse = arrays["mask_cells"][:, 0] < 8
        arrays["mask_cells"][is_worse, 2] = (arrays["mask_cells"][is_worse, 2] + 1) % 3

    return copy_run(mask_run, mask_run.path.parent / "b", "validation", change)


@pytest.fixture(scope="session")
def mask_studio(mask_run: sl.Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """The studio of `mask_run`, which tests share: they leave its images alone."""
    with open_studio(mask_run, tmp_path_factory.mktemp("patch") / "fixes.jsonl") as opened:
        yield opened


@pytest.fixture(scope="module")
def run_studio(run: sl.Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """The studio of `run`, which tests share: they leave its labels alone."""
    with open_studio(run, tmp_path_factory.mktemp("patch") / "fixes.jsonl") as opened:
        yield opened


@pytest.fixture(scope="module")
def run_client(run_studio: Studio) -> Iterator[Any]:
    """A client of the studio of a run that sends the token of its pages."""
    testclient = pytest.importorskip("starlette.testclient", reason="the extra serve is not installed")
    from sightline.studio.app import create_app

    with testclient.TestClient(create_app(run_studio), "http://127.0.0.1:8000") as client:
        token = re.search(r'name="csrf-token" content="([^"]+)"', client.get("/").text)
        assert token
        client.headers["X-CSRF-Token"] = token[1]
        yield client


@pytest.fixture(scope="session")
def cameras(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The studio of a run whose images were taken by two cameras; two of the test images are the same file."""
    root = tmp_path_factory.mktemp("cameras")
    folder = draw_classes(root / "colors", COLORS, 40)
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.png"))]
    (folder / names[8]).write_bytes((folder / names[34]).read_bytes())  # both of the test split
    splits = ("test", "test", "train", "train", "validation", "train", "test")
    rows = [f"{name},{Path(name).parent},{splits[i % 7]},{'old' if i % 2 else 'new'}" for i, name in enumerate(names)]
    table = folder / "images.csv"
    table.write_text("\n".join(["path,label,split,camera", *rows]))
    run = train(table, recipe="quick", model="cifar10-simple", epochs=1, seed=1, out=root / "run")
    with open_studio(run, root / "fixes.jsonl") as studio, serve(studio) as opened:
        yield opened


@pytest.fixture
def patch(tmp_path: Path) -> Path:
    return tmp_path / "fixes.jsonl"


@pytest.fixture
def studio(colors: Path, patch: Path) -> Iterator[Studio]:
    with open_studio(Dataset(colors), patch) as opened:
        yield opened


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Chromium with a camera that shows a test image."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    playwright.expect.set_options(timeout=1000 * WAIT_SECONDS)
    camera = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=find_browser(), args=["--no-sandbox", *camera])
        yield browser
        browser.close()


class PageOpener:
    """Opens addresses in pages of their own, and collects in `errors` what their scripts and requests failed with.

    With `intercepts`, requests pass the test from the first on: a loaded page may send one more past a new route.
    """

    def __init__(self, browser: Any, screenshots: Screenshots) -> None:
        self._browser, self.screenshots = browser, screenshots
        self._contexts: list[Any] = []
        self.errors: list[str] = []
        self.intercepts = False

    def __call__(self, address: str, width: int = 1280, *, ready: str = LISTED, **options: Any) -> Any:
        """Return a page `width` pixels wide once it has an element `ready`."""
        context = self._browser.new_context(viewport={"width": width, "height": 800}, **options)
        self._contexts.append(context)
        context.set_default_timeout(1000 * WAIT_SECONDS)
        page = context.new_page()
        context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": SLOWDOWN})
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        if self.intercepts:
            page.route("**/*", lambda route: route.continue_())
        page.goto(address)
        page.wait_for_selector(ready)
        return page

    def close(self, of_failure: Path | None = None) -> None:
        """Close all pages, after a screenshot of each if that is wanted; into a folder `of_failure` always."""
        for context in self._contexts:
            for page in context.pages:
                with contextlib.suppress(Exception):  # a page may be stuck, which is no second failure
                    self.screenshots.take(page, of_failure)
            context.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let fixtures know whether the test that they end with has failed."""
    report = yield
    if report.when == "call":
        item.stash[HAS_FAILED] = report.failed
    return report


@pytest.fixture
def open_page(chromium: Any, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PageOpener]:
    """Open an address; a script that fails, or a resource that is refused, fails the test."""
    opener = PageOpener(chromium, Screenshots(request.node.name))
    yield opener
    opener.close(tmp_path / "screenshots" if request.node.stash.get(HAS_FAILED, False) else None)
    assert [error for error in opener.errors if "ERR_CONNECTION_REFUSED" not in error] == []
