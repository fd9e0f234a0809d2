"""Limits on the structure of a file, checked before Pillow reads it.

A file of a few kilobytes can keep a decoder busy for minutes without many pixels: with thousands of scans, directories,
strips or comments. Cameras and programs write a few of each. This module walks the blocks of a file, decoding none.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice

from sightline.errors import ImageError
from sightline.preprocessing import box_limits, tiff_limits
from sightline.preprocessing.counts import (
    MAX_COUNTED_FRAMES,
    MAX_EXIF_SEGMENTS,
    MAX_EXTENSION_BYTES,
    check_count,
    check_slow_size,
)

MAX_SIDE = 65_535  # pixels, the limit of JPEG; resizing handles images of this many rows
_MAX_SCANS, _MAX_SCAN_PIXELS = 300, 1_500_000_000  # per progressive JPEG: about 2 s
_MAX_SEGMENTS = 4_000  # per JPEG before its pixels; a panorama with depth has hundreds
_MAX_FRAME_PIXELS = 1_000_000_000  # in an animation up to the frame that is read: about 5 s
_MIN_FRAME_PIXELS = 100_000  # least pixels counted per frame, as even the smallest takes time
_MAX_CHUNKS, _MAX_DATA_CHUNKS = 2_000, 100_000  # per PNG
_MAX_OTHER_BLOCKS = 4_096  # in a GIF, before each frame
_MAX_SUB_BLOCKS = 1 << 19  # per frame of a GIF; programs write 255 bytes in each
_MAX_COMMENT_BYTES = 1 << 16  # bytes of whitespace and comments in a PPM's header


def check_structure(format_name: str, data: bytes) -> int | None:
    """Raise ImageError if a file of format `format_name` would take too long to read; return its frames if counted.

    At most `MAX_COUNTED_FRAMES` are counted. A truncated or damaged file is left to the decoder, which reports it.
    """
    check = _CHECKS.get(format_name)
    try:
        return None if check is None else check(data)
    except (struct.error, IndexError):
        return None


def check_sides(width: int, height: int) -> None:
    """Raise ImageError for an image with a side longer than `MAX_SIDE`."""
    if max(width, height) > MAX_SIDE:
        raise ImageError(f"too long: {width}x{height} pixels, limit {MAX_SIDE} on each side")


def check_frames(page: int, width: int, height: int) -> None:
    """Raise ImageError for a frame that follows too many pixels to decode one frame after the other."""
    if page * max(width * height, _MIN_FRAME_PIXELS) > _MAX_FRAME_PIXELS:
        raise ImageError(f"page {page} follows {page - 1} pages of {width}x{height} pixels, too many to decode")


def _check_jpeg(data: bytes) -> None:
    """Follow the segments as Pillow and libjpeg do, which both skip bytes that are not markers."""
    offset, segments, exif, skipped, size, layers, sequential = 2, 0, 0, 0, 0, 0, False
    while (match := _JPEG_MARKER.search(data, offset)) and (marker := match[1][0]) != _SCAN:
        skipped, segments, offset = skipped + match.start() - offset, segments + 1, match.end()
        if marker not in _WITHOUT_LENGTH:
            exif += marker == 0xE1 and data[offset + 2 : offset + 6] == b"Exif"
            if 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xCC}:
                height, width, layers = struct.unpack_from(">HHB", data, offset + 3)
                size, sequential = height * width, marker in {0xC0, 0xC1}
            offset += _segment_length(data, offset)
        check_count(segments, _MAX_SEGMENTS, "segments before the pixels")
        check_count(skipped, _MAX_COMMENT_BYTES, "bytes between segments")
        check_count(exif, MAX_EXIF_SEGMENTS, "EXIF segments")
    if match is None or (sequential and data[match.end() + 2] == layers):  # a single scan; the rest does not matter
        return
    offset, scans, segments = match.start(), 0, 0
    while (match := _SCAN_END.search(data, offset)) and (marker := match[1][0]) != _END:
        scans, segments, offset = scans + (marker == _SCAN), segments + (marker != _SCAN), match.end()
        offset += 0 if marker in _WITHOUT_LENGTH else _segment_length(data, offset)
        check_count(scans, _MAX_SCANS, "scans")
        check_count(segments, _MAX_SEGMENTS, "segments between scans")
    if scans > 12 and scans * size > _MAX_SCAN_PIXELS:
        raise ImageError(f"{scans} scans of {size / 1e6:.0f} megapixels, which would take too long to decode")


def _segment_length(data: bytes, offset: int) -> int:
    length: int = struct.unpack_from(">H", data, offset)[0]
    return max(length, 2)


_JPEG_MARKER = re.compile(rb"\xff([\x01-\xfe])")
_SCAN_END = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # without restart markers, which are part of a scan
_SCAN, _END = 0xDA, 0xD9
_WITHOUT_LENGTH = frozenset({0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})
"""Markers that Pillow reads without a segment. Those of JPEG extensions have one; libjpeg rejects these files."""


def _check_png(data: bytes) -> None:
    offset, other_chunks, pixel_chunks = 8, 0, 0
    while offset + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, offset)
        has_pixels = name in {b"IDAT", b"fdAT"}
        pixel_chunks, other_chunks = pixel_chunks + has_pixels, other_chunks + (not has_pixels)
        # an animation has one other chunk per frame
        check_count(other_chunks - pixel_chunks // 2, _MAX_CHUNKS, "chunks without pixels")
        check_count(pixel_chunks, _MAX_DATA_CHUNKS, "chunks of pixels")
        if name == b"IEND":
            return
        offset += 12 + length


def _check_gif(data: bytes) -> int:
    """Count the frames, using at most 16 MB."""
    return max(sum(1 for _ in islice(_iterate_gif_frames(data), MAX_COUNTED_FRAMES)), 1)


def measure_gif_canvas(data: bytes, page: int) -> tuple[int, int]:
    """Return the smallest width and height that contain the frames up to `page`, the size of Pillow's canvas."""
    width = height = 0
    with suppress(struct.error, IndexError):
        for right, bottom in islice(_iterate_gif_frames(data), page):
            width, height = max(width, right), max(height, bottom)
    return width, height


