"""Index data sources: list their readable images with labels and hashes, and the unreadable ones with reasons."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any, cast

from sightline import _io, jsonio
from sightline.callbacks import Progress, no_progress
from sightline.config import DataConfig
from sightline.data.archives import TarStore
from sightline.data.containers import is_container, name_address, open_container, strip_suffix
from sightline.data.copies import merge_copies
from sightline.data.file_records import FileRecords
from sightline.data.image_tables import ImageTable
from sightline.data.inspection import ImageFiles, inspect_items
from sightline.data.masks import choose_labels
from sightline.data.missing_images import NO_ITEMS, explain_no_images
from sightline.data.remote import RemotePath, is_url
from sightline.data.remote_folder import RemoteFolder, open_remote_folder
from sightline.data.sources import named
from sightline.data.sources.class_name_files import apply_class_names, are_numbers, find_class_names
from sightline.data.sources.class_parents import apply_class_tree
from sightline.data.sources.container_files import (
    find_container_files,
    find_container_splits,
    join_parts,
    read_image_table,
)
from sightline.data.sources.file_finder import FileFinder
from sightline.data.sources.filenames import is_image_name
from sightline.data.sources.folder_or_archive import list_folder_or_archive
from sightline.data.sources.idx import drop_label_files, is_idx, read_idx_files
from sightline.data.sources.listing import (
    SourceItem,
    SourceListing,
    include_unlabeled,
    join_listings,
    join_tables,
    read_as_label_sets,
)
from sightline.data.sources.manifest import is_table, read_manifest, read_rows
from sightline.data.sources.mask_folders import find_mask_classes
from sightline.data.sources.split_names import find_source_splits
from sightline.data.sources.unread_labels import is_spreadsheet
from sightline.data.sources.unused_settings import check_settings
from sightline.data.sources.webdataset import list_samples
from sightline.data.staging import stage
from sightline.data.storage import FolderStore, holds_model
from sightline.data.targets import CLASS_TARGETS, Targets
from sightline.data.types import ImageRecord, Index, InvalidMask, SourceNote, UnreadableImage
from sightline.errors import DataError, UsageError
from sightline.escaping import quote_path

DEFAULT_OPTIONS = DataConfig()

Source = str | Path
Sources = Source | SourceListing | Sequence[Source | SourceListing]

NO_SOURCE = "No source given: pass a folder, an archive, a manifest or the name of a data set such as beans."


def list_of_sources(sources: Sources) -> list[Source | SourceListing]:
    """Return one or several sources as a list; raises `UsageError` for other objects, such as arrays."""
    if hasattr(sources, "columns"):  # iterating over it would yield column names
        raise UsageError("Images come from a path or a Dataset: for a DataFrame, use Dataset.from_dataframe(frame).")
    if type(sources).__module__.partition(".")[0] == "datasets":  # Hugging Face: iteration would yield rows
        raise UsageError("Images come from a path: data.save_to_disk('folder/'), then Dataset.from_folder('folder/').")
    is_one = isinstance(sources, str | Path | SourceListing | Mapping) or not isinstance(sources, Iterable)
    source_list: list[Any] = [sources] if is_one else list(cast("Iterable[Any]", sources))
    for source in source_list:
        if hasattr(source, "listed_sources"):
            raise UsageError("A Dataset is passed as it is, not in a list: join several with +, as in first + second.")
        if isinstance(source, str) and not source:  # would mean the current folder
            raise DataError(NO_SOURCE)
        if not isinstance(source, str | Path | SourceListing):
            raise UsageError(
                f"Images come from a path or a Dataset, not from {type(source).__name__}: for arrays in memory, use "
                "sightline.Dataset.from_arrays(x, y)."
            )
    return source_list


def build_index(
    sources: Sources,
    progress: Progress = no_progress,
    threads: int | None = None,
    *,
    options: DataConfig = DEFAULT_OPTIONS,
    lenient: bool = False,
    unlabeled: bool = False,
    targets: Targets = CLASS_TARGETS,
    records: FileRecords | None = None,
) -> Index:
    """Index the images of one or several sources, reading every file once (hash and header, no pixels).

    A source is a folder of class folders (optionally inside train, validation and test), which may be at an address
    such as ``s3://bucket/train``; a ``.zip`` or ``.tar`` of such a folder, a manifest (CSV, JSON), IDX files or a
    folder of them, a named data set, or a `SourceListing` of arrays. `options` are the settings of ``[data]`` in
    docs/reference.md, which control how a source is read. With `unlabeled`, or with a patch, which can label them,
    images without a class are also listed, with the label "", unless the source states splits.
    `targets` are those of the task: if images may have several labels, a table row without a label is an image of none
    of the classes, and an image has the labels of all of its rows; for masks, the labels are the classes in the mask.
    With `records`, unchanged files are not read again, and the files that are read are recorded.

    Raises `DataError` if a source is missing, has no images, or gives a split for only some of them; also for folders
    next to train, validation and test, which are ignored with a note if `lenient` is true.
    """
    source_list = drop_label_files(list_of_sources(sources))
    listing = _join_sources(source_list, options, targets, lenient=lenient, unlabeled=unlabeled)
    entries = listing.items
    _check_labels(entries)
    _check_splits(entries)
    if len(source_list) > 1:
        _check_overlap(entries)
    results = list(zip(entries, inspect_items(entries, progress, threads, records), strict=True))
    images = [(item, result) for item, result in results if isinstance(result, ImageRecord)]
    unreadable = (*listing.unusable, *(result for _, result in results if isinstance(result, UnreadableImage)))
    ignored = tuple(sorted([*listing.skipped_files, *(item.path for item, result in results if result is None)]))
    if not images:
        source_names = describe_sources(source_list)
        raise DataError(explain_no_images(source_names, unreadable, ignored, listing.notes, unlabeled=unlabeled))
    several_labels = listing.several_labels
    if options.merge_copies:
        images, several_labels = merge_copies(images, several_labels)
    nonempty_classes = {(item.label, item.split) for item, result in results if result is not None}
    invalid_masks = [SourceNote("invalid-masks", r.path, r.reason) for _, r in results if isinstance(r, InvalidMask)]
    files = ImageFiles(images)
    index = Index(
        name="+".join(dict.fromkeys(_split_name(s)[-1] for s in source_list)),
        images=tuple(image for _, image in images),
        unreadable=unreadable,
        read=files.read,
        other_files=ignored,
        empty_classes=tuple(sorted(c.path for c in listing.classes if (c.label, c.split) not in nonempty_classes)),
        notes=(*listing.notes, *invalid_masks),
        several_labels=several_labels,
        read_mask=files.read_mask if all(image.mask for _, image in images) else None,
        mask_classes=find_mask_classes(entries),
        class_order=options.class_order,
        find_file=files.find_file,
        has_numbers=all(entry.is_number for entry in entries),
        has_paths=targets.are_paths,
    )
    return choose_labels(index, targets)


def _join_sources(
    sources: Sequence[Source | SourceListing],
    options: DataConfig,
    targets: Targets,
    *,
    lenient: bool,
    unlabeled: bool,
) -> SourceListing:
    """Return the joined listings of several sources, with labels in the form that the task needs."""
    listings = list_sources(sources, options, lenient=lenient)
    if targets.allows_several and not targets.are_masks:
        listings = read_as_label_sets(listings)
    order = options.class_order
    if not (options.class_tree or (are_numbers(order) if order else targets.are_ordered)):
        listings = apply_class_names(listings)
    if unlabeled or options.patch:
        listings = include_unlabeled(listings)
    return join_listings(listings)


def _check_splits(entries: Sequence[SourceItem]) -> None:
    """Raise `DataError` if only some images are in a split."""
    if len({entry.split is None for entry in entries}) > 1:
        unassigned = next(entry.path for entry in entries if entry.split is None)
        raise DataError(
            "Some images are in a split (train, validation or test), but others, such as "
            f"{unassigned}, are not: put every image into a split, or none."
        )


def _check_overlap(entries: Sequence[SourceItem]) -> None:
    """Raise `DataError` if two sources list a file with the same label, as a table and the folder of its images do."""
    resolve, examples = functools.cache(Path.resolve), set[tuple[str, str, str | None]]()
    for item in entries:
        if isinstance(item.store, FolderStore):
            file = os.path.normpath(os.path.join(resolve(item.store.root), item.key))  # noqa: PTH118  # for speed
            example = file, item.label, item.split
            if example in examples:
                raise DataError(
                    f"{item.path} is in two of the sources, so it would count twice: name only one of them, such as "
                    "the table or the folder of its images."
                )
            examples.add(example)


def _check_labels(entries: Sequence[SourceItem]) -> None:
    """Raise `DataError` for a class name that is not valid Unicode text, which no bundle could store.

    A UTF-8 name that Python decodes in the encoding of another locale is also an error: the bundle would store other
    letters.
    """
    encoding = sys.getfilesystemencoding()
    for label, path in {e.label: e.path for e in reversed(entries)}.items():
        if encoding != "utf-8" and _is_misread(label, encoding):
            raise DataError(
                f"The class name {label!r}, of {path!r}, is UTF-8, but Python reads it as {encoding}: set PYTHONUTF8=1."
            )
        if not jsonio.is_encodable(label):
            advice = (
                "rename the folder" if encoding == "utf-8" else f"set PYTHONUTF8=1, as Python reads names as {encoding}"
            )
            raise DataError(
                f"The class name {label!r}, of {path!r}, is not valid UTF-8, so a model cannot store it: {advice}."
            )


def _is_misread(name: str, encoding: str) -> bool:
    """Return whether the bytes of `name`, which Python decoded with `encoding`, are valid UTF-8 for another name."""
    try:
        return name.encode(encoding, "surrogateescape").decode("utf-8") != name
    except UnicodeError:
        return False


def list_sources(
    sources: Sources, options: DataConfig = DEFAULT_OPTIONS, *, lenient: bool = False
) -> list[SourceListing]:
    """Return one listing per source, read with `options`.

    Listings are sources themselves, so commands such as `evaluate` can pass on sources read with specific options.
    Raises `DataError` as `build_index` does.
    """
    source_list = drop_label_files(list_of_sources(sources))
    for source in source_list:
        if not isinstance(source, SourceListing) and not jsonio.is_encodable(str(source)):
            raise DataError(
                f"The name {str(source)!r} is not valid UTF-8, so a run cannot record where its images came from: "
                "rename it."
            )
    if not source_list:
        raise DataError(NO_SOURCE)
    _check_once([str(source) for source in source_list if not isinstance(source, SourceListing)])
    names = _name_sources(source_list)
    listings = [
        s
        if isinstance(s, SourceListing)
        else list_source(s, f"{name}/" if len(source_list) > 1 else "", options, lenient=lenient)
        for s, name in zip(source_list, names, strict=True)
    ]
    check_settings(listings, options, describe_sources(source_list))
    return apply_class_tree(join_parts(names, listings, find_source_splits(names)), options)


def _check_once(sources: Sequence[str]) -> None:
    """Raise `DataError` for a source that is given twice, even if it is written in different ways."""
    sources_by_place: dict[str | Path, str] = {}
    for source in sources:
        path = _io.expand_home(source)
        place = path.resolve() if not is_url(source) and _io.exists(path) else source
        if (first := sources_by_place.get(place)) is not None:
            problem = "given twice" if source == first else f"the same as {first}"
            raise DataError(f"{source} is {problem}, and its images would count twice: name each source once.")
        sources_by_place[place] = source


def describe_sources(sources: Sources) -> str:
    """Return the sources joined for a message, each as the user wrote it."""
    return "+".join(_split_name(s)[-1] if isinstance(s, SourceListing) else str(s) for s in list_of_sources(sources))


def _name_sources(sources: Sequence[Source | SourceListing]) -> list[str]:
    """Return the last part of the path of each source, or as many last parts as it takes to tell all paths apart."""
    parts = [_split_name(source) for source in sources]
    paths = [each for each in parts if len(each) > 1]
    longest = max(map(len, parts))
    depth = next((n for n in range(1, longest) if len({each[-n:] for each in paths}) == len(paths)), longest)
    return [PurePath(*each[-depth:]).as_posix() for each in parts]


def _split_name(source: Source | SourceListing) -> tuple[str, ...]:
    """Return the absolute path of a source in parts, with links as they are; of others, the name alone."""
    if isinstance(source, SourceListing):
        return (source.items[0].store.name if source.items else NO_ITEMS,)
    text = str(source)
    if named.is_named(text):
        return (text,)
    return PurePath(os.path.abspath(_io.expand_home(text))).parts  # noqa: PTH100  # `resolve` would follow links


def list_source(
    source: Source, prefix: str = "", options: DataConfig = DEFAULT_OPTIONS, *, lenient: bool = False
) -> SourceListing:
    """List the contents of a source, given by path or name, without opening any image."""
    text = str(source)
    if is_url(text):
        remote = RemotePath.parse(text)
        if is_container(remote.name) and not remote.is_folder():
            return _list_container(remote, prefix, options, lenient=lenient)
        return _list_folder(open_remote_folder(remote, options.limits), prefix, options, lenient=lenient)
    path = _io.expand_home(text)
    if _io.exists(path):
        return _list_path(path, prefix, options, lenient=lenient)
    if named.is_named(text):
        return named.load_named(text)
    known = ", ".join([*named.NAMES, *named.SOURCES])
    raise DataError(f"There is no folder, file or data set {text!r}. Check the path; the named data sets are {known}.")


def _list_path(path: Path, prefix: str, options: DataConfig, *, lenient: bool) -> SourceListing:
    """List a folder or a file on this machine."""
    if holds_model(path) or path.suffix.lower() == ".onnx":
        raise DataError(
            f"{path} is a model, not labeled images: `sightline evaluate {quote_path(path)}` and "
            f"`sightline predict {quote_path(path)} IMAGES` use it, and `sightline resume` continues a run; "
            "name the images to train on or to check."
        )
    if path.is_dir() and (files := sorted(p for p in path.glob("*") if is_idx(p) and p.is_file())):
        return read_idx_files(files, options.limits)
    if path.is_dir():
        return _list_folder(FolderStore(path, options.limits), prefix, options, lenient=lenient)
    if is_container(path.name):
        return _list_container(path, prefix, options, lenient=lenient)
    if is_table(path) or is_spreadsheet(path.name):
        listing = read_manifest(path, options)
        return replace(listing, class_names=find_class_names(listing, None, path.resolve().parent))
    if is_idx(path):
        return read_idx_files([path], options.limits)
    if path.suffix.lower() in {".yaml", ".yml"}:
        raise DataError(f"{path} is a configuration, as for YOLO: name the folder of its images, sorted by class.")
    if is_image_name(path.name):
        raise DataError(f"{path} is a single image: name the folder or the table that has its label.")
    raise DataError(
        f"{path} is not a source of labeled images: expected a folder of class folders, a .zip or .tar of one, "
        "a manifest (.csv, .tsv, .txt, .json, .jsonl), a .parquet or .arrow file with images, or IDX files."
    )


def _list_folder(
    store: FolderStore | RemoteFolder, prefix: str, options: DataConfig, *, lenient: bool
) -> SourceListing:
    """List the tables or archives in a folder, else its images."""
    locate = store.root.joinpath if isinstance(store, FolderStore) else store.locate
    if keys := find_container_files(store):
        parts = [_list_container(locate(key), f"{prefix}{key}/", options, lenient=lenient) for key in keys]
        listing = join_tables(join_parts(keys, parts, find_container_splits(keys), prefix))
        return replace(listing, class_names=find_class_names(listing, store, None))
    folder = store.root if isinstance(store, FolderStore) else None
    return list_folder_or_archive(store, prefix, options, folder, lenient=lenient)


def _list_container(
    path: Path | RemotePath, prefix: str, options: DataConfig, *, lenient: bool, is_copy: bool = False
) -> SourceListing:
    """List an image table or an archive according to its content; a file at an address is copied to the cache first."""
    if isinstance(path, RemotePath):
        copy = stage(path, options.limits)
        with name_address(copy, path.url):
            return _list_container(copy, prefix, options, lenient=lenient, is_copy=True)
    store = open_container(path, options.limits, options.columns.path)
    if isinstance(store, ImageTable):
        return read_image_table(store, str(path), options, prefix)
    if isinstance(store, TarStore) and (samples := list_samples(store)):
        listing = read_rows(samples, str(path), options, FileFinder(store), prefix)
    else:
        folder = None if is_copy else strip_suffix(path)
        listing = list_folder_or_archive(store, prefix, options, folder, lenient=lenient)
    names = store.repeated_names
    repeated = [SourceNote("repeated-members", prefix + name, "kept under unique names") for name in names]
    return replace(listing, notes=[*listing.notes, *repeated])
