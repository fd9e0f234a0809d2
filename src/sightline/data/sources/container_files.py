"""Labeled images in tables such as Parquet files, and in a folder of tables or of archives."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from sightline.config import DataConfig
from sightline.data.containers import ARCHIVE_SUFFIXES, skip_predictions
from sightline.data.image_tables import ImageTable, is_image_table
from sightline.data.sources.file_finder import FileFinder
from sightline.data.sources.filenames import is_hidden, is_image_name
from sightline.data.sources.folder_layout import UNLABELED_WORDS, WRAPPER_NAMES
from sightline.data.sources.listing import SourceListing, assign_split, join_tables, leave_out_images
from sightline.data.sources.manifest import read_rows
from sightline.data.sources.split_names import assign_splits_by_source_name, find_folder_split, parse_split
from sightline.data.storage import FileStore

T = TypeVar("T")


def read_image_table(store: ImageTable, name: str, options: DataConfig, prefix: str = "") -> SourceListing:
    """List the images of a table with the labels and splits of their rows; messages call the table `name`."""
    if not len(store):  # as Spark and Dask write an empty part of a table
        return SourceListing([])
    columns = replace(options.columns, path=store.column)
    return read_rows(store.read_rows(), name, replace(options, columns=columns), FileFinder(store), prefix)


def find_container_files(store: FileStore) -> list[str]:
    """Return the Parquet and Arrow files, else the archives, in a folder that has no images of its own.

    Data sets of Hugging Face are folders of the one, and those of WebDataset of the other.
    """
    keys = [key for key in skip_predictions(store.keys(), str) if not is_hidden(key)]
    if any(is_image_name(key) for key in keys):
        return []
    tables = [key for key in keys if is_image_table(key)]
    return tables or [key for key in keys if key.lower().endswith(ARCHIVE_SUFFIXES)]


def read_container_files(
    files: Iterable[tuple[str, T]], read: Callable[[T, str], SourceListing], prefix: str = ""
) -> SourceListing:
    """List the images of several tables or archives in a folder; a file or folder that is named as a split states it.

    An archive without classes beside one that has some, as ``test.zip`` of Kaggle, is left out if there are splits or a
    table; else its only folder may be a class, as in ``bus.zip`` and ``train.zip``. `files` are their relative paths
    and where they are; each is opened before the next one is asked for. `read` lists one of them, with what comes
    before its keys.
    """
    keys, listings = [], []
    for key, path in files:
        keys.append(key)
        listings.append(read(path, f"{prefix}{key}/"))
    splits = [find_folder_split(key) for key in keys]
    if all(splits):
        listings = [assign_split(listing, split) for listing, split in zip(listings, splits, strict=True)]
    else:
        listings = assign_splits_by_source_name([Path(key).name for key in keys], listings)
    if any(map(_has_classes, listings)) and any(map(_is_certain, listings)):
        listings = [
            listing if listing.unlabeled or _has_classes(listing) else leave_out_images(listing, prefix + key)
            for key, listing in zip(keys, listings, strict=True)
        ]
    return join_tables(listings)


def _names_other_folder(label: str) -> bool:
    """Return whether the only folder in an archive is no class, by its name: that of a split or of images."""
    return parse_split(label) is not None or label.casefold() in WRAPPER_NAMES | UNLABELED_WORDS


def _has_classes(listing: SourceListing) -> bool:
    return "table" in listing.origins or not all(_names_other_folder(item.label) for item in listing.items)


def _is_certain(listing: SourceListing) -> bool:
    """Return whether the labels are of a table, or there are splits: then no class is called as one."""
    return "table" in listing.origins or any(item.split for item in listing.items)
