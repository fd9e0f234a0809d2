"""Limits on the structure of a file, checked before Pillow reads it.

A file of a few kilobytes can keep a decoder busy for minutes without many pixels: with thousands of scans, directories,
strips or comments. Cameras and programs write a few of each. This module walks the blocks of a file, decoding none.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress

from sightline.errors import ImageError

MAX_SIDE = 65_535  # pixels, the limit of JPEG; resizing handles images of this many rows
MAX_COUNTED_FRAMES = 1000  # counting stops here
_MAX_SCANS, _MAX_SCAN_PIXELS = 300, 1_500_000_000  # of a progressive JPEG: about 2 s
_MAX_SEGMENTS = 4_000  # of a JPEG before its pixels: a panorama with depth has hundreds
_SMALL_EXIF = 1 << 16  # bytes
_MAX_EXIF_SEGMENTS = 16  # which Pillow joins: usually one, a few if EXIF is large
_MAX_FRAME_PIXELS = 1_000_000_000  # of an animation up to the frame that is read: about 5 s
_MAX_CHUNKS, _MAX_DATA_CHUNKS = 2_000, 100_000  # of a PNG
_MAX_EXTENSION_BYTES = 4 << 20  # bytes of a GIF's comments and other extensions
_MAX_OTHER_BLOCKS = 4_096  # of a GIF, before each frame
_MAX_SUB_BLOCKS = 1 << 19  # of a frame of a GIF: 255 bytes each, as programs write them
_MAX_STRIPS = 65_536  # of a TIFF, or tiles
_MAX_TILE_PIXELS = 1 << 24  # of one tile, if larger than the image
_MAX_TAGS = 4_096  # of a TIFF's directory
_MAX_VALUES = 1 << 18  # of one tag, if Pillow makes numbers of it
_MAX_BOXES = 1_000  # of a JPEG 2000 file
_MAX_COMMENT_BYTES = 1 << 16  # bytes of whitespace and comments in a PPM's header
_MAX_SLOW_BYTES = 8 << 20  # bytes of a text PPM or a run-length encoded BMP: Pillow decodes these in Python
_MAX_JPEG2000_BYTES = 32 << 20  # bytes of a JPEG 2000; one core decodes 8 million a second


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
    if page * width * height > _MAX_FRAME_PIXELS:
        raise ImageError(f"page {page} follows {page - 1} pages of {width}x{height} pixels, too many to decode")


def _check_count(count: int, maximum: int, description: str) -> None:
    if count > maximum:
        raise ImageError(f"more than {maximum:,} {description}, which no ordinary file has")


def _check_slow_size(data: bytes, description: str, advice: str, maximum: int = _MAX_SLOW_BYTES) -> None:
    if len(data) > maximum:
        raise ImageError(f"more than {maximum >> 20} MiB of {description}, which take too long to decode: {advice}")


def _check_jpeg(data: bytes) -> None:
    """Follow the segments as Pillow and libjpeg do: both pass over bytes that are no marker."""
    offset, segments, exif, skipped, size, layers, sequential = 2, 0, 0, 0, 0, 0, False
    while (match := _JPEG_MARKER.search(data, offset)) and (marker := match[1][0]) != _SCAN:
        skipped, segments, offset = skipped + match.start() - offset, segments + 1, match.end()
        if marker not in _WITHOUT_LENGTH:
            exif += marker == 0xE1 and data[offset + 2 : offset + 6] == b"Exif"
            if 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xCC}:
                height, width, layers = struct.unpack_from(">HHB", data, offset + 3)
                size, sequential = height * width, marker in {0xC0, 0xC1}
            offset += _segment_length(data, offset)
        _check_count(segments, _MAX_SEGMENTS, "segments before the pixels")
        _check_count(skipped, _MAX_COMMENT_BYTES, "bytes between segments")
        _check_count(exif, _MAX_EXIF_SEGMENTS, "EXIF segments")
    if match is None or (sequential and data[match.end() + 2] == layers):  # one scan; the rest does not matter
        return
    offset, scans, segments = match.start(), 0, 0
    while (match := _SCAN_END.search(data, offset)) and (marker := match[1][0]) != _END:
        scans, segments, offset = scans + (marker == _SCAN), segments + (marker != _SCAN), match.end()
        offset += 0 if marker in _WITHOUT_LENGTH else _segment_length(data, offset)
        _check_count(scans, _MAX_SCANS, "scans")
        _check_count(segments, _MAX_SEGMENTS, "segments between scans")
    if scans > 12 and scans * size > _MAX_SCAN_PIXELS:
        raise ImageError(f"{scans} scans of {size / 1e6:.0f} megapixels, which would take too long to decode")


def _segment_length(data: bytes, offset: int) -> int:
    length: int = struct.unpack_from(">H", data, offset)[0]
    return max(length, 2)


_JPEG_MARKER = re.compile(rb"\xff([\x01-\xfe])")
_SCAN_END = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # restart markers are in a scan
_SCAN, _END = 0xDA, 0xD9
_WITHOUT_LENGTH = frozenset({0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})
"""Markers without a segment. Those of JPEG's extensions have one, which Pillow does not read; libjpeg refuses them."""


