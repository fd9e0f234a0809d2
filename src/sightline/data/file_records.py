"""`FileRecords`: the hashes and headers of image files from an earlier start, for files that have not changed since.

A file counts as unchanged if its size, inode and both times are the same. A program cannot reset the status-change
time. A file written in the last two seconds before it was read is not recorded, because another write within the
clock's resolution would leave the same times (as in Git's index, "racy Git").
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline import _io, jsonio
from sightline.config.data import LimitsConfig
from sightline.data import cache
from sightline.data.storage import FolderStore, Store
from sightline.errors import OutputError

FOLDER = "indexed-files"  # name within the cache folder
MAX_FILES = 20  # record files to keep, the most recently used
MAX_BYTES = 1 << 30  # bytes per record file; an image takes about 300
FRESH_NS = 2_000_000_000
SCHEMA = 2

Stamp = tuple[int, int, int, int]
"""A file's size, inode, modification time and status-change time."""

Header = tuple[str, int, int, bool, bool, tuple[float, float] | None]
"""The sha256, width and height of an image, whether it is gray, has over 8 bits per sample, and its stated range."""

_COLUMNS = "file, size, inode, modified, changed, sha256, width, height, gray, high_bit_depth, low, high"
_TABLES = f"CREATE TABLE files ({_COLUMNS}, PRIMARY KEY (file)) WITHOUT ROWID; CREATE TABLE checksum (sha256);"
_SHA256 = re.compile(r"[0-9a-f]{64}")


class FileRecords:
    """Recorded hashes and headers of the image files of some sources, in an SQLite table; methods are thread-safe."""

    def __init__(self, sources: Sequence[object], limits: LimitsConfig) -> None:
        """Load the records of the files of these sources that were read with these limits."""
        texts = [os.path.abspath(str(source)) for source in sources]  # noqa: PTH100  # resolve() would follow links
        name = hashlib.sha256(jsonio.dumps([SCHEMA, texts, repr(limits)]).encode(errors="surrogatepass")).hexdigest()
        self._path = cache.cache_folder() / FOLDER / f"{name[:32]}.sqlite3"
        self._known: dict[str, tuple[Stamp, Header]] = {}
        with suppress(OSError, sqlite3.Error, ValueError):  # after any error in the records, the files are read again
            self._known = _read(self._path)
        self._current: dict[str, tuple[Stamp, Header]] = {}

    @property
    def count(self) -> int:
        """The number of unchanged files, which were not read again."""
        return sum(self._known.get(file) is entry for file, entry in self._current.items())

    @staticmethod
    def read_stamp(file: Path) -> Stamp | None:
        """Return the stamp that shows whether a file has changed, None if unavailable; call before reading the file."""
        try:
            status = file.stat()
        except (OSError, ValueError):
            return None
        newest = max(status.st_mtime_ns, status.st_ctime_ns)
        if time.time_ns() - newest < FRESH_NS:
            return None
        stamp = status.st_size, _to_signed(status.st_ino), status.st_mtime_ns, status.st_ctime_ns
        return stamp if all(-(1 << 63) <= number < 1 << 63 for number in stamp) else None  # years 1677 to 2262

    def watch(self, store: Store, key: str) -> WatchedFile | None:
        """Return a file about to be read, with its recorded header; None for a file that is not on this machine."""
        if not isinstance(store, FolderStore):
            return None
        file = store.root / key
        stamp = self.read_stamp(file)
        return None if stamp is None else WatchedFile(self, file, stamp, self.find(file, stamp))

    def find(self, file: Path, stamp: Stamp) -> Header | None:
        """Return the header of an unchanged file."""
        entry = self._known.get(str(file))
        if entry is None or entry[0] != stamp:
            return None
        self._current[str(file)] = entry
        return entry[1]

    def add(self, file: Path, stamp: Stamp, header: Header) -> None:
        """Record the header of a file that was read, unless its name is not valid Unicode."""
        if jsonio.is_encodable(str(file)):
            self._current[str(file)] = stamp, header

    def save(self) -> None:
        """Save the records of the files seen in this run; if they cannot be written, nothing is raised."""
        with suppress(OSError, sqlite3.Error, OutputError):
            if self._current != self._known:
                rows = [_make_row(file, *entry) for file, entry in sorted(self._current.items())]
                _io.save_atomic(self._path, lambda path: _write(path, rows))
            os.utime(self._path)
            files = sorted(self._path.parent.glob("*.sqlite3"), key=lambda file: -file.stat().st_mtime)
            for file in files[MAX_FILES:]:
                file.unlink()


