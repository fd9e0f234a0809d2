"""Lists beside class folders: of the images of each split, and of the labels of a split without class folders.

Food-101 has ``meta/train.txt`` and ``meta/test.txt``, CUB-200 ``train_test_split.txt``, Tiny ImageNet
``val/val_annotations.txt``.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import PurePosixPath

from sightline.data.sources.columns import KNOWN_COLUMNS, describe_names, find_by_name, read_splits
from sightline.data.sources.filenames import fold_name, is_hidden, is_image_name
from sightline.data.sources.folder_layout import NUMBERED_FOLDERS, SPLIT_FOLDERS, are_numbered
from sightline.data.sources.listing import SourceItem, SourceListing
from sightline.data.sources.split_names import SplitName, find_folder_split, find_splits, parse_split
from sightline.data.sources.table import LIST_SUFFIXES, TABLE_SUFFIXES, Table, read_table
from sightline.data.sources.unread_labels import UNREAD_LABELS
from sightline.data.storage import FileStore
from sightline.data.targets import strip_zeros
from sightline.data.types import SourceNote, Split
from sightline.errors import DataError, ImageError, plural

FindImage = Callable[[str], str | None]
Splits = Mapping[str, Split]
Memberships = Mapping[str, set[Split]]

_SUFFIXES = (*TABLE_SUFFIXES, *LIST_SUFFIXES)
MIN_AGREEMENT = 0.9  # of the labels in a table with the class folders; below, they mean something else
_TRAIN_VAL = re.compile(r"train[\W_]*val(?![a-z])", re.IGNORECASE)
_DEPTH = 4  # folders around a list, such as archive/food-101/meta


def apply_file_lists(
    listing: SourceListing, store: FileStore, prefix: str, *, is_stated: bool = False
) -> SourceListing:
    """Return the listing of class folders with the splits and labels of the lists beside them.

    Lists give the splits if each image is in one of them, and no folder gives any. They give labels to a split of
    images alone if each of these has one, and the class folders of other splits have the same classes. Where they name
    most images and others not, a note says so. `is_stated`: the user says which folders are the classes.
    """
    keys = list(_list_candidates(listing, store))
    if tables := [key for key in keys if key.count("/") < 2 and key.lower().endswith((".csv", ".tsv"))]:
        _note_tables(listing, store, prefix, tables, is_stated=is_stated)
    if lists := [key for key in keys if key.count("/") < 2 and key.lower().endswith(LIST_SUFFIXES)]:
        _note_lists(listing, store, prefix, lists)
    if not keys or any(note.kind == SPLIT_FOLDERS for note in listing.notes):  # which are an error
        return listing
    if any(item.split for item in listing.items):
        return _label_splits(listing, store, prefix, keys)
    return _apply_split_lists(listing, store, prefix, keys)


def apply_split_lists(listing: SourceListing, store: FileStore, prefix: str) -> SourceListing:
    """Return the listing of images that a table labels with the splits of the lists beside it, if it states none.

    NIH ChestX-ray has ``train_val_list.txt`` and ``test_list.txt``, CelebA ``list_eval_partition.txt``.
    """
    if any(item.split for item in listing.items):
        return listing
    return _apply_split_lists(listing, store, prefix, list(_list_candidates(listing, store)))


def _apply_split_lists(listing: SourceListing, store: FileStore, prefix: str, keys: Sequence[str]) -> SourceListing:
    images = [item.key for item in listing.items if is_image_name(item.key)]
    partial: list[SourceNote] = []
    for names, memberships in _read_splits(store, keys, _index_images(images)):
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


def _assign_splits(listing: SourceListing, splits: Splits, notes: Sequence[SourceNote]) -> SourceListing:
    items = [replace(item, split=splits[item.key]) for item in listing.items if item.key in splits]
    skipped = [item.path for item in listing.items if item.key not in splits]  # whose names are not those of images
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


def _note_tables(
    listing: SourceListing, store: FileStore, prefix: str, keys: Sequence[str], *, is_stated: bool
) -> None:
    """Add a note on each table of most images that may give their labels, where the folders may not be classes.

    They may not be if there is none or one, if their names differ only in a number (``images_1``, ``images_2``) or look
    like splits, or if the images of one label in the table are in several of them. Folders that number the parts of a
    set are an error, unless it `is_stated` which folders are the classes.
    """
    labels = {item.key: item.label for item in (listing.items or listing.to_label) if is_image_name(item.key)}
    looks_split = any(note.kind == SPLIT_FOLDERS for note in listing.notes)
    in_doubt = looks_split or len({re.sub(r"\d+", "", label) for label in labels.values()}) < 2
    has_splits = any(item.split for item in listing.items)  # whose other images it may name
    find = _index_images(list(labels))
    for key in keys:
        try:
            table, rows = _read_rows(store, key, find)
        except DataError as error:
            if in_doubt:
                listing.notes.append(
                    SourceNote(UNREAD_LABELS, prefix + key, str(error).removeprefix(f"{key} ").rstrip("."))
                )
            continue
        images = _find_images(rows, find)
        names, paths = (find_by_name(table, role, ()) for role in ("label", "path"))
        if not images and in_doubt and not has_splits and names and paths and table.rows:
            reason = f"a table whose column {paths[0]!r} names no image, such as {table.rows[0].get_text(paths[0])!r}"
            listing.notes.append(SourceNote(UNREAD_LABELS, prefix + key, reason))
        if 2 * len(set(images.values())) <= len(labels):
            continue
        if not names:
            reason = f"a table whose columns are {describe_names(table.columns)}" if in_doubt else ""
        else:
            column = table.columns.index(names[0])
            folders: dict[str, Counter[str]] = defaultdict(Counter)
            for i, image in images.items():
                folders[rows[i][column]][labels[image]] += 1
            agreements = sum(max(counts.values()) for counts in folders.values())
            is_one_folder = len(set(labels.values())) < 2
            differs = len(folders) > 1 and (is_one_folder or agreements < MIN_AGREEMENT * len(images))
            reason = f"a table of other labels, such as {describe_names(sorted(folders))}" if differs else ""
        if reason:
            listing.notes.append(SourceNote(UNREAD_LABELS, prefix + key, reason))
            if not is_stated and are_numbered({c.label for c in listing.classes}):
                listing.notes.extend(
                    SourceNote(NUMBERED_FOLDERS, c.path, f"{prefix}{key} names its images") for c in listing.classes
                )
                is_stated = True  # once


def _note_lists(listing: SourceListing, store: FileStore, prefix: str, keys: Sequence[str]) -> None:
    """Add a note on each list that says more of most images than their names, where there is at most one class."""
    labels = {item.key: item.label for item in (listing.items or listing.to_label) if is_image_name(item.key)}
    find = _index_images(list(labels))
    for key in keys if len(set(labels.values())) < 2 else ():
        with suppress(DataError):
            rows = _read_rows(store, key, find)[1]
            images = _find_images(rows, find)
            if 2 * len(set(images.values())) > len(labels) and not all(find(rows[i][0]) for i in images):
                reason = "a table whose cells are separated by spaces"
                listing.notes.append(SourceNote(UNREAD_LABELS, prefix + key, reason))


def _list_candidates(listing: SourceListing, store: FileStore) -> Iterator[str]:
    """Yield the files that may be lists, outside of the folders that hold labeled images."""
    folders = {item.key.rpartition("/")[0] for item in listing.items}
    for key in store.keys():  # noqa: SIM118  # a store is no mapping
        if (
            key.lower().endswith(_SUFFIXES)
            and key.count("/") < _DEPTH
            and not is_hidden(key)
            and "submission" not in key.rpartition("/")[2].lower()  # an example for competitors, without meaning
            and folders.isdisjoint(map(str, PurePosixPath(key).parents))  # whose text may describe an image
        ):
            yield key


def _index_images(keys: Sequence[str]) -> FindImage:
    """Return a function that finds the image which a cell names, by its folder and name, or by a unique name alone.

    Where several images have these, as ``study1/view1_frontal.jpg`` of CheXpert, more of the path counts.
    """
    index: dict[str, str | None] = {}
    longer: dict[str, str | None] = {}

    def add(ends: dict[str, str | None], end: str, key: str) -> None:
        ends[end] = None if ends.get(end, key) != key else key

    def build() -> None:  # at the first cell, since most folders have no lists
        for key, parts in _part_paths(keys):
            add(index, parts[-1], key)
            add(index, "/".join(parts[-2:]), key)
        ambiguous = {end for end, key in index.items() if key is None and "/" in end}
        for key, parts in _part_paths(keys) if ambiguous else ():
            for count in range(3, len(parts)) if "/".join(parts[-2:]) in ambiguous else ():
                add(longer, "/".join(parts[-count:]), key)

    def find(text: str) -> str | None:
        if not index:
            build()
        parts = fold_name(text.replace("\\", "/")).split("/")
        if (key := index.get("/".join(parts[-2:]))) is not None or not longer:
            return key
        ends = ("/".join(parts[-count:]) for count in range(3, len(parts) + 1))
        return next((key for end in ends if (key := longer.get(end)) is not None), None)

    return find


def _part_paths(keys: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each image with the parts of its path below the root, ``""``, with and without its extension."""
    for key in keys:
        name = fold_name(key)
        for each in {name, name.rpartition(".")[0]} if is_image_name(name) else {name}:
            yield key, ["", *each.split("/")]


