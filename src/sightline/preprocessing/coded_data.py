"""Where an AVIF or HEIF keeps its coded images: items, or samples of tracks. Source: ISO 14496-12 and 23008-12."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from sightline.preprocessing.boxes import iterate_boxes
from sightline.preprocessing.counts import check_count

_MAX_EXTENTS = 400_000  # of items, or samples of tracks
_TRACK_PATH = (b"mdia", b"minf", b"stbl")
_SAMPLE_ENTRY_BYTES = 78  # before the boxes of a visual sample entry


@dataclass(frozen=True, slots=True)
class CodedData:
    """The data of one decoder: that of an item, or the samples of a track, in order.

    `codec` is as in the file (``av01``, ``hvc1``, or ``grid`` of an item made of others). The content of a box
    ``hvcC``, which applies to some of them, is one of its own.
    """

    codec: bytes
    pieces: tuple[bytes, ...]


def iterate_coded_data(data: bytes) -> Iterator[CodedData]:
    """Yield what an AVIF or HEIF has a decoder read; what is damaged beyond recognition is left out."""
    for name, start, end in iterate_boxes(data, 0, len(data)):
        with suppress(struct.error, LookupError):
            if name == b"meta":
                yield from _iterate_items(data, start + 4, end)
        if name == b"moov":
            for trak, track_start, track_end in iterate_boxes(data, start, end):
                with suppress(struct.error, LookupError):
                    if trak == b"trak":
                        yield from _iterate_track(data, track_start, track_end)


def _iterate_items(data: bytes, start: int, end: int) -> Iterator[CodedData]:
    boxes = _index_boxes(data, start, end)
    if b"iprp" in boxes:
        yield from _find_settings(data, *_index_boxes(data, *boxes[b"iprp"]).get(b"ipco", (0, 0)))
    if b"iinf" not in boxes or b"iloc" not in boxes:
        return
    codecs = _read_item_types(data, *boxes[b"iinf"])
    inner = boxes.get(b"idat", (0, 0))
    copied = 0
    for item, method, extents in _iterate_locations(data, *boxes[b"iloc"]):
        base, limit = (0, len(data)) if method == 0 else inner
        ranges = [(base + at, min(base + at + size, limit) if size else limit) for at, size in extents]
        copied += sum(max(stop - at, 0) for at, stop in ranges)
        check_count(copied, 2 * len(data) + 1024, "bytes of items")
        yield CodedData(codecs.get(item, b""), (b"".join(data[at:stop] for at, stop in ranges),))


def _index_boxes(data: bytes, start: int, end: int) -> dict[bytes, tuple[int, int]]:
    """Return where the content of each box is: of several with a name, the first."""
    boxes: dict[bytes, tuple[int, int]] = {}
    for name, at, stop in iterate_boxes(data, start, end):
        boxes.setdefault(name, (at, stop))
    return boxes


def _find_settings(data: bytes, start: int, end: int) -> Iterator[CodedData]:
    for name, at, stop in iterate_boxes(data, start, end):
        if name == b"hvcC":
            yield CodedData(name, (data[at:stop],))


def _read_item_types(data: bytes, start: int, end: int) -> dict[int, bytes]:
    types = {}
    for name, at, _ in iterate_boxes(data, start + (6 if data[start] == 0 else 8), end):
        if name == b"infe" and data[at] in {2, 3}:
            item, _, kind = struct.unpack_from(">HH4s" if data[at] == 2 else ">IH4s", data, at + 4)
            types[item] = kind
    return types


def _iterate_locations(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """Yield each item with its method of construction, and the offset and length of its extents."""
    version, sizes, more_sizes = data[at], data[at + 4], data[at + 5]
    offset_size, length_size, base_size = sizes >> 4, sizes & 15, more_sizes >> 4
    index_size = more_sizes & 15 if version else 0
    count, at = _read_number(data, at + 6, 4 if version == 2 else 2)
    extents_left = _MAX_EXTENTS
    for _ in range(count):
        item, at = _read_number(data, at, 4 if version == 2 else 2)
        method, at = _read_number(data, at, 2) if version else (0, at)
        base, at = _read_number(data, at + 2, base_size)
        extent_count, at = _read_number(data, at, 2)
        check_count(_MAX_EXTENTS - extents_left + extent_count, _MAX_EXTENTS, "extents of items")
        extents_left -= extent_count
        extents = []
        for _ in range(extent_count):
            offset, at = _read_number(data, at + index_size, offset_size)
            length, at = _read_number(data, at, length_size)
            extents.append((base + offset, length))
        if at > end:
            return
        yield item, method & 15, extents


def _read_number(data: bytes, at: int, size: int) -> tuple[int, int]:
    """Return a number of `size` bytes, and where it ends."""
    if at + size > len(data):
        raise IndexError(at)
    return int.from_bytes(data[at : at + size], "big"), at + size


def _iterate_track(data: bytes, start: int, end: int) -> Iterator[CodedData]:
    for name in _TRACK_PATH:
        start, end = _index_boxes(data, start, end)[name]
    boxes = _index_boxes(data, start, end)
    for codec, at, stop in iterate_boxes(data, boxes[b"stsd"][0] + 8, boxes[b"stsd"][1]):
        yield from _find_settings(data, at + _SAMPLE_ENTRY_BYTES, stop)
        yield CodedData(codec, tuple(_iterate_samples(data, boxes)))


def _iterate_samples(data: bytes, boxes: dict[bytes, tuple[int, int]]) -> Iterator[bytes]:
    size, count = struct.unpack_from(">II", data, boxes[b"stsz"][0] + 4)
    check_count(count, _MAX_EXTENTS, "frames")
    sizes = (size,) * count if size else struct.unpack_from(f">{count}I", data, boxes[b"stsz"][0] + 12)
    wide = b"co64" in boxes
    at = boxes[b"co64" if wide else b"stco"][0] + 4
    (chunks,) = struct.unpack_from(">I", data, at)
    check_count(chunks, _MAX_EXTENTS, "chunks of frames")
    offsets = struct.unpack_from(f">{chunks}{'Q' if wide else 'I'}", data, at + 4)
    at = boxes[b"stsc"][0] + 4
    (runs,) = struct.unpack_from(">I", data, at)
    check_count(runs, _MAX_EXTENTS, "runs of chunks")
    table = struct.unpack_from(f">{3 * runs}I", data, at + 4)
    starts = dict(zip(table[::3], table[1::3], strict=True))
    sample, in_chunk, copied = 0, 0, 0
    for number, at in enumerate(offsets, 1):
        in_chunk = starts.get(number, in_chunk)
        for size in sizes[sample : sample + in_chunk]:
            copied += size
            check_count(copied, 2 * len(data) + 1024, "bytes of frames")
            yield data[at : at + size]
            at += size  # noqa: PLW2901  # the samples of a chunk follow each other
        sample += in_chunk
