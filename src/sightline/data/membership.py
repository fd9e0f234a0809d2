"""The images that a run used, and which of them a source still contains."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sightline.records import Index, Part, Picture

_LEVELS = 4  # length of the result of `_keys`


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One image that a run used, a row of its ``data.jsonl``; `group` names what was kept in one split, "" for none.

    Several rows may have the same content or the same path; only their position identifies them.
    """

    path: str
    sha256: str
    label: str
    split: Part
    group: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON values."""
        group = {"group": self.group} if self.group else {}
        return {"path": self.path, "sha256": self.sha256, "label": self.label, "split": self.split, **group}


@dataclass(frozen=True, slots=True)
class Matched:
    """The recorded images that a source still contains, and those that it does not.

    `index` has the images found, in the order of `rows`, each with its recorded class and split; `stated` are the
    splits given by the source itself. `changed` are rows whose path exists with another content or class, or cannot be
    read any more; `missing` are the other rows that were not found. `others` are images of the source without a row.
    """

    index: Index
    rows: tuple[ImageRow, ...]
    stated: tuple[Part | None, ...]
    missing: tuple[ImageRow, ...]
    changed: tuple[ImageRow, ...]
    others: tuple[Picture, ...]

    def only(self, split: Part) -> Matched:
        """Return the rows of one split, without `others`."""
        at = [i for i, row in enumerate(self.rows) if row.split == split]
        missing, changed = (tuple(r for r in lost if r.split == split) for lost in (self.missing, self.changed))
        rows, stated = tuple(self.rows[i] for i in at), tuple(self.stated[i] for i in at)
        return Matched(self.index.at(at), rows, stated, missing, changed, ())

    @property
    def added(self) -> tuple[Picture, ...]:
        """The `others` whose path is not recorded: a changed image does not count as added."""
        paths = {row.path for row in self.changed}
        return tuple(p for p in self.others if p.path not in paths)

    @property
    def complete(self) -> bool:
        """Whether every recorded image is present and unchanged."""
        return not self.missing and not self.changed


def match(rows: Sequence[ImageRow], index: Index, relabeled: Mapping[tuple[str, str], str] | None = None) -> Matched:
    """Find the recorded images in a source by path and content, or moved files by content and class.

    Each image of the source matches at most one row, so that a file in two splits stays in both. `relabeled` maps the
    path and content of images whose class was corrected for the run to the class that the source gives them.
    """
    labels = [(relabeled or {}).get((row.path, row.sha256), row.label) for row in rows]
    place: dict[int, int] = {}
    taken: set[int] = set()
    for level in range(_LEVELS):
        free: dict[Hashable, deque[int]] = defaultdict(deque)
        for i, picture in enumerate(index.pictures):
            if i not in taken:
                free[_keys(picture.path, picture.sha256, picture.label, picture.part)[level]].append(i)
        for at, (row, label) in enumerate(zip(rows, labels, strict=True)):
            if at not in place and (queue := free.get(_keys(row.path, row.sha256, label, row.split)[level])):
                place[at] = queue.popleft()
                taken.add(place[at])
        if len(place) == len(rows):
            break
    return _matched(rows, index, place, taken)


def _keys(path: str, sha256: str, label: str, part: Part | None) -> tuple[Hashable, ...]:
    """Return the keys to match an image by, strictest first; the source may list validation images as training."""
    return (path, sha256, label, part), (path, sha256, label), (sha256, label, part), (sha256, label)


def _matched(rows: Sequence[ImageRow], index: Index, place: Mapping[int, int], taken: set[int]) -> Matched:
    at = sorted(place)
    where = [place[i] for i in at]
    pictures = tuple(replace(index.pictures[place[i]], label=rows[i].label, part=rows[i].split) for i in at)
    others = tuple(p for i, p in enumerate(index.pictures) if i not in taken)
    there = {p.path for p in others} | {reject.path for reject in index.rejects}
    lost = [row for i, row in enumerate(rows) if i not in place]
    return Matched(
        replace(index.at(where), pictures=pictures),
        tuple(rows[i] for i in at),
        tuple(index.pictures[i].part for i in where),
        tuple(row for row in lost if row.path not in there),
        tuple(row for row in lost if row.path in there),
        others,
    )


def difference(rows: Sequence[ImageRow], index: Index) -> str | None:
    """Describe how a source differs from the recorded images, classes and splits; None if it does not.

    Training images of the source may be recorded in a split that the source does not give.
    """
    matched = match(rows, index)
    lost = len(matched.missing) + len(matched.changed)
    if lost or matched.others:
        return f"{lost} of {len(rows)} are missing or changed, {len(matched.others)} are new"
    splits = {p.part for p in index.pictures}
    moved = [
        row.path
        for row, stated in zip(matched.rows, matched.stated, strict=True)
        if stated not in {None, row.split} and (stated != "train" or row.split in splits)
    ]
    return f"{len(moved)} of {len(rows)} are in another split, such as {moved[0]}" if moved else None
