"""The report of a run as a user sees it: a self-contained page with the results of the run."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from command import Command
from sightline.report import html_report, templates


class Links(HTMLParser):
    """Collects everything that a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.images = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in {"src", "href"} and value is not None:
                self.images += value.startswith("data:image/")
                if not value.startswith(("data:", "#")):
                    self.loaded.append(value)


@pytest.fixture
def run(trained: tuple[Path, dict[str, Any]]) -> Path:
    return trained[0]


def test_every_run_has_a_page_that_needs_no_network(run: Path, trained: tuple[Path, dict[str, Any]]) -> None:
    text = (run / "report.html").read_text("utf-8")
    links = Links()
    links.feed(text)
    assert links.loaded == []
    metrics = json.loads((run / "eval" / "test" / "metrics.json").read_text("utf-8"))
    num_errors = len(metrics["errors"]["most_confident_errors"][: html_report.MAX_ERRORS])
    assert links.images == 2 * num_errors, "each error with its heat map"
    assert "@import" not in text
    assert "url(" not in text
    assert len(text) < 2_000_000
    accuracy = trained[1]["test"]["accuracy"]
    assert f"Accuracy {100 * accuracy:.1f}% on {trained[1]['test']['count']} unseen images" in text
    assert "sightline report" in text
    for label in ("blue", "green", "red"):
        assert f'<td class="name">{label}</td>' in text


class Tables(HTMLParser):
    """Collects the CSS classes of the divs around each table."""

    def __init__(self) -> None:
        super().__init__()
        self.boxes: list[str] = []
        self.around: list[set[str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "div":
            self.boxes.append(dict(attrs).get("class") or "")
        elif tag == "table":
            self.around.append(set(self.boxes))

    def handle_endtag(self, tag: str) -> None:
        if tag == "div":
            self.boxes.pop()


def test_the_page_fits_a_phone(run: Path) -> None:
    text = (run / "report.html").read_text("utf-8")
    tables = Tables()
    tables.feed(text)
    assert len(tables.around) >= 4
    assert all("scroll" in boxes for boxes in tables.around)
    style = text[text.index("<style>") : text.index("</style>")]
    assert re.search(r"\.scroll \{[^}]*overflow-x: auto", style)  # a wide table scrolls inside its box
    assert re.search(r"svg\.chart \{[^}]*width: 100%", style)  # a chart shrinks with the page
    assert not re.search(r"(img|svg[.\w]*) \{[^}]*min-width", style)
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text


def test_labels_in_charts_are_svg_text(run: Path) -> None:
    text = (run / "report.html").read_text("utf-8")
    charts = re.findall(r'<svg class="chart.*?</svg>', text, re.DOTALL)
    assert len(charts) >= 5  # loss, accuracy, confusion matrix, reliability, risk and coverage
    assert all("</text>" in chart and "<title>" in chart for chart in charts)
    assert any(">green</text>" in chart for chart in charts)  # a class
    names = {kind: {p.name.split(".")[0] for p in (run / "figures").glob(f"*.{kind}")} for kind in ("png", "svg")}
    assert {"curves", "confusion"} <= names["svg"] <= names["png"]


def test_a_run_without_evaluation_images_completes(sightline: Command, colors: Path, tmp_path: Path) -> None:
    options = ("--recipe", "quick", "--model", "cifar10-simple", "--set", "model.hidden_units=[64]", "--epochs", "1")
    nothing = ("--set", "split.mode=stratified", "--set", "split.validation=0", "--set", "split.test=0")
    result = sightline("train", colors, *options, *nothing, "--out", tmp_path / "r", "--format", "json")
    assert result.code == 0, result.err
    assert (result.json["validation"], result.json["test"]) == (None, None)
    assert "No images were held out for evaluation" in (tmp_path / "r" / "report.html").read_text("utf-8")
    assert (tmp_path / "r" / "bundle" / "manifest.json").is_file()


def test_report_rewrites_the_page(sightline: Command, run: Path) -> None:
    before = (run / "report.html").read_text("utf-8")
    (run / "report.html").unlink()
    result = sightline("report", run, "--format", "json")
    assert result.code == 0, result.err
    assert result.json == {"report": str(run / "report.html")}
    after = (run / "report.html").read_text("utf-8")
    headline = re.compile(r'<p class="lead">(.*?)</p>')
    assert headline.findall(before) == headline.findall(after)


def test_a_folder_that_is_not_a_run_has_no_report(sightline: Command, run: Path, tmp_path: Path) -> None:
    result = sightline("report", tmp_path)
    assert (result.code, result.out) == (2, "")
    assert "not a run" in result.err


@pytest.mark.parametrize(("value", "text"), [(0.5, "50.0%"), (None, "not defined"), (1.0, "100.0%")])
def test_fractions_are_formatted_as_percentages(value: float | None, text: str) -> None:
    assert templates.format_percent(value) == text
