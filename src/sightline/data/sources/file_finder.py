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
    """Resolves a cell to a file in `store`: by its path or the end of it, also without extension or with backslashes.

    Neither case nor the Unicode form of a name matters, and a name may be percent-encoded as in an address.
    Where a name is in the folders of several splits, as in ``train/1.jpg`` and ``test/1.jpg``, that of `split` is
    meant. In a list of some `images`, a cell names one of these alone, also by its folder and name with others above.
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
        """Return the file whose path begins with the folders around the store: ``set/1.jpg`` of ``/home/me/set``."""
        parts = PurePosixPath(text).parts
        keys = ("/".join(parts[n:]) for n in range(1, len(parts)) if parts[:n] == self._around[-n:])
        return next((key for key in keys if self._contains(key)), None)

    def _find_by_suffix(self, text: str) -> str | None:
        """Return the file that has the longest end in common with a path from elsewhere, or an address.

        A path is from elsewhere if it is absolute, or begins with ``..``. A name alone is not enough if the path names
        a folder that is here, from which its file is missing: ``/home/me/dog/1.jpg`` is not ``cat/1.jpg``.
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
        """Return the files by their paths and the ends of these, None where ambiguous; built at the first lookup."""
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

    def is_file(self, text: str) -> bool:
        """Return whether a cell names an image; after a ``#``, which may begin a comment, only if it exists."""
        return (is_image_name(text) and not text.startswith("#")) or self.find(text) is not None


def _list_spellings(text: str) -> Iterator[str]:
    """Yield a cell as it is, then with slashes, then decoded as an address, of which the query is left out."""
    yield text
    if "\\" in text:
        yield PureWindowsPath(text).as_posix()
    if "://" in text:
        text = re.split("[?#]", text)[0]
        yield text
    if "%" in text:
        yield unquote(text)


def _index_ends(keys: Iterable[str]) -> dict[str, str | None]:
    """Return the files by each end of their path, such as ``cat/1.jpg`` of ``images/cat/1.jpg``, None if ambiguous.

    A whole path is not: it is that of the file itself, not the end of another one.
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
