"""Files that have not changed since the last start are not read again, and all others are."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path

import pytest

from sightline.config.data import LimitsConfig
from sightline.data import file_records
from sightline.data.file_records import FileRecords
from sightline.data.indexing import build_index
from sightline.data.storage import FolderStore
from sightline.data.types import Index
from synthetic_images import encode_png, write_files


@pytest.fixture
def folder(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(file_records, "FRESH_NS", 0)
    files = {f"{label}/{i}.png": encode_png(i + 10 * (label == "b")) for label in "ab" for i in range(4)}
    return write_files(tmp_path / "images", files | {"a/notes.txt": b"no image", "b/broken.png": b"no image"})


def read(folder: Path, limits: LimitsConfig | None = None) -> tuple[Index, int]:
    """Return the index, and how many files were not read again."""
    records = FileRecords([folder], limits or LimitsConfig())
    return build_index(folder, records=records), records.count


def test_the_second_index_is_the_first_one_and_reads_no_image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, count = read(folder)
    assert count == 0
    contents: list[str] = []
    original = FolderStore.read

    def watch(store: FolderStore, key: str, *args: object) -> object:
        contents.append(key)
        return original(store, key, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(FolderStore, "read", watch)
    second, count = read(folder)
    assert (second, count) == (first, 8)
    assert sorted(contents) == ["a/notes.txt", "b/broken.png"]
    assert second == build_index(folder)


@pytest.mark.parametrize("how", ["edited", "same size and time", "replaced", "new", "gone", "relabeled"])
def test_whatever_changed_is_in_the_next_index(folder: Path, how: str) -> None:
    first, _ = read(folder)
    file = folder / "a" / "1.png"
    status = file.stat()
    if how == "edited":
        file.write_bytes(encode_png(77))
    elif how == "same size and time":
        content = bytearray(file.read_bytes())
        content[-20] ^= 1
        file.write_bytes(bytes(content))
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert (file.stat().st_size, file.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    elif how == "replaced":
        (folder / "b" / "2.png").replace(file)
    elif how == "new":
        (folder / "b" / "new.png").write_bytes(encode_png(90))
    elif how == "gone":
        file.unlink()
    else:
        file.rename(folder / "b" / "moved.png")
    second, count = read(folder)
    assert second == build_index(folder)
    assert second != first
    assert count in {6, 7, 8}
    assert read(folder)[0] == second


def test_files_that_were_just_written_are_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_records, "FRESH_NS", 60_000_000_000)
    read(folder)
    assert read(folder)[1] == 0


def test_damaged_records_and_other_limits_are_not_used(folder: Path, own_cache: Path) -> None:
    first, _ = read(folder)
    assert read(folder, LimitsConfig(file_mb=1))[1] == 0
    for file in (own_cache / file_records.FOLDER).iterdir():
        file.write_text("{")
    assert read(folder) == (first, 0)
    assert read(folder)[1] == 8


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE files SET sha256 = NULL, width = NULL",
        "UPDATE files SET sha256 = upper(sha256)",
        "UPDATE files SET width = -width",
        "UPDATE files SET width = width + 1",
        "UPDATE files SET gray = 'yes'",
        "UPDATE files SET low = 'a'",
        "UPDATE files SET file = x'ff' WHERE file LIKE '%a/1.png'",
        "UPDATE files SET file = CAST(x'ff' AS TEXT) WHERE file LIKE '%a/1.png'",
        "DELETE FROM files WHERE file LIKE '%a/1.png'",
        "DELETE FROM checksum",
        "DROP TABLE checksum",
        "DROP TABLE files",
        "ALTER TABLE files DROP COLUMN width",
        "CREATE INDEX sizes ON files (size)",
    ],
)
def test_records_that_are_not_as_they_were_written_are_not_used(folder: Path, own_cache: Path, statement: str) -> None:
    first, _ = read(folder)
    (file,) = (own_cache / file_records.FOLDER).iterdir()
    with closing(sqlite3.connect(file)) as database, database:
        database.execute(statement)
    assert read(folder) == (first, 0)
    assert read(folder) == (first, 8)


def test_records_without_end_are_not_read(folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = read(folder)
    (file,) = (own_cache / file_records.FOLDER).iterdir()
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("DROP TABLE files")
        database.execute(
            "CREATE VIEW files AS WITH RECURSIVE row"
            "(file, size, inode, modified, changed, sha256, width, height, gray, high_bit_depth, low, high) AS "
            "(VALUES ('a', 1, 1, 1, 1, hex(zeroblob(32)), 1, 1, 0, 0, NULL, NULL) UNION ALL SELECT * FROM row) "
            "SELECT * FROM row"
        )
    assert read(folder) == (first, 0)
    assert read(folder) == (first, 8)
    monkeypatch.setattr(file_records, "MAX_BYTES", file.stat().st_size - 1)
    assert read(folder) == (first, 0)


def test_records_with_another_column_are_read_by_name(folder: Path, own_cache: Path) -> None:
    first, _ = read(folder)
    (file,) = (own_cache / file_records.FOLDER).iterdir()
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("ALTER TABLE files ADD COLUMN other")
    assert read(folder) == (first, 8)


def test_records_that_another_program_has_locked_are_replaced_at_once(folder: Path, own_cache: Path) -> None:
    first, _ = read(folder)
    (file,) = (own_cache / file_records.FOLDER).iterdir()
    (folder / "a" / "new.png").write_bytes(encode_png(90))
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        second, count = read(folder)
        assert (len(second.images), count) == (len(first.images) + 1, 8)
        assert read(folder) == (second, 9)
    assert list(file.parent.iterdir()) == [file]


def test_records_that_cannot_be_replaced_are_kept(
    folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = read(folder)
    (file,) = (own_cache / file_records.FOLDER).iterdir()
    content = file.read_bytes()
    (folder / "a" / "1.png").write_bytes(encode_png(90))

    def fill_disk(path: Path, rows: object) -> None:
        path.write_bytes(b"half")
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(file_records, "_write", fill_disk)
        second, count = read(folder)
    assert (second != first, count) == (True, 7)
    assert [(path, path.read_bytes()) for path in file.parent.iterdir()] == [(file, content)]


def test_a_file_of_a_time_beyond_64_bits_is_read_each_time(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_records, "FRESH_NS", 0)
    memory = Path("/dev/shm")  # noqa: S108  # most file systems of disks keep no such time
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        folder = write_files(Path(name), {f"{label}/1.png": encode_png(ord(label)) for label in "abc"})
        file = folder / "b" / "1.png"
        os.utime(file, (-14_831_769_600, -14_831_769_600))  # in the year 1500
        if file.stat().st_mtime_ns >= -(1 << 63):
            pytest.skip("the file system keeps no such time")
        first, _ = read(folder)
        assert len(first.images) == 3
        assert read(folder) == (first, 2)


def test_the_records_of_few_sources_are_kept(folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_records, "MAX_FILES", 2)
    for number in range(4):
        records = FileRecords([folder, number], LimitsConfig())
        records.add(folder / "x", (number, 0, 0, 0), (hashlib.sha256(b"").hexdigest(), 1, 1, False, False, (0.0, 1.0)))
        records.save()
        time.sleep(0.02)
    assert len(list((own_cache / file_records.FOLDER).iterdir())) == 2
    assert FileRecords([folder, 3], LimitsConfig()).find(folder / "x", (3, 0, 0, 0)) is not None


def test_a_cache_that_cannot_be_written_is_not_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = folder.parent / "file"
    blocked.touch()
    monkeypatch.setenv("SIGHTLINE_CACHE", str(blocked))
    assert read(folder)[1] == read(folder)[1] == 0
