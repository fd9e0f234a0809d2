"""Read images with masks: a folder of images, a folder of masks, and a table that names the mask values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Literal

from sightline.data.masks import CLASSES_FILES, MaskClasses, describe_masks, read_mask_classes
from sightline.data.sources.class_masks import IMAGE_FOLDERS, MASK_FOLDER_NAMES
from sightline.data.sources.filenames import is_image_name
from sightline.data.sources.folder import list_visible
from sightline.data.sources.folder_layout import PathParts
from sightline.data.sources.listing import MaskFile, SourceItem, SourceListing
from sightline.data.sources.split_names import find_folder_split
from sightline.data.storage import FileStore, read_file, read_untrusted_file
from sightline.data.types import SourceNote, UnreadableImage
from sightline.errors import DataError, ImageError

Role = Literal["image", "mask"]
_SUFFIXES = ("", "_mask", "_L", "_gt", "_segmentation")
"""Suffixes of mask names after the image name; ``_L`` is from CamVid's original release, the last from ISIC."""
_CAMVID_FOLDERS: Mapping[str, Role] = {
    "701_stillsraw_full": "image",
    "labeledapproved_full": "mask",
}
_BESIDE_IMAGES = ("annot", "_annot", "_labels", "_masks")
"""Suffixes of mask folders after the name of the image folder next to them: ``train`` and ``trainannot``."""

PairKey = tuple[tuple[str, ...], str]
"""Equal for an image and its mask."""


def read_mask_folders(
    store: FileStore, paths: Mapping[str, PathParts], prefix: str = "", folder: Path | None = None
) -> SourceListing | None:
    """List the images of ``images/`` with their masks in ``masks/``, as a whole or in each split; None without any.

    Files are paired by name: ``images/1.jpg`` with ``masks/1.png`` or ``masks/1_mask.png``. ``classes.csv``, in the
    store or beside `folder`, names the values of the masks; without it, masks have no meaning, and None is returned.
    Images with the same name, such as ``0.jpg`` and ``0.png``, are left out, as are images with two masks. Folders
    named like splits may be above or below those two. `paths` are the visible files of the store, split into parts.
    Raises `DataError` for a table that cannot be used.
    """
    images, masks = _group_by_pair(paths)
    pairs = {pair: candidate for pair in images if (candidate := _find_mask(pair, masks)) is not None}
    if not pairs or (table := _find_classes(store, folder)) is None:
        return None
    classes = read_mask_classes(*table)
    listing = SourceListing([])
    for pair, keys in images.items():
        mask_keys = masks[pairs[pair]] if pair in pairs else []
        for key in keys:
            path = prefix + key
            if not mask_keys:
                listing.unusable.append(UnreadableImage(path, "has no mask"))
                listing.notes.append(SourceNote("missing-masks", path))
            elif len(keys) == len(mask_keys) == 1:
                mask = MaskFile(mask_keys[0], prefix + mask_keys[0], classes)
                listing.items.append(SourceItem(store, key, path, "", find_folder_split(key), mask=mask))
            else:
                reason = _describe_ambiguity([prefix + other for other in keys if other != key], prefix, mask_keys)
                listing.unusable.append(UnreadableImage(path, reason))
                listing.notes.append(SourceNote("ambiguous-masks", path, reason))
    unused = sorted(key for pair in masks.keys() - set(pairs.values()) for key in masks[pair])
    listing.notes.extend(SourceNote("unused-masks", prefix + key) for key in unused)
    used = {key for keys in (*images.values(), *masks.values()) for key in keys}
    used.add(table[1].removeprefix(f"{store.name}/"))
    listing.skipped_files.extend(prefix + key for key in store.keys() if key not in used)  # noqa: SIM118  # a method
    several = describe_masks(listing.items[0].path, len(listing.items)) if listing.items else ""
    return replace(listing, several_labels=several)


def _describe_ambiguity(others: Sequence[str], prefix: str, mask_keys: Sequence[str]) -> str:
    """Explain why the mask of an image is ambiguous."""
    masks = " and ".join(prefix + key for key in mask_keys)
    if len(mask_keys) > 1:
        return f"has {len(mask_keys)} masks, {masks}"
    return f"has the name of {' and '.join(others)}, so {masks} may be the mask of either"


