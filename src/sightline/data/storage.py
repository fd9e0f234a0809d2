"""Storage of image bytes: folders, arrays in memory and generated images; archives are in `archives`.

A store lists its files by relative path and reads single files; reading is thread-safe.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import merge
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

import numpy as np
from numpy.typing import NDArray

from sightline._io import open_regular
from sightline.config import LimitsConfig
from sightline.data.sources.filenames import is_hidden
from sightline.errors import DataError, ImageError, OutputError

LIMITS = LimitsConfig()
NAMES_IN_MEMORY = 1 << 18  # file names kept in memory while a folder is sorted
HEADER_BYTES = 128  # bytes that identify a file format
CheckHeader = Callable[[bytes], object]
"""Called with the first bytes of a file before the rest is read; raises `ImageError` to skip the rest."""


def accept_any(_start: bytes) -> None:
    """Accept any file."""


class Store(Protocol):
    """A set of files or arrays, each with a key."""

    name: str

    def read(self, key: str, check: CheckHeader = accept_any) -> bytes | NDArray[np.uint8]:
        """Return the content of one file; raises `ImageError` with the reason if it cannot be read."""


class FileStore(Store, Protocol):
    """A store whose files can be listed."""

    def keys(self) -> Sequence[str]:
        """Return the sorted relative paths, with ``/`` between folders."""

    def contains(self, key: str) -> bool:
        """Return whether there is a file with this relative path."""


def read_file(store: FileStore, key: str) -> bytes:
    """Return the content of a file that is not an image; raises `DataError` if it cannot be read."""
    try:
        return bytes(store.read(key))
    except ImageError as error:
        raise DataError(f"{store.name}/{key} cannot be read: {error}.") from error


def holds_model(folder: Path) -> bool:
    """Return whether a folder is a run or a bundle; the images in it are figures and reference examples.

    One that may not be read is neither: whoever lists it says so.
    """
    kinds = ("run.json",), ("manifest.json", "model.onnx")
    return any(all(os.path.isfile(folder / name) for name in names) for names in kinds)  # noqa: PTH113  # raises nothing


class FolderStore:
    """The files below a folder at the time of first listing; links to folders are followed, each folder once.

    A link to a folder that is next to the link, or next to one of its parent folders, is not followed, because that
    folder is listed itself.

    Runs, sweeps and bundles are left out, as are folders that contain nothing else, such as ``runs/``.
    """

    def __init__(self, root: Path, limits: LimitsConfig = LIMITS) -> None:
        self.root = root
        self._limits = limits
        self.name = root.resolve().name
        self._contents: tuple[list[str], list[str]] | None = None

    def keys(self) -> Sequence[str]:
        return self._list_files()[0]

    def folders(self) -> Sequence[str]:
        """Return the sorted relative paths of the folders, including empty ones."""
        return self._list_files()[1]

    def _list_files(self) -> tuple[list[str], list[str]]:
        """Return the files and the folders; the tree is listed only once, as listing is slow over a network."""
        if self._contents is None:
            folders: dict[str, bool] = {}
            files = list(iterate_files(self.root, folders))
            results = [PurePosixPath(folder) for folder, is_result in folders.items() if is_result]
            above_results = {str(parent) for folder in results for parent in folder.parents}
            others = [folder for folder, is_result in folders.items() if not is_result]
            self._contents = files, sorted(f for f in others if f not in above_results or _holds_visible(f, files))
        return self._contents

    def contains(self, key: str) -> bool:
        try:
            return (self.root / key).is_file()
        except (OSError, ValueError):  # the name is too long, or contains a null character
            return False

    def read(self, key: str, check: CheckHeader = accept_any) -> bytes:
        return read_untrusted_file(os.path.join(self.root, key), self._limits, check)  # noqa: PTH118  # for speed


def _holds_results(folder: Path) -> bool:
    return os.path.isfile(folder / "sweep.json") or holds_model(folder)  # noqa: PTH113  # raises nothing


def _holds_visible(folder: str, files: Sequence[str]) -> bool:
    """Return whether a folder contains one of these files that is not hidden."""
    return any(file.startswith(f"{folder}/") and "/." not in file[len(folder) :] for file in files)


def iterate_files(root: Path, folders: dict[str, bool] | None = None) -> Iterator[str]:
    """Yield the keys of a `FolderStore` in order, in bounded memory: see `sort_names`.

    `folders` is filled with the path of each folder and whether it contains results, which are skipped.
    """
    visited: set[tuple[str, bool]] = set()
    folders = {} if folders is None else folders
    levels = [_list_names(root, "", visited, folders)]
    while levels:
        if (name := next(levels[-1], None)) is None:
            levels.pop()
        elif name.endswith("/"):
            levels.append(_list_names(root, name, visited, folders))
        else:
            yield name


def _list_names(root: Path, folder: str, visited: set[tuple[str, bool]], folders: dict[str, bool]) -> Iterator[str]:
    """Yield the paths in `folder` in order (subfolders end in ``/``); none if it was visited or contains results."""
    real = os.path.realpath(root / folder), bool(folder) and is_hidden(folder)  # a visible link may show its images
    if real in visited:
        return
    visited.add(real)
    if folder:
        folders[folder.rstrip("/")] = is_result = _holds_results(root / folder)
        if is_result:
            return
    links: dict[str, bool] = {}  # whether each subfolder is a link

    def list_files() -> Iterator[str]:
        with os.scandir(root / folder) as entries:
            for entry in entries:
                if _is_folder(entry):
                    links[entry.name] = entry.is_symlink()
                else:
                    yield folder + entry.name

    try:
        files = sort_names(list_files())
    except OSError as error:
        raise DataError(f"Cannot list the folder {error.filename}: {error.strerror}.") from error
    subfolders = _select_folders(root, folder, links) if any(links.values()) else list(links)
    yield from merge(files, sorted(f"{folder}{name}/" for name in subfolders))  # a-b/c comes before a/c


def _select_folders(root: Path, folder: str, links: dict[str, bool]) -> list[str]:
    """Return the subfolders without links to a folder that is listed next to them or further up.

    Of several links to the same folder, the first by name is kept. A link to a hidden folder is kept, because images
    are not read from the hidden folder itself.
    """
    own, selected = root.resolve(), dict[tuple[Path, bool], str]()
    outer = {own / folder, *(own / folder).parents}
    for name in sorted(links):
        target = (root / folder / name).resolve()
        is_listed = target.is_relative_to(own) and target.parent in outer and not is_hidden(target.name)
        if not (links[name] and is_listed):
            selected.setdefault((target, is_hidden(name)), name)
    return list(selected.values())


def sort_names(names: Iterable[str]) -> Iterator[str]:
    """Return all names in order; at most `NAMES_IN_MEMORY` are in memory, the rest in temporary files.

    Raises `OutputError` if there is no space for the temporary files.
    """
    remaining = iter(names)
    runs: list[Iterator[str]] = []
    while len(run := sorted(islice(remaining, NAMES_IN_MEMORY))) == NAMES_IN_MEMORY:
        runs.append(_read_names(_write_names(run)))
    return merge(*runs, run) if runs else iter(run)


def _write_names(names: Sequence[str]) -> IO[bytes]:
    try:
        file = tempfile.TemporaryFile()  # noqa: SIM115  # closed after it is read
        file.write(b"".join(os.fsencode(name) + b"\0" for name in names))
        file.seek(0)
    except OSError as error:
        raise OutputError(
            f"The names in a large folder cannot be sorted in {tempfile.gettempdir()}: {error.strerror}. Free some "
            "space, or set TMPDIR to another folder."
        ) from error
    return file


def _read_names(file: IO[bytes]) -> Iterator[str]:
    with file:
        rest = b""
        while chunk := file.read(1 << 13):
            *names, rest = (rest + chunk).split(b"\0")
            yield from map(os.fsdecode, names)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself
        return False


def read_untrusted_file(path: str | Path, limits: LimitsConfig = LIMITS, check: CheckHeader = accept_any) -> bytes:
    """Return the content of an untrusted file; raises `ImageError` with the reason if it cannot be read.

    Devices and pipes, which may never end, and files larger than ``data.limits.file_mb`` are refused.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(HEADER_BYTES) if size else b""  # files in /proc have content but a size of 0
            check(start)
            check_file_size(size, limits)
            data = start + file.read(max(size - len(start), 0) + 1) if size else b""  # at most one byte more
    except OSError as error:
        raise ImageError(f"cannot be opened: {error.strerror or error}") from error
    except ValueError as error:  # a null character or half of a surrogate pair, from a manifest
        raise ImageError("cannot be opened: no file can have this name") from error
    except MemoryError as error:
        raise ImageError("cannot be read: it needs more memory than is available") from error
    if len(data) > size:
        raise ImageError("grew while being read: wait until it is completely written")
    return data


