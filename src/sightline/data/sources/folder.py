"""Classes and splits from the names of folders."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from sightline.data.sources.filenames import PART_NAMES, is_hidden, is_picture_name
from sightline.data.sources.listing import ClassFolder, Entry, Listing
from sightline.data.stores import FileStore
from sightline.errors import DataError
from sightline.records import Reject


def class_folders(store: FileStore, prefix: str = "", folders: Sequence[str] = (), *, lenient: bool = False) -> Listing:
    """Read classes from folder names, parts from ``train/ validation|valid|val/ test/`` above them.

    Folders that merely wrap the rest (``archive/dataset/train/...``) are looked through. `folders` are those known,
    empty ones too. Raises `DataError` for folders beside the parts, unless it is `lenient`.
    """
    listed = store.keys()
    paths = {k: PurePosixPath(k).parts for k in listed if not is_hidden(k)}
    telling = [p for k, p in paths.items() if is_picture_name(k)] or list(paths.values())  # a README says nothing
    wrapper = _wrapper(telling)
    has_parts, unexpected = _parts([p[len(wrapper) :] for p in telling])
    if unexpected and not lenient:
        raise DataError(_unexpected_fault(store.name, has_parts, unexpected))
    level = 1 if has_parts else 0
    entries, stray = [], []
    classes: dict[tuple[str, ...], ClassFolder] = {}

    def meet(inner: tuple[str, ...]) -> ClassFolder:
        part = PART_NAMES[inner[0].lower()] if has_parts else None
        label = unicodedata.normalize("NFC", inner[level])  # macOS writes names apart that others write as one
        return classes.setdefault(inner[: level + 1], ClassFolder(prefix + "/".join(inner[: level + 1]), label, part))

    for key, path in paths.items():
        inner = path[len(wrapper) :] if path[: len(wrapper)] == wrapper else ()
        if len(inner) >= level + 2 and (not has_parts or inner[0].lower() in PART_NAMES):
            folder = meet(inner)
            entries.append(Entry(store, key, prefix + key, folder.label, folder.part))
        elif is_picture_name(key):
            stray.append(Reject(prefix + key, "lies in no class folder"))
    for path in (PurePosixPath(f).parts for f in folders if not is_hidden(f)):
        inner = path[len(wrapper) :] if path[: len(wrapper)] == wrapper else ()
        if len(inner) == level + 1 and (not has_parts or inner[0].lower() in PART_NAMES):
            meet(inner)
    taken = {e.path for e in entries} | {r.path for r in stray}
    others = [prefix + key for key in listed if prefix + key not in taken]
    return Listing(entries, stray, others, list(classes.values()), sorted(unexpected))


def _wrapper(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the leading folders that all paths share and that are neither a part nor a class."""
    wrapper: tuple[str, ...] = ()
    while paths:
        depth = len(wrapper)
        deeper = [p for p in paths if len(p) > depth + 1]
        first = {p[depth] for p in deeper}
        if len(first) != 1 or min(first).lower() in PART_NAMES or min(len(p) for p in deeper) < depth + 3:
            break
        wrapper = (*wrapper, min(first))
    return wrapper


def _parts(paths: Sequence[tuple[str, ...]]) -> tuple[list[str], dict[str, int]]:
    """Return the top folders that are parts, and the others beside them with the greatest depth below each."""
    tops: dict[str, int] = {}
    for p in paths:
        if len(p) > 1:
            tops[p[0]] = max(tops.get(p[0], 0), len(p))
    named = sorted(t for t in tops if t.lower() in PART_NAMES and tops[t] > 2)  # part/class/file
    return named, {t: depth for t, depth in tops.items() if t not in named} if named else {}


def _unexpected_fault(name: str, parts: Sequence[str], others: Mapping[str, int]) -> str:
    """Say what is wrong with folders beside the parts."""
    first = min(others)
    if any(depth > 2 for depth in others.values()):
        return (
            f"{name} holds {', '.join(parts)} beside {', '.join(sorted(others))}: expected only train, validation "
            f"(or valid, val) and test there. Rename or move {first!r}."
        )
    return (
        f"{name} holds the part {parts[0]!r} beside {first!r}, which has no class folders. "
        "Move the pictures into class folders of a part."
    )
