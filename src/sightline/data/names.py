"""Findings on classes, folders and splits: class balance, missing classes and misleading names."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence

from sightline.data.finding import Finding, listed
from sightline.errors import plural
from sightline.records import PARTS, Index, Picture

IMBALANCE = 3.0  # greatest ratio of images between the largest and the smallest class
SMALL = 20  # images; 15% of them are three validation and three test images


def findings(index: Index) -> list[Finding]:
    """Return the findings that need only the paths and labels of an index."""
    counts = Counter(p.label for p in index.pictures if p.part in (None, "train"))
    return [
        *_empty(index),
        *_alone(sorted({p.label for p in index.pictures})),
        *_missing(index.pictures, counts),
        *_balance(counts),
        *_similar(index),
        *_numeric(sorted(counts)),
    ]


def _empty(index: Index) -> list[Finding]:
    return listed(
        "empty-classes", "warning",
        ("class folder has no images", "class folders have no images"),
        "Add images, or remove the folder: without images, the class does not exist.", index.empty,
    )  # fmt: skip


def _alone(classes: Sequence[str]) -> list[Finding]:
    return listed(
        "one-class", "error", "class only, but a classifier needs at least two",
        "Add images of another class; if the class folders are nested deeper, pass the folder directly above them, or "
        "use --set data.class_level=2.",
        classes if len(classes) == 1 else (),
    )  # fmt: skip


def _missing(pictures: Sequence[Picture], counts: Counter[str]) -> list[Finding]:
    held: dict[str, set[str]] = defaultdict(set)
    for p in pictures:
        if p.part is not None:
            held[p.part].add(p.label)
    parts = [part for part in PARTS if part in held]
    unknown = sorted({label for labels in held.values() for label in labels} - set(counts)) if held else []
    lacking = [(label, part) for part in parts for label in sorted(set(counts) - held[part])]
    names = [*unknown, *(label for label, _ in lacking)]
    reasons = [*("not in the training split" for _ in unknown), *(f"not in the {part} split" for _, part in lacking)]
    return listed(
        "missing-classes", "error" if unknown else "warning",
        ("class is missing from a split", "classes are missing from a split"),
        "A class absent from training cannot be predicted, and one absent from the test split is not evaluated: add "
        "images of it to that split, or remove it from the others.", names, reasons,
    )  # fmt: skip


def _balance(counts: Counter[str]) -> list[Finding]:
    found = listed(
        "small-classes", "warning",
        (f"class has fewer than {SMALL} training images", f"classes have fewer than {SMALL} training images"),
        "Too few to split and to evaluate: collect more, or merge classes.",
        *_columns([(label, plural(n, "image")) for label, n in sorted(counts.items()) if n < SMALL]),
    )  # fmt: skip
    if len(counts) < 2:
        return found
    (most, many), (least, few) = counts.most_common()[0], min(counts.items(), key=lambda at: (at[1], at[0]))
    if many < IMBALANCE * few:
        return found
    ordered = [(label, plural(n, "image")) for label, n in sorted(counts.items(), key=lambda at: (-at[1], at[0]))]
    names, reasons = _columns(ordered)
    what = f"classes are imbalanced: {most!r} has {plural(many, 'training image')}, {least!r} only {few:,}"
    advice = (
        "Check the metrics per class; consider --set train.class_weights=balanced, or collect more of the rare ones."
    )
    return [*found, Finding("class-imbalance", "warning", len(names), what, advice, names, reasons)]


def _columns(rows: Sequence[tuple[str, str]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(name for name, _ in rows), tuple(reason for _, reason in rows)


def alike(label: str) -> str:
    """Normalize a class name: ignore case, spaces, dashes, underscores and compatibility forms of characters.

    >>> alike("Coffee_Bean ") == alike("coffee bean")
    True
    """
    return "".join(c for c in unicodedata.normalize("NFKC", label).casefold() if not c.isspace() and c not in "-_")


def similar(index: Index) -> list[list[str]]:
    """Return groups of class names that differ only in case, spaces, dashes or underscores."""
    groups: dict[str, set[str]] = defaultdict(set)
    for p in index.pictures:
        groups[alike(p.label)].add(p.label)
    return [sorted(names) for _, names in sorted(groups.items()) if len(names) > 1]


def _similar(index: Index) -> list[Finding]:
    groups = similar(index)
    names = [name for group in groups for name in group]
    reasons = [f"also {', '.join(repr(o) for o in group if o != name)}" for group in groups for name in group]
    return listed(
        "similar-class-names", "warning", "class names differ only in case, spaces, dashes or underscores",
        "If they mean the same class, give them one name (--fix relabels the smaller class).", names, reasons,
    )  # fmt: skip


def _numeric(classes: Sequence[str]) -> list[Finding]:
    if not classes or not all(c.isdecimal() for c in classes):
        return []
    by_number = sorted(classes, key=lambda c: (int(c), c))
    if by_number == list(classes):
        return []
    order = ", ".join(classes[:4])
    return listed(
        "numeric-class-names", "note", f"class names are numbers but sorted as text: {order}, ...",
        "The class index is not the number. Pad names with zeros (02, 10) if programs rely on that.", classes,
    )  # fmt: skip
