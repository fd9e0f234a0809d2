"""Propose fixes for the findings: only a few, and only where the images themselves show what is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from sightline.data.checks import class_names
from sightline.data.checks.duplicates import Duplicates, has_conflicting_labels, spans_splits
from sightline.data.checks.finding import Group
from sightline.data.checks.image_stats import DatasetStats
from sightline.data.label_patch import PatchEntry, make_entry
from sightline.data.targets import SEPARATOR, join_classes
from sightline.data.types import SPLITS, ImageRecord, Index


def propose_fixes(index: Index, duplicates: Duplicates, stats: DatasetStats) -> list[PatchEntry]:
    """Return the proposed corrections in index order: for each image at most one drop, or one relabel and one move.

    - Identical files with conflicting classes, or sets of labels, are relabeled with those of the majority; without a
      majority, or if the labels are the classes in their masks, all are dropped.
    - Of identical files in several splits, only one in the last split (train, validation, test) is kept.
    - Of identical files within a class, one is kept.
    - Of near duplicates in several splits, those in the last split are kept, so a given test split never changes.
    - Blank images are dropped.
    - Classes whose names differ only in spelling take the name of the largest of them.

    No correction is proposed for an image that a person keeps.
    """
    fixes: dict[tuple[str, str], PatchEntry] = {}  # by path and action; the first reason wins
    for fix in (
        *(c for group in duplicates.identical for c in _fix_identical(group)),
        *(make_entry("drop", p, "blank image") for p in index.images if stats.images[p.sha256].is_blank),
        *_fix_class_names(index),
        *(c for group in duplicates.near if spans_splits(group) for c in _fix_near_duplicates(group)),
    ):
        if (fix.path, "drop") not in fixes:
            fixes.setdefault((fix.path, fix.action), fix)
    paths_to_keep = {p.path for p in index.images if p.is_kept}
    fixes = {key: fix for key, fix in fixes.items() if fix.path not in paths_to_keep}
    dropped = {path for path, action in fixes if action == "drop"}
    order = {p.path: i for i, p in enumerate(index.images)}
    remaining = [c for (path, action), c in fixes.items() if action == "drop" or path not in dropped]
    return sorted(remaining, key=lambda c: (order[c.path], c.action))


def _fix_identical(group: Group) -> Iterator[PatchEntry]:
    label = group[0].label
    if has_conflicting_labels(group):
        (label, votes), *others = Counter(p.label for p in group).most_common()
        if others[0][1] == votes or any(p.mask for p in group):
            conflicting_labels = ", ".join(sorted({p.label or "(none)" for p in group}))
            yield from (make_entry("drop", p, f"identical files have the classes {conflicting_labels}") for p in group)
            return
    last_rank = max(map(_split_rank, group))
    keeper = next((p for p in group if _split_rank(p) == last_rank and p.label == label), None)
    keeper = keeper or next(p for p in group if _split_rank(p) == last_rank)
    for p in group:
        if p is keeper:
            if p.label != label:
                yield make_entry("relabel", p, f"most of its {len(group)} identical files have {_name(label)}", label)
        else:
            location = f" in the {keeper.split} split" if spans_splits(group) and p.split != keeper.split else ""
            yield make_entry("drop", p, f"identical to {keeper.path}{location}")


def _name(label: str) -> str:
    return "these labels" if SEPARATOR in label else "this class" if label else "no label"


def _split_rank(image: ImageRecord) -> int:
    return SPLITS.index(image.split) if image.split else 0


def _fix_class_names(index: Index) -> Iterator[PatchEntry]:
    if index.labels_are_masks:
        return  # the classes are in the masks, which relabeling does not change
    labels = [(p, index.targets.list_classes(p.label)) for p in index.images]
    counts = Counter(name for _, names in labels for name in names)
    largest = {
        name: max(group, key=lambda name: (counts[name], name))
        for group in class_names.find_similar_names(index)
        for name in group
    }
    for p, names in labels:
        if any(largest.get(name, name) != name for name in names):
            corrected = join_classes(largest.get(name, name) for name in names)
            yield make_entry("relabel", p, "the two class names differ only in spelling", corrected)


def _fix_near_duplicates(group: Group) -> Iterator[PatchEntry]:
    last_rank = max(map(_split_rank, group))
    for p in group:
        keeper = next((o for o in group if _split_rank(o) == last_rank and o.sha256 != p.sha256), None)
        if _split_rank(p) < last_rank and keeper is not None:
            yield make_entry("drop", p, f"near duplicate of {keeper.path} in the {keeper.split} split")