def _read_rows(store: FileStore, key: str, find: FindImage) -> tuple[Table, list[tuple[str, ...]]]:
    """Return a list as a table, and the cells of its rows: of a line alone, also its parts at a space."""
    try:
        content = store.read(key)
    except ImageError as error:
        raise DataError(f"{key}: {error}.") from error
    table = read_table(bytes(content), key, KNOWN_COLUMNS, lambda text: any(map(find, _part_line(text))))
    rows = [tuple(row.get_text(column) for column in table.columns) for row in table.rows]
    if len(table.columns) > 1:
        return table, rows
    return table, [_part_line(line) for (line,) in rows]


def _part_line(line: str) -> tuple[str, ...]:
    return (line, *line.partition(" ")[::2], *line.rpartition(" ")[::2])


def _find_images(rows: Sequence[tuple[str, ...]], find: FindImage) -> dict[int, str]:
    """Return the image that each row names, in the column that names most."""
    best: dict[int, str] = {}
    for column in range(max(map(len, rows), default=0)):
        cells = ((i, find(row[column])) for i, row in enumerate(rows) if column < len(row))
        images = {i: image for i, image in cells if image is not None}
        best = images if len(set(images.values())) > len(set(best.values())) else best
    return best


def _read_splits(store: FileStore, keys: Sequence[str], find: FindImage) -> Iterator[tuple[Sequence[str], Memberships]]:
    """Yield the names of lists that belong together, and the splits in which they name each image.

    They are in one folder; of several sets, as ``train1.txt`` and ``train2.txt`` of DTD, one after the other.
    """
    stems = _find_list_splits({stem for key in keys if not (stem := PurePosixPath(key).stem).endswith("partition")})
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for key in keys:
        path = PurePosixPath(key)
        if path.stem in stems:
            groups[str(path.parent), path.suffix.lower()].append(key)
            groups[str(path.parent), path.suffix.lower(), stems[path.stem].remainder].append(key)
        elif path.name == "train_test_split.txt" and (ids := str(path.with_name("images.txt"))) in keys:
            with suppress(DataError):
                flags = _read_rows(store, key, str)[1]
                yield [key], _read_numbered(_read_rows(store, ids, find)[1], flags, find)
        elif key.count("/") < 2 and (
            path.suffix.lower() in {".csv", ".tsv"} or path.stem.lower().endswith("partition")
        ):
            with suppress(DataError):
                yield [key], _read_split_column(*_read_rows(store, key, find), find)
    for group in dict.fromkeys(map(tuple, groups.values())):  # of one set, both are the same lists
        memberships: dict[str, set[Split]] = defaultdict(set)
        for key in group:
            with suppress(DataError):
                for image in _find_images(_read_rows(store, key, find)[1], find).values():
                    memberships[image].add(stems[PurePosixPath(key).stem].split)
        yield group, memberships


