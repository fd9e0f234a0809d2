"""The page of a run, from values alone: its structure, its charts, its colors, and what it refuses to load."""

from __future__ import annotations

import html
import io
import math
import re
import subprocess
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from browser import NO_BROWSER, find_browser
from recording import make_history
from sightline import jsonio, metrics
from sightline.callbacks import EpochRecord
from sightline.config import RunConfig
from sightline.data.checks.leakage import Leak
from sightline.data.label_patch import PatchEntry
from sightline.data.recorded_images import ImageRow
from sightline.data.types import SPLITS, ImageRecord, LabeledSubset, Subset
from sightline.errors import ModelError
from sightline.escaping import printable
from sightline.evaluation import multi_label
from sightline.evaluation.ood import OODResult, make_histogram
from sightline.evaluation.report import build_report, fit_thresholds
from sightline.inference.predictor import ModelOutputs, Outputs
from sightline.inference.results import ThresholdRequest
from sightline.models.describe import ModelDescription
from sightline.report import charts, html_report, templates
from sightline.report.html_report import render_html
from sightline.runs.metrics_info import read_metrics
from sightline.runs.report_images import MAX_LABEL_ISSUES, Kind, ReportImage, make_heat_map, make_thumbnail
from sightline.runs.run_report import RunReport, UnreadFile
from sightline.tasks.protocol import EvaluationInputs

KINDS: tuple[Kind, ...] = get_args(Kind)
VOID = {"meta", "img", "input", "br"}
TAGS = {  # that the templates write
    "html", "head", "meta", "title", "style", "body", "header", "main", "nav", "footer", "section", "div", "p", "h1",
    "h2", "h3", "a", "b", "br", "code", "pre", "span", "ul", "ol", "li", "dl", "dt", "dd", "details", "summary",
    "fieldset", "legend", "input", "label", "table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "img",
    "svg", "g", "path", "rect", "circle", "text",
}  # fmt: skip
HOSTILE = '</title><script>alert(1)</script>"><img onerror=alert(1)>\x1b[2J\u202e'


