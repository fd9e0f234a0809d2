"""Findings on classes, folders and splits: class balance, missing classes and misleading names."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import chain

from sightline.data.checks.finding import Finding, image_finding
from sightline.data.targets import strip_zeros
from sightline.data.types import SPLITS, ImageRecord, Index
from sightline.errors import plural

_MISSING_VALUES = {"nan", "null", "n/a", "#n/a", "<na>"}  # without "none" and "na", which may be class names
NUMERIC_NAMES = "numeric-class-names"
DECIMAL_NAMES = "decimal-class-names"
_DECIMAL = re.compile(r"[-+]?\d*\.?\d+(e[-+]?\d+)?", re.IGNORECASE)
MIN_DECIMALS = 10  # classes that are decimal numbers; fewer may be coins or half grades
MIN_IMBALANCE = 3.0  # ratio of images between the largest and the smallest class from which an imbalance is reported
MIN_CLASS_SIZE = 20  # images; 15% of them are three validation and three test images


def class_findings(index: Index) -> list[Finding]:
    """Return the findings that need only the paths and labels of an index."""
    rows = list(zip(index.images, index.image_classes, strict=True))  # without parent classes
    counts = Counter(name for p, names in rows if p.split in (None, "train") for name in names)
    return [
        *_empty_classes(index),
        *_decimal_names(index.sort_classes(counts)),
        *_single_class(sorted({name for _, names in rows for name in names})),
        *_missing_classes(rows, counts),
        *_class_balance(counts),
        *_similar_names(index),
        *_missing_values(counts),
        *_numeric_names(index.sort_classes(counts)),
        *_joined_names(index.sort_classes(counts)),
    ]


def _empty_classes(index: Index) -> list[Finding]:
    return image_finding(
        "empty-classes", "warning",
        ("class folder has no images", "class folders have no images"),
        "Add images, or remove the folder: without images, the class does not exist.", index.empty_classes,
    )  # fmt: skip


def _single_class(classes: Sequence[str]) -> list[Finding]:
    return image_finding(
        "one-class", "error", "class only, but a classifier needs at least two",
        "Add images of another class; if the class folders are nested deeper, pass the folder directly above them, or "
        "use --set data.class_level=2.",
        classes if len(classes) == 1 else (),
    )  # fmt: skip


def _missing_classes(rows: Sequence[tuple[ImageRecord, tuple[str, ...]]], counts: Counter[str]) -> list[Finding]:
    classes_by_split: dict[str, set[str]] = defaultdict(set)
    for p, names in rows:
        if p.split is not None:
            classes_by_split[p.split].update(names)
    splits = [split for split in SPLITS if split in classes_by_split]
    unknown = sorted(set[str]().union(*classes_by_split.values()) - set(counts))
    missing = [(label, name) for name in splits for label in sorted(set(counts) - classes_by_split[name])]
    absent = [*((label, "training") for label in unknown), *missing]
    return image_finding(
        "missing-classes", "error" if unknown else "warning",
        ("class is missing from a split", "classes are missing from a split"),
        "A class absent from training cannot be predicted, and one absent from the test split is not evaluated: add "
        "images of it to that split, or remove it from the others.",
        [(label, f"not in the {name} split") for label, name in absent],
    )  # fmt: skip


def _class_balance(counts: Counter[str]) -> list[Finding]:
    findings = image_finding(
        "small-classes", "warning",
        (f"class has fewer than {MIN_CLASS_SIZE} training images",
        f"classes have fewer than {MIN_CLASS_SIZE} training images"),
        "A class with so few images is learned and evaluated less reliably: collect more, or merge classes.",
        [(label, plural(n, "image")) for label, n in sorted(counts.items()) if n < MIN_CLASS_SIZE],
    )  # fmt: skip
    if len(counts) < 2:
        return findings
    (largest, largest_count), (smallest, smallest_count) = (
        counts.most_common()[0],
        min(counts.items(), key=lambda at: (at[1], at[0])),
    )
    if largest_count < MIN_IMBALANCE * smallest_count:
        return findings
    ordered = [(label, plural(n, "image")) for label, n in sorted(counts.items(), key=lambda at: (-at[1], at[0]))]
    what = (
        f"classes are imbalanced: {largest!r} has {plural(largest_count, 'training image')}, "
        f"{smallest!r} only {smallest_count:,}"
    )
    advice = (
        "Check the metrics per class; consider --set train.class_weights=balanced, or collect more of the rare ones."
    )
    return [*findings, *image_finding("class-imbalance", "warning", what, advice, ordered)]


def normalize_class_name(label: str) -> str:
    """Normalize a class name: ignore case, spaces, dashes, underscores, invisible and compatibility characters.

    Leading zeros of a number are dropped.

    >>> normalize_class_name("Coffee_Bean ") == normalize_class_name("coffee bean")
    True
    >>> normalize_class_name("007") == normalize_class_name("7")
    True
    """
    folded = unicodedata.normalize("NFKC", label).casefold()
    return strip_zeros("".join(c for c in folded if not (c.isspace() or c in "-_" or unicodedata.category(c) == "Cf")))


def find_similar_names(index: Index) -> list[list[str]]:
    """Return groups of class names that are equal after `normalize_class_name`."""
    groups: dict[str, set[str]] = defaultdict(set)
    for name in {name for p in index.images for name in index.targets.list_classes(p.label)}:
        groups[normalize_class_name(name)].add(name)
    return [sorted(names) for _, names in sorted(groups.items()) if len(names) > 1]


def _similar_names(index: Index) -> list[Finding]:
    groups = find_similar_names(index)
    rows = [(name, f"also {', '.join(repr(o) for o in group if o != name)}") for group in groups for name in group]
    return image_finding(
        "similar-class-names", "warning",
        "class names differ only in case, spaces, dashes, underscores or leading zeros",
        "If they mean the same class, give them one name (--write-fixes relabels the smaller class).", rows,
    )  # fmt: skip


def _missing_values(counts: Counter[str]) -> list[Finding]:
    named = [(name, plural(n, "image")) for name, n in sorted(counts.items()) if name.casefold() in _MISSING_VALUES]
    return image_finding(
        "missing-value-names", "warning",
        ("class is named like a missing value", "classes are named like missing values"),
        "If these images have no label, clear their cells or remove their rows.", named,
    )  # fmt: skip


def _decimal_names(classes: Sequence[str]) -> list[Finding]:
    decimals = [c for c in classes if _DECIMAL.fullmatch(c) and float(c) % 1]
    return image_finding(
        DECIMAL_NAMES, "warning", "classes are decimal numbers, like measurements",
        "A classifier does not learn that 0.37 is close to 0.38: give each image a range of values as its class, such "
        "as low, medium or high. For ranges in order, use --set model.task=ordinal.",
        decimals if len(decimals) >= MIN_DECIMALS and all(map(_DECIMAL.fullmatch, classes)) else (),
    )  # fmt: skip


def _numeric_names(classes: Sequence[str]) -> list[Finding]:
    if not classes or not all(c.isdecimal() for c in classes):
        return []
    by_number = sorted(classes, key=lambda c: (int(c), c))
    if by_number == list(classes):
        return []
    order = ", ".join(classes[:4])
    return image_finding(
        NUMERIC_NAMES, "note", f"class names are numbers but sorted as text: {order}, ...",
        "The class index is not the number. Pad names with zeros (02, 10) if programs rely on that.", classes,
    )  # fmt: skip


def _joined_names(classes: Sequence[str]) -> list[Finding]:
    """Return a finding on names such as ``cat,pet`` and ``dog,pet``.

    Those of ImageNet rarely share a part. Two classes of PlantVillage do, ``Pepper,_bell___healthy`` for one, but most
    of its classes have no comma, and none is called ``Pepper``. In single names such as ``Paris, France``, a space
    follows each comma, and the first part is not shared.
    """
    parts_by_name = {name: {text.strip() for text in name.split(",")} for name in classes}
    counts = Counter(chain.from_iterable(parts_by_name.values()))
    names = [name for name, parts in parts_by_name.items() if len(parts) > 1]
    sharing = [name for name in names if any(text and counts[text] > 1 for text in parts_by_name[name])]
    firsts = Counter(name.split(",")[0] for name in names)
    joined = [name for name in names if re.search(r",(?! )", name) or firsts[name.split(",")[0]] > 1]
    are_labels = 2 * len(joined) >= len(classes) or any(parts_by_name[name] & set(classes) for name in sharing)
    return image_finding(
        "joined-class-names", "warning", "class names have commas and parts in common, like several labels",
        "If these are several labels of an image, write a semicolon between them (cat;pet), and train a multi-label "
        "classifier with --set model.task=multi_label.",
        sharing if are_labels and 2 * len(sharing) > len(names) else (),
    )  # fmt: skip
