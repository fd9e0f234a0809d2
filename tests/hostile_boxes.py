"""JPEG 2000, AVIF and WebP files crafted to exhaust a decoder's time or memory; each is under 64 MB."""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from synthetic_images import encode

# JPEG 2000


def codestream(
    width: int, height: int, components: int = 1, *, block: int = 64, layers: int = 1, levels: int = 5,
    precincts: Sequence[tuple[int, int]] = (), tile: tuple[int, int] | None = None, order: int = 0,
    packets: int | None = None, tile_header: bytes = b"",
) -> bytes:  # fmt: skip
    """Return a JPEG 2000 codestream of gray pixels, in which each packet is an empty one of one byte.

    `precincts` are the exponents of the precinct width and height at each resolution. `packets` per tile are by default
    one for each layer, resolution and component, as in a tile without precincts.
    """

    def segment(marker: int, content: bytes) -> bytes:
        return struct.pack(">HH", marker, len(content) + 2) + content

    tile_width, tile_height = tile or (width, height)
    tiles = -(-width // tile_width) * -(-height // tile_height)
    size = struct.pack(">HIIIIIIIIH", 0, width, height, 0, 0, tile_width, tile_height, 0, 0, components)
    coding = struct.pack(">BBHB", bool(precincts), order, layers, 0)
    coding += coding_style(block, levels, precincts)
    steps = bytes([0x40, 8 << 3, *[9 << 3] * (3 * levels)])
    parts = [
        b"\xff\x4f", segment(0xFF51, size + b"\x07\x01\x01" * components), segment(0xFF52, coding),
        segment(0xFF5C, steps),
    ]  # fmt: skip
    body = tile_header + b"\xff\x93" + bytes(components * (levels + 1) * layers if packets is None else packets)
    parts += [struct.pack(">HHHIBB", 0xFF90, 10, i, 12 + len(body), 0, 1) + body for i in range(tiles)]
    return b"".join([*parts, b"\xff\xd9"])


def coding_style(block: int, levels: int, precincts: Sequence[tuple[int, int]] = ()) -> bytes:
    exponent = block.bit_length() - 3
    return bytes([levels, exponent, exponent, 0, 1, *(x | y << 4 for x, y in precincts)])


def small_blocks_in_a_tile_header() -> bytes:
    """Return a codestream with an ordinary main header."""
    coding = b"\0\0\0\1\0" + coding_style(4, 5)
    return codestream(3000, 3000, 4, tile_header=struct.pack(">HH", 0xFF52, len(coding) + 2) + coding)


def behind_an_unknown_marker() -> bytes:
    """Return a codestream whose precincts OpenJPEG sees, but a parser that reads the marker as a segment does not."""
    data = codestream(7000, 7000, precincts=[(1, 1)] * 6, packets=0)
    at = data.index(b"\xff\x52")
    return data[:at] + b"\xff\x70" + data[at:]


# AVIF


def box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content) + 8, name) + content


def split_boxes(data: bytes) -> dict[bytes, bytes]:
    boxes, at = {}, 0
    while at < len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        boxes[name], at = data[at + 8 : at + length], at + length
    return boxes


@functools.cache
def small_avif() -> bytes:
    return encode(Image.new("RGB", (64, 64), "red"), "AVIF")


def avif_with(change: Callable[[dict[bytes, bytes]], dict[bytes, bytes]]) -> bytes:
    """Return a small AVIF with changes to the box that describes its items."""
    file = split_boxes(small_avif())
    inner = split_boxes(file[b"meta"][4:])
    file[b"meta"] = file[b"meta"][:4] + b"".join(box(*each) for each in (inner | change(inner)).items())
    return b"".join(box(*each) for each in file.items())


def avif_of_items(count: int) -> bytes:
    entries = b"".join(box(b"infe", struct.pack(">BBHIH4sB", 3, 0, 0, i + 10, 0, b"av01", 0)) for i in range(count))
    return avif_with(lambda inner: {b"iinf": struct.pack(">II", 1 << 24, 1 + count) + inner[b"iinf"][6:] + entries})


