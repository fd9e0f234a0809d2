"""`DecodedDataset`: the decoded images of an index, split, with a fixed class order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.callbacks import Progress, no_progress
from sightline.config import SplitConfig
from sightline.config.split_groups import parse_group_rule
from sightline.data import cache
from sightline.data.checks.image_stats import compute_image_stats
from sightline.data.class_tree import build_tree, check_paths, find_parents
from sightline.data.grouping import assign_groups
from sightline.data.masks import CLASSES_FILE, load_masks
from sightline.data.missing_images import name_unread_labels
from sightline.data.split import assign_splits
from sightline.data.targets import CLASS_TARGETS, Targets, list_leaf_classes
from sightline.data.types import SPLITS, ImageRecord, Index, LabeledSubset, Split, Subset, UnreadableImage
from sightline.errors import DataError, list_some, plural
from sightline.preprocessing import PreprocessingSpec


@dataclass(frozen=True, slots=True)
class DecodedDataset:
    """Images ready to train on.

    `pixels` is uint8 [M, H, W, C]; image ``i`` of `images` is ``pixels[rows[i]]``, with target ``labels[i]`` and split
    ``splits[i]``. Identical files share a row. `groups` names the group that keeps each image in one split (its sha256
    if it is in none); it is empty without ``split.group``.
    """

    name: str
    classes: tuple[str, ...]
    images: tuple[ImageRecord, ...]
    splits: tuple[Split, ...]
    labels: NDArray[Any]
    pixels: NDArray[np.uint8]
    rows: NDArray[np.int64]
    unreadable: tuple[UnreadableImage, ...]
    skipped: int
    notes: tuple[str, ...]
    cache_hit: bool
    groups: tuple[str, ...] = ()

    def hash_mask(self, image: ImageRecord) -> str:
        """Return the hash of an image's mask; "" if masks are not the targets."""
        return image.mask.sha256 if image.mask is not None and self.labels.ndim == 3 else ""

    def list_positions(self, split: Split) -> NDArray[np.int64]:
        """Return the positions of the images of one split, int64 [n], without those labeled with a parent class."""
        has_class = self.labels < len(self.classes) if self.labels.ndim == 1 else np.ones(len(self.images), bool)
        return np.flatnonzero(has_class & (np.array(self.splits) == split))

    def subset(self, split: Split) -> Subset:
        """Return the images of one split that have a class each, in index order."""
        return self._take(self.list_positions(split))

    def training_subset(self) -> Subset:
        """Return all images to train on; if some have a parent class, labels come from `ClassTree.list_leaves`."""
        positions = np.flatnonzero(np.array(self.splits) == "train")
        if len(positions) == len(self.list_positions("train")):
            return self._take(positions)
        return replace(self._take(positions), labels=build_tree(self.classes).list_leaves(self.labels[positions]))

    def _take(self, positions: NDArray[np.int64]) -> Subset:
        images = tuple(self.images[i] for i in positions)
        return Subset(
            self.pixels, self.rows[positions], self.labels[positions], tuple(image.path for image in images),
            list_sizes(images),
        )  # fmt: skip

    def labeled_subset(self, split: Split) -> LabeledSubset:
        """Return one split with its image records, for evaluating a model."""
        positions = self.list_positions(split)
        images = tuple(self.images[i] for i in positions)
        groups = {self.images[i].path: self.groups[i] for i in positions} if self.groups else {}
        return LabeledSubset(self.subset(split), images, self.unreadable, split, groups=groups)

    def counts(self) -> dict[Split, int]:
        """Return the number of images in each split."""
        counted = Counter(self.splits)
        return {split: counted[split] for split in SPLITS}


def list_sizes(images: Sequence[ImageRecord]) -> NDArray[np.int64]:
    """Return the width and height of each image, int64 [N, 2]."""
    return np.array([(image.width, image.height) for image in images], np.int64).reshape(-1, 2)


@dataclass(frozen=True, slots=True)
class DecodedImages:
    """The decoded images of an index: the one at ``readable[i]`` is ``pixels.array[rows[i]]`` (rows int64).

    `unreadable` are those that cannot be decoded.
    """

    pixels: cache.CachedPixels
    readable: tuple[int, ...]
    rows: NDArray[np.int64]
    unreadable: tuple[UnreadableImage, ...]


