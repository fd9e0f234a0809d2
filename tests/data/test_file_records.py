"""Files that have not changed since the last start are not read again, and all others are."""

from __future__ import annotations

import hashlib
import os
import time
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
