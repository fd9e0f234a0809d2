"""`Finding`: one kind of trouble in a data source, with where it is and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sightline.records import Picture

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

ALLOWABLE = {
    "split-folders": "takes them for classes",
    "unexpected-folder": "leaves them out",
    "mask-folders": "takes them for classes",
    "conflicting-duplicates": "keeps them as they are",
    "split-leakage": "keeps them as they are",
}
"""Kinds of errors that stop `train` and that ``--allow`` lets pass, and what it does then."""

Group = tuple[Picture, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of trouble, in `count` groups, pictures, classes or folders; `what` says what they are or do.

    `paths` names each picture, class or folder, with its reason in `reasons` where there is one to each; `groups` holds
    the paths, and `labels` the classes, of pictures that belong together. `identical`: how many of the groups, the
    first ones, hold identical files.
    """

    kind: str
    severity: Severity
    count: int
    what: str
    advice: str
    paths: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()
    labels: tuple[tuple[str, ...], ...] = ()
    identical: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that say something, as JSON values."""
        found: dict[str, Any] = {"kind": self.kind, "severity": self.severity, "count": self.count, "what": self.what}
        if self.groups:
            found |= {"groups": [list(g) for g in self.groups], "labels": [list(g) for g in self.labels]}
        else:
            found["paths"] = list(self.paths)
        if self.reasons:
            found["reasons"] = list(self.reasons)
        if self.identical is not None:
            found["identical"] = self.identical
        return found | {"advice": self.advice}


What = str | tuple[str, str]
"""What the counted ones are or do; of one and of several where the words differ."""


def in_number(what: What, count: int) -> str:
    """Return the words for `count` of them.

    >>> in_number(("file is empty", "files are empty"), 2)
    'files are empty'
    """
    return what if isinstance(what, str) else what[count != 1]


def listed(
    kind: str, severity: Severity, what: What, advice: str, paths: Sequence[str], reasons: Sequence[str] = ()
) -> list[Finding]:
    """Return a finding on pictures, classes or folders; none if there are none."""
    if not paths:
        return []
    count = len(paths)
    return [Finding(kind, severity, count, in_number(what, count), advice, tuple(paths), tuple(reasons))]


def grouped(
    kind: str, severity: Severity, what: What, advice: str, groups: Sequence[Group], identical: int | None = None
) -> list[Finding]:
    """Return a finding on groups of pictures; none if there are none."""
    if not groups:
        return []
    paths = tuple(tuple(p.path for p in group) for group in groups)
    labels = tuple(tuple(p.label for p in group) for group in groups)
    count = len(groups)
    what = in_number(what, count)
    return [Finding(kind, severity, count, what, advice, groups=paths, labels=labels, identical=identical)]
