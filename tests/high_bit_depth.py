"""Images with more than 8 bits per sample, encoded by hand where Pillow cannot write them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_16(values: NDArray[Any], significant: int = 0) -> bytes:
    """Return a PNG of uint16 [H, W] or [H, W, 3 or 4]; an sBIT chunk states the number of `significant` bits."""
    height, width, *rest = values.shape
    kind = {0: 0, 2: 4, 3: 2, 4: 6}[rest[0] if rest else 0]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    significant_bits = png_chunk(b"sBIT", bytes([significant] * (rest[0] if rest else 1))) if significant else b""
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + significant_bits
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )


def tiff(
    values: NDArray[Any], tags: Mapping[int, Any] | None = None, order: Literal["<", ">"] = "<", *, packed: bool = False
) -> bytes:
    """Return a one-strip TIFF of uint16, int16, int32 or float32 [H, W], or uint16 [H, W, C]; `packed`: Deflate."""
    height, width, *rest = values.shape
    planes, size = rest[0] if rest else 1, values.dtype.itemsize
    content = values.astype(values.dtype.newbyteorder(order)).tobytes()
    content = zlib.compress(content) if packed else content
    ifd = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II" if order == "<" else b"MM")
    ifd[256], ifd[257], ifd[258] = width, height, (8 * size,) * planes
    ifd[259], ifd[262], ifd[277], ifd[278] = 8 if packed else 1, 2 if planes >= 3 else 1, planes, height
    ifd[339] = ({"u": 1, "i": 2, "f": 3}[values.dtype.kind],) * planes
    if planes == 4:
        ifd[338] = 2
    for tag, value in (tags or {}).items():
        ifd.tagtype[tag] = 12 if tag in (340, 341) else 3
        ifd[tag] = value
    ifd[273], ifd[279] = 0, len(content)  # Pillow adds the offset of the tags' end
    head = b"II*\0" if order == "<" else b"MM\0*"
    return head + struct.pack(f"{order}I", 8) + ifd.tobytes(8) + content


def float_tiff(values: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values.astype(np.float32)).save(file, "TIFF")
    return file.getvalue()
