"""What is said of a classifier, from what it says of validation and test images: values by hand, no training."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from typing import Any

import numpy as np
import pytest

from sightline import metrics
from sightline.cli import evaluate, evaluation_view
from sightline.data.types import ImageRecord, LabeledSubset, Subset
from sightline.errors import DataError, UsageError
from sightline.evaluation.report import (
    EvaluationReport,
    build_report,
    check_request,
    fit_thresholds,
)
from sightline.inference.predictor import ModelOutputs, Outputs
from sightline.inference.results import ThresholdRequest
from sightline.report import html_report, sentences, templates
from sightline.tasks.protocol import EvaluationInputs

OK = ("defect", "ok")


def make_outputs(
    labels: list[int], wrong: list[int], classes: tuple[str, ...] = OK, sure: tuple[float, float] = (8, 1)
) -> ModelOutputs:
    """What a network says: the class of each image, the next one for those at `wrong`, from very to less sure."""
    count, truth = len(labels), np.array(labels, np.int32)
    predictions = truth.copy()
    predictions[wrong] = (predictions[wrong] + 1) % len(classes)
    logits = np.zeros((count, len(classes)), np.float32)
    logits[np.arange(count), predictions] = np.linspace(*sure, count)
    return ModelOutputs(Outputs(metrics.softmax(logits), logits, np.zeros((count, 3), np.float32)), truth)


def build_evaluation_report(
    test: ModelOutputs, validation: ModelOutputs | None, classes: tuple[str, ...] = OK, **options: Any
) -> EvaluationReport:
    """Evaluate a network by its outputs for test and validation images."""
    count = len(test.labels)
    paths = tuple(f"{i}.png" for i in range(count))
    pixels = np.zeros((count, 2, 2, 3), np.uint8)
    images = tuple(
        ImageRecord(path, path, classes[k], "test", 9, 9) for path, k in zip(paths, test.labels, strict=True)
    )  # fmt: skip
    labeled = LabeledSubset(Subset(pixels, np.arange(count), test.labels, paths), images, ())
    return build_report(EvaluationInputs(classes, test, labeled, "test", validation, **options))


def to_metrics(value: EvaluationReport) -> dict[str, Any]:
    """Return all that `metrics.json` holds."""
    return value.to_dict()


def headline(value: EvaluationReport) -> str:
    return " ".join(page_sentence(name, to_metrics(value)) for name in ("accuracy", "remarks"))


def page_sentence(name: str, metrics_dict: dict[str, Any]) -> str:
    """Return what a page says of an evaluation, by the name of the macro in its template."""
    text = str(getattr(templates.make_environment().get_template("sentences.html.j2").module, name)(metrics_dict))
    return " ".join(unescape(re.sub("<[^>]*>", "", text)).split())


def test_the_headline_promises_nothing_that_was_chosen_on_the_test_images_themselves() -> None:
    """A tenth of the test images are wrong, the least sure ones: the surest 90% look perfect, by hindsight."""
    labels = [0, 1] * 100
    test = make_outputs(labels, list(range(180, 200)))
    assert test.outputs.probabilities.max(1)[:180].min() > test.outputs.probabilities.max(1)[180:].max()
    few = headline(build_evaluation_report(test, make_outputs([0, 1] * 10, [])))
    assert "99% precision" not in few
    assert (
        "The 20 validation images are too few, or too often misclassified, to choose a confidence threshold for" in few
    )
    assert "precision" not in headline(build_evaluation_report(test, None))
    assert "precision" not in headline(build_evaluation_report(test, test)), (
        "validation evaluated on itself says nothing"
    )


def test_the_report_says_whether_a_target_is_met_and_by_which_images() -> None:
    validation, test = make_outputs([0, 1] * 200, []), make_outputs([0, 1] * 200, [10, 50])
    thresholds, _ = fit_thresholds(validation, ThresholdRequest(target_precision=0.98), None, OK)
    strict, _ = fit_thresholds(validation, ThresholdRequest(target_precision=0.99), None, OK)
    met = page_sentence("thresholds", to_metrics(build_evaluation_report(test, validation, thresholds=thresholds)))
    assert "of which 99.5% are correct (95% interval 98.2% to 99.9%). The target of 98.0% is met" in met
    short = page_sentence("thresholds", to_metrics(build_evaluation_report(test, validation, thresholds=strict)))
    nothing, _ = fit_thresholds(make_outputs([0, 1] * 10, []), ThresholdRequest(target_precision=0.99), None, OK)
    assert page_sentence(
        "thresholds", to_metrics(build_evaluation_report(test, validation, thresholds=nothing))
    ).startswith("No threshold reaches a precision of 99.0% on validation")
    assert "The target of 99.0% is not demonstrated: the precision is at least 98.4% with 95% confidence." in short
    same = build_evaluation_report(validation, validation, thresholds=thresholds)
    assert same.selective is not None
    assert same.selective.met is None
    assert "The threshold was fitted on these images" in page_sentence("thresholds", to_metrics(same))


def test_the_headline_states_what_a_threshold_of_validation_reached_on_test() -> None:
    labels = [0, 1] * 200
    validation, test = make_outputs(labels, []), make_outputs(labels, [10, 50, 100, 150])
    metrics_dict = to_metrics(build_evaluation_report(test, validation))["selective_check"]
    assert (metrics_dict["threshold"]["target"], metrics_dict["threshold"]["count"]) == (0.99, 400)
    assert (
        metrics_dict["evaluated"]["accepted"],
        metrics_dict["evaluated"]["precision"],
        metrics_dict["evaluated"]["met"],
    ) == (400, 0.99, False)
    line = headline(build_evaluation_report(test, validation))
    assert (
        "the model covers 100.0% of these images, with a precision of 99.0% (95% interval 97.5% to 99.6%; at least "
        "97.7%" in line
    )
    assert "97.7% with 95% confidence): the target is not demonstrated." in line
    assert "the target is met" in headline(build_evaluation_report(make_outputs(labels, []), validation))


def test_a_precision_below_the_target_is_said_to_miss_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Every image is sure, and all test images are wrong: 0% is not merely a precision that shows too little."""
    labels = [0, 1] * 100
    validation, test = make_outputs(labels, []), make_outputs(labels, list(range(200)))
    assert "0.0% with 95% confidence): the target is not met." in headline(build_evaluation_report(test, validation))
    thresholds, _ = fit_thresholds(validation, ThresholdRequest(target_precision=0.9), None, OK)
    report = build_evaluation_report(test, validation, thresholds=thresholds)
    evaluation_view.print_report(report)
    assert "  target 0.9 not met: the precision is at least 0.0000" in capsys.readouterr().out
    value = to_metrics(report)
    assert "The target of 90.0% is not met: the precision is at least 0.0%" in page_sentence("thresholds", value)