def decode_images(
    index: Index,
    preprocess: PreprocessingSpec,
    *,
    keep: bool = True,
    progress: Progress = no_progress,
    threads: int | None = None,
) -> DecodedImages:
    """Decode the images of an index; identical files are decoded once."""
    first_position = {index.images[i].sha256: i for i in reversed(range(len(index.images)))}
    hashes = sorted(first_position)
    row_of = {sha: row for row, sha in enumerate(hashes)}
    pixels = cache.load_pixels(
        hashes,
        lambda row: index.read(first_position[hashes[row]]),
        preprocess,
        keep=keep,
        progress=progress,
        threads=threads,
    )
    rows = [row_of[p.sha256] for p in index.images]
    readable = tuple(i for i, row in enumerate(rows) if row not in pixels.failures)
    unreadable = tuple(
        UnreadableImage(p.path, pixels.failures[row], p.label)
        for p, row in zip(index.images, rows, strict=True)
        if row in pixels.failures
    )
    return DecodedImages(pixels, readable, np.array([rows[i] for i in readable], np.int64), unreadable)


def build_dataset(
    index: Index,
    preprocess: PreprocessingSpec,
    config: SplitConfig,
    seed: int,
    *,
    targets: Targets = CLASS_TARGETS,
    keep: bool = True,
    progress: Progress = no_progress,
    threads: int | None = None,
) -> DecodedDataset:
    """Decode the images of an index, reject undecodable ones, fix the class order and assign splits.

    With ``split.group = "near_duplicates"``, every image is read a second time to find near duplicates.

    Raises `ConfigError` for a ``split.group`` that does not fit the images, and `DataError` for fewer than two classes,
    a class without any usable image, an empty training split, or a class that is missing from the training split.
    """
    check_classes(index, targets)
    decoded = decode_images(index, preprocess, keep=keep, progress=progress, threads=threads)
    images = tuple(index.images[i] for i in decoded.readable)
    unreadable = (*index.unreadable, *decoded.unreadable)
    classes = _check_and_list_classes(images, unreadable, index, targets)
    rule = parse_group_rule(config.group)
    near = None
    if rule.kind == "near_duplicates":
        near = compute_image_stats(index, progress, threads, preprocess).near_duplicates
    assignment = assign_splits(images, config, seed, assign_groups(images, rule, near), targets)
    return DecodedDataset(
        name=index.name,
        classes=classes,
        images=images,
        splits=assignment.splits,
        labels=encode_labels(index, decoded.readable, preprocess, targets, classes, threads),
        pixels=decoded.pixels.array,
        rows=decoded.rows,
        unreadable=unreadable,
        skipped=len(index.other_files),
        notes=(*assignment.notes, *_describe_parents(images, assignment.splits, targets)),
        cache_hit=decoded.pixels.hit,
        groups=() if rule.kind == "none" else assignment.groups,
    )


def _describe_parents(images: Sequence[ImageRecord], splits: Sequence[Split], targets: Targets) -> list[str]:
    """Return a note on the images that are labeled with a parent class."""
    parents = find_parents(image.label for image in images) if targets.are_paths else ()
    labeled = [(image.label, split) for image, split in zip(images, splits, strict=True) if image.label in parents]
    if not labeled:
        return []
    labels = sorted({label for label, _ in labeled})
    count, left_out = len(labeled), sum(split != "train" for _, split in labeled)
    verb = "is" if count == 1 else "are"
    return [
        f"{plural(count, 'image')} {verb} labeled with a parent class (such as {labels[0]!r}), which trains the "
        "levels down to it" + (f"; {left_out} of them, outside the training split, are left out" if left_out else "")
    ]


def encode_labels(
    index: Index,
    positions: Sequence[int],
    preprocess: PreprocessingSpec,
    targets: Targets,
    classes: Sequence[str],
    threads: int | None = None,
) -> NDArray[Any]:
    """Return the targets of the images at `positions`, [N, ...]: their encoded labels, or their masks."""
    if targets.are_masks:
        return load_masks(index, positions, preprocess, classes, threads)
    return targets.encode([index.images[i].label for i in positions], classes)


