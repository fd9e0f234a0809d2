"""The brief check at the start of `train`: what the index and the decoded pixels tell without further work."""

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

LINES = 5  # of findings; the rest is counted
EXAMPLES = 3  # places named in a line


def before(index: Index, config: RunConfig, watcher: Watcher) -> tuple[Index, tuple[Finding, ...]]:
    """Return `index` as corrected by ``data.patch``, and its findings; show the most important of them.

    Raises `DataError` where no classes can be learned, and for errors that ``data.allow`` does not name.
    """
    if config.data.patch:
        path = Path(config.data.patch)
        corrections = patch.read(path)
        index = patch.apply(index, corrections, f"The patch {path}")
        applied = plural(len(corrections), "correction")
        watcher.say(f"{path}: {applied} applied; to take one back, delete its line")
    groups(index.pictures, group_rule(config.split.group))  # what does not fit is refused before any work
    findings = _applicable(brief(index).findings, index, config)
    settled = set() if config.split.group == "none" else {"group-candidates"}
    telling = [f for f in findings if f.severity != "note" or f.kind in remarks.ALWAYS_SHOWN]
    shown = [f for f in telling if f.kind not in settled]
    try:
        check_classes(index)  # what no --allow can mend comes first
    except DataError:
        _say(shown, config, watcher)
        raise
    refused = _refused(findings, config.data.allow)[:1]  # the message of its exception says it all
    _say([f for f in shown if f not in refused], config, watcher)
    refuse_errors(findings, config.data.allow)
    return index, findings


def _applicable(findings: Sequence[Finding], index: Index, config: RunConfig) -> tuple[Finding, ...]:
    """Return the findings that hold under the settings.

    Class folders that hold the same folders look like splits, unless ``split.group = "folder"`` says that the inner
    folders are groups. Classes that are named as splits, or nearly so, look like splits all the same.
    """
    labels = {p.label for p in index.pictures}
    if group_rule(config.split.group).kind != "folder" or splits_among(labels) or any(map(nearest_split, labels)):
        return tuple(findings)
    return tuple(f for f in findings if f.kind != SPLIT_FOLDERS)


def _say(findings: Sequence[Finding], config: RunConfig, watcher: Watcher) -> None:
    """Say the first findings, a line each."""
    for finding in findings[:LINES]:
        allowed = "allowed " if finding.severity == "error" and finding.kind in config.data.allow else ""
        watcher.say(
            f"{allowed}{finding.severity}: {finding.kind}: {finding.count:,} {finding.what}{_examples(finding)}"
        )
    if findings:
        more = f"{plural(len(findings) - LINES, 'more finding')}; " if len(findings) > LINES else ""
        watcher.say(f"{more}`sightline doctor` lists them all and says what to do")


def _refused(findings: Sequence[Finding], allow: Sequence[str]) -> list[Finding]:
    return [f for f in findings if f.severity == "error" and f.kind in ALLOWABLE and f.kind not in allow]


def refuse_errors(findings: Sequence[Finding], allow: Sequence[str]) -> None:
    """Raise `DataError` for the first finding that is an error, unless its kind is in `allow`.

    Raises `ConfigError` for a kind in `allow` that is none.
    """
    for kind in allow:
        if kind not in ALLOWABLE:
            raise ConfigError(f"data.allow: there is no kind of error {kind!r} to allow.{suggest(kind, ALLOWABLE)}")
    errors = _refused(findings, allow)
    if not errors:
        return
    first = errors[0]
    others = f" ({plural(len(errors) - 1, 'more error')} after it.)" if len(errors) > 1 else ""
    raise DataError(f"{first.kind}: {first.count:,} {first.what}{_examples(first)}. {first.advice}{others}")


def _examples(finding: Finding) -> str:
    """Return the first places of a finding with their reasons, in brackets."""
    if finding.groups:
        places = [" = ".join(group[:2]) for group in finding.groups]
    elif finding.reasons:
        places = [f"{path}: {why}" if why else path for path, why in zip(finding.paths, finding.reasons, strict=True)]
    else:
        places = list(finding.paths)
    more = "; ..." if len(places) > EXAMPLES else ""
    return f" ({'; '.join(places[:EXAMPLES])}{more})" if places else ""


def leakage(leaks: Sequence[Leak], data: Dataset, config: RunConfig) -> Iterator[str]:
    """Yield a line if near duplicates lie in several splits, with an advice only where it has an effect."""
    near = [leak for leak in leaks if leak.kind == "near"]
    if not near:
        return
    stated = {p.path: p.part for p in data.pictures}
    free = [{row.split for row in leak.images if stated.get(row.path) in (None, "train")} for leak in near]
    if config.split.group == "none" and any(len(splits) > 1 for splits in free):
        advice = "; --set split.group=near keeps each of them in one split"
        advice += " where the source states none" if any(len(splits) < 2 for splits in free) else ""
    elif any(stated.values()):
        advice = "; `sightline doctor --fix` proposes the training images to drop"
    else:
        advice = ""
    many = plural(len(near), "group of near duplicates lies", "groups of near duplicates lie")
    yield f"{many} in several splits (leakage.jsonl lists them){advice}"
