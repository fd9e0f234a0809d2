"""Where the bytes of images come from: a folder, or arrays in memory; archives are in `archives`.

A store lists its files by relative path and reads one of them; reading is safe from several threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sightline.config import LimitsConfig
from sightline.errors import DataError, PictureError
from sightline.files import open_regular

LIMITS = LimitsConfig()
START = 128  # bytes that tell what a file is
Check = Callable[[bytes], object]
"""Is given the first bytes of a file before the others are read; raises `PictureError` to have them left unread."""


def unchecked(_start: bytes) -> None:
    """Let any file be read."""


class Store(Protocol):
    """A set of files or arrays, each known by a key."""

    name: str

    def read(self, key: str, check: Check = unchecked) -> bytes | NDArray[np.uint8]:
        """Return the content of one file; raises `PictureError` with the reason if it cannot be read."""


class FileStore(Store, Protocol):
    """A store of files, which can be listed."""

    def keys(self) -> Sequence[str]:
        """Return the relative paths, with ``/`` between folders, sorted."""

    def holds(self, key: str) -> bool:
        """Tell whether there is a file of this relative path."""


class FolderStore:
    """The files below a folder, as they are when it is first listed; links to folders are followed, once each."""

    repeated: tuple[str, ...] = ()

    def __init__(self, root: Path, limits: LimitsConfig = LIMITS) -> None:
        self.root = root
        self._limits = limits
        self.name = root.resolve().name
        self._listed: tuple[list[str], list[str]] | None = None

    def keys(self) -> Sequence[str]:
        return self._list()[0]

    def folders(self) -> Sequence[str]:
        """Return the relative paths of the folders, empty ones too, sorted."""
        return self._list()[1]

    def _list(self) -> tuple[list[str], list[str]]:
        """Return the files and the folders; walked once, as that takes long over a network."""
        if self._listed is None:
            walked = list(self._walk())
            files = sorted((folder / f).as_posix() for folder, names in walked for f in names)
            self._listed = files, sorted(folder.as_posix() for folder, _ in walked if folder.parts)
        return self._listed

    def holds(self, key: str) -> bool:
        try:
            return (self.root / key).is_file()
        except (OSError, ValueError):  # too long a name; a null character
            return False

    def _walk(self) -> Iterator[tuple[Path, list[str]]]:
        """Yield each folder, relative to the root, with the names of its files."""
        seen: set[str] = set()

        def fail(error: OSError) -> None:
            raise DataError(f"Cannot list the folder {error.filename}: {error.strerror}.")

        for folder, subfolders, files in os.walk(self.root, followlinks=True, onerror=fail):
            subfolders.sort()  # which of two links to one folder is followed must not depend on the disk
            real = os.path.realpath(folder)
            if real in seen:
                subfolders.clear()
                continue
            seen.add(real)
            yield Path(folder).relative_to(self.root), files

    def read(self, key: str, check: Check = unchecked) -> bytes:
        return read_file(self.root / key, self._limits, check)


def read_file(path: Path, limits: LimitsConfig = LIMITS, check: Check = unchecked) -> bytes:
    """Return the content of a file that may come from anywhere; raises `PictureError` with the reason if it cannot be.

    Devices and pipes, which may never end, and files above ``data.limits.file_mb`` are refused.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(START) if size else b""  # a file of /proc has content, and a size of 0
            check(start)
            check_file_size(size, limits)
            data = start + file.read(max(size - len(start), 0) + 1) if size else b""  # memory of its size, no more
    except (OSError, ValueError) as error:  # ValueError: a manifest's path with a null character
        raise PictureError(f"cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > size:
        raise PictureError("grows while it is read: wait until it is written")
    return data


def check_file_size(size: int, limits: LimitsConfig) -> None:
    """Raise `PictureError` for a file that is larger than one image may be."""
    if size > limits.file_mb * 2**20:
        raise PictureError(f"too large: {size / 2**20:,.0f} MiB, limit {limits.file_mb:g} (data.limits.file_mb)")


class ArrayStore:
    """Pictures in memory: uint8 [N, H, W], [N, H, W, 1] or [N, H, W, 3]; keys are their positions."""

    def __init__(self, pixels: NDArray[np.uint8], name: str = "arrays") -> None:
        self.name = name
        self._pixels = pixels

    def read(self, key: str, check: Check = unchecked) -> NDArray[np.uint8]:  # noqa: ARG002  # there are no bytes
        picture: NDArray[np.uint8] = self._pixels[int(key)]
        return picture


class DrawnStore:
    """Pictures made by a function when they are read; their hashes are known without drawing them."""

    def __init__(
        self,
        name: str,
        shape: tuple[int, int, int],
        draw: Callable[[int], NDArray[np.uint8]],
        identity: Callable[[int], str],
    ) -> None:
        self.name = name
        self.shape = shape
        self._draw, self._identity = draw, identity

    def read(self, key: str, check: Check = unchecked) -> NDArray[np.uint8]:  # noqa: ARG002  # there are no bytes
        return self._draw(int(key))

    def identity(self, key: str) -> str:
        """Return what stands for the SHA-256 of picture `key`."""
        return self._identity(int(key))
