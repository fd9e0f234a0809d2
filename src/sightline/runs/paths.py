"""Paths of runs: is there a run, may one be written there, the lock, and free names."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from sightline import _io, _locks
from sightline.errors import ModelError, OutputError, UsageError

LOCK_NAME = "lock"


def is_run(path: Path) -> bool:
    """Return whether `path` is a run directory, of any status."""
    return (path / "run.json").is_file()


def lock_run(path: Path) -> AbstractContextManager[object]:
    """Lock the run at `path` against other processes.

    Raises `OutputError` if another process has locked it, or if the path goes through a link inside another run.
    """
    _io.refuse_links_in_run(path)
    return _locks.hold_lock(path / LOCK_NAME, f"The run {path}")


def check_writable(path: Path, *, force: bool = False) -> None:
    """Raise, before any work, if a run could not be written to `path`."""
    _io.refuse_links_in_run(path.parent)
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file: choose a folder that does not exist yet with --out.")
    if path.exists() and any(p.name != LOCK_NAME and not p.name.startswith(".part-") for p in path.iterdir()):
        if not force:
            replace = ", or replace the run with --force" if is_run(path) else ""
            raise OutputError(f"{path} exists already and is not empty: choose another folder with --out{replace}.")
        if not is_run(path):
            raise UsageError(f"{path} is not a run, so --force does not remove it: choose another folder with --out.")
        if path.is_symlink():
            raise OutputError(
                f"{path} is a link to {path.readlink()}, and --force removes no folder through a link: name that "
                "folder with --out."
            )
        with lock_run(path):  # raises if another process is writing it
            pass
    _io.check_writable(path)


def next_path(base: Path, stem: str) -> Path:
    """Return ``base/stem-N`` for the smallest N >= 1 such that it does not exist.

    >>> next_path(Path("no-such-folder"), "quick-beans").as_posix()
    'no-such-folder/quick-beans-1'
    """
    number = 1
    while (base / f"{stem}-{number}").exists():
        number += 1
    return base / f"{stem}-{number}"


def require_run(path: Path) -> None:
    """Raise `ModelError` for a path that is not a run, stating what it is, and which command accepts it."""
    if not is_run(path):
        raise ModelError(_explain_not_a_run(path))


def _explain_not_a_run(path: Path) -> str:
    if not path.exists():
        return f"There is no folder {path}: check the path of the run, which may have been moved or deleted."
    bundle = path if path.is_dir() else path.parent
    if (bundle / "manifest.json").is_file():
        use = f"use the run {bundle.parent}. " if is_run(bundle.parent) else ""
        return f"{path} is a bundle, not a run: {use}`sightline evaluate`, `predict` and `explain` take bundles."
    if path.is_file():
        return f"{path} is a file, not a run: use the folder that `sightline train` wrote."
    if runs := sorted(str(file.parent) for file in path.glob("*/run.json"))[:5]:
        return f"{path} is not a run but contains some: use {' or '.join(runs)}."
    return (
        f"{path} is not a run: expected a folder written by `sightline train`, with its run.json. If training was "
        "interrupted before it wrote anything, start it again. Folders of images are for `sightline train`."
    )