@dataclass(frozen=True, slots=True)
class WatchedFile:
    """A file with its current stamp; `header` is None if it is not recorded or the file has changed."""

    records: FileRecords
    file: Path
    stamp: Stamp
    header: Header | None

    def record(self, header: Header) -> None:
        """Record the header that was read from the file."""
        self.records.add(self.file, self.stamp, header)


def _read(path: Path) -> dict[str, tuple[Stamp, Header]]:
    """Return the records that `_write` wrote; raises `ValueError` or `sqlite3.Error` if a single bit differs."""
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        return {}
    known, checksum = dict[str, tuple[Stamp, Header]](), hashlib.sha256()
    uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"  # replaced, never modified, so no lock is needed
    with closing(sqlite3.connect(uri, uri=True)) as database:
        if database.execute("SELECT count(*) FROM sqlite_master WHERE type != 'table'").fetchone() != (0,):
            raise ValueError("a view may have rows without end")
        for row in database.execute(f"SELECT {_COLUMNS} FROM files ORDER BY file"):  # noqa: S608
            known[row[0]] = _parse_row(row)
            checksum.update(repr(row).encode())
        if database.execute("SELECT sha256 FROM checksum").fetchall() != [(checksum.hexdigest(),)]:
            raise ValueError("the rows are not those that were written")
    return known


def _write(path: Path, rows: Sequence[tuple[Any, ...]]) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA journal_mode = OFF")  # if it fails, the file is removed
        database.executescript(_TABLES)
        database.executemany(f"INSERT INTO files VALUES ({', '.join('?' * 12)})", rows)  # noqa: S608
        checksum = hashlib.sha256(b"".join(repr(row).encode() for row in rows)).hexdigest()
        database.execute("INSERT INTO checksum VALUES (?)", (checksum,))


def _make_row(file: str, stamp: Stamp, header: Header) -> tuple[Any, ...]:
    sha256, width, height, gray, high_bit_depth, value_range = header
    limits = (None, None) if value_range is None else (float(value_range[0]), float(value_range[1]))
    return file, *stamp, sha256, width, height, int(gray), int(high_bit_depth), *limits


def _parse_row(row: tuple[Any, ...]) -> tuple[Stamp, Header]:
    """Return the stamp and header from a row of `_make_row`; raises `ValueError` if they cannot belong to an image."""
    file, size, inode, modified, changed, sha256, width, height, gray, high_bit_depth, low, high = row
    numbers, limits = (size, inode, modified, changed, width, height, gray, high_bit_depth), (low, high)
    if not (
        isinstance(file, str)
        and isinstance(sha256, str) and _SHA256.fullmatch(sha256)
        and all(isinstance(number, int) for number in numbers)
        and size >= 0 and width > 0 and height > 0 and {gray, high_bit_depth} <= {0, 1}
        and (limits == (None, None) or all(isinstance(limit, float) and math.isfinite(limit) for limit in limits))
    ):  # fmt: skip
        raise ValueError("a row that is not one of an image")
    value_range = None if low is None else (low, high)
    return (size, inode, modified, changed), (sha256, width, height, bool(gray), bool(high_bit_depth), value_range)


def _to_signed(number: int) -> int:
    """Return an unsigned 64-bit number as a signed one, which SQLite can store."""
    return number - (1 << 64) if number >= 1 << 63 else number
