"""`Library`: the images of a source or a run in an in-memory SQLite table, which filters and sorts them."""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

from sightline import jsonio
from sightline.data.checks.finding import Finding
from sightline.data.targets import join_classes
from sightline.data.types import Index, Split
from sightline.errors import UsageError
from sightline.escaping import escape_surrogates
from sightline.studio.corrections import Corrections
from sightline.studio.query import SORTS, STATES, Query

MAX_SELECTIONS = 20

_TABLES = """
CREATE TABLE images (
    id INTEGER PRIMARY KEY, path TEXT NOT NULL, sha256 TEXT NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL,
    source_label TEXT NOT NULL, source_split TEXT, label TEXT NOT NULL, split TEXT, dropped INTEGER NOT NULL DEFAULT 0,
    kept INTEGER NOT NULL DEFAULT 0, predicted TEXT, confidence REAL, label_probability REAL, energy REAL,
    iou REAL, mask TEXT, mask_path TEXT, look_alikes INTEGER, to_label INTEGER NOT NULL,
    revision INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE findings (image INTEGER NOT NULL, kind TEXT NOT NULL, number INTEGER NOT NULL, reason TEXT NOT NULL);
CREATE TABLE selections (
    key TEXT NOT NULL, image INTEGER NOT NULL, rank INTEGER NOT NULL, PRIMARY KEY (key, image)
) WITHOUT ROWID;
CREATE TABLE slices (slice INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE slice_images (slice INTEGER NOT NULL, image INTEGER NOT NULL, PRIMARY KEY (slice, image)) WITHOUT ROWID;
CREATE INDEX findings_of_image ON findings (image, kind);
CREATE INDEX findings_of_kind ON findings (kind);
"""


@dataclass(frozen=True, slots=True)
class ImagePrediction:
    """A model's prediction for an image: the class and its probability, and the probability of the image's own class.

    `energy` is the out-of-distribution score, higher for unusual images; None if unknown. For a mask, `predicted` lists
    the classes in it, the confidence is its quality, and `iou` the mean IoU of the image.
    """

    predicted: str
    confidence: float
    label_probability: float | None = None
    energy: float | None = None
    iou: float | None = None


