"""Atomic file writes that never follow symbolic links: write under a temporary name, then rename."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom, BufferedReader, TextIOWrapper
from pathlib import Path
from typing import IO, Any, TextIO

from sightline.errors import OutputError, UsageError

ADVICE = "Free some space or check its permissions."  # default end of messages about files that cannot be written
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # an address as a path, which drops one slash
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # constants from Linux's fcntl.h and fs.h
# Windows lacks the first three flags, and has no named pipes in folders.
_SAFE_FLAGS = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))


def write_atomic(
    path: Path, content: bytes | Callable[[IO[bytes]], Any], advice: str = ADVICE, *, root: Path | None = None
) -> Path:
    """Write `content`, bytes or a function that writes to a file, to `path` atomically; return `path`.

    Parent folders are created. The file is synced to disk before the rename, so that a power failure leaves either the
    old file or the new one. A symbolic link at `path` is replaced, not followed; a link among the folders between
    `path` and `root`, or the run directory that contains `path`, is refused, so that an untrusted folder cannot
    redirect writes outside of it. On failure, leaves the old file at `path` and raises `OutputError`, whose message
    ends with `advice`.
    """
    with _replacing(path, advice, root) as temporary_file:
        write_new(temporary_file, content)
    return path


def write_new(path: Path, content: bytes | Callable[[IO[bytes]], Any]) -> None:
    """Write a file that does not exist yet, and sync it to disk; raises `OSError`."""
    with create_exclusive(path) as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            content(file)
        file.flush()
        os.fsync(file.fileno())


def save_atomic(path: Path, save: Callable[[Path], Any], *, root: Path | None = None) -> Path:
    """Write a file like `write_atomic`, with a function that accepts a name rather than an open file, as in Keras.

    On Linux the name refers to a file that is already open, so that nobody can replace it with a link in the meantime.
    """
    with _replacing(path, ADVICE, root) as temporary_file, create_exclusive(temporary_file) as file:
        with name_open_file(file, temporary_file) as name:
            save(name)
        os.fsync(file.fileno())
    return path


@contextmanager
def _replacing(path: Path, advice: str, root: Path | None) -> Iterator[Path]:
    """Yield a temporary name for the block to write to; the file then replaces `path`."""
    if root is not None:
        refuse_links(root, path.parent)
    refuse_links_in_run(path.parent)
    temporary_file = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary_file
        temporary_file.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}. {advice}") from error
    finally:
        with suppress(OSError):  # the file exists only after a failure
            temporary_file.unlink()


@contextmanager
def as_text(file: IO[bytes]) -> Iterator[TextIO]:
    """Yield a text wrapper of a new file: UTF-8, line ends unchanged, lone surrogates written as escapes."""
    text = TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="", write_through=False)
    try:
        yield text
        text.flush()
    finally:
        with suppress(OSError):  # flushing fails again on a full disk, which has already been reported
            text.detach()


def expand_home(path: str | Path) -> Path:
    """Return a path with a leading ``~`` expanded, as shells do; unchanged if there is no such user."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  # `Path.expanduser` raises an error


def output_path(path: str | Path) -> Path:
    """Return the path of a file or folder to write, with ``~`` expanded; raises `UsageError` for an address."""
    path = expand_home(path)
    if match := _ADDRESS.match(path.as_posix()):
        address = f"{match[0]}/{path.as_posix().removeprefix(match[0])}"
        raise UsageError(
            f"{address} is an address, but this is written to a local disk: give a local path, then copy the result "
            "there."
        )
    return path


def exists(path: Path) -> bool:
    """Return whether there is a file or folder at this path; False for an impossible path (too long)."""
    return os.path.exists(path)  # noqa: PTH110  # `Path.exists` raises an error


def temporary_path(path: Path) -> Path:
    """Return an unguessable temporary name next to `path`; a killed process may leave such a file behind.

    It keeps the suffix of `path`, because some writers choose a format by it.
    """
    return path.parent / f".part-{secrets.token_hex(8)}{path.suffix[:16]}"  # "." and "/" have no name


