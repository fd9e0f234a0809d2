"""Which images a run used for what, and which of them are still there."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sightline.records import Index, Part, Picture

_LEVELS = 4  # of `_keys`


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One image that a run used, as its ``data.jsonl`` keeps it; `group` is what was kept in one split, "" for none.

    A content may occur in several rows, and so may a path: what tells rows apart is their place.
    """

    path: str
    sha256: str
    label: str
    split: Part
    group: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        group = {"group": self.group} if self.group else {}
        return {"path": self.path, "sha256": self.sha256, "label": self.label, "split": self.split, **group}


@dataclass(frozen=True, slots=True)
class Matched:
    """Recorded images that a source still holds, and those that it does not.

    `index` holds the images found, in the order of `rows`, each with its recorded class and split; `stated` are the
    splits that the source itself states for them. `changed` are rows whose path is there with another content or class,
    or can no longer be read; `missing` are the other rows that were not found. `others` are images of the source that
    no row names.
    """

    index: Index
    rows: tuple[ImageRow, ...]
    stated: tuple[Part | None, ...]
    missing: tuple[ImageRow, ...]
    changed: tuple[ImageRow, ...]
    others: tuple[Picture, ...]

    def only(self, split: Part) -> Matched:
        """Return what belongs to one split, without `others`."""
        at = [i for i, row in enumerate(self.rows) if row.split == split]
        missing, changed = (tuple(r for r in lost if r.split == split) for lost in (self.missing, self.changed))
        rows, stated = tuple(self.rows[i] for i in at), tuple(self.stated[i] for i in at)
        return Matched(self.index.at(at), rows, stated, missing, changed, ())

    @property
    def added(self) -> tuple[Picture, ...]:
        """The `others` whose path no row has: a recorded image that was changed is no new one."""
        paths = {row.path for row in self.changed}
        return tuple(p for p in self.others if p.path not in paths)

    @property
    def complete(self) -> bool:
        """Whether every recorded image is there, unchanged."""
        return not self.missing and not self.changed


def match(rows: Sequence[ImageRow], index: Index, relabeled: Mapping[tuple[str, str], str] | None = None) -> Matched:
    """Find the recorded images in a source by path and content; a file that was moved, by content and class alone.

    Each image of the source stands for one row at most, so that a file in two splits stays in both. `relabeled` holds,
    by path and content, the class that the source gives an image whose class was corrected for the run.
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
    """Return what an image is found by, the strictest first; validation images may be stated as training."""
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
    """Say in what a source differs from the recorded images, their classes and splits; None where in nothing.

    What the source states as training may have been split further, into splits that it does not state.
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
