"""A lock that the operating system takes back when its process ends, however it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from sightline.errors import OutputError

if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[bytes]) -> None:
        file.seek(1 << 30)  # beyond the content, which others may then read
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file at `path` while the block runs; the file stays, the lock does not.

    Raises `OutputError` at once, naming `what`, if another process (or another block of this one) holds it.
    """
    try:
        file = path.open("a+b")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}. Check the rights of the folder.") from error
    with file:
        try:
            _lock(file)
        except OSError:
            raise OutputError(
                f"{what} is in use by another process{_owner(path)}: wait until it ends, or stop it."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        file.flush()
        yield


def is_held(path: Path) -> bool:
    """Whether a process holds the lock file at `path`; one that is not there is not held."""
    try:
        with path.open("r+b") as file:
            _lock(file)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _owner(path: Path) -> str:
    text = path.read_bytes()[:20]
    return f" ({text.decode()})" if text.isdigit() else ""
