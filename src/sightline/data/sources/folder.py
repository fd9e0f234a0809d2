"""Read classes and splits from the folder and file names in a folder or an archive."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from sightline.config import DataConfig
from sightline.data.sources.file_labels import compile_pattern, label_of_name, say_classes
from sightline.data.sources.filenames import is_hidden, is_picture_name
from sightline.data.sources.listing import ClassFolder, Entry, Listing
from sightline.data.sources.splits import nearest_split
from sightline.data.sources.tree import SPLIT_FOLDERS, Path, Tree, read_tree
from sightline.data.stores import FileStore
from sightline.errors import DataError, plural
from sightline.records import Part, Reject, Remark

STRAY, SHALLOW = "is not in a class folder", "is above the level of the class folders"
NAMELESS = "has no label in its name"
CLASSLESS = frozenset({STRAY, SHALLOW, NAMELESS})
"""Reasons for rejecting a file that can be read but has no class."""
UNEXPECTED_FOLDER = "unexpected-folder"
MASK_FOLDERS = "mask-folders"
_IMAGES = {"images", "image", "imgs", "img", "jpegimages", "rgb"}
_MASKS = {"masks", "mask", "labels", "label", "annotations", "annotation", "segmentations", "gt", "groundtruth"}
DEFAULTS = DataConfig()
Label = Callable[[str], str | None]


def class_folders(
    store: FileStore,
    prefix: str = "",
    folders: Sequence[str] = (),
    options: DataConfig = DEFAULTS,
    *,
    lenient: bool = False,
) -> Listing:
    """Read classes from folder names, and splits from ``train/``, ``validation/`` or ``test/`` folders above them.

    Outer folders that hold everything else (``archive/dataset/train/...``) are skipped. `folders` are all known
    folders, including empty ones. Without class folders, classes are read from file names if those are unambiguous.
    Raises `DataError` for other folders next to the splits, unless `lenient` or allowed by `options`.
    """
    paths = visible(store)
    telling = [p for k, p in paths.items() if is_picture_name(k)] or list(paths.values())  # skips a README
    if options.label_pattern:
        return by_name(store, prefix, telling, compile_pattern(options.label_pattern))
    as_classes, level = SPLIT_FOLDERS in options.allow, options.class_level
    tree = read_tree(telling, as_classes=as_classes, level=level is not None)
    if tree.flat and level is None and (names := _names_that_say_classes(telling)):
        return by_name(store, prefix, telling, label_of_name, names)
    above = prefix + "".join(f"{folder}/" for folder in tree.wrapper)
    remarks = [*(replace(r, path=above + r.path) for r in tree.remarks), *_left_out(tree, paths, prefix)]
    if tree.unexpected and not (lenient or UNEXPECTED_FOLDER in options.allow):
        raise DataError(_unexpected_fault(store.name, tree))
    remarks += [Remark(UNEXPECTED_FOLDER, above + top, _meant(top)) for top in sorted(tree.unexpected)]
    listing = _list(store, prefix, tree, folders, level)
    if level is None and not any(r.kind == SPLIT_FOLDERS for r in remarks):
        remarks += _nested(tree, telling, prefix)
    listing.remarks.extend([*remarks, *([] if MASK_FOLDERS in options.allow else _masks(listing))])
    return listing


def is_flat(store: FileStore) -> bool:
    """Return whether a store has no class folders, so that labels must come from elsewhere."""
    paths = visible(store)
    return read_tree([p for k, p in paths.items() if is_picture_name(k)] or list(paths.values())).flat


def visible(store: FileStore) -> dict[str, Path]:
    """Return the path components of each file that is not hidden, by its key."""
    keys = store.keys()
    return {key: PurePosixPath(key).parts for key in keys if not is_hidden(key)}


def _list(store: FileStore, prefix: str, tree: Tree, folders: Sequence[str], level: int | str | None) -> Listing:
    """List the entries, the class folders and the remaining files."""
    listing = Listing([])
    classes: dict[tuple[Part | None, str], ClassFolder] = {}
    depth = 1 if level in (None, "leaf") else int(level or 1)

    def class_of(path: Path, *, is_folder: bool = False) -> ClassFolder | None:
        placed = tree.place((*path, "") if is_folder else path)
        if placed is None:
            return None
        split, below = placed
        at = len(below) - 2 if level == "leaf" else depth - 1
        if at < 0 or len(below) < at + 2 or (is_folder and len(below) != at + 2):
            return None
        label = unicodedata.normalize("NFC", below[at])  # macOS decomposes accented characters
        folder = path[: len(path) - len(below) + at + 1 + is_folder]
        return classes.setdefault((split, "/".join(folder)), ClassFolder(prefix + "/".join(folder), label, split))

    for key, path in visible(store).items():
        if (own := class_of(path)) is not None:
            listing.entries.append(Entry(store, key, prefix + key, own.label, own.part))
        elif is_picture_name(key):
            if tree.is_unlabeled(path):
                listing.unlabeled.append(prefix + key)
            else:
                listing.stray.append(Reject(prefix + key, STRAY if depth == 1 else SHALLOW))
    for folder in folders:
        if not is_hidden(folder) and level != "leaf":
            class_of(PurePosixPath(folder).parts, is_folder=True)
    _pass_over_rest(listing, store, prefix)
    listing.classes.extend(classes.values())
    return listing


def _pass_over_rest(listing: Listing, store: FileStore, prefix: str) -> None:
    taken = {e.path for e in listing.entries} | {r.path for r in listing.stray} | set(listing.unlabeled)
    keys = store.keys()
    listing.passed_over.extend(prefix + key for key in keys if prefix + key not in taken)


def by_name(
    store: FileStore, prefix: str, telling: Sequence[Path], label: Label, unasked: Sequence[str] = ()
) -> Listing:
    """List images with labels from their names; `unasked` are the classes if the user gave no pattern.

    A split without any labeled image is left out.
    """
    tree = read_tree(telling, by_folder=False)
    listing = Listing([])
    unlabeled: dict[Part | None, list[str]] = defaultdict(list)
    for key, path in visible(store).items():
        placed = tree.place(path)
        text = label(key) if is_picture_name(key) or not unasked else None
        if placed is not None and text and (not unasked or text in unasked):
            listing.entries.append(Entry(store, key, prefix + key, text, placed[0]))
        elif is_picture_name(key):
            unlabeled[placed[0] if placed else None].append(prefix + key)
    if not listing.entries and telling:
        raise DataError(
            f"data.label_pattern matches none of the {plural(len(telling), 'image')} in {store.name}, the first of "
            f"which is {'/'.join(min(telling))}. It is matched against the file name, or the path if it contains a /."
        )
    labeled = {e.part for e in listing.entries}
    for split, keys in unlabeled.items():
        if split in {None, "train", *labeled}:
            listing.stray.extend(Reject(key, NAMELESS) for key in keys)
        else:
            listing.unlabeled.extend(keys)
            folder = "/".join(PurePosixPath(keys[0].removeprefix(prefix)).parts[: len(tree.wrapper) + 1])
            listing.remarks.append(Remark("unlabeled", prefix + folder, plural(len(keys), "image")))
    _pass_over_rest(listing, store, prefix)
    counts: dict[str, str] = {}
    for e in listing.entries:
        counts.setdefault(e.label, e.path)
    listing.remarks.extend(Remark("labels-from-names", c, f"such as {path}") for c, path in sorted(counts.items()))
    return listing


def _names_that_say_classes(telling: Sequence[Path]) -> list[str]:
    """Return the classes in the names of the training images, else of all images; empty if ambiguous."""
    tree = read_tree(telling, by_folder=False)
    placed = [("/".join(p), at[0]) for p in telling if (at := tree.place(p)) is not None]
    train = [path for path, split in placed if split in (None, "train")]
    return sorted({label_of_name(path) or "" for path in train}) if say_classes(train) else []


def _left_out(tree: Tree, paths: Mapping[str, Path], prefix: str) -> Iterator[Remark]:
    depth = len(tree.wrapper)
    for top in sorted(tree.unlabeled):
        count = sum(tree.is_unlabeled(p) and p[depth] == top and is_picture_name(key) for key, p in paths.items())
        yield Remark("unlabeled", prefix + "/".join((*tree.wrapper, top)), plural(count, "image"))


def _nested(tree: Tree, telling: Sequence[Path], prefix: str) -> Iterator[Remark]:
    """Yield a remark for each class folder whose images are all in two or more subfolders."""
    held: dict[Path, set[str]] = defaultdict(set)
    for path in telling:
        placed = tree.place(path)
        if placed is not None and len(placed[1]) > 1:
            below = placed[1]
            folder = path[: len(path) - len(below) + 1]
            held[folder].add(below[1] if len(below) > 2 else "")
    for folder, names in sorted(held.items()):
        if len(names) > 1 and "" not in names:
            some = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            yield Remark("nested-classes", prefix + "/".join(folder), f"one class with the subfolders {some}")


def _masks(listing: Listing) -> Iterator[Remark]:
    """Yield a remark for each class folder if they look like the images and masks of a segmentation data set."""
    labels = {c.label.casefold() for c in listing.classes}
    if labels & _IMAGES and labels & _MASKS and labels <= _IMAGES | _MASKS:
        yield from (Remark(MASK_FOLDERS, c.path, f"read as the class {c.label!r}") for c in listing.classes)


def _unexpected_fault(name: str, tree: Tree) -> str:
    """Return the error message for unexpected folders next to the splits."""
    others = sorted(tree.unexpected)
    splits = ", ".join(sorted(set(tree.splits) - tree.unlabeled))
    meant = [f"{top!r} ({_meant(top)})" for top in others if nearest_split(top)]
    return (
        f"{name} has {', '.join(others)} next to {splits}: expected only splits (train, validation, test) there. "
        f"Rename or move {meant[0] if meant else repr(others[0])}, ignore such folders with "
        f"--allow {UNEXPECTED_FOLDER}, or read all of these folders as classes with --allow {SPLIT_FOLDERS}."
    )


def _meant(name: str) -> str:
    near = nearest_split(PurePosixPath(name).name)
    return f"did you mean {near!r}?" if near else "is next to the splits"
