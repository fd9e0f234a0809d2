"""The audit behind `doctor`: what is wrong with the images of a source, before any time is spent on training."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from sightline.data import candidates, copies, names, quality, remarks
from sightline.data.copies import Copies
from sightline.data.finding import ALLOWABLE, SEVERITIES, Finding
from sightline.data.sample_range import NO_RANGE, SampleRange
from sightline.data.survey import Survey, survey
from sightline.preprocess import Preprocess
from sightline.records import Index, Part, Progress, no_progress


@dataclass(frozen=True, slots=True)
class Audit:
    """The findings on a source, errors first, with the number of images per class and per given split."""

    name: str
    count: int
    classes: dict[str, int]
    findings: tuple[Finding, ...]
    splits: dict[str, int] = field(default_factory=dict)

    @property
    def errors(self) -> int:
        """The number of findings that are errors."""
        return sum(f.severity == "error" for f in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the audit as JSON values."""
        return {
            "name": self.name,
            "count": self.count,
            "classes": self.classes,
            "splits": self.splits,
            "errors": self.errors,
            "findings": [f.to_dict() for f in self.findings],
        }


def audit(
    index: Index,
    progress: Progress = no_progress,
    threads: int | None = None,
    values: SampleRange = NO_RANGE,
    how: Preprocess | None = None,
) -> tuple[Audit, Copies, Survey]:
    """Inspect every image of `index` and return the audit, with the duplicates and image statistics behind it.

    `how` selects the page and the sample range to read; `values` says where that range comes from.
    """
    seen = survey(index, progress, threads, how)
    sound = [p for p in index.pictures if not seen.looks[p.sha256].error]
    found = copies.find(sound, seen.near)
    findings = [*_of_names(index), *copies.findings(found, index.pictures), *quality.findings(index, seen, values)]
    return _audit(index, findings), found, seen


def brief(index: Index) -> Audit:
    """Return the audit without reading any image: findings on names, class balance and identical files only."""
    return _audit(index, [*_of_names(index), *copies.findings(copies.find(index.pictures), index.pictures)])


def _of_names(index: Index) -> list[Finding]:
    return [*remarks.findings(index), *names.findings(index), *candidates.findings(index)]


def _allowable(finding: Finding) -> Finding:
    """Return the finding; if it stops `train`, its advice also says how to continue anyway."""
    if finding.severity != "error" or finding.kind not in ALLOWABLE:
        return finding
    allowing = f" `train` stops on this error; --allow {finding.kind} {ALLOWABLE[finding.kind]}."
    return replace(finding, advice=finding.advice + allowing)


def _audit(index: Index, findings: list[Finding]) -> Audit:
    classes = dict(sorted(Counter(p.label for p in index.pictures).items()))
    findings = [_allowable(f) for f in findings]
    ordered = sorted(findings, key=lambda f: SEVERITIES.index(f.severity))
    stated = Counter(p.part for p in index.pictures)
    splits = {name: stated[name] for name in get_args(Part) if stated[name]}
    return Audit(index.name, len(index.pictures), classes, tuple(ordered), splits)
