"""Lock files: held by one process at a time, and released by the operating system when it ends."""

from __future__ import annotations

import errno
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from sightline._io import open_in_place, open_regular
from sightline.errors import OutputError

if sys.platform == "win32":
    import msvcrt

    def _lock_file(file: IO[bytes], *, shared: bool = False) -> None:
        """Lock an open file against other processes; raises `OSError` if one has locked it."""
        del shared  # Windows has no shared locks
        file.seek(1 << 30)  # lock a byte beyond the content, so that others can read it
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock_file(file: IO[bytes], *, shared: bool = False) -> None:
        """Lock an open file against other processes; raises `OSError` if one has locked it.

        A process that inherits the file also keeps it locked until it ends. With `shared`, other processes can hold a
        `shared` lock at the same time.
        """
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


_MAX_OWNER_BYTES = 276
_OWNER = re.compile(rb"(\d{1,20})(?: \S{0,255})?")  # in a lock file: the process id, and the host if not this one
_PAUSES = (0.001, 0.01, 0.05)  # seconds between attempts: `is_locked` in another process locks the file briefly
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # no locks: Lustre or NFS may be mounted so


@contextmanager
def hold_lock(path: Path, what: str) -> Iterator[IO[bytes]]:
    """Hold a lock on the file at `path` during the block, and yield the open file; it is not deleted afterwards.

    Raises `OutputError` at once, naming `what`, if another process (or another block in this one) holds the lock.
    """
    try:
        file = open_in_place(path, new=True)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.EINVAL}:
            raise OutputError(
                f"{path} is a link or not a regular file, so nothing is written there: remove it."
            ) from error
        raise OutputError(
            f"{path} cannot be written: {error.strerror}. Check the permissions of the folder."
        ) from error
    with file:
        try:
            _lock_soon(file)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                raise OutputError(
                    f"{path} cannot be locked: {error.strerror}. Choose a folder whose file system has locks."
                ) from error
            raise OutputError(
                f"{what} is in use by another process{_describe_owner(file)}: wait until it ends, or stop it."
            ) from None
        if (content := file.read(_MAX_OWNER_BYTES + 1)) and not _OWNER.fullmatch(content):
            raise OutputError(f"{path} is not a lock file, so it was left unchanged: move it elsewhere.")
        file.seek(0)
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        file.flush()
        yield file


def _lock_soon(file: IO[bytes]) -> None:
    for pause in _PAUSES:
        try:
            return _lock_file(file)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                raise
        time.sleep(pause)
    return _lock_file(file)


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock on the file at `path`; False without such a file or without locks."""
    try:
        with open_regular(path) as file:
            _lock_file(file, shared=True)  # works for several callers at once, and on a read-only disk
    except FileNotFoundError:
        return False
    except OSError as error:
        return error.errno not in _UNSUPPORTED
    return False


def _describe_owner(file: IO[bytes]) -> str:
    owner = _OWNER.fullmatch(file.read(_MAX_OWNER_BYTES))
    return f" ({owner[1].decode()})" if owner else ""
