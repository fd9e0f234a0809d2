"""Resolve the cells of a table to files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath

from sightline.data.sources.filenames import PICTURE_SUFFIXES, is_hidden, is_picture_name
from sightline.data.sources.table import SUFFIXES
from sightline.data.stores import FileStore


@dataclass(slots=True)
class Finder:
    """Resolves a cell to a file in `store`, also without its extension, with backslashes or in a subfolder."""

    store: FileStore
    _names: dict[str, str | None] = field(default_factory=dict)

    def find(self, text: str) -> str | None:
        """Return the key of the file, or None if no file or more than one matches."""
        if not text or text in {".", ".."}:
            return None
        for name in dict.fromkeys((text, PureWindowsPath(text).as_posix() if "\\" in text else text)):
            if self.store.holds(name):
                return name
            key = self._all().get(name.removeprefix("./").casefold())
            if key is not None:
                return key
        return self._at_home_elsewhere(text)

    def _at_home_elsewhere(self, text: str) -> str | None:
        """Return the file that ends an absolute path from another machine."""
        path = PureWindowsPath(text)  # accepts both kinds of slashes
        if not path.root:
            return None
        ends = ("/".join(path.parts[at:]) for at in range(1, len(path.parts)))
        return next((end for end in ends if self.store.holds(end)), None)

    def _all(self) -> dict[str, str | None]:
        """Return the files by each shorter name, None where it is ambiguous; built at the first lookup."""
        if not self._names:
            self._names[""] = None
            keys = self.store.keys()
            for key in keys:
                if is_hidden(key) or key.lower().endswith(SUFFIXES):
                    continue
                path = PurePosixPath(key)
                names = {key, path.name}
                if path.suffix.lower() in PICTURE_SUFFIXES:
                    names |= {str(path.with_suffix("")), path.stem}
                for name in names:
                    folded = name.casefold()
                    self._names[folded] = None if self._names.get(folded, key) != key else key
        return self._names

    def is_file(self, text: str) -> bool:
        """Return whether a cell names an image."""
        return is_picture_name(text) or self.find(text) is not None
