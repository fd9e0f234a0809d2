"""The doctor's page, from values alone."""

from __future__ import annotations

import pytest

from sightline.data.audit import Audit
from sightline.data.finding import Finding
from sightline.report.doctor import SHOWN, html


@pytest.mark.parametrize(
    ("count", "classes", "text"),
    [(1, {"cat": 1}, "1 image in 1 class;"), (1200, {"cat": 600, "dog": 600}, "1,200 images in 2 classes;")],
)
def test_counts_have_their_nouns_in_the_right_number(count: int, classes: dict[str, int], text: str) -> None:
    assert text in html(Audit("pets", count, classes, ()), {})


def test_one_more_group_is_not_one_more_groups() -> None:
    groups = tuple((f"{i}.jpg", f"{i} copy.jpg") for i in range(SHOWN + 1))
    labels = (("cat", "cat"),) * len(groups)
    finding = Finding("duplicates", "warning", len(groups), "groups of copies", "Drop.", groups=groups, labels=labels)
    assert "and 1 more group;" in html(Audit("pets", 40, {"cat": 40}, (finding,)), {})
