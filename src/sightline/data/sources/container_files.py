"""Labeled images in tables such as Parquet files, and in several files that are parts of one data set."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from sightline.config import DataConfig
from sightline.data.containers import is_archive, skip_predictions, strip_suffix
from sightline.data.image_tables import ImageTable, is_image_table
from sightline.data.sources.class_name_files import is_wordnet_id
from sightline.data.sources.file_finder import FileFinder
from sightline.data.sources.file_labels import normalize_label
from sightline.data.sources.filenames import is_hidden, is_image_name
from sightline.data.sources.folder import NOT_IN_CLASS_FOLDER
from sightline.data.sources.folder_layout import UNLABELED_WORDS, WRAPPER_NAMES, are_numbered
from sightline.data.sources.listing import ClassFolder, SourceListing, assign_split, leave_out_images
from sightline.data.sources.manifest import read_rows
from sightline.data.sources.split_names import find_folder_split, find_source_splits, parse_split
from sightline.data.storage import FileStore
from sightline.data.types import SourceNote, Split


def read_image_table(store: ImageTable, name: str, options: DataConfig, prefix: str = "") -> SourceListing:
    """List the images of a table with the labels and splits of their rows; messages call the table `name`."""
    if not len(store):  # Spark and Dask write empty parts of a table
        return SourceListing([])
    columns = replace(options.columns, path=store.column)
    return read_rows(store.read_rows(), name, replace(options, columns=columns), FileFinder(store), prefix)


def find_container_files(store: FileStore) -> list[str]:
    """Return the Parquet and Arrow files, or else the archives, in a folder that has no images of its own.

    Hugging Face data sets are folders of tables, WebDataset ones are folders of archives.
    """
    keys = [key for key in skip_predictions(store.keys(), str) if not is_hidden(key)]
    if any(is_image_name(key) for key in keys):
        return []
    tables = [key for key in keys if is_image_table(key)]
    return tables or list(filter(is_archive, keys))


def _label_flat_parts(names: Sequence[str], listings: Sequence[SourceListing], prefix: str) -> Sequence[SourceListing]:
    """Return the listings of parts without folders with the names of the parts as classes, if they are such."""
    stems = [strip_suffix(Path(name)).name for name in names]
    are_flat = all(image.reason == NOT_IN_CLASS_FOLDER for listing in listings for image in listing.unusable)
    are_unlabeled = are_flat and not any(listing.items for listing in listings)
    if not (are_unlabeled and _are_class_names(stems)):
        return listings
    folders = [ClassFolder(prefix + name, normalize_label(stem), None) for name, stem in zip(names, stems, strict=True)]
    return [_label_images(listing, folder) for listing, folder in zip(listings, folders, strict=True)]


def _are_class_names(names: Collection[str]) -> bool:
    """Return whether parts are named like classes: ``cat`` and ``dog``, not ``shard-0``, ``part_a`` or ``train``."""
    are_different = len({re.sub(r"\d+", "", name) for name in names}) > 1 or all(map(is_wordnet_id, names))
    are_parts = are_numbered(names) or any(map(_names_other_folder, names))
    return are_different and len(set(names)) > 1 and not are_parts


def _label_images(listing: SourceListing, folder: ClassFolder) -> SourceListing:
    """Return the listing of an archive or folder without folders, which is the class `folder`."""
    items = [replace(item, label=folder.label) for item in listing.to_label]
    notes = [SourceNote("labels-from-names", item.label, f"such as {item.path}") for item in items[:1]]
    paths = {item.path for item in items}
    unusable = [image for image in listing.unusable if image.path not in paths]
    return replace(
        listing, items=items, unusable=unusable, to_label=[], classes=[folder], notes=[*listing.notes, *notes]
    )


def find_container_splits(keys: Sequence[str]) -> list[Split | None]:
    """Return the splits of the tables or archives in a folder: those of their subfolders, else of their names."""
    splits = [find_folder_split(key) for key in keys]
    return splits if all(splits) else find_source_splits(keys)


def join_parts(
    names: Sequence[str], listings: Sequence[SourceListing], splits: Sequence[Split | None], prefix: str = ""
) -> list[SourceListing]:
    """Return the listings of the parts of one set, called `names`, with their `splits`.

    Archives and folders without a folder inside, such as ``cat.zip`` and ``dog/``, are classes. A part without classes
    beside one that has some, as ``test1.zip`` of Kaggle, is left out if there are splits or a table; else its only
    folder may be a class, as in ``bus.zip`` and ``train.zip``.
    """
    listings = _label_flat_parts(names, listings, prefix)
    pairs = zip(listings, splits, strict=True)
    parts = [listing if split is None else assign_split(listing, split) for listing, split in pairs]
    is_certain = any("table" in each.origins or any(item.split for item in each.items) for each in parts)
    places = {(item.label, item.split) for each in parts for item in each.items}
    counts = Counter(label for label, _ in places)  # `train` in `train/train.zip` and `test/train.zip` is a class
    classes = {label for label, count in counts.items() if count > 1 and parse_split(label)}
    has_classes = [_has_classes(each, classes) for each in parts]
    if not (is_certain and any(has_classes)):
        return parts
    return [
        each if each.unlabeled or has_any else leave_out_images(each, prefix + name)
        for name, each, has_any in zip(names, parts, has_classes, strict=True)
    ]


def _names_other_folder(label: str) -> bool:
    """Return whether the only folder in an archive is named after a split or images, and so is not a class."""
    return parse_split(label) is not None or label.casefold() in WRAPPER_NAMES | UNLABELED_WORDS


def _has_classes(listing: SourceListing, classes: Collection[str]) -> bool:
    """Return whether the labels of a listing are classes, rather than the name of the only folder in it."""
    labels = {item.label for item in listing.items}
    return "folders" not in listing.origins or any(each in classes or not _names_other_folder(each) for each in labels)