def _check_png(data: bytes) -> None:
    offset, other_chunks, pixel_chunks = 8, 0, 0
    while offset + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, offset)
        pixel_chunks, other_chunks = (
            pixel_chunks + (name in {b"IDAT", b"fdAT"}),
            other_chunks + (name not in {b"IDAT", b"fdAT"}),
        )
        _check_count(
            other_chunks - pixel_chunks // 2, _MAX_CHUNKS, "chunks without pixels"
        )  # an animation has one for each frame
        _check_count(pixel_chunks, _MAX_DATA_CHUNKS, "chunks of pixels")
        if name == b"IEND":
            return
        offset += 12 + length


def _check_gif(data: bytes) -> int:
    """Count the frames, in at most 16 MB."""
    offset, frames, extension_bytes, others = 13 + _color_table_size(data[10]), 0, 0, 0
    while offset < min(len(data), 16 << 20):
        kind = data[offset]
        if kind == 0x2C:
            frames, others = frames + 1, 0
            if frames == MAX_COUNTED_FRAMES:
                break
            offset = _skip_blocks(data, offset + 11 + _color_table_size(data[offset + 9]))
            continue
        if kind == 0x3B:
            break
        block_end = _skip_blocks(data, offset + 2) if kind == 0x21 else offset + 1  # as in Pillow: skip anything else
        extension_bytes, others, offset = extension_bytes + max(block_end - offset - 8, 0), others + 1, block_end
        _check_count(extension_bytes, _MAX_EXTENSION_BYTES, "bytes of comments and extensions")
        _check_count(others, _MAX_OTHER_BLOCKS, "blocks without pixels before a frame")
    return max(frames, 1)