class Page(HTMLParser):
    """Collects the elements of a page with their attributes and texts, and checks that all are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), [name for name, _ in self.open]))
        self.texts.setdefault(tag, []).append("")
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), [name for name, _ in self.open]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1][0]][-1] += data

    def attributes(self, tag: str, name: str) -> list[str]:
        return [str(attrs[name]) for element, attrs, _ in self.elements if element == tag and name in attrs]


def make_outputs(count: int, classes: int, seed: int) -> ModelOutputs:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count).astype(np.int32)
    logits = rng.normal(0, 1, (count, classes)).astype(np.float32)
    logits[np.arange(count), labels] += 3
    return ModelOutputs(Outputs(metrics.softmax(logits), logits, logits), labels)


def make_metrics(
    classes: tuple[str, ...], count: int, *, target: float | None = None, coverage: float | None = None
) -> dict[str, Any]:
    """Return the content of `metrics.json` for random outputs; the images are named after their class."""
    test, validation = make_outputs(count, len(classes), 0), make_outputs(count, len(classes), 1)
    paths = tuple(f"{classes[k]}/{i}.png" for i, k in enumerate(test.labels))
    images = tuple(ImageRecord(p, p, classes[k], "test", 9, 9) for p, k in zip(paths, test.labels, strict=True))
    pixels = np.random.default_rng(2).integers(0, 255, (count, 4, 4, 3)).astype(np.uint8)
    labeled = LabeledSubset(Subset(pixels, np.arange(count), test.labels, paths), images, ())
    request = ThresholdRequest(target_precision=target, coverage=coverage)
    thresholds, _ = fit_thresholds(validation, request, None, classes) if request else (None, None)
    return build_report(EvaluationInputs(classes, test, labeled, "test", validation, thresholds)).to_dict()


def make_report(classes: tuple[str, ...] = ("ant", "bee", "fly"), count: int = 300, **changes: Any) -> RunReport:
    """Return a report with every section, in which everything that a user can name is named after the first class."""
    name, metrics_info = classes[0], make_metrics(classes, count, target=0.9)
    metrics_info["slices"] = [dict(s) | {"significantly_worse": True} for s in metrics_info["slices"][:2]]
    rows = tuple(ImageRow(f"{name}/{i}.png", str(i), name, s) for i, s in enumerate(SPLITS[::2]))
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    images = [make_thumbnail("leak", rows[1].path, pixels), make_thumbnail("label_issue", f"{name}/0.png", pixels)]
    for error in metrics_info["errors"]["most_confident_errors"][:8]:
        images.append(make_thumbnail("error", error["path"], pixels))
        images.append(
            make_heat_map(error["path"], error["predicted"], np.divide(pixels[..., 0], 255, dtype=np.float32))
        )
    values: dict[str, Any] = {
        "run": f"runs/{name}", "config": RunConfig(), "config_text": f"# {name}",
        "result": {
            "model": name, "parameters": 1234, "recipe": "auto", "epochs": 20, "seconds": 61.5, "best_epoch": 19,
            "train": {"count": 900},
        },
        "recipe_choice": {"recipe": name, "reason": "it is the smallest"},
        "findings": ({"severity": "warning", "kind": "duplicates", "count": 2, "advice": f"Drop {name}."},),
        "environment": {"backend": "tensorflow", "devices": ["cpu:0"], "versions": {"keras": "3", "name": name}},
        "commands": (f"sightline train {name}",), "history": tuple(make_history(20, (name, "fine-tune"))),
        "metrics": metrics_info, "thresholds": None, "leaks": (Leak("near_duplicates", rows),),
        "label_issues": (PatchEntry("relabel", f"{name}/0.png", "0", name, to=classes[1], reason=""),),
        "network": ModelDescription(name, (8, 8, 3), len(classes), ()), "preprocess": None, "images": dict(images),
        "unread": (UnreadFile("model.json", f"{name} is no size"),),
    }  # fmt: skip
    return RunReport(**values | changes)


def get_metrics(report: RunReport) -> Mapping[str, Any]:
    assert report.metrics is not None
    return report.metrics


SECTIONS = [
    "Summary", "Missing files", "Data", "Data leakage", "Training", "Metrics", "Confusion matrix", "Classes",
    "Calibration", "Operating points", "Abstention", "Out-of-distribution images",
    "Slices with lower accuracy", "Errors", "Label issues", "Environment",
]  # fmt: skip


def test_the_contents_lead_to_every_section() -> None:
    page = Page(render_html(make_report()))
    assert page.texts["h2"] == SECTIONS
    ids = page.attributes("section", "id")
    links = [link for link in page.attributes("a", "href") if link != "#content"]
    assert links[: 2 * len(ids)] == 2 * [f"#{name}" for name in ids], "beside the page, and folded on a phone"
    assert {link[1:] for link in links} <= set(ids)
    every_id = [str(attrs["id"]) for _, attrs, _ in page.elements if "id" in attrs]
    assert len(every_id) == len(set(every_id))
    assert {"header", "nav", "main", "footer"} <= {tag for tag, _, _ in page.elements}


def test_two_classes_have_a_section_with_their_curves() -> None:
    report = make_report(("defect", "ok"))
    page = Page(render_html(report))
    assert "Detection of defect" in page.texts["h2"]
    labels = page.attributes("svg", "aria-label")
    for name, key in (
        ("ROC curve of defect: area", "auroc"),
        ("Precision-recall curve of defect", "average_precision"),
    ):
        (label,) = [label for label in labels if label.startswith(name)]
        assert f"{get_metrics(report)['binary'][key]['value']:.4f}" in label


def test_an_epoch_that_is_solved_has_no_learning_rate() -> None:
    solved, *steps = make_history(2, ("head", "training"))
    page = render_html(make_report(history=(replace(solved, learning_rate=None), *steps)))
    texts = dict(re.findall(r"Epoch (\d) \(\w+\): (training loss [^<]*)", page))
    assert ["learning rate" in texts[epoch] for epoch in "12"] == [False, True]


def test_a_page_without_evaluation_or_training_says_so() -> None:
    nothing: dict[str, Any] = {"metrics": None, "history": (), "leaks": (), "label_issues": None, "findings": (),
                               "images": {}, "network": None, "recipe_choice": None, "unread": ()}  # fmt: skip
    text = render_html(make_report(**nothing))
    assert Page(text).texts["h2"] == ["Summary", "Data", "Abstention", "Label issues", "Environment"]
    assert "No images were held out for evaluation" in text
    assert "Not searched for yet" in text


def test_a_search_without_label_issues_is_not_called_missing() -> None:
    section = render_html(make_report(label_issues=())).partition('<section id="label-issues"')[2]
    assert "None found." in section
    assert "Not searched for yet" not in section


def test_label_issues_that_are_not_shown_are_counted() -> None:
    issue = make_report().label_issues[0]  # type: ignore[index]
    one, many = (render_html(make_report(label_issues=(issue,) * count)) for count in (1, 1200))
    assert "1 image has a label that may be wrong. Many suspected labels are right: look at each image" in one
    assert "1,200 images have a label that may be wrong" in many
    assert f"the first {MAX_LABEL_ISSUES} are shown, all are in" in many


def test_the_commands_of_a_run_in_a_folder_with_a_space_can_be_copied() -> None:
    text = html.unescape(render_html(make_report(run="我的 实验/a", label_issues=None)))
    assert "sightline evaluate '我的 实验/a' --ood FOLDER" in text
    assert "sightline evaluate '我的 实验/a' --find-label-issues patch.jsonl" in text


def test_the_cards_state_values_with_their_intervals() -> None:
    report = make_report()
    m = get_metrics(report)
    page = Page(render_html(report))
    assert page.texts["dt"][:4] == ["Accuracy", "Macro F1", "Calibration error", "Coverage"]
    words = page.texts["dd"]
    low, high = m["accuracy_interval"]
    assert f"{100 * m['accuracy']:.1f}%" in words
    assert f"95% interval {100 * low:.1f} to {100 * high:.1f}%" in words
    assert f"{m['metrics']['macro_f1']['value']:.3f}" in words
    assert f"{100 * m['calibration']['ece']:.1f}%" in words
    assert f"{100 * m['selective']['class_fraction']:.1f}%" in words


def test_prediction_sets_are_described() -> None:
    metrics_info = make_metrics(("ant", "bee", "fly"), 300, coverage=0.95)
    decided, sets = metrics_info["selective"], metrics_info["set_coverage"]
    text = render_html(make_report(metrics=metrics_info))
    assert "every image gets a class" not in text
    assert f"Images that get one class; {100 * decided['set_fraction']:.1f}% get a set of classes" in text
    section = " ".join(text.partition('<section id="abstention"')[2].partition("</section>")[0].split())
    assert f"predicts one class for {100 * decided['class_fraction']:.1f}% of these images" in section
    assert (
        f"for a coverage of 95.0%, fitted on validation, hold the true class of {100 * sets['coverage']:.1f}%"
        in section
    )
    none = render_html(make_report(metrics=make_metrics(("ant", "bee", "fly"), 300)))
    assert "No threshold is set, so every image gets a class" in none


def test_a_threshold_that_is_not_saved_or_not_reached_is_called_so() -> None:
    values = make_metrics(("ant", "bee", "fly"), 300)
    unreached = make_metrics(("ant", "bee", "fly"), 300, target=0.9999)
    assert unreached["thresholds"]["confidence"] is None
    reached = make_metrics(("ant", "bee", "fly"), 300, target=0.9)
    pages = [render_html(make_report(metrics=of)) for of in (values, unreached, reached)]
    cards = [page.partition("<dt>Coverage</dt>")[2].partition("</div>")[0] for page in pages]
    assert ["The model does not use it: every image gets a class." in card for card in cards] == [True, False, False]
    assert ["the model abstains on every image" in card for card in cards] == [False, True, False]
    assert "a set of classes" not in cards[1]
    assert "so the model abstains on every image" in pages[1].partition('<section id="abstention"')[2]
    summaries = [page.partition('<section id="summary"')[2].partition("</section>")[0] for page in pages]
    assert ["(chosen on validation for a precision of" in summary for summary in summaries] == [True, False, False]
    assert "so the model abstains on every image" in summaries[1], "not what another target would have brought"


def test_a_target_is_proposed_that_the_validation_images_reach() -> None:
    classes = ("ant", "bee", "fly")
    values = make_metrics(classes, 300)
    reached = values["selective_check"]["threshold"]["target"]
    sections = [
        " ".join(render_html(make_report(metrics=of)).partition('<section id="abstention"')[2].split())
        for of in (values, make_metrics(classes, 9))
    ]
    assert f"--target-precision {reached:g}</code> chooses one on the validation split" in sections[0]
    assert "--target-precision" not in sections[1], "with it, the model would abstain on every image"
    assert "The 9 validation images are too few, or too often misclassified, to choose a confidence" in sections[1]


def test_a_single_image_and_a_single_error_are_written_in_the_singular() -> None:
    page = render_html(make_report(metrics=make_metrics(("ant", "bee"), 1)))
    assert "on 1 unseen image (95% interval" in page
    assert "Mean F1 of 1 of 2 classes, each with the same weight; no interval: fewer than 5 images." in page
    assert "over 0 of 2 classes" not in page
    values = make_metrics(("ant", "bee"), 300)
    errors = values["errors"]
    values["errors"] = errors | {"count": 1, "most_confident_errors": errors["most_confident_errors"][:1]}
    section = render_html(make_report(metrics=values, images={})).partition('<section id="errors"')[2]
    assert "<p>The only error.</p>" in section
    assert "Beside each image" not in section


def test_slices_say_how_many_were_compared() -> None:
    values = make_metrics(("ant", "bee", "fly"), 300)
    row = values["slices"][0] | {"significantly_worse": True}
    few, many = (
        render_html(make_report(metrics=values | {"slices": [row] * count + values["slices"]})) for count in (1, 9)
    )
    count = len(values["slices"])
    assert f"at the 5% level over all {count + 1} slices that were compared." in few
    assert "The 8 of 9 with the largest gap are shown; all are in" in many


def test_images_in_groups_have_no_interval_of_single_images() -> None:
    alone = make_metrics(("ant", "bee", "fly"), 300, target=0.9)
    grouped = alone | {"groups": 10}
    texts = [render_html(make_report(metrics=values)) for values in (alone, grouped)]
    for mark in ('class="whisker"', "of a bin, with its 95% interval"):
        assert [mark in text for text in texts] == [True, False]
    cards = [text.partition("<dt>Coverage</dt>")[2].partition("</div>")[0] for text in texts]
    assert ["95% interval" in card for card in cards] == [True, False]


def test_operating_points_say_how_far_to_trust_them() -> None:
    values = make_metrics(("ant", "bee"), 300)
    point = values["binary"]["usual_points"][0] | {
        "target": 0.42,
        "conservative": False,
        "note": "They are of 3 groups.",
    }
    values["binary"] |= {"usual_points": [point, *values["binary"]["usual_points"], point]}
    alone, noted = (
        render_html(make_report(("ant", "bee"), metrics=m)) for m in (make_metrics(("ant", "bee"), 300), values)
    )
    assert "the rate itself" not in alone
    section = noted.partition('<section id="operating-points"')[2].partition("</section>")[0]
    assert section.count("They are of 3 groups.") == 1
    assert section.count("by the rate itself") == 2


@pytest.mark.parametrize("classes", [("ant", "bee"), ("ant", "bee", "fly")])
def test_a_run_without_validation_images_is_not_told_to_choose_thresholds_on_them(classes: tuple[str, ...]) -> None:
    values, history = make_metrics(classes, 300) | {"thresholds": None}, make_history(5, ("head",))
    unvalidated = tuple(replace(r, val_loss=None, val_accuracy=None) for r in history)
    result = {"model": "a", "parameters": 9, "recipe": "a", "epochs": 5, "seconds": 9.0, "best_epoch": 5}
    texts = [
        render_html(make_report(classes, metrics=values, history=rows, result=result | {"validation": validation}))
        for rows, validation in ((history, {"count": 9}), (unvalidated, None))
    ]
    for words in ("--target-precision", "chooses one", "5 epochs, best: 5"):
        assert [words in text for text in texts] == [True, False]
    assert "Thresholds are chosen on validation images, and this run has none" in texts[1]


@pytest.mark.parametrize("abstained", [0.0, 0.025])
def test_the_coverage_of_a_model_with_a_probability_threshold_is_its_own(abstained: float) -> None:
    values = make_metrics(("ant", "bee"), 300, target=0.9)
    values["thresholds"] |= {"confidence": None, "target_precision": None, "positive": "bee"}
    values["thresholds"] |= {"positive_threshold": 0.4, "rate": "sensitivity", "target_rate": 0.9}
    values["selective"] |= {"class_fraction": 1 - abstained, "abstained_fraction": abstained}
    page = render_html(make_report(("ant", "bee"), metrics=values))
    card = page.partition("<dt>Coverage</dt>")[2].partition("</div>")[0]
    assert f"{100 - 100 * abstained:.1f}%" in card
    assert ("the model abstains on the others" in card) == (abstained > 0)


def test_one_group_is_not_said_to_be_resampled() -> None:
    values = make_metrics(("ant", "bee", "fly"), 300)
    note = {"interval": None, "note": "no interval: all images are in one group"}
    single = values | {"groups": 1, "metrics": {name: m | note for name, m in values["metrics"].items()}}
    texts = [render_html(make_report(metrics=of)) for of in (single, values | {"groups": 9})]
    assert ["resampled by group" in text for text in texts] == [False, True]
    sections = [text.partition('<section id="metrics"')[2].partition("</section>")[0] for text in texts]
    assert [section.count("all images are in one group") for section in sections] == [1, 0], "not once a metric"


def test_every_metric_is_in_the_page() -> None:
    report = make_report()
    text = render_html(report)
    for metric in get_metrics(report)["metrics"].values():
        assert f"{metric['value']:.3f}" in text
        low, high = metric["interval"]
        assert f"{low:.3f} to {high:.3f}" in text


def test_marks_of_charts_have_tooltips() -> None:
    report = make_report()
    titles = Page(render_html(report)).texts["title"]
    m, history = get_metrics(report), report.history
    for i, row in enumerate(m["confusion"]):
        for j, count in enumerate(row):
            cell = f"{m['classes'][i]} classified as {m['classes'][j]}: {count} image"
            assert sum(title.startswith(cell) for title in titles) == (count > 0)
    for record in history:
        assert any(
            t.startswith(f"Epoch {record.epoch} ({record.stage}): training loss {record.loss:.4f}") for t in titles
        )
        assert any(f"validation accuracy {100 * (record.val_accuracy or 0):.1f}%" in t for t in titles)
    bins = [t for t in titles if t.startswith("Confidence ") and "mean confidence" in t]
    assert len(bins) >= len(m["calibration"]["bins"])
    assert f"accuracy {100 * m['calibration']['bins'][0]['accuracy']:.1f}% (95% interval" in bins[0]
    points = [t for t in titles if t.endswith(" errors") and t.startswith("The ")]
    assert len(points) == len(m["risk_coverage"]["coverage"])


def test_the_legend_of_the_confusion_matrix_names_every_color() -> None:
    text = render_html(make_report())
    section = text[text.index('<section id="confusion"') : text.index('<section id="classes"')]
    entries = re.findall(r'<rect class="area (\w+-\d)"[^>]*></svg>([^<]+)</li>', section)
    starts = [*charts.CORRECT_LEVELS, *charts.ERROR_LEVELS]
    colors = [f"{name}-{level}" for name in ("blue", "orange") for level in range(1, 6)]
    assert [color for color, _ in entries] == colors
    assert [name for _, name in entries if name.startswith("from")] == [f"from {100 * start:.0f}%" for start in starts]
    assert [name for _, name in entries if "below" in name] == ["correct, below 50%", "errors, below 5%"]


def test_the_name_of_a_stage_is_above_the_marks_of_its_epochs() -> None:
    text = render_html(make_report())
    pattern = r'<text [^>]*y="([\d.]+)"[^>]*>fine-tune</text>\s*<path class="stage" d="M[\d.]+ ([\d.]+)V'
    places = [(float(name), float(top)) for name, top in re.findall(pattern, text)]
    assert len(places) == 2
    assert all(top - name >= 8 for name, top in places), "a mark at the top of the axis has a radius of 4.5"


def test_words_in_charts_are_text_in_the_colors_of_the_page() -> None:
    page = Page(render_html(make_report()))
    assert {"ant", "bee", "fly", "epoch", "confidence", "coverage", "true class"} <= set(page.texts["text"])
    for tag, attributes, _ in page.elements:
        assert not attributes.keys() & {"style", "fill", "stroke", "font-family"}, tag
    assert page.attributes("svg", "viewbox")
    for tag, attributes, _ in page.elements:
        if tag == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"


def test_tables_have_headers_with_a_scope_and_images_have_words() -> None:
    page = Page(render_html(make_report()))
    assert all(attrs.get("scope") in {"row", "col"} for tag, attrs, _ in page.elements if tag == "th")
    alternatives = page.attributes("img", "alt")
    assert len(alternatives) == 18
    assert alternatives.count("") == 2, "beside their path"
    tables = [around for tag, _, around in page.elements if tag == "table"]
    assert len(tables) >= 8
    assert len([1 for tag, attrs, _ in page.elements if attrs.get("class") == "scroll"]) == len(tables) + 1


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    text = render_html(make_report())
    page = Page(text)
    assert {tag for tag, _, _ in page.elements} <= TAGS
    assert all(link.startswith("#") for link in page.attributes("a", "href"))
    assert all(source.startswith("data:image/webp;base64,") for source in page.attributes("img", "src"))
    for word in ("://", "@import", "url("):
        assert word not in text
    (policy,) = [content for content in page.attributes("meta", "content") if "default-src" in content]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy


def test_the_policy_allows_the_style_of_the_page_alone() -> None:
    import base64
    import hashlib

    text = render_html(make_report())
    style = text[text.index("<style>") + 7 : text.index("</style>")]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in text


def test_hostile_names_stay_text_in_tables_and_charts() -> None:
    text = render_html(make_report((HOSTILE, "b\x00<b>", "c")))
    page = Page(text)
    assert {tag for tag, _, _ in page.elements} <= TAGS
    assert not any(name.startswith("on") for _, attrs, _ in page.elements for name in attrs)
    assert printable(text, keep="\n") == text
    assert any(word.startswith("</title><scri") for word in page.texts["text"]), "shortened on the axis"
    assert any(word.startswith("</title><script>alert(1)</script>") for word in page.texts["title"]), (
        "whole in a tooltip"
    )


def test_a_thousand_images_fit_in_two_megabytes() -> None:
    classes = tuple(f"a class with quite a long name {i:03}" for i in range(100))
    assert len(render_html(make_report(classes, 1000, history=make_history(300))).encode()) < 2_000_000


CHINESE = """{% extends "base.html.j2" %}{% import "elements.html.j2" as ui %}
{% set sections = [("classes", "各类指标")] %}
{% block language %}zh-CN{% endblock %}{% block title %}{{ config.model.name }}{% endblock %}
{% block skip %}跳到正文{% endblock %}{% block theme %}主题{% endblock %}{% block contents %}目录{% endblock %}
{% block footer %}由 Sightline 生成。{% endblock %}
{% block themes %}{{ ui.theme_button("auto", "自动", true) }}{{ ui.theme_button("dark", "深色") }}{% endblock %}
{% block main %}{% call ui.section(sections, "classes") %}{{ metrics.count }} 张图像{% endcall %}{% endblock %}"""


def test_a_page_in_another_language_is_another_template() -> None:
    report = make_report()
    page = Page(templates.make_environment().from_string(CHINESE).render(metrics=report.metrics, config=report.config))
    assert page.attributes("html", "lang") == ["zh-CN"]
    assert page.texts["h2"] == ["各类指标"]
    words = {word for texts in page.texts.values() for word in texts} - set(page.texts["style"])
    assert not [
        word
        for word in words
        if re.search("[a-z]{3}", word.replace(report.config.model.name, "").replace("Sightline", ""))
    ]
    assert set(page.attributes("nav", "aria-label")) == {"目录"}


# Files that were edited


def drop_macro_f1(values: dict[str, Any]) -> None:
    del values["metrics"]["macro_f1"]


def drop_rates(values: dict[str, Any]) -> None:
    for point in values["binary"]["usual_points"]:
        point["rates"] = None


def leave_proportions(values: dict[str, Any]) -> None:
    values["selective"]["class_fraction"] = 7.0
    values["calibration"]["bins"][0] |= {"count": -3, "accuracy": -2.0}


def drop_f1(values: dict[str, Any]) -> None:
    values["per_class"][0]["f1"] = None


@pytest.mark.parametrize("change", [drop_macro_f1, drop_rates, leave_proportions, drop_f1])
def test_odd_values_that_have_the_right_types_have_a_page(
    change: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    values = jsonio.loads(jsonio.dumps(make_metrics(("defect", "ok"), 400, target=0.9)))
    assert values["binary"]["usual_points"]
    change(values)
    (tmp_path / "metrics.json").write_text(jsonio.dumps(values), "utf-8")
    assert "Detection of defect" in render_html(make_report(metrics=read_metrics(tmp_path / "metrics.json")))


def test_a_curve_whose_columns_differ_in_length_is_refused(tmp_path: Path) -> None:
    values = make_metrics(("defect", "ok"), 50)
    values["binary"]["roc"]["threshold"].pop()
    (tmp_path / "metrics.json").write_text(jsonio.dumps(values), "utf-8")
    with pytest.raises(ModelError, match="columns of different lengths"):
        read_metrics(tmp_path / "metrics.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ood: ood.pop("false_alarm_rate"), "false_alarm_rate"),
        (lambda ood: ood.update(flagged_fraction="many"), "flagged_fraction"),
        (lambda ood: ood["histogram"]["ood"].pop(), "the bins of a histogram do not match"),
        (
            lambda ood: ood["histogram"].update(edges=[0.0], evaluated=[], ood=[]),
            "the bins of a histogram do not match",
        ),
        (lambda ood: ood["histogram"].update(edges=["a"] * 31), "edges"),
    ],
    ids=["missing", "text", "short", "empty", "edges"],
)
def test_out_of_distribution_results_are_checked_when_they_are_read(
    change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    histogram = make_histogram(np.arange(5.0), np.arange(9.0), 4.0)
    values = make_metrics(("defect", "ok"), 50) | {
        "ood": asdict(OODResult("photos", 0.9, None, 5, 9, 0.4, 0.0, histogram=histogram))
    }
    file = tmp_path / "metrics.json"
    file.write_text(jsonio.dumps(values), "utf-8")
    assert read_metrics(file)["ood"]["histogram"]["edges"][-1] == pytest.approx(7.87)
    values = jsonio.read_object(file)
    change(values["ood"])
    file.write_text(jsonio.dumps(values), "utf-8")
    with pytest.raises(ModelError, match=message):
        read_metrics(file)


# Confusion matrices


def test_many_classes_list_the_largest_confusions_before_the_matrix() -> None:
    classes = tuple(f"class {i}" for i in range(40))
    report = make_report(classes, 600)
    text = render_html(report)
    section = text[text.index('<section id="confusion"') : text.index('<section id="classes"')]
    assert section.index("Largest confusions") < section.index('class="chart matrix"')
    assert "Classes are numbered from 0 in the order of <code>classes</code>" in section
    assert [name for name in re.findall(r"</svg>([^<]+)</li>", section) if "%" in name] == [
        "correct, below 50%", "from 50%", "from 70%", "from 85%",
        "errors, below 5%", "from 5%", "from 10%", "from 25%",
    ]  # fmt: skip
    largest = charts.list_confusions(classes, get_metrics(report)["confusion"])
    rows = re.findall(r'<tr><td class="name">(.*?)</td><td class="name">(.*?)</td><td class="n">(\d+)</td>', section)
    assert rows == [(c["label"], c["predicted"], str(c["count"])) for c in largest[:20]]
    assert [c["count"] for c in largest] == sorted((c["count"] for c in largest), reverse=True)


class UnjoinedRows(tuple[ImageRow, ...]):
    """Images of a leak that refuse to be joined with those of others, which takes a square of the time."""

    __slots__ = ()

    def __radd__(self, other: object) -> Any:
        raise AssertionError(other)


def test_leaks_are_not_joined_to_find_their_splits() -> None:
    rows = UnjoinedRows(ImageRow(f"{split}.png", "0", "ant", split) for split in ("test", "validation"))
    text = render_html(make_report(leaks=(Leak("near_duplicates", rows),) * 3))
    section = text[text.index('<section id="leakage"') : text.index('<section id="training"')]
    assert re.findall(r'<th scope="col">(\w+)</th>', section) == ["group", "validation", "test"]


def test_a_split_without_images_of_a_leak_has_an_empty_cell() -> None:
    """A narrow page leaves it out, with its name."""
    leaks = (
        Leak("identical", tuple(ImageRow(f"{split}.png", "0", "ant", split) for split in ("train", other)))
        for other in ("validation", "test")
    )
    text = render_html(make_report(leaks=tuple(leaks)))
    assert re.findall(r'<td class="path" data-label="(\w+)"></td>', text) == ["test", "validation"]


def test_only_images_that_are_shown_are_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    report = make_report()
    content = next(iter(report.images.values()))
    others = {ReportImage(kind, f"{i}.png", "0" * 16 + ".webp"): content for kind in KINDS for i in range(50)}
    encoded: list[bytes] = []

    def encode(content: bytes) -> str:
        encoded.append(content)
        return "data:image/webp,"

    monkeypatch.setattr(templates, "encode_image", encode)
    render_html(make_report(images={**report.images, **others}))
    assert 0 < len(encoded) <= len(report.images)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_a_training_that_diverged_has_a_page(bad: float) -> None:
    history = make_history(6)
    history[3] = EpochRecord(4, "training", bad, 0.5, bad, 0.5, 1e-3, 1.0, 1.0)
    page = Page(render_html(make_report(history=history)))
    assert not any("nan" in d or "inf" in d for d in page.attributes("path", "d"))


def test_one_epoch_and_one_image_have_a_page() -> None:
    report = make_report(("a", "b"), 1, history=make_history(1, validated=False))
    page = render_html(report)
    assert "the only epoch" in page, "a curve of one point shows nothing"
    assert "Loss over 1 epoch" not in page


def test_the_most_frequent_confusion_is_named_only_if_there_is_one() -> None:
    pairs = [
        {"label": label, "predicted": "fly", "count": count, "fraction": 0.1, "examples": ()}
        for label, count in (("ant", 2), ("bee", 2))
    ]
    metrics_info = make_metrics(("ant", "bee", "fly"), 60)
    metrics_info["errors"]["confused_pairs"] = pairs
    page = render_html(make_report(metrics=metrics_info))
    assert "No confusion stands out: the most frequent ones each occur 2 times, such as ant classified as fly." in page
    pairs[0]["count"] = 3
    page = render_html(make_report(metrics=metrics_info))
    assert "The most frequent confusion is ant classified as fly: 3 times" in page


def test_images_that_several_folds_hold_are_in_another_fold() -> None:
    metrics_info = make_metrics(("ant", "bee", "fly"), 60)
    others = {"accuracy": 0.5, "accuracy_interval": [0.4, 0.6], "count": 58}
    metrics_info["leaked"] = {"count": 2, "identical": 2, "near_duplicates": 0, "without_leaked": others}
    result = dict(make_report().result) | {"folds": 5}
    for split, place, source in (
        ("test", "an earlier split", "on the validation split"),
        ("out-of-fold", "another fold", "on the out-of-fold predictions"),
    ):
        report = make_report(metrics=metrics_info | {"split": split, "thresholds": None})
        page = render_html(replace(report, result=result) if split == "out-of-fold" else report)
        assert f"2 of these images are in {place} too (identical)" in page
        assert f"chooses one\n{source} and saves it" in page


# In a browser


def make_label_report() -> RunReport:
    classes = ("bicyclist", "car", "fence", "pavement", "pedestrian", "pole", "sign", "tree")
    rng = np.random.default_rng(0)
    labels = rng.random((200, len(classes))) < 0.5
    probabilities = np.clip(0.6 * labels + rng.random(labels.shape) * 0.4, 0, 1).astype(np.float32)
    paths = tuple(f"{i}.png" for i in range(len(labels)))
    images = tuple(ImageRecord(path, path, "", "test", 9, 9) for path in paths)
    pixels = np.zeros((len(labels), 1, 1, 3), np.uint8)
    labeled = LabeledSubset(Subset(pixels, np.arange(len(labels)), labels.astype(np.uint8), paths), images, ())
    metrics_info = multi_label.build_report(classes, probabilities, labeled, "test", None).to_dict()
    config = RunConfig()
    config = replace(config, model=replace(config.model, task="multi_label"))
    return make_report(metrics=metrics_info, config=config, images={})


@pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)
@pytest.mark.parametrize(
    ("make", "width"),
    [
        (make_report, 390),
        (lambda: make_report(tuple(f"a long class name {i}" for i in range(40)), 600), 390),
        (make_label_report, 1240),
    ],
)
def test_no_page_scrolls_sideways_and_no_table_is_cut(
    make: Callable[[], RunReport], width: int, tmp_path: Path
) -> None:
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", render_html(make()))
    probe = (
        "<script>const d = document.documentElement, tables = [...document.querySelectorAll('.scroll table')];"
        "const wide = tables.filter(t => t.getBoundingClientRect().width > t.parentElement.clientWidth + 1);"
        "document.title = `${innerWidth} ${d.scrollWidth} ${wide.length}`</script></body>"
    )
    (tmp_path / "page.html").write_text(text.replace("</body>", probe), encoding="utf-8")
    browser = find_browser()
    assert browser is not None
    outcome = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         f"--window-size={width},844", "--dump-dom", (tmp_path / "page.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    match = re.search(r"<title>(\d+) (\d+) (\d+)</title>", outcome.stdout)
    assert match, outcome.stderr
    assert int(match[2]) <= int(match[1])
    assert int(match[3]) == 0, "tables that their boxes cut"


def test_fractions_and_numbers_that_are_undefined_say_so() -> None:
    assert templates.format_percent(None) == html_report.format_number(None, 3) == "not defined"
    assert html_report.format_number(math.nan, 3) == "not defined"


def test_a_thumbnail_for_which_pillow_raises_an_unusual_error_has_no_overlay() -> None:
    """Pillow raises `IndexError` for an empty color profile behind the pixels."""

    def encode_png(mode: str) -> bytes:
        file = io.BytesIO()
        Image.new(mode, (8, 8)).save(file, "PNG")
        return file.getvalue()

    empty_profile = bytes(4) + b"iCCP" + zlib.crc32(b"iCCP").to_bytes(4, "big")
    intact, heat = encode_png("RGB"), encode_png("L")
    damaged = intact[:-12] + empty_profile + intact[-12:]
    assert html_report.encode_overlay(intact, heat).startswith("data:image/webp;base64,")
    assert html_report.encode_overlay(damaged, heat) == ""
    report = make_report()
    images = dict(report.images)
    for image in [i for i in images if i.kind == "heat_map"]:
        images[image] = damaged
    assert "base64" in render_html(replace(report, images=images))