def test_a_precision_without_an_interval_is_stated() -> None:
    """All images above the threshold are in one group, so that nothing is known of others."""
    labels = [0, 1] * 200
    validation, test = make_outputs(labels, []), make_outputs(labels, [10, 50])
    thresholds, _ = fit_thresholds(validation, ThresholdRequest(target_precision=0.98), None, OK)
    value = to_metrics(build_evaluation_report(test, validation, thresholds=thresholds))
    value["selective"] |= {"interval": None, "lower_bound": None, "met": False}
    assert page_sentence("thresholds", value).endswith(
        "of which 99.5% are correct. The target of 98.0% is not demonstrated: all images above the threshold are in "
        "one group."
    )
    check = value["selective_check"] | {"evaluated": value["selective_check"]["evaluated"] | value["selective"]}
    line = page_sentence("remarks", value | {"thresholds": None, "selective_check": check})
    assert "99.5% (without an interval: all images above it are in one group): the target is not demonstrated." in line


def test_a_class_without_an_image_is_named_wherever_metrics_are() -> None:
    """300 good ones and no defect in the test split: right on all of them, and nothing is known of defects."""
    value = build_evaluation_report(make_outputs([1] * 45, []), None)
    metrics_dict = to_metrics(value)
    assert metrics_dict["untested_classes"] == ["defect"]
    assert metrics_dict["per_class"][0] == {
        "label": "defect", "precision": None, "precision_interval": None, "recall": None, "recall_interval": None,
        "f1": None, "support": 0,
    }  # fmt: skip
    assert (metrics_dict["metrics"]["macro_f1"]["value"], metrics_dict["metrics"]["macro_f1"]["classes"]) == (1, 1)
    lead = page_sentence("accuracy", metrics_dict)
    assert lead.startswith("Accuracy 100.0% on 45")
    assert lead.endswith("1 of 2 classes has no image in the test split and is not tested: 'defect'.")
    assert [row["label"] for row in html_report.sort_classes(metrics_dict["per_class"])] == ["ok"]
    assert metrics_dict["binary"]["sensitivity"]["value"] is None


