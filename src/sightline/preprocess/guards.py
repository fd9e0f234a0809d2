"""Limits on the structure of a file, checked before Pillow reads it.

A file of a few kilobytes can keep a decoder busy for minutes without many pixels: with thousands of scans, directories,
strips or comments. Cameras and programs write a few of each. This module walks the blocks of a file, decoding none.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator

from sightline.errors import PictureError

MAX_SIDE = 65_535  # pixels, the limit of JPEG; resizing handles images of this many rows
MOST_FRAMES = 1000  # counting stops here
_SCANS, _SCAN_PIXELS = 300, 1_500_000_000  # of a progressive JPEG: about 2 s
_SEGMENTS = 4_000  # of a JPEG before its pixels: a panorama with depth has hundreds
_EXIF_SEGMENTS = 16  # which Pillow joins: usually one, a few if EXIF is large
_FRAME_PIXELS = 1_000_000_000  # of an animation up to the frame that is read: about 5 s
_CHUNKS, _DATA_CHUNKS = 2_000, 100_000  # of a PNG
_BLOCKS = 4 << 20  # bytes of a GIF's comments and other extensions
_STRIPS = 65_536  # of a TIFF, or tiles
_TILE_PIXELS = 1 << 24  # of one tile, if larger than the image
_TAGS = 4_096  # of a TIFF's directory
_BOXES = 1_000  # of a JPEG 2000 file
_COMMENT = 1 << 16  # bytes of whitespace and comments in a PPM's header
_SLOW = 8 << 20  # bytes of a text PPM or a run-length encoded BMP: Pillow decodes these in Python
_WAVELETS = 32 << 20  # bytes of a JPEG 2000; one core decodes 8 million a second


def check_structure(name: str, data: bytes) -> int | None:
    """Raise PictureError if a file of format `name` would take too long to read; return its frames if counted.

    At most `MOST_FRAMES` are counted. A truncated or damaged file is left to the decoder, which reports it.
    """
    check = _CHECKS.get(name)
    try:
        return None if check is None else check(data)
    except (struct.error, IndexError):
        return None


def check_sides(width: int, height: int) -> None:
    """Raise PictureError for an image with a side longer than `MAX_SIDE`."""
    if max(width, height) > MAX_SIDE:
        raise PictureError(f"too long: {width}x{height} pixels, limit {MAX_SIDE} on each side")


def check_frames(page: int, width: int, height: int) -> None:
    """Raise PictureError for a frame that follows too many pixels to decode one frame after the other."""
    if page * width * height > _FRAME_PIXELS:
        raise PictureError(f"page {page} follows {page - 1} pages of {width}x{height} pixels, too many to decode")


def _limit(count: int, most: int, what: str) -> None:
    if count > most:
        raise PictureError(f"more than {most:,} {what}, which no ordinary file has")


def _limit_slow(data: bytes, what: str, advice: str, most: int = _SLOW) -> None:
    if len(data) > most:
        raise PictureError(f"more than {most >> 20} MiB of {what}, which take too long to decode: {advice}")


def _jpeg(data: bytes) -> None:
    at, segments, exif, size, layers, sequential = 2, 0, 0, 0, 0, False
    while data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a byte of padding
            at, segments = at + 1, segments + 1
        elif marker in {0xDA, 0xD9}:
            break
        else:
            (length,) = struct.unpack_from(">H", data, at + 2)
            exif += marker == 0xE1 and data[at + 4 : at + 8] == b"Exif"
            if 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:
                height, width, layers = struct.unpack_from(">HHB", data, at + 5)
                size, sequential = height * width, marker in {0xC0, 0xC1}
            at, segments = at + 2 + length, segments + 1
        _limit(segments, _SEGMENTS, "segments before the pixels")
        _limit(exif, _EXIF_SEGMENTS, "EXIF segments")
    if sequential and data[at + 4] == layers:  # one scan; the rest does not matter
        return
    scans = data.count(b"\xff\xda", at, data.find(b"\xff\xd9", at))  # entropy-coded data contains neither
    _limit(scans, _SCANS, "scans")
    if scans > 12 and scans * size > _SCAN_PIXELS:
        raise PictureError(f"{scans} scans of {size / 1e6:.0f} megapixels, which would take too long to decode")


def _png(data: bytes) -> None:
    at, others, pixels = 8, 0, 0
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        pixels, others = pixels + (name in {b"IDAT", b"fdAT"}), others + (name not in {b"IDAT", b"fdAT"})
        _limit(others - pixels // 2, _CHUNKS, "chunks without pixels")  # an animation has one for each frame
        _limit(pixels, _DATA_CHUNKS, "chunks of pixels")
        if name == b"IEND":
            return
        at += 12 + length


def _gif(data: bytes) -> int:
    """Count the frames, in at most 16 MB."""
    at, frames, extra = 13 + _table(data[10]), 0, 0
    while at < min(len(data), 16 << 20):
        kind = data[at]
        if kind == 0x2C:
            frames += 1
            if frames == MOST_FRAMES:
                break
            at = _behind_blocks(data, at + 11 + _table(data[at + 9]))
        elif kind == 0x21:
            behind = _behind_blocks(data, at + 2)
            extra += behind - at if data[at + 1] != 0xF9 else 0
            _limit(extra, _BLOCKS, "bytes of comments and extensions")
            at = behind
        elif kind == 0x3B:
            break
        else:
            at += 1  # as in Pillow: skip anything else
    return max(frames, 1)


def _table(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _behind_blocks(data: bytes, at: int) -> int:
    while data[at]:
        at += 1 + data[at]
    return at + 1


def _tiff(data: bytes) -> int:
    """Count the directories, and check the first."""
    frames = 0
    for frames, at in enumerate(_directories(data), 1):
        if frames == 1:
            _check_directory(data, at)
        if frames == MOST_FRAMES:
            break
    return max(frames, 1)


def check_tiff_page(data: bytes, page: int) -> None:
    """Raise PictureError for a page of a TIFF that is missing or would take too long."""
    count = 0
    for count, at in enumerate(_directories(data), 1):
        if count == page:
            return _check_directory(data, at)
    raise PictureError(f"has no page {page}, only {count}")


def _directories(data: bytes) -> Iterator[int]:
    """Yield the offset of each directory; a repeated one ends the chain."""
    order, large = _byte_order(data)
    at = struct.unpack_from(order + ("Q" if large else "I"), data, 8 if large else 4)[0]
    seen: set[int] = set()
    while at and at not in seen and at < len(data):
        seen.add(at)
        (count,) = struct.unpack_from(order + ("Q" if large else "H"), data, at)
        _limit(count, _TAGS, "tags in a directory")
        if not count:
            return
        yield at
        at += (8 + 20 * count) if large else (2 + 12 * count)
        (at,) = struct.unpack_from(order + ("Q" if large else "I"), data, at)


def _byte_order(data: bytes) -> tuple[str, bool]:
    order = "<" if data[:2] == b"II" else ">"
    return order, struct.unpack_from(order + "H", data, 2)[0] == 43


def _check_directory(data: bytes, at: int) -> None:
    order, large = _byte_order(data)
    (count,) = struct.unpack_from(order + ("Q" if large else "H"), data, at)
    _limit(count, _TAGS, "tags in a directory")
    sizes: dict[int, int] = {}
    for number in range(count):
        entry = at + ((8 + 20 * number) if large else (2 + 12 * number))
        tag, kind, many = struct.unpack_from(order + ("HHQ" if large else "HHI"), data, entry)
        value = entry + (12 if large else 8)
        if tag in {273, 279, 324, 325}:  # offsets and lengths of strips and tiles
            _limit(many, _STRIPS, "strips or tiles")
        elif tag in {256, 257, 322, 323} and many == 1 and kind in {3, 4, 16}:
            sizes[tag] = struct.unpack_from(order + {3: "H", 4: "I", 16: "Q"}[kind], data, value)[0]
    image, tile = (sizes.get(w, 0) * sizes.get(h, 0) for w, h in ((256, 257), (322, 323)))
    if tile > max(image, _TILE_PIXELS):
        raise PictureError(f"tiles of {sizes[322]}x{sizes[323]} pixels for an image of {sizes[256]}x{sizes[257]}")


def _jpeg2000(data: bytes) -> None:
    _limit_slow(data, "JPEG 2000", "save it as PNG, JPEG or TIFF", _WAVELETS)
    at, boxes = 0, 0
    while data[:1] == b"\0" and at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        boxes += 1
        _limit(boxes, _BOXES, "boxes")
        if name == b"jp2c" or length == 0:
            return
        if name == b"jp2h":  # contains boxes
            boxes += _inner_boxes(data, at + 8, at + length)
            _limit(boxes, _BOXES, "boxes")
        at += struct.unpack_from(">Q", data, at + 8)[0] if length == 1 else max(length, 8)


def _inner_boxes(data: bytes, at: int, end: int) -> int:
    count = 0
    while at + 8 <= min(end, len(data)) and count <= _BOXES:
        at += max(struct.unpack_from(">I", data, at)[0], 8)
        count += 1
    return count


def _ppm(data: bytes) -> None:
    at = 2
    for _ in range(2 if data[1:2] in b"14" else 3):
        start = at
        at = _BLANK.match(data, start, start + _COMMENT + 2).end()  # type: ignore[union-attr]  # matches the empty string
        _limit(at - start, _COMMENT, "bytes of comments in the header")
        at = _TOKEN.match(data, at).end()  # type: ignore[union-attr]
    if data[1:2] in b"23":
        _limit_slow(data, "numbers as text", "save it as binary")


_BLANK = re.compile(rb"(?:\s+|#[^\r\n]*[\r\n]?)*")
_TOKEN = re.compile(rb"[^\s#]*")


def _bmp(data: bytes) -> None:
    (compression,) = struct.unpack_from("<I", data, 30)
    if struct.unpack_from("<I", data, 14)[0] >= 40 and compression in {1, 2}:
        _limit_slow(data, "run-length encoded BMP", "save it as PNG")


_CHECKS: dict[str, Callable[[bytes], int | None]] = {
    "JPEG": _jpeg, "PNG": _png, "GIF": _gif, "TIFF": _tiff, "JPEG2000": _jpeg2000, "PPM": _ppm, "BMP": _bmp,
}  # fmt: skip
