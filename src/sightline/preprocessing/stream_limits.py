"""The memory needed by the streams in an AVIF or HEIF, whatever size the container declares.

Sizes are read from stream headers; no pixel is decoded. Sources: the AV1 bitstream specification, section 5;
ITU-T H.265, section 7.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from sightline.errors import ImageError
from sightline.preprocessing.coded_data import iterate_coded_data
from sightline.preprocessing.counts import check_count

_MAX_UNITS = 400_000  # OBUs or NAL units in all streams: about 0.5 s
_MAX_KEPT_FRAMES = 16  # for HEVC; half as many for AV1
_OTHER_CODECS = frozenset({b"jpeg", b"unci", b"j2k1", b"vvc1", b"avc1", b"evc1", b"lhv1", b"lhe1", b"hvt1", b"tili"})
_AV1_PIXEL_BYTES = (3, 6, 6, 6)  # of a frame kept by the decoder, by profile: 4:2:0 with up to 10 bits, ...
_HEVC_PIXEL_BYTES = (2, 3, 4, 6)  # by chroma format
_ALPHA_PIXEL_BYTES = 2

Pieces = tuple[bytes, ...]
Unit = tuple[int, int, int]  # per unit of a stream: number of frames begun, stated pixels, bytes per pixel


@dataclass(frozen=True, slots=True)
class StreamDemand:
    """The number of pixels in the largest frame of any stream, and of bytes that decoders keep for other frames."""

    pixels: int = 0
    kept_bytes: int = 0


def measure_streams(data: bytes) -> StreamDemand:
    """Measure the streams of an AVIF or HEIF; raises ImageError for one that is neither AV1 nor HEVC.

    A thumbnail, which is not decoded, may be in any codec.
    """
    pixels = pixel_bytes = kept_frames = units = 0
    for coded in iterate_coded_data(data, _READERS.keys() | _OTHER_CODECS):
        if coded.codec in _OTHER_CODECS and not coded.is_thumbnail:
            raise ImageError(f"an item coded as {coded.codec.decode().strip()}, where HEVC or AV1 can be read")
        read, frames = _READERS.get(coded.codec, _skip), 0
        for count, size, size_of_pixel in read(coded.pieces):
            units, frames = units + 1, frames + count
            check_count(units, _MAX_UNITS, "units of streams")
            pixels, pixel_bytes = max(pixels, size), max(pixel_bytes, size_of_pixel)
        limit = _MAX_KEPT_FRAMES // 2 if coded.codec == b"av01" else _MAX_KEPT_FRAMES
        kept_frames = max(kept_frames, min(frames - 1, limit))
    return StreamDemand(pixels, kept_frames * pixels * (pixel_bytes + _ALPHA_PIXEL_BYTES))


def _skip(_pieces: Pieces) -> Iterator[Unit]:
    return iter(())


def _read_canvas(pieces: Pieces, at: int) -> Iterator[Unit]:
    """Yield the pixels of an item composed of others; its sides are at offset `at`, as numbers of 2 or 4 bytes."""
    for piece in pieces:
        size = 4 if piece[1:2] and piece[1] & 1 else 2
        yield (
            0,
            int.from_bytes(piece[at : at + size], "big") * int.from_bytes(piece[at + size : at + 2 * size], "big"),
            0,
        )


def _iterate_av1(pieces: Pieces) -> Iterator[Unit]:
    for piece in pieces:
        at = 0
        while at < len(piece):
            header = piece[at]
            kind, at = header >> 3 & 15, at + 1 + (header >> 2 & 1)
            size = len(piece) - at
            if header & 2:
                size, at = _read_leb128(piece, at)
            pixels, pixel_bytes = 0, 0
            if kind == 1:
                with suppress(IndexError):  # truncated
                    pixels, pixel_bytes = _read_sequence_header(_Bits(piece[at : at + size]))
            yield int(kind in {3, 6}), pixels, pixel_bytes
            at += size


def _read_leb128(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i in range(8):
        byte = data[at + i] if at + i < len(data) else 0
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value, at + i + 1
    return len(data), at + 8  # decoders stop here


class _Bits:
    """Reads bits of a header, the most significant bit of a byte first; raises IndexError at the end."""

    def __init__(self, data: bytes) -> None:
        data = data[:1024]
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def read(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise IndexError(count)
        return self._value >> self._left & (1 << count) - 1

    def read_exp_golomb(self) -> int:
        """Read an Exp-Golomb number, which has as many bits as zeros precede it; both standards use this code."""
        zeros = 0
        while not self.read(1):
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)


def _read_sequence_header(bits: _Bits) -> tuple[int, int]:
    profile, _, reduced = bits.read(3), bits.read(1), bits.read(1)
    if reduced:
        bits.read(5)
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    pixels = (bits.read(width_bits) + 1) * (bits.read(height_bits) + 1)
    return pixels, _AV1_PIXEL_BYTES[min(profile, 3)]


def _skip_operating_points(bits: _Bits) -> None:
    has_model, delay_bits = 0, 0
    if bits.read(1):  # timing information
        bits.read(64)
        if bits.read(1):
            bits.read_exp_golomb()
        has_model = bits.read(1)
        if has_model:
            delay_bits = bits.read(5) + 1
            bits.read(42)
    has_delay = bits.read(1)
    for _ in range(bits.read(5) + 1):
        bits.read(12)
        if bits.read(5) > 7:
            bits.read(1)
        if has_model and bits.read(1):
            bits.read(2 * delay_bits + 1)
        if has_delay and bits.read(1):
            bits.read(4)


def _iterate_hevc(pieces: Pieces) -> Iterator[Unit]:
    for piece in pieces:
        at = 0
        while at + 4 <= len(piece):
            size, at = int.from_bytes(piece[at : at + 4], "big"), at + 4
            yield _measure_nal_unit(piece[at : at + min(size, 1024)])
            at += size


def _iterate_hevc_settings(pieces: Pieces) -> Iterator[Unit]:
    """Yield the units in an ``hvcC`` box, which contains lists of NAL units."""
    for box in pieces:
        at = 23
        for _ in range(box[22] if len(box) > 22 else 0):
            if at >= len(box):
                break
            count, at = int.from_bytes(box[at + 1 : at + 3], "big"), at + 3
            while count and at + 2 <= len(box):
                size, at = int.from_bytes(box[at : at + 2], "big"), at + 2
                yield _measure_nal_unit(box[at : at + size])
                count, at = count - 1, at + size


def _measure_nal_unit(unit: bytes) -> Unit:
    if len(unit) < 3:
        return 0, 0, 0
    pixels, pixel_bytes, kind = 0, 0, unit[0] >> 1 & 63
    if kind == 33:
        with suppress(IndexError):
            pixels, pixel_bytes = _read_hevc_settings(_Bits(unit[2:].replace(b"\0\0\3", b"\0\0")))
    return int(kind < 32 and unit[2] >= 128), pixels, pixel_bytes


def _read_hevc_settings(bits: _Bits) -> tuple[int, int]:
    bits.read(4)
    layers = bits.read(3)
    bits.read(1 + 96)
    present = [(bits.read(1), bits.read(1)) for _ in range(layers)]
    bits.read(2 * (8 - layers) if layers else 0)
    for has_profile, has_level in present:
        bits.read(88 * has_profile + 8 * has_level)
    bits.read_exp_golomb()
    chroma = bits.read_exp_golomb()
    if chroma == 3:
        bits.read(1)
    return bits.read_exp_golomb() * bits.read_exp_golomb(), _HEVC_PIXEL_BYTES[min(chroma, 3)]


_READERS: dict[bytes, Callable[[Pieces], Iterator[Unit]]] = {
    b"av01": _iterate_av1, b"hvc1": _iterate_hevc, b"hev1": _iterate_hevc, b"hvcC": _iterate_hevc_settings,
    b"grid": partial(_read_canvas, at=4), b"iovl": partial(_read_canvas, at=10),
}  # fmt: skip