def test_many_classes_without_images_are_summed_up_in_a_sentence() -> None:
    classes = tuple(f"class {i:04}" for i in range(1000))
    metrics_dict = to_metrics(build_evaluation_report(make_outputs([0, 1, 1, 2], [0], classes), None, classes))
    lead = page_sentence("accuracy", metrics_dict)
    assert "997 of 1,000 classes have no image in the test split and are not tested: 'class 0003', " in lead
    assert lead.endswith("'class 0005' and 994 more.")
    assert lead.endswith(sentences.describe_untested(metrics_dict["untested_classes"], 1000, "the test split"))
    assert len(metrics_dict["untested_classes"]) == 997, "JSON has them all"


def test_a_thousand_classes_are_not_a_thousand_lines(capsys: pytest.CaptureFixture[str]) -> None:
    classes = tuple(f"class {i:04}" for i in range(1000))
    value = build_evaluation_report(make_outputs(list(range(900)), [3, 4], classes), None, classes)
    evaluate.print_evaluation(value.evaluation, "test", "all are in eval/test/metrics.json")
    evaluation_view.print_report(value)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 80
    assert "... and 860 more of 900: all are in eval/test/metrics.json" in lines
    assert "100 of 1,000 classes have no image in the test split and are not tested: 'class 0900', " in lines[1]
    assert "over 900 of 1,000 classes" in next(line for line in lines if line.startswith("macro F1"))
    assert [line.split()[1] for line in lines if line.startswith("class 0")][:2] == ["0003", "0004"], "the worst first"
    assert len(to_metrics(value)["per_class"]) == 1000


def test_all_errors_are_counted_not_those_that_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    value = build_evaluation_report(make_outputs([0, 1] * 40, list(range(30))), None)
    errors = to_metrics(value)["errors"]
    assert (errors["count"], len(errors["most_confident_errors"])) == (30, 12)
    evaluation_view.print_report(value)
    assert "... and 25 more of 30: --format json lists the first 12" in capsys.readouterr().out.splitlines()
    few = build_evaluation_report(make_outputs([0, 1] * 40, list(range(7))), None)
    evaluation_view.print_report(few)
    assert "... and 2 more of 7: --format json lists all" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("split", ["validation", "out-of-fold"])
def test_prediction_sets_say_whether_they_were_fitted_on_the_same_images(
    split: str, capsys: pytest.CaptureFixture[str]
) -> None:
    validation, test = make_outputs([0, 1] * 40, [3]), make_outputs([0, 1] * 40, [5, 7])
    thresholds, _ = fit_thresholds(validation, ThresholdRequest(coverage=0.9), None, OK)
    same, other = (build_evaluation_report(of, validation, thresholds=thresholds) for of in (validation, test))
    for value, is_same in ((replace(same, split=split), True), (replace(other, split="test"), False)):
        evaluation_view.print_report(value)
        assert ("the sets were fitted on these same images" in capsys.readouterr().out) is is_same
        assert ("90.0%, fitted on these images" in page_sentence("thresholds", to_metrics(value))) is is_same
    evaluation_view.print_report(replace(same, split="other"))  # of a bundle, with `DATA --split validation`
    assert "the sets were fitted on these same images" in capsys.readouterr().out


def test_a_rate_that_is_not_defined_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    """No image reaches the threshold for a specificity, so that there is no predictive value."""
    request = ThresholdRequest(positive="ok", specificity=0.9)
    validation, test = make_outputs([0, 1] * 200, []), make_outputs([0] * 40, [])
    evaluation_view.print_report(build_evaluation_report(test, validation, threshold_request=request))
    line = next(line for line in capsys.readouterr().out.splitlines() if "on these images: sensitivity" in line)
    assert "sensitivity not defined (no image of the positive class)" in line
    assert "()" not in line


