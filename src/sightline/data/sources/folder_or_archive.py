"""List the images of a folder or an archive, with labels from tables, file names or folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sightline.config import DataConfig
from sightline.data.archives import TarStore, ZipStore
from sightline.data.remote_folder import RemoteFolder
from sightline.data.sources.class_name_files import find_class_names
from sightline.data.sources.file_lists import apply_file_lists, apply_split_lists
from sightline.data.sources.folder import is_flat, list_visible, read_class_folders
from sightline.data.sources.folder_layout import WRAPPER_NAMES
from sightline.data.sources.label_tables import read_label_table, read_numbered_folders, read_tables
from sightline.data.sources.listing import SourceListing
from sightline.data.sources.mask_folders import read_mask_folders
from sightline.data.sources.split_names import parse_split
from sightline.data.storage import FolderStore

_Files = FolderStore | ZipStore | TarStore | RemoteFolder


def list_folder_or_archive(
    store: _Files,
    prefix: str,
    options: DataConfig,
    folder: Path | None = None,
    *,
    lenient: bool,
) -> SourceListing:
    """List a folder or archive, with labels from a table, from file names or from folders.

    Tables may also be next to `folder`, the folder of the store; so may class names, if its name marks it as a part.
    """
    listing = _list_images(store, prefix, options, folder, lenient=lenient)
    folder = None if folder is None else folder.resolve()
    is_part = folder is not None and (parse_split(folder.name) or folder.name.casefold() in WRAPPER_NAMES)
    above = folder.parent if folder is not None and is_part else None
    return replace(listing, class_names=find_class_names(listing, store, above))


def _list_images(
    store: _Files, prefix: str, options: DataConfig, folder: Path | None, *, lenient: bool
) -> SourceListing:
    if options.labels:
        return apply_split_lists(read_label_table(store, options, prefix), store, prefix)
    states_labels = (
        options.label_pattern or options.folder_level is not None or "mask-folders" in options.allow_findings
    )
    paths = list_visible(store)
    if not states_labels and (listing := read_mask_folders(store, paths, prefix, folder)) is not None:
        return apply_split_lists(listing, store, prefix)
    is_unlabeled = not options.label_pattern and options.folder_level is None and is_flat(paths)
    if is_unlabeled and (listing := read_tables(store, folder, options, prefix)) is not None:
        return apply_split_lists(listing, store, prefix)
    listing = read_class_folders(store, prefix, store.folders(), options, lenient=lenient)
    if (labeled := read_numbered_folders(listing, store, folder, options, prefix)) is not None:
        return apply_split_lists(labeled, store, prefix)
    return apply_file_lists(listing, store, prefix)
