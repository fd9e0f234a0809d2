"""The page of a run's results: its matrix leads to the images, and its figures are those of an evaluation."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sightline as sl
from command import COLORS, draw_classes
from sightline.evaluation.bootstrap import Resampling
from sightline.evaluation.report import EvaluationReport
from sightline.evaluation.results import EvaluationResult, LabeledPredictions
from sightline.evaluation.scoring import add_group_intervals, compute_class_metrics
from sightline.inference.results import Thresholds
from sightline.metrics import confusion_matrix
from sightline.studio import messages
from sightline.studio.app import create_app
from sightline.studio.contents import open_studio
from sightline.studio.query import Query
from sightline.studio.results import SplitResults
from task_images import write_task

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


@pytest.mark.parametrize(
    ("name", "english", "chinese"),
    [
        ("size up to 9", "size up to 9", "尺寸 ≤ 9"),
        ("sharpness above 1.5e+04", "sharpness above 1.5e+04", "清晰度 > 1.5e+04"),
        ("temperature -3.5 to 20", "temperature -3.5 to 20", "temperature -3.5 至 20"),
        ("camera unset", "camera unset", "camera 为空"),
        ("camera NAME", "camera NAME", "camera NAME"),
    ],
)
def test_slices_are_named_in_the_language_of_the_page(name: str, english: str, chinese: str) -> None:
    assert [messages.translate_slice(name, messages.select(of)) for of in messages.LANGUAGES] == [english, chinese]


@pytest.fixture
def sliced(run: sl.Run, tmp_path: Path) -> Iterator[tuple[Any, dict[str, set[str]]]]:
    """A client of a copy of the run whose test images are in two slices, and the paths of the images of each."""
    path = tmp_path / "sliced"
    shutil.copytree(run.path, path)
    file = path / "eval" / "test" / "predictions.npz"
    with np.load(file) as saved:
        arrays = dict(saved)
    masks = np.arange(len(arrays["paths"])) % 3 == np.array([[0], [1]])
    names = ["camera ü", "size up to 9"]
    arrays["probabilities"][::2] = np.roll(arrays["probabilities"][::2], 1, 1)  # errors
    np.savez(file, **arrays | {"slice_names": np.array(names), "slice_masks": masks})
    members = {name: {*arrays["paths"][mask].tolist()} for name, mask in zip(names, masks, strict=True)}
    with (
        open_studio(sl.Run(path), tmp_path / "fixes.jsonl") as studio,
        testclient.TestClient(create_app(studio), ADDRESS) as client,
    ):
        yield client, members


def list_rows(client: Any, address: str) -> list[dict[str, Any]]:
    ids = np.frombuffer(client.get(address).content, "<u4")
    return list(client.get("/images", params={"ids": ",".join(map(str, ids))}).json())


def test_slices_filter_and_link_to_their_images(sliced: tuple[Any, dict[str, set[str]]]) -> None:
    client, members = sliced
    assert client.get("/state").json()["counts"]["slice"] == {name: len(paths) for name, paths in members.items()}
    assert 'name="slice"' in client.get("/").text
    page = client.get("/results", params={"split": "test"}).text
    table = page[page.index('id="slices"') :]
    links = re.findall(
        r'<th scope="row"><a href="/([^"]+)">([^<]+)</a>.*?<td>(\d+)</td>', table[: table.index("</table>")], re.DOTALL
    )
    assert {name for _, name, _ in links} == {*members}
    for address, name, count in links:
        rows = list_rows(client, "/order" + address.replace("&amp;", "&"))
        assert {row["path"] for row in rows} == members[name]
        assert len(rows) == int(count)
    for address in ("/", "/results?split=test"):
        assert "尺寸 ≤ 9</" in client.get(address, headers={"Accept-Language": "zh-CN"}).text
    errors = re.findall(r'<a href="/([^"]+state=wrong)">(\d+)<', table)
    assert errors
    for address, count in errors:
        assert len(list_rows(client, "/order" + address.replace("&amp;", "&"))) == int(count)


def test_the_order_by_out_of_distribution_score_is_that_of_an_evaluation(
    run_client: Any, run: sl.Run, evaluation: sl.Evaluation
) -> None:
    stored = run.directory.read_predictions("test")
    assert stored is not None
    assert stored.energies is not None
    assert stored.paths == evaluation.result.paths
    assert isinstance(evaluation.report, EvaluationReport)
    assert evaluation.report.energies is not None
    assert stored.energies == pytest.approx(evaluation.report.energies, rel=1e-3)  # Keras and ONNX Runtime
    rows = list_rows(run_client, "/order?split=test&sort=ood")
    expected = sorted(zip(-stored.energies, stored.paths, strict=True))
    assert [row["path"] for row in rows] == [path for _, path in expected]
    assert list_rows(run_client, "/order?sort=ood")[-1]["energy"] is None, "training images have no score"
    assert 'value="ood"' in run_client.get("/").text


def test_data_without_a_run_has_slices_that_need_no_pixels(tmp_path: Path) -> None:
    folder = draw_classes(tmp_path / "colors", {"blue": (20, 20, 200), "red": (200, 20, 20)}, 12)
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.png"))]
    lines = [f"{name},{Path(name).parent},{'old' if i % 2 else 'new'}" for i, name in enumerate(names)]
    table = folder / "images.csv"
    table.write_text("\n".join(["path,label,camera", *lines]))
    with open_studio(sl.Dataset(table), tmp_path / "fixes.jsonl") as studio:
        assert studio.library.count_values()["slice"] == {"camera new": 12, "camera old": 12}
        assert studio.library.list_ids(Query(slice="camera old")) == [*range(1, 24, 2)]
        with testclient.TestClient(create_app(studio), ADDRESS) as client:
            page = client.get("/").text
    assert 'name="slice"' in page
    assert 'value="ood"' not in page


def test_no_slices_and_no_scores_have_no_controls(studio: Any) -> None:
    with testclient.TestClient(create_app(studio), ADDRESS) as client:
        page = client.get("/").text
    assert 'name="slice"' not in page
    assert 'value="ood"' not in page


def test_the_curve_begins_where_one_error_is_not_most_of_it() -> None:
    labels = np.zeros(200, np.int32)
    confidence = np.linspace(0.999, 0.6, 200)
    probabilities = np.stack([confidence, 1 - confidence], 1).astype(np.float32)
    probabilities[[0, 150]] = probabilities[[0, 150], ::-1]  # the most confident prediction is an error
    results = SplitResults(LabeledPredictions(("",) * 200, labels, probabilities, ("a", "b")))
    coverage, precision = zip(*results.precision_curve, strict=True)
    assert 20 / 200 <= coverage[0] <= 22 / 200
    assert coverage[-1] == 1
    assert min(precision) >= 0.95
    assert results.lowest_precision == 0.9
    few = SplitResults(LabeledPredictions(("",) * 3, labels[:3], probabilities[:3], ("a", "b")))
    ((coverage_of_all, accuracy),) = few.precision_curve
    assert coverage_of_all == 1
    assert accuracy == pytest.approx(2 / 3)


def test_each_cell_opens_its_images(run_client: Any, evaluation: sl.Evaluation) -> None:
    page = run_client.get("/results", params={"split": "test"}).text
    cells = re.findall(r'<td class="(?:right|wrong) shade-\d"><a href="/([^"]+)" title[^>]+>(\d+)', page)
    assert sum(int(count) for _, count in cells) == evaluation.result.count
    assert len(cells) == np.count_nonzero(evaluation.confusion)
    for address, count in cells:
        order = run_client.get("/order" + address.replace("&amp;", "&"))
        assert len(order.content) == 4 * int(count), address


def test_the_intervals_of_groups_are_those_of_an_evaluation() -> None:
    generator = np.random.default_rng(5)
    probabilities = generator.dirichlet((0.5, 0.5, 0.5), 400).astype(np.float32)
    labels = np.array([generator.choice(3, p=row / row.sum()) for row in probabilities.astype(float)], np.int32)
    groups = np.arange(400) // 20
    predictions = LabeledPredictions(("",) * 400, labels, probabilities, ("a", "b", "c"))
    resampling, predicted = Resampling(groups=groups), probabilities.argmax(1)
    selection = SplitResults(predictions, groups).describe_selection(0)
    accuracy = resampling.estimate_fraction(predicted == labels)
    assert selection["precision"] == selection["recall"] == accuracy.to_dict()
    assert selection["recall"]["interval"] != SplitResults(predictions).describe_selection(0)["recall"]["interval"]
    per_class = compute_class_metrics(confusion_matrix(labels, predicted, 3), ("a", "b", "c"))
    for row, one in zip(
        selection["classes"], add_group_intervals(per_class, predicted, labels, resampling), strict=True
    ):
        assert row["precision"]["interval"] == list(one.precision_interval or ())
        assert row["recall"]["interval"] == list(one.recall_interval or ())


def test_the_intervals_of_groups_hold_where_the_model_abstains() -> None:
    generator = np.random.default_rng(6)
    covered = []
    for _ in range(60):
        difficulty = np.repeat(generator.beta(1, 1, 40), 10)  # of the images of each group
        confidence = np.where(generator.random(400) < 0.5, 0.9, 0.6)
        labels = (generator.random(400) < 0.5 * difficulty + 0.25 * (confidence < 0.8)).astype(np.int32)
        probabilities = np.stack([confidence, 1 - confidence], 1).astype(np.float32)
        predictions = LabeledPredictions(("",) * 400, labels, probabilities, ("right", "wrong"))
        selection = SplitResults(predictions, np.arange(400) // 10).describe_selection(0.8)
        low, high = selection["precision"]["interval"]
        covered.append(low <= 0.75 <= high)
        assert selection["abstention"]["interval"] == pytest.approx(
            [1 - end for end in reversed(selection["coverage"]["interval"])]
        )
    assert np.mean(covered) >= 0.85


def test_no_error_in_any_group_has_the_exact_interval_of_as_many_images() -> None:
    labels = np.zeros(40, np.int32)
    probabilities = np.tile(np.array([[0.9, 0.1]], np.float32), (40, 1))
    results = SplitResults(LabeledPredictions(("",) * 40, labels, probabilities, ("a", "b")), np.arange(40) // 10)
    selection = results.describe_selection(0)
    assert selection["precision"]["interval"] == pytest.approx([0.025**0.25, 1.0])
    assert results.describe_selection(1)["precision"]["interval"] is None


def test_a_run_that_was_split_by_groups_has_intervals_of_groups(run: sl.Run, tmp_path: Path) -> None:
    path = tmp_path / "grouped"
    shutil.copytree(run.path, path)
    rows = [json.loads(line) for line in (path / "data.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = (json.dumps(row | {"group": f"g{i // 3}"}) for i, row in enumerate(rows))
    (path / "data.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    grouped = sl.Run(path)
    evaluation = grouped.classifier.evaluate(split="test")
    assert evaluation.result.groups is not None
    with (
        open_studio(grouped, tmp_path / "fixes.jsonl") as studio,
        testclient.TestClient(create_app(studio), ADDRESS) as client,
    ):
        selection = client.get("/results/selection", params={"split": "test"}).json()
        page = client.get("/results", params={"split": "test"}).text
    assert tuple(selection["recall"]["interval"]) == evaluation.metrics["accuracy"].interval
    assert f"account for that, with {evaluation.result.groups} groups" in page
    assert "resample" not in page  # proportions have the interval of Korn and Graubard


@pytest.fixture(scope="module")
def folded_run(tmp_path_factory: pytest.TempPathFactory) -> sl.Run:
    """A run with two folds, whose images belong to groups of three; the source states a test split."""
    root = tmp_path_factory.mktemp("folded")
    folder = draw_classes(root / "colors", COLORS, 20)
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.png"))]
    rows = [f"{name},{Path(name).parent},{'train' if i // 3 % 5 else 'test'},g{i // 3}" for i, name in enumerate(names)]
    table = folder / "images.csv"
    table.write_text("\n".join(["path,label,split,scene", *rows]))
    settings = {"split.folds": 2, "split.group": "column:scene", "train.track": []}
    return sl.train(
        table, recipe="quick", model="cifar10-simple", epochs=1, seed=1, out=root / "run", set=settings
    )  # fmt: skip


@pytest.mark.parametrize(("language", "name"), [("en", "out-of-fold"), ("zh", "折外预测")])
def test_a_run_with_folds_links_to_the_images_that_each_fold_held_out(
    folded_run: sl.Run, tmp_path: Path, language: str, name: str
) -> None:
    result = json.loads((folded_run.path / "eval" / "validation" / "metrics.json").read_text(encoding="utf-8"))
    assert result["groups"] is not None
    with (
        open_studio(folded_run, tmp_path / "fixes.jsonl") as studio,
        testclient.TestClient(create_app(studio), ADDRESS) as client,
    ):
        page = client.get("/results", params={"split": "validation", "lang": language}).text
        assert f'aria-current="true">{name}</a>' in page
        cells = re.findall(r'<td class="(?:right|wrong) shade-\d"><a href="/([^"]+)" title[^>]+>(\d+)', page)
        assert sum(int(count) for _, count in cells) == result["count"] == 48
        pairs = re.findall(r'<li><a href="/([^"]+)">[^<]+</a> (\d+)</li>', page)
        slices = re.findall(r'<a href="/([^"]+slice[^"]+)">[^<]+</a>.*?<td>(\d+)</td>', page, re.DOTALL)
        assert (bool(pairs), bool(slices)) == (result["accuracy"] < 1, bool(result["slices"]))
        for address, count in (*cells, *pairs, *slices):
            assert len(list_rows(client, "/order" + html.unescape(address).partition("&lang")[0])) == int(count)
        (abstained,) = re.findall(r'id="abstained" href="/([^"]+)"', page)
        assert len(list_rows(client, "/order" + html.unescape(abstained).partition("&lang")[0])) == 48
        selection = client.get("/results/selection", params={"split": "validation"}).json()
    assert selection["recall"]["interval"] == result["accuracy_interval"]


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


def test_the_threshold_of_a_tree_is_not_offered_for_leaves(tmp_path: Path) -> None:
    source, settings = write_task("hierarchical", tmp_path / "images", 100)
    run = sl.train(source, epochs=1, seed=1, set=settings, out=tmp_path / "run")
    run.directory.write_thresholds(Thresholds(100, target_precision=0.95, confidence=0.8))
    with (
        open_studio(run, tmp_path / "fixes.jsonl") as studio,
        testclient.TestClient(create_app(studio), ADDRESS) as client,
    ):
        page = client.get("/results").text
        chinese = client.get("/results", params={"lang": "zh"}).text
    assert 'id="selection" data-split="test" data-confidence="0.0"' in page
    assert messages.select("en")["fitted-threshold"] not in page
    assert messages.select("en")["leaves-note"].replace("'", "&#39;") in page
    assert messages.select("zh")["leaves-note"] in chinese


def test_images_without_a_run_have_no_results(studio: Any) -> None:
    with testclient.TestClient(create_app(studio), ADDRESS) as opened:
        assert opened.get("/results").status_code == 404
        assert 'href="/results' not in opened.get("/").text


def test_a_thousand_classes_are_shown_fifty_at_a_time(run: sl.Run, tmp_path: Path) -> None:
    path = tmp_path / "many"
    shutil.copytree(run.path, path)
    for split in ("test", "validation"):
        file = path / "eval" / split / "predictions.npz"
        with np.load(file) as saved:
            arrays = dict(saved)
        classes = arrays["probabilities"].shape[1]
        arrays["probabilities"] = np.pad(arrays["probabilities"], ((0, 0), (0, 1000 - classes)))
        arrays["classes"] = np.array([*arrays["classes"], *(f"more-{i:03}" for i in range(1000 - classes))])
        np.savez(file, **arrays)
    with (
        open_studio(sl.Run(path), tmp_path / "fixes.jsonl") as studio,
        testclient.TestClient(create_app(studio), ADDRESS) as client,
    ):
        first = client.get("/results", params={"split": "test"}).text
        last = client.get("/results", params={"split": "test", "block": "20", "confidence": "0.9"}).text
        beyond = client.get("/results", params={"split": "test", "block": "21"}).text
    assert re.findall(r'data-position="(\d+)"', first) == [str(i) for i in range(50)]
    assert re.findall(r'data-position="(\d+)"', last) == [str(i) for i in range(950, 1000)]
    assert re.findall(r'data-position="(\d+)"', beyond) == [str(i) for i in range(50)]
    assert re.search(r'aria-current="true">951.1000</a>', last)
    assert 'data-confidence="0.9"' in last
    assert first.count("block=") == 20
