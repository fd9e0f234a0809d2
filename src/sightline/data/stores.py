"""Where the bytes of pictures come from: a folder, a zip, a tar, or arrays in memory.

A store lists its files by relative path and reads one of them; reading is safe from several threads.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import threading
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sightline.errors import DataError, PictureError

MAX_FILE_BYTES = 1 << 30
"""A single encoded picture larger than this (1 GiB) is refused: in an archive it is most likely a bomb."""


class Store(Protocol):
    """A set of files or arrays, each known by a key."""

    name: str

    def read(self, key: str) -> bytes | NDArray[np.uint8]:
        """Return the content of one file; raises `PictureError` with the reason if it cannot be read."""


class FileStore(Store, Protocol):
    """A store of files, which can be listed."""

    def keys(self) -> Sequence[str]:
        """Return the relative paths, with ``/`` between folders, sorted."""

    def holds(self, key: str) -> bool:
        """Tell whether there is a file of this relative path."""


class FolderStore:
    """The files below a folder, as they are when it is first listed; links to folders are followed, once each."""

    def __init__(self, root: Path) -> None:
        self.root = root
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

    def read(self, key: str) -> bytes:
        path = self.root / key
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):  # reading a pipe would wait for ever
                raise PictureError("not a regular file")
            if found.st_size > MAX_FILE_BYTES:
                raise PictureError("too large: over 1 GiB")
            return path.read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a manifest's path with a null character
            raise PictureError(f"cannot be opened: {getattr(error, 'strerror', None) or error}") from error


class ZipStore:
    """The members of a zip archive. Names that predate UTF-8 zips are tried as UTF-8, then as GBK."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:  # damage shows in many ways
            raise DataError(f"{path} is not a readable zip archive: {error}.") from error
        self._members = dict(zip(_names(self._zip.infolist()), self._zip.infolist(), strict=True))

    def keys(self) -> Sequence[str]:
        return sorted(name for name in self._members if not name.endswith("/"))

    def folders(self) -> Sequence[str]:
        """Return the paths of the folders that have a member of their own, as empty ones do, sorted."""
        return sorted(name.rstrip("/") for name in self._members if name.endswith("/"))

    def holds(self, key: str) -> bool:
        return key in self._members and not key.endswith("/")

    def read(self, key: str) -> bytes:
        info = self._members[key]
        if info.file_size > MAX_FILE_BYTES:
            raise PictureError("too large: over 1 GiB unpacked")
        try:
            return self._zip.read(info)
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, struct.error) as error:
            raise PictureError(f"damaged in the archive: {error}") from error
        except (RuntimeError, NotImplementedError, OSError) as error:  # encrypted; unknown method; the disk's own
            raise PictureError(f"cannot be unpacked: {error}") from error


def _names(members: Sequence[zipfile.ZipInfo]) -> list[str]:
    """Return the names; one encoding for all that state none, lest the pictures of one class get two names for it."""
    raw = [_old_bytes(info) for info in members]
    encoding = "cp437"
    for candidate in ("gbk", "utf-8"):
        with suppress(UnicodeDecodeError):
            b"\n".join(raw).decode(candidate)
            encoding = candidate
    names = [r.decode(encoding) if r else info.filename for r, info in zip(raw, members, strict=True)]
    return [name.replace("\\", "/") for name in names]  # some Windows programs write the wrong slash


def _old_bytes(info: zipfile.ZipInfo) -> bytes:
    """Return a name of unknown encoding; empty for one that is known to be Unicode."""
    utf8_flag = 0x800
    try:
        return b"" if info.flag_bits & utf8_flag else info.filename.encode("cp437")
    except UnicodeEncodeError:  # Python 3.12 has it from an extra field
        return b""


class TarStore:
    """The members of a tar archive; a compressed one is first unpacked into an unnamed temporary file."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._lock = threading.Lock()
        try:
            self._file = _plain_tar(path)
            weakref.finalize(self, self._file.close)
            self._members, self._folders = _tar_members(self._file)
        except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise DataError(f"{path} is not a readable tar archive: {error}.") from error

    def keys(self) -> Sequence[str]:
        return sorted(self._members)

    def folders(self) -> Sequence[str]:
        """Return the paths of the folders that have a member of their own, as empty ones do, sorted."""
        return sorted(self._folders)

    def holds(self, key: str) -> bool:
        return key in self._members

    def read(self, key: str) -> bytes:
        offset, size = self._members[key]
        if size > MAX_FILE_BYTES:
            raise PictureError("too large: over 1 GiB")
        with self._lock:
            self._file.seek(offset)
            data = self._file.read(size)
        if len(data) < size:
            raise PictureError("cut off: the archive ends before it")
        return data


def _tar_members(file: IO[bytes]) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Return the offset and size of each file, and the folders; a hard link stands for the file that it names."""
    members: dict[str, tuple[int, int]] = {}
    folders: list[str] = []
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for m in tar:
            name, target = m.name.removeprefix("./"), m.linkname.removeprefix("./")
            if m.isreg():
                members[name] = m.offset_data, m.size
            elif m.islnk() and target in members:
                members[name] = members[target]
            elif m.isdir() and name not in {"", "."}:
                folders.append(name.rstrip("/"))
        end = tar.offset
    file.seek(end)
    if any(file.read(tarfile.BLOCKSIZE)):  # tarfile takes a damaged header for the end
        raise tarfile.ReadError(f"damaged at byte {end}")
    return members, folders


def _plain_tar(path: Path) -> IO[bytes]:
    # As long as it takes: the first bytes of a plain tar are a file's name, which may well begin with BZh.
    openers: dict[bytes, Callable[..., Any]] = {
        rb"\x1f\x8b\x08": gzip.open, rb"BZh[1-9]1AY&SY": bz2.open, rb"\xfd7zXZ\0": lzma.open,
    }  # fmt: skip
    with path.open("rb") as file:
        start = file.read(10)
    opener = next((o for magic, o in openers.items() if re.match(magic, start)), None)
    if opener is None:
        return path.open("rb")
    plain = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the store
    try:
        with opener(path, "rb") as packed:
            shutil.copyfileobj(packed, plain, 1 << 20)
    except BaseException:
        plain.close()
        raise
    plain.seek(0)
    return plain


class ArrayStore:
    """Pictures in memory: uint8 [N, H, W], [N, H, W, 1] or [N, H, W, 3]; keys are their positions."""

    def __init__(self, pixels: NDArray[np.uint8], name: str = "arrays") -> None:
        self.name = name
        self._pixels = pixels

    def read(self, key: str) -> NDArray[np.uint8]:
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

    def read(self, key: str) -> NDArray[np.uint8]:
        return self._draw(int(key))

    def identity(self, key: str) -> str:
        """Return what stands for the SHA-256 of picture `key`."""
        return self._identity(int(key))
