"""The results of a run with several labels per image, without a browser and in one."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pytest

import sightline as sl
from browser import NO_BROWSER, find_browser
from sightline.evaluation.label_pairs import PAIR_KINDS, count_pair_errors
from sightline.evaluation.label_thresholds import list_thresholds
from sightline.evaluation.multi_label_metrics import LabelMetrics, compute_label_metrics
from sightline.evaluation.results import LabeledPredictions
from sightline.studio.contents import Studio, open_studio
from sightline.studio.label_results import LabelResults
from studio_client import load_page
from studio_server import LISTED, serve

testclient = pytest.importorskip("starlette.testclient", reason="the extra serve is not installed")


@pytest.fixture(scope="module")
def client(label_studio: Studio) -> Iterator[Any]:
    from sightline.studio.app import create_app

    with testclient.TestClient(create_app(label_studio), "http://127.0.0.1:8000") as opened:
        yield opened


@pytest.fixture(scope="module")
def predictions(label_run: sl.Run) -> LabeledPredictions:
    loaded = label_run.directory.read_predictions("test")
    assert loaded is not None
    return loaded


def compute(predictions: LabeledPredictions, thresholds: Any) -> dict[str, LabelMetrics]:
    rows = compute_label_metrics(
        predictions.classes, predictions.probabilities, predictions.labels.astype(bool), np.array(thresholds)
    )[1]
    return {row.label: row for row in rows}


def load(client: Any, label: str, threshold: float | str) -> dict[str, Any]:
    parameters = {"split": "test", "label": label, "threshold": threshold}
    row: dict[str, Any] = client.get("/results/label", params=parameters).json()
    return row


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.812, 1.0])
def test_the_metrics_of_a_class_are_those_of_evaluate(
    client: Any, predictions: LabeledPredictions, threshold: float
) -> None:
    for label, expected in compute(predictions, [threshold] * 3).items():
        row = load(client, label, threshold)
        assert (row["support"], row["threshold"]) == (expected.support, threshold)
        assert row["average_precision"] == pytest.approx(expected.average_precision.value, abs=1e-9)
        assert row["f1"] == pytest.approx(expected.f1)
        for name in ("precision", "recall"):
            assert row[name]["value"] == getattr(expected, name)
            interval = getattr(expected, f"{name}_interval")
            assert row[name]["interval"] == (None if interval is None else list(interval))


@pytest.mark.parametrize("count", [1, 9])
def test_one_group_is_not_said_to_be_allowed_for(client: Any, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(LabelResults, "groups", count)
    page = client.get("/results", params={"split": "test"}).text
    assert (f"account for that, with {count} groups" in page) == (count > 1)


def test_the_page_begins_with_the_thresholds_of_the_model(
    client: Any, label_run: sl.Run, predictions: LabeledPredictions
) -> None:
    page = client.get("/results", params={"split": "test"})
    assert page.status_code == 200
    thresholds = list_thresholds(label_run.directory.read_thresholds(), predictions.classes)
    for label, expected in compute(predictions, thresholds).items():
        row = page.text.partition(f'data-label="{label}"')[2].partition("</tr>")[0]
        assert f"<td>{expected.support}</td>" in row
        assert expected.recall is not None
        assert f"<b>{100 * expected.recall:.1f}%</b>" in row
    assert 'href="/results"' in client.get("/").text


def test_a_number_opens_its_images(client: Any, label_studio: Studio, predictions: LabeledPredictions) -> None:
    for k, label in enumerate(predictions.classes):
        has, predicted = predictions.labels[:, k].astype(bool), predictions.probabilities[:, k] >= 0.4
        for kind, of_kind in (("correct", has & predicted), ("missed", has & ~predicted), ("wrong", ~has & predicted)):
            parameters = {"split": "test", "label": label, "threshold": 0.4, "kind": kind, "lang": "zh"}
            answer = client.get("/results/images", params=parameters, follow_redirects=False)
            assert answer.status_code == 303
            address, _, query = answer.headers["location"].partition("?")
            assert address == "/"
            assert query.endswith("&lang=zh")
            ids = np.frombuffer(client.get(f"/order?{query}").content, "<u4")
            paths = {row["path"] for row in label_studio.library.describe(ids.tolist())}
            assert paths == {path for path, one in zip(predictions.paths, of_kind, strict=True) if one}


def test_a_threshold_between_two_probabilities_counts_the_images_that_it_lists() -> None:
    low = np.float32(0.4)
    probabilities = np.array([[low], [np.nextafter(low, np.float32(1))]], np.float32)
    between = float(np.average(probabilities.astype(np.float64), weights=[[3], [1]]))  # nearer to the lower one
    labels = np.zeros((2, 1), bool)
    results = LabelResults(LabeledPredictions(("a", "b"), labels, probabilities, ("red",)), np.array([between]))
    for row in (results.describe()[0], results.describe_label("red", between)):
        assert row["wrong"] == 1
    assert results.list_rows("red", between, "wrong") == [1]


def test_the_intervals_of_groups_are_those_of_an_evaluation(predictions: LabeledPredictions) -> None:
    thresholds, groups = np.full(len(predictions.classes), 0.4), np.arange(len(predictions.paths)) // 4
    expected = compute_label_metrics(
        predictions.classes, predictions.probabilities, predictions.labels.astype(bool), thresholds, groups=groups
    )[1]
    results = LabelResults(predictions, thresholds, groups)
    for row, one in zip(results.describe(), expected, strict=True):
        assert row == results.describe_label(one.label, 0.4)
        for name in ("precision", "recall"):
            interval = getattr(one, f"{name}_interval")
            assert row[name]["interval"] == (None if interval is None else list(interval))
    assert results.describe() != LabelResults(predictions, thresholds).describe()


def test_a_number_of_a_pair_opens_its_images(
    client: Any, label_studio: Studio, label_run: sl.Run, predictions: LabeledPredictions
) -> None:
    thresholds = list_thresholds(label_run.directory.read_thresholds(), predictions.classes)
    predicted, labels = predictions.probabilities >= thresholds, predictions.labels.astype(bool)
    pairs = count_pair_errors(predictions.classes, labels, predicted)
    page = client.get("/results", params={"split": "test"}).text
    assert ('id="label-pairs"' in page) == bool(pairs)
    assert pairs, "the model makes errors"
    links = re.findall(r'href="(/results/pair[^"]+)" aria-label="[^"]+">(\d+)<', page)
    assert len(links) == sum(getattr(pair, kind) > 0 for pair in pairs for kind in PAIR_KINDS)
    for link, number in links:
        parameters = dict(parse_qsl(urlsplit(html.unescape(link)).query))
        columns = [predictions.classes.index(parameters[name]) for name in ("first", "second")]
        true, chosen = (np.asarray(of[:, columns].all(1)) for of in (labels, predicted))
        kind = parameters["kind"]
        selected = {"true": true, "predicted": chosen, "wrong": chosen & ~true, "missed": true & ~chosen}[kind]
        answer = client.get(html.unescape(link), follow_redirects=False)
        ids = np.frombuffer(client.get(f"/order?{urlsplit(answer.headers['location']).query}").content, "<u4")
        rows = label_studio.library.describe(ids.tolist())
        assert {row["path"] for row in rows} == {p for p, one in zip(predictions.paths, selected, strict=True) if one}
        assert len(rows) == int(number)
    for odd in ({"first": "zebra"}, {"kind": "all"}):
        parameters = {"first": "red", "second": "blue", "kind": "true"} | odd
        assert client.get("/results/pair", params=parameters).status_code == 404


def test_a_class_that_is_never_predicted_has_no_precision(client: Any) -> None:
    row = load(client, "red", "")
    assert row["threshold"] is None
    assert row["precision"]["value"] is None
    assert (row["recall"]["value"], row["f1"], row["correct"], row["wrong"]) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("parameters", "status"),
    [
        ({"label": "zebra", "kind": "missed"}, 404),
        ({"label": "red", "kind": "all"}, 404),
        ({"label": "red", "kind": "missed", "split": "dev"}, 404),
        ({"label": "red", "kind": "missed", "threshold": "nan"}, 400),
    ],
)
def test_what_there_is_not_is_refused(client: Any, parameters: dict[str, str], status: int) -> None:
    answer = client.get("/results/images", params=parameters, follow_redirects=False)
    assert answer.status_code == status
    assert json.loads(answer.text)["error"]


@pytest.mark.slow
@pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)
def test_a_threshold_is_moved_and_its_errors_are_looked_at(label_studio: Studio, open_page: Any) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    with serve(label_studio) as address:
        page = open_page(f"{address}/results?split=test", ready="#per-class")
        row = page.locator("tr[data-label=red]")
        row.locator("input").focus()
        page.keyboard.press("End")
        playwright.expect(row.locator("output")).to_have_text("1.000")
        support = row.locator("td").first.inner_text()
        playwright.expect(row.locator("[data-kind=missed]")).to_have_text(support)
        row.locator("[data-kind=missed]").click()
        page.wait_for_selector(LISTED)
        playwright.expect(page.locator("#count")).to_have_text(f"{support} images")
        page.go_back()
        page.set_viewport_size({"width": 390, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_class_of_a_run_with_folds_opens_its_images(folded_label_run: sl.Run, tmp_path: Path) -> None:
    with open_studio(folded_label_run, tmp_path / "fixes.jsonl") as studio, load_page(studio) as client:
        page = client.get("/results", params={"split": "validation"}).text
        assert 'aria-current="true">out-of-fold</a>' in page
        links = re.findall(r'<th scope="row"><a href="(/[^"]+)">(\w+)</a></th>\s*<td>(\d+)</td>', page)
        assert len(links) == 3
        for link, label, count in links:
            order = client.get(f"/order{html.unescape(link)[1:]}")
            ids = np.frombuffer(order.content, "<u4")
            rows = client.get("/images", params={"ids": ",".join(map(str, ids))}).json()
            assert all(label in row["labels"] for row in rows)
            assert sum(row["predicted"] is not None for row in rows) == int(count)
