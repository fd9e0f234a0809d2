"""Findings on images with several labels: how many labels, which occur together, and which never occur alone."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

from sightline.data.checks.finding import Finding, image_finding
from sightline.data.masks import MaskClasses
from sightline.data.types import Index
from sightline.errors import plural

MAX_PAIRS = 10
SEVERAL_LABELS, CO_OCCURRENCE, MASKS = "several-labels", "co-occurrence", "masks"


def label_set_findings(index: Index) -> list[Finding]:
    """Return the findings on an index whose images may have several labels; none for other indexes."""
    if not index.several_labels:
        return []
    sets = [index.targets.list_classes(image.label) for image in index.images]
    if index.mask_classes is not None:
        return [_describe_masks(index.mask_classes, len(sets)), *_find_unlabeled(index, sets), *_cooccurrence(sets)]
    return [*_count_labels(index, sets), *_cooccurrence(sets), *_never_alone(sets)]


def _describe_masks(classes: MaskClasses, images: int) -> Finding:
    void = classes.list_void()
    what = "color" if classes.are_colors else "value"
    pixels = f"; pixels of the {what if len(void) == 1 else what + 's'} {', '.join(void)} have no class" if void else ""
    advice = "Train on them with --set model.task=segmentation, or on the classes in each with model.task=multi_label."
    has = "image has" if images == 1 else "images have"
    renamed = " A class called void, ignore or unlabeled is left out: rename it to learn it." if void else ""
    return Finding(
        MASKS, "note", images,
        f"{has} masks of {plural(len(classes.names), 'class', 'classes')}{pixels}",
        advice + renamed,
    )  # fmt: skip


def _count_labels(index: Index, sets: list[tuple[str, ...]]) -> list[Finding]:
    several = sum(len(names) > 1 for names in sets)
    mean = sum(map(len, sets)) / max(len(sets), 1)
    several_labels = Finding(
        SEVERAL_LABELS, "note", several,
        f"{'image has' if several == 1 else 'images have'} several labels, {mean:.1f} on average",
        "Train a multi-label classifier with --set model.task=multi_label.",
    )  # fmt: skip
    return [several_labels, *_find_unlabeled(index, sets)]


def _find_unlabeled(index: Index, sets: list[tuple[str, ...]]) -> list[Finding]:
    pairs = zip(index.images, sets, strict=True)
    unlabeled = [image.path for image, names in pairs if not (names or image.is_kept)]
    return image_finding(
        "no-labels", "note", ("image has no label", "images have no label"),
        "They are examples of none of the classes. If their labels are unknown, remove them.", unlabeled,
    )  # fmt: skip


def _cooccurrence(sets: list[tuple[str, ...]]) -> list[Finding]:
    counts = Counter(name for names in sets for name in names)
    pairs = Counter(pair for names in sets for pair in combinations(names, 2))
    most = sorted(pairs.items(), key=lambda at: (-at[1], at[0]))[:MAX_PAIRS]
    return image_finding(
        CO_OCCURRENCE, "note",
        ("pair of labels occurs most often together", "pairs of labels occur most often together"),
        "A label that seldom occurs without another is hard to tell from it.",
        [
            (f"{a} and {b}", f"in {plural(n, 'image')}: {n / counts[a]:.0%} of {a}, {n / counts[b]:.0%} of {b}")
            for (a, b), n in most
        ],
    )  # fmt: skip


def _never_alone(sets: list[tuple[str, ...]]) -> list[Finding]:
    alone = {names[0] for names in sets if len(names) == 1}
    never = sorted({name for names in sets for name in names} - alone)
    return image_finding(
        "labels-never-alone", "note", ("label never occurs alone", "labels never occur alone"),
        "A model may learn what they occur with instead: add images that show one of them alone.", never,
    )  # fmt: skip