def test_a_test_split_that_differs_from_validation_is_a_warning() -> None:
    """The case of given splits of another source: 0.972 on validation, 0.8125 on test."""
    validation = make_outputs([0, 1] * 250, list(range(486, 500)))
    test = make_outputs([0, 1] * 312, list(range(507, 624)))
    metrics_dict = to_metrics(build_evaluation_report(test, validation))
    assert metrics_dict["validation"]["accuracy"] == 0.972
    assert metrics_dict["accuracy"] == 0.8125
    assert metrics_dict["validation"]["accuracy_differs"]
    line = headline(build_evaluation_report(test, validation))
    assert "The test split differs significantly from the validation split: accuracy -15.9 points (95%" in line
    assert "check how the splits were made" in line
    assert sentences.describe_shift(metrics_dict["validation"], "test") in line, "the terminal says the same"
    assert not sentences.describe_shift(metrics_dict["validation"], "train"), "of images that the model has learned"
    alike = to_metrics(build_evaluation_report(make_outputs([0, 1] * 250, list(range(484, 500))), validation))
    assert not alike["validation"]["accuracy_differs"]
    assert "more than chance" not in headline(
        build_evaluation_report(make_outputs([0, 1] * 250, list(range(484, 500))), validation)
    )
    report = build_evaluation_report(test, validation)
    assert report.validation is not None
    folded = replace(report, validation=replace(report.validation, split="out-of-fold"))
    line = "The test split differs significantly from the out-of-fold predictions: accuracy -15.9 points (95%"
    assert line in headline(folded)
    assert line in sentences.describe_shift(to_metrics(folded)["validation"], "test")
    assert "validation" not in sentences.describe_shift(to_metrics(folded)["validation"], "test")
    assert to_metrics(build_evaluation_report(test, None))["validation"] is None
    assert to_metrics(build_evaluation_report(validation, validation))["validation"] is None


def test_rates_of_two_classes_come_from_validation() -> None:
    request = ThresholdRequest(positive="ok", sensitivity=0.9, specificity=0.8)
    validation, test = (
        make_outputs([0, 1] * 200, list(range(380, 400))),
        make_outputs([0, 1] * 150, list(range(270, 300))),
    )
    metrics_dict = to_metrics(build_evaluation_report(test, validation, threshold_request=request))["binary"]
    assert (metrics_dict["positive"], metrics_dict["rule"], metrics_dict["positives"]) == ("ok", "as requested", 150)
    assert [(p["rate"], p["target"], p["count"]) for p in metrics_dict["operating_points"]] == [
        ("sensitivity", 0.9, 400), ("specificity", 0.8, 400),
    ]  # fmt: skip
    for point in metrics_dict["operating_points"]:
        assert point["rates"][point["rate"]]["interval"] is not None
        assert isinstance(point["met"], bool)
    same = to_metrics(build_evaluation_report(validation, validation, threshold_request=request))["binary"][
        "operating_points"
    ][0]
    assert (same["rates"], same["met"]) == (None, None), "the images that it was chosen on do not evaluate it"
    with pytest.raises(DataError, match="chosen on validation images, and there are none"):
        build_evaluation_report(test, None, threshold_request=request)


def test_what_does_not_fit_the_classes_is_refused() -> None:
    three = ("a", "b", "c")
    with pytest.raises(UsageError, match=r"A target specificity needs a model with two classes; this one has 3"):
        check_request(ThresholdRequest(specificity=0.9), three)
    with pytest.raises(UsageError, match="needs exactly two classes"):
        check_request(ThresholdRequest(positive="a"), three)
    for name, request in (
        ("target sensitivity", ThresholdRequest(sensitivity=95)), ("target precision", ThresholdRequest(95)),
        ("coverage", ThresholdRequest(coverage=1)),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=f"The {name} must be between 0 and 1"):
            check_request(request, OK)
    assert to_metrics(build_evaluation_report(make_outputs([0, 1, 2], [], three), None, three))["binary"] is None


def test_curves_in_json_are_short_and_keep_their_ends() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 3000).astype(np.int32)
    logits = rng.normal(0, 1, (3000, 2)).astype(np.float32)
    logits[np.arange(3000), labels] += 1
    test = ModelOutputs(Outputs(metrics.softmax(logits), logits, np.zeros((3000, 3), np.float32)), labels)
    roc = to_metrics(build_evaluation_report(test, None))["binary"]["roc"]
    assert len(roc["sensitivity"]) == len(roc["threshold"]) == 501
    assert (roc["false_positive_rate"][0], roc["sensitivity"][0], roc["threshold"][0]) == (0, 0, None)
    assert (roc["false_positive_rate"][-1], roc["sensitivity"][-1]) == (1, 1)
    json.dumps(to_metrics(build_evaluation_report(test, None)), allow_nan=False)
