"""Resolve the cells of a table to files."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath
from urllib.parse import unquote

from sightline.data.sources.filenames import IMAGE_SUFFIXES, fold_name, is_hidden, is_image_name
from sightline.data.sources.split_names import find_folder_split
from sightline.data.sources.table import TABLE_SUFFIXES
from sightline.data.storage import FileStore
from sightline.data.types import Split


@dataclass(slots=True)
class FileFinder:
    """Resolves a table cell to a file in `store`, by its path or the end of its path.

    The extension may be missing, slashes may be backslashes, case and Unicode form do not matter, and names may be
    percent-encoded as in an address. If several splits have a file of the same name, as in ``train/1.jpg`` and
    ``test/1.jpg``, the file of `split` is used. With `images`, only these files are matched, even if other folders
    precede the folder and name in the cell.
    """

    store: FileStore
    split: Split | None = None
    images: Collection[str] | None = None
    _keys_by_name: dict[str, str | None] = field(default_factory=dict)
    _folders: set[str] = field(default_factory=set)
    _around: tuple[str, ...] = ()

    def find(self, text: str) -> str | None:
        """Return the key of the file, or None if no file or more than one matches."""
        if not text or text in {".", ".."}:
            return None
        spellings = list(dict.fromkeys(_list_spellings(text)))
        for name in spellings:
            if self._contains(name):
                return name
            key = self._index_names().get(fold_name(name.removeprefix("./")))
            if key is not None:
                return key
        if "/" not in text and "\\" not in text:
            return None
        finds = (find(name) for name in spellings for find in (self._find_from_above, self._find_by_suffix))
        return next((key for key in finds if key is not None), None)

    def _contains(self, key: str) -> bool:
        return self.store.contains(key) if self.images is None else key in self.images

    def _find_from_above(self, text: str) -> str | None:
        """Return the file for a path from a folder above the store: ``set/1.jpg`` if the store is ``/home/me/set``."""
        parts = PurePosixPath(text).parts
        keys = ("/".join(parts[n:]) for n in range(1, len(parts)) if parts[:n] == self._around[-n:])
        return next((key for key in keys if self._contains(key)), None)

    def _find_by_suffix(self, text: str) -> str | None:
        """Return the file that shares the longest end with an external path or an address.

        A path is external if it is absolute or begins with ``..``. The name alone is not enough if the path names a
        folder that exists here but lacks the file: ``/home/me/dog/1.jpg`` does not match ``cat/1.jpg``.
        """
        path = PureWindowsPath(text)  # accepts both kinds of slashes
        is_foreign = bool(path.root) or "://" in text or path.parts[:1] == ("..",)
        if not is_foreign and self.images is None:
            return None
        for start in range(1, len(path.parts) - (not is_foreign)):
            suffix = "/".join(path.parts[start:])
            key = suffix if self._contains(suffix) else self._index_names().get(fold_name(suffix))
            if key is not None or fold_name(suffix) in self._index_names():
                folder = fold_name(path.parts[start - 1])
                is_elsewhere = "/" not in suffix and folder in self._folders
                return None if key and is_elsewhere and folder not in fold_name(key).split("/")[:-1] else key
        return None

    def _index_names(self) -> dict[str, str | None]:
        """Map paths and ends of paths to files, None if ambiguous; built at the first lookup."""
        if not self._keys_by_name:
            stored = self.store.keys() if self.images is None else self.images
            keys = [key for key in stored if not is_hidden(key) and not key.lower().endswith(TABLE_SUFFIXES)]
            preferred = [key for key in keys if self.split is not None and find_folder_split(key) == self.split]
            root = getattr(self.store, "root", None)
            around = PurePosixPath(self.store.name.partition(".")[0]) if root is None else root.resolve()
            self._around = around.parts
            self._folders.update(fold_name(name) for key in keys for name in key.split("/")[:-1])
            self._keys_by_name = {"": None} | _index_ends(keys) | _index_ends(preferred)
        return self._keys_by_name

    def is_ambiguous(self, text: str) -> bool:
        """Return whether the end of more than one path matches a cell for which `find` returns None."""
        names = map(fold_name, _list_spellings(text.removeprefix("./")))
        return bool(text) and any(name in self._index_names() for name in names)

    def is_file(self, text: str) -> bool:
        """Return whether a cell names an image; after ``#``, which may begin a comment, only if the file exists."""
        return (is_image_name(text) and not text.startswith("#")) or self.find(text) is not None


def _list_spellings(text: str) -> Iterator[str]:
    """Yield a cell unchanged, with forward slashes, without the query of an address, and percent-decoded."""
    yield text
    if "\\" in text:
        yield PureWindowsPath(text).as_posix()
    if "://" in text:
        text = re.split("[?#]", text)[0]
        yield text
    if "%" in text:
        yield unquote(text)


def _index_ends(keys: Iterable[str]) -> dict[str, str | None]:
    """Map each end of a path to its file, such as ``cat/1.jpg`` to ``images/cat/1.jpg``; None if ambiguous.

    A whole path is never ambiguous: it means the file itself, even if another path ends the same way.
    """
    paths: dict[str, str | None] = {}
    ends: dict[str, str | None] = {}
    for key in keys:
        path = PurePosixPath(key)
        names = [key, str(path.with_suffix(""))] if path.suffix.lower() in IMAGE_SUFFIXES else [key]
        for name in map(fold_name, names):
            paths[name] = None if paths.get(name, key) != key else key
            while name := name.partition("/")[2]:
                ends[name] = None if ends.get(name, key) != key else key
    return ends | paths