def _iterate_gif_frames(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the right and the bottom edge of each frame, using at most 16 MB."""
    offset, extension_bytes, others = 13 + _color_table_size(data[10]), 0, 0
    while offset < min(len(data), 16 << 20):
        kind = data[offset]
        if kind == 0x2C:
            left, top, width, height = struct.unpack_from("<HHHH", data, offset + 1)
            yield left + width, top + height
            others = 0
            offset = _skip_blocks(data, offset + 11 + _color_table_size(data[offset + 9]))
            continue
        if kind == 0x3B:
            break
        block_end = _skip_blocks(data, offset + 2) if kind == 0x21 else offset + 1  # like Pillow, skip anything else
        extension_bytes, others, offset = extension_bytes + max(block_end - offset - 8, 0), others + 1, block_end
        check_count(extension_bytes, MAX_EXTENSION_BYTES, "bytes of comments and extensions")
        check_count(others, _MAX_OTHER_BLOCKS, "blocks without pixels before a frame")


def _color_table_size(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _skip_blocks(data: bytes, offset: int) -> int:
    blocks = 0
    while data[offset]:
        offset, blocks = offset + 1 + data[offset], blocks + 1
        check_count(blocks, _MAX_SUB_BLOCKS, "blocks of a frame or an extension")
    return offset + 1


def _check_ppm(data: bytes) -> None:
    offset = 2
    for _ in range(2 if data[1:2] in b"14" else 3):
        start = offset
        offset = _WHITESPACE.match(data, start, start + _MAX_COMMENT_BYTES + 2).end()  # type: ignore[union-attr]  # matches the empty string
        check_count(offset - start, _MAX_COMMENT_BYTES, "bytes of comments in the header")
        offset = _TOKEN.match(data, offset).end()  # type: ignore[union-attr]
    if data[1:2] in b"123":
        check_slow_size(data, "numbers as text", "save it as binary")


_WHITESPACE = re.compile(rb"(?:\s+|#[^\r\n]*[\r\n]?)*")
_TOKEN = re.compile(rb"[^\s#]*")


def _check_bmp(data: bytes) -> None:
    (compression,) = struct.unpack_from("<I", data, 30)
    if struct.unpack_from("<I", data, 14)[0] >= 40 and compression in {1, 2}:
        check_slow_size(data, "run-length encoded BMP", "save it as PNG")


_CHECKS: dict[str, Callable[[bytes], int | None]] = {
    "JPEG": _check_jpeg, "PNG": _check_png, "GIF": _check_gif, "TIFF": tiff_limits.check_tiff, "PPM": _check_ppm,
    "BMP": _check_bmp, "JPEG2000": box_limits.check_jpeg2000, "AVIF": box_limits.check_avif,
    "HEIF": box_limits.check_items,
}  # fmt: skip
"""WebP has no check: 7 million chunks, or a million frames, take 0.3 s; its memory is checked before decoding."""
