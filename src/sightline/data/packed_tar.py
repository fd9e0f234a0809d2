"""Unpack a compressed tar archive into an unnamed temporary file, within limits on its size and on memory."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import IO, Any

_PIECE = 1 << 20  # bytes
_XZ_MEMORY = 256 << 20  # bytes for the .xz dictionary, whose size the header states; `xz -9` takes 65 MiB
_XZ_MAGIC = b"\xfd7zXZ\0"


def open_plain_tar(file: IO[bytes], check_size: Callable[[int], None]) -> IO[bytes]:
    """Return `file` if it is not compressed; otherwise close it and return a file with its unpacked content.

    `check_size` is called with the number of bytes unpacked so far, and may raise. Raises the errors of `gzip`, `bz2`
    and `lzma` for damaged content, and `lzma.LZMAError` for an .xz dictionary that takes too much memory.
    """
    # Long signatures, because a plain tar begins with a file name, which may start with BZh.
    unpackers: dict[bytes, Callable[[IO[bytes]], Iterator[bytes]]] = {
        rb"\x1f\x8b\x08": partial(_read_pieces, gzip.open), rb"BZh[1-9]1AY&SY": partial(_read_pieces, bz2.open),
        re.escape(_XZ_MAGIC): _unpack_xz,
    }  # fmt: skip
    start = file.read(10)
    file.seek(0)
    unpack = next((u for magic, u in unpackers.items() if re.match(magic, start)), None)
    if unpack is None:
        return file
    plain = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the store
    try:
        with file:
            for piece in unpack(file):
                plain.write(piece)
                check_size(plain.tell())
    except BaseException:
        plain.close()
        raise
    plain.seek(0)
    return plain


def _read_pieces(opener: Callable[..., Any], file: IO[bytes]) -> Iterator[bytes]:
    with opener(file, "rb") as packed:
        while piece := packed.read(_PIECE):
            yield piece


def _unpack_xz(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the content of one or several .xz streams; `lzma.open` has no limit on memory."""
    packed = file.read(_PIECE)
    while packed.startswith(_XZ_MAGIC):
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY)
        while not unpacker.eof:
            try:
                piece = unpacker.decompress(packed, _PIECE)
            except lzma.LZMAError as error:
                if "limit" not in str(error):
                    raise
                raise lzma.LZMAError(
                    f"unpacking it takes more memory than the limit of {_XZ_MEMORY >> 20} MiB, so compress it with a "
                    "smaller dictionary, as xz -9 does"
                ) from error
            if piece:
                yield piece
            packed = file.read(_PIECE) if unpacker.needs_input else b""
            if unpacker.needs_input and not packed:
                raise EOFError("the compressed data ends too early")
        packed = unpacker.unused_data.lstrip(b"\0")  # streams may be separated by zeros
        while len(packed) < len(_XZ_MAGIC) and (more := file.read(_PIECE)):
            packed = (packed + more).lstrip(b"\0")
