"""A training in a real browser: started, followed across pages and studios, stopped and resumed."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

import sightline as sl
from browser import NO_BROWSER, find_browser
from sightline import Dataset
from sightline.studio.contents import open_studio
from sightline.sweeps import SweepResult
from studio_server import serve, start_command

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)]

READY = "#start"
RATE = "train.optimizer.learning_rate"
SLOW = 240_000  # milliseconds to wait for a training at most


def expect_status(page: Any, text: str) -> None:
    playwright.expect(page.locator("#status")).to_have_text(text, timeout=SLOW)


def read_process(runs: Path) -> int:
    """Return the number of the process of the training."""
    (lock,) = (runs / ".studio").glob("*.lock")
    return int(lock.read_text().split()[0])


@pytest.mark.exhaustive
def test_a_training_outlives_its_page_and_a_server_that_is_killed(
    colors: Path, patch: Path, tmp_path: Path, open_page: Any
) -> None:
    runs = tmp_path / "runs"
    options = [colors, "--patch", patch, "--runs", runs]
    with start_command(*options) as (process, address):
        page = open_page(f"{address}/train", ready=READY)
        page.select_option("[name=recipe]", "cifar10-simple")  # which does not stop early
        page.fill("[name=epochs]", "2000")
        page.click("#start button")
        page.wait_for_selector("#loss .of-train polyline", state="attached", timeout=SLOW)
        playwright.expect(page.locator("#log")).to_contain_text("$ sightline train")
        page.close()
        training = read_process(runs)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with start_command(*options, "--port", address.rpartition(":")[2]):
        page = open_page(f"{address}/train", ready="#runs a")
        expect_status(page, "training")
        assert read_process(runs) == training, "it was not started again"
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


@pytest.mark.exhaustive
def test_the_images_and_the_time_limit_of_the_page_are_those_of_the_run(
    run: sl.Run, colors: Path, patch: Path, tmp_path: Path, open_page: Any
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(run.path, runs / "a")
    with open_studio(Dataset(colors), patch, runs=runs) as studio, serve(studio) as address:
        page = open_page(f"{address}/train", ready="#runs a")
        page.select_option("[name=data]", "run:a")
        page.select_option("[name=recipe]", "quick")
        page.fill("[name=epochs]", "1")
        for effort, limit, refusal in (
            ("fast", "", "the recipe quick trains in one way only"),
            ("", "10 apples", "expected a duration such as 90s, 10m or 1h30m"),
        ):
            page.select_option("[name=effort]", effort)
            page.fill("[name=time_limit]", limit)
            page.click("#start button")
            playwright.expect(page.locator("#message")).to_contain_text(refusal)
        with page.expect_response("**/train/runs"):  # a look at the runs, which succeeds
            pass
        playwright.expect(page.locator("#message")).to_be_visible()
        page.fill("[name=time_limit]", "30m")
        page.click("#start button")
        playwright.expect(page.locator("#run-title")).to_have_text("quick-colors-1")
        playwright.expect(page.locator("#message")).to_be_hidden()
        expect_status(page, "complete")
        playwright.expect(page.locator("#outcome")).to_contain_text("%")
        playwright.expect(page.locator("#log")).to_contain_text("--time-limit=30m --epochs=1")
    errors = [error for error in open_page.errors if "400 (Bad Request)" not in error]
    open_page.errors[:] = errors  # the browser logs the refused request
    trained = sl.Run(runs / "quick-colors-1")
    assert (trained.config.train.time_limit, trained.config.train.epochs) == ("30m", 1)
    assert trained.directory.info["time"], "what its epochs took"
    images = [{(row.path, row.split) for row in of.directory.read_data() or ()} for of in (run, trained)]
    assert len(images[0]) == 60, "not those of the studio"
    assert images[0] == images[1]


@pytest.mark.parametrize("language", ["en-US", pytest.param("zh-CN", marks=pytest.mark.exhaustive)])
def test_a_finished_run_fits_a_phone(run_studio: Any, open_page: Any, language: str) -> None:
    with serve(run_studio) as address:
        page = open_page(f"{address}/train", 390, ready="#loss .of-train circle", locale=language)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        playwright.expect(page.locator("#outcome b")).to_contain_text("%")
        text = {"en-US": "Look at its images and errors", "zh-CN": "查看图片和错误"}[language]
        playwright.expect(page.locator("#outcome")).to_contain_text(text)


def test_the_numbers_beside_a_curve_of_tiny_losses_are_not_cut(run_studio: Any, open_page: Any) -> None:
    draw = """async () => {
      const { drawCurves } = await import("/static/plots.js");
      const svg = document.querySelector("#loss");
      drawCurves(svg, [{ name: "train", points: [[1, 0.0000612], [2, 0.0000655]] }], { last: 2 });
      const texts = [...svg.querySelectorAll("text")];
      return texts.map((text) => [text.textContent, text.getBBox().x >= 0]);
    }"""
    with serve(run_studio) as address:
        page = open_page(f"{address}/train", ready="#loss .of-train circle")
        labels = dict(page.evaluate(draw))
        assert "6.5e-5" in labels
        assert all(labels.values())


@pytest.mark.exhaustive
@pytest.mark.parametrize("language", ["en-US", pytest.param("zh-CN", marks=pytest.mark.exhaustive)])
def test_a_sweep_is_a_table_and_lines(run_studio: Any, swept: SweepResult, open_page: Any, language: str) -> None:
    with serve(run_studio) as address:
        page = open_page(f"{address}/train", 390, ready=".runs a", locale=language)
        page.locator(".runs a", has_text="sweep").click()
        page.wait_for_selector("#parallel .trial")
        names = page.locator("#trials th").all_text_contents()
        cells = [row.locator("td").all_text_contents() for row in page.locator("#trials tbody tr").all()]
        columns = {name: list(column) for name, column in zip(names, zip(*cells, strict=True), strict=True)}
        assert [int(cell) for cell in columns[names[0]]] == [trial.trial for trial in swept.trials]
        assert [float(cell) for cell in columns[RATE]] == [trial.settings[RATE] for trial in swept.trials]
        assert set(columns[names[1]]) == {"complete" if language == "en-US" else "已完成"}
        values = [float(cell) for cell in columns[names[2]]]
        assert values == pytest.approx([trial.value for trial in swept.trials], rel=1e-3)
        assert values == sorted(values), "the best first"
        lines = [str(line.get_attribute("points")) for line in page.locator("#parallel .trial").all()][::-1]
        assert all(line.count(",") == 2 for line in lines), "from the setting to the metric"
        ends = [
            float(line.rpartition(",")[2]) for line in lines
        ]  # where they meet the axis of the metric; the best is drawn last
        assert len(ends) == len(values) == 3
        assert ends == sorted(ends, reverse=True), "less loss is further down"
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
