"""Where a run may be written: names that are free, folders that can be, and the lock of who writes there."""

from __future__ import annotations

import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

from sightline import files
from sightline.errors import OutputError, UsageError

LOCK = "lock"


def held(path: Path) -> AbstractContextManager[None]:
    """Keep other processes from writing the run at `path`; raises `OutputError` if one does already."""
    return files.lock(path / LOCK, f"The run {path}")


def check_writable(path: Path, *, force: bool = False) -> None:
    """Raise at once, before any work, what would stop a run from being written to `path` at its end."""
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file: name a folder that does not exist yet with --out.")
    if path.exists() and any(p.name != LOCK and not p.name.startswith(".part-") for p in path.iterdir()):
        if not force:
            raise OutputError(
                f"{path} exists already and is not empty: name another folder with --out, or use --force."
            )
        if not (path / "run.json").is_file():
            raise UsageError(f"{path} is not a run, so --force does not remove it: name another folder with --out.")
        with held(path):  # not under the hands of the process that writes it
            pass
    folder = path
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"Nothing can be written in {folder}: {error.strerror}. Name another place with --out."
        ) from error


def next_path(base: Path, stem: str) -> Path:
    """Return ``base/stem-N`` for the smallest N from 1 on that does not exist.

    >>> next_path(Path("no-such-folder"), "quick-beans").as_posix()
    'no-such-folder/quick-beans-1'
    """
    number = 1
    while (base / f"{stem}-{number}").exists():
        number += 1
    return base / f"{stem}-{number}"
