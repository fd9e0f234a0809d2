"""The boxes of ISO media files (JPEG 2000, AVIF, HEIF): a length, a name of four letters, and content."""

from __future__ import annotations

import struct
from collections.abc import Iterator


def iterate_boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name of each box in a range of a file, and the start and end of its content.

    A box of length 0, or one longer than the rest of the range, extends to the end of the range.
    """
    end = min(end, len(data))
    while start + 8 <= end:
        length, name = struct.unpack_from(">I4s", data, start)
        header = 8
        if length == 1 and start + 16 <= end:
            (length,) = struct.unpack_from(">Q", data, start + 8)
            header = 16
        box_end = end if length == 0 else min(start + max(length, header), end)
        yield name, start + header, box_end
        start = box_end