def create_exclusive(path: Path) -> BufferedRandom:
    """Open a new file for reading and writing; raises `FileExistsError` if the name exists, even as a dangling link."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _SAFE_FLAGS, 0o666), "w+b")


def open_in_place(path: Path, *, new: bool, append: bool = False) -> IO[bytes]:
    """Open a file for changes in place, creating it if `new`; raises `OSError` for a link or a non-regular file.

    A file with another hard link is refused too, as the change would show under the other name. With `append`, all
    writes go to the end of the file, even when several processes write.
    """
    flags = (os.O_CREAT if new else 0) | (os.O_APPEND if append else 0)
    descriptor = os.open(path, os.O_RDWR | flags | _SAFE_FLAGS, 0o666)
    _check_regular(descriptor, path, max_links=1)
    return os.fdopen(descriptor, "r+b")


def open_regular(path: str | Path) -> BufferedReader:
    """Open a file for reading, following links; raises `OSError` at once for a pipe, a device or a folder.

    Checks the opened file, not its name, which may refer to something else by then. A file of size 0 that has content,
    such as those in ``/proc``, is refused too: the system generates it during the read, and it may have no end.
    """
    descriptor = os.open(path, os.O_RDONLY | (_SAFE_FLAGS & ~getattr(os, "O_NOFOLLOW", 0)))
    _check_regular(descriptor, path, max_links=None)
    file = os.fdopen(descriptor, "rb")
    if os.fstat(descriptor).st_size == 0 and file.peek(1):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return file


@contextmanager
def name_open_file(file: IO[bytes], path: Path) -> Iterator[Path]:
    """Yield a name, with the suffixes of `path`, under which a library can open `file`, whatever is at `path` by then.

    It is a link in a private folder where the system has names for open files (Linux), elsewhere `path` itself.
    """
    target = Path(f"/proc/self/fd/{file.fileno()}")
    if not target.exists():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="sightline-") as folder:
        name = Path(folder, "file" + "".join(path.suffixes[-2:]))  # Keras distinguishes .weights.h5 from .h5
        name.symlink_to(target)
        yield name


def read_regular(path: Path, max_bytes: int) -> bytes:
    """Return the content of a file; raises `OSError` as `open_regular` does, and for more than `max_bytes` bytes.

    Checks the size first: a sparse file may be larger than memory while using no disk space.
    """
    with open_regular(path) as file:
        if (size := os.fstat(file.fileno()).st_size) <= max_bytes:
            return file.read(size)  # Python allocates as much as it is asked to read
    raise OSError(errno.EFBIG, f"more than {max_bytes:,} bytes", str(path))


def _check_regular(descriptor: int, path: str | Path, max_links: int | None) -> None:
    """Close the file and raise `OSError` unless it is a regular file with at most `max_links` hard links."""
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode) or (max_links is not None and state.st_nlink > max_links):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def refuse_links(root: Path, folder: Path) -> None:
    """Raise `OutputError` if `folder`, or a folder between it and `root`, is a link or a file; `root` may be a link."""
    for ancestor in (folder, *folder.parents):
        if ancestor == root:
            return
        if ancestor.is_symlink():
            raise OutputError(
                f"{ancestor} is a link to {ancestor.readlink()}, and nothing is written through "
                "links: replace it with a folder."
            )
        if ancestor.exists() and not ancestor.is_dir():
            raise OutputError(f"{ancestor} is not a folder, so nothing can be written into it: remove it.")


def refuse_links_in_run(folder: Path) -> None:
    """Raise `OutputError` if a folder between `folder` and the run directory that contains it is a link.

    If run directories are nested, the outermost one counts: a link may lead to a folder that imitates a run.
    """
    runs = [parent for parent in (folder, *folder.parents) if (parent / "run.json").is_file()]
    if runs:
        refuse_links(runs[-1], folder)


def is_free(folder: Path) -> bool:
    """Return whether a new folder can be put at this path: there is nothing there, or an empty folder.

    Raises `OutputError` for the current folder, which cannot be replaced, and for a path that cannot be read.
    """
    try:
        if folder.samefile("."):
            raise OutputError(f"{folder} is the current folder, which cannot be replaced: name a folder in it.")
        return folder.is_dir() and not any(folder.iterdir())
    except FileNotFoundError:
        return True
    except OSError as error:
        raise OutputError(f"{folder} cannot be read: {error.strerror}. Choose another folder.") from error


def check_writable(path: Path, option: str = "--out") -> None:
    """Raise `OutputError` if nothing can be written at `path`, given as `option`, before any work is done for it."""
    folder = path
    try:
        folder = path if path.is_dir() else path.parent
        while not folder.exists():
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        reason = f"{folder} is not writable: {error.strerror}"
        raise OutputError(f"{reason}. Choose another folder with {option}.") from error


@contextmanager
def replacing_folder(folder: Path, subject: str) -> Iterator[Path]:
    """Yield the path of a folder for the block to create, which then replaces `folder`; see `replace_folder`.

    Parent folders are created. If that fails, raises `OutputError`, whose message starts with `subject`.
    """
    refuse_links_in_run(folder.parent)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=folder.parent) as temporary:
            new_folder = Path(temporary, "new")
            yield new_folder
            replace_folder(new_folder, folder)
    except OSError as error:
        raise OutputError(f"{subject} cannot be written: {error.strerror or error}.") from error


def create_folder(folder: Path, content: str) -> Path:
    """Create a folder for the files called `content`, unless it exists, and return its path; raises `OutputError`."""
    folder = output_path(folder)
    refuse_links_in_run(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"The folder {folder} for {content} cannot be created: {error.strerror or error}. Choose another."
        ) from error
    return folder


def replace_folder(new: Path, folder: Path) -> None:
    """Rename the folder `new` to `folder`; an existing one moves to `new`, or to ``old`` next to it, to be deleted.

    On Linux the two are exchanged in one step, so that a killed process leaves one of them at `folder`. Elsewhere, if
    the renaming fails or is interrupted, the existing folder is put back: it may be the only copy.
    """
    if folder.exists() and _exchange(new, folder):
        return
    old = new.with_name("old")
    try:
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except BaseException:  # Ctrl-C too
        if not folder.exists():
            with suppress(FileNotFoundError):  # it was never there
                old.rename(folder)
        raise


def _exchange(first: Path, second: Path) -> bool:
    """Exchange what is at two paths in one step; returns whether the system supports it."""
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    rename = getattr(ctypes.CDLL(None), "renameat2", None)  # since glibc 2.28
    arguments = (_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    return rename is not None and rename(*arguments) == 0


def holds_files(folder: Path) -> bool:
    """Return whether a folder contains anything besides files that a killed process left half-written."""
    return any(not path.name.startswith(".part-") for path in folder.iterdir())


def remove_partial_files(folder: Path) -> None:
    """Remove files that a killed process left half-written below a folder; no other process may be writing there."""
    for path in list(folder.rglob(".part-*")):
        remove(path)


def remove(path: Path) -> None:
    """Delete whatever is at `path`: a file, a link, which is not followed, a folder with its contents, or nothing.

    An untrusted run may have a folder where a file is expected, or the reverse. Raises `OutputError` if it stays.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be deleted: {error.strerror}. Check its permissions, or delete it yourself."
        ) from error


def sync_folder(folder: Path) -> None:
    """Flush the directory entries of `folder` to disk, as `os.fsync` does for content; no-op on Windows."""
    if os.name == "nt":  # folders cannot be opened there, and the file system journals names
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reserve_space(descriptor: int, size: int) -> None:
    """Allocate `size` bytes on disk for the open file descriptor `descriptor`, if the system can.

    A full disk then raises an `OSError` here instead of a bus error in a memory map later.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)


def safe_stem(name: str, length: int = 40) -> str:
    """Return `name` as a file name stem of at most `length` characters; all but letters, digits, - and _ become -.

    >>> safe_stem("flowers 5.zip")
    'flowers-5-zip'
    """
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name[:length])