def avif_of_properties(count: int) -> bytes:
    def change(inner: dict[bytes, bytes]) -> dict[bytes, bytes]:
        properties = split_boxes(inner[b"iprp"])
        properties[b"ipco"] += box(b"free", b"") * count
        return {b"iprp": b"".join(box(*each) for each in properties.items())}

    return avif_with(change)


def avif_of_associations(items: int) -> bytes:
    """Return an AVIF in which each of many items has its size 255 times."""

    def change(inner: dict[bytes, bytes]) -> dict[bytes, bytes]:
        properties = split_boxes(inner[b"iprp"])
        more = b"".join(struct.pack(">HB", i + 10, 255) + b"\1" * 255 for i in range(items))
        properties[b"ipma"] = struct.pack(">II", 0, 1 + items) + properties[b"ipma"][8:] + more
        return {b"iprp": b"".join(box(*each) for each in properties.items())}

    return avif_with(change)


def avif_of_units(count: int) -> bytes:
    """Return an AVIF whose item begins with padding units of one byte each."""
    file = small_avif()
    stream = split_boxes(file)[b"mdat"]
    changed = b"\x7a\0" * count + stream
    return file.replace(struct.pack(">I", len(stream)), struct.pack(">I", len(changed)))[: -8 - len(stream)] + box(
        b"mdat", changed
    )


def track(codec: bytes, entries: int = 1, samples: int = 400_000) -> bytes:
    """Return a track of one-byte samples in one chunk, with empty entries that describe them."""
    tables = {
        b"stsd": struct.pack(">I", entries) + box(codec, b"") * entries, b"stsz": struct.pack(">II", 1, samples),
        b"stsc": struct.pack(">IIII", 1, 1, samples, 1), b"stco": struct.pack(">II", 1, 0),
    }  # fmt: skip
    content = b"".join(box(name, bytes(4) + table) for name, table in tables.items())
    for name in (b"stbl", b"minf", b"mdia", b"trak"):
        content = box(name, content)
    return content


def avif_of_tracks(*tracks: bytes, size: int = 200_000) -> bytes:
    """Return a small AVIF with tracks, of a size that allows each track to copy 400,000 bytes."""
    return small_avif() + box(b"moov", b"".join(tracks)) + box(b"free", bytes(size))


def avif_of_other_size(side: int) -> bytes:
    """Return an AVIF of one color that states 64x64 pixels but decodes to more."""
    data = encode(Image.new("RGB", (side, side), "red"), "AVIF", speed=10, quality=10, max_threads=1)
    size_box = b"ispe" + struct.pack(">III", 0, side, side)
    assert data.count(size_box) == 1
    return data.replace(size_box, b"ispe" + struct.pack(">III", 0, 64, 64))


def avif_of_stream(width: int, height: int, frames: int = 1) -> bytes:
    """Return an AVIF of 64x64 pixels whose AV1 stream states another size and repeats its frame."""
    file = small_avif()
    stream = split_boxes(file)[b"mdat"]
    at = stream.index(b"\x0a") + 2
    header = stream[at : at + stream[at - 1]]
    bits = f"{int.from_bytes(header, 'big'):0{8 * len(header)}b}"
    assert bits[4] == "1", "a reduced header: profile, 2 flags, level, 4 bits for the length of each side"
    sides = [int(bits[10:14], 2) + 1, int(bits[14:18], 2) + 1]
    assert [int(bits[18 : 18 + sides[0]], 2), int(bits[18 + sides[0] : 18 + sum(sides)], 2)] == [63, 63]
    bits = bits[:10] + "1111" * 2 + f"{width - 1:016b}{height - 1:016b}" + bits[18 + sum(sides) :].rstrip("0")
    content = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    changed = stream[: at - 1] + bytes([len(content)]) + content + stream[at + len(header) :] * frames
    sizes = struct.pack(">I", len(stream)), struct.pack(">I", len(changed))
    assert file.count(sizes[0]) == 1, "the length of its item"
    return file.replace(sizes[0], sizes[1])[: -8 - len(stream)] + box(b"mdat", changed)