class Library:
    """The images of an index with their corrections and predictions; methods may be called from any thread.

    An image is identified by its position in the index.
    """

    def __init__(
        self,
        index: Index,
        corrections: Corrections,
        splits: Mapping[tuple[str, str], Split] | None = None,
        predictions: Mapping[int, ImagePrediction] | None = None,
        findings: Sequence[Finding] = (),
        slices: Mapping[str, Sequence[int]] | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        """Fill the table.

        `splits` are as in `Corrections`; `predictions` are by position; `findings` are those known before the images
        are checked; `slices` are the positions of the images in each slice; `classes` can be chosen before any image
        has them.
        """
        self._corrections = corrections
        self._classes = tuple(classes)
        self._targets, self._sort_classes = index.targets, index.sort_classes
        self._lock = Lock()
        self._database = sqlite3.connect(":memory:", check_same_thread=False)
        self._database.row_factory = sqlite3.Row
        self._database.create_function("lower", 1, str.lower, deterministic=True)  # SQLite's own handles only ASCII
        self._database.executescript(_TABLES)
        known_splits, known_predictions = splits or {}, predictions or {}
        rows = []
        for i, image in enumerate(index.images):
            split = known_splits.get((image.path, image.sha256), image.split)
            p = known_predictions.get(i)
            model = (None,) * 5 if p is None else (p.predicted, p.confidence, p.label_probability, p.energy, p.iou)
            mask = (image.mask.sha256, escape_surrogates(image.mask.path)) if image.mask else (None, None)
            names = (escape_surrogates(image.path), image.sha256, image.width, image.height)
            rows.append((i, *names, image.label, split, image.label, split, *model, *mask, image.to_label))
        self._database.executemany(
            "INSERT INTO images (id, path, sha256, width, height, source_label, source_split, label, split, predicted, "
            "confidence, label_probability, energy, iou, mask, mask_path, to_label) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            rows,
        )
        self._slice_counts = self._add_slices(slices or {})
        self._counts, self._kinds = self._count(), list[str]()  # kept up to date by updates
        self._selections: list[str] = []
        self.revision = 0  # number of the last corrections in the table
        self._known_findings = tuple(findings)
        self.has_predictions = bool(known_predictions)
        self.has_energies = any(p.energy is not None for p in known_predictions.values())
        self.slices = tuple(self._slice_counts)
        self.has_several_labels, self.has_masks = self._targets.allows_several, index.labels_are_masks
        self.has_splits = bool(known_splits) or any(image.split for image in index.images)
        self.has_unlabeled = any(not image.label for image in index.images)
        self.can_move = any(image.split for image in index.images)
        self.update(corrections.read_changes()[1])
        self.set_findings(())

    def close(self) -> None:
        """Free the table."""
        self._database.close()

    def list_ids(self, query: Query) -> list[int]:
        """Return the positions of the images that match the query, in its order."""
        if query.selection and query.selection not in self._selections:
            raise UsageError("The studio no longer knows these images: select them again.")
        where, values = query.build_where(several=self.has_several_labels)
        statement = f"SELECT id FROM images WHERE {where} ORDER BY {SORTS[query.sort]}"  # noqa: S608  # no user text
        return [i for (i,) in self._run_plain(statement, values)]

    def add_selection(self, ids: Iterable[int], *, is_ranked: bool = False) -> str:
        """Keep a set of images for a `Query`, and return its key; only the last `MAX_SELECTIONS` are kept.

        The order ``rank`` lists the images by position, or if they are ranked in the order of `ids`.
        """
        chosen = list(dict.fromkeys(ids)) if is_ranked else sorted(set(ids))
        key = hashlib.sha256(jsonio.dumps(chosen).encode()).hexdigest()[:12]
        with self._lock:
            if key not in self._selections:
                ranked = [(key, i, rank) for rank, i in enumerate(chosen)]
                self._database.executemany("INSERT INTO selections VALUES (?, ?, ?)", ranked)
                self._selections.append(key)
            for forgotten in self._selections[:-MAX_SELECTIONS]:
                self._database.execute("DELETE FROM selections WHERE key = ?", (forgotten,))
                self._selections.remove(forgotten)
        return key

    def describe(self, ids: Iterable[int]) -> list[dict[str, Any]]:
        """Return the rows of images as JSON values, in the order of `ids`, leaving out unknown ones."""
        listed = list(ids)
        values = (jsonio.dumps(listed),)
        rows = self._run("SELECT * FROM images WHERE id IN (SELECT value FROM json_each(?))", values)
        findings: dict[int, list[dict[str, str]]] = {}
        for row in self._run(
            "SELECT DISTINCT image, kind, reason FROM findings WHERE image IN (SELECT value FROM json_each(?))",
            values,
        ):
            findings.setdefault(row["image"], []).append({"kind": row["kind"], "reason": row["reason"]})
        by_id = {
            row["id"]: dict(row) | {
                "labels": [name for name in self._targets.list_classes(row["label"]) if name],
                "findings": findings.get(row["id"], []),
            }
            for row in rows
        }  # fmt: skip
        return [by_id[i] for i in listed if i in by_id]

    def list_predictions(self) -> list[tuple[int, str, str | None]]:
        """Return the position, the class and the predicted class of each image, in the order of the index."""
        return self._run_plain("SELECT id, label, predicted FROM images ORDER BY id")

    def iter_kept(self) -> Iterator[sqlite3.Row]:
        """Yield the rows of the images that are not dropped and have a label, in the order of the index.

        Where images may have several labels, images with none are included, unless they are still to be labeled.
        """
        labeled = "(label != '' OR kept OR NOT to_label)" if self.has_several_labels else "label != ''"
        columns = "path, label, split, mask_path AS mask"
        yield from self._run(f"SELECT {columns} FROM images WHERE NOT dropped AND {labeled} ORDER BY id")  # noqa: S608

    def count_values(self) -> dict[str, dict[str, int]]:
        """Return the number of images of each class, split, predicted class and kind of finding, largest first.

        Dropped images count in no class or split, and images without a label in no class. For findings, only images to
        review count. Slices are in their original order and count all of their images. Classes passed at the start come
        first, in their original order.
        """
        with self._lock:
            counts = {name: {key: c[key] for key in self._sort_classes(c)} for name, c in self._counts.items()}
            counts["label"] = {name: self._counts["label"][name] for name in [*self._classes, *counts["label"]]}
            findings = {kind: self._counts["finding"][kind] for kind in self._kinds}
            counts |= {"finding": findings, "slice": self._slice_counts}
            return counts | {"state": {s: self._counts["state"][s] for s in STATES}}

    def update(self, ids: Iterable[int]) -> None:
        """Update the table with the corrections of these images, read under the lock so that the latest win."""
        changed = list(ids)
        with self._lock:
            self.revision += bool(changed)
            before = self._count(changed)
            self._database.executemany(
                "UPDATE images SET label = coalesce(?, source_label), split = coalesce(?, source_split), dropped = ?, "
                "kept = ?, revision = ? WHERE id = ?",
                [self._list_values(i) for i in changed],
            )
            for name, counter in self._count(changed).items():
                self._counts[name] = self._counts[name] - before[name] + counter

    def _list_values(self, position: int) -> tuple[object, ...]:
        entries = self._corrections.get(position)
        label, split = (entries[action].to if action in entries else None for action in ("relabel", "move"))
        if label is not None and self.has_several_labels:
            label = join_classes(self._targets.list_classes(label))
        return label, split, "drop" in entries, "keep" in entries, self.revision, position

    def set_findings(self, findings: Sequence[Finding]) -> None:
        """Replace the findings by the initial ones and these; findings about classes or folders belong to no image."""
        with self._lock:
            ids: dict[str, list[int]] = {}
            for row in self._database.execute("SELECT id, path FROM images"):
                ids.setdefault(row["path"], []).append(row["id"])
            rows = [
                (i, finding.kind, number, escape_surrogates(reason))
                for finding in (*self._known_findings, *findings)
                for number, (paths, reason) in enumerate(list_members(finding))
                for path in paths
                for i in ids.get(escape_surrogates(path), ())
            ]
            self._database.execute("DELETE FROM findings")
            self._database.executemany("INSERT INTO findings VALUES (?, ?, ?, ?)", rows)
            members = [
                [i for path in group for i in ids.get(escape_surrogates(path), ())]
                for f in findings
                for group in f.groups
            ]
            self._database.execute("UPDATE images SET look_alikes = NULL WHERE look_alikes IS NOT NULL")
            numbers = [(number, i) for i, number in join_groups(members).items()]
            self._database.executemany("UPDATE images SET look_alikes = ? WHERE id = ?", numbers)
            kinds = "SELECT kind FROM findings GROUP BY 1 ORDER BY min(rowid)"
            self._kinds = [row[0] for row in self._database.execute(kinds)]
            self._counts["finding"] = self._count()["finding"]

    def _add_slices(self, slices: Mapping[str, Sequence[int]]) -> dict[str, int]:
        """Insert the slices, and return the number of images of each."""
        counts = {escape_surrogates(name): len(positions) for name, positions in slices.items()}
        self._database.executemany("INSERT INTO slices VALUES (?, ?)", enumerate(counts))
        rows = ((number, i) for number, positions in enumerate(slices.values()) for i in sorted(positions))
        self._database.executemany("INSERT INTO slice_images VALUES (?, ?)", rows)
        return counts

    def _count(self, ids: Sequence[int] | None = None) -> dict[str, Counter[str]]:
        """Return the counts for `count_values`, over some images or all."""
        among = "1" if ids is None else "id IN (SELECT value FROM json_each(:ids))"
        values = {"ids": jsonio.dumps(ids)}
        counts: dict[str, Counter[str]] = {}
        for name in ("label", "split", "predicted"):
            where = f"{among} AND {name} != ''" + (" AND NOT dropped" if name != "predicted" else "")
            statement = f"SELECT {name}, count(*) FROM images WHERE {where} GROUP BY 1"  # noqa: S608
            counts[name] = Counter(dict(map(tuple, self._database.execute(statement, values))))
            if name != "split":
                counts[name] = self._count_classes(counts[name])
        kinds = (
            f"SELECT kind, count(DISTINCT image) FROM findings JOIN images ON id = image "  # noqa: S608
            f"WHERE {among} AND {STATES['to-review']} GROUP BY 1"
        )
        counts["finding"] = Counter(dict(map(tuple, self._database.execute(kinds, values))))
        sums = ", ".join(f"total({condition})" for condition in STATES.values())
        totals = self._database.execute(f"SELECT {sums} FROM images WHERE {among}", values).fetchone()  # noqa: S608
        counts["state"] = Counter({state: int(total) for state, total in zip(STATES, totals, strict=True)})
        return counts

    def _count_classes(self, labels: Mapping[str, int]) -> Counter[str]:
        counts: Counter[str] = Counter()
        for label, count in labels.items():
            counts.update(dict.fromkeys(self._targets.list_classes(label), count))
        return counts

    def _run(self, statement: str, values: Mapping[str, object] | Sequence[object] = ()) -> list[sqlite3.Row]:
        with self._lock:
            return self._database.execute(statement, values).fetchall()

    def _run_plain(self, statement: str, values: Mapping[str, object] | Sequence[object] = ()) -> list[Any]:
        """Return tuples instead of rows, in a third of the time."""
        with self._lock:
            cursor = self._database.cursor()
            cursor.row_factory = None
            return cursor.execute(statement, values).fetchall()


def list_members(finding: Finding) -> list[tuple[tuple[str, ...], str]]:
    """Return the paths of each group of a finding, or of each image alone, with the reason."""
    if finding.groups:
        return [(group, ", ".join(group[:8])) for group in finding.groups]
    reasons = finding.reasons or ("",) * len(finding.paths)
    return [((path,), reason) for path, reason in zip(finding.paths, reasons, strict=True)]


def join_groups(groups: Sequence[Sequence[int]]) -> dict[int, int]:
    """Return a number for each member of the groups; groups that share a member have the same number.

    >>> join_groups([[1, 4], [2, 5], [5, 4, 7]])
    {1: 1, 4: 1, 2: 1, 5: 1, 7: 1}
    """
    parents = {i: i for group in groups for i in group}

    def find_root(i: int) -> int:
        while parents[i] != i:
            parents[i] = i = parents[parents[i]]
        return i

    for group in groups:
        for i in group:
            first, second = sorted((find_root(group[0]), find_root(i)))
            parents[second] = first
    return {i: find_root(i) for i in parents}
