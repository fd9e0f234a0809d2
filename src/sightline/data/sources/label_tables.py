"""Label the images of a folder or an archive from the tables in it or next to it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from posixpath import normpath

from sightline import _io
from sightline.config import DataConfig
from sightline.data.sources.file_finder import FileFinder
from sightline.data.sources.filenames import is_hidden, is_image_name
from sightline.data.sources.folder import are_named_by_class
from sightline.data.sources.folder_layout import are_numbered, select_top_files
from sightline.data.sources.listing import SourceItem, SourceListing, assign_split, join_tables
from sightline.data.sources.manifest import LabelTable, is_table, list_from_table, parse_table, read_content
from sightline.data.sources.split_names import find_folder_split, parse_split, parse_split_name
from sightline.data.sources.table import LIST_SUFFIXES, TABLE_SUFFIXES, may_be_table
from sightline.data.storage import FileStore, FolderStore, read_file
from sightline.data.types import SPLITS, SourceNote, Split
from sightline.errors import DataError, plural

_MOST_SIBLINGS = 20  # tables next to an archive; if there are more, they are for something else
_Candidate = tuple[LabelTable, set[str]]
"""A table, and the images that it names."""


def read_tables(store: FileStore, folder: Path | None, options: DataConfig, prefix: str) -> SourceListing | None:
    """Label the images in `store` with the tables inside it or next to `folder`; None if there are none."""
    candidates = _find_label_tables(store, folder, options)
    return _list_by_tables(_choose_tables(candidates), store, options, prefix) if candidates else None


def read_numbered_folders(
    listing: SourceListing, store: FileStore, folder: Path | None, options: DataConfig, prefix: str
) -> SourceListing | None:
    """Label images in folders that only number parts of a set, as in HAM10000, with a table that names most of them.

    In `listing`, these folders are the classes. None if the folders are of another kind, if the user states that they
    are classes, or if there is no such table.
    """
    is_stated = options.folder_level is not None or "numbered-folders" in options.allow_findings
    if is_stated or not are_numbered({c.label for c in listing.classes}):
        return None
    labeled = read_tables(store, folder, options, prefix)
    return labeled if labeled is not None and len(labeled.items) > len(labeled.unlabeled) else None


def _find_label_tables(store: FileStore, folder: Path | None, options: DataConfig) -> list[_Candidate]:
    """Return the tables that may label the images in `store`, inside it or next to `folder`, with the images they name.

    Tables two or more folders deep count only if no other table names images: ``set/boxes/boxes.csv`` is on parts of
    the images in ``set/train.csv``. Text files count only if no other table names images, and several only as tables of
    splits: CelebA has some with different meanings. If image names state classes, such as ``cat.1.jpg``, neither text
    files nor tables with other names next to an archive count: they may be sizes or notes.
    """
    candidates = [
        (table, images) for table in _read_tables(store, folder, options)
        if (images := set(table.find_images())) and not _names_training(table, images, folder)
    ]  # fmt: skip
    candidates = [each for each in candidates if each[0].key.count("/") < 2] or candidates
    families = {_find_family(table) for table, _ in candidates if _is_text(table)}
    if len(families) > 1 or not all(_is_text(table) for table, _ in candidates):
        candidates = [each for each in candidates if not _is_text(each[0])]
    certain = [each for each in candidates if _is_certain(each[0], folder)]
    if len(certain) < len(candidates) and are_named_by_class(store):
        candidates = certain
    training = {label for table, _ in candidates if table.finder.split == "train" for label in _list_labels(table)}
    return [each for each in candidates if not _has_no_class(each[0], training)]


def _choose_tables(candidates: Sequence[_Candidate]) -> list[LabelTable]:
    """Return a table for each split, else the one that names the most images.

    The former are such as ``train.csv`` and ``test.csv``, or ``train/labels.csv`` and ``valid/labels.csv``; together
    they name more images than any other table, and none of them twice.
    """
    best, most = max(candidates, key=lambda at: len(at[1]))
    by_split: dict[Split, _Candidate] = {}
    for table, images in candidates:
        split = table.finder.split
        if split is not None and len(images) > len(by_split.get(split, (table, ()))[1]):
            by_split[split] = table, images
    count = sum(len(images) for _, images in by_split.values())
    if len(by_split) < 2 or not len(most) < count == len(set().union(*(images for _, images in by_split.values()))):
        return [best]
    return [table for table, _ in by_split.values()]


def _list_labels(labels: LabelTable) -> list[str]:
    """Return the cells of the label column; none if the labels are in other columns."""
    return labels.table.list_texts(labels.columns.label) if labels.columns.label else []


def _has_no_class(labels: LabelTable, training: AbstractSet[str]) -> bool:
    """Return whether a held-out split has a table of paths and numbers that are no `training` labels, such as ids."""
    cells = [] if labels.table.has_header else _list_labels(labels)
    is_held_out = labels.finder.split in {"validation", "test"} and bool(training and cells)
    return is_held_out and training.isdisjoint(cells) and all(map(str.isdecimal, cells))


def _is_text(labels: LabelTable) -> bool:
    return labels.table.name.lower().endswith(LIST_SUFFIXES)


def _is_certain(labels: LabelTable, folder: Path | None) -> bool:
    """Return whether a table is neither a text file nor a table with another name next to an archive."""
    own = {"labels"} if folder is None else {folder.name.lower(), "labels"}
    return not _is_text(labels) and (bool(labels.key) or Path(labels.table.name).stem.lower() in own)


def _find_family(labels: LabelTable) -> tuple[str, str]:
    """Return what the tables of the splits of one set have in common: the folder, and the name without the split."""
    path = PurePosixPath(labels.table.name)
    split = parse_split_name(path.stem) if labels.finder.split else None
    return str(path.parent), path.stem if split is None else split.remainder


def _read_tables(store: FileStore, folder: Path | None, options: DataConfig) -> Iterator[LabelTable]:
    keys = store.keys()
    images = [key for key in keys if is_image_name(key) and not is_hidden(key)]
    names = {key.rpartition("/")[2].rpartition(".")[0] for key in images}
    finders = {split: FileFinder(store, split) for split in (None, *SPLITS)}
    for key in select_top_files(filter(may_be_table, keys), images):
        path = PurePosixPath(key)
        is_box = path.suffix.lower() in LIST_SUFFIXES and path.stem in names  # a YOLO label file
        if not is_box:
            content = read_file(store, key)
            finder = finders[parse_split(path.stem) or find_folder_split(key)]
            with suppress(DataError):
                yield parse_table(content, f"{store.name}/{key}", finder, options, key)
    for sibling in _find_siblings(folder) if folder is not None else ():
        with suppress(DataError):
            yield parse_table(read_content(sibling, options), str(sibling), finders[None], options)


def _find_siblings(folder: Path) -> list[Path]:
    """Return the tables next to a folder that are named after it or ``labels``.

    For an archive, `folder` is the folder that it would be unpacked to, and does not exist; then all tables next to it
    are returned except those of another split, such as ``train.csv`` next to ``images.zip``, as there are only a few.
    """
    folder = folder.resolve()
    paths: list[Path] = []
    with suppress(OSError):  # the parent folder may be unreadable
        paths = sorted(filter(is_table, folder.parent.iterdir()))
    if folder.is_dir():
        return [path for path in paths if path.stem.lower() in {folder.name.lower(), "labels"}]
    split = parse_split(folder.name)
    others = {None: {None, "train", "validation", "test"}, "train": {None, "train"}}.get(split, {split})
    tables = [
        path for path in paths
        if path.name.lower().endswith(TABLE_SUFFIXES) and not re.search("submission|prediction", path.name.lower())
        and parse_split(path.stem) in others
    ]  # fmt: skip
    tables.sort(key=lambda path: path.stem.lower() != folder.name.lower())  # its own table wins ties
    return tables if len(tables) <= _MOST_SIBLINGS else []


def _names_training(labels: LabelTable, keys: set[str], folder: Path | None) -> bool:
    """Return whether a table next to a held-out split's folder names files that are mostly in the training folder."""
    own_splits = {None, "train", parse_split(Path(labels.table.name).stem)}
    if labels.key or folder is None or parse_split(folder.name) in own_splits:
        return False
    with suppress(OSError):
        folders = [p for p in folder.resolve().parent.iterdir() if parse_split(p.name) == "train" and p.is_dir()]
        return any(2 * sum((training / key).exists() for key in keys) > len(keys) for training in folders)
    return False


