"""`Finding`: one kind of problem in a data source, where it occurs and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sightline.data.types import ImageRecord

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

ALLOWABLE_ERRORS = {
    "split-folders": "uses them as classes",
    "unexpected-folder": "ignores them",
    "mask-folders": "uses them as classes",
    "numbered-folders": "uses them as classes",
    "copied-folders": "uses them as classes",
    "conflicting-duplicates": "keeps them as they are",
    "split-leakage": "keeps them as they are",
}
"""Kinds of errors that stop `train` unless ``--allow`` names them, and what training does then."""

Group = tuple[ImageRecord, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of problem in the images.

    Attributes:
        kind: The name of the problem, such as ``"split-leakage"``, which `allow` accepts.
        severity: ``"error"``, ``"warning"`` or ``"note"``; an error stops training unless it is allowed.
        count: The number of images, groups of images, classes or folders affected.
        description: A description of the problem that continues the sentence "`count` ...".
        advice: What to do about it.
        paths: The affected images, classes or folders; empty if they are in `groups`.
        reasons: A reason for each of `paths`; empty if there are none.
        groups: The paths of the images in each group, such as a group of identical files.
        labels: The classes in each group.
        num_identical: The number of leading groups that consist of identical files; None if not applicable.
    """

    kind: str
    severity: Severity
    count: int
    description: str
    advice: str
    paths: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()
    labels: tuple[tuple[str, ...], ...] = ()
    num_identical: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are set, as JSON values."""
        values: dict[str, Any] = {
            "kind": self.kind,
            "severity": self.severity,
            "count": self.count,
            "description": self.description,
        }
        if self.groups:
            values |= {"groups": [list(g) for g in self.groups], "labels": [list(g) for g in self.labels]}
        else:
            values["paths"] = list(self.paths)
        if self.reasons:
            values["reasons"] = list(self.reasons)
        if self.num_identical is not None:
            values["num_identical"] = self.num_identical
        return values | {"advice": self.advice}


CountedText = str | tuple[str, str]
"""The text after the count, or a pair of singular and plural if they differ."""


def pluralize(text: CountedText, count: int) -> str:
    """Return the singular or plural text for `count`.

    >>> pluralize(("file is empty", "files are empty"), 2)
    'files are empty'
    """
    return text if isinstance(text, str) else text[count != 1]


def image_finding(
    kind: str, severity: Severity, text: CountedText, advice: str, rows: Sequence[str] | Sequence[tuple[str, str]]
) -> list[Finding]:
    """Return a list with one finding on images, classes or folders; empty if `rows` is empty.

    `rows` are their paths, or pairs of a path and a reason.
    """
    if not rows:
        return []
    pairs = [(row, "") if isinstance(row, str) else row for row in rows]
    reasons = () if isinstance(rows[0], str) else tuple(reason for _, reason in pairs)
    return [Finding(kind, severity, len(rows), pluralize(text, len(rows)), advice, tuple(p for p, _ in pairs), reasons)]


def group_finding(
    kind: str,
    severity: Severity,
    text: CountedText,
    advice: str,
    groups: Sequence[Group],
    num_identical: int | None = None,
) -> list[Finding]:
    """Return a list with one finding on groups of images; empty if `groups` is empty."""
    if not groups:
        return []
    paths = tuple(tuple(p.path for p in group) for group in groups)
    labels = tuple(tuple(p.label for p in group) for group in groups)
    count = len(groups)
    text = pluralize(text, count)
    return [Finding(kind, severity, count, text, advice, groups=paths, labels=labels, num_identical=num_identical)]
