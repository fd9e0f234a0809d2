"""Limits on formats made of boxes, which Pillow decodes whole (JPEG 2000, AVIF, HEIF), and on memory, also for WebP."""

from __future__ import annotations

import struct
from contextlib import suppress
from itertools import islice

from sightline.errors import ImageError
from sightline.preprocessing.boxes import iterate_boxes
from sightline.preprocessing.codestream import CodestreamDemand, measure_codestream
from sightline.preprocessing.counts import MAX_EXIF_SEGMENTS, check_count, check_slow_size
from sightline.preprocessing.stream_limits import measure_streams
from sightline.preprocessing.tiff_limits import SMALL_EXIF, check_exif_at
from sightline.preprocessing.webp_limits import measure_tables

_MAX_BOXES = 1_000  # per JPEG 2000, AVIF or HEIF file
_MAX_COMPONENTS = 4  # per JPEG 2000 file; Pillow reads no more
_MAX_BLOCKS, _MAX_PACKETS, _MAX_STEPS = 4_000_000, 5_000_000, 50_000_000  # per JPEG 2000 file: about 1 s each
_MAX_INDEX_BYTES = 1 << 17  # bytes that index the items of an AVIF, searched linearly for each; a large grid: 20 kB
_MAX_TRACK_BYTES = 1 << 19  # bytes of tables in an animated AVIF: 100,000 frames
_MAX_JPEG2000_BYTES = 32 << 20  # bytes per JPEG 2000 file; one core decodes 8 million per second
_MAX_MEGAPIXEL_BYTES = 21_000_000  # bytes of memory to decode a megapixel; 50 megapixels take 1 GB
_PIXEL_BYTES = 19  # bytes per pixel allocated by libwebp, libavif and Pillow, each keeping its own copies


def check_memory(format_name: str, data: bytes, width: int, height: int, frame: int, max_megapixels: int) -> None:
    """Raise ImageError if decoding up to `frame`, counted from 0, takes more memory than `max_megapixels` allow."""
    limit = max_megapixels * _MAX_MEGAPIXEL_BYTES
    needed, advice = 2 * len(data) + width * height * _PIXEL_BYTES, "save it as PNG or TIFF"
    if format_name == "JPEG2000":
        codestream = None
        with suppress(struct.error):  # the decoder reports the damage
            codestream = _measure_jpeg2000(data)
        if codestream is None:
            return
        needed = 2 * len(data) + codestream.num_bytes + width * height * (1 if codestream.components == 1 else 4)
        advice = "save it in smaller tiles"
    elif format_name == "WEBP":
        needed += measure_tables(data, frame, limit - needed)
    elif format_name in {"AVIF", "HEIF"}:
        demand = measure_streams(data)
        needed += max(demand.pixels - width * height, 0) * _PIXEL_BYTES + demand.kept_bytes
    else:  # other formats are decoded by lines, strips or tiles
        return
    if needed > limit:
        sizes = f"{needed / 1e6:,.0f} MB to decode, limit {limit / 1e6:,.0f}"
        raise ImageError(f"{width}x{height} pixels that take {sizes}: {advice}, or raise max_megapixels")


def check_jpeg2000(data: bytes) -> None:
    """Raise ImageError for a JPEG 2000 that takes too long to decode, or more memory than its pixels need."""
    check_slow_size(data, "JPEG 2000", "save it as PNG, JPEG or TIFF", _MAX_JPEG2000_BYTES)
    demand = _measure_jpeg2000(data)
    if demand is None:
        return
    if demand.components > _MAX_COMPONENTS:
        raise ImageError(f"{demand.components:,} components; of JPEG 2000, up to {_MAX_COMPONENTS} can be read")
    check_count(demand.blocks, _MAX_BLOCKS, "code blocks")
    check_count(demand.packets, _MAX_PACKETS, "packets")
    check_count(demand.steps, _MAX_STEPS, "places of packets")


def _measure_jpeg2000(data: bytes) -> CodestreamDemand | None:
    """Measure the codestream, which may be inside boxes; return None if there is none."""
    if data[:1] != b"\0":
        return measure_codestream(data, 0)
    boxes = 0
    for name, start, end in iterate_boxes(data, 0, len(data)):
        boxes += 1
        if name == b"jp2c":
            return measure_codestream(data, start)
        if name == b"jp2h":
            boxes += sum(1 for _ in islice(iterate_boxes(data, start, end), _MAX_BOXES))
        check_count(boxes, _MAX_BOXES, "boxes")
    return None


def check_avif(data: bytes) -> None:
    """Raise ImageError as `check_items` does, and for excessive EXIF, which may be anywhere and is read on opening."""
    check_items(data)
    for magic in (b"II*\0", b"MM\0*") if len(data) > SMALL_EXIF else ():
        offset = data.find(magic)
        for _ in range(MAX_EXIF_SEGMENTS):
            if offset >= 0:
                check_exif_at(data, offset)
                offset = data.find(magic, offset + 1)


def check_items(data: bytes) -> None:
    """Raise ImageError for an AVIF or HEIF with large tables: decoders search all items for each one."""
    index_bytes = track_bytes = 0
    for boxes, (name, start, end) in enumerate(iterate_boxes(data, 0, len(data)), 1):
        check_count(boxes, _MAX_BOXES, "boxes")
        if name == b"mini":
            raise ImageError("a minimized header, which cannot be read: save it as AVIF, PNG or JPEG")
        if name == b"meta":
            index_bytes += _count_index_bytes(data, start + 4, end)  # after version and flags
        elif name == b"moov":
            track_bytes += end - start
        check_count(index_bytes, _MAX_INDEX_BYTES, "bytes that describe its items")
        check_count(track_bytes, _MAX_TRACK_BYTES, "bytes that describe its frames")


def _count_index_bytes(data: bytes, start: int, end: int, depth: int = 0) -> int:
    """Return the number of bytes of the boxes in a range, without boxes of data and color profiles."""
    total = 0
    for name, content, content_end in iterate_boxes(data, start, end):
        total += 8
        if depth < 2 and name in {b"iprp", b"ipco"}:
            total += _count_index_bytes(data, content, content_end, depth + 1)
        elif name not in {b"idat", b"colr"}:
            total += content_end - content
        if total > _MAX_INDEX_BYTES:
            break
    return total
