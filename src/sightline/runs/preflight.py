"""The quick data checks at the start of `train`, which need only the index and the decoded pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from sightline.callbacks import Callback
from sightline.config import RunConfig
from sightline.config.split_groups import parse_group_rule
from sightline.data import label_patch
from sightline.data.checks import remarks
from sightline.data.checks.audit import quick_audit
from sightline.data.checks.class_names import DECIMAL_NAMES, NUMERIC_NAMES
from sightline.data.checks.finding import ALLOWABLE_ERRORS, Finding
from sightline.data.checks.label_sets import CO_OCCURRENCE, MASKS, SEVERAL_LABELS
from sightline.data.checks.leakage import Leak
from sightline.data.dataset import DecodedDataset, check_classes
from sightline.data.grouping import assign_groups
from sightline.data.sources.split_names import find_splits, suggest_split
from sightline.data.types import Index
from sightline.errors import ConfigError, DataError, plural, suggest
from sightline.tasks.protocol import find_task

MAX_FINDINGS = 5  # findings shown; the rest are counted
MAX_EXAMPLES = 3  # paths shown per finding


def run_preflight_checks(index: Index, config: RunConfig, callback: Callback) -> tuple[Index, tuple[Finding, ...]]:
    """Apply ``data.patch`` to `index`, report the main findings, and return the corrected index and its findings.

    Raises `DataError` if the images cannot train a classifier, and for errors that ``data.allow_findings`` does not
    list.
    """
    if config.data.patch:
        path = Path(config.data.patch)
        corrections = label_patch.read_patch(path)
        index = label_patch.apply_patch(index, corrections, f"The patch {path}")
        applied = plural(sum(entry.action != "keep" for _, entry in corrections), "correction")
        callback.on_message(f"{path}: {applied} applied; to undo one, delete its line")
    assign_groups(index.images, parse_group_rule(config.split.group))  # fail on an unusable rule before any work
    targets = find_task(config.model.task).targets
    known = {SEVERAL_LABELS, MASKS} if targets.allows_several else set()  # advice to choose the task that is set
    findings = tuple(f for f in select_applicable(quick_audit(index).findings, index, config) if f.kind not in known)
    displayed = [f for f in findings if f.severity != "note" or f.kind in remarks.SHOWN_IN_TRAINING]
    try:
        check_classes(index, targets)  # errors that --allow cannot override come first
    except DataError:
        _report_findings(displayed, config, callback)
        raise
    blocking = _blocking_errors(findings, config.data.allow_findings)[:1]  # reported by the exception
    _report_findings([f for f in displayed if f not in blocking], config, callback)
    raise_for_errors(findings, config.data.allow_findings)
    return index, findings


def select_applicable(findings: Sequence[Finding], index: Index, config: RunConfig) -> tuple[Finding, ...]:
    """Return the findings that apply under the settings.

    Class folders with identical subfolders look like splits, unless ``split.group = "folder"`` declares the subfolders
    to be groups. Classes named like splits look like splits in any case. For masks it does not matter which classes
    occur together. Grades and classes in a stated order are not sorted as text, and may be decimal numbers. With
    ``split.group``, none is suggested.
    """
    targets, hidden = find_task(config.model.task).targets, set[str]()
    if config.split.group != "none":
        hidden.add("group-candidates")
    if targets.are_masks:
        hidden.add(CO_OCCURRENCE)
    if targets.are_ordered or index.class_order:
        hidden |= {DECIMAL_NAMES, NUMERIC_NAMES}
    findings = [f for f in findings if f.kind not in hidden]
    labels = {p.label for p in index.images}
    if parse_group_rule(config.split.group).kind != "folder" or find_splits(labels) or any(map(suggest_split, labels)):
        return tuple(findings)
    return tuple(f for f in findings if f.kind != "split-folders")


def _report_findings(findings: Sequence[Finding], config: RunConfig, callback: Callback) -> None:
    """Report the first findings, one line each."""
    for finding in findings[:MAX_FINDINGS]:
        allowed = "allowed " if finding.severity == "error" and finding.kind in config.data.allow_findings else ""
        callback.on_message(
            f"{allowed}{finding.severity}: {finding.kind}: {finding.count:,} "
            f"{finding.description}{_format_examples(finding)}"
        )
    if findings:
        remaining = f"{plural(len(findings) - MAX_FINDINGS, 'more finding')}; " if len(findings) > MAX_FINDINGS else ""
        callback.on_message(f"{remaining}`sightline doctor` lists them all with advice")


def _blocking_errors(findings: Sequence[Finding], allow: Sequence[str]) -> list[Finding]:
    return [f for f in findings if f.severity == "error" and f.kind in ALLOWABLE_ERRORS and f.kind not in allow]


def raise_for_errors(findings: Sequence[Finding], allow: Sequence[str]) -> None:
    """Raise `DataError` for the first finding that is an error, unless its kind is in `allow`.

    Raises `ConfigError` if `allow` contains an unknown kind.
    """
    for kind in allow:
        if kind not in ALLOWABLE_ERRORS:
            raise ConfigError(
                f"data.allow_findings: there is no kind of error {kind!r}.{suggest(kind, ALLOWABLE_ERRORS)}"
            )
    errors = _blocking_errors(findings, allow)
    if not errors:
        return
    first_error = errors[0]
    remaining = f" (and {plural(len(errors) - 1, 'more error')}.)" if len(errors) > 1 else ""
    raise DataError(
        f"{first_error.kind}: {first_error.count:,} "
        f"{first_error.description}{_format_examples(first_error)}. {first_error.advice}{remaining}"
    )


def _format_examples(finding: Finding) -> str:
    """Return the first paths of a finding with their reasons, in parentheses."""
    if finding.groups:
        places = [" = ".join(group[:2]) for group in finding.groups]
    elif finding.reasons:
        places = [f"{path}: {why}" if why else path for path, why in zip(finding.paths, finding.reasons, strict=True)]
    else:
        places = list(finding.paths)
    ellipsis = "; ..." if len(places) > MAX_EXAMPLES else ""
    return f" ({'; '.join(places[:MAX_EXAMPLES])}{ellipsis})" if places else ""


def describe_leakage(leaks: Sequence[Leak], data: DecodedDataset, config: RunConfig) -> Iterator[str]:
    """Yield a line if there are near duplicates across splits, with advice only if it would help."""
    near_duplicates = [leak for leak in leaks if leak.kind == "near_duplicates"]
    if not near_duplicates:
        return
    source_splits = {p.path: p.split for p in data.images}
    assigned_splits = [
        {row.split for row in leak.images if source_splits.get(row.path) in (None, "train")} for leak in near_duplicates
    ]
    if config.split.group == "none" and any(len(splits) > 1 for splits in assigned_splits):
        advice = "; --set split.group=near_duplicates keeps each group in one split"
        advice += " where the source defines none" if any(len(splits) < 2 for splits in assigned_splits) else ""
    elif any(source_splits.values()):
        advice = "; `sightline doctor --write-fixes` proposes training images to drop"
    else:
        advice = ""
    count_text = plural(len(near_duplicates), "group of near duplicates is", "groups of near duplicates are")
    yield f"{count_text} in more than one split (see leakage.jsonl){advice}"
