"""The brief check at the start of `train`: what the index and the decoded pixels tell without further work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from sightline.config import RunConfig
from sightline.data import patch
from sightline.data.audit import brief
from sightline.data.dataset import Dataset
from sightline.data.leakage import Leak
from sightline.records import Index
from sightline.watch import Watcher

LINES = 5  # of findings; the rest is counted


def before(index: Index, config: RunConfig, watcher: Watcher) -> Index:
    """Return `index` as corrected by ``data.patch``, and say what is wrong with it, in a few lines."""
    if config.data.patch:
        path = Path(config.data.patch)
        corrections = patch.read(path)
        index = patch.apply(index, corrections, f"The patch {path}")
        watcher.say(f"{path}: {len(corrections)} corrections applied; to take one back, delete its line")
    settled = set() if config.split.group == "none" else {"group-candidates"}
    found = [f for f in brief(index).findings if f.severity != "note" and f.kind not in settled]
    for finding in found[:LINES]:
        watcher.say(f"{finding.severity}: {finding.kind}: {finding.count} {finding.what}")
    if found:
        more = f"{len(found) - LINES} more findings; " if len(found) > LINES else ""
        watcher.say(f"{more}`sightline doctor` names them all and says what to do")
    return index


def leakage(leaks: Sequence[Leak], data: Dataset, config: RunConfig) -> Iterator[str]:
    """Yield a line if near duplicates lie in several splits, with an advice only where it has an effect."""
    count = sum(leak.kind == "near" for leak in leaks)
    if count:
        free = config.split.group == "none" and all(p.part is None for p in data.pictures)
        advice = "; --set split.group=near keeps each of them in one split" if free else ""
        yield f"{count} groups of near duplicates lie in several splits (leakage.jsonl names them){advice}"
