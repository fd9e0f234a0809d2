"""`FileRecords`: the hashes and headers of image files from an earlier start, for files that have not changed since.

A file counts as unchanged if its size, its inode and both its times are the same. Its status-change time cannot be set
back by a program, and a file that was written in the last two seconds before it was read is not recorded, since another
write within the resolution of the clock would leave the same times (as in Git's index, "racy Git").
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline import jsonio
from sightline.config.data import LimitsConfig
from sightline.data import cache
from sightline.data.storage import FolderStore, Store

FOLDER = "indexed-files"  # in the cache folder
MAX_FILES = 20  # of records that are kept, those that were used last
FRESH_NS = 2_000_000_000
SCHEMA = 1

Stamp = tuple[int, int, int, int]
"""The size, the inode, and the times of the last change of the content and of the status of a file."""

Header = tuple[str, int, int, bool, bool, tuple[float, float] | None]
"""Of an image: sha256, width, height, whether it is gray, has more than 8 bits a sample, and its stated range."""

_TABLE = """CREATE TABLE IF NOT EXISTS files (
    file TEXT PRIMARY KEY, size INTEGER, inode INTEGER, modified INTEGER, changed INTEGER, sha256 TEXT,
    width INTEGER, height INTEGER, gray INTEGER, high_bit_depth INTEGER, low REAL, high REAL
) WITHOUT ROWID"""


class FileRecords:
    """What is known of the image files of some sources, in a table of SQLite; methods may be called from any thread."""

    def __init__(self, sources: Sequence[object], limits: LimitsConfig) -> None:
        """Load what is known of the files of these sources, read within these limits."""
        texts = [os.path.abspath(str(source)) for source in sources]  # noqa: PTH100  # resolving would read links
        name = hashlib.sha256(jsonio.dumps([SCHEMA, texts, repr(limits)]).encode(errors="surrogatepass")).hexdigest()
        self._path = cache.cache_folder() / FOLDER / f"{name[:32]}.sqlite3"
        self._known: dict[str, tuple[Stamp, Header]] = {}
        with suppress(OSError, sqlite3.Error):  # whatever is wrong with it, the files are read
            if self._path.is_file():
                with closing(sqlite3.connect(self._path)) as database:
                    self._known = {row[0]: _parse_row(row) for row in database.execute("SELECT * FROM files")}
        self._current: dict[str, tuple[Stamp, Header]] = {}

    @property
    def count(self) -> int:
        """How many files are unchanged, and were not read."""
        return sum(self._known.get(file) is entry for file, entry in self._current.items())

    @staticmethod
    def read_stamp(file: Path) -> Stamp | None:
        """Return what tells whether a file has changed, to be read before its content; None if it cannot be known."""
        try:
            status = file.stat()
        except (OSError, ValueError):
            return None
        newest = max(status.st_mtime_ns, status.st_ctime_ns)
        if time.time_ns() - newest < FRESH_NS:
            return None
        return status.st_size, _to_signed(status.st_ino), status.st_mtime_ns, status.st_ctime_ns

    def watch(self, store: Store, key: str) -> WatchedFile | None:
        """Return what is known of a file that is about to be read; None if it is not a file of this machine."""
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
        """Keep what is known of the files that are still there; not an error if it cannot be written."""
        with suppress(OSError, sqlite3.Error):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._current != self._known:
                self._write()
            os.utime(self._path)
            files = sorted(self._path.parent.glob("*.sqlite3"), key=lambda file: -file.stat().st_mtime)
            for file in files[MAX_FILES:]:
                file.unlink()

    def _write(self) -> None:
        rows = [
            (name, *stamp, *header[:5], *(header[5] or (None, None)))
            for name, (stamp, header) in sorted(self._current.items())
        ]
        try:
            self._fill(rows)
        except sqlite3.DatabaseError:  # a damaged file
            self._path.unlink(missing_ok=True)
            self._fill(rows)

    def _fill(self, rows: Sequence[tuple[object, ...]]) -> None:
        with closing(sqlite3.connect(self._path)) as database, database:
            database.execute(_TABLE)
            database.execute("DELETE FROM files")
            database.executemany(f"INSERT INTO files VALUES ({', '.join('?' * 12)})", rows)  # noqa: S608


@dataclass(frozen=True, slots=True)
class WatchedFile:
    """A file as it is now; `header` is None if it is not known."""

    records: FileRecords
    file: Path
    stamp: Stamp
    header: Header | None

    def record(self, header: Header) -> None:
        """Record what was read of the file."""
        self.records.add(self.file, self.stamp, header)


def _parse_row(row: tuple[Any, ...]) -> tuple[Stamp, Header]:
    _, size, inode, modified, changed, sha256, width, height, gray, high_bit_depth, low, high = row
    value_range = None if low is None else (low, high)
    return (size, inode, modified, changed), (sha256, width, height, bool(gray), bool(high_bit_depth), value_range)


def _to_signed(number: int) -> int:
    """Return a number of 64 bits as SQLite holds it."""
    return number - (1 << 64) if number >= 1 << 63 else number
