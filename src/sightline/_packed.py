"""Read zip files and NumPy arrays only after counting and measuring their contents. Nothing is unpickled."""

from __future__ import annotations

import lzma
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:  # annotations only: the command line's help must not import NumPy
    from numpy.typing import NDArray

ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, NotImplementedError, OverflowError,
    RuntimeError, ValueError,
)  # fmt: skip
"""What `zipfile` may raise for a corrupt file."""
MAX_MEMBERS = 100_000  # limit for zip files written by Sightline: a checkpoint has one member per weight
_MAX_DIRECTORY_BYTES = 1 << 30
_MEMBER_SIGNATURE = b"PK\1\2"
BOUNDED_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
"""`zipfile` decompresses no more than requested with these methods; with others, everything that it has read."""
_NPY_HEADER = 12 + 10_000  # bytes before the data; NumPy refuses longer headers


class _DirectoryCheck:
    """A zip file whose directory is checked when it is read, before `zipfile` creates an object for each member."""

    def __init__(self, file: IO[bytes], check_count: Callable[[int], None]) -> None:
        self._file, self._check_count = file, check_count
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if size > _MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(
                f"its directory has {size:,} bytes, more than the limit of {_MAX_DIRECTORY_BYTES:,}"
            )
        data = self._file.read(size)
        self._check_count(data.count(_MEMBER_SIGNATURE))
        return data


def open_zip(file: IO[bytes], check_count: Callable[[int], None] | None = None) -> zipfile.ZipFile:
    """Open a zip file for reading, once `check_count` has accepted the number of its members.

    A directory of 64 MB would become a million objects that take up a gigabyte. Without `check_count`, at most
    `MAX_MEMBERS` are accepted, far more than any file of Sightline has, and none compressed with bzip2 or LZMA, which
    Sightline never uses. Raises `ZIP_ERRORS`; closing the archive leaves `file` open.
    """
    archive = zipfile.ZipFile(_DirectoryCheck(file, check_count or _check_member_count))
    archive.fp = file
    if any(info.header_offset < 0 for info in archive.infolist()):
        raise zipfile.BadZipFile("its beginning is missing, as in the last file of a split archive")
    if check_count is None and (foreign := [i for i in archive.infolist() if i.compress_type not in BOUNDED_METHODS]):
        raise zipfile.BadZipFile(f"{foreign[0].filename!r} is compressed with a method other than deflate")
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
    return np.memmap(file, dtype, "r", file.tell(), shape, "F" if is_column_major else "C")  # np.load needs a file name


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
