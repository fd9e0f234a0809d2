"""Files that are whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sightline.errors import OutputError


def write(
    path: Path, content: bytes | Callable[[Path], Any], advice: str = "Free some space or check its rights."
) -> Path:
    """Write bytes to `path`, or let a function write a file there, and return `path`; folders are made as needed.

    Bytes are on the disk before the name is: a machine that is switched off leaves the old file or the new one. (Of a
    file that a function writes, only that no killed process leaves half of it.)
    Raises `OutputError`, which ends with `advice`, and leaves what was at `path` as it is.
    """
    aside = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            with aside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        else:
            content(aside)
        aside.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}. {advice}") from error
    finally:
        with suppress(OSError):  # there no more, unless something went wrong
            aside.unlink()
    return path


def sync(folder: Path) -> None:
    """Have the names in `folder` written to the disk, as `os.fsync` does for content; no-op where it cannot be done."""
    if os.name == "nt":  # a folder cannot be opened there, and names are kept by the file system's own journal
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def reserve(number: int, size: int) -> None:
    """Take `size` bytes of the disk for the open file `number`, where the system can.

    A full disk is then an `OSError` here, not a bus error in a memory map later.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(number, 0, size)


def stem(name: str) -> str:
    """Return `name` as the start of a file's name: other than letters, digits, - and _ become -, at most 40.

    >>> stem("flowers 5.zip")
    'flowers-5-zip'
    """
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)[:40]