def _color_table_size(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _skip_blocks(data: bytes, offset: int) -> int:
    blocks = 0
    while data[offset]:
        offset, blocks = offset + 1 + data[offset], blocks + 1
        _check_count(blocks, _MAX_SUB_BLOCKS, "blocks of a frame or an extension")
    return offset + 1


def _check_tiff(data: bytes) -> int:
    """Count the directories, and check the first."""
    frames = 0
    for frames, offset in enumerate(_iterate_directories(data), 1):
        if frames == 1:
            _check_directory(data, offset)
        if frames == MAX_COUNTED_FRAMES:
            break
    return max(frames, 1)


def check_tiff_page(data: bytes, page: int) -> None:
    """Raise ImageError for a page of a TIFF that is missing or would take too long."""
    count = 0
    for count, offset in enumerate(_iterate_directories(data), 1):
        if count == page:
            return _check_directory(data, offset)
    raise ImageError(f"has no page {page}, only {count}")


def _iterate_directories(data: bytes) -> Iterator[int]:
    """Yield the offset of each directory; a repeated one ends the chain."""
    order, is_big_tiff = _read_byte_order(data)
    offset = struct.unpack_from(order + ("Q" if is_big_tiff else "I"), data, 8 if is_big_tiff else 4)[0]
    visited: set[int] = set()
    while offset and offset not in visited and offset < len(data):
        visited.add(offset)
        (count,) = struct.unpack_from(order + ("Q" if is_big_tiff else "H"), data, offset)
        _check_count(count, _MAX_TAGS, "tags in a directory")
        if not count:
            return
        yield offset
        offset += (8 + 20 * count) if is_big_tiff else (2 + 12 * count)
        (offset,) = struct.unpack_from(order + ("Q" if is_big_tiff else "I"), data, offset)


def _read_byte_order(data: bytes, base: int = 0) -> tuple[str, bool]:
    order = "<" if data[base : base + 2] == b"II" else ">"
    return order, struct.unpack_from(order + "H", data, base + 2)[0] == 43


def _check_directory(data: bytes, offset: int, base: int = 0, depth: int = 0) -> None:
    """Check a directory of tags; `base` is where its file begins in `data`, and `depth` above 0 that of EXIF."""
    order, is_big_tiff = _read_byte_order(data, base)
    (count,) = struct.unpack_from(order + ("Q" if is_big_tiff else "H"), data, offset)
    _check_count(count, _MAX_TAGS, "tags in a directory")
    sizes: dict[int, int] = {}
    total = 0
    for number in range(count):
        entry = offset + ((8 + 20 * number) if is_big_tiff else (2 + 12 * number))
        tag, kind, value_count = struct.unpack_from(order + ("HHQ" if is_big_tiff else "HHI"), data, entry)
        form = _TAG_FORMATS.get(kind, "x")
        num_bytes = value_count * struct.calcsize(order + form)
        total += num_bytes if num_bytes <= len(data) else 0  # the others are not read
        if tag in {273, 279, 324, 325}:  # offsets and lengths of strips and tiles
            _check_count(value_count, _MAX_STRIPS, "strips or tiles")
        elif kind in _TAG_FORMATS and (depth or tag < _FIRST_PRIVATE_TAG or tag in _READ_TAGS):
            _check_count(value_count, _MAX_VALUES, "numbers in a tag")
        if value_count == 1 and form in _INTEGER_FORMATS:
            value = entry + (12 if is_big_tiff else 8)
            sizes.setdefault(tag, struct.unpack_from(order + form, data, value)[0])  # the first of a tag counts
    if total > 2 * len(data) + (1 << 20):
        raise ImageError(f"tags of {total:,} bytes in a file of {len(data):,}")
    for tag in _NESTED_TAGS & set(sizes) if depth < 2 else ():
        with suppress(struct.error):
            _check_directory(data, base + sizes[tag], base, depth + 1)
    image_pixels, tile_pixels = (sizes.get(w, 0) * sizes.get(h, 0) for w, h in ((256, 257), (322, 323)))
    if tile_pixels > max(image_pixels, _MAX_TILE_PIXELS):
        raise ImageError(f"tiles of {sizes[322]}x{sizes[323]} pixels for an image of {sizes[256]}x{sizes[257]}")


_TAG_FORMATS = {
    3: "H", 4: "I", 5: "II", 6: "b", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d", 13: "I", 16: "Q", 17: "q", 18: "Q",
}  # fmt: skip
"""The numbers of each type; a tag of any other type is text or bytes."""
_INTEGER_FORMATS = frozenset("HIbhiQq")
_FIRST_PRIVATE_TAG = 32_768
_NESTED_TAGS = frozenset({34665, 34853, 40965})  # which lead to the directories of EXIF, GPS and Interoperability
_READ_TAGS = _NESTED_TAGS | {34675}  # of the private ones; the last is a color profile


def check_exif(exif: bytes) -> None:
    """Raise ImageError for EXIF that would take too long to read; what fits into one segment of a JPEG never does."""
    if len(exif) > _SMALL_EXIF:
        _check_exif(exif, 6 if exif.startswith(b"Exif\0\0") else 0)


def _check_exif(exif: bytes, base: int) -> None:
    with suppress(struct.error):
        order, is_big_tiff = _read_byte_order(exif, base)
        offset = struct.unpack_from(order + ("Q" if is_big_tiff else "I"), exif, base + (8 if is_big_tiff else 4))[0]
        _check_directory(exif, base + offset, base, depth=1)


def check_exif_text(text: str) -> None:
    """Raise ImageError for EXIF that a PNG has as text, if it would take too long to read."""
    _check_count(len(text), _MAX_EXTENSION_BYTES, "bytes of EXIF as text")


def _check_avif(data: bytes) -> None:
    """Check EXIF wherever it may begin: Pillow reads it at once, and has no place for a check before."""
    for magic in (b"II*\0", b"MM\0*") if len(data) > _SMALL_EXIF else ():
        offset = data.find(magic)
        for _ in range(_MAX_EXIF_SEGMENTS):
            if offset >= 0:
                _check_exif(data, offset)
                offset = data.find(magic, offset + 1)


def _check_jpeg2000(data: bytes) -> None:
    _check_slow_size(data, "JPEG 2000", "save it as PNG, JPEG or TIFF", _MAX_JPEG2000_BYTES)
    offset, boxes = 0, 0
    while data[:1] == b"\0" and offset + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, offset)
        boxes += 1
        _check_count(boxes, _MAX_BOXES, "boxes")
        if name == b"jp2c" or length == 0:
            return
        if name == b"jp2h":  # contains boxes
            boxes += _count_inner_boxes(data, offset + 8, offset + length)
            _check_count(boxes, _MAX_BOXES, "boxes")
        offset += struct.unpack_from(">Q", data, offset + 8)[0] if length == 1 else max(length, 8)


def _count_inner_boxes(data: bytes, offset: int, end: int) -> int:
    count = 0
    while offset + 8 <= min(end, len(data)) and count <= _MAX_BOXES:
        offset += max(struct.unpack_from(">I", data, offset)[0], 8)
        count += 1
    return count


def _check_ppm(data: bytes) -> None:
    offset = 2
    for _ in range(2 if data[1:2] in b"14" else 3):
        start = offset
        offset = _WHITESPACE.match(data, start, start + _MAX_COMMENT_BYTES + 2).end()  # type: ignore[union-attr]  # matches the empty string
        _check_count(offset - start, _MAX_COMMENT_BYTES, "bytes of comments in the header")
        offset = _TOKEN.match(data, offset).end()  # type: ignore[union-attr]
    if data[1:2] in b"123":
        _check_slow_size(data, "numbers as text", "save it as binary")


_WHITESPACE = re.compile(rb"(?:\s+|#[^\r\n]*[\r\n]?)*")
_TOKEN = re.compile(rb"[^\s#]*")


def _check_bmp(data: bytes) -> None:
    (compression,) = struct.unpack_from("<I", data, 30)
    if struct.unpack_from("<I", data, 14)[0] >= 40 and compression in {1, 2}:
        _check_slow_size(data, "run-length encoded BMP", "save it as PNG")


_CHECKS: dict[str, Callable[[bytes], int | None]] = {
    "JPEG": _check_jpeg, "PNG": _check_png, "GIF": _check_gif, "TIFF": _check_tiff, "JPEG2000": _check_jpeg2000,
    "PPM": _check_ppm, "BMP": _check_bmp, "AVIF": _check_avif,
}  # fmt: skip
