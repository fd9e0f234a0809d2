"""Findings on pictures that show the same: identical files and near duplicates, in one class, across classes, parts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sightline.data.finding import Finding, Group, grouped
from sightline.records import Picture

TOLERATED = 0.01
"""Fraction of the images (for leaks, of a held-out split) up to which conflicts and leaks are warnings."""

GROUP_NEAR = "Train with --set split.group=near, which keeps such images on one side of the split."


@dataclass(frozen=True, slots=True)
class Copies:
    """Groups of identical files, and groups of near duplicates, each with two contents or more."""

    identical: tuple[Group, ...]
    near: tuple[Group, ...] = ()


def find(pictures: Sequence[Picture], near: Mapping[str, str] | None = None) -> Copies:
    """Return the groups among `pictures`; `near` names each content's group, by the smallest sha256 in it."""
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
    """Whether the pictures of a group bear different classes."""
    return len({p.label for p in group}) > 1


def leaking(group: Group) -> bool:
    """Whether the images of a group lie in different splits.

    In a near group, which has two contents or more, some two of them then differ in content and split.
    """
    return len({p.part for p in group}) > 1


def _fraction(groups: Sequence[Group], pictures: Sequence[Picture]) -> float:
    return sum(map(len, groups)) / max(1, len(pictures))


def _leaked(leaks: Sequence[Group], pictures: Sequence[Picture]) -> float:
    """Return the fraction of leaked images in that held-out split that has most of them."""
    splits = ("validation", "test")
    counts = {split: sum(p.part == split for p in pictures) for split in splits}
    leaked = {split: sum(p.part == split for group in leaks for p in group) for split in splits}
    return max(leaked[split] / max(1, counts[split]) for split in splits)


def findings(copies: Copies, pictures: Sequence[Picture]) -> list[Finding]:
    """Return the findings on groups of copies among `pictures`.

    Conflicting classes and leaks are errors above `TOLERATED`: what is rarer cannot move a metric by more than that.
    """
    same, near = copies.identical, copies.near
    conflicts = [g for g in same if conflicting(g)]
    leaks, near_leaks = [g for g in same if leaking(g)], [g for g in near if leaking(g)]
    if all(p.part != "validation" for p in pictures):
        alone, keep = "Chance may put one in training and its twin in the test.", f" {GROUP_NEAR}"
    else:  # every split is stated: the setting would have no effect
        alone, keep = "They count more than once, in one of the splits that the source states.", ""
    counts = {"of identical files": len(leaks), "of near duplicates": len(near_leaks)}
    shares = ", ".join(f"{count:,} {kind}" for kind, count in counts.items() if count)
    return [
        *grouped(
            "conflicting-duplicates", "error" if _fraction(conflicts, pictures) > TOLERATED else "warning",
            ("group of identical files bears different classes", "groups of identical files bear different classes"),
            "At most one class can be right: look at them, then relabel or drop the wrong ones (--fix proposes it).",
            conflicts,
        ),
        *grouped(
            "split-leakage", "error" if _leaked(leaks, pictures) > TOLERATED else "warning",
            (f"group lies in more than one split ({shares})", f"groups lie in more than one split ({shares})"),
            "Images seen in training make validation and test metrics too good: keep each group in one split "
            "(--fix drops the training copies and leaves the test split as it is).",
            [*leaks, *near_leaks], identical=len(leaks),
        ),
        *grouped(
            "duplicates", "warning",
            ("group of identical files within a class", "groups of identical files within a class"),
            "They count more than once: keep one of each (--fix drops the others). The split keeps them on one side.",
            [g for g in same if not conflicting(g) and not leaking(g)],
        ),
        *grouped(
            "conflicting-near-duplicates", "warning",
            ("group of near duplicates bears different classes", "groups of near duplicates bear different classes"),
            f"Look at them: either a class is wrong, or the difference is a small detail.{keep}",
            [g for g in near if conflicting(g)],
        ),
        *grouped(
            "near-duplicates", "warning",
            ("group of near duplicates within a class", "groups of near duplicates within a class"),
            f"{alone}{keep}",
            [g for g in near if not conflicting(g) and not leaking(g)],
        ),
    ]  # fmt: skip
