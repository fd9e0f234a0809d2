"""Lock files."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from sightline import _locks
from sightline.errors import OutputError


@pytest.mark.parametrize("kind", ["link", "second name", "pipe", "folder", "content"])
def test_a_lock_that_is_none_is_left_alone(tmp_path: Path, kind: str) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"1234 what must stay")
    lock = tmp_path / "run" / "lock"
    lock.parent.mkdir()
    if kind == "link":
        lock.symlink_to(victim)
    elif kind == "second name":
        os.link(victim, lock)
    elif kind == "pipe":
        os.mkfifo(lock)
    elif kind == "folder":
        lock.mkdir()
    else:
        lock.write_bytes(victim.read_bytes())
    with pytest.raises(OutputError, match="lock"), _locks.hold_lock(lock, "The run"):
        pass
    assert victim.read_bytes() == b"1234 what must stay"
    if kind == "content":
        assert lock.read_bytes() == victim.read_bytes()


def test_a_lock_holds_says_who_and_is_taken_again(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with _locks.hold_lock(lock, "The run"):
        assert _locks.is_locked(lock)
        with pytest.raises(OutputError, match=rf"The run is in use by another process \({os.getpid()}\)"):  # noqa: SIM117  # the first must fail
            with _locks.hold_lock(lock, "The run"):
                pass
    assert not _locks.is_locked(lock)
    with _locks.hold_lock(lock, "The run"):
        assert lock.read_bytes() == str(os.getpid()).encode()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no flock")
def test_a_process_that_asks_for_a_lock_is_in_nobodys_way(tmp_path: Path) -> None:
    import fcntl

    lock = tmp_path / "lock"
    lock.touch()
    with lock.open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        assert not _locks.is_locked(lock)
        threading.Timer(0.005, reader.close).start()
        with _locks.hold_lock(lock, "The run"):
            pass


@pytest.mark.skipif(os.name == "nt", reason="Windows has no flock")
def test_a_file_system_without_locks_is_said_to_have_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "lock"
    lock.touch()

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", refuse)  # like Lustre mounted without the option flock
    with pytest.raises(OutputError, match=r"lock cannot be locked: .+\. Choose a folder whose file system has locks"):  # noqa: SIM117  # not the block
        with _locks.hold_lock(lock, "The run"):
            pass
    assert not _locks.is_locked(lock)
