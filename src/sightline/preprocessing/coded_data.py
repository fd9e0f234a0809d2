"""Find the coded images in an AVIF or HEIF: items, or samples of tracks. Source: ISO 14496-12 and 23008-12."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass

from sightline.errors import ImageError
from sightline.preprocessing.boxes import iterate_boxes
from sightline.preprocessing.counts import check_count

_MAX_EXTENTS = 400_000  # per file: extents of items, or samples of tracks
_MAX_ENTRIES = 1_000  # sample entries per file; a track has one or two
_TRACK_PATH = (b"mdia", b"minf", b"stbl")
_SAMPLE_ENTRY_BYTES = 78  # length of a visual sample entry before its boxes


@dataclass(frozen=True, slots=True)
class CodedData:
    """The input of one decoder: the data of an item, or the samples of a track, in order.

    `codec` is as in the file (``av01``, ``hvc1``, or ``grid`` for an item composed of others). The content of an
    ``hvcC`` box, which applies to several items, is a `CodedData` of its own. No decoder reads a thumbnail.
    """

    codec: bytes
    pieces: tuple[bytes, ...]
    is_thumbnail: bool = False


class _Budget:
    """Limits how much of each kind is read from a file, because many small tables can refer to the same bytes."""

    def __init__(self, data: bytes) -> None:
        self._limits = {"bytes of items and frames": 2 * len(data) + 1024, "descriptions of frames": _MAX_ENTRIES}
        self._used: Counter[str] = Counter()

    def take(self, count: int, description: str) -> None:
        self._used[description] += count
        check_count(self._used[description], self._limits.get(description, _MAX_EXTENTS), description)


def iterate_coded_data(data: bytes, codecs: Collection[bytes]) -> Iterator[CodedData]:
    """Yield the data that an AVIF or HEIF passes to decoders; data damaged beyond recognition are left out.

    From tracks, only samples in `codecs` are read. Raises ImageError for more data than an ordinary file has.
    """
    budget = _Budget(data)
    for name, start, end in iterate_boxes(data, 0, len(data)):
        with suppress(struct.error, LookupError):
            if name == b"meta":
                yield from _iterate_items(data, start + 4, end, budget)
        if name == b"moov":
            for trak, track_start, track_end in iterate_boxes(data, start, end):
                with suppress(struct.error, LookupError):
                    if trak == b"trak":
                        yield from _iterate_track(data, track_start, track_end, codecs, budget)


def _iterate_items(data: bytes, start: int, end: int, budget: _Budget) -> Iterator[CodedData]:
    boxes = _index_boxes(data, start, end)
    if b"iprp" in boxes:
        yield from _find_settings(data, *_index_boxes(data, *boxes[b"iprp"]).get(b"ipco", (0, 0)))
    if b"iinf" not in boxes or b"iloc" not in boxes:
        return
    codecs = _read_item_types(data, *boxes[b"iinf"])
    thumbnails = _find_thumbnails(data, boxes)
    inner = boxes.get(b"idat", (0, 0))
    for item, method, extents in _iterate_locations(data, *boxes[b"iloc"], budget):
        base, limit = (0, len(data)) if method == 0 else inner
        ranges = [(base + at, min(base + at + size, limit) if size else limit) for at, size in extents]
        budget.take(sum(max(stop - at, 0) for at, stop in ranges), "bytes of items and frames")
        content = b"".join(data[at:stop] for at, stop in ranges)
        yield CodedData(codecs.get(item, b""), (content,), item in thumbnails)


def _index_boxes(data: bytes, start: int, end: int) -> dict[bytes, tuple[int, int]]:
    """Return the range of the content of each box; of several boxes with one name, the first counts."""
    boxes: dict[bytes, tuple[int, int]] = {}
    for name, at, stop in iterate_boxes(data, start, end):
        boxes.setdefault(name, (at, stop))
    return boxes


def _find_settings(data: bytes, start: int, end: int) -> Iterator[CodedData]:
    for name, at, stop in iterate_boxes(data, start, end):
        if name == b"hvcC":
            yield CodedData(name, (data[at:stop],))


def _read_item_types(data: bytes, start: int, end: int) -> dict[int, bytes]:
    types: dict[int, bytes] = {}
    for name, at, _ in iterate_boxes(data, start + (6 if data[start] == 0 else 8), end):
        if name == b"infe" and data[at] in {2, 3}:
            item, _, kind = struct.unpack_from(">HH4s" if data[at] == 2 else ">IH4s", data, at + 4)
            if types.setdefault(item, kind) != kind:  # decoders differ in which one they use
                raise ImageError(f"item {item} is described twice, with different codecs: save it as PNG or JPEG")
    return types


def _find_thumbnails(data: bytes, boxes: dict[bytes, tuple[int, int]]) -> set[int]:
    """Return the items that are nothing but thumbnails: not primary, not alpha, and not the source of another item.

    Any other item may be decoded, as a page or because the primary item is damaged.
    """
    thumbnails: set[int] = set()
    others: set[int] = set()
    with suppress(struct.error, LookupError):
        at, _ = boxes[b"pitm"]
        others.add(_read_number(data, at + 4, 4 if data[at] else 2)[0])
        at, end = boxes[b"iref"]
        size = 4 if data[at] else 2
        for kind, start, stop in iterate_boxes(data, at + 4, end):
            item, at = _read_number(data, start, size)
            count = min(_read_number(data, at, 2)[0], (stop - at - 2) // size)
            targets = struct.unpack_from(f">{count}{'I' if size == 4 else 'H'}", data, at + 2)
            if kind == b"thmb" and targets and item not in targets:
                thumbnails.add(item)
            elif kind == b"auxl":
                others.add(item)
            elif kind != b"cdsc":  # a description, such as EXIF
                others.update(targets)
        return thumbnails - others
    return set()


def _iterate_locations(
    data: bytes, at: int, end: int, budget: _Budget
) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """Yield each item with its construction method, and the offsets and lengths of its extents."""
    version, sizes, more_sizes = data[at], data[at + 4], data[at + 5]
    offset_size, length_size, base_size = sizes >> 4, sizes & 15, more_sizes >> 4
    index_size = more_sizes & 15 if version else 0
    count, at = _read_number(data, at + 6, 4 if version == 2 else 2)
    for _ in range(count):
        item, at = _read_number(data, at, 4 if version == 2 else 2)
        method, at = _read_number(data, at, 2) if version else (0, at)
        base, at = _read_number(data, at + 2, base_size)
        extent_count, at = _read_number(data, at, 2)
        budget.take(extent_count, "extents of items")
        extents = []
        for _ in range(extent_count):
            offset, at = _read_number(data, at + index_size, offset_size)
            length, at = _read_number(data, at, length_size)
            extents.append((base + offset, length))
        if at > end:
            return
        yield item, method & 15, extents


def _read_number(data: bytes, at: int, size: int) -> tuple[int, int]:
    """Return a number of `size` bytes, and the offset of its end."""
    if at + size > len(data):
        raise IndexError(at)
    return int.from_bytes(data[at : at + size], "big"), at + size


def _iterate_track(
    data: bytes, start: int, end: int, codecs: Collection[bytes], budget: _Budget
) -> Iterator[CodedData]:
    for name in _TRACK_PATH:
        start, end = _index_boxes(data, start, end)[name]
    boxes = _index_boxes(data, start, end)
    used: set[bytes] = set()
    for codec, at, stop in iterate_boxes(data, boxes[b"stsd"][0] + 8, boxes[b"stsd"][1]):
        budget.take(1, "descriptions of frames")
        yield from _find_settings(data, at + _SAMPLE_ENTRY_BYTES, stop)
        used.add(codec)
    used.intersection_update(codecs)
    if used:
        samples = tuple(_iterate_samples(data, boxes, budget))
        for codec in sorted(used):
            yield CodedData(codec, samples)


def _iterate_samples(data: bytes, boxes: dict[bytes, tuple[int, int]], budget: _Budget) -> Iterator[bytes]:
    size, count = struct.unpack_from(">II", data, boxes[b"stsz"][0] + 4)
    budget.take(count, "frames")
    sizes = (size,) * count if size else struct.unpack_from(f">{count}I", data, boxes[b"stsz"][0] + 12)
    wide = b"co64" in boxes
    at = boxes[b"co64" if wide else b"stco"][0] + 4
    (chunks,) = struct.unpack_from(">I", data, at)
    budget.take(chunks, "chunks of frames")
    offsets = struct.unpack_from(f">{chunks}{'Q' if wide else 'I'}", data, at + 4)
    at = boxes[b"stsc"][0] + 4
    (runs,) = struct.unpack_from(">I", data, at)
    budget.take(runs, "runs of chunks")
    table = struct.unpack_from(f">{3 * runs}I", data, at + 4)
    starts = dict(zip(table[::3], table[1::3], strict=True))
    sample = in_chunk = 0
    for number, at in enumerate(offsets, 1):
        in_chunk = starts.get(number, in_chunk)
        for size in sizes[sample : sample + in_chunk]:
            budget.take(size, "bytes of items and frames")
            yield data[at : at + size]
            at += size  # noqa: PLW2901  # the samples of a chunk follow each other
        sample += in_chunk
