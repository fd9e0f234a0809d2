"""Findings on duplicates: identical files and near duplicates, within a class, across classes and across splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sightline.data.finding import Finding, Group, grouped
from sightline.records import Picture

TOLERATED = 0.01
"""Up to this fraction of the images (for leaks, of a held-out split), conflicts and leaks are only warnings."""

GROUP_NEAR = "Train with --set split.group=near, which keeps near duplicates in the same split."


@dataclass(frozen=True, slots=True)
class Copies:
    """Groups of identical files, and groups of near duplicates with at least two different contents."""

    identical: tuple[Group, ...]
    near: tuple[Group, ...] = ()


def find(pictures: Sequence[Picture], near: Mapping[str, str] | None = None) -> Copies:
    """Return the groups among `pictures`; `near` maps each sha256 to the smallest sha256 of its group."""
    same = [group for group in _by(pictures, lambda p: p.sha256) if len(group) > 1]
    alike: list[Group] = []
    if near:
        alike = [g for g in _by(pictures, lambda p: near.get(p.sha256, p.sha256)) if len({p.sha256 for p in g}) > 1]
    return Copies(tuple(same), tuple(alike))


def _by(pictures: Iterable[Picture], key: Callable[[Picture], str]) -> list[Group]:
    groups: dict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        groups[key(picture)].append(picture)
    return [tuple(group) for group in groups.values()]


def conflicting(group: Group) -> bool:
    """Return whether the images of a group have different classes."""
    return len({p.label for p in group}) > 1


def leaking(group: Group) -> bool:
    """Return whether the images of a group are in different splits.

    A group of near duplicates has at least two contents, so then two of its images differ in both content and split.
    """
    return len({p.part for p in group}) > 1


def _fraction(groups: Sequence[Group], pictures: Sequence[Picture]) -> float:
    return sum(map(len, groups)) / max(1, len(pictures))


def _leaked(leaks: Sequence[Group], pictures: Sequence[Picture]) -> float:
    """Return the greater of the fractions of leaked images in validation and test."""
    splits = ("validation", "test")
    counts = {split: sum(p.part == split for p in pictures) for split in splits}
    leaked = {split: sum(p.part == split for group in leaks for p in group) for split in splits}
    return max(leaked[split] / max(1, counts[split]) for split in splits)


def findings(copies: Copies, pictures: Sequence[Picture]) -> list[Finding]:
    """Return the findings on duplicates among `pictures`.

    Conflicting classes and leaks are errors above `TOLERATED`; below, they cannot change a metric by more than that.
    """
    same, near = copies.identical, copies.near
    conflicts = [g for g in same if conflicting(g)]
    leaks, near_leaks = [g for g in same if leaking(g)], [g for g in near if leaking(g)]
    if all(p.part != "validation" for p in pictures):
        alone, keep = "A random split may put one in training and another in test.", f" {GROUP_NEAR}"
    else:  # every split is given, so the setting would have no effect
        alone, keep = "They count more than once within a split of the source.", ""
    counts = {"of identical files": len(leaks), "of near duplicates": len(near_leaks)}
    shares = ", ".join(f"{count:,} {kind}" for kind, count in counts.items() if count)
    return [
        *grouped(
            "conflicting-duplicates", "error" if _fraction(conflicts, pictures) > TOLERATED else "warning",
            ("group of identical files has different classes", "groups of identical files have different classes"),
            "At most one class can be right: review them, then relabel or drop the wrong ones (--fix proposes how).",
            conflicts,
        ),
        *grouped(
            "split-leakage", "error" if _leaked(leaks, pictures) > TOLERATED else "warning",
            (f"group spans more than one split ({shares})", f"groups span more than one split ({shares})"),
            "Images that were trained on make validation and test metrics too optimistic: keep each group in one "
            "split (--fix drops the training copies and leaves the test split unchanged).",
            [*leaks, *near_leaks], identical=len(leaks),
        ),
        *grouped(
            "duplicates", "warning",
            ("group of identical files within a class", "groups of identical files within a class"),
            "They count more than once: keep one of each (--fix drops the others). They always get the same split.",
            [g for g in same if not conflicting(g) and not leaking(g)],
        ),
        *grouped(
            "conflicting-near-duplicates", "warning",
            ("group of near duplicates has different classes", "groups of near duplicates have different classes"),
            f"Review them: either a class is wrong, or the classes differ in a small detail.{keep}",
            [g for g in near if conflicting(g)],
        ),
        *grouped(
            "near-duplicates", "warning",
            ("group of near duplicates within a class", "groups of near duplicates within a class"),
            f"{alone}{keep}",
            [g for g in near if not conflicting(g) and not leaking(g)],
        ),
    ]  # fmt: skip
