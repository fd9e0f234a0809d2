"""Atomic file writes, which never follow symbolic links, and lock files.

Files are written under a temporary name and then renamed. The operating system releases a lock when its process ends.
"""

from __future__ import annotations

import errno
import lzma
import math
import os
import re
import secrets
import shutil
import stat
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sightline.errors import OutputError

if TYPE_CHECKING:  # annotations only: the command line's help must not wait for NumPy
    from numpy.typing import NDArray

if sys.platform == "win32":
    import msvcrt

    def lock_file(file: IO[bytes]) -> None:
        """Lock an open file against other processes; raises `OSError` if one has locked it."""
        file.seek(1 << 30)  # beyond the content, so that others may read it
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def lock_file(file: IO[bytes]) -> None:
        """Lock an open file against other processes; raises `OSError` if one has locked it.

        A process that inherits the file keeps it locked until it ends, too.
        """
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, NotImplementedError, OverflowError,
    RuntimeError, ValueError,
)  # fmt: skip
"""What `zipfile` may raise for a corrupt file."""
MAX_MEMBERS = 100_000  # of a zip file that Sightline wrote: a checkpoint has one for each weight
_MAX_DIRECTORY_BYTES = 1 << 30
_MEMBER_SIGNATURE = b"PK\1\2"
BOUNDED_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
"""Of these, `zipfile` decompresses no more than was asked for; of the others, all that it has read."""
_NPY_HEADER = 12 + 10_000  # bytes before the data; NumPy refuses longer headers
_MAX_OWNER_BYTES = 276
_OWNER = re.compile(rb"(\d{1,20})(?: \S{0,255})?")  # in a lock file: a process, and its host unless it is this one
# Windows lacks the first three, and has no named pipes in folders.
_SAFE_FLAGS = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))


def write_atomic(
    path: Path,
    content: bytes | Callable[[Path], Any],
    advice: str = "Free some space or check its permissions.",
    *,
    root: Path | None = None,
) -> Path:
    """Write bytes to `path` atomically, or let a function write the file; create parent folders and return `path`.

    Bytes are synced to disk before the rename, so that a power failure leaves either the old file or the new one. (A
    file written by a function is only guaranteed not to be half-written if the process is killed.) A symbolic link at
    `path` is replaced, not followed; a link among the folders between `path` and `root`, or the run directory that
    contains `path`, is refused, so that an untrusted folder cannot redirect writes outside of it.
    On failure, leaves the old file at `path` and raises `OutputError`, whose message ends with `advice`.
    """
    if root is not None:
        refuse_links(root, path.parent)
    refuse_links_in_run(path.parent)
    temporary_file = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            with create_exclusive(temporary_file) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        else:
            content(temporary_file)
        temporary_file.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}. {advice}") from error
    finally:
        with suppress(OSError):  # exists only after a failure
            temporary_file.unlink()
    return path


def temporary_path(path: Path) -> Path:
    """Return an unguessable temporary name next to `path`; a killed process may leave such a file behind.

    It keeps the suffix of `path`, by which some writers choose a format.
    """
    return path.with_name(f".part-{secrets.token_hex(8)}{path.suffix[:16]}")


