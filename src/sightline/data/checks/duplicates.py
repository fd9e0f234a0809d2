"""Findings on duplicates: identical files and near duplicates, within a class, across classes and across splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sightline.data.checks.finding import Finding, Group, group_finding
from sightline.data.types import ImageRecord, Index

TOLERATED_FRACTION = 0.01
"""Up to this fraction of the images (for leaks, of a held-out split), conflicts and leaks are only warnings."""

GROUP_NEAR_ADVICE = "Train with --set split.group=near_duplicates, which keeps near duplicates in the same split."


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Groups of identical files, and groups of near duplicates with at least two different contents."""

    identical: tuple[Group, ...]
    near: tuple[Group, ...] = ()


def find_duplicates(images: Sequence[ImageRecord], near: Mapping[str, str] | None = None) -> Duplicates:
    """Return the groups among `images`; `near` maps each sha256 to the smallest sha256 of its group."""
    identical = [group for group in _group_by(images, lambda p: p.sha256) if len(group) > 1]
    similar: list[Group] = []
    if near:
        similar = [
            g for g in _group_by(images, lambda p: near.get(p.sha256, p.sha256)) if len({p.sha256 for p in g}) > 1
        ]
    return Duplicates(tuple(identical), tuple(similar))


def _group_by(images: Iterable[ImageRecord], key: Callable[[ImageRecord], str]) -> list[Group]:
    groups: dict[str, list[ImageRecord]] = defaultdict(list)
    for image in images:
        groups[key(image)].append(image)
    return [tuple(group) for group in groups.values()]


def has_conflicting_labels(group: Group) -> bool:
    """Return whether the images of a group have different classes, or different sets of labels."""
    return len({p.label for p in group}) > 1


def spans_splits(group: Group) -> bool:
    """Return whether the images of a group are in different splits.

    A group of near duplicates has at least two contents, so then two of its images differ in both content and split.
    """
    return len({p.split for p in group}) > 1


def _max_leaked_fraction(leaks: Sequence[Group], images: Sequence[ImageRecord]) -> float:
    """Return the greater of the fractions of leaked images in validation and test."""
    splits = ("validation", "test")
    counts = {split: sum(p.split == split for p in images) for split in splits}
    leaked = {split: sum(p.split == split for group in leaks for p in group) for split in splits}
    return max(leaked[split] / max(1, counts[split]) for split in splits)


def _advise_conflicts(index: Index) -> str:
    """Return what to do about identical files with different labels."""
    if index.labels_are_masks:
        return (
            "Identical images have the same classes in their masks, so at most one mask is right: review them, then "
            "drop the wrong ones (--write-fixes drops all of them)."
        )
    if index.several_labels:
        return (
            "Identical images have the same labels. If each image shows all the labels of its copies, train with "
            "--set data.merge_copies=true, which joins them. Otherwise review the rows, then relabel or drop the wrong "
            "ones (--write-fixes proposes how)."
        )
    return (
        "If each image shows all of these classes, train with --set data.merge_copies=true --set "
        "model.task=multi_label. Otherwise at most one class is right: review them, then relabel or drop the wrong "
        "ones (--write-fixes proposes how)."
    )


def duplicate_findings(duplicates: Duplicates, index: Index) -> list[Finding]:
    """Return the findings on duplicates among the images of `index`.

    Conflicting classes and leaks are errors above `TOLERATED_FRACTION`; below it, they cannot change a metric by more
    than this fraction. Groups whose images a person has all kept have no wrong label, and are left out except as leaks.
    """
    images, identical, near = index.images, duplicates.identical, duplicates.near
    within, different = "within a class", "different classes"
    if index.several_labels:
        within, different = "with the same labels", "different labels"
    review = (
        "a label is missing or wrong, or the labels" if index.several_labels else "a class is wrong, or the classes"
    )
    leaks, near_leaks = [g for g in identical if spans_splits(g)], [g for g in near if spans_splits(g)]
    identical, near = (tuple(g for g in groups if not all(p.is_kept for p in g)) for groups in (identical, near))
    conflicts = [g for g in identical if has_conflicting_labels(g)]
    is_conflicting = sum(map(len, conflicts)) > TOLERATED_FRACTION * len(images)
    if all(p.split != "validation" for p in images):
        near_advice, group_advice = (
            "A random split may put one in training and another in test.",
            f" {GROUP_NEAR_ADVICE}",
        )
    else:  # the source states every split, so the setting would have no effect
        near_advice, group_advice = "They count more than once within a split of the source.", ""
    counts = {"of identical files": len(leaks), "of near duplicates": len(near_leaks)}
    breakdown = ", ".join(f"{count:,} {kind}" for kind, count in counts.items() if count)
    return [
        *group_finding(
            "conflicting-duplicates", "error" if is_conflicting else "warning",
            (f"group of identical files has {different}", f"groups of identical files have {different}"),
            _advise_conflicts(index),
            conflicts,
        ),
        *group_finding(
            "split-leakage", "error" if _max_leaked_fraction(leaks, images) > TOLERATED_FRACTION else "warning",
            (f"group spans more than one split ({breakdown})", f"groups span more than one split ({breakdown})"),
            "Images that were trained on make validation and test metrics too optimistic: keep each group in one "
            "split (--write-fixes drops the training copies and leaves the test split unchanged).",
            [*leaks, *near_leaks], num_identical=len(leaks),
        ),
        *group_finding(
            "duplicates", "warning",
            (f"group of identical files {within}", f"groups of identical files {within}"),
            "They count more than once: keep one of each (--write-fixes drops the others). They always get the same "
            "split.",
            [g for g in identical if not has_conflicting_labels(g) and not spans_splits(g)],
        ),
        *group_finding(
            "conflicting-near-duplicates", "warning",
            (f"group of near duplicates has {different}", f"groups of near duplicates have {different}"),
            f"Review them: either {review} differ in a small detail.{group_advice}",
            [g for g in near if has_conflicting_labels(g)],
        ),
        *group_finding(
            "near-duplicates", "warning",
            (f"group of near duplicates {within}", f"groups of near duplicates {within}"),
            f"{near_advice}{group_advice}",
            [g for g in near if not has_conflicting_labels(g) and not spans_splits(g)],
        ),
    ]  # fmt: skip
