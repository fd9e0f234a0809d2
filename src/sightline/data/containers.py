"""Files that contain images: zip and tar archives, Parquet and Arrow tables."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

from sightline import process
from sightline.config import LimitsConfig
from sightline.data.archives import TarStore, ZipStore
from sightline.data.batches import load_ahead
from sightline.data.image_tables import TABLE_SUFFIXES, ImageTable, is_image_table
from sightline.data.remote import RemotePath
from sightline.data.staging import stage
from sightline.errors import DataError
from sightline.escaping import hide_secrets

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
T = TypeVar("T")
CONTAINER_SUFFIXES = (*ARCHIVE_SUFFIXES, *TABLE_SUFFIXES)
Container = ZipStore | TarStore | ImageTable
PREDICTIONS_FILE = "_predictions.json"  # in folders of Parquet files written by `predict`; sorts before them
_unpacked: WeakValueDictionary[object, TarStore] = WeakValueDictionary()  # open stores, by path, file state, limits
_unpacking = threading.Lock()


def is_archive(name: str) -> bool:
    """Return whether a file has the extension of an archive."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def is_container(name: str) -> bool:
    """Return whether a file has the extension of an archive or of a table of images.

    >>> is_container("shard-0001.TAR"), is_container("train.parquet"), is_container("cat.jpg")
    (True, True, False)
    """
    return name.lower().endswith(CONTAINER_SUFFIXES)


def strip_suffix(path: Path) -> Path:
    """Return the folder that an archive would be unpacked to.

    >>> strip_suffix(Path("photos/train.v2.TAR.gz")).as_posix()
    'photos/train.v2'
    """
    suffix = max((s for s in CONTAINER_SUFFIXES if path.name.lower().endswith(s)), key=len, default="")
    return path.with_name(path.name[: len(path.name) - len(suffix)] or path.name)


def skip_predictions(files: Iterable[T], get_key: Callable[[T], str]) -> Iterator[T]:
    """Yield `files`, sorted by their relative paths, without those in folders of predictions.

    >>> list(skip_predictions(["a.tar", "p.parquet/_predictions.json", "p.parquet/part-0.parquet"], str))
    ['a.tar']
    """
    skipped = None
    for file in files:
        folder, _, name = get_key(file).rpartition("/")
        if name == PREDICTIONS_FILE:
            skipped = folder
        elif folder != skipped:
            yield file


def open_container(path: Path, limits: LimitsConfig, column: str = "") -> Container:
    """Open a file as a store; `column` is the image column of a table.

    Raises `DataError` if it is damaged or beyond the limits.
    """
    process.raise_file_limit()  # a folder may contain thousands of files
    name = path.name.lower()
    if is_image_table(name):
        return ImageTable(path, limits, column)
    if name.endswith(".zip"):
        return ZipStore(path, limits)
    return TarStore(path, limits) if name.endswith(".tar") else _open_compressed_tar(path, limits)


def open_ahead(files: Iterable[RemotePath], limits: LimitsConfig) -> Iterator[tuple[str, Container]]:
    """Yield the address and the store of each file, downloading the next file while the current one is read.

    A download whose result is no longer needed is stopped.
    """
    stop = threading.Event()

    def open_copy(file: RemotePath) -> tuple[str, Container]:
        copy = stage(file, limits, stop)
        with name_address(copy, file.url):
            return file.url, open_container(copy, limits)  # opened now, before another download needs its space

    with closing(load_ahead((partial(open_copy, file) for file in files), threads=1, ahead=1)) as opened:
        try:
            yield from opened
        finally:
            stop.set()


@contextmanager
def name_address(copy: Path, url: str) -> Iterator[None]:
    """In errors about a file's content, report its address instead of the path of its copy in the cache."""
    try:
        yield
    except DataError as error:
        raise DataError(str(error).replace(str(copy), hide_secrets(url))) from error


def _open_compressed_tar(path: Path, limits: LimitsConfig) -> TarStore:
    """Return the store of a compressed archive; reuse an open one, as after counting, so it is unpacked only once."""
    try:
        state = path.stat()
    except OSError:
        return TarStore(path, limits)  # raises the detailed error
    key = (path.absolute(), state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, limits)
    with _unpacking:
        store = _unpacked.get(key)
        if store is None:
            store = _unpacked[key] = TarStore(path, limits)
        return store
