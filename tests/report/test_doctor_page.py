"""The doctor's page, from values alone."""

from __future__ import annotations

from typing import Any

import pytest

from sightline.data.checks.audit import Audit
from sightline.data.checks.finding import Finding
from sightline.escaping import printable
from sightline.report.doctor_page import MAX_ITEMS, render_html


@pytest.mark.parametrize(
    ("count", "classes", "text"),
    [
        (1, {"cat": 1}, "1 image in 1 class, with nothing to report."),
        (1200, {"cat": 600, "dog": 600}, "1,200 images in 2 classes, with nothing to report."),
        (1200, {"cat": 600, "dog": 600}, ">600 images each."),
        (900, {"cat": 300, "dog": 600}, ">300 to 600 images each."),
    ],
)
def test_counts_have_their_nouns_in_the_right_number(count: int, classes: dict[str, int], text: str) -> None:
    assert text in render_html(Audit("pets", count, classes, ()), {})


@pytest.mark.parametrize(
    ("severities", "text"),
    [
        (["error"], "with 1 kind of finding, an error."),
        (["note"], "with 1 kind of finding."),
        (["error", "note"], "with 2 kinds of findings, 1 of them an error."),
        (["warning", "note"], "with 2 kinds of findings, none of them an error."),
        (["error", "error"], "with 2 kinds of findings, all of them errors."),
    ],
)
def test_the_first_sentence_counts_the_findings(severities: list[Any], text: str) -> None:
    findings = tuple(Finding(f"kind-{i}", s, 1, "images", "Drop.") for i, s in enumerate(severities))
    assert text in render_html(Audit("pets", 4, {"cat": 4}, findings), {})


def test_one_more_group_is_not_one_more_groups() -> None:
    groups = tuple((f"{i}.jpg", f"{i} copy.jpg") for i in range(MAX_ITEMS + 1))
    labels = (("cat", "cat"),) * len(groups)
    finding = Finding("duplicates", "warning", len(groups), "groups of copies", "Drop.", groups=groups, labels=labels)
    assert "and 1 more group;" in render_html(Audit("pets", 40, {"cat": 40}, (finding,)), {})


def test_markup_and_control_characters_are_escaped_in_html() -> None:
    name = '</title><script>alert(1)</script>"><img onerror=alert(1)>\x1b[2J\u202e'
    finding = Finding("empty-files", "error", 1, name, name, paths=(name,), reasons=(name,))
    copies = Finding("duplicates", "note", 1, name, name, groups=((name, name),), labels=((name, name),))
    text = render_html(Audit(name, 1, {name: 1}, (finding, copies)), {name: b"thumbnail"})
    assert "<script" not in text
    assert "<img onerror" not in text
    assert "&lt;/title&gt;&lt;script&gt;" in text
    assert printable(text, keep="\n") == text