def _group_by_pair(paths: Mapping[str, PathParts]) -> tuple[dict[PairKey, list[str]], dict[PairKey, list[str]]]:
    """Return the keys of the images and those of the masks in folders of either."""
    paths = {key: parts for key, parts in paths.items() if is_image_name(key)}
    folders = {parts[:depth] for parts in paths.values() for depth in range(1, len(parts))}
    roles = {parts: _find_role(parts, folders) for parts in {parts[:-1] for parts in paths.values()}}
    groups: dict[Role, dict[PairKey, list[str]]] = {"image": {}, "mask": {}}
    for key, parts in paths.items():
        if (role_of_folder := roles[parts[:-1]]) is not None:
            role, others = role_of_folder
            groups[role].setdefault((others, PurePosixPath(parts[-1]).stem), []).append(key)
    return groups["image"], groups["mask"]


def _find_role(parts: tuple[str, ...], folders: AbstractSet[tuple[str, ...]]) -> tuple[Role, tuple[str, ...]] | None:
    """Return whether a folder contains images or masks, by the first folder of its path with a role, and a pair key."""
    for depth in range(len(parts)):
        role, folder = _get_role(parts[: depth + 1], folders)
        if role is not None:
            return role, (*parts[:depth], *folder, *parts[depth + 1 :])
    return None


def _get_role(folder: tuple[str, ...], folders: AbstractSet[tuple[str, ...]]) -> tuple[Role | None, tuple[str, ...]]:
    """Return whether a folder contains images or masks, and its part of the pair key, such as ``train``, if any."""
    *above, name = folder
    lower = name.casefold()
    if lower in IMAGE_FOLDERS:
        return "image", ()
    if lower in MASK_FOLDER_NAMES:
        return "mask", ()
    if lower in _CAMVID_FOLDERS:
        return _CAMVID_FOLDERS[lower], ()
    for suffix in _BESIDE_IMAGES:
        if lower.endswith(suffix) and (*above, name[: -len(suffix)]) in folders:
            return "mask", (name[: -len(suffix)],)
        if any((*above, name + spelling) in folders for spelling in (suffix, suffix.title(), suffix.upper())):
            return "image", (name,)
    return None, ()


def _find_mask(pair: PairKey, masks: Mapping[PairKey, Sequence[str]]) -> PairKey | None:
    folders, stem = pair
    candidates: list[PairKey] = [(folders, stem + suffix) for suffix in _SUFFIXES]
    return next((candidate for candidate in candidates if candidate in masks), None)


def find_classes_file(store: FileStore) -> tuple[bytes, str] | None:
    """Return the content and the name of the topmost class table in `store`; None if there is none."""
    names = {key: PurePosixPath(key).name.casefold() for key in list_visible(store)}
    keys = [key for key, name in names.items() if name in CLASSES_FILES]
    if not keys:
        return None
    key = min(keys, key=lambda key: (key.count("/"), CLASSES_FILES.index(names[key]), key))
    return read_file(store, key), f"{store.name}/{key}"


def _find_classes(store: FileStore, folder: Path | None) -> tuple[bytes, str] | None:
    table = find_classes_file(store)
    if table is None and folder is not None:
        for name in CLASSES_FILES:
            path = folder.resolve().parent / name
            with suppress(ImageError):
                return read_untrusted_file(path), str(path)
    return table


def find_mask_classes(entries: Sequence[SourceItem]) -> MaskClasses | None:
    """Return the meaning of the mask values; raises `DataError` if it differs between sources."""
    masks = {id(entry.mask.classes): entry.mask for entry in entries if entry.mask is not None}
    first, *others = masks.values() if masks else [None]
    for other in others:
        if first is not None and other is not None and other.classes != first.classes:
            raise DataError(
                f"The values of the masks {first.path} and {other.path} have different classes: give both sources the "
                "same classes.csv."
            )
    return None if first is None else first.classes
