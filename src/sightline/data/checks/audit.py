"""The audit behind `doctor`, which finds problems in the images of a source before any training."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, get_args

from sightline.callbacks import Progress, no_progress
from sightline.data.checks import class_names, duplicates, group_candidates, image_quality, label_sets, remarks
from sightline.data.checks.duplicates import Duplicates
from sightline.data.checks.finding import ALLOWABLE_ERRORS, SEVERITIES, Finding
from sightline.data.checks.image_stats import DatasetStats, compute_image_stats
from sightline.data.sample_range import NO_RANGE, SampleRange
from sightline.data.types import Index, Split
from sightline.preprocessing import PreprocessingSpec


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


def audit_images(
    index: Index,
    progress: Progress = no_progress,
    sample_range: SampleRange = NO_RANGE,
    spec: PreprocessingSpec | None = None,
) -> tuple[Audit, Duplicates, DatasetStats]:
    """Inspect every image of `index` and return the audit, with the duplicates and image statistics behind it.

    `spec` selects the page and the sample range to read; `sample_range` describes where that range comes from.
    """
    stats = compute_image_stats(index, progress, spec=spec)
    readable = [p for p in index.images if not stats.images[p.sha256].error]
    groups = duplicates.find_duplicates(readable, stats.near_duplicates)
    findings = [
        *_index_findings(index),
        *duplicates.duplicate_findings(groups, index),
        *image_quality.image_findings(index, stats, sample_range),
    ]
    return _build_audit(index, findings), groups, stats


def quick_audit(index: Index) -> Audit:
    """Return the audit without reading any image: findings on names, class balance and identical files only."""
    return _build_audit(
        index,
        [*_index_findings(index), *duplicates.duplicate_findings(duplicates.find_duplicates(index.images), index)],
    )


def _index_findings(index: Index) -> list[Finding]:
    return [
        *remarks.remark_findings(index),
        *class_names.class_findings(index),
        *label_sets.label_set_findings(index),
        *group_candidates.find_group_findings(index),
    ]


def _explain_allow(finding: Finding) -> Finding:
    """Return the finding; if it stops `train`, its advice also explains how to continue anyway."""
    if finding.severity != "error" or finding.kind not in ALLOWABLE_ERRORS:
        return finding
    allowing = f" `train` stops on this error; --allow {finding.kind} {ALLOWABLE_ERRORS[finding.kind]}."
    return replace(finding, advice=finding.advice + allowing)


def _build_audit(index: Index, findings: list[Finding]) -> Audit:
    count_by_class = Counter(chain.from_iterable(index.image_classes))
    classes = {name: count_by_class[name] for name in index.sort_classes(count_by_class)}
    findings = [_explain_allow(f) for f in findings]
    ordered = sorted(findings, key=lambda f: SEVERITIES.index(f.severity))
    counts = Counter(p.split for p in index.images)
    splits = {name: counts[name] for name in get_args(Split) if counts[name]}
    return Audit(index.name, len(index.images), classes, tuple(ordered), splits)
