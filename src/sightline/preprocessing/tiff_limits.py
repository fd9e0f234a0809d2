"""Limits on the directories of a TIFF, of which EXIF is one, checked before Pillow reads them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from sightline.errors import ImageError
from sightline.preprocessing.counts import MAX_COUNTED_FRAMES, MAX_EXTENSION_BYTES, check_count

SMALL_EXIF = 1 << 16  # bytes
_MAX_STRIPS = 65_536  # strips or tiles per TIFF
_MAX_TILE_PIXELS = 1 << 24  # in a single tile larger than the image
_MAX_PADDED_PIXELS = 1 << 26  # in all tiles, if more than four times the pixels of the image: about 0.1 s
_MAX_TAGS = 4_096  # per TIFF directory
_MAX_VALUES = 1 << 18  # numbers per tag, if Pillow parses them
_SHARED_BYTES = 64 << 20  # compressed bytes of strips or tiles beyond the file size: about 2 s


def check_tiff(data: bytes) -> int:
    """Count the directories and check the first."""
    frames = 0
    for frames, offset in enumerate(_iterate_directories(data), 1):
        if frames == 1:
            _check_directory(data, offset)
        if frames == MAX_COUNTED_FRAMES:
            break
    return max(frames, 1)


def select_tiff_page(data: bytes, page: int) -> bytes:
    """Return a TIFF with its directory `page` first, because Pillow would parse all directories before it.

    Raises ImageError for a page that is missing or would take too long.
    """
    count = 0
    for count, offset in enumerate(_iterate_directories(data), 1):
        if count == page:
            _check_directory(data, offset)
            layout = _read_layout(data)
            start = layout.offset.size
            return data[:start] + layout.offset.pack(offset) + data[2 * start :]
    raise ImageError(f"has no page {page}, only {count}")


def _iterate_directories(data: bytes) -> Iterator[int]:
    """Yield the offset of each directory; a repeated one ends the chain."""
    layout = _read_layout(data)
    (offset,) = layout.offset.unpack_from(data, layout.offset.size)
    visited: set[int] = set()
    while offset and offset not in visited and offset < len(data):
        visited.add(offset)
        entries = layout.locate_entries(data, offset)
        if not entries:
            return
        yield offset
        (offset,) = layout.offset.unpack_from(data, entries.stop)


class _Layout(NamedTuple):
    """How a TIFF stores numbers: its byte order, and the formats of an offset, a number of tags, and a tag.

    The offset of the first directory is as many bytes after the beginning as it is long. After each tag comes its
    value, or the offset of its values, as long as an offset.
    """

    order: str
    offset: struct.Struct
    num_tags: struct.Struct
    tag: struct.Struct

    def locate_entries(self, data: bytes, directory: int) -> range:
        """Return the offsets of the tags in a directory; raises ImageError for too many."""
        (count,) = self.num_tags.unpack_from(data, directory)
        check_count(count, _MAX_TAGS, "tags in a directory")
        start, step = directory + self.num_tags.size, self.tag.size + self.offset.size
        return range(start, start + count * step, step)


def _read_layout(data: bytes, base: int = 0) -> _Layout:
    """Return the layout of the TIFF that begins at `base`; its version is 43 if it is a BigTIFF."""
    order = "<" if data[base : base + 2] == b"II" else ">"
    is_big = struct.unpack_from(order + "H", data, base + 2)[0] == 43
    forms = ("Q", "Q", "HHQ") if is_big else ("I", "H", "HHI")
    return _Layout(order, *(struct.Struct(order + form) for form in forms))


def _check_directory(data: bytes, offset: int, base: int = 0, depth: int = 0) -> None:
    """Check a directory of tags; its file begins at `base` in `data`; a `depth` above 0 means a nested directory."""
    layout = _read_layout(data, base)
    sizes: dict[int, int] = {}
    total = strips = 0
    lengths: tuple[int, ...] = ()
    for entry in layout.locate_entries(data, offset):
        tag, kind, value_count = layout.tag.unpack_from(data, entry)
        form = _TAG_FORMATS.get(kind, "x")
        num_bytes = value_count * struct.calcsize(layout.order + form)
        total += num_bytes if num_bytes <= len(data) else 0  # larger tags are not read
        if tag in {273, 279, 324, 325}:  # offsets and lengths of strips and tiles
            check_count(value_count, _MAX_STRIPS, "strips or tiles")
            strips = max(strips, value_count)
            if tag in {279, 325}:
                lengths = max(lengths, _read_integers(data, layout, entry), key=sum)
        elif kind in _TAG_FORMATS and (depth or tag < _FIRST_PRIVATE_TAG or tag in _READ_TAGS):
            check_count(value_count, _MAX_VALUES, "numbers in a tag")
        if value_count == 1 and form in _INTEGER_FORMATS:
            (value,) = struct.unpack_from(layout.order + form, data, entry + layout.tag.size)
            sizes.setdefault(tag, value)  # the first entry of a tag counts
    if total > 2 * len(data) + (1 << 20):
        raise ImageError(f"tags of {total:,} bytes in a file of {len(data):,}")
    for tag in _NESTED_TAGS & set(sizes) if depth < 2 else ():
        with suppress(struct.error):
            _check_directory(data, base + sizes[tag], base, depth + 1)
    if sizes.get(259, 1) != 1 and not depth:
        _check_strips(len(data), strips, lengths)
    _check_tiles(*(sizes.get(tag, 0) for tag in (256, 257, 322, 323)))


def _check_tiles(width: int, height: int, tile_width: int, tile_height: int) -> None:
    """Raise ImageError for tiles that are far larger than the image, individually or in total."""
    image_pixels, tile_pixels = width * height, tile_width * tile_height
    tiles = -(-width // max(tile_width, 1)) * -(-height // max(tile_height, 1))
    is_one_large = tile_pixels > max(image_pixels, _MAX_TILE_PIXELS)
    if is_one_large or tiles * tile_pixels > max(4 * image_pixels, _MAX_PADDED_PIXELS):
        raise ImageError(f"tiles of {tile_width}x{tile_height} pixels for an image of {width}x{height}")


def _read_integers(data: bytes, layout: _Layout, entry: int) -> tuple[int, ...]:
    """Return the values of a tag; empty if they are not integers, or are outside the file."""
    _, kind, count = layout.tag.unpack_from(data, entry)
    form, start = _TAG_FORMATS.get(kind, "x"), entry + layout.tag.size
    if form not in _INTEGER_FORMATS:
        return ()
    with suppress(struct.error):
        if count * struct.calcsize(layout.order + form) > layout.offset.size:
            (start,) = layout.offset.unpack_from(data, start)
        return struct.unpack_from(f"{layout.order}{count}{form}", data, start)
    return ()


def _check_strips(file_size: int, strips: int, lengths: tuple[int, ...]) -> None:
    """Raise ImageError if strips or tiles share bytes, which libtiff would decode again for each of them.

    Missing lengths count as the length of the file, as in libtiff.
    """
    known = [min(max(length, 0), file_size) for length in lengths]
    size = sum(known) + max(strips - len(known), 0) * file_size
    if size > file_size + _SHARED_BYTES:
        raise ImageError(f"strips or tiles of {size:,} bytes in a file of {file_size:,}")


_TAG_FORMATS = {
    3: "H", 4: "I", 5: "II", 6: "b", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d", 13: "I", 16: "Q", 17: "q", 18: "Q",
}  # fmt: skip
"""The `struct` format of each numeric tag type; tags of other types are text or bytes."""
_INTEGER_FORMATS = frozenset("HIbhiQq")
_FIRST_PRIVATE_TAG = 32_768
_NESTED_TAGS = frozenset({34665, 34853, 40965})  # point to the EXIF, GPS and Interoperability directories
_READ_TAGS = _NESTED_TAGS | {34675}  # private tags that are read; 34675 is a color profile


def check_exif(exif: bytes) -> None:
    """Raise ImageError for EXIF that would take too long to read; EXIF that fits into one JPEG segment never does."""
    if len(exif) > SMALL_EXIF:
        check_exif_at(exif, 6 if exif.startswith(b"Exif\0\0") else 0)


def check_exif_at(exif: bytes, base: int) -> None:
    """Raise ImageError for EXIF that begins at `base` and would take too long to read."""
    with suppress(struct.error):
        layout = _read_layout(exif, base)
        (offset,) = layout.offset.unpack_from(exif, base + layout.offset.size)
        _check_directory(exif, base + offset, base, depth=1)


def check_exif_text(text: str) -> None:
    """Raise ImageError for EXIF stored as text in a PNG, if it would take too long to read."""
    check_count(len(text), MAX_EXTENSION_BYTES, "bytes of EXIF as text")
