"""A run of grades in the studio: its results and its predictions are those of the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import sightline as sl
from browser import NO_BROWSER, find_browser
from sightline.evaluation.results import Metric
from sightline.studio.contents import Studio
from studio_server import serve

testclient = pytest.importorskip("starlette.testclient", reason="the extra serve is not installed")

# ruff: noqa: RUF001  # Chinese has parentheses of its own
NAMES = {
    "quadratic_weighted_kappa": ("Quadratic weighted kappa", "二次加权 Kappa"),
    "mean_absolute_error": ("Mean absolute error, in grades", "平均绝对误差（级）"),
    "within_one_grade": ("Fraction within one grade", "相差不超过一级的比例"),
}


@pytest.fixture(scope="module")
def metrics(graded_run: sl.Run) -> Mapping[str, Metric]:
    return graded_run.classifier.evaluate(split="test").result.metrics


@pytest.fixture(scope="module")
def image(graded_run: sl.Run) -> Path:
    return min(Path(graded_run.config.data.sources[0]).glob("medium/*.png"))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_has_the_metrics_of_an_evaluation(
    graded_studio: Studio, metrics: Mapping[str, Metric], language: str
) -> None:
    from sightline.studio.app import create_app

    with testclient.TestClient(create_app(graded_studio), "http://127.0.0.1:8000") as client:
        page = client.get("/results", params={"split": "test", "lang": language}).text
    section = page.partition('id="grades-title"')[2].partition("</section>")[0]
    for name, texts in NAMES.items():
        row = section.partition(f"<dt>{texts[language == 'zh']}</dt>")[2].partition("</div>")[0]
        metric = metrics[name]
        assert metric.interval is not None
        assert f"<b>{metric.value:.3f}</b>" in row
        ends = re.findall(r"\d\.\d{3}", row.partition("<span>")[2])
        assert ends == [f"{end:.3f}" for end in metric.interval]


def test_a_run_without_grades_has_none(run_client: Any) -> None:
    assert "grades-title" not in run_client.get("/results", params={"split": "test"}).text


@pytest.mark.slow
@pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)
@pytest.mark.parametrize(("language", "name"), [("en-US", "Expected grade"), ("zh-CN", "期望等级")])
def test_the_expected_grade_of_an_image_is_that_of_predict(
    graded_studio: Studio, graded_run: sl.Run, image: Path, open_page: Any, language: str, name: str
) -> None:
    expected = graded_run.classifier.predict(image)[0].expected_grade
    assert expected is not None
    with serve(graded_studio) as address:
        page = open_page(f"{address}/try", ready="#drop", locale=language)
        page.set_input_files("#file", str(image))
        page.wait_for_selector("#grade:not([hidden])", timeout=60_000)
        assert page.inner_text("#grade").startswith(f"{name} {expected:.2f} ")


@pytest.mark.slow
@pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)
def test_an_image_without_grades_has_no_expected_one(run_studio: Studio, run: sl.Run, open_page: Any) -> None:
    with serve(run_studio) as address:
        page = open_page(f"{address}/try", ready="#drop")
        page.set_input_files("#file", str(next(Path(run.config.data.sources[0]).glob("green/*.png"))))
        page.wait_for_selector("#result:not([hidden])", timeout=60_000)
        assert page.locator("#grade").is_hidden()