def _list_by_tables(tables: Sequence[LabelTable], store: FileStore, options: DataConfig, prefix: str) -> SourceListing:
    """List the images of `store` with their labels in `tables`: a single table, or one for each split.

    Images that no table names are listed as unlabeled.
    """
    listings = [list_from_table(table, options, prefix, store_is_source=True) for table in tables]
    if len(tables) > 1:
        listings = [assign_split(listing, t.finder.split) for listing, t in zip(listings, tables, strict=True)]
    listing = join_tables(listings)
    _add_unlabeled(listing, store, prefix, {t.key for t in tables})
    return listing


def read_label_table(store: FileStore, options: DataConfig, prefix: str) -> SourceListing:
    """Label the images in `store` with the table ``data.labels``: at this path, or else inside the folder of the store.

    Raises `DataError` as `read_manifest` does.
    """
    path, root = _io.expand_home(options.labels), store.root.resolve() if isinstance(store, FolderStore) else None
    path = root / path if root is not None and not _io.exists(path) else path
    file = path.resolve()
    key = file.relative_to(root).as_posix() if root is not None and file.is_relative_to(root) else ""
    finder = FileFinder(store, parse_split(path.stem))
    if root is None and not _io.exists(path) and store.contains(options.labels):  # within an archive
        key, content = options.labels, read_file(store, options.labels)
    else:
        content = read_content(path, options)
    table = parse_table(content, str(path), finder, options, key)
    listing = _list_by_tables([table], store, options, prefix)
    return replace(listing, origins=frozenset({"table", "data.labels"}))


def _add_unlabeled(listing: SourceListing, store: FileStore, prefix: str, tables: Iterable[str]) -> None:
    """Add the images of the store that no table names, by folder, and list other files except `tables` as skipped."""
    named = [*(item.path for item in listing.items), *(image.path for image in listing.unusable)]
    root = f"{store.root.absolute()}/" if isinstance(store, FolderStore) else ""
    rows = (path.removeprefix(prefix).removeprefix(root) for path in named)  # a row may name ./1.jpg, or /home/me/1.jpg
    used = set(map(normpath, [*rows, *tables]))
    folders: dict[str, list[str]] = defaultdict(list)
    keys = store.keys()
    for key in keys:
        if normpath(key) in used:
            continue
        if is_image_name(key) and not is_hidden(key):
            folders[str(PurePosixPath(key).parent)].append(prefix + key)
            listing.to_label.append(SourceItem(store, key, prefix + key, ""))
        else:
            listing.skipped_files.append(prefix + key)
    for folder, paths in sorted(folders.items()):
        listing.unlabeled.extend(paths)
        listing.notes.append(SourceNote("unlabeled-folders", prefix + folder, plural(len(paths), "image")))
