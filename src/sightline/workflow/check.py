"""The quick data checks at the start of `train`, which need no more than the index and the decoded pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from sightline.config import RunConfig
from sightline.config.groups import group_rule
from sightline.data import patch, remarks
from sightline.data.audit import brief
from sightline.data.dataset import Dataset, check_classes
from sightline.data.finding import ALLOWABLE, Finding
from sightline.data.grouping import groups
from sightline.data.leakage import Leak
from sightline.data.sources.splits import nearest_split, splits_among
from sightline.data.sources.tree import SPLIT_FOLDERS
from sightline.errors import ConfigError, DataError, plural, suggest
from sightline.records import Index
from sightline.watch import Watcher

LINES = 5  # findings shown; the rest are counted
EXAMPLES = 3  # paths shown per finding


def before(index: Index, config: RunConfig, watcher: Watcher) -> tuple[Index, tuple[Finding, ...]]:
    """Apply ``data.patch`` to `index`, report the main findings, and return the corrected index and its findings.

    Raises `DataError` if no classifier can be trained on it, and for errors that ``data.allow`` does not list.
    """
    if config.data.patch:
        path = Path(config.data.patch)
        corrections = patch.read(path)
        index = patch.apply(index, corrections, f"The patch {path}")
        applied = plural(len(corrections), "correction")
        watcher.say(f"{path}: {applied} applied; to undo one, delete its line")
    groups(index.pictures, group_rule(config.split.group))  # fail on an unusable rule before any work
    findings = _applicable(brief(index).findings, index, config)
    settled = set() if config.split.group == "none" else {"group-candidates"}
    telling = [f for f in findings if f.severity != "note" or f.kind in remarks.ALWAYS_SHOWN]
    shown = [f for f in telling if f.kind not in settled]
    try:
        check_classes(index)  # errors that --allow cannot override come first
    except DataError:
        _say(shown, config, watcher)
        raise
    refused = _refused(findings, config.data.allow)[:1]  # reported by the exception
    _say([f for f in shown if f not in refused], config, watcher)
    refuse_errors(findings, config.data.allow)
    return index, findings


def _applicable(findings: Sequence[Finding], index: Index, config: RunConfig) -> tuple[Finding, ...]:
    """Return the findings that apply under the settings.

    Class folders with identical subfolders look like splits, unless ``split.group = "folder"`` declares the subfolders
    to be groups. Classes named like splits look like splits in any case.
    """
    labels = {p.label for p in index.pictures}
    if group_rule(config.split.group).kind != "folder" or splits_among(labels) or any(map(nearest_split, labels)):
        return tuple(findings)
    return tuple(f for f in findings if f.kind != SPLIT_FOLDERS)


def _say(findings: Sequence[Finding], config: RunConfig, watcher: Watcher) -> None:
    """Report the first findings, one line each."""
    for finding in findings[:LINES]:
        allowed = "allowed " if finding.severity == "error" and finding.kind in config.data.allow else ""
        watcher.say(
            f"{allowed}{finding.severity}: {finding.kind}: {finding.count:,} {finding.what}{_examples(finding)}"
        )
    if findings:
        more = f"{plural(len(findings) - LINES, 'more finding')}; " if len(findings) > LINES else ""
        watcher.say(f"{more}`sightline doctor` lists them all with advice")


def _refused(findings: Sequence[Finding], allow: Sequence[str]) -> list[Finding]:
    return [f for f in findings if f.severity == "error" and f.kind in ALLOWABLE and f.kind not in allow]


def refuse_errors(findings: Sequence[Finding], allow: Sequence[str]) -> None:
    """Raise `DataError` for the first finding that is an error, unless its kind is in `allow`.

    Raises `ConfigError` if `allow` contains an unknown kind.
    """
    for kind in allow:
        if kind not in ALLOWABLE:
            raise ConfigError(f"data.allow: there is no kind of error {kind!r}.{suggest(kind, ALLOWABLE)}")
    errors = _refused(findings, allow)
    if not errors:
        return
    first = errors[0]
    others = f" (and {plural(len(errors) - 1, 'more error')}.)" if len(errors) > 1 else ""
    raise DataError(f"{first.kind}: {first.count:,} {first.what}{_examples(first)}. {first.advice}{others}")


def _examples(finding: Finding) -> str:
    """Return the first paths of a finding with their reasons, in parentheses."""
    if finding.groups:
        places = [" = ".join(group[:2]) for group in finding.groups]
    elif finding.reasons:
        places = [f"{path}: {why}" if why else path for path, why in zip(finding.paths, finding.reasons, strict=True)]
    else:
        places = list(finding.paths)
    more = "; ..." if len(places) > EXAMPLES else ""
    return f" ({'; '.join(places[:EXAMPLES])}{more})" if places else ""


def leakage(leaks: Sequence[Leak], data: Dataset, config: RunConfig) -> Iterator[str]:
    """Yield a line if there are near duplicates across splits, with advice only if it would help."""
    near = [leak for leak in leaks if leak.kind == "near"]
    if not near:
        return
    stated = {p.path: p.part for p in data.pictures}
    free = [{row.split for row in leak.images if stated.get(row.path) in (None, "train")} for leak in near]
    if config.split.group == "none" and any(len(splits) > 1 for splits in free):
        advice = "; --set split.group=near keeps each group in one split"
        advice += " where the source defines none" if any(len(splits) < 2 for splits in free) else ""
    elif any(stated.values()):
        advice = "; `sightline doctor --fix` proposes training images to drop"
    else:
        advice = ""
    many = plural(len(near), "group of near duplicates is", "groups of near duplicates are")
    yield f"{many} in more than one split (see leakage.jsonl){advice}"