def _find_list_splits(names: Collection[str]) -> dict[str, SplitName]:
    """Return the splits of lists by their names; where none is of validation, ``trainval`` is of training."""
    splits = find_splits(names)
    if any(name.split == "validation" for name in splits.values()):
        return splits
    joint = {name: _TRAIN_VAL.sub("train", name) for name in names}
    splits = find_splits(set(joint.values()))
    return {name: splits[other] for name, other in joint.items() if other in splits}


def _read_numbered(images: Sequence[tuple[str, ...]], flags: Sequence[tuple[str, ...]], find: FindImage) -> Memberships:
    """Return the splits of lists of ``17 CLASS/NAME.jpg`` and ``17 1``, where 1 is training."""
    is_train = {row[1]: row[2] for row in flags if len(row) > 2}
    named = {i: image for i, image in _find_images(images, find).items() if is_train.get(images[i][1]) in {"0", "1"}}
    return {image: {"train" if is_train[images[i][1]] == "1" else "test"} for i, image in named.items()}


def _read_split_column(table: Table, rows: Sequence[tuple[str, ...]], find: FindImage) -> Memberships:
    """Return the splits of a table with a column of nothing else."""
    images = _find_images(rows, find)
    for column in range(min((len(rows[i]) for i in images), default=0)):
        name = table.columns[column] if len(table.columns) > 1 else ""
        split_by_cell = read_splits(table, name, [rows[i][column] for i in images])
        splits: dict[str, set[Split]] = defaultdict(set)
        for i, image in images.items():
            if (split := split_by_cell.get(rows[i][column])) is not None:
                splits[image].add(split)
        if len(splits) == len(set(images.values())):
            return splits
    return {}