def check_file_size(size: int, limits: LimitsConfig) -> None:
    """Raise `ImageError` if a file exceeds the size limit for an image."""
    if size > limits.file_mb * 2**20:
        raise ImageError(f"too large: {size / 2**20:,.0f} MiB, limit {limits.file_mb:g} (data.limits.file_mb)")


class ArrayStore:
    """Images in memory: uint8 [N, H, W], [N, H, W, 1] or [N, H, W, 3]; keys are positions."""

    def __init__(self, pixels: NDArray[np.uint8], name: str = "arrays") -> None:
        self.name = name
        self._pixels = pixels

    def read(self, key: str, check: CheckHeader = accept_any) -> NDArray[np.uint8]:  # noqa: ARG002  # there are no bytes
        image: NDArray[np.uint8] = self._pixels[int(key)]
        return image


class GeneratedStore:
    """Images generated by a function when they are read; their hashes are known without generating them.

    With `draw_mask`, which returns an encoded mask, the key ``mask:3`` is the mask of image 3.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, int, int],
        draw: Callable[[int], NDArray[np.uint8]],
        identity: Callable[[int], str],
        draw_mask: Callable[[int], bytes] | None = None,
    ) -> None:
        self.name = name
        self.shape = shape
        self._draw, self._identity, self._draw_mask = draw, identity, draw_mask

    def read(self, key: str, check: CheckHeader = accept_any) -> NDArray[np.uint8] | bytes:  # noqa: ARG002  # generated
        kind, _, number = key.rpartition(":")
        return self._draw_mask(int(number)) if kind and self._draw_mask is not None else self._draw(int(number))

    def identity(self, key: str) -> str:
        """Return a hash in place of the SHA-256 of image `key`."""
        return self._identity(int(key))
