"""How many Huffman tables a lossless WebP makes libwebp build: up to 65,536 of 20 kB each, in a file of 200 kB.

The transform images before that number are read without keeping pixels. Bits are read as in libwebp 1.6; this module
stops at the same errors as libwebp. Source: RFC 9649, section 3.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from sightline.errors import ImageError
from sightline.preprocessing.counts import check_count

_MAX_CHUNKS = 10_000  # per WebP before its pixels
_MAX_SYMBOLS = 1_000_000  # in transform images: about 1 s; libwebp writes at most 16,384 pixels in each
_MAX_GROUPS = 1 << 16
_UNMAPPED_GROUPS = 1_000  # groups that libwebp may allocate even if no block uses them
_MIN_GROUP_BITS = 20  # five codes with one symbol each
_GROUP_BYTES = 568
_FIXED_ENTRIES = 3 * 630 + 410  # in the tables for red, blue, alpha and distances
_GREEN_ENTRIES = (654, 656, 658, 662, 670, 686, 718, 782, 912, 1168, 1680, 2704)  # by color cache bits
_ENTRY_BYTES = 4
_SIDES = struct.Struct("<I")
_REPEATS = {16: (2, 3), 17: (3, 3), 18: (7, 11)}  # repeat codes: bits of the count, and its minimum
_LENGTH_ORDER = (17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
_PREDICTOR, _CROSS_COLOR, _COLOR_INDEXING = 0, 1, 3


@dataclass(frozen=True, slots=True)
class _Stream:
    """A lossless stream: the range of its bits in the file, and its width and height in pixels."""

    start: int
    end: int
    width: int
    height: int


def measure_tables(data: bytes, frame: int, allowed: int) -> int:
    """Return the most bytes of Huffman tables that any frame of a WebP takes, up to `frame`, counted from 0.

    A result of at most `allowed` may be an overestimate, as it needs no exact measurement. Raises ImageError for a
    stream that cannot be decoded, or takes too long to measure.
    """
    needed, symbols = 0, _MAX_SYMBOLS
    for stream in _iterate_streams(data, frame):
        most = _measure(_count_blocks(stream.width, stream.height, 2), 11, stream)
        if most > allowed:
            reader = _BitReader(data[stream.start : stream.end], symbols)
            try:
                most = _measure(*_read_group_limit(reader, stream.width, stream.height), stream)
            except EOFError:  # the decoder reports it
                most = 0
            symbols = reader.symbols_left
        needed = max(needed, most)
    return needed


def _measure(blocks: int, cache_bits: int, stream: _Stream) -> int:
    in_file = (stream.end - stream.start) * 8 // _MIN_GROUP_BITS + 1
    groups = min(max(blocks, _UNMAPPED_GROUPS), in_file, _MAX_GROUPS)
    return groups * (_GROUP_BYTES + (_FIXED_ENTRIES + _GREEN_ENTRIES[cache_bits]) * _ENTRY_BYTES)


def _count_blocks(width: int, height: int, bits: int) -> int:
    return _divide(width, bits) * _divide(height, bits)


def _divide(size: int, bits: int) -> int:
    return -(-size >> bits)


def _iterate_streams(data: bytes, frame: int) -> Iterator[_Stream]:
    """Yield the lossless streams (colors or alpha) of an image, or of the first frames of an animation."""
    is_animated, frames = data[12:16] == b"VP8X" and data[20] & 2, 0
    if not is_animated:
        yield from _find_streams(data, 12, len(data))
        return
    for number, (name, start, end) in enumerate(_iterate_chunks(data, 12, len(data))):
        check_count(number - frames, _MAX_CHUNKS, "chunks without pixels")
        if name == b"ANMF":
            yield from _find_streams(data, start + 16, end)
            frames += 1
            if frames > frame:
                return


def _find_streams(data: bytes, at: int, chunks_end: int) -> Iterator[_Stream]:
    """Yield the streams of the first image in a range of the file."""
    alphas = []
    for number, (name, start, end) in enumerate(_iterate_chunks(data, at, chunks_end)):
        check_count(number, _MAX_CHUNKS, "chunks before the pixels")
        if name == b"ALPH" and start < end and data[start] & 3 == 1:
            alphas.append((start + 1, end))
        elif name == b"VP8L" and end - start >= 5:
            (sides,) = _SIDES.unpack_from(data, start + 1)
            yield _Stream(start + 5, end, (sides & 0x3FFF) + 1, (sides >> 14 & 0x3FFF) + 1)
            return
        elif name == b"VP8 " and end - start >= 10:
            width, height = struct.unpack_from("<HH", data, start + 6)
            yield from (_Stream(*alpha, width & 0x3FFF, height & 0x3FFF) for alpha in alphas)
            return


def _iterate_chunks(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    while at + 8 <= end:
        name, size = struct.unpack_from("<4sI", data, at)
        yield name, at + 8, min(at + 8 + size, end)
        at += 8 + size + size % 2


class _BitReader:
    """Reads bits, the least significant bit of a byte first; raises EOFError at the end."""

    def __init__(self, data: bytes, symbols: int) -> None:
        self._data, self._at, self._bits, self._count = data, 0, 0, 0
        self.symbols_left = symbols

    def _fill(self) -> None:
        """Append bits: zeros just beyond the end, then raise EOFError."""
        piece = self._data[self._at : self._at + 32]
        self._bits |= int.from_bytes(piece, "little") << self._count
        self._at, self._count = self._at + 32, self._count + 256
        if self._at > len(self._data) + 64:
            raise EOFError

    def read(self, count: int) -> int:
        if self._count < count:
            self._fill()
        value = self._bits & (1 << count) - 1
        self._bits >>= count
        self._count -= count
        return value

    def read_symbol(self, table: list[int]) -> int:
        """Return the next symbol, decoded with a table from `_make_table`."""
        if self._count < 15:
            self._fill()
        symbol, length = divmod(table[self._bits & len(table) - 1], 16)
        self._bits >>= length
        self._count -= length
        return symbol

    def skip_pixels(self, count: int, cache_bits: int) -> None:
        """Read a transform image and discard its pixels."""
        sizes = (280 + (1 << cache_bits if cache_bits else 0), 256, 256, 256, 40)
        green, red, blue, alpha, distances = (self._read_table(size) for size in sizes)
        others = [table for table in (red, blue, alpha) if len(table) > 1]
        if len(green) == 1 and green[0] >> 4 < 256 and not others:  # a single color takes no bits
            return
        while count > 0:
            self.symbols_left -= 1
            if self.symbols_left < 0:
                raise ImageError("transforms of too many pixels, which take too long to read: save it as PNG")
            symbol = self.read_symbol(green)
            if symbol < 256:
                for table in others:
                    self.read_symbol(table)
                count -= 1
            elif symbol < 280:
                count -= self._read_number(symbol - 256)
                self._read_number(self.read_symbol(distances))
            else:
                count -= 1

    def _read_number(self, prefix: int) -> int:
        if prefix < 4:
            return prefix + 1
        bits = (prefix - 2) >> 1
        return ((2 + (prefix & 1)) << bits) + self.read(bits) + 1

    def _read_table(self, size: int) -> list[int]:
        """Read a prefix code for an alphabet of `size` symbols."""
        lengths = [0] * max(size, 256)
        if self.read(1):
            two = self.read(1)
            lengths[self.read(8 if self.read(1) else 1)] = 1
            if two:
                lengths[self.read(8)] = 1
            return _make_table(lengths[:size])
        of_lengths = [0] * 19
        for symbol in _LENGTH_ORDER[: self.read(4) + 4]:
            of_lengths[symbol] = self.read(3)
        table, length_count = _make_table(of_lengths), size
        if self.read(1):
            length_count = 2 + self.read(2 + 2 * self.read(3))
            if length_count > size:
                raise ImageError("cannot be decoded: more code lengths than symbols")
        at, previous = 0, 8
        while at < size and length_count > 0:
            length_count, length, repeats = length_count - 1, self.read_symbol(table), 1
            if length in _REPEATS:
                bits, minimum = _REPEATS[length]
                repeats, length = self.read(bits) + minimum, previous if length == 16 else 0
            previous = length or previous
            lengths[at : at + repeats] = [length] * repeats
            at += repeats
        if at > size:
            raise ImageError("cannot be decoded: more code lengths than symbols")
        return _make_table(lengths[:size])


def _make_table(lengths: list[int]) -> list[int]:
    """Return a table of 16 * symbol + length for a prefix code, indexed by the next bits."""
    symbols = sorted((length, symbol) for symbol, length in enumerate(lengths) if length)
    if len(symbols) == 1:
        return [symbols[0][1] << 4]
    longest = symbols[-1][0] if symbols else 0
    if sum(1 << (longest - length) for length, _ in symbols) != 1 << longest:
        raise ImageError("cannot be decoded: a prefix code is not complete")
    table, code = [0] * (1 << longest), 0
    for length, symbol in symbols:
        start = int(f"{code >> (longest - length):0{length}b}"[::-1], 2)
        table[start :: 1 << length] = [symbol << 4 | length] * (1 << (longest - length))
        code += 1 << (longest - length)
    return table


def _read_group_limit(reader: _BitReader, width: int, height: int) -> tuple[int, int]:
    """Return the number of blocks that may have their own tables, and the number of color cache bits."""
    seen = set()
    while reader.read(1):
        transform = reader.read(2)
        if transform in seen:
            raise ImageError("cannot be decoded: a transform occurs twice")
        seen.add(transform)
        if transform in {_PREDICTOR, _CROSS_COLOR}:
            pixels = _count_blocks(width, height, reader.read(3) + 2)
            reader.skip_pixels(pixels, _read_cache_bits(reader))
        elif transform == _COLOR_INDEXING:
            colors = reader.read(8) + 1
            width = _divide(width, 0 if colors > 16 else 1 if colors > 4 else 2 if colors > 2 else 3)
            reader.skip_pixels(colors, _read_cache_bits(reader))
    cache_bits = _read_cache_bits(reader)
    return (_count_blocks(width, height, reader.read(3) + 2) if reader.read(1) else 1), cache_bits


def _read_cache_bits(reader: _BitReader) -> int:
    bits = reader.read(4) if reader.read(1) else 0
    if bits >= len(_GREEN_ENTRIES):
        raise ImageError("cannot be decoded: a color cache of more than 11 bits")
    return bits