def _label_splits(listing: SourceListing, store: FileStore, prefix: str, keys: Sequence[str]) -> SourceListing:
    """Return the listing with the labels of splits without class folders, if a list in or beside them has them all."""
    classes = {item.label for item in listing.items}
    by_split: dict[Split, list[str]] = defaultdict(list)
    for path in listing.unlabeled:
        if (split := find_folder_split(path.removeprefix(prefix))) is not None:
            by_split[split].append(path.removeprefix(prefix))
    for split, images in by_split.items():
        find = _index_images(images)
        for key in keys:
            if split not in {find_folder_split(key), parse_split(PurePosixPath(key).stem)}:
                continue
            labels: Mapping[str, str] = {}
            with suppress(DataError):
                labels = _read_labels(*_read_rows(store, key, find), find, classes)
            if len(labels) == len(images) and len(set(labels.values())) > 1:
                listing = _add_labeled(listing, store, prefix, labels, split, key)
                break
    return listing


def _read_labels(table: Table, rows: Sequence[tuple[str, ...]], find: FindImage, classes: set[str]) -> dict[str, str]:
    """Return the classes of the images in a table: those in its column of labels, else in any of classes alone.

    In the column of labels, the zeros before a number do not matter: GTSRB has 7 for the folder 00007.
    """
    named = [table.columns.index(name) for name in find_by_name(table, "label", ())]
    numbers = {strip_zeros(name): name for name in classes}
    numbers = numbers if len(numbers) == len(classes) else {}

    def parse(cell: str, column: int) -> str:
        label = cell if cell in classes else cell.split(" ", maxsplit=1)[0]  # of ImageNet's class with boxes
        return numbers.get(strip_zeros(label), label) if column in named else label

    images = _find_images(rows, find)
    width = min((len(rows[i]) for i in images), default=0)
    columns = [c for c in range(width) if all(parse(rows[i][c], c) in classes for i in images)]
    columns = [c for c in named if c in columns][:1] or columns
    labels = [{image: parse(rows[i][c], c) for i, image in images.items()} for c in columns]
    return labels[0] if labels and all(each == labels[0] for each in labels) else {}


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
