"""The images that a run used, and which of them a source still contains."""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sightline import jsonio
from sightline.data.types import ImageRecord, Index, Split

_NUM_KEYS = 4  # length of the result of `_match_keys`


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One image that a run used, a row of its ``data.jsonl``; `group` names its split group, "" for none.

    `mask` is the hash of its mask, "" if masks were not the targets, and in runs of earlier versions. Several rows may
    have the same content or the same path; only their position identifies them.
    """

    path: str
    sha256: str
    label: str
    split: Split
    group: str = ""
    mask: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON values."""
        others = {key: value for key, value in (("group", self.group), ("mask", self.mask)) if value}
        return {"path": self.path, "sha256": self.sha256, "label": self.label, "split": self.split, **others}


@dataclass(frozen=True, slots=True)
class MatchedImages:
    """The recorded images that a source still contains, and those that it does not.

    `index` contains the images found, in the order of `rows`, each with its recorded class and split; `given_splits`
    are the splits stated by the source itself. `changed` are rows whose path now has another content, class or mask, or
    can no longer be read; `missing` are the other rows that were not found. `unmatched` are images of the source that
    match no row.
    """

    index: Index
    rows: tuple[ImageRow, ...]
    given_splits: tuple[Split | None, ...]
    missing: tuple[ImageRow, ...]
    changed: tuple[ImageRow, ...]
    unmatched: tuple[ImageRecord, ...]

    def select_split(self, split: Split) -> MatchedImages:
        """Return the rows of one split, without `unmatched`."""
        positions = [i for i, row in enumerate(self.rows) if row.split == split]
        missing, changed = (
            tuple(r for r in rows_lost if r.split == split) for rows_lost in (self.missing, self.changed)
        )
        rows, given_splits = tuple(self.rows[i] for i in positions), tuple(self.given_splits[i] for i in positions)
        return MatchedImages(self.index.select(positions), rows, given_splits, missing, changed, ())

    @property
    def added(self) -> tuple[ImageRecord, ...]:
        """The `unmatched` images whose path is not recorded; a changed image does not count as added."""
        paths = {row.path for row in self.changed}
        return tuple(p for p in self.unmatched if p.path not in paths)

    @property
    def complete(self) -> bool:
        """Whether every recorded image is present and unchanged."""
        return not self.missing and not self.changed


def map_groups(rows: Iterable[ImageRow]) -> dict[str, str]:
    """Map the path of each image that has a split group to the group."""
    return {row.path: row.group for row in rows if row.group}


def hash_images(images: Iterable[ImageRecord], splits: Iterable[Split | None], *, are_masks: bool = False) -> str:
    """Return a hash of images, labels or masks, and splits, which identifies the data of a search."""
    rows = [
        (p.sha256, p.label, split, *([p.mask and p.mask.sha256] if are_masks else []))
        for p, split in zip(images, splits, strict=True)
    ]
    return hashlib.sha256(jsonio.dumps(rows).encode()).hexdigest()[:16]


def match_images(
    rows: Sequence[ImageRow], index: Index, relabeled: Mapping[tuple[str, str], str] | None = None
) -> MatchedImages:
    """Find the recorded images in a source by path and content, or moved files by content and class.

    Each image of the source matches at most one row, so that a file in two splits stays in both. `relabeled` maps the
    path and content of images whose class was corrected for the run to the class that the source gives them. Masks are
    compared if any row has one.
    """
    has_masks = any(row.mask for row in rows)
    labels = [(relabeled or {}).get((row.path, row.sha256), row.label) for row in rows]
    positions: dict[int, int] = {}
    matched: set[int] = set()
    for level in range(_NUM_KEYS):
        unmatched: dict[Hashable, deque[int]] = defaultdict(deque)
        for i, image in enumerate(index.images):
            if i not in matched:
                mask = image.mask.sha256 if has_masks and image.mask else ""
                unmatched[_match_keys(image.path, image.sha256 + mask, image.label, image.split)[level]].append(i)
        for at, (row, label) in enumerate(zip(rows, labels, strict=True)):
            if at not in positions and (
                queue := unmatched.get(_match_keys(row.path, row.sha256 + row.mask, label, row.split)[level])
            ):
                positions[at] = queue.popleft()
                matched.add(positions[at])
        if len(positions) == len(rows):
            break
    return _build_match(rows, index, positions, matched)


def _match_keys(path: str, content: str, label: str, split: Split | None) -> tuple[Hashable, ...]:
    """Return the keys to match an image by, strictest first; the source may list validation images as training images.

    `content` is the hash of the image, followed by the hash of its mask if masks are compared.
    """
    return (path, content, label, split), (path, content, label), (content, label, split), (content, label)


def _build_match(rows: Sequence[ImageRow], index: Index, place: Mapping[int, int], matched: set[int]) -> MatchedImages:
    row_positions = sorted(place)
    index_positions = [place[i] for i in row_positions]
    images = tuple(replace(index.images[place[i]], label=rows[i].label, split=rows[i].split) for i in row_positions)
    others = (image for i, image in enumerate(index.images) if i not in matched)
    unmatched = tuple(p for p in others if p.label or (index.several_labels and not p.to_label))
    present_paths = {p.path for p in unmatched} | {reject.path for reject in index.unreadable}
    unmatched_rows = [row for i, row in enumerate(rows) if i not in place]
    return MatchedImages(
        replace(index.select(index_positions), images=images),
        tuple(rows[i] for i in row_positions),
        tuple(index.images[i].split for i in index_positions),
        tuple(row for row in unmatched_rows if row.path not in present_paths),
        tuple(row for row in unmatched_rows if row.path in present_paths),
        unmatched,
    )


def describe_difference(rows: Sequence[ImageRow], index: Index) -> str | None:
    """Describe how a source differs from the recorded images, classes and splits; None if it does not.

    Training images of the source may be recorded in a split that the source does not state.
    """
    matched = match_images(rows, index)
    num_lost = len(matched.missing) + len(matched.changed)
    if num_lost or matched.unmatched:
        return f"{num_lost} of {len(rows)} are missing or changed and {len(matched.unmatched)} are new"
    splits = {p.split for p in index.images}
    moved = [
        row.path
        for row, given_split in zip(matched.rows, matched.given_splits, strict=True)
        if given_split not in {None, row.split} and (given_split != "train" or row.split in splits)
    ]
    return f"{len(moved)} of {len(rows)} are in another split, such as {moved[0]}" if moved else None
