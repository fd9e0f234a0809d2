"""A training in a real browser: started, followed across pages and studios, stopped and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from browser import NO_BROWSER, find_browser
from sightline import Dataset
from sightline.studio.contents import open_studio
from studio_server import serve

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)]

READY = "#start"
SLOW = 240_000  # milliseconds to wait for a training at most


def expect_status(page: Any, text: str) -> None:
    playwright.expect(page.locator("#status")).to_have_text(text, timeout=SLOW)


def test_a_training_is_followed_across_pages_and_studios(
    colors: Path, patch: Path, tmp_path: Path, open_page: Any
) -> None:
    runs = tmp_path / "runs"
    with open_studio(Dataset(colors), patch, runs=runs) as studio, serve(studio) as address:
        page = open_page(f"{address}/train", ready=READY)
        page.select_option("[name=recipe]", "cifar10-simple")  # which does not stop early
        page.fill("[name=epochs]", "2000")
        page.click("#start button")
        page.wait_for_selector("#loss .of-train polyline", state="attached", timeout=SLOW)
        playwright.expect(page.locator("#log")).to_contain_text("$ sightline train")
        page.close()
    port = int(address.rpartition(":")[2])
    with open_studio(Dataset(colors), patch, runs=runs) as studio, serve(studio, port):
        page = open_page(f"{address}/train", ready="#runs a")
        expect_status(page, "training")
        playwright.expect(page.locator("#start button")).to_be_disabled()
        seen = page.locator("#epochs tbody tr").count()
        page.wait_for_function(f"() => document.querySelectorAll('#epochs tbody tr').length > {seen}", timeout=SLOW)
        page.click("#stop")
        expect_status(page, "interrupted")
        playwright.expect(page.locator("#log")).to_contain_text("continues from there", timeout=SLOW)
        page.click("#resume")
        expect_status(page, "training")
        playwright.expect(page.locator("#log")).to_contain_text("resuming after", timeout=SLOW)
        page.click("#stop")
        expect_status(page, "interrupted")


@pytest.mark.parametrize("language", ["en-US", pytest.param("zh-CN", marks=pytest.mark.exhaustive)])
def test_a_finished_run_and_a_sweep_fit_a_phone(run_studio: Any, open_page: Any, language: str) -> None:
    sweep = run_studio.training.folder / "sweep"
    sweep.mkdir(exist_ok=True)
    (sweep / "sweep.json").write_text("{}")
    columns = "trial,state,val_accuracy,train.optimizer.learning_rate,accuracy"
    (sweep / "results.csv").write_text(f"{columns}\n2,complete,0.9,0.01,0.9\n1,complete,0.8,1,0.8\n")
    with serve(run_studio) as address:
        page = open_page(f"{address}/train", 390, ready="#loss .of-train circle", locale=language)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        playwright.expect(page.locator("#outcome b")).to_contain_text("%")
        page.goto(f"{address}/train?sweep=sweep")
        page.wait_for_selector("#parallel .trial")
        assert page.locator("#parallel .trial").count() == 2
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
