"""Lists next to class folders: the images of each split, and the labels of a split without class folders.

Food-101 has ``meta/train.txt`` and ``meta/test.txt``, CUB-200 ``train_test_split.txt``, Tiny ImageNet
``val/val_annotations.txt``.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, repeat
from pathlib import PurePosixPath

from sightline.data.sources.columns import KNOWN_COLUMNS, describe_names, find_by_name, join_split_flags, read_splits
from sightline.data.sources.encoding import decode_text
from sightline.data.sources.file_finder import FileFinder
from sightline.data.sources.filenames import is_image_name
from sightline.data.sources.folder_layout import NUMBERED_FOLDERS, SPLIT_FOLDERS, are_numbered, select_top_files
from sightline.data.sources.listing import SourceItem, SourceListing
from sightline.data.sources.split_names import SplitName, find_folder_split, find_splits, parse_split
from sightline.data.sources.table import LIST_SUFFIXES, Table, may_be_table, read_table
from sightline.data.sources.unread_labels import UNREAD_LABELS
from sightline.data.storage import FileStore
from sightline.data.targets import strip_zeros
from sightline.data.types import SourceNote, Split
from sightline.errors import DataError, ImageError, plural

Memberships = Mapping[str, set[Split]]
"""Maps each image to the splits whose lists name it."""

MIN_AGREEMENT = 0.9  # fraction of labels in a table that agree with the class folders; below, they mean something else
_TRAIN_VAL = re.compile(r"train[\W_]*val(?![a-z])", re.IGNORECASE)
_SUBJECT = re.compile("patient|site|hospital", re.IGNORECASE)
_DEPTH = 4  # most path components of a list, such as archive/food-101/meta/train.txt


@dataclass(frozen=True, slots=True)
class _List:
    """A list of images: its table, and the cells of its rows; a line with one cell is also split at spaces.

    `images` maps rows to the images that they name in `column`, the column that names the most images.
    """

    table: Table
    rows: Sequence[tuple[str, ...]]
    column: int
    images: Mapping[int, str]


class _Lists:
    """The files `keys` of a store, which may be lists of images; each is read once.

    `labels` maps the key of each image to its label without lists.
    """

    def __init__(self, store: FileStore, keys: Sequence[str], labels: Mapping[str, str]) -> None:
        self.keys, self.labels = keys, labels
        self._store = store
        self._finder = FileFinder(store, images=labels)
        self._lists: dict[str, _List] = {}

    def read(self, key: str) -> _List:
        """Return a list; raises `DataError` if it is not a table."""
        if key not in self._lists:
            table = join_split_flags(read_table(self.read_bytes(key), key, KNOWN_COLUMNS, self._names_image))
            rows = [tuple(row.get_text(column) for column in table.columns) for row in table.rows]
            rows = rows if len(table.columns) > 1 else [_part_line(line) for (line,) in rows]
            self._lists[key] = _List(table, rows, *self._find_images(rows))
        return self._lists[key]

    def read_all(self, keys: Sequence[str]) -> Iterator[tuple[str, _List]]:
        """Yield the lists among `keys` that can be read."""
        for key in keys:
            with suppress(DataError):
                yield key, self.read(key)

    def select_top(self) -> list[str]:
        """Return the files that are not in folders of the images."""
        return select_top_files(self.keys, self.labels)

    def read_bytes(self, key: str) -> bytes:
        """Return the content of a file; raises `DataError` if it cannot be read."""
        try:
            return bytes(self._store.read(key))
        except ImageError as error:
            raise DataError(f"{key}: {error}.") from error

    def _names_image(self, text: str) -> bool:
        return any(self._finder.find(cell) is not None for cell in _part_line(text))

    def _find_images(self, rows: Sequence[tuple[str, ...]]) -> tuple[int, dict[int, str]]:
        """Return the column that names the most images, and the image named there in each row."""
        best: tuple[int, dict[int, str]] = 0, {}
        for column in range(max(map(len, rows), default=0)):
            cells = ((i, self._finder.find(row[column])) for i, row in enumerate(rows) if column < len(row))
            images = {i: image for i, image in cells if image is not None}
            best = (column, images) if len(set(images.values())) > len(set(best[1].values())) else best
        return best


def _part_line(line: str) -> tuple[str, ...]:
    return (line, *line.partition(" ")[::2], *line.rpartition(" ")[::2])


def apply_file_lists(
    listing: SourceListing, store: FileStore, prefix: str, *, is_stated: bool = False
) -> SourceListing:
    """Return the listing of class folders with the splits and labels of the lists next to them.

    Lists define the splits if each image is in exactly one of them and no folder states a split. They define the labels
    of a split without class folders if they label each of its images with classes of the other splits. If lists name
    most images but not all, a note reports it. `is_stated`: the user states which folders are the classes.
    """
    keys = _list_candidates(listing, store)
    if not keys:
        return listing
    labels = {item.key: item.label for item in (listing.items or listing.to_label) if is_image_name(item.key)}
    lists = _Lists(store, keys, labels)
    _note_unread(listing, lists, prefix, is_stated=is_stated)
    if any(note.kind == SPLIT_FOLDERS for note in listing.notes):  # reported as an error
        return listing
    if any(item.split for item in listing.items):
        return _label_splits(listing, store, prefix, keys)
    return _apply_splits(listing, lists, prefix)


def apply_split_lists(listing: SourceListing, store: FileStore, prefix: str) -> SourceListing:
    """Return the listing of images labeled by a table, with the splits of lists next to it if the table states none.

    NIH ChestX-ray has ``train_val_list.txt`` and ``test_list.txt``, CelebA ``list_eval_partition.txt``.
    """
    keys = _list_candidates(listing, store)
    if not keys or any(item.split for item in listing.items):
        return listing
    labels = {item.key: item.label for item in listing.items if is_image_name(item.key)}
    return _apply_splits(listing, _Lists(store, keys, labels), prefix)


def _list_candidates(listing: SourceListing, store: FileStore) -> list[str]:
    """Return the files that may be lists, outside the folders that contain labeled images."""
    folders = {item.key.rpartition("/")[0] for item in listing.items}  # text files there may describe an image
    keys = [key for key in filter(may_be_table, store.keys()) if key.count("/") < _DEPTH]
    return [key for key in keys if folders.isdisjoint(map(str, PurePosixPath(key).parents))]


def _apply_splits(listing: SourceListing, lists: _Lists, prefix: str) -> SourceListing:
    images = lists.labels
    partial: list[SourceNote] = []
    for names, memberships in _read_splits(lists) if listing.items else ():
        splits = {image: next(iter(each)) for image, each in memberships.items() if len(each) == 1}
        if len(set[Split]().union(*memberships.values())) < 2:
            continue
        if len(splits) == len(images):
            notes = [SourceNote("splits-from-lists", prefix + name, "") for name in names]
            return _assign_splits(listing, splits, notes)
        if 2 * len(memberships) > len(images):
            reason = f"{len(splits):,} of {plural(len(images), 'image')} are in one split"
            partial = partial or [SourceNote("unread-splits", prefix + name, reason) for name in names]
    listing.notes.extend(partial)
    return listing


def _assign_splits(listing: SourceListing, splits: Mapping[str, Split], notes: Sequence[SourceNote]) -> SourceListing:
    items = [replace(item, split=splits[item.key]) for item in listing.items if item.key in splits]
    skipped = [item.path for item in listing.items if item.key not in splits]  # files not named like images
    places: dict[str, dict[Split | None, None]] = defaultdict(dict)
    for item in items:
        places[item.label][item.split] = None
    classes = [
        replace(folder, split=split) for folder in listing.classes for split in places.get(folder.label, (None,))
    ]
    return replace(
        listing,
        items=items,
        skipped_files=[*listing.skipped_files, *skipped],
        classes=classes,
        notes=[*listing.notes, *notes],
    )


def _note_unread(listing: SourceListing, lists: _Lists, prefix: str, *, is_stated: bool) -> None:
    """Add a note on each table that names most images and may contain their labels, if the folders may not be classes.

    This is in doubt if there is at most one folder, if the names of the folders differ only in a number (``images_1``,
    ``images_2``) or look like splits, or if images with one label in the table are in several folders. Folders that
    number the parts of a data set are an error, unless the user states the class folders (`is_stated`). Text files
    count only if there is at most one class.
    """
    looks_split = any(note.kind == SPLIT_FOLDERS for note in listing.notes)
    in_doubt = looks_split or len({re.sub(r"\d+", "", label) for label in lists.labels.values()}) < 2
    may_be_incomplete = any(item.split for item in listing.items)  # a table may name the remaining images
    is_numbered = not is_stated and are_numbered({c.label for c in listing.classes})
    reasons: dict[str, str] = {}
    for key in lists.select_top():
        if key.lower().endswith(LIST_SUFFIXES):
            reasons[key] = _describe_text_list(lists, key)
        elif key.lower().endswith((".csv", ".tsv")):
            try:
                each = lists.read(key)
            except DataError as error:
                reasons[key] = str(error).removeprefix(f"{key} ").rstrip(".") if in_doubt else ""
                continue
            if 2 * len(set(each.images.values())) > len(lists.labels):
                reasons[key] = _describe_labels(each, lists.labels, in_doubt=in_doubt)
            elif not each.images:
                reasons[key] = _describe_subjects(each.table, set(lists.labels.values()))
                if not reasons[key] and in_doubt and not may_be_incomplete:
                    reasons[key] = _describe_foreign(each.table)
            if reasons.get(key) and each.images and is_numbered:
                columns = describe_names(each.table.columns)
                note = f"{prefix}{key}, whose columns are {columns}, names its images"
                reasons_by_folder = zip(listing.classes, chain([note], repeat("")), strict=False)
                listing.notes.extend(SourceNote(NUMBERED_FOLDERS, c.path, why) for c, why in reasons_by_folder)
                is_numbered = False  # noted only once
    listing.notes.extend(SourceNote(UNREAD_LABELS, prefix + key, reason) for key, reason in reasons.items() if reason)


def _describe_text_list(lists: _Lists, key: str) -> str:
    """Describe a text file that contains more about most images than their names; "" for other files."""
    if len(set(lists.labels.values())) > 1:
        return ""
    with suppress(DataError):
        each = lists.read(key)
        if each.column and 2 * len(set(each.images.values())) > len(lists.labels):
            return "a table whose cells are separated by spaces"
    return ""


def _describe_foreign(table: Table) -> str:
    """Describe a table of labels that names no image; "" for other tables."""
    names, paths = (find_by_name(table, role, ()) for role in ("label", "path"))
    if not (names and paths and table.rows):
        return ""
    return f"a table whose column {paths[0]!r} names no image, such as {table.rows[0].get_text(paths[0])!r}"


def _describe_subjects(table: Table, folders: Collection[str]) -> str:
    """Describe a table that names `folders` which may not be classes; "" for other tables.

    This is in doubt if the column is named after patients or sites, or if one folder has several labels.
    """
    names = find_by_name(table, "label", ())
    for column in table.columns:
        labels = {(row.get_text(column), row.get_text(names[0]) if names else "") for row in table.rows}
        may_be_subjects = len(labels) > len(folders) or _SUBJECT.search(column)
        if may_be_subjects and column not in names and folders == {folder for folder, _ in labels}:
            return f"a table with the class folders in its column {column!r}"
    return ""


def _describe_unknown_labels(each: _List, count: int, classes: Collection[str], split: Split) -> str:
    """Describe a list of most of the `count` images of a split if its labels are not in `classes`, else ""."""
    names = find_by_name(each.table, "label", ())
    column = each.table.columns.index(names[0]) if names else each.column + 1
    has_labels = bool(names or not each.table.has_header) and (each.column % 2 or len(each.table.columns) > 1)
    labels = (each.rows[i][column] for i in each.images if column < len(each.rows[i]))
    unknown = next((label for label in labels if label not in classes), "")
    if not has_labels or not unknown or 2 * len(each.images) <= count:
        return ""
    return f"a list of {split} images whose labels, such as {unknown!r}, are not the names of class folders"


def _describe_labels(each: _List, labels: Mapping[str, str], *, in_doubt: bool) -> str:
    """Describe a table of most images whose labels may differ from the folders; "" if they agree."""
    names = find_by_name(each.table, "label", ())
    if not names:
        return f"a table whose columns are {describe_names(each.table.columns)}" if in_doubt else ""
    column = each.table.columns.index(names[0])
    folders: dict[str, Counter[str]] = defaultdict(Counter)
    for i, image in each.images.items():
        folders[each.rows[i][column]][labels[image]] += 1
    agreements = sum(max(counts.values()) for counts in folders.values())
    is_one_folder = len(set(labels.values())) < 2
    differs = len(folders) > 1 and (is_one_folder or agreements < MIN_AGREEMENT * len(each.images))
    return f"a table of other labels, such as {describe_names(sorted(folders))}" if differs else ""


def _read_splits(lists: _Lists) -> Iterator[tuple[Sequence[str], Memberships]]:
    """Yield the names of lists that belong together, and the splits to which they assign each image.

    Lists that belong together are in one folder. Several sets, such as ``train1.txt`` and ``train2.txt`` of DTD, are
    yielded one after the other.
    """
    paths = {key: PurePosixPath(key) for key in lists.keys}
    stems = _find_list_splits({path.stem for path in paths.values() if not path.stem.endswith("partition")})
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for key, path in paths.items():
        if path.stem in stems:
            groups[str(path.parent), path.suffix.lower()].append(key)
            groups[str(path.parent), path.suffix.lower(), stems[path.stem].remainder].append(key)
        elif path.name == "train_test_split.txt" and (ids := str(path.with_name("images.txt"))) in paths:
            with suppress(DataError, ValueError):
                yield [key], _read_numbered(lists.read(ids), decode_text(lists.read_bytes(key)))
    for key in lists.select_top():
        path = paths[key]
        may_have_column = path.suffix.lower() in {".csv", ".tsv"} or path.stem.lower().endswith("partition")
        if may_have_column and path.stem not in stems:
            with suppress(DataError):
                yield [key], _read_split_column(lists.read(key))
    for group in dict.fromkeys(map(tuple, groups.values())):  # with one set, both groups are the same lists
        memberships: dict[str, set[Split]] = defaultdict(set)
        for key, each in lists.read_all(group):
            for image in each.images.values():
                memberships[image].add(stems[paths[key].stem].split)
        yield group, memberships


def _find_list_splits(names: Collection[str]) -> dict[str, SplitName]:
    """Return the splits of lists by their names; without a validation list, ``trainval`` means the training split."""
    splits = find_splits(names)
    if any(name.split == "validation" for name in splits.values()):
        return splits
    joint = {name: _TRAIN_VAL.sub("train", name) for name in names}
    splits = find_splits(set(joint.values()))
    return {name: splits[other] for name, other in joint.items() if other in splits}


def _read_numbered(numbered: _List, flags: str) -> Memberships:
    """Return the splits from lists with lines such as ``17 CLASS/NAME.jpg`` and ``17 1``, where 1 means training."""
    splits: Mapping[str, Split] = {"1": "train", "0": "test"}
    by_number = {words[0]: splits.get(words[1]) for line in flags.splitlines() if len(words := line.split()) == 2}
    named = ((image, by_number.get(numbered.rows[i][1])) for i, image in numbered.images.items())
    return {image: {split} for image, split in named if split is not None}


def _read_split_column(each: _List) -> Memberships:
    """Return the splits from the first column of a table that contains nothing but splits."""
    rows = [each.rows[i] for i in each.images]
    for column in range(min(map(len, rows), default=0)):
        name = each.table.columns[column] if len(each.table.columns) > 1 else ""
        split_by_cell = read_splits(each.table, name, [row[column] for row in rows])
        splits: dict[str, set[Split]] = defaultdict(set)
        for i, image in each.images.items():
            if (split := split_by_cell.get(each.rows[i][column])) is not None:
                splits[image].add(split)
        if len(splits) == len(set(each.images.values())):
            return splits
    return {}


def _label_splits(listing: SourceListing, store: FileStore, prefix: str, keys: Sequence[str]) -> SourceListing:
    """Label the images of splits without class folders, if a list in or next to the split has all their labels."""
    classes = {item.label for item in listing.items}
    by_split: dict[Split, dict[str, str]] = defaultdict(dict)
    for path in listing.unlabeled:
        if (split := find_folder_split(path.removeprefix(prefix))) is not None:
            by_split[split][path.removeprefix(prefix)] = ""
    for split, images in by_split.items():
        own = [key for key in keys if split in {find_folder_split(key), parse_split(PurePosixPath(key).stem)}]
        for key, each in _Lists(store, own, images).read_all(own):
            labels = _read_labels(each, classes)
            if len(labels) == len(images) and len(set(labels.values())) > 1:
                listing = _add_labeled(listing, store, prefix, labels, split, key)
                break
            if reason := _describe_unknown_labels(each, len(images), classes, split):
                listing.notes.append(SourceNote(UNREAD_LABELS, prefix + key, reason))
    return listing


def _read_labels(each: _List, classes: set[str]) -> dict[str, str]:
    """Return the classes of the images in a table, from its label column, else from a column of nothing but classes.

    In the label column, leading zeros of a number do not matter: GTSRB has 7 for the folder 00007.
    """
    named = [each.table.columns.index(name) for name in find_by_name(each.table, "label", ())]
    numbers = {strip_zeros(name): name for name in classes}
    numbers = numbers if len(numbers) == len(classes) else {}

    def parse(cell: str, column: int) -> str:
        label = cell if cell in classes else cell.split(" ", maxsplit=1)[0]  # ImageNet: a class followed by boxes
        return numbers.get(strip_zeros(label), label) if column in named else label

    rows = {image: each.rows[i] for i, image in each.images.items()}
    columns = range(min(map(len, rows.values()), default=0))
    by_column = {c: {image: parse(row[c], c) for image, row in rows.items()} for c in columns}
    by_column = {c: labels for c, labels in by_column.items() if classes.issuperset(labels.values())}
    labels = [by_column[c] for c in named if c in by_column][:1] or list(by_column.values())
    return labels[0] if labels and all(other == labels[0] for other in labels) else {}


def _add_labeled(
    listing: SourceListing, store: FileStore, prefix: str, labels: Mapping[str, str], split: Split, key: str
) -> SourceListing:
    paths = {prefix + image for image in labels}
    folders = {str(parent) for path in paths for parent in PurePosixPath(path).parents}
    return replace(
        listing,
        items=[*listing.items, *(SourceItem(store, k, prefix + k, label, split) for k, label in labels.items())],
        unlabeled=[path for path in listing.unlabeled if path not in paths],
        to_label=[item for item in listing.to_label if item.path not in paths],
        notes=[
            *(note for note in listing.notes if note.kind != "unlabeled-folders" or note.path not in folders),
            SourceNote("labels-from-table", prefix + key, f"of the {split} split"),
        ],
    )
