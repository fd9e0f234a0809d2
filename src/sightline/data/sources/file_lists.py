"""Lists next to class folders: the images of each split, and the labels of a split without class folders.

Food-101 has ``meta/train.txt`` and ``meta/test.txt``, CUB-200 ``train_test_split.txt``, Tiny ImageNet
``val/val_annotations.txt``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import PurePosixPath

from sightline.data.sources.columns import read_splits
from sightline.data.sources.encoding import decode_text
from sightline.data.sources.filenames import is_image_name
from sightline.data.sources.image_lists import ImageList, ImageLists
from sightline.data.sources.listing import SourceItem, SourceListing
from sightline.data.sources.split_names import SplitName, find_folder_split, find_splits, parse_split
from sightline.data.sources.table import may_be_table
from sightline.data.sources.unread_labels import describe_unknown_labels, note_unread_tables
from sightline.data.storage import FileStore, read_file
from sightline.data.targets import strip_zeros
from sightline.data.types import SourceNote, Split
from sightline.errors import DataError, plural

Memberships = Mapping[str, set[Split]]
"""Maps each image to the splits whose lists name it."""

_TRAIN_VAL = re.compile(r"train[\W_]*val(?![a-z])", re.IGNORECASE)
_DEPTH = 4  # most path components of a list, such as archive/food-101/meta/train.txt


def apply_file_lists(listing: SourceListing, store: FileStore, prefix: str) -> SourceListing:
    """Return the listing of class folders with the splits and labels of the lists next to them.

    Lists define the splits if each image is in exactly one of them and no folder states a split. They define the labels
    of a split without class folders if they label each of its images with classes of the other splits. If lists name
    most images but not all, a note reports it.
    """
    keys = _list_candidates(listing, store)
    if not keys:
        return listing
    labels = {item.key: item.label for item in (listing.items or listing.to_label) if is_image_name(item.key)}
    lists = ImageLists(store, keys, labels)
    note_unread_tables(listing, lists, prefix)
    if any(note.kind == "split-folders" for note in listing.notes):  # reported as an error
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
    return _apply_splits(listing, ImageLists(store, keys, labels), prefix)


def _list_candidates(listing: SourceListing, store: FileStore) -> list[str]:
    """Return the files that may be lists, outside the folders that contain labeled images."""
    folders = {item.key.rpartition("/")[0] for item in listing.items}  # text files there may describe an image
    keys = [key for key in filter(may_be_table, store.keys()) if key.count("/") < _DEPTH]
    return [key for key in keys if folders.isdisjoint(map(str, PurePosixPath(key).parents))]


def _apply_splits(listing: SourceListing, lists: ImageLists, prefix: str) -> SourceListing:
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


def _read_splits(lists: ImageLists) -> Iterator[tuple[Sequence[str], Memberships]]:
    """Yield the names of lists that belong together, and the splits to which they assign each image.

    Lists that belong together are in one folder. Several sets, such as ``train1.txt`` and ``train2.txt`` of DTD, are
    yielded one after the other, the shortest first: in Pascal VOC, ``ImageSets/Segmentation`` before those of ``Main``.
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
                yield [key], _read_numbered(lists.read(ids), decode_text(read_file(lists.store, key)))
    for key in lists.select_top():
        path = paths[key]
        may_have_column = path.suffix.lower() in {".csv", ".tsv"} or path.stem.lower().endswith("partition")
        if may_have_column and path.stem not in stems:
            with suppress(DataError):
                yield [key], _read_split_column(lists.read(key))
    sets = {group: dict(lists.read_all(group)) for group in map(tuple, groups.values())}
    for group, by_key in sorted(sets.items(), key=lambda item: sum(len(each.rows) for each in item[1].values())):
        memberships: dict[str, set[Split]] = defaultdict(set)
        for key, each in by_key.items():
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


def _read_numbered(numbered: ImageList, flags: str) -> Memberships:
    """Return the splits from lists with lines such as ``17 CLASS/NAME.jpg`` and ``17 1``, where 1 means training."""
    splits: Mapping[str, Split] = {"1": "train", "0": "test"}
    by_number = {words[0]: splits.get(words[1]) for line in flags.splitlines() if len(words := line.split()) == 2}
    named = ((image, by_number.get(numbered.rows[i][1])) for i, image in numbered.images.items())
    return {image: {split} for image, split in named if split is not None}


def _read_split_column(each: ImageList) -> Memberships:
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
        unknown: list[SourceNote] = []
        for key, each in ImageLists(store, own, images).read_all(own):
            labels = _read_labels(each, classes)
            if len(labels) == len(images) and len(set(labels.values())) > 1:
                listing = _add_labeled(listing, store, prefix, labels, split, key)
                break
            if reason := describe_unknown_labels(each, images, classes, split):
                unknown.append(SourceNote("unread-labels", prefix + key, reason))
        else:
            listing.notes.extend(unknown)
    return listing


def _read_labels(each: ImageList, classes: set[str]) -> dict[str, str]:
    """Return the classes of the images in a table, from its label column, else from a column of nothing but classes.

    In the label column, leading zeros of a number do not matter: GTSRB has 7 for the folder 00007.
    """
    named = each.find_label_columns()
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
