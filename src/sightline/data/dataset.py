"""`Dataset`: the decoded images of an index, split, with a fixed class order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline.config import SplitConfig
from sightline.config.groups import group_rule
from sightline.data import cache
from sightline.data.grouping import groups
from sightline.data.split import split
from sightline.data.survey import survey
from sightline.errors import DataError, plural
from sightline.preprocess import Preprocess
from sightline.records import PARTS, Index, Labelled, Part, Picture, Progress, Reject, Samples, no_progress


@dataclass(frozen=True, slots=True)
class Dataset:
    """Images ready to train on.

    `pixels` is uint8 [M, H, W, C]; image ``i`` of `pictures` is ``pixels[rows[i]]``, with class ``labels[i]`` and split
    ``parts[i]``. Identical files share a row. `groups` names the group that keeps each image in one split (its sha256
    if it is in none); it is empty without ``split.group``.
    """

    name: str
    classes: tuple[str, ...]
    pictures: tuple[Picture, ...]
    parts: tuple[Part, ...]
    labels: NDArray[np.int32]
    pixels: NDArray[np.uint8]
    rows: NDArray[np.int64]
    rejects: tuple[Reject, ...]
    skipped: int
    notes: tuple[str, ...]
    cache_hit: bool
    groups: tuple[str, ...] = ()

    def part(self, name: Part) -> Samples:
        """Return the images of one split, in index order."""
        at = np.array([i for i, part in enumerate(self.parts) if part == name], np.int64)
        return Samples(self.pixels, self.rows[at], self.labels[at], tuple(self.pictures[i].path for i in at))

    def labelled(self, name: Part) -> Labelled:
        """Return one split with its image records, for evaluating a model."""
        pictures = tuple(p for p, part in zip(self.pictures, self.parts, strict=True) if part == name)
        return Labelled(self.part(name), pictures, (), name)

    def counts(self) -> dict[Part, int]:
        """Return the number of images in each split."""
        counted = Counter(self.parts)
        return {part: counted[part] for part in PARTS}


@dataclass(frozen=True, slots=True)
class Decoded:
    """The decoded images of an index: the one at ``readable[i]`` is ``pixels.array[rows[i]]`` (rows int64).

    `rejects` are those that cannot be decoded.
    """

    pixels: cache.Pixels
    readable: tuple[int, ...]
    rows: NDArray[np.int64]
    rejects: tuple[Reject, ...]


def decode(
    index: Index,
    preprocess: Preprocess,
    *,
    keep: bool = True,
    progress: Progress = no_progress,
    threads: int | None = None,
) -> Decoded:
    """Decode the images of an index, each content only once."""
    first: dict[str, int] = {}
    for i, picture in enumerate(index.pictures):
        first.setdefault(picture.sha256, i)
    hashes = sorted(first)
    row_of = {sha: row for row, sha in enumerate(hashes)}
    found = cache.pixels(
        hashes, lambda row: index.read(first[hashes[row]]), preprocess, keep=keep, progress=progress, threads=threads
    )
    rows = [row_of[p.sha256] for p in index.pictures]
    readable = tuple(i for i, row in enumerate(rows) if row not in found.failed)
    rejects = tuple(
        Reject(p.path, found.failed[row], p.label)
        for p, row in zip(index.pictures, rows, strict=True)
        if row in found.failed
    )
    return Decoded(found, readable, np.array([rows[i] for i in readable], np.int64), rejects)


def assemble(
    index: Index,
    preprocess: Preprocess,
    config: SplitConfig,
    seed: int,
    *,
    keep: bool = True,
    progress: Progress = no_progress,
    threads: int | None = None,
) -> Dataset:
    """Decode the images of an index, reject undecodable ones, fix the class order and assign splits.

    With ``split.group = "near"`` every image is read once more, to find near duplicates.

    Raises `ConfigError` for a ``split.group`` that does not fit the images, and `DataError` for fewer than two classes,
    a class without any usable image, an empty training split, or a class that is missing from the training split.
    """
    check_classes(index)
    decoded = decode(index, preprocess, keep=keep, progress=progress, threads=threads)
    pictures = tuple(index.pictures[i] for i in decoded.readable)
    rejects = (*index.rejects, *decoded.rejects)
    classes = _classes(pictures, rejects, index.name)
    number = {label: i for i, label in enumerate(classes)}
    rule = group_rule(config.group)
    near = survey(index, progress, threads, preprocess).near if rule.kind == "near" else None
    divided = split(pictures, config, seed, groups(pictures, rule, near))
    return Dataset(
        index.name,
        classes,
        pictures,
        divided.parts,
        np.array([number[p.label] for p in pictures], np.int32),
        decoded.pixels.array,
        decoded.rows,
        rejects,
        index.skipped,
        divided.notes,
        decoded.pixels.hit,
        () if rule.kind == "none" else divided.groups,
    )


def check_classes(index: Index) -> None:
    """Raise `DataError` for problems known before decoding: a single class, or a class without readable images."""
    _classes(index.pictures, index.rejects, index.name)


def _classes(pictures: Sequence[Picture], rejects: Sequence[Reject], name: str) -> tuple[str, ...]:
    classes = {p.label for p in pictures if p.part in (None, "train")}
    if not pictures and rejects:
        first = rejects[0]
        raise DataError(
            f"None of the {plural(len(rejects), 'image')} in {name} can be used; the first, {first.path}: "
            f"{first.reason}."
        )
    if not classes:
        raise DataError(f"{name} has no training images: expected a train split next to the others.")
    for label, reject in {r.label: r for r in reversed(rejects) if r.label}.items():
        if label not in classes and not any(p.label == label for p in pictures):
            count = sum(r.label == label for r in rejects)
            raise DataError(
                f"No image of class {label!r} in {name} can be used: {count} rejected, such as {reject.path} "
                f"({reject.reason}). Restore or replace them; if you do not need the class, remove its folder or rows."
            )
    for p in pictures:
        if p.label not in classes:
            raise DataError(
                f"{p.path} has class {p.label!r}, which is missing from the training split of {name} "
                f"(it has {', '.join(sorted(classes)[:8])}). Add training images of this class, or remove it."
            )
    if len(classes) < 2:
        only = next(iter(classes))
        raise DataError(
            f"{name} has only one class, {only!r}: a classifier needs at least two. If the class folders are nested "
            "deeper, pass the folder directly above them, or use --set data.class_level=2."
        )
    return tuple(sorted(classes))