# HEIC


def exp_golomb(value: int) -> str:
    return f"{value + 1:b}".zfill(2 * (value + 1).bit_length() - 1)


def hevc_settings(width: int, height: int) -> bytes:
    """Return the beginning of a 4:2:0 sequence parameter set, up to its size."""
    bits = "0000" + "000" + "1" + "0" * 96 + exp_golomb(0) + exp_golomb(1) + exp_golomb(width) + exp_golomb(height)
    bits = (bits + "1").ljust(len(bits) // 8 * 8 + 8, "0")
    return b"\x42\1" + re.sub(rb"\0\0(?=[\0-\3])", b"\0\0\3", int(bits, 2).to_bytes(len(bits) // 8, "big"))


def heic(
    codec: bytes = b"hvc1", sides: tuple[int, int] = (64, 64), settings: bytes = b"", content: bytes = b"",
    other: bytes = b"", references: Sequence[tuple[bytes, int, int]] = (), primary: int = 1,
) -> bytes:  # fmt: skip
    """Return the boxes of a HEIC: an item with a codec, its size, and parameter sets in ``hvcC``.

    Item 2, which has no bytes, has the codec `other`; `references` are (name, from item, to item).
    """
    lists = b"\1\x21\0\1" + struct.pack(">H", len(settings)) + settings if settings else b"\0"
    properties = box(b"ispe", struct.pack(">III", 0, *sides)) + box(b"hvcC", bytes(22) + lists)
    items = [codec, *([other] if other else [])]
    infos = [box(b"infe", b"\2\0\0\0" + struct.pack(">HH", i, 0) + name + b"\0") for i, name in enumerate(items, 1)]
    links = [box(name, struct.pack(">HHH", item, 1, to)) for name, item, to in references]
    parts = [
        box(b"hdlr", bytes(8) + b"pict" + bytes(13)), box(b"pitm", struct.pack(">IH", 0, primary)),
        box(b"iinf", struct.pack(">IH", 0, len(items)) + b"".join(infos)),
        *([box(b"iref", bytes(4) + b"".join(links))] if links else []),
        box(b"iprp", box(b"ipco", properties) + box(b"ipma", struct.pack(">IIHBBB", 0, 1, 1, 2, 1, 2))),
        box(
            b"iloc", struct.pack(">IHHHHHHII", 1 << 24, 0x4400, len(items), 1, 1, 0, 1, 0, len(content))
            + (struct.pack(">4H", 2, 1, 0, 0) if other else b""),
        ),
        box(b"idat", content),
    ]  # fmt: skip
    return box(b"ftyp", b"heic" + bytes(4) + b"heicmif1") + box(b"meta", bytes(4) + b"".join(parts))


def nested(depth: int) -> bytes:
    return b"".join(struct.pack(">I4s", 8 * (depth - i), b"iprp") for i in range(depth))


# WebP


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def riff(*chunks: bytes) -> bytes:
    body = b"".join([b"WEBP", *chunks])
    return b"RIFF" + struct.pack("<I", len(body)) + body


@functools.cache
def pixel_chunk() -> bytes:
    """Return the chunk of a lossless image of one pixel."""
    return encode(Image.new("RGB", (1, 1)), "WEBP", lossless=True)[12:]


def extended(flags: int, side: int = 1) -> bytes:
    return chunk(b"VP8X", struct.pack("<I", flags) + struct.pack("<I", side - 1)[:3] * 2)


def animated_webp(frames: int, side: int = 1) -> bytes:
    frame = chunk(b"ANMF", bytes(12) + b"\x0a\0\0\0" + pixel_chunk())
    return riff(extended(2, side), chunk(b"ANIM", bytes(6)), frame * frames)


def webp_with(flag: int, name: bytes, content: bytes) -> bytes:
    return riff(extended(flag), pixel_chunk(), chunk(name, content))


class BitWriter:
    """Bits of a lossless WebP, least significant bit first."""

    def __init__(self) -> None:
        self._text: list[str] = []

    def write(self, value: int, count: int) -> None:
        if count:
            self._text.append(f"{value:0{count}b}"[::-1])

    def repeat(self, other: BitWriter, count: int) -> None:
        self._text.append("".join(other._text) * count)

    def to_bytes(self) -> bytes:
        text = "".join(self._text)
        return int(text[::-1], 2).to_bytes(-(-len(text) // 8), "little")


def one_symbol(bits: BitWriter, symbol: int) -> None:
    """Write a prefix code with one symbol, which then takes no bits."""
    bits.write(0b101, 3)  # simple, one symbol, 8 bits
    bits.write(symbol, 8)


def uniform(bits: BitWriter, used: int, size: int) -> None:
    """Write a prefix code for an alphabet of `size`, whose first `used` symbols (a power of 2) have the same length."""
    length = used.bit_length() - 1
    order = (17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
    bits.write(0, 1)
    bits.write(15, 4)
    for symbol in order:
        bits.write(int(symbol in {0, length}), 3)
    bits.write(0, 1)  # a length for each symbol
    for symbol in range(size):
        bits.write(int(symbol < used), 1)


def webp_of_groups(groups: int, side: int, block_bits: int = 2, transform: int | None = None) -> bytes:
    """Return a lossless WebP of one color in which each block, up to `groups`, has its own Huffman tables.

    They are preceded by a `transform` with random pixels.
    """
    bits = BitWriter()
    bits.write((side - 1) | (side - 1) << 14, 32)  # no alpha, version 0
    blocks = -(-side >> block_bits)
    if transform is not None:
        bits.write(1 | transform << 1 | (block_bits - 2) << 3, 6)
        bits.write(0, 1)  # no color cache
        for size in (280, 256, 256, 256, 40):
            uniform(bits, 256 if size > 40 else 16, size)
        for value in np.random.default_rng(0).integers(0, 1 << 32, blocks * blocks).tolist():
            bits.write(value, 32)
    bits.write(0, 1)  # no other transform
    bits.write(1 | 11 << 1, 5)  # a color cache of 11 bits, which makes tables largest
    bits.write(1 | (block_bits - 2) << 1, 4)
    bits.write(0, 1)  # no color cache for the image of groups
    uniform(bits, 256, 280)
    uniform(bits, 256, 256)
    for symbol in (0, 255, 0):
        one_symbol(bits, symbol)
    for block in range(blocks * blocks):
        group = min(block, groups - 1)
        for value in (group & 255, group >> 8):
            bits.write(int(f"{value:08b}"[::-1], 2), 8)  # codes are stored first bit first
    group_bits = BitWriter()
    for symbol in (200, 100, 0, 255, 0):
        one_symbol(group_bits, symbol)
    bits.repeat(group_bits, groups)
    return riff(chunk(b"VP8L", b"\x2f" + bits.to_bytes()))


def webp_of_transform(side: int) -> bytes:
    """Return the beginning of a lossless WebP with a transform of 4x4 blocks, whose pixels take a byte each."""
    bits = BitWriter()
    bits.write((side - 1) | (side - 1) << 14, 32)
    bits.write(1, 6)
    bits.write(0, 1)  # no color cache
    uniform(bits, 256, 280)
    for symbol in (0, 0, 255, 0):
        one_symbol(bits, symbol)
    return riff(chunk(b"VP8L", b"\x2f" + bits.to_bytes() + bytes(side * side // 16)))


def webp_of_alpha(groups: int, side: int) -> bytes:
    """Return a lossy WebP whose alpha channel is a lossless image with such groups."""
    stream = webp_of_groups(groups, side)[25:]
    lossy = encode(Image.new("RGB", (side, side)), "WEBP")[12:]
    return riff(extended(16, side), chunk(b"ALPH", b"\1" + stream), lossy)


def webp_frame_of_groups(groups: int, side: int) -> bytes:
    """Return an animation whose second frame has such groups."""
    header = bytes(6) + struct.pack("<I", side - 1)[:3] * 2 + b"\x0a\0\0\0"
    first = chunk(b"ANMF", bytes(12) + b"\x0a\0\0\0" + pixel_chunk())
    return riff(
        extended(2, side), chunk(b"ANIM", bytes(6)), first, chunk(b"ANMF", header + webp_of_groups(groups, side)[12:])
    )


def rgba(side: int) -> Image.Image:
    """Return an image with gradients in each channel, alpha included."""
    pixels = np.zeros((side, side, 4), np.uint8)
    pixels[..., 0] = (np.arange(side) // 7)[:, None]
    pixels[..., 3] = np.arange(side)
    return Image.fromarray(pixels)


def with_xmp(webp: bytes, size: int) -> bytes:
    """Return an extended WebP with a chunk of metadata at its end."""
    return riff(webp[12:20] + bytes([webp[20] | 4]) + webp[21:], chunk(b"XMP ", bytes(size)))


BOXES: dict[str, Callable[[], bytes]] = {
    "AVIF of 268 megapixels that states 64x64": lambda: avif_of_stream(16_384, 16_384),
    "AVIF of 40 megapixels in 9 frames": lambda: avif_of_stream(8_000, 5_000, 9),
    "AVIF of 20 million units": lambda: avif_of_units(20_000_000),
    "AVIF of a track with 64000 descriptions": lambda: avif_of_tracks(track(b"mp4a", 64_000)),
    "AVIF of 2000 tracks of the same bytes": lambda: avif_of_tracks(*[track(b"hvc1")] * 2_000),
    "WebP of 65536 groups of codes": lambda: webp_of_groups(65_536, 1024),
    "WebP of 65536 groups of codes behind a transform": lambda: webp_of_groups(65_536, 1100, transform=1),
    "WebP of 65536 groups of codes for alpha": lambda: webp_of_alpha(65_536, 1024),
    "WebP of 3000 groups of codes": lambda: webp_of_groups(3_000, 219),
    "WebP of a transform of 2 megapixels": lambda: webp_of_transform(6_000),
    "JPEG 2000 of 4x4 blocks, 49 megapixels": lambda: codestream(7000, 7000, block=4),
    "JPEG 2000 of 4x4 blocks, RGB, 49 megapixels": lambda: codestream(7000, 7000, 3, block=4),
    "JPEG 2000 of 4x4 blocks in a tile's header": small_blocks_in_a_tile_header,
    "JPEG 2000 of precincts of a pixel": lambda: codestream(7000, 7000, precincts=[(1, 1)] * 6, packets=0),
    "JPEG 2000 of precincts behind an unknown marker": behind_an_unknown_marker,
    "JPEG 2000 of wide and high precincts": lambda: codestream(
        7000, 7000, 4, levels=1, precincts=[(0, 15), (15, 1)], order=3, packets=100_000
    ),
    "JPEG 2000 of 65535 layers in 4096 tiles": lambda: codestream(
        4096, 4096, 4, layers=65_535, tile=(64, 64), packets=7_000
    ),
    "JPEG 2000 of 30 million packets": lambda: codestream(
        1000, 1000, 4, layers=65_535, precincts=[(15, 15)] * 2 + [(6, 6)] * 4, packets=30_000_000
    ),
    "JPEG 2000 of 16384 components": lambda: codestream(100, 100, 16_384, levels=0, tile=(1, 1), packets=0),
    "JPEG 2000 of 65025 tiles": lambda: codestream(4080, 4080, 3, levels=2, tile=(16, 16)),
    "JPEG 2000 of RGBA, 49 megapixels in a tile": lambda: codestream(7000, 7000, 4),
    "AVIF of 60000 items": lambda: avif_of_items(60_000),
    "AVIF of 5 million properties": lambda: avif_of_properties(5_000_000),
    "AVIF of 8 million associations": lambda: avif_of_associations(30_000),
    "AVIF of 7 million boxes": lambda: small_avif() + box(b"free", b"") * 7_000_000,
    "AVIF of a million boxes in each other": lambda: avif_with(lambda _: {b"iprp": nested(1_000_000)}),
    "AVIF of 5 million sample sizes": lambda: small_avif() + box(b"moov", box(b"trak", bytes(20_000_000))),
    "WebP of 7 million chunks": lambda: riff(extended(0), pixel_chunk(), chunk(b"abcd", b"") * 7_000_000),
    "WebP of a million frames": lambda: animated_webp(1_000_000),
    "WebP of 60 MB of XMP": lambda: webp_with(4, b"XMP ", b"tiff:Orientation=" * 3_500_000),
    "WebP of 60 MB of color profile": lambda: webp_with(32, b"ICCP", bytes(60_000_000)),
}
"""Hostile files by description; those that are decoded must be decoded in time."""

LARGE: dict[str, Callable[[], bytes]] = {
    "JPEG 2000 of RGB, 49 megapixels in a tile": lambda: codestream(7000, 7000, 3),
    "JPEG 2000 of RGBA, 49 megapixels in tiles": lambda: codestream(7000, 7000, 4, tile=(1000, 1000)),
    "JPEG 2000 of 16-bit gray, 49 megapixels": lambda: encode(deep_gray(7000), "JPEG2000"),
    "JPEG 2000 of 24 MB of noise in 4x4 blocks": lambda: encode(
        noise(4200, 1), "JPEG2000", codeblock_size=(4, 4), tile_size=(512, 512)
    ),
    "AVIF of RGBA, 49 megapixels": lambda: encode(rgba(7000), "AVIF", speed=10, quality=10, max_threads=1),
    "AVIF of RGB, 4:4:4, 49 megapixels": lambda: encode(
        rgba(7000).convert("RGB"), "AVIF", speed=10, quality=10, subsampling="4:4:4", max_threads=1
    ),
    "AVIF of 81 megapixels that states 64x64": lambda: avif_of_other_size(9000),
    "AVIF of 56 MB of noise": lambda: encode(
        noise(3900, 3), "AVIF", speed=10, quality=100, subsampling="4:4:4", max_threads=1
    ),
    "WebP of RGBA, 49 megapixels": lambda: encode(rgba(7000), "WEBP", method=0, quality=10),
    "WebP of RGBA, lossless, 49 megapixels": lambda: encode(rgba(7000), "WEBP", lossless=True, method=0, quality=0),
    "WebP of RGBA, 49 megapixels and 63 MB": lambda: with_xmp(
        encode(rgba(7000), "WEBP", method=0, quality=10), 63_000_000
    ),
    "WebP of 62 MB of noise": lambda: encode(noise(3940, 4), "WEBP", lossless=True, method=0, quality=0),
    "TIFF of RGBA, 49 megapixels": lambda: encode(rgba(7000), "TIFF", compression="tiff_adobe_deflate"),
    "TIFF of CMYK, 49 megapixels": lambda: encode(
        Image.merge("CMYK", rgba(7000).split()), "TIFF", compression="tiff_adobe_deflate"
    ),
    "TIFF of 16-bit gray, 49 megapixels": lambda: encode(deep_gray(7000), "TIFF", compression="tiff_adobe_deflate"),
    "JPEG of CMYK in scans, 49 megapixels": lambda: encode(
        Image.merge("CMYK", rgba(7000).split()), "JPEG", progressive=True
    ),
    "PNG of RGBA, 49 megapixels": lambda: encode(rgba(7000), "PNG", compress_level=1),
}  # fmt: skip
"""Images with the maximum allowed pixels or bytes, which take seconds to make and to decode."""


def deep_gray(side: int) -> Image.Image:
    """Return a 16-bit gradient."""
    return Image.fromarray(np.arange(side, dtype=np.uint16)[None, :].repeat(side, 0))


def noise(side: int, channels: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, channels), np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
