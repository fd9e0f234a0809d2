"""The page of a run's results: its matrix leads to the images, and its figures are those of an evaluation."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import sightline as sl
from sightline.evaluation.results import EvaluationResult, LabeledPredictions
from sightline.studio.results import SplitResults

pytest.importorskip("httpx2", reason="Starlette's test client needs httpx2")
testclient = pytest.importorskip("starlette.testclient", reason="the extra serve is not installed")

ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def evaluation(run: sl.Run) -> sl.Evaluation:
    return run.classifier.evaluate(split="test")


def test_the_figures_are_those_of_an_evaluation(run_client: Any, evaluation: sl.Evaluation) -> None:
    selection = run_client.get("/results/selection", params={"split": "test"}).json()
    assert isinstance(evaluation.result, EvaluationResult)
    assert selection["precision"]["value"] == selection["recall"]["value"] == evaluation.accuracy
    assert tuple(selection["precision"]["interval"]) == evaluation.metrics["accuracy"].interval
    for row, one in zip(selection["classes"], evaluation.result.per_class, strict=True):
        assert (row["label"], row["support"]) == (one.label, one.support)
        assert (row["precision"]["value"], row["recall"]["value"]) == (one.precision, one.recall)
        assert tuple(row["recall"]["interval"]) == one.recall_interval


def test_the_figures_at_a_threshold_are_those_of_evaluate() -> None:
    from sightline.evaluation.selective import choose_threshold, evaluate_threshold

    generator = np.random.default_rng(3)
    probabilities = generator.dirichlet((0.4, 0.4, 0.4), 1000).astype(np.float32)
    labels = np.array([generator.choice(3, p=row / row.sum()) for row in probabilities.astype(float)], np.int32)
    results = SplitResults(LabeledPredictions(("",) * 1000, labels, probabilities, ("a", "b", "c")))
    confidences, correct = probabilities.max(1), probabilities.argmax(1) == labels
    threshold = choose_threshold(confidences, correct, 0.7).confidence
    assert threshold is not None
    expected = evaluate_threshold(confidences >= np.float32(threshold), correct, 0.7)
    selection = results.describe_selection(threshold)
    assert (selection["accepted"], selection["count"]) == (expected.accepted, expected.count)
    assert (selection["coverage"]["value"], selection["precision"]["value"]) == (expected.coverage, expected.precision)
    assert tuple(selection["precision"]["interval"]) == expected.interval
    assert selection["recall"]["value"] == (correct & (confidences >= np.float32(threshold))).mean()
    assert (confidences <= selection["below"]).sum() == expected.count - expected.accepted, "its link shows the others"
    for coverage in (0.0, 0.25, 0.9, 1.0):
        reached = results.describe_selection(results.choose_confidence(coverage))["coverage"]["value"]
        assert coverage <= reached <= coverage + 1 / 500


def test_each_cell_opens_its_images(run_client: Any, evaluation: sl.Evaluation) -> None:
    page = run_client.get("/results", params={"split": "test"}).text
    cells = re.findall(r'<td class="(?:right|wrong) shade-\d"><a href="/([^"]+)" title[^>]+>(\d+)', page)
    assert sum(int(count) for _, count in cells) == evaluation.result.count
    assert len(cells) == np.count_nonzero(evaluation.confusion)
    for address, count in cells:
        order = run_client.get("/order" + address.replace("&amp;", "&"))
        assert len(order.content) == 4 * int(count), address


@pytest.mark.parametrize("query", ["split=none", "confidence=2", "confidence=x", "coverage=nan"])
def test_odd_questions_are_refused(run_client: Any, query: str) -> None:
    response = run_client.get(f"/results/selection?{query}")
    assert response.status_code in (400, 404)
    assert response.json()["error"].endswith(".")


def test_many_classes_are_a_part_of_the_matrix() -> None:
    labels = np.arange(300, dtype=np.int32)
    probabilities = np.eye(300, dtype=np.float32)[np.where(labels % 7 == 0, (labels + 1) % 300, labels)]
    results = SplitResults(LabeledPredictions(("",) * 300, labels, probabilities, tuple(map(str, range(300)))))
    rows = results.list_cells()
    assert len(rows) == 40
    assert sum(cell["count"] for row in rows for cell in row["cells"] if not cell["is_right"]) >= 20
    assert len(results.list_confused_pairs()) == 43


def test_images_without_a_run_have_no_results(studio: Any) -> None:
    from sightline.studio.app import create_app

    with testclient.TestClient(create_app(studio), ADDRESS) as opened:
        assert opened.get("/results").status_code == 404
        assert 'href="/results' not in opened.get("/").text