def create_exclusive(path: Path) -> BufferedRandom:
    """Open a new file for reading and writing; raises `FileExistsError` if the name exists, even as a dangling link."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _SAFE_FLAGS, 0o666), "w+b")


def open_in_place(path: Path, *, new: bool) -> IO[bytes]:
    """Open a file for changes in place, creating it if `new`; raises `OSError` for a link or a non-regular file.

    A file with another hard link is refused too, as the change would show under the other name.
    """
    descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if new else 0) | _SAFE_FLAGS, 0o666)
    _check_regular(descriptor, path, max_links=1)
    return os.fdopen(descriptor, "r+b")


def open_regular(path: str | Path) -> BufferedReader:
    """Open a file for reading, following links; raises `OSError` at once for a pipe, a device or a folder.

    Checks the opened file, not its name, which may refer to something else by then. A file of size 0 with content, as
    those of ``/proc``, is refused too: the system writes it while it is read, and it may have no end.
    """
    descriptor = os.open(path, os.O_RDONLY | (_SAFE_FLAGS & ~getattr(os, "O_NOFOLLOW", 0)))
    _check_regular(descriptor, path, max_links=None)
    file = os.fdopen(descriptor, "rb")
    if os.fstat(descriptor).st_size == 0 and file.peek(1):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return file


def read_regular(path: Path, max_bytes: int) -> bytes:
    """Return the content of a file; raises `OSError` as `open_regular` does, and for more than `max_bytes` bytes.

    Checks the size first: a sparse file may be larger than memory while using no disk space.
    """
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size <= max_bytes and len(content := file.read(max_bytes + 1)) <= max_bytes:
            return content
    raise OSError(errno.EFBIG, f"more than {max_bytes:,} bytes", str(path))


def copy_regular(source: Path, target: Path) -> None:
    """Copy a file to the new file `target` in chunks; raises `OSError` as `open_regular` and `create_exclusive` do."""
    with open_regular(source) as file, create_exclusive(target) as copy:
        shutil.copyfileobj(file, copy)
        copy.flush()
        os.fsync(copy.fileno())


def _check_regular(descriptor: int, path: str | Path, max_links: int | None) -> None:
    """Close the file and raise `OSError` unless it is a regular file with at most `max_links` hard links."""
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode) or (max_links is not None and state.st_nlink > max_links):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))


class _DirectoryCheck:
    """A zip file whose directory is checked when it is read, before `zipfile` makes an object of each member."""

    def __init__(self, file: IO[bytes], check_count: Callable[[int], None]) -> None:
        self._file, self._check_count = file, check_count
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if size > _MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"a directory of {size:,} bytes, where {_MAX_DIRECTORY_BYTES:,} are the limit")
        data = self._file.read(size)
        self._check_count(data.count(_MEMBER_SIGNATURE))
        return data


def open_zip(file: IO[bytes], check_count: Callable[[int], None] | None = None) -> zipfile.ZipFile:
    """Open a zip file for reading, after `check_count` has accepted the number of its members.

    A directory of 64 MB would make a million objects that take a gigabyte. Without `check_count`, at most
    `MAX_MEMBERS`, far more than any file of Sightline has, and none that is compressed with bzip2 or LZMA, as Sightline
    never does. Raises `ZIP_ERRORS`; closing the archive leaves `file` open.
    """
    archive = zipfile.ZipFile(_DirectoryCheck(file, check_count or _check_member_count))
    archive.fp = file
    if check_count is None and (foreign := [i for i in archive.infolist() if i.compress_type not in BOUNDED_METHODS]):
        raise zipfile.BadZipFile(f"{foreign[0].filename!r} is compressed by another method than deflate")
    return archive


def _check_member_count(count: int) -> None:
    if count > MAX_MEMBERS:
        raise zipfile.BadZipFile(f"more than {MAX_MEMBERS:,} members")


def load_arrays(file: IO[bytes], ratio: float = 1) -> dict[str, NDArray[Any]]:
    """Return the arrays of an ``.npz`` file that expands to at most `ratio` times its size, else raise `ValueError`.

    A compressed file of a few megabytes may expand to gigabytes; the ratio of an uncompressed one is 1. Nothing is
    unpickled.
    """
    import numpy as np

    try:
        _check_ratio(file, ratio)
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError):
        raise
    except Exception as error:  # zipfile, its decompressors and NumPy raise a dozen other types
        raise ValueError(f"not an .npz file, or a damaged one: {error}") from error


def load_array(file: IO[bytes]) -> NDArray[Any]:
    """Return the array of an ``.npy`` file; raises `ValueError` as `check_array_size` does. Nothing is unpickled."""
    import numpy as np

    check_array_size(file)
    array: NDArray[Any] = np.load(file, allow_pickle=False)
    return array


def map_array(file: IO[bytes]) -> NDArray[Any]:
    """Return the array of an ``.npy`` file mapped into memory, read-only; raises `ValueError` as `load_array` does."""
    import numpy as np

    check_array_size(file)
    shape, is_column_major, dtype = _read_array_header(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    return np.memmap(file, dtype, "r", file.tell(), shape, "F" if is_column_major else "C")  # np.load opens by name


def check_array_size(file: IO[bytes]) -> None:
    """Raise `ValueError` unless the size of an ``.npy`` file matches the stated shape; the file is then at its start.

    NumPy would allocate memory for any stated shape before reading.
    """
    size = _stated_size(file)
    left = file.seek(0, os.SEEK_END) - file.seek(0)
    if not 0 <= left - size <= _NPY_HEADER:
        raise ValueError(f"its header states {size:,} bytes of data, but it has {left:,}")


def _stated_size(file: IO[bytes]) -> int:
    """Return the size of the array in bytes, as stated by the header of an ``.npy`` file; raises `ValueError`."""
    shape, _, dtype = _read_array_header(file)
    return math.prod(shape) * int(dtype.itemsize)


def _read_array_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, Any]:
    """Return the shape of an ``.npy`` file, whether it is column-major, and its dtype; raises `ValueError`."""
    import numpy as np

    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        header: tuple[tuple[int, ...], bool, Any] = read(file)
        return header
    except (OSError, ValueError):
        raise
    except Exception as error:  # many types, as in `load_arrays`
        raise ValueError(f"not an .npy file, or a damaged one: {error}") from error


def _check_ratio(file: IO[bytes], ratio: float) -> None:
    with open_zip(file) as archive:
        size = sum(info.file_size for info in archive.infolist())
    end = file.seek(0, os.SEEK_END)
    if size > ratio * end:
        raise ValueError(f"its arrays take {size:,} bytes, more than {ratio:g} times the file's {end:,} bytes")
    file.seek(0)


def refuse_links(root: Path, folder: Path) -> None:
    """Raise `OutputError` if `folder`, or one between it and `root`, is a link or not a folder; `root` may be one."""
    for ancestor in (folder, *folder.parents):
        if ancestor == root:
            return
        if ancestor.is_symlink():
            raise OutputError(
                f"{ancestor} is a link to {ancestor.readlink()}, and nothing is written through "
                "links: replace it by a folder."
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


@contextmanager
def hold_lock(path: Path, what: str) -> Iterator[IO[bytes]]:
    """Hold a lock on the file at `path` during the block, which gets the open file; the file itself stays.

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
            lock_file(file)
        except OSError:
            raise OutputError(
                f"{what} is in use by another process{_describe_owner(file)}: wait until it ends, or stop it."
            ) from None
        if (content := file.read(_MAX_OWNER_BYTES + 1)) and not _OWNER.fullmatch(content):
            raise OutputError(f"{path} is not a lock file, so it was left unchanged: move it away.")
        file.seek(0)
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        file.flush()
        yield file


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock on the file at `path`; False if there is no such file."""
    try:
        with open_in_place(path, new=False) as file:
            lock_file(file)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _describe_owner(file: IO[bytes]) -> str:
    owner = _OWNER.fullmatch(file.read(_MAX_OWNER_BYTES))
    return f" ({owner[1].decode()})" if owner else ""


def sync_folder(folder: Path) -> None:
    """Flush the directory entries of `folder` to disk, as `os.fsync` does for content; no-op on Windows."""
    if os.name == "nt":  # folders cannot be opened there, and the file system journals its names
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


def safe_stem(name: str) -> str:
    """Return `name` as a file name stem: characters other than letters, digits, - and _ become -, at most 40.

    >>> safe_stem("flowers 5.zip")
    'flowers-5-zip'
    """
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)[:40]
