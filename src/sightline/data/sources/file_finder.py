"""Resolve the cells of a table to files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath

from sightline.data.sources.filenames import IMAGE_SUFFIXES, is_hidden, is_image_name
from sightline.data.sources.table import TABLE_SUFFIXES
from sightline.data.storage import FileStore


@dataclass(slots=True)
class FileFinder:
    """Resolves a cell to a file in `store`, also without its extension, with backslashes or in a subfolder."""

    store: FileStore
    _keys_by_name: dict[str, str | None] = field(default_factory=dict)

    def find(self, text: str) -> str | None:
        """Return the key of the file, or None if no file or more than one matches."""
        if not text or text in {".", ".."}:
            return None
        for name in dict.fromkeys((text, PureWindowsPath(text).as_posix() if "\\" in text else text)):
            if self.store.contains(name):
                return name
            key = self._index_names().get(name.removeprefix("./").casefold())
            if key is not None:
                return key
        return self._find_by_suffix(text)

    def _find_by_suffix(self, text: str) -> str | None:
        """Return the file that ends an absolute path from another machine."""
        path = PureWindowsPath(text)  # accepts both kinds of slashes
        if not path.root:
            return None
        suffixes = ("/".join(path.parts[start:]) for start in range(1, len(path.parts)))
        return next((suffix for suffix in suffixes if self.store.contains(suffix)), None)

    def _index_names(self) -> dict[str, str | None]:
        """Return the files by each shorter name, None where it is ambiguous; built at the first lookup."""
        if not self._keys_by_name:
            self._keys_by_name[""] = None
            keys = self.store.keys()
            for key in keys:
                if is_hidden(key) or key.lower().endswith(TABLE_SUFFIXES):
                    continue
                path = PurePosixPath(key)
                names = {key, path.name}
                if path.suffix.lower() in IMAGE_SUFFIXES:
                    names |= {str(path.with_suffix("")), path.stem}
                for name in names:
                    folded_name = name.casefold()
                    self._keys_by_name[folded_name] = None if self._keys_by_name.get(folded_name, key) != key else key
        return self._keys_by_name

    def is_file(self, text: str) -> bool:
        """Return whether a cell names an image."""
        return is_image_name(text) or self.find(text) is not None
