"""Read classes and splits from the folder and file names in a folder or an archive."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import PurePosixPath

from sightline.config import DataConfig
from sightline.data.class_tree import PATH_SEPARATOR
from sightline.data.sources.class_masks import IMAGE_FOLDERS, MASK_FOLDER_NAMES, OBJECT_FOLDER, find_class_masks
from sightline.data.sources.file_labels import are_class_names, compile_pattern, normalize_label, parse_label
from sightline.data.sources.filenames import are_hidden, is_hidden, is_image_name, split_path
from sightline.data.sources.folder_layout import FolderLayout, PathParts, are_numbered, infer_layout
from sightline.data.sources.listing import ClassFolder, SourceItem, SourceListing
from sightline.data.sources.split_names import parse_split_name, suggest_split
from sightline.data.sources.unread_labels import find_unread_labels
from sightline.data.storage import FileStore
from sightline.data.types import NO_LABEL, NoteKind, SourceNote, Split, UnreadableImage
from sightline.errors import DataError, ImageError, list_some, plural

NOT_IN_CLASS_FOLDER, ABOVE_CLASS_FOLDERS = "is not in a class folder", "is above the level of the class folders"
NO_LABEL_IN_NAME = "has no label in its name"
NO_CLASS_REASONS = frozenset({NOT_IN_CLASS_FOLDER, ABOVE_CLASS_FOLDERS, NO_LABEL_IN_NAME, NO_LABEL})
"""Reasons for rejecting a file that can be read but has no class."""
DEFAULTS = DataConfig()
LabelParser = Callable[[str], str | None]


def read_class_folders(
    store: FileStore,
    prefix: str = "",
    folders: Sequence[str] = (),
    options: DataConfig = DEFAULTS,
    *,
    lenient: bool = False,
) -> SourceListing:
    """Read classes from folder names, and splits from ``train/``, ``validation/`` or ``test/`` folders above them.

    Outer folders that hold everything else (``archive/dataset/train/...``) are skipped. `folders` are all known
    folders, including empty ones. Without class folders, classes are read from file names if those are unambiguous.
    Raises `DataError` for other folders next to the splits, unless `lenient` or allowed by `options`.
    """
    paths, level = list_visible(store), options.folder_level
    are_masks_allowed = "mask-folders" in options.allow_findings
    if options.label_pattern:
        return list_by_file_name(store, prefix, _list_image_paths(paths), compile_pattern(options.label_pattern))
    masks = frozenset[str]() if are_masks_allowed else find_class_masks(paths)
    paths = {key: path for key, path in paths.items() if key not in masks}
    image_paths = _list_image_paths(paths)
    layout = infer_layout(image_paths, as_classes="split-folders" in options.allow_findings, level=level is not None)
    if layout.flat and level is None and (class_names := _infer_classes(image_paths)):
        return list_by_file_name(store, prefix, image_paths, parse_label, class_names)
    if layout.unexpected and not (lenient or "unexpected-folder" in options.allow_findings):
        raise DataError(_unexpected_folders_message(store.name, layout))
    listing = _list_by_folder(store, prefix, layout, folders, level, paths)
    listing.skipped_files[:] = [path for path in listing.skipped_files if path.removeprefix(prefix) not in masks]
    notes = listing.notes
    notes += _note_layout(layout, paths, prefix)
    notes += [SourceNote("class-masks", prefix + key) for key in sorted(masks)]
    looks_split = any(note.kind == "split-folders" for note in layout.notes)
    if looks_split or len({item.label for item in listing.items if is_image_name(item.key)}) < 2:
        unread = find_unread_labels(store.keys())
        notes += [SourceNote("unread-labels", prefix + key, kind) for key, kind in sorted(unread.items())]
    copies = list(_note_copied_folders(listing))
    if level is None and not looks_split:
        copied_folders = {note.path for note in copies}
        nested = _note_nested_classes(layout, image_paths, prefix)
        notes += [note for note in nested if note.path not in copied_folders]
    if level is None and are_numbered({folder.label for folder in listing.classes}):
        notes += [SourceNote("numbered-folders", folder.path) for folder in listing.classes]
    notes += copies
    notes += () if are_masks_allowed else _note_masks(listing)
    return listing


def is_flat(paths: Mapping[str, PathParts]) -> bool:
    """Return whether files are in no class folders, so that their labels must come from elsewhere."""
    return infer_layout(_list_image_paths(paths)).flat


def _list_image_paths(paths: Mapping[str, PathParts]) -> list[PathParts]:
    """Return the paths with the extension of an image, without a README; all of them if none has one."""
    return [path for key, path in paths.items() if is_image_name(key)] or list(paths.values())


def are_named_by_class(store: FileStore) -> bool:
    """Return whether the names of the images state classes, as ``cat.1.jpg`` and ``dog.1.jpg``."""
    return bool(_infer_classes([path for key, path in list_visible(store).items() if is_image_name(key)]))


def list_visible(store: FileStore) -> dict[str, PathParts]:
    """Return the path components of each file that is not hidden, by its key."""
    keys = store.keys()
    return {key: parts for key in keys if not are_hidden(parts := split_path(key))}


def _list_by_folder(
    store: FileStore,
    prefix: str,
    layout: FolderLayout,
    folders: Sequence[str],
    level: int | str | None,
    paths: Mapping[str, PathParts],
) -> SourceListing:
    """List the images in `paths`, the class folders and the remaining files."""
    listing = SourceListing([], origins=frozenset({"folders"}))
    classes: dict[tuple[Split | None, str], ClassFolder] = {}
    is_deepest = level in ("leaf", "path")
    depth = 1 if level is None or isinstance(level, str) else level  # unless class folders are the deepest

    def find_class_folder(path: PathParts, *, is_folder: bool = False) -> ClassFolder | None:
        """Return the class folder of a file, or of a folder, which may itself be one."""
        location = layout.locate((*path, "") if is_folder else path)
        if location is None:
            return None
        split, below = location
        above = below[:-1] if is_deepest else below[:depth]
        if not above or len(below) <= len(above) or (is_folder and len(below) > len(above) + 1):
            return None
        names = above if level == "path" else above[-1:]
        label = PATH_SEPARATOR.join(normalize_label(name) or name for name in names)  # macOS decomposes accents
        folder = "/".join(path[: len(path) + is_folder - len(below) + len(above)])
        return classes.setdefault((split, folder), ClassFolder(prefix + folder, label, split))

    for key, path in paths.items():
        if (class_folder := find_class_folder(path)) is not None:
            listing.items.append(SourceItem(store, key, prefix + key, class_folder.label, class_folder.split))
        elif is_image_name(key) and layout.is_unlabeled(path):
            listing.unlabeled.append(prefix + key)
        elif is_image_name(key):
            reason = NOT_IN_CLASS_FOLDER if depth == 1 else ABOVE_CLASS_FOLDERS
            listing.unusable.append(UnreadableImage(prefix + key, reason))
            listing.to_label.append(SourceItem(store, key, prefix + key, ""))
    for folder in folders:
        if not is_hidden(folder) and not is_deepest:
            find_class_folder(PurePosixPath(folder).parts, is_folder=True)
    _skip_rest(listing, store, prefix)
    listing.classes.extend(classes.values())
    return listing


def _skip_rest(listing: SourceListing, store: FileStore, prefix: str) -> None:
    used_paths = {e.path for e in listing.items} | {r.path for r in listing.unusable} | set(listing.unlabeled)
    keys = store.keys()
    listing.skipped_files.extend(prefix + key for key in keys if prefix + key not in used_paths)


def list_by_file_name(
    store: FileStore,
    prefix: str,
    image_paths: Sequence[PathParts],
    extract_label: LabelParser,
    inferred_classes: Collection[str] = (),
) -> SourceListing:
    """List images with labels from their names; `inferred_classes` are the classes if the user has set no pattern.

    A split without any labeled image is left out.
    """
    layout = infer_layout(image_paths, by_folder=False)
    listing = SourceListing([], origins=frozenset({"folders"}))
    unlabeled: dict[Split | None, list[str]] = defaultdict(list)
    for key, path in list_visible(store).items():
        location = layout.locate(path)
        label_name = extract_label(key) if is_image_name(key) or not inferred_classes else None
        if location is not None and label_name and (not inferred_classes or label_name in inferred_classes):
            listing.items.append(SourceItem(store, key, prefix + key, label_name, location[0]))
        elif is_image_name(key):
            unlabeled[location[0] if location else None].append(prefix + key)
            listing.to_label.append(SourceItem(store, key, prefix + key, ""))
    if not listing.items and image_paths:
        raise DataError(
            f"data.label_pattern matches none of the {plural(len(image_paths), 'image')} in {store.name}, the first of "
            f"which is {'/'.join(min(image_paths))}. It is matched against the file name, or the path "
            "if it contains a /."
        )
    labeled = {e.split for e in listing.items}
    for split, keys in unlabeled.items():
        if split in {None, "train", *labeled}:
            listing.unusable.extend(UnreadableImage(key, NO_LABEL_IN_NAME) for key in keys)
        else:
            listing.unlabeled.extend(keys)
            folder = "/".join(PurePosixPath(keys[0].removeprefix(prefix)).parts[: len(layout.wrapper) + 1])
            listing.notes.append(SourceNote("unlabeled-folders", prefix + folder, plural(len(keys), "image")))
    _skip_rest(listing, store, prefix)
    example_paths: dict[str, str] = {}
    for e in listing.items:
        example_paths.setdefault(e.label, e.path)
    listing.notes.extend(
        SourceNote("labels-from-names", class_name, f"such as {path}")
        for class_name, path in sorted(example_paths.items())
    )
    return listing


def _infer_classes(image_paths: Sequence[PathParts]) -> set[str]:
    """Return the classes in the names of the training images, or else of all images; empty if ambiguous."""
    layout = infer_layout(image_paths, by_folder=False)
    path_splits = [("/".join(p), location[0]) for p in image_paths if (location := layout.locate(p)) is not None]
    train = [path for path, split in path_splits if split in (None, "train")]
    return {parse_label(path) or "" for path in train} if are_class_names(train) else set()


def _note_layout(layout: FolderLayout, paths: Mapping[str, PathParts], prefix: str) -> Iterator[SourceNote]:
    """Yield notes on top folders: those in doubt, those without labels, and those next to the splits."""
    depth, parent = len(layout.wrapper), prefix + "".join(f"{folder}/" for folder in layout.wrapper)
    for note in layout.notes:
        yield replace(note, path=parent + note.path)
    for top in sorted(layout.unlabeled):
        count = sum(layout.is_unlabeled(p) and p[depth] == top and is_image_name(key) for key, p in paths.items())
        yield SourceNote("unlabeled-folders", parent + top, plural(count, "image"))
    for top in sorted(layout.unexpected):
        yield SourceNote("unexpected-folder", parent + top, _describe_unexpected(top))


def _note_nested_classes(layout: FolderLayout, image_paths: Sequence[PathParts], prefix: str) -> Iterator[SourceNote]:
    """Yield a note for each class folder whose images are all in two or more subfolders, or in those of its only one.

    Subfolders that are splits, as in ``casting_data/casting_data/train/``, are an error.
    """
    by_class: dict[PathParts, list[PathParts]] = defaultdict(list)
    for path in image_paths:
        location = layout.locate(path)
        if location is not None and len(location[1]) > 1:
            by_class[path[: len(path) - len(location[1]) + 1]].append(location[1][1:])
    for folder, paths in sorted(by_class.items()):
        depth = 0
        while len(names := {path[depth] if len(path) > depth + 1 else "" for path in paths}) == 1 and "" not in names:
            depth += 1
        if len(names) > 1 and "" not in names:
            splits = {name.split for each in names if (name := parse_split_name(each)) and name.exact}
            are_splits = len(splits) == len(names) and not layout.splits
            kind: NoteKind = "split-folders" if are_splits else "nested-classes"
            reason = f"one class with the subfolders {list_some(sorted(names), 3)}"
            reason += ", which are splits if you name this folder instead" if are_splits else ""
            yield SourceNote(kind, prefix + "/".join(folder), reason)


def _note_copied_folders(listing: SourceListing) -> Iterator[SourceNote]:
    """Yield a note for each class folder whose images also exist next to it: ``set/cat/1.jpg`` and ``cat/1.jpg``."""
    items = {item.path: item for item in listing.items}
    by_class: dict[tuple[str, Split | None], list[str]] = defaultdict(list)
    for item in listing.items:
        by_class[item.label, item.split].append(item.path)
    for folder in listing.classes:
        images = [path for path in by_class[folder.label, folder.split] if path.startswith(f"{folder.path}/")]
        above = folder.path.rpartition("/")[0]
        twins = {path: f"{above}{path[len(folder.path) :]}".lstrip("/") for path in images}
        copies = sorted(path for path, twin in twins.items() if twin in items)
        if 2 * len(copies) > len(images) and all("/" in path[len(folder.path) + 1 :] for path in images):
            samples = [(items[path], items[twins[path]]) for path in copies[:3]]
            if any(_is_equal(item, twin) for item, twin in samples):  # otherwise the names are equal by chance
                yield SourceNote("copied-folders", folder.path, f"has {twins[copies[0]]} too")


def _is_equal(item: SourceItem, twin: SourceItem) -> bool:
    with suppress(ImageError, DataError):
        return bytes(item.store.read(item.key)) == bytes(twin.store.read(twin.key))
    return False


def _note_masks(listing: SourceListing) -> Iterator[SourceNote]:
    """Yield a note for each class folder if the folders look like the images and masks of a segmentation data set."""
    images = (item for item in listing.items if is_image_name(item.key) or not PurePosixPath(item.key).suffix)
    labels = {item.label.casefold() for item in images}
    others = labels - IMAGE_FOLDERS - MASK_FOLDER_NAMES
    if labels & IMAGE_FOLDERS and labels & MASK_FOLDER_NAMES and others <= {OBJECT_FOLDER}:
        folders = (c for c in listing.classes if c.label.casefold() in labels)  # others have no images
        yield from (SourceNote("mask-folders", c.path, f"read as the class {c.label!r}") for c in folders)


def _unexpected_folders_message(name: str, layout: FolderLayout) -> str:
    """Return the error message for unexpected folders next to the splits."""
    unexpected = sorted(layout.unexpected)
    splits = ", ".join(sorted(set(layout.splits) - layout.unlabeled))
    misspelled = [f"{top!r} ({_describe_unexpected(top)})" for top in unexpected if suggest_split(top)]
    return (
        f"{name} has {', '.join(unexpected)} next to {splits}: expected only splits (train, validation, test) there. "
        f"Rename or move {misspelled[0] if misspelled else repr(unexpected[0])}, ignore such folders with "
        "--allow unexpected-folder, or read all of these folders as classes with --allow split-folders."
    )


def _describe_unexpected(name: str) -> str:
    suggestion = suggest_split(PurePosixPath(name).name)
    return f"did you mean {suggestion!r}?" if suggestion else "is next to the splits"
