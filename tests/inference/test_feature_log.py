"""The log of features: what it holds, how it is bounded, and what it refuses."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import numpy as np
import pytest
from numpy.typing import NDArray

from sightline import _io
from sightline.errors import DataError, OutputError
from sightline.inference import feature_log, logged_images
from sightline.inference.feature_log import FILES, FeatureLog, list_files
from sightline.inference.logged_images import LoggedImages, read_log
from waiting import wait_until

MODEL, CLASSES = "net@" + 64 * "a", ("cat", "dog")
Open = Callable[..., FeatureLog]


@pytest.fixture
def open_log(tmp_path: Path) -> Iterator[Open]:
    logs: list[FeatureLog] = []

    def open_one(model: str = MODEL, max_bytes: int = 1 << 20, path: Path = tmp_path / "cats.log") -> FeatureLog:
        logs.append(FeatureLog(path, model, CLASSES, max_bytes))
        return logs[-1]

    yield open_one
    for log in logs:
        if log._thread.is_alive():
            log.close()


def draw(count: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    first = rng.random(count, np.float32)
    return rng.normal(size=(count, 24)).astype(np.float32), np.stack([first, 1 - first], 1)


def add_all(log: FeatureLog, count: int, seed: int = 0) -> list[str]:
    """Log some images, without more of them waiting than may wait, and close the log."""
    ids = []
    for features, probabilities in zip(*draw(count, seed), strict=True):
        ids.append(log.add(features, probabilities))
    log.close()
    return ids


def read(path: Path, model: str = MODEL) -> LoggedImages:
    batches = list(read_log(path, model, CLASSES, lambda _: None))
    return LoggedImages(
        tuple(i for b in batches for i in b.ids), tuple(t for b in batches for t in b.times),
        np.concatenate([b.features for b in batches]), np.concatenate([b.probabilities for b in batches]),
        np.concatenate([b.quality for b in batches]),
    )  # fmt: skip


def test_the_quality_of_masks_is_read_as_it_was_added(open_log: Open, tmp_path: Path) -> None:
    log = open_log()
    for quality, features, probabilities in zip((0.25, 1.0, None), *draw(3), strict=True):
        log.add(features, probabilities, quality)
    log.close()
    np.testing.assert_array_equal(read(tmp_path / "cats.log").quality, [0.25, 1.0, np.nan])
    path = tmp_path / "cats.log"
    path.write_text(path.read_text().replace('"quality": 0.25', '"quality": 1.25'))
    with pytest.raises(DataError, match=r"line 2: a quality of 1\.25; expected 0 to 1"):
        read(path)


def test_a_log_returns_what_was_added_over_several_openings(open_log: Open, tmp_path: Path) -> None:
    ids = add_all(open_log(), 5) + add_all(open_log(), 3, seed=1)
    images = read(tmp_path / "cats.log")
    expected = [np.concatenate(arrays) for arrays in zip(draw(5), draw(3, seed=1), strict=True)]
    assert list(images.ids) == ids
    np.testing.assert_allclose(images.features, expected[0], rtol=1e-3)
    assert np.array_equal(images.probabilities, expected[1])
    if os.name == "posix":
        assert (tmp_path / "cats.log").stat().st_mode & 0o077 == 0
    entry = json.loads((tmp_path / "cats.log").read_text().splitlines()[1])
    assert set(entry) == {"id", "time", "features", "probabilities"}


def test_the_files_of_a_log_are_bounded_and_the_newest_images_stay(open_log: Open, tmp_path: Path) -> None:
    limit = 20_000
    ids = add_all(open_log(max_bytes=limit), 400)
    files = list_files(tmp_path / "cats.log")
    assert len(files) == FILES
    assert sum(file.stat().st_size for file in files) <= limit
    newest = read(tmp_path / "cats.log").ids
    assert 60 < len(newest) < 400
    assert list(newest) == ids[-len(newest) :]


def test_a_reader_skips_the_line_that_is_being_written_and_a_writer_removes_it(open_log: Open, tmp_path: Path) -> None:
    path = tmp_path / "cats.log"
    ids = add_all(open_log(), 2)
    with path.open("ab") as file:
        file.write(b'{"id": "0')
    assert list(read(path).ids) == ids
    ids += add_all(open_log(), 1)
    assert list(read(path).ids) == ids


def move(path: Path) -> None:
    path.rename(path.with_name("old.log"))


def move_and_create(path: Path) -> None:
    move(path)
    path.write_bytes(b"")


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("change", [move, move_and_create, empty, Path.unlink])
def test_a_log_that_another_program_rotates_goes_on(
    open_log: Open, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path = tmp_path / "cats.log"
    log = open_log()
    first = [log.add(*row) for row in zip(*draw(3), strict=True)]
    wait_until(lambda: path.read_bytes().count(b"\n") >= 4)
    change(path)
    assert add_all(log, 2, seed=1) == list(read(path).ids)
    if (tmp_path / "old.log").exists():
        assert list(read(tmp_path / "old.log").ids) == first
    assert log.dropped == 0


def test_a_log_that_is_deleted_from_a_full_disk_leaves_its_room_to_the_next_one(
    open_log: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_log()
    log.add(*next(zip(*draw(1), strict=True)))
    wait_until(lambda: (tmp_path / "cats.log").read_bytes().count(b"\n") >= 2)
    old, append = os.dup(log._file.fileno()), feature_log._append

    def append_to_full_disk(file: IO[bytes], line: bytes, end: int) -> int:
        if os.fstat(old).st_size and not os.path.samestat(os.fstat(old), os.fstat(file.fileno())):
            raise OSError(errno.ENOSPC, "No space left on device")
        return append(file, line, end)

    monkeypatch.setattr(feature_log, "_append", append_to_full_disk)
    (tmp_path / "cats.log").unlink()
    assert add_all(log, 2, seed=1) == list(read(tmp_path / "cats.log").ids)
    assert log.dropped == 0
    os.close(old)


def test_files_that_were_joined_are_one_log(open_log: Open, tmp_path: Path) -> None:
    path, joined = tmp_path / "cats.log", tmp_path / "all.log"
    ids = add_all(open_log(), 2)
    path.rename(tmp_path / "cats.log-1")
    ids += add_all(open_log(), 3, seed=1)
    joined.write_bytes((tmp_path / "cats.log-1").read_bytes() + path.read_bytes())
    assert list(read(joined).ids) == ids
    add_all(open_log("net@" + 64 * "b"), 1)
    joined.write_bytes(joined.read_bytes() + path.read_bytes())
    with pytest.raises(DataError, match=r"all\.log joins the logs of several models: line 8 starts"):
        read(joined)


@pytest.mark.parametrize("shifted_at", range(FILES))
def test_a_reader_misses_no_image_of_a_log_that_is_rotated_meanwhile(
    open_log: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shifted_at: int
) -> None:
    path = tmp_path / "cats.log"
    ids = add_all(open_log(), 3)
    feature_log._shift(path)
    ids += add_all(open_log(), 2, seed=1)
    opened = 0

    def open_regular(name: Path) -> BufferedReader:
        nonlocal opened
        if opened == shifted_at:
            feature_log._shift(path)
        opened += 1
        return _io.open_regular(name)

    monkeypatch.setattr(logged_images, "_io", SimpleNamespace(open_regular=open_regular))
    assert list(read(path).ids) == ids


def test_a_log_of_another_model_moves_on_and_is_left_out(open_log: Open, tmp_path: Path) -> None:
    path = tmp_path / "cats.log"
    old, other = add_all(open_log(), 2), "net@" + 64 * "b"
    new = add_all(open_log(other), 3)
    assert list(read(path, other).ids) == new
    assert list(read(path).ids) == old
    with pytest.raises(DataError, match="of another model"):
        list(read_log(path, "net@" + 64 * "c", CLASSES, lambda _: None))
    with pytest.raises(DataError, match="other classes"):
        list(read_log(path, MODEL, ("cat", "fox"), lambda _: None))


def test_files_that_are_not_its_own_are_refused(open_log: Open, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("hello\n")
    with pytest.raises(OutputError, match=r"notes.txt exists and is not a log of features"):
        open_log(path=notes)
    (tmp_path / "cats.log.2").write_text('{"schema": 1, "log": "other"}\n')
    with pytest.raises(OutputError, match=r"cats.log.2 exists and is not a log of features"):
        open_log()
    (tmp_path / "link.log").symlink_to(tmp_path / "target.log")
    with pytest.raises(OutputError, match=r"link.log cannot be written"):
        open_log(path=tmp_path / "link.log")
    assert notes.read_text() == "hello\n"
    assert not (tmp_path / "target.log").exists()


@pytest.mark.parametrize("path", [".", "..", "/"])
def test_a_folder_is_not_a_log(open_log: Open, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(OutputError, match="it is a folder"):
        open_log(path=Path(path))
    with pytest.raises(DataError, match="not a regular file"):
        next(read_log(Path(path), MODEL, CLASSES, lambda _: None))
    assert [file.name for file in tmp_path.rglob("*")] == ["here"]


def test_a_log_has_one_writer(open_log: Open) -> None:
    open_log()
    with pytest.raises(OutputError, match="in use"):
        open_log()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"[]\n", "line 3"),
        (b'{"id": 3, "time": "", "features": "", "probabilities": ""}\n', "id"),
        (b'{"id": "a", "time": "b", "features": "AAA", "probabilities": "AAAA"}\n', "line 3"),
        (b'{"id": "a", "time": "b", "features": "AAA=", "probabilities": "AAAAAA=="}\n', "1 probabilities"),
        (b'{"id": "a", "time": "b", "features": "AH4=", "probabilities": "AAAAAAAAAAA="}\n', "NaN"),
        (b'{"id": "a", "time": "b", "features": "AAA=", "probabilities": "AAAAAAAAAAA="}\n', "1 and 24 features"),
    ],
)
def test_a_damaged_line_is_named(open_log: Open, tmp_path: Path, line: bytes, words: str) -> None:
    add_all(open_log(), 1)
    with (tmp_path / "cats.log").open("ab") as file:
        file.write(line)
    with pytest.raises(DataError, match=words):
        read(tmp_path / "cats.log")


def test_adding_never_waits_and_counts_what_it_drops(
    open_log: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_log, "MAX_WAITING", 2)
    disk = threading.Event()
    append = feature_log._append

    def append_slowly(*arguments: object) -> None:
        assert disk.wait(30)
        append(*arguments)  # type: ignore[arg-type]

    log = open_log()
    monkeypatch.setattr(feature_log, "_append", append_slowly)
    for features, probabilities in zip(*draw(10), strict=True):
        log.add(features, probabilities)
    assert log.dropped >= 7
    disk.set()
    log.close()
    assert len(read(tmp_path / "cats.log")) == 10 - log.dropped


def test_a_full_disk_costs_images_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = FeatureLog(tmp_path / "cats.log", MODEL, CLASSES, 1 << 20)
    write, calls = os.write, 0

    def write_half(descriptor: int, data: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls % 2:
            return write(descriptor, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", write_half)
    for features, probabilities in zip(*draw(3), strict=True):
        log.add(features, probabilities)
    log._queue.put(None)
    log._thread.join()
    monkeypatch.undo()
    log.close()
    assert (log.dropped, len(caplog.messages)) == (3, 1)
    assert "No space left" in caplog.messages[0]
    ids = add_all(FeatureLog(tmp_path / "cats.log", MODEL, CLASSES, 1 << 20), 2)
    assert list(read(tmp_path / "cats.log").ids) == ids


def test_a_new_file_that_cannot_be_opened_costs_no_older_one(
    open_log: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cats.log"
    add_all(open_log(max_bytes=20_000), 400)
    before = read(path).ids

    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError(24, "Too many open files")

    log = open_log(max_bytes=20_000)
    monkeypatch.setattr("sightline._io.open_in_place", fail)
    add_all(log, 200, seed=1)
    assert log.dropped > 100
    assert set(read(path).ids[:20]) < set(before)


def test_a_model_that_takes_the_place_of_another_starts_a_new_file(open_log: Open, tmp_path: Path) -> None:
    log, other = open_log(), "net@" + 64 * "b"
    old, new = draw(3), draw(2, seed=1)
    for row in zip(*old, strict=True):
        log.add(*row)
    log_next = log.use_model(other, CLASSES)
    for row in zip(*new, strict=True):
        log_next(*row, None)
    log.add(old[0][0], old[1][0])  # of a request that was in flight on the old model
    log.close()
    np.testing.assert_array_equal(read(tmp_path / "cats.log", other).probabilities, new[1])
    first, second = list_files(tmp_path / "cats.log")
    assert {path.name for path in (first, second)} == {"cats.log", "cats.log.1"}
    assert (tmp_path / "cats.log.1").read_text().count("\n") == 4
    assert log.dropped == 1
