"""Read a member of an untrusted zip without decompressing more than requested.

For stored and deflated members, `zipfile` respects the number of bytes to read. For others, it decompresses everything
it has read before it truncates the result: 4 kB of bzip2 may become 5 GB.
"""

from __future__ import annotations

import bz2
import copy
import lzma
import struct
import zipfile
import zlib
from typing import IO, Any, Self

from sightline._packed import BOUNDED_METHODS

_PIECE = 1 << 16  # bytes of compressed data
_LEAST_DICTIONARY = 4096  # bytes; minimum for LZMA


def open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Any:
    """Open a member for reading, in a `with` block; raises what `zipfile` does.

    ``read(size)`` of the result requires a size, and raises `zipfile.BadZipFile` if the checksum of the member differs.
    """
    unpackers = {zipfile.ZIP_BZIP2: _start_bzip2, zipfile.ZIP_LZMA: _start_lzma}
    if info.compress_type in BOUNDED_METHODS or info.compress_type not in unpackers:
        return archive.open(info)
    raw = copy.copy(info)  # presents the compressed bytes as a stored member
    raw.compress_type, raw.file_size = zipfile.ZIP_STORED, info.compress_size
    del raw.CRC
    return _BoundedMember(archive.open(raw), unpackers[info.compress_type], info)


def _start_bzip2(_file: IO[bytes], _size: int) -> Any:
    return bz2.BZ2Decompressor()


def _start_lzma(file: IO[bytes], size: int) -> Any:
    """Read the header of an LZMA member (APPNOTE 5.8.8): a version in two bytes, a size, and the properties.

    The header may state a dictionary of 4 GiB, but a dictionary as large as the content, `size`, is enough.
    """
    _, header_size = struct.unpack("<HH", file.read(4))
    packed, dict_size = struct.unpack("<BI", file.read(header_size))
    dict_size = min(dict_size, max(size, _LEAST_DICTIONARY))
    properties = {"dict_size": dict_size, "lc": packed % 9, "lp": packed // 9 % 5, "pb": packed // 45}
    return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA1, **properties}])


class _BoundedMember:
    def __init__(self, file: IO[bytes], start: Any, info: zipfile.ZipInfo) -> None:
        self._file, self._info = file, info
        self._unpacker = start(file, info.file_size)
        self._left, self._checksum = info.file_size, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def read(self, size: int) -> bytes:
        pieces = []
        size = min(size, self._left)
        while size > 0 and not self._unpacker.eof:
            packed = self._file.read(_PIECE) if self._unpacker.needs_input else b""
            if self._unpacker.needs_input and not packed:
                break
            pieces.append(self._unpacker.decompress(packed, size))
            size -= len(pieces[-1])
            self._left -= len(pieces[-1])
            self._checksum = zlib.crc32(pieces[-1], self._checksum)
        if (size or not self._left) and self._checksum != self._info.CRC:
            raise zipfile.BadZipFile(f"Bad CRC-32 for file {self._info.filename!r}")
        return b"".join(pieces)