def check_classes(index: Index, targets: Targets = CLASS_TARGETS) -> None:
    """Raise `DataError` for problems that can be found before decoding.

    These are a single class, a class without readable images, several labels per image where the task needs exactly
    one, and grades in an unknown order.
    """
    if index.several_labels and not targets.allows_several:
        raise DataError(f"{index.several_labels}. {_advise_task(index)}")
    _check_and_list_classes(index.images, index.unreadable, index, targets)


def _advise_task(index: Index) -> str:
    if any(image.mask for image in index.images):
        return (
            "Train a model of the class of each pixel with --set model.task=segmentation, or a multi-label classifier "
            "of the classes in each image with --set model.task=multi_label."
        )
    return (
        "Train a multi-label classifier with --set model.task=multi_label. If each image has one class, correct the "
        "labels, or name another column with --column label=NAME."
    )


def _explain_no_classes(images: Sequence[ImageRecord], index: Index, targets: Targets) -> str:
    """Return why there is no class to learn: there are no training images, or none of them has one."""
    count = sum(image.split in (None, "train") for image in images)
    if not count:
        return f"{index.name} has no training images: expected a train split next to the others."
    images_text = f"{plural(count, 'training image')} of {index.name}"
    if targets.are_masks:
        return (
            f"No pixel in the masks of the {images_text} has a class: all of them are void. Check the values of the "
            f"masks against {_name_table(index)}."
        )
    return f"There is no class to learn, since none of the {images_text} has one: label some of them."


def _explain_single_class(only: str, index: Index, targets: Targets) -> str:
    if targets.are_masks:
        return (
            f"The training masks of {index.name} have pixels of one class only, {only!r}: a model needs at least two. "
            f"Check the values of the masks against {_name_table(index)}."
        )
    advice = name_unread_labels(index.notes) or (
        " If the class folders are nested deeper, pass the folder directly above them, or use --set "
        "data.class_level=2; if the names of the files state the classes, use --set data.label_pattern=..., and if a "
        "table does, --set data.labels=FILE."
    )
    return f"{index.name} has only one class, {only!r}: a classifier needs at least two.{advice}"


def _name_table(index: Index) -> str:
    return CLASSES_FILE if index.mask_classes is None else index.mask_classes.file


def _check_and_list_classes(
    images: Sequence[ImageRecord], unreadable: Sequence[UnreadableImage], index: Index, targets: Targets
) -> tuple[str, ...]:
    name = index.name
    named = list_leaf_classes(targets, [p.label for p in images])
    classes = {label for p, own in zip(images, named, strict=True) if p.split in (None, "train") for label in own}
    readable = {label for p in images for label in targets.list_classes(p.label)}
    if not images and unreadable:
        first = unreadable[0]
        raise DataError(
            f"None of the {plural(len(unreadable), 'image')} in {name} can be used; the first, {first.path}: "
            f"{first.reason}."
        )
    if not classes:
        raise DataError(_explain_no_classes(images, index, targets))
    rejected = [(label, r) for r in unreadable if r.label for label in targets.list_classes(r.label)]
    for label, image in dict(reversed(rejected)).items():
        if label not in readable:
            count = sum(other == label for other, _ in rejected)
            raise DataError(
                f"No image of class {label!r} in {name} can be used: {count} could not be read, such as {image.path} "
                f"({image.reason}). Restore or replace them; if you do not need the class, remove its folder or rows."
            )
    for p, own in zip(images, named, strict=True):
        for label in own:
            if label not in classes:
                raise DataError(
                    f"{p.path} has class {label!r}, which is missing from the training split of {name} "
                    f"(it has {list_some(sorted(classes), 8)}). Add training images of this class, or remove it."
                )
    if len(classes) < 2:
        raise DataError(_explain_single_class(next(iter(classes)), index, targets))
    if targets.are_paths:
        check_paths(sorted(classes))
    order = index.sort_classes(classes) if index.has_numbers else ()
    return targets.order_classes(classes, index.class_order or order)
