"""Grades, from a folder with a stated order to the report, the bundle, predictions and exports."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score
from typer.testing import CliRunner

import sightline as sl
from graded_images import SIZES, write_sizes
from networks import make_plan
from sightline import backend, jsonio
from sightline.api.comparison import compare
from sightline.api.resuming import resume
from sightline.api.training import train_run
from sightline.callbacks import Callback
from sightline.cli import app
from sightline.config import resolve_config
from sightline.data.checks.class_names import NUMERIC_NAMES
from sightline.data.indexing import build_index
from sightline.data.targets import GRADES
from sightline.data.types import Subset
from sightline.errors import DataError, UsageError
from sightline.evaluation import conformal
from sightline.evaluation.bootstrap import Resampling
from sightline.evaluation.error_analysis import ErrorExample
from sightline.evaluation.ordinal import (
    MAE,
    QWK,
    WITHIN_ONE,
    compare_grades,
    compute_kappa,
    compute_ordinal_metrics,
    list_distance_terms,
)
from sightline.evaluation.results import Metric
from sightline.evaluation.scoring import compute_metrics
from sightline.inference.decisions import make_prediction_sets
from sightline.intervals import wilson_interval
from sightline.models.build import build_model
from sightline.models.head import DENSE_LAYER
from sightline.runs.directory import RunDirectory
from sightline.runs.preflight import run_preflight_checks
from sightline.tasks.protocol import find_task
from sightline.training.linear_head import iter_heads
from synthetic_images import encode

pytestmark = pytest.mark.usefixtures("plain_figures")

TASK = find_task("ordinal")
SETTINGS = [
    "model.task=ordinal", f"data.class_order={json.dumps(SIZES)}", "model.name=cifar10-simple", "model.pooling=average",
    "train.epochs=12", "train.optimizer.learning_rate=0.01",
    "train.track=[]", "train.batch_size=16", "split.mode=stratified", "evaluation.coverage=0.9",
]  # fmt: skip
SCORES = arrays.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 7)), elements=st.floats(-60, 60))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sizes(tmp_path_factory.mktemp("sizes"), 150)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    assert train_run(data, recipe="quick", set=SETTINGS, out=path).bundle is not None
    return path


def test_a_run_learns_how_far_grades_are_apart(run: Path) -> None:
    values = jsonio.read_object(run / "eval" / "test" / "metrics.json")
    assert values["classes"] == list(SIZES), "in the stated order, not by name"
    assert values["metrics"][QWK]["value"] > 0.8
    assert values["metrics"][MAE]["value"] < 0.6
    assert values["metrics"][WITHIN_ONE]["value"] > 0.9
    assert all(values["metrics"][name]["interval"] for name in (QWK, MAE))
    assert jsonio.read_object(run / "run.json")["result"]["metrics"]["test"][QWK] == values["metrics"][QWK]["value"]


def test_the_bundle_holds_the_task_and_the_order(run: Path) -> None:
    manifest = jsonio.read_object(run / "bundle" / "manifest.json")
    assert manifest["task"] == "ordinal"
    assert manifest["classes"] == list(SIZES)
    assert sl.load(run / "bundle").classes == SIZES


def test_a_prediction_has_the_expected_grade_in_every_format(run: Path, data: Path) -> None:
    classifier, image = sl.load(run / "bundle"), data / "large" / "3.png"
    probabilities = classifier.predict_proba(image)[0]
    prediction = classifier.predict(image)[0]
    assert prediction.label == SIZES[probabilities.argmax()]
    assert prediction.expected_grade == pytest.approx(probabilities @ np.arange(5), abs=1e-5)
    arguments = ["predict", str(run), str(image), "--format"]
    row = json.loads(CliRunner().invoke(app, [*arguments, "json"]).stdout)
    (cells,) = csv.DictReader(io.StringIO(CliRunner().invoke(app, [*arguments, "csv"]).stdout))
    assert row["expected_grade"] == pytest.approx(float(cells["expected_grade"]), abs=1e-6)
    text = CliRunner().invoke(app, arguments[:-1]).stdout
    assert f"expected grade {prediction.expected_grade:.2f}" in text


def test_the_errors_have_the_expected_grade_in_every_form(run: Path) -> None:
    errors = jsonio.read_object(run / "eval" / "test" / "metrics.json")["errors"]["most_confident_errors"]
    assert errors, "the intervals of this test need errors"
    page = (run / "report.html").read_text(encoding="utf-8")
    printed = CliRunner().invoke(app, ["evaluate", str(run)]).stdout
    assert "expected grade" in printed.split("most confident errors")[1]
    stored = RunDirectory(run).read_predictions("test")
    assert stored is not None
    by_path = dict(zip(stored.paths, stored.probabilities @ np.arange(5), strict=True))
    for error in errors:
        assert error["expected_grade"] == pytest.approx(by_path[error["path"]], abs=1e-5)
        assert f'expected grade {error["expected_grade"]:.2f}<br><span class="path">{error["path"]}</span>' in page
    assert "expected_grade" not in json.dumps(ErrorExample(0, "a.png", "a", "b", 0.9).to_dict())


def test_an_evaluation_prints_the_distances_of_grades(run: Path) -> None:
    text = CliRunner().invoke(app, ["evaluate", str(run)]).stdout
    for name in (QWK, MAE, WITHIN_ONE):
        assert f"{name.replace('_', ' ')} " in text
    assert "prediction sets for coverage 0.9" in text
    assert jsonio.read_object(run / "bundle" / "manifest.json")["thresholds"]["conformal"] == "contiguous"


def test_the_report_and_the_model_card_state_distances(run: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    for words in ("ordinal classification", "Weighted kappa", "Mean absolute error", "fraction within one grade"):
        assert words in page
    error = jsonio.read_object(run / "eval" / "test" / "metrics.json")["metrics"][MAE]["value"]
    assert f'<dt>Mean absolute error</dt><dd class="value">{error:.3f}</dd>' in page
    assert tuple(re.findall('<td class="name">(.*)</td>$', page, re.MULTILINE)) == SIZES, "not the worst first"
    card = sl.load(run).model_card()
    assert "| Quadratic weighted kappa |" in card
    assert "grades above, from the lowest to the highest" in card


def test_runs_are_compared_by_distances(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    predictions = other / "eval" / "test" / "predictions.npz"
    with np.load(predictions) as arrays_of:
        values = dict(arrays_of)
    values["probabilities"] = np.eye(5, dtype=np.float32)[
        np.minimum(values["labels"] + 1, 4)
    ]  # all but the last one off
    np.savez(predictions, **values)
    (comparison,) = compare([run, other]).paired
    assert comparison.grades is not None
    evaluation = jsonio.read_object(run / "eval" / "test" / "metrics.json")["metrics"]
    error = np.minimum(values["labels"] + 1, 4) - values["labels"]
    expected = error.mean() - evaluation[MAE]["value"]
    assert comparison.grades.error_difference.value == pytest.approx(expected)
    interval = comparison.grades.error_difference.interval
    assert interval is not None
    assert interval.low < expected < interval.high
    assert f"mean absolute error {expected:+.4f} (95% interval" in comparison.describe()


@pytest.mark.slow
def test_a_run_is_explained_exported_and_extended(run: Path, data: Path, tmp_path: Path) -> None:
    classifier, image = sl.load(run), data / "huge" / "4.png"
    assert classifier.explain(image)[0].label in SIZES
    exported = classifier.export(tmp_path / "int8.onnx", precision="int8")
    assert exported.parity.top1_agreement > 0.8
    quantized = sl.load(tmp_path / "int8.onnx")
    assert quantized.classes == SIZES
    assert quantized.predict(image)[0].expected_grade is not None
    longer = tmp_path / "longer"
    shutil.copytree(run, longer)
    resume(longer, epochs=13)
    assert RunDirectory.open(longer).read_history()[-1].epoch == 13


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([], "put all of them in order, from the lowest grade to the highest"),
        (["tiny", "huge"], "lacks the class 'large'"),
        ([*SIZES, "giant"], "has 'giant', which has no training images"),
        ([*SIZES, "huge"], "lists 'huge' twice"),
    ],
)
def test_an_order_that_is_not_known_is_refused(data: Path, tmp_path: Path, order: list[str], message: str) -> None:
    settings = ["model.task=ordinal", f"data.class_order={json.dumps(order)}"]
    with pytest.raises(DataError, match=message):
        train_run(data, recipe="quick", set=settings, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_grades_are_not_reported_as_sorted_by_text(tmp_path: Path) -> None:
    for grade in range(11):
        for i in range(3):
            path = tmp_path / "grades" / str(grade) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(Image.fromarray(np.full((8, 8, 3), 20 * grade + i, np.uint8))))
    index = build_index(tmp_path / "grades")
    for task, kinds in (("single_label", {NUMERIC_NAMES}), ("ordinal", set())):
        config = resolve_config(assignments=[f"model.task={task}"])
        _, findings = run_preflight_checks(index, config, Callback())
        assert {finding.kind for finding in findings} & {NUMERIC_NAMES} == kinds
        checked = sl.Dataset.from_folder(tmp_path / "grades", set={"model.task": task}).check()
        assert {finding.kind for finding in checked.findings} & {NUMERIC_NAMES} == kinds


def test_numbers_in_names_state_an_order() -> None:
    assert GRADES.order_classes({"grade 10", "grade 2", "grade 1"}, ()) == ("grade 1", "grade 2", "grade 10")
    assert GRADES.order_classes({"1.5mm", "0.5mm"}, ()) == ("0.5mm", "1.5mm")
    for names in ({"-1", "1"}, {"a1", "b2"}, {"1", "01"}, {"1-2", "3-4"}):
        with pytest.raises(DataError, match=r"data\.class_order"):
            GRADES.order_classes(names, ())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.head=sigmoid", "one sigmoid for each boundary"),
        ("train.loss=asymmetric", "several labels per image"),
        ("evaluation.target_fnr=0.1", "several labels per image"),
    ],
)
def test_settings_of_other_tasks_are_refused(data: Path, tmp_path: Path, setting: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train_run(data, recipe="quick", set=[*SETTINGS, setting], out=tmp_path / "run")


@given(SCORES)
def test_probabilities_are_valid_and_no_higher_grade_is_exceeded_more_often(scores: np.ndarray) -> None:
    p = TASK.activate(TASK.link_scores(scores)).astype(np.float64)
    assert p.shape == (len(scores), scores.shape[1] + 1)
    assert (p >= 0).all()
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-6)
    conditional = 1 / (1 + np.exp(-scores))
    exceeded = np.cumprod(conditional, 1)
    np.testing.assert_allclose(1 - np.cumsum(p, 1)[:, :-1], exceeded, atol=2e-5)
    assert (np.diff(exceeded, axis=1) <= 0).all()


@given(SCORES, st.floats(0, 1))
def test_prediction_sets_of_grades_have_no_gaps(scores: np.ndarray, quantile: float) -> None:
    p = TASK.activate(TASK.link_scores(scores))
    for row, in_set in zip(p, make_prediction_sets(p, quantile, "contiguous"), strict=True):
        places = np.flatnonzero(in_set)
        assert len(places) == places[-1] - places[0] + 1
        assert in_set[row.argmax()]
        assert (in_set | ~make_prediction_sets(row[None], quantile)[0]).all(), "no class of other sets is missing"


def test_prediction_sets_of_grades_cover_as_often_as_wanted() -> None:
    rng = np.random.default_rng(3)
    p = rng.dirichlet(np.full(6, 0.7), 20_000).astype(np.float32)
    labels = (p.cumsum(1) < rng.random((len(p), 1))).sum(1).clip(0, 5).astype(np.int32)
    quantile = conformal.fit_quantile(p[:10_000], labels[:10_000], 0.8, "contiguous")
    result = conformal.evaluate_sets(p[10_000:], labels[10_000:], quantile, 0.8, "contiguous")
    assert result.coverage == pytest.approx(0.8, abs=0.015)


def test_the_network_computes_the_probabilities_of_its_scores() -> None:
    import keras

    model = build_model(make_plan("cifar10-simple", side=32, classes=4, options={"activation": "ordinal"})).model
    scores = keras.Model(model.input, model.get_layer(DENSE_LAYER).output)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3)).astype(np.uint8)
    linked = TASK.link_scores(backend.keras().ops.convert_to_numpy(scores(pixels)))
    outputs = {name: backend.keras().ops.convert_to_numpy(value) for name, value in model(pixels).items()}
    np.testing.assert_allclose(outputs["logits"], linked, atol=1e-5)
    np.testing.assert_allclose(outputs["probabilities"], TASK.activate(linked), atol=1e-6)


def test_the_gradient_is_that_of_the_loss() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(0, 2, (40, 3)), rng.integers(0, 4, 40).astype(np.int32)
    gradient = TASK.differentiate_loss(scores, labels)
    for k in range(3):
        moved = scores.copy()
        moved[:, k] += 1e-6
        change = (TASK.differentiate_loss(moved, labels).losses - gradient.losses).sum(1) / 1e-6
        np.testing.assert_allclose(change, gradient.residuals[:, k], atol=1e-5)
    loss, accuracy, _ = TASK.score(TASK.link_scores(scores), labels)
    assert gradient.losses.mean() == pytest.approx(loss, rel=1e-5)
    assert gradient.correct.mean() == accuracy


def test_a_solved_head_is_a_logistic_regression_of_each_boundary() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(300, 4))
    features = ((features - features.mean(0)) / features.std(0)).astype(np.float32)
    labels = np.digitize(features[:, 0] + 0.5 * rng.normal(size=300), [-0.8, 0.2, 1.0]).astype(np.int32)
    subset = Subset(features, np.arange(300), labels, tuple(map(str, range(300))))
    head = next(iter_heads(TASK, subset, 4, penalties=(0.01,)))
    for boundary in range(3):
        reached = labels >= boundary
        reference = LogisticRegression(C=1 / (300 * 0.01), tol=1e-8)
        reference.fit(features[reached], labels[reached] > boundary)
        np.testing.assert_allclose(head.kernel[:, boundary], reference.coef_[0], atol=0.02)
        np.testing.assert_allclose(head.bias[boundary], reference.intercept_[0], atol=0.02)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
def test_kappa_is_that_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    true, predicted = (np.array(values) for values in zip(*pairs, strict=True))
    kappa = compute_kappa(list_distance_terms(true.astype(np.int32), predicted.astype(np.int64)).mean(0))
    if len(set(true) | set(predicted)) == 1:
        assert np.isnan(kappa)
    else:
        assert kappa == pytest.approx(cohen_kappa_score(true, predicted, labels=range(5), weights="quadratic"))


def test_metrics_that_are_not_defined_say_why() -> None:
    same = np.zeros(5, np.int64)
    metrics = compute_ordinal_metrics(same.astype(np.int32), same, 5)
    assert metrics[QWK].value is None
    assert metrics[QWK].note == "all images and predictions have the same grade"
    assert metrics[MAE].value == 0
    assert compute_ordinal_metrics(same[:0].astype(np.int32), same[:0], 5)[MAE].note == "there are no images"


def test_groups_widen_the_intervals() -> None:
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(20), 10)
    true = rng.integers(0, 5, 20)[groups].astype(np.int32)
    predicted = np.clip(true + rng.integers(-1, 2, 20)[groups], 0, 4).astype(np.int64)
    alone, grouped = compute_ordinal_metrics(true, predicted, 5), compute_ordinal_metrics(true, predicted, 5, groups)
    for name in (QWK, MAE):
        assert alone[name].value == grouped[name].value
        first, second = alone[name].interval, grouped[name].interval
        assert first is not None
        assert second is not None
        assert second.high - second.low > 1.5 * (first.high - first.low)
    hits, count = int((np.abs(true - predicted) <= 1).sum()), len(true)
    assert hits == count
    assert alone[WITHIN_ONE].interval == wilson_interval(hits, count)
    assert grouped[WITHIN_ONE].interval == pytest.approx((0.025 ** (1 / 20), 1.0))
    single = compute_ordinal_metrics(true, predicted, 5, np.zeros(count, np.int64))
    assert {m.note for m in single.values()} == {"no interval: all images are in one group"}


def test_intervals_of_few_groups_stay_within_the_limits_of_the_metrics() -> None:
    groups, true = np.repeat(np.arange(6), 3), np.tile(np.array([0, 1, 2, 1, 0, 2], np.int32), 3)
    good, poor = np.tile([0, 1, 2, 1, 1, 2], 3), np.tile([2, 1, 0, 1, 0, 2], 3)
    metrics = compute_ordinal_metrics(true, poor, 3, groups)
    probabilities = (0.9 * np.eye(3) + 0.1 / 3)[poor].astype(np.float32)
    brier = compute_metrics(probabilities, true, Resampling(groups=groups))["brier"]
    difference = compare_grades(true, good, poor, 3, groups)
    for metric in (metrics[MAE], brier, difference.kappa_difference, difference.error_difference):
        assert metric.interval is not None
        assert -2 <= metric.interval.low < metric.interval.high <= 2


def test_one_image_says_why_it_has_no_interval() -> None:
    metrics = compute_ordinal_metrics(np.array([1], np.int32), np.array([2]), 5)
    assert metrics[MAE] == Metric(1.0, None, "no interval: fewer than 5 images")
    assert metrics[WITHIN_ONE] == Metric(1.0, wilson_interval(1, 1))


@pytest.mark.slow
def test_grades_are_missed_by_no_more_than_by_a_model_that_does_not_know_their_order(tmp_path: Path) -> None:
    """On overlapping sizes, with the features of a frozen network, ten seeds and equal settings."""
    data = write_sizes(tmp_path / "sizes", 300, spread=3.0)
    kappas, errors = [], []
    for task in ("ordinal", "single_label"):
        settings = [f"model.task={task}", f"data.class_order={json.dumps(SIZES)}", "train.track=[]", "split.test=0.5"]
        means = []
        for seed in range(10):  # with three, chance decides which kappa is higher
            out = tmp_path / f"{task}{seed}"
            train_run(data, recipe="transfer", seed=seed, set=[*settings, "train.effort=fast"], out=out)
            with np.load(out / "eval" / "test" / "predictions.npz") as loaded:
                labels, predicted = loaded["labels"], loaded["probabilities"].argmax(1)
            means.append(list_distance_terms(labels, predicted).mean(0))
        kappas.append(compute_kappa(np.mean(means, 0)))
        errors.append(np.mean(means, 0)[0])
    assert kappas[0] >= kappas[1]
    assert errors[0] <= errors[1]
