"""Images in several class folders: identical files become one image with all of their classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sightline.data.sources.listing import SourceItem
from sightline.data.targets import LABEL_SETS, SEPARATOR, join_classes
from sightline.data.types import ImageRecord, MaskRecord, Split
from sightline.errors import DataError

IndexedImage = tuple[SourceItem, ImageRecord]


def merge_copies(images: Sequence[IndexedImage], several_labels: str) -> tuple[list[IndexedImage], str]:
    """Merge identical images within each split into the first, with all their classes; also return `several_labels`.

    `several_labels` is evidence that the source has images with several labels, "" if each has one class; merged images
    may be the first evidence. Raises `DataError` for a class name that contains the label separator.
    """
    groups: dict[tuple[str, Split | None, MaskRecord | None], list[IndexedImage]] = {}
    for item, image in images:
        groups.setdefault((image.sha256, image.split, image.mask), []).append((item, image))
    merged, evidence = [], several_labels
    for copies in groups.values():
        item, first = copies[0]
        labels = [label for _, image in copies for label in _list_classes(image, several=bool(several_labels))]
        label = join_classes(labels)
        merged.append((item, replace(first, label=label)))
        if len(set(labels)) > 1 and not evidence:
            evidence = f"{first.path} and {copies[-1][1].path} are the same image, with several labels ({label})"
    return merged, evidence


def _list_classes(image: ImageRecord, *, several: bool) -> tuple[str, ...]:
    if several:
        return LABEL_SETS.list_classes(image.label)
    if SEPARATOR in image.label:
        raise DataError(
            f"The class name {image.label!r}, of {image.path}, contains {SEPARATOR!r}, which separates the labels of "
            "an image: rename the class."
        )
    return (image.label,)
