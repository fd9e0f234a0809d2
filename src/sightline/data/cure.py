"""Propose fixes for the findings: only a few, and only where the images themselves show what is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from sightline.data import names
from sightline.data.copies import Copies, conflicting, leaking
from sightline.data.finding import Group
from sightline.data.patch import Correction, correction
from sightline.data.survey import Survey
from sightline.records import PARTS, Index, Picture


def propose(index: Index, copies: Copies, survey: Survey) -> list[Correction]:
    """Return the proposed corrections in index order: for each image at most one drop, or one relabel and one move.

    - Identical files with conflicting classes get the majority class; without a majority, all are dropped.
    - Of identical files in several splits, only one in the last split (train, validation, test) is kept.
    - Of identical files within a class, one is kept.
    - Of near duplicates in several splits, those in the last split are kept, so a given test split never changes.
    - Blank images are dropped.
    - Classes whose names differ only in spelling take the name of the largest of them.
    """
    found: dict[tuple[str, str], Correction] = {}  # by path and action; the first reason wins
    for fix in (
        *(c for group in copies.identical for c in _of_copies(group)),
        *(correction("drop", p, "blank image") for p in index.pictures if survey.looks[p.sha256].blank),
        *_names(index),
        *(c for group in copies.near if leaking(group) for c in _of_near(group)),
    ):
        if (fix.path, "drop") not in found:
            found.setdefault((fix.path, fix.action), fix)
    dropped = {path for path, action in found if action == "drop"}
    order = {p.path: i for i, p in enumerate(index.pictures)}
    kept = [c for (path, action), c in found.items() if action == "drop" or path not in dropped]
    return sorted(kept, key=lambda c: (order[c.path], c.action))


def _of_copies(group: Group) -> Iterator[Correction]:
    label = group[0].label
    if conflicting(group):
        (label, most), *others = Counter(p.label for p in group).most_common()
        if others[0][1] == most:
            rivals = ", ".join(sorted({p.label for p in group}))
            yield from (correction("drop", p, f"identical files have the classes {rivals}") for p in group)
            return
    last = max(PARTS.index(p.part) if p.part else 0 for p in group)
    stays = next((p for p in group if _rank(p) == last and p.label == label), None)
    stays = stays or next(p for p in group if _rank(p) == last)
    for p in group:
        if p is stays:
            if p.label != label:
                yield correction("relabel", p, f"most of its {len(group)} identical files have this class", label)
        else:
            where = f" in the {stays.part} split" if leaking(group) and p.part != stays.part else ""
            yield correction("drop", p, f"identical to {stays.path}{where}")


def _rank(picture: Picture) -> int:
    return PARTS.index(picture.part) if picture.part else 0


def _names(index: Index) -> Iterator[Correction]:
    counts = Counter(p.label for p in index.pictures)
    for group in names.similar(index):
        largest = max(group, key=lambda label: (counts[label], label))
        for p in index.pictures:
            if p.label in group and p.label != largest:
                yield correction("relabel", p, "the two class names differ only in spelling", largest)


def _of_near(group: Group) -> Iterator[Correction]:
    last = max(map(_rank, group))
    for p in group:
        stays = next((o for o in group if _rank(o) == last and o.sha256 != p.sha256), None)
        if _rank(p) < last and stays is not None:
            yield correction("drop", p, f"near duplicate of {stays.path} in the {stays.part} split")
